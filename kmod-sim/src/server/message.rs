//! One message as it arrived, checked views of its body, and why a command is refused.

use npu_uapi::vfio_user::{Header, errno};
use std::os::fd::OwnedFd;
use zerocopy::FromBytes;

/// A whole message: nothing of it is left in the stream.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Whether more descriptors came than a message may have; the rest are closed.
    pub(crate) has_lost_fds: bool,
}

/// Why a command has no effect: the error number of its reply, and a word for the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) errno: u32,
    pub(crate) why: &'static str,
}

impl Refusal {
    pub(crate) const fn new(errno: u32, why: &'static str) -> Self {
        Self { errno, why }
    }

    pub(crate) const fn invalid(why: &'static str) -> Self {
        Self::new(errno::EINVAL, why)
    }
}

impl Message {
    /// Refuses descriptors beside a command that takes none.
    pub(crate) fn has_no_fds(&self) -> Result<(), Refusal> {
        if self.fds.is_empty() && !self.has_lost_fds {
            return Ok(());
        }
        Err(Refusal::invalid("the command takes no file descriptors"))
    }
}

/// The body as exactly one `T`.
pub(crate) fn exact<T: FromBytes>(body: &[u8]) -> Result<T, Refusal> {
    T::read_from_bytes(body).map_err(|_| Refusal::invalid("the body has the wrong length"))
}

/// The `T` that the body begins with, and what follows it.
pub(crate) fn split<T: FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Refusal> {
    T::read_from_prefix(body).map_err(|_| Refusal::invalid("the body is too short"))
}

/// Refuses an `argsz` that leaves no room for `len` bytes of structure.
pub(crate) fn check_argsz(argsz: u32, len: usize) -> Result<(), Refusal> {
    if usize::try_from(argsz).is_ok_and(|argsz| argsz >= len) {
        return Ok(());
    }
    Err(Refusal::invalid("argsz is less than the structure"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::vfio_user::{DmaUnmap, Version};

    #[test]
    fn bodies_are_read_whole_or_refused() {
        assert_eq!(exact::<DmaUnmap>(&[0; 24]), Ok(DmaUnmap::default()));
        for len in [0, 23, 25] {
            let refusal = exact::<DmaUnmap>(&vec![0; len]).unwrap_err();
            assert_eq!(refusal.errno, errno::EINVAL, "{len}");
        }
        let (version, rest) = split::<Version>(&[0, 0, 1, 0, b'{']).unwrap();
        assert_eq!((version.minor, rest), (1, &b"{"[..]));
        assert!(split::<Version>(&[0; 3]).is_err());
        assert!(check_argsz(15, 16).is_err() && check_argsz(u32::MAX, 16).is_ok());
    }
}
