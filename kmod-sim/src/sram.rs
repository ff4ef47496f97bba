//! On-chip memory: a bank for each band of priorities, lent to the job that is under way in it.
//!
//! A job that rests while one of a higher band runs keeps what it has there, so each band has a bank of
//! the whole size. Banks are allocated when a band's first job comes; a device whose queues all have one
//! priority has one.

use crate::memory::Extent;
use npu_uapi::queue::priority;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// What an undefined byte holds in strict mode.
pub(crate) const POISON: u8 = 0xa5;

/// Where banks begin.
const ALIGN: usize = 64;

/// The SRAM of a function. Undefined at the start of a job; poisoned in strict mode.
#[derive(Debug)]
pub(crate) struct Sram {
    layout: Layout,
    banks: [Option<Bank>; priority::COUNT],
}

impl Sram {
    /// Banks of `len` bytes, as the configuration bounds them, and what aligning 256 slots to 64 bytes
    /// takes.
    pub(crate) fn new(len: usize) -> Self {
        // No alignment that the allocator does not have anyway: it takes fresh pages then, which are zero,
        // instead of writing zeros for as long as that takes.
        let layout = Layout::from_size_align(len + 256 * 64 + ALIGN, 16);
        let layout = layout.expect("the configuration bounds the SRAM");
        Self { layout, banks: Default::default() }
    }

    /// The bank of `band`.
    pub(crate) fn bank(&mut self, band: usize) -> &Bank {
        let layout = self.layout;
        self.banks[band].get_or_insert_with(|| Bank::new(layout))
    }
}

/// The memory of one job at a time.
#[derive(Debug)]
pub(crate) struct Bank {
    allocation: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer is owned; what points into it goes through raw accesses of one job at a time.
unsafe impl Send for Bank {}

impl Bank {
    fn new(layout: Layout) -> Self {
        // SAFETY: the size is not zero.
        let allocation = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(allocation) else { handle_alloc_error(layout) };
        Self { allocation, layout }
    }

    fn start(&self) -> *mut u8 {
        let allocation = self.allocation.as_ptr();
        allocation.wrapping_add(allocation.align_offset(ALIGN))
    }

    fn len(&self) -> usize {
        self.layout.size() - ALIGN
    }

    /// Its `len` bytes from `offset` on, `None` when there are not as many.
    pub(crate) fn extent(&self, offset: u64, len: u64) -> Option<Extent> {
        let end = usize::try_from(offset.checked_add(len)?).ok()?;
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        if end > self.len() {
            return None;
        }
        let start = self.start().wrapping_add(offset);
        // SAFETY: `offset + len` bytes are allocated, writable, and live as long as the function,
        // which ends its jobs before it goes.
        Some(unsafe { Extent::from_raw(start, len, true) })
    }

    /// All of it.
    pub(crate) fn whole(&self) -> Extent {
        // SAFETY: as above.
        unsafe { Extent::from_raw(self.start(), self.len(), true) }
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}
