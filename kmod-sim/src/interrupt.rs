//! Interrupts as counts, and the one place where threads wait for the device.
//!
//! The device has no thread: of those that wait, one drives it and the others sleep here until an
//! interrupt is theirs or it is their turn to drive.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Counts of raised vectors, and who drives.
#[derive(Debug)]
pub(crate) struct Signals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Times each vector was raised, free-running.
    raised: Vec<u64>,
    /// Whether a thread drives the device.
    is_driven: bool,
    /// Whether there may be something to do: set by a kick, cleared before a look that found nothing.
    has_work: bool,
    /// Threads that sleep on `changed`; without any, nobody needs to be woken.
    sleepers: usize,
}

/// What a thread that waits does next.
#[derive(Debug)]
pub(crate) enum Turn<'a> {
    /// The vector was raised, this many times in all.
    Raised(u64),
    /// The deadline has passed; the count is as the caller knew it.
    TimedOut,
    /// Nobody drives and there may be work: the caller does until it drops this.
    Drive(Driving<'a>),
}

/// The right to drive the device; dropping it, also in a panic, lets the next thread take over.
#[derive(Debug)]
pub(crate) struct Driving<'a> {
    signals: &'a Signals,
}

impl Signals {
    pub(crate) fn new(vectors: usize) -> Self {
        let state =
            State { raised: vec![0; vectors], is_driven: false, has_work: false, sleepers: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave counts and flags inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, state: &State) {
        if state.sleepers > 0 {
            self.changed.notify_all();
        }
    }

    /// Raises `vector`.
    pub(crate) fn raise(&self, vector: u16) {
        let mut state = self.lock();
        if let Some(count) = state.raised.get_mut(usize::from(vector)) {
            *count = count.wrapping_add(1);
            self.wake(&state);
        }
    }

    /// How often `vector` was raised.
    pub(crate) fn count(&self, vector: u16) -> u64 {
        self.lock().raised.get(usize::from(vector)).copied().unwrap_or(0)
    }

    /// Says that there may be something to do.
    pub(crate) fn kick(&self) {
        let mut state = self.lock();
        if !state.has_work {
            state.has_work = true;
            self.wake(&state);
        }
    }

    /// Waits until `vector` was raised since `seen`, it is this thread's turn, or `deadline`.
    pub(crate) fn wait(&self, vector: u16, seen: u64, deadline: Instant) -> Turn<'_> {
        let mut state = self.lock();
        loop {
            let count = state.raised.get(usize::from(vector)).copied().unwrap_or(seen);
            if count != seen {
                return Turn::Raised(count);
            }
            let now = Instant::now();
            if now >= deadline {
                return Turn::TimedOut;
            }
            if state.has_work && !state.is_driven {
                state.is_driven = true;
                return Turn::Drive(Driving { signals: self });
            }
            state.sleepers += 1;
            let waited = self.changed.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.sleepers -= 1;
        }
    }

    /// The right to drive, if nobody has it.
    pub(crate) fn try_drive(&self) -> Option<Driving<'_>> {
        let mut state = self.lock();
        if state.is_driven {
            return None;
        }
        state.is_driven = true;
        Some(Driving { signals: self })
    }
}

impl Driving<'_> {
    /// Whether to go on driving on behalf of a thread that waits for `vector`.
    pub(crate) fn goes_on(&self, vector: u16, seen: u64) -> bool {
        let state = self.signals.lock();
        state.raised.get(usize::from(vector)).is_some_and(|&count| count == seen)
    }

    /// About to look for work: what is kicked from now on is not missed.
    pub(crate) fn looks(&self) {
        self.signals.lock().has_work = false;
    }

    /// The look found some, so there may be more.
    pub(crate) fn found_work(&self) {
        self.signals.lock().has_work = true;
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        let mut state = self.signals.lock();
        state.is_driven = false;
        if state.has_work {
            self.signals.wake(&state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_raised_vector_is_counted_and_ends_a_wait() {
        let signals = Signals::new(2);
        signals.raise(1);
        signals.raise(1);
        signals.raise(9);
        assert_eq!(signals.count(1), 2);
        assert!(matches!(signals.wait(1, 0, far()), Turn::Raised(2)));
        assert!(matches!(signals.wait(0, 0, Instant::now()), Turn::TimedOut));
    }

    #[test]
    fn one_thread_drives_and_hands_over() {
        let signals = Signals::new(1);
        signals.kick();
        let Turn::Drive(driving) = signals.wait(0, 0, far()) else { panic!("nobody drives") };
        assert!(signals.try_drive().is_none());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| matches!(signals.wait(0, 0, far()), Turn::Drive(_)));
            drop(driving);
            assert!(waiter.join().unwrap());
        });
        assert!(signals.try_drive().is_some());
    }
}
