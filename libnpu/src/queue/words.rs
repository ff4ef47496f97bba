//! Ring words in device memory, as the rings' driver end reads and writes them.

use crate::buffer::Buffer;
use npu_uapi::ring::Words;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// The words of a buffer, which it keeps.
#[derive(Debug)]
pub(crate) struct RingWords {
    first: NonNull<AtomicU32>,
    count: usize,
    _buffer: Buffer,
}

// SAFETY: the words are atomics, in memory that the buffer keeps in place for any thread.
unsafe impl Send for RingWords {}
// SAFETY: as above.
unsafe impl Sync for RingWords {}

impl RingWords {
    pub(crate) fn new(buffer: Buffer) -> Self {
        let first = buffer.as_ptr().cast::<AtomicU32>();
        assert!(first.is_aligned(), "buffers are 64-byte aligned");
        let first = NonNull::new(first).expect("a buffer has an address");
        Self { first, count: buffer.len() / 4, _buffer: buffer }
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.count, "the ring stays within its region");
        // SAFETY: the word is inside the buffer, which `self` keeps, aligned, and only accessed as an
        // atomic, here and by the device.
        unsafe { &*self.first.as_ptr().wrapping_add(index) }
    }
}

impl Words for RingWords {
    fn word_count(&self) -> usize {
        self.count
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }

    #[inline]
    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.word(index).store(value, order);
    }
}
