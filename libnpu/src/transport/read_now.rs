//! Reading a file that another process has too, without sleeping, whatever flags that process gives it.

use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Reads what is there; how many bytes that was. Zero also where reading would sleep.
pub(super) fn read_now(file: BorrowedFd<'_>, buffer: &mut [u8]) -> usize {
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: one buffer of its true length, which outlives the call; -1 is the file's own position.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(read).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::eventfd::EventFd;
    use std::os::fd::AsFd;

    #[test]
    fn an_eventfd_that_would_sleep_is_read_at_once_or_not_at_all() {
        let event = EventFd::new().unwrap();
        fcntl(&event, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let mut counted = [0; 8];
        assert_eq!(read_now(event.as_fd(), &mut counted), 0);
        event.write(5).unwrap();
        assert_eq!(read_now(event.as_fd(), &mut counted), 8);
        assert_eq!(u64::from_ne_bytes(counted), 5);
        assert_eq!(read_now(event.as_fd(), &mut counted), 0);
    }
}
