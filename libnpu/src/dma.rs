//! Memory that the device reaches: owned mappings, and memory of others that is lent.
//!
//! The device may read and write it at any time, so no reference to it is made here: bytes are copied
//! with relaxed atomics, ring words are atomics ([`crate::queue::words`]).

use crate::error::Error;
use crate::fork::Guarded;
use memmap2::{Advice, MmapMut};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::unistd::ftruncate;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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
    mapping: Option<MmapMut>,
    /// The file that it is all of; `None` when it is private.
    file: Option<OwnedFd>,
    /// What gives a forked child its own copy of the file's bytes.
    guarded: Option<Guarded>,
    /// The process that mapped it.
    owner: u32,
    /// Whether each of its pages is a huge one.
    is_on_huge_pages: bool,
}

// SAFETY: the memory is only accessed through raw pointers and atomics, which any thread may use.
unsafe impl Send for DmaMemory {}
// SAFETY: as above.
unsafe impl Sync for DmaMemory {}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        // In this order: a child that is forked between the two has memory in common with its parent,
        // but nobody has its address; the other way round it would lose what came to lie there.
        self.guarded = None;
        if self.owner != std::process::id() {
            // Whoever in a child has an address from its parent goes on to find memory there.
            std::mem::forget(self.mapping.take());
        }
    }
}

impl DmaMemory {
    fn new(start: NonNull<u8>, len: usize, mapping: Option<MmapMut>) -> Self {
        let owner = std::process::id();
        Self { start, len, mapping, file: None, guarded: None, owner, is_on_huge_pages: false }
    }

    /// `len` zeroed bytes, private to this process, 2 MiB aligned, on huge pages where there are some.
    pub(crate) fn anonymous(len: usize) -> Result<Self, Error> {
        let (mapping, start) = aligned(len)?;
        // Without huge pages it is only slower.
        let _ = mapping.advise(Advice::HugePage);
        Ok(Self::new(start, len, Some(mapping)))
    }

    /// `len` zeroed bytes, 2 MiB aligned, in a file without a name that another process can map. Its
    /// size is sealed: nobody can take bytes away under whoever maps it.
    pub(crate) fn shared(len: usize) -> Result<Self, Error> {
        Self::of_file(len, file(len, MFdFlags::empty())?)
    }

    /// As [`DmaMemory::shared`], on huge pages where the system has enough of them free. `len` is whole
    /// huge pages.
    pub(crate) fn on_huge_pages(len: usize) -> Result<Self, Error> {
        let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        // The pages are taken here, so that nothing that touches them later can fail.
        let taken = file(len, huge).ok().filter(|file| {
            let bytes = i64::try_from(len).unwrap_or(i64::MAX);
            fallocate(file, FallocateFlags::empty(), 0, bytes).is_ok()
        });
        match taken {
            Some(file) => {
                let mut memory = Self::of_file(len, file)?;
                memory.is_on_huge_pages = true;
                Ok(memory)
            }
            None => Self::shared(len),
        }
    }

    /// The `len` bytes of `file`.
    fn of_file(len: usize, file: OwnedFd) -> Result<Self, Error> {
        let out_of = |why: String| Error::OutOfMemory { bytes: len as u64, why };
        let failed = |what: &str, error: nix::Error| out_of(format!("{what}: {error}"));
        let size = NonZeroUsize::new(len).ok_or_else(|| out_of("none was asked for".into()))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|error| failed("cannot seal a memfd", error))?;
        let (mapping, start) = aligned(len)?;
        // Before it is mapped: no fork shares it with a child.
        let guarded = Guarded::new(start.as_ptr(), len, file.as_raw_fd())
            .ok_or_else(|| out_of("as many arenas as there can be are in use".into()))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let at = NonZeroUsize::new(start.as_ptr().addr());
        // SAFETY: the range lies in `mapping`, which is new and which nothing else refers to; what
        // replaces it there goes with it, when it is unmapped as a whole.
        unsafe { mmap(at, size, access, flags, &file, 0) }
            .map_err(|error| failed("cannot map a memfd", error))?;
        // Without huge pages it is only slower.
        let _ = mapping.advise(Advice::HugePage);
        let mut memory = Self::new(start, len, Some(mapping));
        (memory.file, memory.guarded) = (Some(file), Some(guarded));
        Ok(memory)
    }

    /// Whether each of its pages is a huge one.
    pub(crate) fn is_on_huge_pages(&self) -> bool {
        self.is_on_huge_pages
    }

    /// The file that holds these bytes, from its first byte on, for whoever is to map it elsewhere.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Memory of somebody else.
    ///
    /// # Safety
    ///
    /// `len` bytes at `start` are valid for reads and writes for as long as the value lives, and the
    /// process holds no references to them while a device may access them.
    pub(crate) unsafe fn lent(start: NonNull<u8>, len: usize) -> Self {
        Self::new(start, len, None)
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

/// A file of `len` bytes without a name, which can be sealed.
fn file(len: usize, flags: MFdFlags) -> Result<OwnedFd, Error> {
    let out_of = |why: String| Error::OutOfMemory { bytes: len as u64, why };
    let failed = |what: &str, error: nix::Error| out_of(format!("{what}: {error}"));
    let flags = flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file =
        memfd_create(c"npu-arena", flags).map_err(|error| failed("cannot make a memfd", error))?;
    let bytes = i64::try_from(len).map_err(|_| out_of("more than a file holds".into()))?;
    ftruncate(&file, bytes).map_err(|error| failed("cannot size a memfd", error))?;
    Ok(file)
}

/// Address space for `len` bytes from a 2 MiB boundary on, mapped private and zeroed.
fn aligned(len: usize) -> Result<(MmapMut, NonNull<u8>), Error> {
    let out_of = |why: String| Error::OutOfMemory { bytes: len as u64, why };
    let padded = len.checked_add(ARENA_ALIGN).ok_or_else(|| out_of("too many".into()))?;
    let mut mapping = MmapMut::map_anon(padded).map_err(|error| out_of(error.to_string()))?;
    let first = mapping.as_mut_ptr();
    let aligned = first.wrapping_add(first.align_offset(ARENA_ALIGN));
    let start = NonNull::new(aligned).ok_or_else(|| out_of("the mapping is null".into()))?;
    Ok((mapping, start))
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
    fn shared_memory_is_a_file_that_another_mapping_sees_and_nobody_can_cut() {
        let len = ARENA_ALIGN * 2;
        let memory = DmaMemory::shared(len).unwrap();
        memory.write(len - 3, &[7; 3]);
        let file = memory.file().unwrap();
        // SAFETY: the file cannot shrink, and only atomics write it.
        let other = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        assert_eq!((other.len(), &other[len - 4..]), (len, &[0, 7, 7, 7][..]));
        assert_eq!(ftruncate(file, 4096), Err(nix::Error::EPERM));
        assert_eq!(ftruncate(file, 1 << 40), Err(nix::Error::EPERM));
        assert!(DmaMemory::anonymous(4096).unwrap().file().is_none());
        let error = DmaMemory::shared(1 << 62).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    }

    #[test]
    fn memory_is_aligned_zeroed_and_keeps_what_is_written_at_any_offset() {
        for memory in [DmaMemory::anonymous(4096), DmaMemory::shared(4096)] {
            check_bytes(&memory.unwrap());
        }
        // Huge pages or, where there are none, others.
        check_bytes(&DmaMemory::on_huge_pages(ARENA_ALIGN).unwrap());
    }

    fn check_bytes(memory: &DmaMemory) {
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
