//! Memory that tells on whoever leaves it: pages that cannot be touched lie right before or behind it.

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

const PAGE: usize = 4096;
const CANARY: u8 = 0xc5;

/// `len` bytes of memory that end (or begin) exactly at a page without access; what is left of the pages
/// at the other end holds canaries.
pub(crate) struct Guarded {
    mapping: NonNull<std::ffi::c_void>,
    pages_bytes: usize,
    start: usize,
    len: usize,
}

impl Guarded {
    pub(crate) fn new(len: usize, at_end: bool) -> Self {
        let pages_bytes = len.next_multiple_of(PAGE).max(PAGE);
        let whole = NonZeroUsize::new(pages_bytes + 2 * PAGE).expect("two guard pages at least");
        // SAFETY: a new private mapping at an address of the kernel's choice touches no other memory.
        let mapping =
            unsafe { mmap_anonymous(None, whole, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }
                .expect("the test has address space");
        let start = if at_end { pages_bytes - len } else { 0 };
        let guarded = Self { mapping, pages_bytes, start, len };
        guarded.protect(true);
        // SAFETY: the pages between the guards were just made writable, and nothing else knows them.
        unsafe { guarded.pages().as_ptr().write_bytes(CANARY, pages_bytes) };
        guarded
    }

    /// The first byte between the guards.
    fn pages(&self) -> NonNull<u8> {
        // SAFETY: the mapping is a page longer than this at each end.
        unsafe { self.mapping.cast().byte_add(PAGE) }
    }

    /// Allows or forbids writes.
    pub(crate) fn protect(&self, writable: bool) {
        let write = if writable { ProtFlags::PROT_WRITE } else { ProtFlags::empty() };
        // SAFETY: the range is the inside of our own mapping, and no Rust reference to it exists.
        unsafe { mprotect(self.pages().cast(), self.pages_bytes, ProtFlags::PROT_READ | write) }
            .expect("our own pages can be protected");
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.pages().as_ptr().wrapping_add(self.start)
    }

    pub(crate) fn set(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.len);
        // SAFETY: `len` bytes from `pointer` lie between the guards; a `Vec` elsewhere is no overlap.
        unsafe { self.pointer().copy_from_nonoverlapping(bytes.as_ptr(), self.len) };
    }

    /// The bytes; panics when those around them were written.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; self.pages_bytes];
        // SAFETY: `all` is as long as the pages between the guards, which are readable.
        unsafe { all.as_mut_ptr().copy_from_nonoverlapping(self.pages().as_ptr(), all.len()) };
        let end = self.start + self.len;
        assert!(all[..self.start].iter().chain(&all[end..]).all(|&byte| byte == CANARY));
        all[self.start..end].to_vec()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and its only user is being dropped.
        unsafe { munmap(self.mapping, self.pages_bytes + 2 * PAGE) }.expect("it was mapped");
    }
}
