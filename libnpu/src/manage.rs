//! Managing a server of devices: requests and replies as `docs/management.md` has them, over the server's
//! socket or, from a guest, through its management function.
//!
//! Every request has a deadline. What is at the other end is not trusted: a reply is bounded, and is text.

use crate::device::connect;
use crate::device_string::DeviceString;
use crate::error::Error;
use crate::telemetry::ReadError;
use crate::transport::{Transport, TransportError};
use npu_uapi::mailbox::{
    MAGIC, MOST_REPLY_BYTES, PAGES, REPLY_AT, REPLY_BYTES, REQUEST_AT, REQUEST_BYTES, VERSION,
    register, state,
};
use npu_uapi::telemetry::{Snapshot, TelemetryError};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most bytes of a reply.
const MOST_BYTES: usize = 8 << 20;

/// Why a request got no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// Nobody listens there.
    #[error("cannot connect to `{}`: {why}; is `npu-sim --manage` running there?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The function cannot be opened.
    #[error(transparent)]
    Open(#[from] Error),
    /// The function cannot be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It is no management function.
    #[error(
        "`{device}` is no management function: its first register reads {found:#010x}; \
         start the server with `--manage-function`"
    )]
    NotAManager {
        /// The device string.
        device: String,
        /// What was read.
        found: u32,
    },
    /// The request does not fit.
    #[error("a request of {found} bytes; at most {most} can be asked here, on one line")]
    Request {
        /// Bytes given.
        found: usize,
        /// Bytes that can be sent.
        most: usize,
    },
    /// A socket shows no telemetry pages.
    #[error(
        "only a management function shows telemetry pages; over a socket `stats` says the same"
    )]
    NoPages,
    /// What BAR4 shows cannot be understood.
    #[error("the telemetry of client {place} of the list: {source}")]
    Telemetry {
        /// Its place, from 0.
        place: u32,
        /// What is wrong.
        source: TelemetryError,
    },
    /// The server did not answer.
    #[error("the server did not answer within {waited:?}")]
    Silent {
        /// How long it was given.
        waited: Duration,
    },
    /// The connection ended, or what came is no reply.
    #[error("the server did not reply: {why}")]
    Broken {
        /// What was seen.
        why: String,
    },
}

/// A way to a server. One request at a time; others wait.
pub struct Manager(Mutex<Way>);

enum Way {
    /// A socket, connected for each request: a server that restarted is found again.
    Socket(PathBuf),
    Function(Arc<dyn Transport>),
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.lock() {
            Way::Socket(path) => f.debug_tuple("Manager").field(path).finish(),
            Way::Function(function) => f.debug_tuple("Manager").field(function).finish(),
        }
    }
}

impl Manager {
    /// Opens what `name` names: the path of a management socket, or a management function as
    /// `vfio-user:PATH` or `pci:0000:00:03.0`.
    ///
    /// # Errors
    /// The function cannot be opened, or is none. A socket is first looked for with a request.
    pub fn open(name: &str) -> Result<Self, ManageError> {
        let is_function = name.starts_with("vfio-user") || name.starts_with("pci:");
        if !is_function || Path::new(name).exists() {
            return Ok(Self(Mutex::new(Way::Socket(name.into()))));
        }
        Self::over(name, connect(&DeviceString::parse(name)?)?)
    }

    /// Manages through the function behind `transport`; `device` is what errors call it.
    ///
    /// # Errors
    /// What is there is no management function.
    pub fn over(device: &str, transport: Arc<dyn Transport>) -> Result<Self, ManageError> {
        let found = transport.read32(register::MAGIC)?;
        if found != MAGIC || transport.read32(register::VERSION)? < VERSION {
            return Err(ManageError::NotAManager { device: device.to_owned(), found });
        }
        Ok(Self(Mutex::new(Way::Function(transport))))
    }

    fn lock(&self) -> MutexGuard<'_, Way> {
        // What is inside does not change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reply to `request`, a JSON object on one line; both without the line's end.
    ///
    /// # Errors
    /// There is none within `patience`.
    pub fn request(&self, request: &str, patience: Duration) -> Result<String, ManageError> {
        let deadline = Deadline { at: Instant::now() + patience, patience };
        let way = self.lock();
        let reply = match &*way {
            Way::Socket(path) => over_socket(path, request, deadline)?,
            Way::Function(function) => through_mailbox(function.as_ref(), request, deadline)?,
        };
        String::from_utf8(reply).map_err(|_| broken("the reply is no text"))
    }

    /// What the telemetry pages of the clients say now, by rising id: BAR4 of a management function. No
    /// request is made and nobody is waited for.
    ///
    /// # Errors
    /// This is a socket, the function cannot be reached, or a page of it is none.
    pub fn telemetry(&self) -> Result<Vec<Snapshot>, ManageError> {
        let way = self.lock();
        let Way::Function(function) = &*way else { return Err(ManageError::NoPages) };
        let count = function.read32(register::PAGES)?.min(PAGES);
        let mut snapshots = Vec::new();
        for place in 0..count {
            match crate::telemetry::read(function.as_ref(), place) {
                Ok(snapshot) => snapshots.push(snapshot),
                // Whoever was there has left.
                Err(ReadError::Page(TelemetryError::Foreign { magic: 0, .. })) => {}
                Err(ReadError::Page(source)) => {
                    return Err(ManageError::Telemetry { place, source });
                }
                Err(ReadError::Transport(error)) => return Err(error.into()),
            }
        }
        Ok(snapshots)
    }
}

fn broken(why: impl Into<String>) -> ManageError {
    ManageError::Broken { why: why.into() }
}

/// Until when, and how long that was at first.
#[derive(Clone, Copy)]
struct Deadline {
    at: Instant,
    patience: Duration,
}

impl Deadline {
    /// What is left of it.
    fn left(self) -> Result<Duration, ManageError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ManageError::Silent { waited: self.patience }) } else { Ok(left) }
    }

    fn or_broken(self, error: &std::io::Error) -> ManageError {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                ManageError::Silent { waited: self.patience }
            }
            _ => broken(error.to_string()),
        }
    }
}

fn over_socket(path: &Path, request: &str, deadline: Deadline) -> Result<Vec<u8>, ManageError> {
    let most = 64 << 10;
    check(request, most)?;
    let connected = UnixStream::connect(path);
    let mut stream = connected
        .map_err(|error| ManageError::Connect { path: path.to_owned(), why: error.to_string() })?;
    let failed = |error: std::io::Error| deadline.or_broken(&error);
    stream.set_write_timeout(Some(deadline.left()?)).map_err(failed)?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(failed)?;
    let (mut reply, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        stream.set_read_timeout(Some(deadline.left()?)).map_err(failed)?;
        let len = match stream.read(&mut chunk) {
            Ok(0) => return Err(broken("it closed the connection")),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let end = chunk[..len].iter().position(|&byte| byte == b'\n');
        reply.extend_from_slice(&chunk[..end.unwrap_or(len)]);
        if end.is_some() {
            return Ok(reply);
        }
        if reply.len() > MOST_BYTES {
            return Err(broken(format!("a reply of more than {MOST_BYTES} bytes")));
        }
    }
}

/// A request is one line, and fits.
fn check(request: &str, most: usize) -> Result<(), ManageError> {
    let found = request.len();
    if found > most || request.contains('\n') {
        return Err(ManageError::Request { found, most });
    }
    Ok(())
}

fn through_mailbox(
    function: &dyn Transport,
    request: &str,
    deadline: Deadline,
) -> Result<Vec<u8>, ManageError> {
    check(request, usize::try_from(REQUEST_BYTES).unwrap_or(usize::MAX))?;
    let len = u32::try_from(request.len()).unwrap_or(u32::MAX);
    for (at, piece) in (REQUEST_AT..).step_by(4).zip(request.as_bytes().chunks(4)) {
        let mut word = [0; 4];
        word[..piece.len()].copy_from_slice(piece);
        function.write32(at, u32::from_le_bytes(word))?;
    }
    function.write32(register::REQUEST, len)?;
    while function.read32(register::STATE)? != state::DONE {
        deadline.left()?;
        // It takes less than a word takes to read, and has no interrupt.
        std::thread::yield_now();
    }
    let len = function.read32(register::REPLY_BYTES)?;
    if len > MOST_REPLY_BYTES {
        return Err(broken(format!("a reply of {len} bytes")));
    }
    let mut reply = Vec::new();
    for start in (0..len).step_by(usize::try_from(REPLY_BYTES).unwrap_or(usize::MAX)) {
        function.write32(register::REPLY_AT, start)?;
        let bytes = (len - start).min(REPLY_BYTES);
        for at in (0..bytes).step_by(4) {
            if at.is_multiple_of(1024) {
                deadline.left()?;
            }
            reply.extend_from_slice(&function.read32(REPLY_AT + at)?.to_le_bytes());
        }
    }
    reply.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What a server does with a request that says `reply` and then goes, or nothing for a while.
    fn asked(reply: Option<Vec<u8>>) -> Result<String, ManageError> {
        let number = std::sync::atomic::AtomicU32::new(0);
        let number = std::ptr::from_ref(&number).addr();
        let name = format!("npu-manage-{}-{number:x}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let manager = Manager::open(path.to_str().unwrap()).unwrap();
        let result = std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                // All of it: what is closed with something unread is reset.
                let mut request = *b"{}\n";
                stream.read_exact(&mut request).unwrap();
                match reply {
                    // Whoever asked may be gone before it is all sent.
                    Some(reply) => drop(stream.write_all(&reply)),
                    None => drop(receiver.recv()),
                }
            });
            let result = manager.request("{}", Duration::from_millis(300));
            drop(sender);
            result
        });
        let _ = std::fs::remove_file(&path);
        result
    }

    #[test]
    fn a_reply_is_one_line_of_text_within_bounds_of_size_and_time() {
        assert_eq!(asked(Some(b"{\"a\":1}\nmore".to_vec())).unwrap(), "{\"a\":1}");
        assert!(matches!(asked(None), Err(ManageError::Silent { .. })));
        for (reply, why) in [
            (b"half".to_vec(), "closed the connection"),
            (b"\xff\n".to_vec(), "no text"),
            (vec![b'x'; MOST_BYTES + (1 << 17)], "more than"),
        ] {
            let error = asked(Some(reply)).unwrap_err().to_string();
            // A slow machine may not read 8 MiB in time.
            assert!(error.contains(why) || error.contains("within"), "{error}");
        }
    }

    #[test]
    fn what_is_not_there_or_does_not_fit_is_said() {
        let manager = Manager::open("/nonexistent/manage").unwrap();
        let error = manager.request("{}", Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("--manage"), "{error}");
        let long = "x".repeat(1 << 17);
        let error = manager.request(&long, Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, ManageError::Request { .. }));
        let error = manager.request("a\nb", Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, ManageError::Request { found: 3, .. }));
    }
}
