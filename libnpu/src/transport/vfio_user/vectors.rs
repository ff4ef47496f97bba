//! Interrupts of a device in another process: an eventfd a vector, counted.

use super::connection::Connection;
use crate::transport::TransportError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The vectors of one device.
#[derive(Debug)]
pub(super) struct Vectors(Vec<Vector>);

/// Of the threads that wait for a vector one polls, and tells the others what it has read.
#[derive(Debug)]
struct Vector {
    event: EventFd,
    state: Mutex<State>,
    /// The count changed, or nobody polls.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    count: u64,
    is_polled: bool,
    /// What is in the eventfd without an interrupt.
    nudges: u64,
}

impl Vectors {
    pub(super) fn new(count: u32) -> Result<Self, TransportError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let vectors = (0..count).map(|_| {
            let event = EventFd::from_flags(flags)?;
            Ok(Vector { event, state: Mutex::default(), changed: Condvar::new() })
        });
        let vectors: Result<_, nix::Error> = vectors.collect();
        let why = |error| format!("cannot make an eventfd for each of {count} vectors: {error}");
        vectors.map(Self).map_err(|error| TransportError::Start { why: why(error) })
    }

    /// What the device signals, in order of the vectors.
    pub(super) fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|vector| vector.event.as_fd())
    }

    /// How often `vector` was raised or woken.
    pub(super) fn count(&self, vector: u16) -> u64 {
        let Some(vector) = self.0.get(usize::from(vector)) else { return 0 };
        let mut state = vector.lock();
        let before = state.count;
        vector.take_in(&mut state);
        if state.count != before {
            vector.changed.notify_all();
        }
        state.count
    }

    /// Ends the waits for `vector`.
    pub(super) fn wake(&self, vector: u16) {
        if let Some(vector) = self.0.get(usize::from(vector)) {
            vector.raise();
        }
    }

    /// Waits until the count of `vector` differs from `seen`, at most until `deadline`; returns it.
    ///
    /// # Errors
    /// The device is gone, and raised nothing before.
    pub(super) fn wait(
        &self,
        vector: u16,
        seen: u64,
        deadline: Instant,
        connection: &Connection,
    ) -> Result<u64, TransportError> {
        let Some(vector) = self.0.get(usize::from(vector)) else {
            // The device has no such vector: nothing will come but its end.
            poll_until(&mut [connection.hang_up()], deadline);
            return if connection.is_gone() { Err(connection.hung_up()) } else { Ok(seen) };
        };
        let mut state = vector.lock();
        let mut is_hung_up = false;
        loop {
            vector.take_in(&mut state);
            if state.count != seen {
                vector.changed.notify_all();
                return Ok(state.count);
            }
            if is_hung_up {
                return Err(connection.hung_up());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(state.count);
            }
            if state.is_polled {
                let waited = vector.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.is_polled = true;
            drop(state);
            let event = PollFd::new(vector.event.as_fd(), PollFlags::POLLIN);
            let mut fds = [event, connection.hang_up()];
            poll_until(&mut fds, deadline);
            is_hung_up = fds[1].any() == Some(true);
            state = vector.lock();
            state.is_polled = false;
            // Somebody else polls from here on, or sees the new count.
            vector.changed.notify_all();
        }
    }
}

impl Vector {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the count what the eventfd has.
    fn take_in(&self, state: &mut State) {
        // Asked first: the device has the same file, and could make it one whose reads sleep.
        if !self.is_ready(PollFlags::POLLIN) {
            return;
        }
        let Ok(raised) = self.event.read() else { return };
        state.count = state.count.wrapping_add(raised.saturating_sub(state.nudges));
        state.nudges = 0;
        if state.is_polled {
            // Whoever polls was woken, but would find nothing and sleep on.
            state.nudges = u64::from(self.raise());
        }
    }

    /// Wakes whoever polls; whether that added one to the eventfd. A full one wakes as well.
    fn raise(&self) -> bool {
        self.is_ready(PollFlags::POLLOUT) && self.event.write(1).is_ok()
    }

    fn is_ready(&self, what: PollFlags) -> bool {
        let mut fds = [PollFd::new(self.event.as_fd(), what)];
        poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any() == Some(true)
    }
}

/// Polls until something is ready or `deadline` has passed, or a signal came.
fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant) {
    // Rounded up, so that the deadline has passed when nothing came.
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::ZERO);
    // The callers look at what is ready and at the time, so that a failure is a short wait.
    let _ = poll(fds, timeout);
}
