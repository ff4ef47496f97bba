//! The handshake of a reset: when ring memory may be cleared, and when it may be used again.
//!
//! ```text
//!           driver: start               driver: request_reset
//!   RESET ──────────────────> READY ──────────────────────────> QUIESCING
//!     ^  the rings are clear    the device uses the rings           │
//!     └─────────────────────────────────────────────────────────────┘
//!             device: device_done, after its last access to any ring
//! ```
//!
//! A late store of the device would be taken for a new completion where it lands on a cleared ring;
//! so the driver clears only what the device has left.
//!
//! The word holds `Status.STATE`. A device keeps it in its own memory and makes the driver's half of
//! the handshake in its register file: a write of `Ctrl` is `start` or `request_reset`, a read of
//! `Status` is `driver_may_clear`. A driver behind registers has a gate over a [`Words`] that loads
//! `Status.STATE` and stores by writing `Ctrl`; the transport then owes the order that is asked for.

use core::sync::atomic::Ordering;

use super::Words;
use crate::order;
use crate::regs::state;

/// One word between driver and device, a [`state`], that says whose the rings are.
///
/// A zero word is [`state::RESET`]: a device that was never started.
#[derive(Clone, Copy, Debug)]
pub struct ResetGate<W> {
    words: W,
    index: usize,
}

/// The device has left the rings: their memory may be cleared, by [`super::RingLayout::clear`], until
/// [`ResetGate::start`] takes this back.
#[derive(Debug)]
#[must_use = "clear the rings, then start the device"]
pub struct MayClear(());

impl<W: Words> ResetGate<W> {
    /// The gate in the word `index` of `words`.
    ///
    /// # Panics
    /// Where there is no such word.
    pub fn new(words: W, index: usize) -> Self {
        assert!(index < words.word_count(), "the gate's word {index} is outside its memory");
        Self { words, index }
    }

    /// Driver: lets the device use the rings, which are cleared.
    pub fn start(&self, permission: MayClear) {
        let MayClear(()) = permission;
        self.words.store(self.index, state::READY, order::GATE_START_PUBLISH.ordering());
    }

    /// Device: whether it may use the rings. Asked once before the first access after a reset.
    #[must_use]
    pub fn device_may_start(&self) -> bool {
        self.words.load(self.index, order::GATE_START_TAKE.ordering()) == state::READY
    }

    /// Driver: asks the device to leave the rings, in whatever state it is.
    pub fn request_reset(&self) {
        // Relaxed: it hands over nothing; the answer does.
        self.words.store(self.index, state::QUIESCING, Ordering::Relaxed);
    }

    /// Device: whether it is asked to leave the rings. It then answers with
    /// [`ResetGate::device_done`], also where it has stopped by itself before.
    #[must_use]
    pub fn is_reset_requested(&self) -> bool {
        // Relaxed: it takes over nothing.
        self.words.load(self.index, Ordering::Relaxed) == state::QUIESCING
    }

    /// Device: has made its last access to the rings. Called once in answer to a request, after
    /// every worker has stopped.
    pub fn device_done(&self) {
        self.words.store(self.index, state::RESET, order::GATE_IDLE_PUBLISH.ordering());
    }

    /// Driver: the permission to clear the rings, once the device has left them.
    #[must_use]
    pub fn driver_may_clear(&self) -> Option<MayClear> {
        let found = self.words.load(self.index, order::GATE_IDLE_TAKE.ordering());
        (found == state::RESET).then_some(MayClear(()))
    }
}
