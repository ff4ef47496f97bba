//! A socket that listens at a path: it replaces one whose server is gone, and goes when it is dropped.

use super::ServerError;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening socket, which does not block.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file, so that another's is not removed.
    identity: (u64, u64),
}

/// Who may connect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Who {
    /// Whom the process's umask lets.
    Umask,
    /// The user who started the server.
    Owner,
}

impl Listener {
    /// Listens at `path`.
    ///
    /// # Errors
    /// Another server listens there, something else is there, or the system does not let it.
    pub(crate) fn bind(path: &Path, who: Who) -> Result<Self, ServerError> {
        remove_stale(path)?;
        open(path, who).map_err(|source| ServerError::Listen { path: path.to_owned(), source })
    }
}

fn open(path: &Path, who: Who) -> io::Result<Listener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let unbound = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    if who == Who::Owner {
        // The file takes the mode of the socket, so that nobody else connects before a chmod.
        fchmod(&unbound, Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    bind(unbound.as_raw_fd(), &UnixAddr::new(path)?)?;
    let found = fs::symlink_metadata(path)?;
    let identity = (found.dev(), found.ino());
    listen(&unbound, Backlog::new(BACKLOG)?)?;
    Ok(Listener { socket: UnixListener::from(unbound), path: path.to_owned(), identity })
}

impl Drop for Listener {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            // Without permission it stays, and the next server replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket of a server that is gone.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ServerError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| ServerError::Listen { path: path.to_owned(), source }),
        // A full backlog, or no permission, is somebody who lives.
        _ => Err(ServerError::InUse { path: path.to_owned() }),
    }
}
