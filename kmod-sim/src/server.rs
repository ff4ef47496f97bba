//! The device in a process of its own: a vfio-user server on a UNIX socket.
//!
//! ```text
//!   accept ──> client (a thread each) ──> session: one command in, one reply out
//!                │ socket: framing, fds      ├─ regions   registers, configuration space, MSI-X table
//!                │ link: replies, requests   ├─ memory    what the client lends: files, windows, or asked for
//!                └─ engine thread            └─ vectors   eventfds
//!                   drives the function
//! ```
//!
//! Each connection is a PCI function of its own: nothing that one client does reaches another, but for
//! the time that both spend on the one array of the server ([`crate::Array`]), which is shared fairly. A message that makes no sense is refused with an
//! error number; one whose size makes no sense ends the connection; neither ends the server. When a
//! client goes, its jobs are aborted, its memory unmapped, its descriptors closed and its threads joined.

mod bell;
mod client;
mod dumps;
mod files;
mod link;
mod listener;
mod mailbox;
mod manage;
mod manager;
mod memory;
mod message;
mod regions;
mod roster;
mod session;
mod socket;
mod telemetry;
mod vectors;
mod window;

use crate::array::Array;
use crate::config::Config;
use crate::kernel::{Isa, IsaError};
use dumps::Dumps;
use listener::{Listener, Who};
use manage::Manage;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use npu_uapi::vfio_user::errno;
use npu_workers::Pool;
use roster::{Facts, Place, Roster};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a client that is refused has for its first message, so that the refusal can answer it.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(500);
/// How long to wait for descriptors to come free when the process has none left to accept with.
const ACCEPT_BACKOFF_MS: u8 = 50;

/// What a core dump holds, as the management socket's reply to `dump` has it.
pub fn dump_fields(dump: &npu_uapi::coredump::Dump) -> serde_json::Map<String, serde_json::Value> {
    manage::dump_fields(dump)
}

/// What a server offers.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What each client's function is made of.
    pub config: Config,
    /// Most clients at a time.
    pub max_clients: usize,
    /// Whether refused commands and broken connections are told on standard error.
    pub is_verbose: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { config: Config::default(), max_clients: 64, is_verbose: false }
    }
}

/// Why a server cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Somebody else has the socket.
    #[error("a server listens on {} already; stop it or choose another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else at its path.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder for core dumps cannot be made.
    #[error("cannot write core dumps to {}", folder.display())]
    Dumps {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Connections can no longer be accepted.
    #[error("cannot accept connections")]
    Accept {
        /// Why not.
        source: io::Error,
    },
    /// No kernels.
    #[error(transparent)]
    Isa(#[from] IsaError),
}

/// A socket that serves virtual devices. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    manage: Option<Manage>,
    /// Where management functions are to be had.
    manager: Option<Listener>,
    options: Options,
    /// What the functions of all clients compute on.
    array: Arc<Array>,
    stop: Arc<EventFd>,
    roster: Arc<Roster>,
}

/// Ends [`Server::run`], from any thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<EventFd>);

impl Stopper {
    /// Asks for the end; does not wait for it.
    pub fn stop(&self) {
        // Fails only when it was asked for 2^64 times.
        let _ = self.0.write(1);
    }
}

impl Server {
    /// Listens on `path`. The file of a server that is gone is replaced.
    ///
    /// # Errors
    /// Another server listens there, or the socket or its device cannot be made.
    pub fn bind(path: &Path, options: Options) -> Result<Self, ServerError> {
        Isa::detect()?;
        let listener = Listener::bind(path, Who::Umask)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = EventFd::from_flags(flags)
            .map_err(|error| ServerError::Listen { path: path.to_owned(), source: error.into() })?;
        let workers = options.config.threads.unwrap_or_else(Pool::default_count);
        let (config, max_clients) = (options.config, options.max_clients);
        let facts = Facts { config, max_clients, workers, started: Instant::now() };
        Ok(Self {
            listener,
            manage: None,
            manager: None,
            options,
            array: Arc::new(Array::new(Box::new(Pool::new(workers)), options.config.hang)),
            stop: Arc::new(stop),
            roster: Arc::new(Roster::new(facts, Dumps::default())),
        })
    }

    /// Also writes core dumps of clients' jobs into `folder`, which is made if need be; the last few are kept
    /// there.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn dumps_into(self, folder: &Path) -> Result<Self, ServerError> {
        let dumps = Dumps::into_folder(folder)
            .map_err(|source| ServerError::Dumps { folder: folder.to_owned(), source })?;
        let roster = Arc::new(Roster::new(self.roster.facts, dumps));
        Ok(Self { roster, ..self })
    }

    /// Also listens on `path` for those who manage the server: see `docs/management.md`. Only the user
    /// who started it may connect there.
    ///
    /// # Errors
    /// As for [`Server::bind`].
    pub fn manage_at(self, path: &Path) -> Result<Self, ServerError> {
        let manage = Manage::new(Listener::bind(path, Who::Owner)?);
        Ok(Self { manage: Some(manage), ..self })
    }

    /// Also listens on `path` for those who manage the server as a PCI function: from a guest. Only the user
    /// who started it may connect there.
    ///
    /// # Errors
    /// As for [`Server::bind`].
    pub fn manage_function_at(self, path: &Path) -> Result<Self, ServerError> {
        Ok(Self { manager: Some(Listener::bind(path, Who::Owner)?), ..self })
    }

    /// What ends [`Server::run`].
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.stop))
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.roster.len()
    }

    fn log(&self, what: &str) {
        if self.options.is_verbose {
            eprintln!("npu-sim: {what}");
        }
    }

    /// Serves clients until [`Stopper::stop`]; then ends every connection, and returns when nothing of
    /// them is left.
    ///
    /// # Errors
    /// The listening socket broke.
    pub fn run(&self) -> Result<(), ServerError> {
        thread::scope(|scope| {
            let started = self.start_manage(scope);
            let result = started.and_then(|()| {
                while let Some(stream) = self.next_stream()? {
                    self.admit(scope, stream);
                }
                Ok(())
            });
            self.roster.disconnect_all();
            // The thread that serves the management socket waits for this too.
            self.stopper().stop();
            result.map_err(|source| ServerError::Accept { source })
        })
    }

    /// The next connection; `None` when the server is to stop.
    fn next_stream(&self) -> io::Result<Option<UnixStream>> {
        loop {
            let mut fds = [
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.listener.socket.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if fds[0].any() == Some(true) {
                return Ok(None);
            }
            match self.listener.socket.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) => self.check_accept(error)?,
            }
        }
    }

    /// Passes on errors of the listener; those of one connection, or of too few descriptors, it outlives.
    fn check_accept(&self, error: io::Error) -> io::Result<()> {
        use nix::errno::Errno;
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(()),
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                self.log(&format!("cannot accept for now: {error}"));
                // The connection stays in the backlog, so waiting for the listener would not wait.
                let mut stop = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut stop, PollTimeout::from(ACCEPT_BACKOFF_MS));
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Gives a connection its thread, or refuses it.
    fn admit<'scope>(&'scope self, scope: &'scope thread::Scope<'scope, '_>, stream: UnixStream) {
        let Some(place) = self.roster.enter(stream, self.options.max_clients) else { return };
        let id = place.client().id;
        // Moves into the thread, and is dropped with the closure if there is none.
        let builder = thread::Builder::new().name(format!("npu-client-{id}"));
        if let Err(error) = builder.spawn_scoped(scope, move || self.attend(&place)) {
            self.log(&format!("no thread for client {id}: {error}"));
        }
    }

    /// What the thread of a connection does.
    fn attend(&self, place: &Place<'_>) {
        let client = place.client();
        let log = |what: &str| self.log(&format!("client {}: {what}", client.id));
        let ended = if client.is_refused {
            log("refused: too many clients");
            refuse(&client.stream).map_err(client::ClientError::from)
        } else {
            client::serve(place, (self.options.config, &self.array), &log)
        };
        if let Err(error) = ended {
            log(&error.to_string());
        }
    }

    /// Starts the thread of the management socket, where there is one.
    fn start_manage<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
    ) -> io::Result<()> {
        if let Some(listener) = &self.manager {
            let builder = thread::Builder::new().name("npu-managers".into());
            let log = |what: &str| self.log(what);
            let serve = move || manager::run(listener, &self.stop, &self.roster, &log);
            builder.spawn_scoped(scope, serve)?;
        }
        let Some(manage) = &self.manage else { return Ok(()) };
        let builder = thread::Builder::new().name("npu-manage".into());
        builder.spawn_scoped(scope, || manage.run(&self.stop, &self.roster)).map(drop)
    }
}

/// Answers the first message of a client for which there is no room.
fn refuse(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(REFUSAL_PATIENCE))?;
    match socket::receive(stream, None)? {
        Some(message) => socket::send(stream, message.header.error_reply(errno::EUSERS), &[]),
        None => Ok(()),
    }
}
