//! Interrupts of a device outside this process: an eventfd a vector, counted.
//!
//! A device in another process has the same eventfds, and could make one sleep whoever reads or writes it. So
//! they are read at once or not at all, and never written: threads of this process wake each other by files
//! of their own.

use super::TransportError;
use super::read_now::read_now;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Who raises the vectors, as far as somebody who waits for one must know: whether it is still there.
pub(super) trait Peer {
    /// What becomes ready when the device goes.
    fn hang_up(&self) -> PollFd<'_>;

    /// The error for a hang-up that a poll has seen.
    fn hung_up(&self) -> TransportError;

    /// Whether the device went away.
    fn is_gone(&self) -> bool;
}

/// The vectors of one device.
#[derive(Debug)]
pub(super) struct Vectors(Vec<Vector>);

/// Of the threads that wait for a vector one polls, and tells the others what it has read.
#[derive(Debug)]
struct Vector {
    /// The device writes it.
    event: EventFd,
    /// Wakes whoever polls, for a reason of this process.
    nudge: EventFd,
    state: Mutex<State>,
    /// The count changed, or nobody polls.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    count: u64,
    is_polled: bool,
}

impl Vectors {
    pub(super) fn new(count: u32) -> Result<Self, TransportError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let vectors = (0..count).map(|_| {
            let (event, nudge) = (EventFd::from_flags(flags)?, EventFd::from_flags(flags)?);
            Ok(Vector { event, nudge, state: Mutex::default(), changed: Condvar::new() })
        });
        let vectors: Result<_, nix::Error> = vectors.collect();
        let why = |error| format!("cannot make two eventfds for each of {count} vectors: {error}");
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
        vector.take_in(&mut state);
        state.count
    }

    /// Ends the waits for `vector`.
    pub(super) fn wake(&self, vector: u16) {
        if let Some(vector) = self.0.get(usize::from(vector)) {
            vector.add(&mut vector.lock(), 1);
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
        peer: &dyn Peer,
    ) -> Result<u64, TransportError> {
        let Some(vector) = self.0.get(usize::from(vector)) else {
            // The device has no such vector: nothing will come but its end.
            poll_until(&mut [peer.hang_up()], deadline);
            return if peer.is_gone() { Err(peer.hung_up()) } else { Ok(seen) };
        };
        let mut state = vector.lock();
        let mut is_hung_up = false;
        loop {
            vector.take_in(&mut state);
            if state.count != seen {
                return Ok(state.count);
            }
            if is_hung_up {
                return Err(peer.hung_up());
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
            let nudge = PollFd::new(vector.nudge.as_fd(), PollFlags::POLLIN);
            let mut fds = [event, nudge, peer.hang_up()];
            poll_until(&mut fds, deadline);
            is_hung_up = fds[2].any() == Some(true);
            state = vector.lock();
            state.is_polled = false;
            // Empty unless somebody nudged; what for, the count tells.
            let _ = vector.nudge.read();
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
        let mut raised = [0; 8];
        if read_now(self.event.as_fd(), &mut raised) == raised.len() {
            self.add(state, u64::from_ne_bytes(raised));
        }
    }

    /// Adds to the count, and wakes all that wait for it.
    fn add(&self, state: &mut State, raised: u64) {
        state.count = state.count.wrapping_add(raised);
        self.changed.notify_all();
        if state.is_polled {
            // Full only after 2^64 of them, and then it wakes as well.
            let _ = self.nudge.write(1);
        }
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
