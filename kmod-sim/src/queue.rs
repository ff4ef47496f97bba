//! The device end of one queue, and whose turn it is among several.

use crate::guest::GuestWords;
use npu_uapi::queue::Completion;
use npu_uapi::ring::{self, Fetched, LastLook, Permit, RingError};

/// A queue that the device serves.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) id: u16,
    /// The context its jobs run in; 0 for the admin queue.
    pub(crate) context: u32,
    /// The band of its jobs, 0 for the one that goes first; of no meaning for the admin queue.
    pub(crate) band: usize,
    /// The vector of its completions.
    pub(crate) vector: u16,
    /// IOVA range of the rings, `(start, len)`.
    pub(crate) region: (u64, u64),
    rings: ring::Device<GuestWords>,
}

impl Queue {
    pub(crate) fn new(
        (id, context, vector): (u16, u32, u16),
        band: usize,
        region: (u64, u64),
        rings: ring::Device<GuestWords>,
    ) -> Self {
        Self { id, context, band, vector, region, rings }
    }

    pub(crate) fn pop(&mut self) -> Result<Option<Fetched>, RingError> {
        self.rings.pop()
    }

    /// Posts a completion; whether the driver waits for an interrupt.
    pub(crate) fn post(&mut self, permit: Permit, completion: Completion) -> bool {
        self.rings.post(permit, &completion.words());
        self.rings.needs_interrupt()
    }

    /// Tells the driver an index that cannot be, as a broken device would.
    pub(crate) fn publish_wrong_index(&mut self) {
        self.rings.publish_wrong_index();
    }

    /// Jobs that were submitted and not yet answered, as far as the driver's word for it can be.
    pub(crate) fn in_flight(&self) -> u32 {
        self.rings.in_flight()
    }

    /// Its rings, to look at.
    pub(crate) fn rings(&self) -> &ring::Device<GuestWords> {
        &self.rings
    }

    /// Whether an entry waits, or the rings are broken.
    pub(crate) fn has_entry(&self) -> bool {
        self.rings.has_entry()
    }

    /// Says that the device sleeps unless kicked; whether that holds.
    pub(crate) fn may_sleep(&mut self) -> bool {
        self.rings.prepare_sleep() == LastLook::Clear
    }
}

/// Whether ranges `(start, len)` have a byte in common.
pub(crate) fn overlaps(one: (u64, u64), other: (u64, u64)) -> bool {
    // By the last byte: the end of the address space has no number.
    let last = |range: (u64, u64)| range.1.checked_sub(1).map(|len| range.0.saturating_add(len));
    let is_before_end = |start, range| last(range).is_some_and(|last| start <= last);
    is_before_end(one.0, other) && is_before_end(other.0, one)
}
