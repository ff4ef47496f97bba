//! On-chip memory: one buffer a function, lent to the job that runs.

use crate::memory::Extent;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// What an undefined byte holds in strict mode.
const POISON: u8 = 0xa5;

/// The SRAM of a function. Undefined at the start of a job; poisoned in strict mode.
#[derive(Debug)]
pub(crate) struct Sram {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer is owned; what points into it goes through raw accesses of one job at a time.
unsafe impl Send for Sram {}

impl Sram {
    /// `len` bytes, as the configuration bounds them, and what aligning 256 slots to 64 bytes takes.
    pub(crate) fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len + 256 * 64, 64);
        let layout = layout.expect("the configuration bounds the SRAM");
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }

    /// Its `len` bytes from `offset` on, `None` when there are not as many.
    pub(crate) fn extent(&self, offset: u64, len: u64) -> Option<Extent> {
        let end = usize::try_from(offset.checked_add(len)?).ok()?;
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        if end > self.layout.size() {
            return None;
        }
        let start = self.start.as_ptr().wrapping_add(offset);
        // SAFETY: `offset + len` bytes are allocated, writable, and live as long as the function,
        // which ends its jobs before it goes.
        Some(unsafe { Extent::from_raw(start, len, true) })
    }

    /// Overwrites everything; no job may be running.
    pub(crate) fn poison(&self) {
        // SAFETY: the buffer has this size, and the caller has no job running.
        unsafe { self.start.as_ptr().write_bytes(POISON, self.layout.size()) }
    }
}

impl Drop for Sram {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
