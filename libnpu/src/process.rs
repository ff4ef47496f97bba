//! The number of this process, without a system call: it is asked for at each submission.

use nix::sys::mman::{MmapAdvise, madvise};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A page that the kernel zeroes in a forked child, whoever forks and however; none where it does not.
struct Page(NonNull<AtomicU32>);

// SAFETY: the page holds an atomic and is never unmapped.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

static PAGE: OnceLock<Option<Page>> = OnceLock::new();

/// As [`std::process::id`].
#[inline]
pub(crate) fn id() -> u32 {
    let Some(Page(known)) = PAGE.get_or_init(page) else { return std::process::id() };
    // SAFETY: the page stays mapped for as long as the process lives, and holds zeroes at first, which
    // are an atomic.
    let known = unsafe { known.as_ref() };
    match known.load(Ordering::Relaxed) {
        0 => {
            let id = std::process::id();
            known.store(id, Ordering::Relaxed);
            id
        }
        id => id,
    }
}

fn page() -> Option<Page> {
    const BYTES: usize = 4096;
    let mut mapping = memmap2::MmapMut::map_anon(BYTES).ok()?;
    let start = NonNull::new(mapping.as_mut_ptr())?;
    // SAFETY: the page is ours alone, and whoever reads it expects that a child finds it zeroed.
    unsafe { madvise(start.cast(), BYTES, MmapAdvise::MADV_WIPEONFORK) }.ok()?;
    // For as long as the process lives.
    std::mem::forget(mapping);
    Some(Page(start.cast()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_number_of_the_process_each_time() {
        assert_eq!(id(), std::process::id());
        assert_eq!(id(), std::process::id());
    }

    #[test]
    fn a_forked_child_has_a_number_of_its_own() {
        use nix::sys::wait::{WaitStatus, waitpid};
        let parent = id();
        // SAFETY: the child calls nothing but `id`, which takes no lock after the call above, and exits.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let is_new = id() != parent && id() == std::process::id();
                // SAFETY: it runs no handlers, and leaves what the parent shares alone.
                unsafe { nix::libc::_exit(if is_new { 0 } else { 1 }) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
        assert_eq!(id(), parent);
    }
}
