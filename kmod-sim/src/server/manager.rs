//! Management functions: each connection to their socket is one, with a mailbox of its own.
//!
//! A session as any client has, but that its registers are the mailbox and its device id says so: no NPU is
//! behind it, nothing is computed and no interrupt raised.

use super::client::{ClientError, answer_all};
use super::link::Link;
use super::listener::Listener;
use super::mailbox::Mailbox;
use super::roster::Roster;
use super::session::Session;
use crate::config::Config;
use crate::device::Function;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use npu_uapi::limits::Limits;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Management functions at a time; further connections are closed.
const MOST: usize = 4;
/// How long one may leave a full socket unread.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How long to leave a listener alone that cannot accept.
const BACKOFF_MS: u8 = 50;

/// Those who are connected.
type Streams = Mutex<Vec<Arc<UnixStream>>>;

/// Serves management functions until `stop` is written, and returns when nothing of them is left.
pub(crate) fn run(
    listener: &Listener,
    stop: &EventFd,
    roster: &Arc<Roster>,
    log: &(dyn Fn(&str) + Sync),
) {
    let streams = Streams::default();
    let lock = || streams.lock().unwrap_or_else(PoisonError::into_inner);
    let lock = &lock;
    thread::scope(|scope| {
        while let Some(stream) = next(listener, stop) {
            let stream = Arc::new(stream);
            if lock().len() >= MOST {
                log("a management function is refused: there are enough");
                continue;
            }
            lock().push(Arc::clone(&stream));
            let attend = move || {
                if let Err(error) = serve(&stream, roster, log) {
                    log(&format!("management function: {error}"));
                }
                lock().retain(|other| !Arc::ptr_eq(other, &stream));
            };
            let builder = thread::Builder::new().name("npu-manager".into());
            if let Err(error) = builder.spawn_scoped(scope, attend) {
                log(&format!("no thread for a management function: {error}"));
                lock().pop();
            }
        }
        for stream in lock().iter() {
            // Its thread sees the end of the stream.
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// The next connection; `None` when the server is to stop.
fn next(listener: &Listener, stop: &EventFd) -> Option<UnixStream> {
    loop {
        let mut fds = [
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN),
        ];
        let is_polled = poll(&mut fds, PollTimeout::NONE).is_ok();
        if is_polled && fds[0].any() == Some(true) {
            return None;
        }
        match listener.socket.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => {
                let mut stop = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut stop, PollTimeout::from(BACKOFF_MS));
            }
        }
    }
}

fn serve(
    stream: &Arc<UnixStream>,
    roster: &Arc<Roster>,
    log: &dyn Fn(&str),
) -> Result<(), ClientError> {
    stream.set_write_timeout(Some(WRITE_PATIENCE))?;
    // Configuration space, interrupts and mappings of a function; its registers nobody reaches.
    let limits = Limits { sram_bytes: 0, vectors: 1, ..Limits::REFERENCE };
    let function = Arc::new(Function::manager(Config { limits, ..Config::default() })?);
    let link = Arc::new(Link::new(Arc::clone(stream)));
    let mailbox = Mailbox::new(Arc::clone(roster));
    let mut session = Session::with_mailbox(Arc::clone(&function), Arc::clone(&link), mailbox)?;
    let ended = answer_all(stream, &link, &mut session, log);
    link.close();
    ended
}
