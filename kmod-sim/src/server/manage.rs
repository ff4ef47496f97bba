//! The management socket: who is connected, what they have done, and faults for their devices.
//!
//! One JSON object a line in, one a line out; [`command`] reads them, `docs/management.md` says which. One thread serves all connections
//! and never waits for one of them: a connection that sends half a line, or does not read its reply, is
//! not heard further and costs two bounded buffers. Where there are too many, the one that was silent
//! for longest makes room. The thread ends with the server.

mod clients;
mod command;
mod events;
mod failed;
mod state;

pub(crate) use state::fields as dump_fields;

use super::listener::Listener;
use super::roster::Roster;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// What a line is answered with, a line without its end.
pub(super) fn answer(line: &[u8], roster: &Roster) -> Vec<u8> {
    command::answer(line, roster).to_string().into_bytes()
}

/// The reply that says why there is none.
pub(super) fn refusal(why: &str) -> Vec<u8> {
    command::refusal(why).to_string().into_bytes()
}

/// Most bytes of a request.
const MOST_LINE_BYTES: usize = 64 << 10;
/// Most connections at a time.
const MOST_CONNECTIONS: usize = 16;
/// How long to leave a listener alone that cannot accept.
const BACKOFF_MS: u8 = 50;

/// The socket for those who manage the server.
#[derive(Debug)]
pub(crate) struct Manage {
    listener: Listener,
}

/// Somebody who manages.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// What came, up to and behind a line's end.
    received: Vec<u8>,
    /// The part of a reply that is not yet sent.
    reply: Vec<u8>,
    heard: Instant,
}

/// A connection has ended, by the other's wish or its fault.
struct Ended;

impl Manage {
    pub(crate) fn new(listener: Listener) -> Self {
        Self { listener }
    }

    /// Serves connections until `stop` is written.
    pub(crate) fn run(&self, stop: &EventFd, roster: &Roster) {
        let mut connections: Vec<Connection> = Vec::new();
        let mut can_accept = true;
        loop {
            let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            let listen = if can_accept { PollFlags::POLLIN } else { PollFlags::empty() };
            fds.push(PollFd::new(self.listener.socket.as_fd(), listen));
            fds.extend(connections.iter().map(Connection::waits_for));
            let patience =
                if can_accept { PollTimeout::NONE } else { PollTimeout::from(BACKOFF_MS) };
            // When it fails, for want of memory, everybody is looked after as if ready.
            let is_polled = poll(&mut fds, patience).is_ok();
            let is_ready = |fd: &PollFd<'_>| !is_polled || fd.any() == Some(true);
            if fds[0].any() == Some(true) {
                return;
            }
            let is_calling = is_ready(&fds[1]);
            let ready: Vec<bool> = fds[2..].iter().map(is_ready).collect();
            drop(fds);
            let mut ready = ready.into_iter();
            connections.retain_mut(|connection| {
                !ready.next().unwrap_or(false) || connection.serve(roster).is_ok()
            });
            can_accept = !is_calling || self.accept(&mut connections);
        }
    }

    /// Takes one connection in; whether the listener can be asked for more.
    fn accept(&self, connections: &mut Vec<Connection>) -> bool {
        let stream = match self.listener.socket.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
            }
        };
        if stream.set_nonblocking(true).is_err() {
            return true;
        }
        if connections.len() >= MOST_CONNECTIONS {
            let silent = (0..connections.len()).min_by_key(|&at| connections[at].heard);
            connections.swap_remove(silent.unwrap_or(0));
        }
        let (received, reply) = (Vec::new(), Vec::new());
        connections.push(Connection { stream, received, reply, heard: Instant::now() });
        true
    }
}

impl Connection {
    fn waits_for(&self) -> PollFd<'_> {
        let flags = if self.reply.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        PollFd::new(self.stream.as_fd(), flags)
    }

    /// Reads what is there and answers it, as far as the other end takes the replies.
    fn serve(&mut self, roster: &Roster) -> Result<(), Ended> {
        self.send()?;
        if !self.reply.is_empty() {
            return Ok(());
        }
        let mut chunk = [0; 4096];
        let is_over = match self.stream.read(&mut chunk) {
            Ok(0) => true,
            Ok(len) => {
                self.received.extend_from_slice(&chunk[..len]);
                self.heard = Instant::now();
                false
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => false,
                _ => return Err(Ended),
            },
        };
        while self.reply.is_empty() {
            let Some(end) = self.received.iter().position(|&byte| byte == b'\n') else { break };
            let line: Vec<u8> = self.received.drain(..=end).collect();
            self.answer(&command::answer(&line[..end], roster));
            self.send()?;
        }
        if self.received.len() > MOST_LINE_BYTES {
            let most = format!("a request is one line of at most {MOST_LINE_BYTES} bytes");
            self.answer(&command::refusal(&most));
            // As much as is taken at once; what would follow has no beginning.
            self.send()?;
            return Err(Ended);
        }
        if is_over && self.reply.is_empty() { Err(Ended) } else { Ok(()) }
    }

    fn answer(&mut self, reply: &serde_json::Value) {
        self.reply = format!("{reply}\n").into_bytes();
    }

    fn send(&mut self) -> Result<(), Ended> {
        while !self.reply.is_empty() {
            match self.stream.write(&self.reply) {
                Ok(0) => return Err(Ended),
                Ok(len) => drop(self.reply.drain(..len)),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => return Ok(()),
                    _ => return Err(Ended),
                },
            }
        }
        Ok(())
    }
}
