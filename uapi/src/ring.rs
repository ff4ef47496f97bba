//! The rings of a queue: submissions from driver to device, completions back. Both ends.
//!
//! Knows words and indices only: what an entry means is [`crate::queue`]'s, how memory is mapped and
//! how a kick or an interrupt travels is the transport's. Both ends live here, over the trait
//! [`Words`], so that one loom model holds driver and device.
//!
//! ```text
//! byte 0    driver's line   sq_tail, cq_head, irq_event              written by the driver only
//!      64   device's line   sq_head, kick_event                      written by the device only
//!      128  submissions     2^sq_log2 entries of 16 words            written by the driver only
//!           completions     2^cq_log2 entries of 8 words             written by the device only
//! ```
//!
//! **Indices** are `u32` and free-running: they wrap at 2^32, `index & (depth - 1)` is the slot, and
//! two are compared by their wrapping difference only. The memory starts zeroed and all at index 0.
//!
//! **Completions.** Each submission has exactly one, in any order. Bit 31 of a completion's last
//! word is the **phase**: 1 in the first lap, flipped in each next one, so that the driver sees a new
//! entry in the entry itself. A driver has at most 2^cq_log2 commands in flight, so that a device
//! never waits for room; a submission beyond is the driver's fault
//! ([`RingError::CompletionsOvercommitted`]).
//!
//! **Event suppression.** A side that is about to sleep writes how far it has come (`kick_event`,
//! `irq_event`) and looks once more; the other side sends a kick or an interrupt only where its own
//! index passes that event. A side that is awake has been passed already and hears nothing. Fences
//! see to it that of the two looks at least one succeeds ([`crate::order`]).
//!
//! **Trust.** Each side decides by its own copies. A word of the other side is loaded once, checked,
//! then used; one out of range is a [`RingError`] after which the queue is reset. All accesses are
//! atomic, entries too, so that a side that breaks the rules makes wrong words and nothing worse.

use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

mod device;
mod driver;
mod gate;
#[cfg(test)]
#[cfg(loom)]
mod model;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use device::{Device, Fetched, Permit};
pub use driver::{Driver, Next};
pub use gate::{MayClear, ResetGate};

/// Words of a submission entry (64 bytes).
pub const SUBMISSION_WORDS: usize = 16;
/// Words of a completion entry (32 bytes).
pub const COMPLETION_WORDS: usize = 8;
/// The phase bit, in the last word of a completion. The ring sets and clears it; it is no payload.
pub const PHASE_BIT: u32 = 1 << 31;

/// Shared memory as 32-bit words, each accessed whole and atomically.
///
/// The other side may write any word at any time.
pub trait Words {
    /// How many words there are; may not change.
    fn word_count(&self) -> usize;
    /// Loads the word at `index`, which is below [`Words::word_count`].
    fn load(&self, index: usize, order: Ordering) -> u32;
    /// Stores the word at `index`, which is below [`Words::word_count`].
    fn store(&self, index: usize, value: u32, order: Ordering);
}

impl Words for [AtomicU32] {
    #[inline]
    fn word_count(&self) -> usize {
        self.len()
    }
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self[index].load(order)
    }
    #[inline]
    fn store(&self, index: usize, value: u32, order: Ordering) {
        self[index].store(value, order);
    }
}

impl<W: Words + ?Sized> Words for &W {
    #[inline]
    fn word_count(&self) -> usize {
        (**self).word_count()
    }
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        (**self).load(index, order)
    }
    #[inline]
    fn store(&self, index: usize, value: u32, order: Ordering) {
        (**self).store(index, value, order);
    }
}

impl<W: Words + ?Sized> Words for Arc<W> {
    #[inline]
    fn word_count(&self) -> usize {
        (**self).word_count()
    }
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        (**self).load(index, order)
    }
    #[inline]
    fn store(&self, index: usize, value: u32, order: Ordering) {
        (**self).store(index, value, order);
    }
}

/// How deep the rings of a queue are, and so where everything lies in their region.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingLayout {
    sq_log2: u32,
    cq_log2: u32,
}

/// Words of one side's cache line.
const LINE_WORDS: usize = 16;
/// Bytes of a word.
const WORD_BYTES: usize = 4;

/// Word offsets of the indices. The driver writes the first line, the device the second.
const SQ_TAIL: usize = 0;
const CQ_HEAD: usize = 1;
const IRQ_EVENT: usize = 2;
const SQ_HEAD: usize = LINE_WORDS;
const KICK_EVENT: usize = LINE_WORDS + 1;
const SUBMISSIONS: usize = 2 * LINE_WORDS;

impl RingLayout {
    /// The log2 depths that a ring may have: 16 to 4096 entries.
    pub const LOG2_RANGE: core::ops::RangeInclusive<u32> = 4..=12;

    /// Rings of 2^`sq_log2` submissions and 2^`cq_log2` completions.
    ///
    /// # Errors
    /// [`RingError::DepthOutOfRange`] where one is not in [`RingLayout::LOG2_RANGE`].
    pub const fn new(sq_log2: u32, cq_log2: u32) -> Result<Self, RingError> {
        let (low, high) = (*Self::LOG2_RANGE.start(), *Self::LOG2_RANGE.end());
        if sq_log2 < low || sq_log2 > high || cq_log2 < low || cq_log2 > high {
            return Err(RingError::DepthOutOfRange { sq_log2, cq_log2 });
        }
        Ok(Self { sq_log2, cq_log2 })
    }

    /// Log2 of the submission ring's depth.
    #[must_use]
    pub const fn sq_log2(self) -> u32 {
        self.sq_log2
    }

    /// Log2 of the completion ring's depth.
    #[must_use]
    pub const fn cq_log2(self) -> u32 {
        self.cq_log2
    }

    /// Entries of the submission ring.
    #[must_use]
    pub const fn sq_depth(self) -> u32 {
        1 << self.sq_log2
    }

    /// Entries of the completion ring: at most this many commands are in flight.
    #[must_use]
    pub const fn cq_depth(self) -> u32 {
        1 << self.cq_log2
    }

    /// Words of the whole region.
    #[must_use]
    pub const fn total_words(self) -> usize {
        self.completions() + (COMPLETION_WORDS << self.cq_log2)
    }

    /// Bytes of the whole region. It must be zero before a queue is created on it.
    #[must_use]
    pub const fn total_bytes(self) -> usize {
        self.total_words() * WORD_BYTES
    }

    /// Bytes of the submission entries in the region.
    #[must_use]
    pub const fn submission_bytes(self) -> Range<usize> {
        SUBMISSIONS * WORD_BYTES..self.completions() * WORD_BYTES
    }

    /// Bytes of the completion entries in the region.
    #[must_use]
    pub const fn completion_bytes(self) -> Range<usize> {
        self.completions() * WORD_BYTES..self.total_bytes()
    }

    /// Zeroes the region, so that a queue can be created on it anew after a reset.
    ///
    /// The permission shows that the device no longer touches it. The stores need no order of their
    /// own: [`ResetGate::start`], or the command that creates the queue, publishes them.
    ///
    /// # Errors
    /// [`RingError::RegionTooSmall`].
    pub fn clear(self, words: &impl Words, _permission: &MayClear) -> Result<(), RingError> {
        self.check_region(words)?;
        for index in 0..self.total_words() {
            words.store(index, 0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Word offset of the completion entries.
    const fn completions(self) -> usize {
        SUBMISSIONS + (SUBMISSION_WORDS << self.sq_log2)
    }

    /// The words of the submission slot of `index`.
    #[inline]
    fn submission(self, index: u32) -> Range<usize> {
        let first = SUBMISSIONS + slot(index, self.sq_depth()) * SUBMISSION_WORDS;
        first..first + SUBMISSION_WORDS
    }

    /// The words of the completion slot of `index`, without the last; and the last, with the phase.
    #[inline]
    fn completion(self, index: u32) -> (Range<usize>, usize) {
        let first = self.completions() + slot(index, self.cq_depth()) * COMPLETION_WORDS;
        let last = first + COMPLETION_WORDS - 1;
        (first..last, last)
    }

    /// The phase bit of the completion at `index`: set in the first lap and each second one after.
    /// The laps of 2^32 indices are an even number, so the phase goes on flipping over the wrap.
    #[inline]
    const fn phase(self, index: u32) -> u32 {
        if (index >> self.cq_log2) & 1 == 0 { PHASE_BIT } else { 0 }
    }

    fn check_region(self, words: &impl Words) -> Result<(), RingError> {
        let (found, needed) = (words.word_count(), self.total_words());
        if found < needed {
            return Err(RingError::RegionTooSmall { found, needed });
        }
        Ok(())
    }
}

/// The slot of a free-running index in a ring of `depth` entries, a power of two up to 2^12.
#[inline]
const fn slot(index: u32, depth: u32) -> usize {
    const _: () = assert!(usize::BITS >= u32::BITS, "a slot number fits");
    (index & (depth - 1)) as usize
}

/// What one look before sleeping found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "a side may sleep only if the answer is `Clear`"]
pub enum LastLook {
    /// Nothing is there, and what comes from now on wakes this side: it may sleep.
    Clear,
    /// Something arrived meanwhile (or the other side broke the rules): go on, do not sleep.
    Work,
}

/// How far behind its own index a side puts its event that wants no wake-ups: half of all indices,
/// so that the other side passes it only after 2^31 further entries, and then once, harmlessly.
const SUPPRESSED: u32 = 1 << 31;

/// Whether an index that moves from `old` to `new` passes `event`: whether `event` is in `old..new`.
#[inline]
const fn passes(event: u32, old: u32, new: u32) -> bool {
    event.wrapping_sub(old) < new.wrapping_sub(old)
}

/// Whether an index of the other side, last seen at `last`, may have come to `found`: it only moves
/// forward, and not beyond `limit`.
#[inline]
const fn is_between(last: u32, found: u32, limit: u32) -> bool {
    found.wrapping_sub(last) <= limit.wrapping_sub(last)
}

/// Why a ring refuses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// A depth that the interface does not have.
    #[error(
        "ring depths 2^{sq_log2} (submissions) and 2^{cq_log2} (completions): \
         each must be 2^4 to 2^12 entries"
    )]
    DepthOutOfRange {
        /// Log2 of the submission ring's depth.
        sq_log2: u32,
        /// Log2 of the completion ring's depth.
        cq_log2: u32,
    },
    /// The memory does not hold the rings.
    #[error("ring region has {found} words, its depths need {needed}")]
    RegionTooSmall {
        /// Words that there are.
        found: usize,
        /// Words that the layout needs.
        needed: usize,
    },
    /// The device has not yet fetched enough. Nothing was lost.
    #[error("submission ring is full ({depth} entries not yet fetched); publish, wait, push again")]
    SubmissionsFull {
        /// Entries of the ring.
        depth: u32,
    },
    /// As many commands are in flight as completions have room for. Nothing was lost.
    #[error("{depth} commands are in flight, as many as the completion ring holds; reap first")]
    CompletionsFull {
        /// Entries of the ring.
        depth: u32,
    },
    /// The device has moved `sq_head` back, or beyond what was published.
    #[error("device wrote sq_head {found:#x}, outside {last:#x}..={tail:#x}; reset the queue")]
    SqHeadOutOfRange {
        /// What was read.
        found: u32,
        /// What was read before.
        last: u32,
        /// What the driver has published.
        tail: u32,
    },
    /// The device has posted a completion where nothing is in flight.
    #[error("device posted completion {index:#x} with no command in flight; reset the queue")]
    UnexpectedCompletion {
        /// Its index in the completion ring.
        index: u32,
    },
    /// The driver has moved `sq_tail` back, or more than a ring beyond what was fetched.
    #[error("driver wrote sq_tail {found:#x}, outside {last:#x}..={limit:#x}; the queue stops")]
    SqTailOutOfRange {
        /// What was read.
        found: u32,
        /// What was read before.
        last: u32,
        /// One whole ring beyond what was fetched.
        limit: u32,
    },
    /// The driver has moved `cq_head` back, or beyond what was posted.
    #[error("driver wrote cq_head {found:#x}, outside {last:#x}..={posted:#x}; the queue stops")]
    CqHeadOutOfRange {
        /// What was read.
        found: u32,
        /// What was read before.
        last: u32,
        /// What the device has posted.
        posted: u32,
    },
    /// The driver has submitted more than its completion ring has room for.
    #[error(
        "driver submitted command {index:#x} with {depth} unreaped, all that the completion ring \
         holds; the queue stops"
    )]
    CompletionsOvercommitted {
        /// Index of the submission, which was not fetched.
        index: u32,
        /// Entries of the completion ring.
        depth: u32,
    },
}
