//! Ring words in device memory, as the rings' driver end reads and writes them.

use crate::buffer::Buffer;
use npu_uapi::ring::Words;
use std::sync::atomic::{AtomicU32, Ordering};

/// The words of a buffer, which it keeps.
#[derive(Debug)]
pub(crate) struct RingWords(Buffer);

impl RingWords {
    pub(crate) fn new(buffer: Buffer) -> Self {
        Self(buffer)
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.word_count(), "the ring stays within its region");
        let (memory, start) = self.0.memory();
        let word = memory.as_ptr().wrapping_add(start + index * 4);
        #[expect(clippy::cast_ptr_alignment, reason = "buffers are 64-byte aligned")]
        let word = word.cast::<u32>();
        // SAFETY: the word is inside the buffer, which `self` keeps, aligned, and only accessed as an
        // atomic, here and by the device.
        unsafe { AtomicU32::from_ptr(word) }
    }
}

impl Words for RingWords {
    fn word_count(&self) -> usize {
        self.0.len() / 4
    }

    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }

    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.word(index).store(value, order);
    }
}
