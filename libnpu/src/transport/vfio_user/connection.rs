//! Requests over the socket, and what may come back.
//!
//! One request is on its way at a time. An answer is held to the request that it answers, to the size
//! that is expected and to a deadline; a device that breaks one of these is given up, since nothing
//! that follows in the stream has a meaning. File descriptors beside answers are closed by the kernel:
//! a plain read does not take them.

use crate::transport::TransportError;
use crate::transport::vectors::Peer;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use npu_uapi::vfio_user::{
    HEADER_BYTES, Header, MAX_FDS, MAX_TRANSFER_BYTES, PROTOCOL, Version, capability, command,
};
use std::io::{ErrorKind, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Most bytes of an answer to VERSION, whose length the device chooses.
const VERSION_BYTES: usize = 4096;
/// Request ids have this many values; those above are the device's.
const IDS: u16 = npu_uapi::vfio_user::SERVER_ID;

/// The socket, and whether it is still good.
#[derive(Debug)]
pub(super) struct Connection {
    /// The device string, for errors.
    device: String,
    stream: UnixStream,
    patience: Duration,
    /// The process that connected.
    owner: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u16,
    /// The message that goes, then the one that comes.
    buffer: Vec<u8>,
    /// Why the device was given up.
    lost: Option<String>,
}

/// How a request ended that got no proper answer.
enum Broken {
    /// The stream ended, or the system call failed.
    Closed(String),
    /// Nothing came in time.
    Silent,
    /// What was expected, what came.
    Wrong(String, String),
}

impl Connection {
    pub(super) fn new(
        device: &str,
        stream: UnixStream,
        patience: Duration,
    ) -> Result<Self, TransportError> {
        let limit = |stream: &UnixStream| {
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))
        };
        limit(&stream).map_err(|error| TransportError::Start {
            why: format!("cannot bound the time of a socket's answers: {error}"),
        })?;
        let (owner, state) = (std::process::id(), Mutex::new(State::default()));
        Ok(Self { device: device.to_owned(), stream, patience, owner, state })
    }

    /// VERSION, the first message.
    pub(super) fn negotiate(&self) -> Result<(), TransportError> {
        use capability::{CAPABILITIES, MAX_DATA_XFER_SIZE, MAX_MSG_FDS};
        let (major, minor) = PROTOCOL;
        let json = format!(
            "{{\"{CAPABILITIES}\":{{\"{MAX_MSG_FDS}\":{MAX_FDS},\
             \"{MAX_DATA_XFER_SIZE}\":{MAX_TRANSFER_BYTES}}}}}\0"
        );
        let mut reply = [0; VERSION_BYTES];
        let version = Version { major, minor };
        let body = [version.as_bytes(), json.as_bytes()];
        let what = command::VERSION;
        let len = self.request(what, &body, None, &mut reply, size_of::<Version>())?;
        let expected = || format!("version {major}.{minor} or a lower minor version");
        let Ok((found, data)) = Version::read_from_prefix(&reply[..len]) else {
            return Err(self.wrong(what, expected(), format!("{len} bytes")));
        };
        if found.major != major || found.minor > minor {
            let found = format!("version {}.{}", found.major, found.minor);
            return Err(self.wrong(what, expected(), found));
        }
        // What it says of itself is not needed: our messages stay below the limits that hold for a
        // peer that says nothing. It must only be text that ends.
        let is_text = data.split_last().is_none_or(|(&end, text)| {
            end == 0 && !text.contains(&0) && std::str::from_utf8(text).is_ok()
        });
        if is_text {
            Ok(())
        } else {
            Err(self.wrong(what, "text that ends with a NUL byte", "other bytes".into()))
        }
    }

    /// A request with a body of one structure, answered with one.
    pub(super) fn ask<T>(&self, command: u16, body: &T) -> Result<T, TransportError>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        // Room for capabilities that may follow.
        let mut reply = [0; 1024];
        let bytes = body.as_bytes();
        let len = self.request(command, &[bytes], None, &mut reply, bytes.len())?;
        let found = T::read_from_prefix(&reply[..len]);
        found.map(|(found, _)| found).map_err(|_| {
            self.wrong(command, format!("{} bytes", size_of::<T>()), format!("{len} bytes"))
        })
    }

    /// Sends `command` with the parts of a body and at most one file, and waits for the body of the
    /// answer, of at least `least` bytes and at most `reply.len()`. Returns its length.
    pub(super) fn request(
        &self,
        command: u16,
        body: &[&[u8]],
        file: Option<BorrowedFd<'_>>,
        reply: &mut [u8],
        least: usize,
    ) -> Result<usize, TransportError> {
        self.check_process()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &state.lost {
            return Err(self.gone(why));
        }
        state.last_id = (state.last_id + 1) % IDS;
        let body_len = body.iter().map(|part| part.len()).sum();
        let id = state.last_id;
        let Some(head) = Header::command(id, command, body_len) else {
            return Err(self.wrong(command, "a short request", format!("{body_len} bytes")));
        };
        let mut buffer = std::mem::take(&mut state.buffer);
        buffer.clear();
        buffer.extend_from_slice(head.as_bytes());
        body.iter().for_each(|part| buffer.extend_from_slice(part));
        let deadline = Instant::now() + self.patience;
        let answer = self
            .send(&buffer, file, deadline)
            .and_then(|()| self.receive(&mut buffer, head, (least, reply.len()), deadline));
        let result = match answer {
            Ok(Ok(len)) => {
                reply[..len].copy_from_slice(&buffer[HEADER_BYTES..HEADER_BYTES + len]);
                Ok(len)
            }
            Ok(Err(errno)) => Err(self.refused(command, errno)),
            Err(broken) => {
                let (why, error) = self.broken(command, broken);
                state.lost = Some(why);
                // Whoever waits for an interrupt notices.
                let _ = self.stream.shutdown(Shutdown::Both);
                Err(error)
            }
        };
        state.buffer = buffer;
        result
    }

    fn send(
        &self,
        message: &[u8],
        file: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<(), Broken> {
        let files = file.map(|file| [file.as_raw_fd()]);
        let rights = files.as_ref().map(|files| ControlMessage::ScmRights(files));
        let mut sent = 0;
        while sent < message.len() {
            // The file goes with the first bytes, which are one piece unless the socket is full.
            let control = if sent == 0 { rights.as_slice() } else { &[] };
            let rest = [IoSlice::new(&message[sent..])];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<UnixAddr>(self.stream.as_raw_fd(), &rest, control, flags, None) {
                Ok(bytes) => sent += bytes,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Err(Broken::Silent),
                Err(error) => return Err(Broken::Closed(error.desc().to_lowercase())),
            }
            if Instant::now() > deadline {
                return Err(Broken::Silent);
            }
        }
        Ok(())
    }

    /// Reads the answer to `asked` into `buffer`: the length of its body, or the error that it carries.
    fn receive(
        &self,
        buffer: &mut Vec<u8>,
        asked: Header,
        (least, most): (usize, usize),
        deadline: Instant,
    ) -> Result<Result<usize, u32>, Broken> {
        // One byte more than may come, to see whether more does.
        buffer.clear();
        buffer.resize(HEADER_BYTES + most + 1, 0);
        let mut len = self.read_until(buffer, 0, HEADER_BYTES, deadline)?;
        let head = Header::read_from_bytes(&buffer[..HEADER_BYTES]).unwrap_or_default();
        if (head.id, head.command) != (asked.id, asked.command) || !head.is_reply() {
            let expected = format!("a reply to request {}, command {}", asked.id, asked.command);
            let kind = if head.is_reply() { "a reply to" } else { "a" };
            let found = format!("{kind} request {}, command {}", head.id, head.command);
            return Err(Broken::Wrong(expected, found));
        }
        let failure = head.failure();
        let (least, most) = if failure.is_some() { (0, 0) } else { (least, most) };
        let body_len = head.body_len().unwrap_or(usize::MAX);
        if !(least..=most).contains(&body_len) || head.body_len().is_err() {
            let [least, most] = [least, most].map(|len| HEADER_BYTES + len);
            let expected = format!("a message of {least} to {most} bytes");
            return Err(Broken::Wrong(expected, format!("one of {}", head.size)));
        }
        let size = HEADER_BYTES + body_len;
        if len < size {
            len = self.read_until(buffer, len, size, deadline)?;
        }
        if len > size {
            return Err(Broken::Wrong(format!("{size} bytes"), "more than its size says".into()));
        }
        Ok(failure.map_or(Ok(body_len), Err))
    }

    /// Reads on until `buffer` has at least `until` bytes of the `len` it had; how many it has then.
    fn read_until(
        &self,
        buffer: &mut [u8],
        mut len: usize,
        until: usize,
        deadline: Instant,
    ) -> Result<usize, Broken> {
        while len < until {
            match (&self.stream).read(&mut buffer[len..]) {
                Ok(0) => return Err(Broken::Closed("it closed the connection".into())),
                Ok(bytes) => len += bytes,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(Broken::Silent),
                    _ => return Err(Broken::Closed(error.to_string())),
                },
            }
            if len < until && Instant::now() > deadline {
                return Err(Broken::Silent);
            }
        }
        Ok(len)
    }

    /// What was broken, for whoever asks later, and the error for whoever asked now.
    fn broken(&self, command: u16, broken: Broken) -> (String, TransportError) {
        let (device, command) = (self.device.clone(), name(command));
        match broken {
            Broken::Closed(why) => {
                let error = self.gone(&why);
                (why, error)
            }
            Broken::Silent => {
                let waited = self.patience;
                let why = format!("it did not answer {command} within {waited:?}");
                (why, TransportError::Silent { device, command, waited })
            }
            Broken::Wrong(expected, found) => {
                let why = format!("it answered {command} with {found}");
                (why, TransportError::Protocol { device, command, expected, found })
            }
        }
    }

    fn gone(&self, why: &str) -> TransportError {
        TransportError::Gone { device: self.device.clone(), why: why.to_owned() }
    }

    fn refused(&self, command: u16, errno: u32) -> TransportError {
        let errno = i32::try_from(errno).unwrap_or(i32::MAX);
        let why = std::io::Error::from_raw_os_error(errno).to_string();
        TransportError::Refused { device: self.device.clone(), command: name(command), why }
    }

    /// The error for an answer whose content cannot be; the stream is still good.
    pub(super) fn wrong(
        &self,
        command: u16,
        expected: impl Into<String>,
        found: String,
    ) -> TransportError {
        let (device, command) = (self.device.clone(), name(command));
        TransportError::Protocol { device, command, expected: expected.into(), found }
    }

    fn check_process(&self) -> Result<(), TransportError> {
        if self.owner == std::process::id() {
            Ok(())
        } else {
            Err(TransportError::Forked { owner: self.owner })
        }
    }
}

impl Peer for Connection {
    /// The socket, to poll for a hang-up.
    fn hang_up(&self) -> PollFd<'_> {
        PollFd::new(self.stream.as_fd(), PollFlags::empty())
    }

    fn hung_up(&self) -> TransportError {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let why = state.lost.get_or_insert_with(|| "it closed the connection".into());
        self.gone(why)
    }

    /// Whether the device went away or was given up.
    fn is_gone(&self) -> bool {
        let mut fds = [self.hang_up()];
        // A hang-up, that of our own side too, is always reported.
        poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any() == Some(true)
    }
}

/// The name of a command, as the protocol has it.
fn name(command: u16) -> &'static str {
    match command {
        command::VERSION => "VERSION",
        command::DMA_MAP => "DMA_MAP",
        command::DMA_UNMAP => "DMA_UNMAP",
        command::DEVICE_GET_INFO => "DEVICE_GET_INFO",
        command::DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
        command::DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
        command::DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
        command::REGION_READ => "REGION_READ",
        command::REGION_WRITE => "REGION_WRITE",
        command::DEVICE_RESET => "DEVICE_RESET",
        _ => "a command",
    }
}
