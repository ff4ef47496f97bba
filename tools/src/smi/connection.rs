//! The way to a server: one request, one reply, in bounded time.
//!
//! Commands know [`Connection::ask`] only: a socket carries the lines or, in a guest, a management function.

use super::error::SmiError;
use super::output;
use super::place::Target;
use libnpu::manage::{ManageError, Manager};
use libnpu::{Error, TransportError};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde_json::{Map, Value};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The version of requests and replies that this program speaks.
pub(crate) const SCHEMA: u64 = 1;
/// Longest reply: a trace of a long time is the largest.
const MOST_REPLY_BYTES: usize = 256 << 20;

/// A connection to whoever manages devices.
#[derive(Debug)]
pub(crate) struct Connection {
    way: Way,
    /// How the other end is called in messages.
    place: String,
    patience: Duration,
}

/// What carries requests and replies.
#[derive(Debug)]
enum Way {
    /// The management socket of a server on this machine.
    Socket(UnixStream),
    /// A management function: of a guest, on its bus.
    Function(Manager),
}

impl Connection {
    /// Connects to `target`; each step and each reply may take `patience`.
    ///
    /// # Errors
    /// What is there, and why it cannot be used.
    pub(crate) fn open(target: &Target, patience: Duration) -> Result<Self, SmiError> {
        let (way, place) = match target {
            Target::Socket(path) => {
                (Way::Socket(open_socket(path, patience)?), path.display().to_string())
            }
            Target::Function(device) => {
                (Way::Function(open_function(device, patience)?), device.clone())
            }
        };
        Ok(Self { way, place, patience })
    }

    /// How the other end is called in messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// What the server replies to `command` with `fields`.
    ///
    /// # Errors
    /// No reply in time, one that cannot be understood, or the server's own refusal.
    pub(crate) fn ask(
        &mut self,
        command: &str,
        fields: Map<String, Value>,
    ) -> Result<Map<String, Value>, SmiError> {
        let mut request = fields;
        request.insert("command".into(), command.into());
        request.insert("schema".into(), SCHEMA.into());
        let line = format!("{}\n", Value::Object(request));
        let deadline = Instant::now() + self.patience;
        let reply = match &mut self.way {
            Way::Socket(stream) => exchange(stream, line.as_bytes(), deadline),
            Way::Function(manager) => match manager.request(line.trim_end(), self.patience) {
                Ok(reply) => Ok(reply.into_bytes()),
                Err(
                    ManageError::Silent { .. }
                    | ManageError::Transport(TransportError::Silent { .. }),
                ) => Err(End::Late),
                Err(error) => Err(End::Failed(std::io::Error::other(error))),
            },
        };
        let reply = reply.map_err(|end| self.ended(command, end))?;
        self.understand(command, &reply)
    }

    fn ended(&self, command: &str, end: End) -> SmiError {
        let (place, command) = (self.place.clone(), command.to_owned());
        match end {
            End::Late => SmiError::Stalled { place, command, waited: self.patience },
            End::Closed => SmiError::Gone { place, command },
            End::Endless => SmiError::Garbage {
                place,
                command,
                found: format!("more than {} MiB without an end", MOST_REPLY_BYTES >> 20),
            },
            End::Failed(source) => SmiError::Broken { place, source },
        }
    }

    fn understand(&self, command: &str, reply: &[u8]) -> Result<Map<String, Value>, SmiError> {
        let (place, command) = (self.place.clone(), command.to_owned());
        let garbage = |found: String| SmiError::Garbage {
            place: self.place.clone(),
            command: command.clone(),
            found,
        };
        let reply = match serde_json::from_slice(reply) {
            Ok(Value::Object(reply)) => shown(reply),
            Ok(_) => return Err(garbage("JSON that is no object".into())),
            Err(error) => return Err(garbage(error.to_string())),
        };
        match reply.get("schema").map(Value::as_u64) {
            Some(Some(SCHEMA)) => {}
            Some(Some(found)) if found > SCHEMA => {
                return Err(SmiError::Newer { place, found, known: SCHEMA });
            }
            _ => return Err(garbage("an object without a known `schema`".into())),
        }
        match reply.get("error").map(Value::as_str) {
            None => Ok(reply),
            Some(Some(why)) if why.starts_with("`command` must be one of") => {
                Err(SmiError::Older { place, command })
            }
            Some(why) => {
                let why = why.unwrap_or("no reason is given").to_owned();
                Err(SmiError::Refused { place, command, why })
            }
        }
    }
}

/// Names of processes and nodes are whatever somebody called them, and go to terminals.
fn shown(fields: Map<String, Value>) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name, shown_value(value))).collect()
}

fn shown_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(output::visible(&text, &[])),
        Value::Array(values) => values.into_iter().map(shown_value).collect(),
        Value::Object(fields) => Value::Object(shown(fields)),
        other => other,
    }
}

/// Why there is no line.
enum End {
    Late,
    Closed,
    Endless,
    Failed(std::io::Error),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Late,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Failed(error),
        }
    }
}

/// Time until `deadline`; a socket's limit may not be zero.
fn left(deadline: Instant) -> Result<Duration, End> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(End::Late) } else { Ok(left) }
}

/// Sends `line`, and returns the line that comes back, without its end.
fn exchange(stream: &mut UnixStream, line: &[u8], deadline: Instant) -> Result<Vec<u8>, End> {
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(line)?;
    let mut reply = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        // Of the whole reply, not of each piece: one that drips is late as well.
        stream.set_read_timeout(Some(left(deadline)?))?;
        let len = match stream.read(&mut chunk) {
            Ok(0) => return Err(End::Closed),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let piece = &chunk[..len];
        if let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            // One reply a request: what follows was not asked for, and the next reply begins behind it.
            reply.extend_from_slice(&piece[..end]);
            return Ok(reply);
        }
        reply.extend_from_slice(piece);
        if reply.len() > MOST_REPLY_BYTES {
            return Err(End::Endless);
        }
    }
}

/// Opens a management function; over a socket, each answer may take `patience`.
fn open_function(device: &str, patience: Duration) -> Result<Manager, SmiError> {
    let name = match device.strip_prefix("vfio-user:") {
        // The most that a device string takes.
        Some(path) => {
            format!("vfio-user,patience_ms={}:{path}", patience.as_millis().min(3_600_000))
        }
        None => device.to_owned(),
    };
    Manager::open(&name).map_err(|error| match error {
        ManageError::Open(Error::Transport(TransportError::Silent { .. }))
        | ManageError::Transport(TransportError::Silent { .. }) => SmiError::Stalled {
            place: device.to_owned(),
            command: "a connection".into(),
            waited: patience,
        },
        error => SmiError::Unopened { device: device.to_owned(), why: error.to_string() },
    })
}

fn open_socket(path: &Path, patience: Duration) -> Result<UnixStream, SmiError> {
    let place = path.display().to_string();
    let broken = |errno: Errno| SmiError::Broken { place: place.clone(), source: errno.into() };
    let address = UnixAddr::new(path).map_err(broken)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(broken)?;
    // Where the server accepts nobody, connecting waits as sending does.
    let most = i64::try_from(patience.as_micros()).unwrap_or(i64::MAX);
    let limit = TimeVal::microseconds(most);
    setsockopt(&fd, sockopt::SendTimeout, &limit).map_err(broken)?;
    match connect(fd.as_raw_fd(), &address) {
        Ok(()) => Ok(UnixStream::from(fd)),
        Err(errno) => Err(match errno {
            Errno::ENOENT | Errno::ENOTDIR => SmiError::Missing { path: path.to_owned() },
            Errno::ECONNREFUSED => unanswered(path),
            Errno::EACCES | Errno::EPERM => forbidden(path),
            Errno::EAGAIN => {
                SmiError::Stalled { place, command: "a connection".into(), waited: patience }
            }
            Errno::EPROTOTYPE => NO_STREAM(path.to_owned()),
            errno => broken(errno),
        }),
    }
}

const NO_STREAM: fn(PathBuf) -> SmiError =
    |path| SmiError::NoSocket { path, found: "a socket of another kind" };

/// What stands at a path where nobody answers.
fn unanswered(path: &Path) -> SmiError {
    let path = path.to_owned();
    match path.metadata().map(|metadata| metadata.file_type()) {
        Ok(kind) if kind.is_socket() => SmiError::Abandoned { path },
        Ok(kind) if kind.is_dir() => SmiError::NoSocket { path, found: "a folder" },
        Ok(kind) if kind.is_file() => SmiError::NoSocket { path, found: "a file" },
        Ok(_) => SmiError::NoSocket { path, found: "no socket" },
        Err(_) => SmiError::Missing { path },
    }
}

fn forbidden(path: &Path) -> SmiError {
    let owner = path.metadata().map_or(0, |metadata| metadata.uid());
    SmiError::Forbidden { path: path.to_owned(), user: nix::unistd::geteuid().as_raw(), owner }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    const PATIENCE: Duration = Duration::from_millis(300);

    /// A server that says `reply` to each line; the path of its socket.
    fn saying(name: &str, reply: &'static [u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("smi-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&stream).lines();
            while let Some(Ok(_)) = lines.next() {
                let _ = (&stream).write_all(reply);
                if reply.is_empty() {
                    return;
                }
            }
        });
        path
    }

    fn asked(name: &str, reply: &'static [u8]) -> Result<Map<String, Value>, SmiError> {
        let path = saying(name, reply);
        let mut connection = Connection::open(&Target::Socket(path.clone()), PATIENCE).unwrap();
        let _ = std::fs::remove_file(&path);
        connection.ask("list", Map::new())
    }

    #[test]
    fn replies_are_understood_or_told_apart() {
        let reply =
            asked("good", b"{\"schema\":1,\"functions\":[{\"process\":\"a\\u001b[2J\"}]}\n");
        assert_eq!(reply.unwrap()["functions"][0]["process"], "a␛[2J");
        for (name, reply, part) in [
            ("newer", &b"{\"schema\":2}\n"[..], "reads schema 1; update npu-smi"),
            ("none", b"{}\n", "without a known `schema`"),
            ("array", b"[]\n", "no object"),
            ("text", b"\xff\xfe\n", "what is no reply"),
            ("refused", b"{\"schema\":1,\"error\":\"no room\"}\n", "refuses `list`: no room"),
            (
                "older",
                b"{\"schema\":1,\"error\":\"`command` must be one of x\"}\n",
                "update npu-sim",
            ),
            ("closed", b"", "closed the connection"),
            ("half", b"{\"schema\":1", "within 0.3 s"),
        ] {
            let error = asked(name, reply).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
    }

    #[test]
    fn what_is_no_server_is_named() {
        let folder = std::env::temp_dir();
        let gone = folder.join(format!("smi-gone-{}", std::process::id()));
        drop(UnixListener::bind(&gone).unwrap());
        let said = |path: &Path| {
            Connection::open(&Target::Socket(path.into()), PATIENCE).unwrap_err().to_string()
        };
        assert!(said(&gone).contains("nobody listens"));
        std::fs::remove_file(&gone).unwrap();
        assert!(said(&gone).contains("no management socket at"));
        std::fs::write(&gone, "text").unwrap();
        assert!(said(&gone).contains("is a file"), "{}", said(&gone));
        std::fs::remove_file(&gone).unwrap();
        assert!(said(&folder).contains("is a folder"), "{}", said(&folder));
        assert!(said(Path::new(&"x".repeat(200))).contains("cannot talk to"));
    }

    #[test]
    fn a_server_that_accepts_nobody_is_not_waited_for_without_end() {
        let path = std::env::temp_dir().join(format!("smi-full-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _listener = UnixListener::bind(&path).unwrap();
        let mut crowd = Vec::new();
        let error = loop {
            match Connection::open(&Target::Socket(path.clone()), PATIENCE) {
                Ok(connection) => crowd.push(connection),
                Err(error) => break error,
            }
            assert!(crowd.len() < 100_000, "there is always room");
        };
        std::fs::remove_file(&path).unwrap();
        assert!(error.to_string().contains("did not answer `a connection`"), "{error}");
    }
}
