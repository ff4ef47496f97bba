//! Whole messages over a UNIX stream socket, with the file descriptors beside them.
//!
//! Every descriptor that arrives is owned at once, whatever becomes of its message, and never inherited
//! by a child. What is read of a message is bounded before memory is taken for it.

use super::message::Message;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use npu_uapi::vfio_user::{HEADER_BYTES, Header, MAX_FDS};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;
use zerocopy::{FromBytes, IntoBytes};

/// Most descriptors that Linux passes at once; with room for all, none is lost without a trace.
const SYSTEM_MAX_FDS: usize = 253;
const CONTROL_WORDS: usize = 2 + SYSTEM_MAX_FDS.div_ceil(2);

/// Receives one message; `None` when the client closed the connection between two.
///
/// # Errors
/// The connection broke, within a message or because its size cannot be: it is of no more use. Or the
/// message was not whole by `deadline`.
pub(crate) fn receive(
    stream: &UnixStream,
    deadline: Option<Instant>,
) -> io::Result<Option<Message>> {
    let mut fds = Arrived::default();
    let mut head = [0; HEADER_BYTES];
    if !fill(stream, &mut head, &mut fds, deadline)? {
        return Ok(None);
    }
    let header = Header::read_from_bytes(&head).map_err(|_| io::ErrorKind::InvalidData)?;
    let len =
        header.body_len().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let mut body = vec![0; len];
    if len > 0 && !fill(stream, &mut body, &mut fds, deadline)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Message { header, body, fds: fds.kept, has_lost_fds: fds.has_lost }))
}

/// Sends a message. A peer that does not read blocks the caller until it does or the socket is shut down.
pub(crate) fn send(mut stream: &UnixStream, header: Header, body: &[u8]) -> io::Result<()> {
    // One call in the usual case, so that a reply is one packet. `SIGPIPE` is ignored by Rust's start-up.
    let head = header.as_bytes();
    let sent = loop {
        match stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    if sent < head.len() {
        stream.write_all(&head[sent..])?;
    }
    stream.write_all(&body[sent.saturating_sub(head.len()).min(body.len())..])
}

/// Sends a message with a file beside it.
pub(crate) fn send_file(
    mut stream: &UnixStream,
    header: Header,
    body: &[u8],
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    let message = [header.as_bytes(), body].concat();
    let (files, parts) = ([file.as_raw_fd()], [IoSlice::new(&message)]);
    let rights = [ControlMessage::ScmRights(&files)];
    let (fd, flags) = (stream.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
    let sent = loop {
        match sendmsg::<()>(fd, &parts, &rights, flags, None) {
            Err(nix::errno::Errno::EINTR) => {}
            result => break result?,
        }
    };
    // The file went with the first byte.
    stream.write_all(&message[sent..])
}

/// Descriptors of one message.
#[derive(Debug, Default)]
struct Arrived {
    kept: Vec<OwnedFd>,
    has_lost: bool,
}

/// Fills `buffer`; false when the stream had ended before its first byte.
fn fill(
    stream: &UnixStream,
    buffer: &mut [u8],
    fds: &mut Arrived,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let mut at = 0;
    while at < buffer.len() {
        if let Some(deadline) = deadline {
            let left = deadline.checked_duration_since(Instant::now()).filter(|l| !l.is_zero());
            stream.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
        }
        match receive_some(stream, &mut buffer[at..], fds) {
            Ok(0) if at == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => at += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn receive_some(stream: &UnixStream, buffer: &mut [u8], fds: &mut Arrived) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: all zeroes is a valid `msghdr`: null pointers, zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the header points to one buffer and to aligned control space, with their true lengths,
    // and all of them outlive the call.
    let len =
        unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    // Before any other judgement, so that each is closed or used.
    own_fds(&message, fds);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        fds.has_lost = true;
    }
    Ok(len)
}

/// Takes the descriptors that `recvmsg` has put into the control space of `message`.
fn own_fds(message: &libc::msghdr, fds: &mut Arrived) {
    // SAFETY: `recvmsg` filled the header in, its control space is alive.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: the macros give pointers to whole headers within the control space, which is aligned.
        let head = unsafe { *next };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: computes an offset from a length.
            let prefix = unsafe { libc::CMSG_LEN(0) };
            let bytes = head.cmsg_len.saturating_sub(usize::try_from(prefix).unwrap_or(0));
            // SAFETY: the header was checked to be one; its data follow.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            for at in 0..bytes / size_of::<RawFd>() {
                // SAFETY: `at` is within the data's length, which the kernel wrote.
                let fd = unsafe { data.wrapping_add(at).read_unaligned() };
                // SAFETY: the kernel has just made it for this process; nobody else knows it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                if fds.kept.len() < MAX_FDS {
                    fds.kept.push(fd);
                } else {
                    fds.has_lost = true;
                }
            }
        }
        // SAFETY: as for the first.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::vfio_user::command;
    use std::net::Shutdown;

    fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let parts = [IoSlice::new(bytes)];
        let flags = MsgFlags::empty();
        let sent = sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, flags, None).unwrap();
        assert_eq!(sent, bytes.len());
    }

    #[test]
    fn a_message_in_many_pieces_is_one_message_and_the_next_is_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let header = Header::command(3, command::REGION_READ, 5).unwrap();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(b"hello");
        for byte in &bytes {
            (&theirs).write_all(&[*byte]).unwrap();
        }
        send(&theirs, Header::command(4, command::DEVICE_RESET, 0).unwrap(), &[]).unwrap();
        let first = receive(&ours, None).unwrap().unwrap();
        assert_eq!((first.header, &first.body[..]), (header, &b"hello"[..]));
        assert_eq!(receive(&ours, None).unwrap().unwrap().header.id, 4);
        theirs.shutdown(Shutdown::Both).unwrap();
        assert!(receive(&ours, None).unwrap().is_none());
    }

    #[test]
    fn an_end_within_a_message_and_impossible_sizes_are_errors() {
        let header = Header::command(3, command::REGION_READ, 5).unwrap();
        let short = [header.as_bytes(), b"hell"].concat();
        let impossible = Header { size: u32::MAX, ..header };
        let tiny = Header { size: 15, ..header };
        for bytes in [&short[..], &short[..16], &short[..7], impossible.as_bytes(), tiny.as_bytes()]
        {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (&theirs).write_all(bytes).unwrap();
            drop(theirs);
            assert!(receive(&ours, None).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_that_is_not_whole_in_time_is_given_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(&[0; 7]).unwrap();
        let soon = Instant::now() + std::time::Duration::from_millis(20);
        for deadline in [soon, Instant::now()] {
            assert!(receive(&ours, Some(deadline)).is_err());
        }
    }

    #[test]
    fn descriptors_arrive_owned_and_those_beyond_the_limit_are_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (watched, end) = UnixStream::pair().unwrap();
        let header = Header::command(3, command::DMA_MAP, 0).unwrap();
        send_with(&theirs, header.as_bytes(), &[end.as_raw_fd()]);
        let one = receive(&ours, None).unwrap().unwrap();
        assert_eq!((one.fds.len(), one.has_lost_fds), (1, false));
        send_with(&theirs, header.as_bytes(), &[end.as_raw_fd(); 40]);
        let many = receive(&ours, None).unwrap().unwrap();
        assert_eq!((many.fds.len(), many.has_lost_fds), (MAX_FDS, true));
        drop((end, one, many));
        watched.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        // Only when every copy is closed does the other end see the end of the stream.
        assert_eq!(std::io::Read::read(&mut &watched, &mut [0]).unwrap(), 0);
    }
}
