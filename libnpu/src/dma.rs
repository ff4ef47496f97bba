//! Memory that the device reaches: owned mappings, and memory of others that is lent.
//!
//! The device may read and write it at any time, so no reference to it is made here: bytes are copied
//! with relaxed atomics, ring words are atomics ([`crate::queue::words`]).

use crate::error::Error;
use memmap2::{Advice, MmapMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Alignment and grain of arenas: a huge page.
pub(crate) const ARENA_ALIGN: usize = 2 << 20;

/// A piece of memory that can be mapped for a device.
#[derive(Debug)]
pub struct DmaMemory {
    start: NonNull<u8>,
    len: usize,
    /// Whose it is; `None` when it is lent.
    _mapping: Option<MmapMut>,
}

// SAFETY: the memory is only accessed through raw pointers and atomics, which any thread may use.
unsafe impl Send for DmaMemory {}
// SAFETY: as above.
unsafe impl Sync for DmaMemory {}

impl DmaMemory {
    /// `len` zeroed bytes, private to this process, 2 MiB aligned, on huge pages where there are some.
    pub(crate) fn anonymous(len: usize) -> Result<Self, Error> {
        let out_of = |why: String| Error::OutOfMemory { bytes: len as u64, why };
        let padded = len.checked_add(ARENA_ALIGN).ok_or_else(|| out_of("too many".into()))?;
        let mut mapping = MmapMut::map_anon(padded).map_err(|error| out_of(error.to_string()))?;
        // Without huge pages it is only slower.
        let _ = mapping.advise(Advice::HugePage);
        let first = mapping.as_mut_ptr();
        let aligned = first.wrapping_add(first.align_offset(ARENA_ALIGN));
        let start = NonNull::new(aligned).ok_or_else(|| out_of("the mapping is null".into()))?;
        Ok(Self { start, len, _mapping: Some(mapping) })
    }

    /// Memory of somebody else.
    ///
    /// # Safety
    ///
    /// `len` bytes at `start` are valid for reads and writes for as long as the value lives, and the
    /// process holds no references to them while a device may access them.
    pub(crate) unsafe fn lent(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len, _mapping: None }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins in this process.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The address of byte `at`, from which `len` bytes are inside.
    fn checked(&self, at: usize, len: usize) -> *mut u8 {
        let is_inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(is_inside, "buffers stay inside their memory");
        self.as_ptr().wrapping_add(at)
    }

    /// Copies the bytes from `at` on to `out`.
    pub(crate) fn read(&self, at: usize, out: &mut [u8]) {
        let from = self.checked(at, out.len());
        let head = from.align_offset(8).min(out.len());
        let (first, rest) = out.split_at_mut(head);
        let (chunks, last) = rest.as_chunks_mut::<8>();
        for (index, byte) in first.iter_mut().enumerate() {
            *byte = byte_at(from, index).load(Ordering::Relaxed);
        }
        for (index, chunk) in chunks.iter_mut().enumerate() {
            *chunk = chunk_at(from, head + index * 8).load(Ordering::Relaxed).to_ne_bytes();
        }
        let tail = head + chunks.len() * 8;
        for (index, byte) in last.iter_mut().enumerate() {
            *byte = byte_at(from, tail + index).load(Ordering::Relaxed);
        }
    }

    /// Copies `bytes` to `at`.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.checked(at, bytes.len());
        let head = to.align_offset(8).min(bytes.len());
        let (first, rest) = bytes.split_at(head);
        let (chunks, last) = rest.as_chunks::<8>();
        for (index, &byte) in first.iter().enumerate() {
            byte_at(to, index).store(byte, Ordering::Relaxed);
        }
        for (index, &chunk) in chunks.iter().enumerate() {
            chunk_at(to, head + index * 8).store(u64::from_ne_bytes(chunk), Ordering::Relaxed);
        }
        let tail = head + chunks.len() * 8;
        for (index, &byte) in last.iter().enumerate() {
            byte_at(to, tail + index).store(byte, Ordering::Relaxed);
        }
    }

    /// Zeroes `len` bytes from `at` on, which nobody uses.
    pub(crate) fn zero(&self, at: usize, len: usize) {
        let to = self.checked(at, len);
        // SAFETY: the bytes are inside, and free: neither a buffer nor a mapping in use covers them.
        unsafe { to.write_bytes(0, len) }
    }
}

/// The byte `index` behind `base`, which `checked` gave for more bytes than that.
fn byte_at<'a>(base: *mut u8, index: usize) -> &'a AtomicU8 {
    // SAFETY: the callers stay within what `checked` has shown to be inside living memory.
    unsafe { AtomicU8::from_ptr(base.wrapping_add(index)) }
}

/// The eight bytes at `index` behind `base`, 8-byte aligned, likewise.
fn chunk_at<'a>(base: *mut u8, index: usize) -> &'a AtomicU64 {
    #[expect(clippy::cast_ptr_alignment, reason = "`align_offset(8)` came before")]
    let chunk = base.wrapping_add(index).cast::<u64>();
    // SAFETY: the callers stay within what `checked` has shown, from an aligned address on.
    unsafe { AtomicU64::from_ptr(chunk) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_keeps_what_is_written_at_any_offset() {
        let memory = DmaMemory::anonymous(4096).unwrap();
        assert!(memory.as_ptr().addr().is_multiple_of(ARENA_ALIGN));
        let bytes: Vec<u8> = (1..=40).collect();
        for at in 0..9 {
            for len in [0, 1, 7, 8, 9, 40] {
                memory.zero(0, 64);
                memory.write(at, &bytes[..len]);
                let mut out = vec![0; 64];
                memory.read(0, &mut out);
                assert_eq!(out[at..at + len], bytes[..len]);
                assert!(out[..at].iter().chain(&out[at + len..]).all(|&byte| byte == 0));
                let mut part = vec![0; len];
                memory.read(at, &mut part);
                assert_eq!(part, bytes[..len]);
            }
        }
    }
}
