//! Windows: stretches of this process's address space that show a client's large pages in the order of
//! their IOVAs, wherever they lie in their files.
//!
//! A guest on huge pages is mapped in leaves of 2 MiB. Side by side in a window, a tensor over several
//! of them is one piece for a kernel. Each leaf costs one mapping of the process, so small ones are not
//! shown: slots over these go through a buffer ([`crate::bounce`]).

use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap, mmap_anonymous, mremap, munmap};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

/// Least bytes and alignment of what is shown.
const LARGE_BYTES: u64 = 2 << 20;
/// Bytes of IOVA space that a window shows.
const WINDOW_BYTES: u64 = 1 << 36;
/// Most windows of one client.
const MAX_WINDOWS: usize = 8;
/// Most leaves that one client is shown; all clients share the process's limit of 65,530 mappings.
const MAX_LEAVES: usize = 640;

/// The windows of one client.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    /// By IOVA, in units of [`WINDOW_BYTES`].
    windows: BTreeMap<u64, Window>,
    leaves: usize,
}

#[derive(Debug)]
struct Window {
    start: NonNull<c_void>,
    leaves: usize,
    /// Whether part of it may have been given up, where others' memory can lie by now.
    has_hole: bool,
}

// SAFETY: an address of memory that is only used through raw accesses, from whichever thread.
unsafe impl Send for Windows {}

impl Windows {
    /// Shows `len` bytes of `file` from `offset` on at the place of `iova`, until [`Windows::hide`].
    /// `None` where they are not large, or there is no room: slots can do without.
    pub(crate) fn show(
        &mut self,
        (iova, len): (u64, u64),
        (file, offset): (impl AsFd, u64),
        is_writable: bool,
    ) -> Option<NonNull<u8>> {
        let is_large = [iova, len, offset].iter().all(|value| value.is_multiple_of(LARGE_BYTES));
        let (number, within) = (iova / WINDOW_BYTES, iova % WINDOW_BYTES);
        if !is_large || len > WINDOW_BYTES - within || self.leaves >= MAX_LEAVES {
            return None;
        }
        let offset = i64::try_from(offset).ok()?;
        let len = NonZeroUsize::new(usize::try_from(len).ok()?)?;
        if !self.windows.contains_key(&number) {
            if self.windows.len() >= MAX_WINDOWS {
                return None;
            }
            self.windows.insert(number, Window { start: reserve()?, leaves: 0, has_hole: false });
        }
        let window = self.windows.get_mut(&number)?;
        if window.has_hole {
            return None;
        }
        let at = NonNull::new(window.start.as_ptr().wrapping_byte_add(window.offset(within)?))?;
        let write = if is_writable { ProtFlags::PROT_WRITE } else { ProtFlags::empty() };
        let (protection, flags) = (ProtFlags::PROT_READ | write, MapFlags::MAP_SHARED);
        // Elsewhere first: the client can make this fail, and a mapping that replaces another may have
        // removed that one before it fails.
        // SAFETY: a new mapping at a place of the kernel's choice.
        let Ok(elsewhere) = (unsafe { mmap(None, len, protection, flags, file, offset) }) else {
            self.close_if_empty(number);
            return None;
        };
        let (len, flags) = (len.get(), MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED);
        // SAFETY: the range lies in the window, which is ours, and nothing is shown in it: IOVAs do not
        // overlap. The file was found to be sealed against shrinking.
        if unsafe { mremap(elsewhere, len, len, flags, Some(at)) }.is_err() {
            window.has_hole = true;
            // SAFETY: it was just made, and has not moved.
            let _ = unsafe { munmap(elsewhere, len) };
            self.close_if_empty(number);
            return None;
        }
        window.leaves += 1;
        self.leaves += 1;
        Some(at.cast())
    }

    /// Takes away what was shown at `iova`; nothing may use it any more.
    pub(crate) fn hide(&mut self, (iova, len): (u64, u64)) {
        let (number, within) = (iova / WINDOW_BYTES, iova % WINDOW_BYTES);
        let Some(window) = self.windows.get_mut(&number) else { return };
        let at = window.offset(within).map(|offset| window.start.addr().get() + offset);
        let len = usize::try_from(len).ok().and_then(NonZeroUsize::new);
        if let (Some(at), Some(len)) = (at.and_then(NonZeroUsize::new), len) {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
            // SAFETY: the range lies in the window, and the caller has nothing there any more.
            let hidden = unsafe { mmap_anonymous(Some(at), len, ProtFlags::PROT_NONE, flags) };
            window.has_hole |= hidden.is_err();
        }
        window.leaves -= 1;
        self.leaves -= 1;
        self.close_if_empty(number);
    }

    fn close_if_empty(&mut self, number: u64) {
        if self.windows.get(&number).is_some_and(|window| window.leaves == 0) {
            self.windows.remove(&number);
        }
    }
}

impl Window {
    fn offset(&self, within: u64) -> Option<usize> {
        usize::try_from(within).ok().filter(|&offset| offset < window_len().get())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.has_hole {
            // Address space that is never used again is better than to unmap what is not ours.
            return;
        }
        // SAFETY: the whole window is ours; whoever drops it has nothing in it any more.
        let _ = unsafe { munmap(self.start, window_len().get()) };
    }
}

/// Address space for a window, large pages aligned.
fn reserve() -> Option<NonNull<c_void>> {
    let large = usize::try_from(LARGE_BYTES).ok()?;
    let len = window_len();
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: new address space at a place of the kernel's choice, with no memory behind it.
    let whole =
        unsafe { mmap_anonymous(None, len.checked_add(large)?, ProtFlags::PROT_NONE, flags) };
    let whole = whole.ok()?;
    let before = whole.as_ptr().cast::<u8>().align_offset(large);
    let start = whole.as_ptr().wrapping_byte_add(before);
    let ends = [(whole.as_ptr(), before), (start.wrapping_byte_add(len.get()), large - before)];
    for (at, len) in ends {
        if let (Some(at), 1..) = (NonNull::new(at), len) {
            // SAFETY: either end lies in what was just reserved, outside the window.
            let _ = unsafe { munmap(at, len) };
        }
    }
    NonNull::new(start)
}

fn window_len() -> NonZeroUsize {
    const LEN: NonZeroUsize = NonZeroUsize::new(1 << 36).expect("not zero");
    const _: () = assert!(LEN.get() as u64 == WINDOW_BYTES);
    LEN
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    #[test]
    fn a_file_that_is_sealed_against_writes_meanwhile_tears_no_hole_into_a_window() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"test", flags).unwrap();
        ftruncate(&file, 4 << 20).unwrap();
        let mut windows = Windows::default();
        let first = windows.show((0, LARGE_BYTES), (&file, 0), true).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).unwrap();
        let place = (LARGE_BYTES, LARGE_BYTES);
        assert!(windows.show(place, (&file, LARGE_BYTES), true).is_none());
        // In a hole the next mapping of anybody could lie, to be replaced by the next leaf.
        let len = NonZeroUsize::new(2 << 20).unwrap();
        let at = first.addr().checked_add(len.get()).unwrap();
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: it replaces nothing, and nobody uses it.
        let probe = unsafe { mmap_anonymous(Some(at), len, ProtFlags::PROT_NONE, flags) };
        assert_eq!(probe, Err(Errno::EEXIST));
        assert!(windows.show(place, (&file, LARGE_BYTES), false).is_some(), "to be read it may");
        windows.hide(place);
        windows.hide((0, LARGE_BYTES));
        assert!(windows.windows.is_empty());
    }
}
