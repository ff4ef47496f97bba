//! Interrupts as counts, and the one place where threads wait for the device.
//!
//! The device has no thread: of those that wait, one drives it and the others sleep here until an
//! interrupt is theirs or it is their turn to drive.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// Told of every raised vector besides the count: whoever passes interrupts out of the process.
pub trait InterruptSink: fmt::Debug + Send + Sync {
    /// `vector` was raised. The function is locked meanwhile: this must neither wait nor call it.
    fn raised(&self, vector: u16);
}

/// Counts of raised vectors, and who drives.
///
/// What is looked at for each command is atomic and changes without the lock; a sleep begins, and
/// those who sleep are woken, under it.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Times each vector was raised, free-running.
    raised: Box<[AtomicU64]>,
    /// Whether there may be something to do: set by a kick, cleared before a look that found nothing.
    has_work: AtomicBool,
    /// Whether threads that only drive are to end.
    is_stopped: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    sink: OnceLock<Arc<dyn InterruptSink>>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a thread drives the device.
    is_driven: bool,
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
    /// Whether the last look found nothing, so that nobody needs to look before the next kick.
    is_idle: bool,
}

impl Signals {
    pub(crate) fn new(vectors: usize) -> Self {
        Self {
            raised: (0..vectors).map(|_| AtomicU64::new(0)).collect(),
            has_work: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            sink: OnceLock::new(),
        }
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
        if let Some(count) = self.raised.get(usize::from(vector)) {
            // Whoever is about to sleep saw this under the lock, or is woken.
            count.fetch_add(1, Ordering::Release);
            self.wake(&self.lock());
            if let Some(sink) = self.sink.get() {
                sink.raised(vector);
            }
        }
    }

    /// Passes raised vectors to `sink` from now on; whether there was none before.
    pub(crate) fn connect(&self, sink: Arc<dyn InterruptSink>) -> bool {
        self.sink.set(sink).is_ok()
    }

    /// How often `vector` was raised.
    pub(crate) fn count(&self, vector: u16) -> u64 {
        self.raised.get(usize::from(vector)).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// Says that there may be something to do.
    pub(crate) fn kick(&self) {
        // Release: whoever takes the flag back sees what the kick is for. Where it was set already,
        // whoever set it wakes somebody, or somebody is awake.
        if !self.has_work.swap(true, Ordering::AcqRel) {
            self.wake(&self.lock());
        }
    }

    /// Waits until `vector` was raised since `seen`, it is this thread's turn, or `deadline`.
    pub(crate) fn wait(&self, vector: u16, seen: u64, deadline: Instant) -> Turn<'_> {
        let mut state = self.lock();
        loop {
            let count = self.raised.get(usize::from(vector));
            let count = count.map_or(seen, |count| count.load(Ordering::Acquire));
            if count != seen {
                return Turn::Raised(count);
            }
            let now = Instant::now();
            if now >= deadline {
                return Turn::TimedOut;
            }
            if let Some(driving) = self.turn(&mut state) {
                return Turn::Drive(driving);
            }
            state.sleepers += 1;
            let waited = self.changed.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.sleepers -= 1;
        }
    }

    /// Waits, without a deadline, until there may be work and nobody drives; `None` once stopped.
    pub(crate) fn wait_to_drive(&self) -> Option<Driving<'_>> {
        let mut state = self.lock();
        loop {
            if self.is_stopped.load(Ordering::Acquire) {
                return None;
            }
            if let Some(driving) = self.turn(&mut state) {
                return Some(driving);
            }
            state.sleepers += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleepers -= 1;
        }
    }

    /// The right to drive, if there may be work and nobody has it.
    fn turn(&self, state: &mut State) -> Option<Driving<'_>> {
        if state.is_driven || !self.has_work.load(Ordering::Acquire) {
            return None;
        }
        state.is_driven = true;
        Some(Driving { signals: self, is_idle: false })
    }

    /// Ends [`Signals::wait_to_drive`], now and for ever.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        self.wake(&self.lock());
    }

    /// The right to drive, if nobody has it.
    pub(crate) fn try_drive(&self) -> Option<Driving<'_>> {
        let mut state = self.lock();
        if state.is_driven {
            return None;
        }
        state.is_driven = true;
        Some(Driving { signals: self, is_idle: false })
    }
}

impl Driving<'_> {
    /// Whether to go on driving on behalf of a thread that waits for `vector`.
    pub(crate) fn goes_on(&self, vector: u16, seen: u64) -> bool {
        let count = self.signals.raised.get(usize::from(vector));
        count.is_none_or(|count| count.load(Ordering::Relaxed) == seen)
    }

    /// Whether [`Signals::stop`] was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.signals.is_stopped.load(Ordering::Relaxed)
    }

    /// About to look for work: what is kicked from now on is not missed.
    pub(crate) fn looks(&mut self) {
        self.is_idle = false;
        if self.signals.has_work.load(Ordering::Relaxed) {
            // One access that reads and writes: a kick that came after the load above is either seen
            // by the look, or sets the flag again.
            self.signals.has_work.swap(false, Ordering::AcqRel);
        }
    }

    /// The look found nothing, and all queues will kick: after this there is no need for another.
    pub(crate) fn found_nothing(&mut self) {
        self.is_idle = true;
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        let mut state = self.signals.lock();
        state.is_driven = false;
        if !self.is_idle {
            self.signals.has_work.store(true, Ordering::Release);
        }
        if self.signals.has_work.load(Ordering::Acquire) {
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
    fn a_wait_for_a_vector_that_does_not_exist_drives_like_any_other() {
        let signals = Signals::new(1);
        signals.kick();
        let Turn::Drive(driving) = signals.wait(9, 0, far()) else { panic!("nobody drives") };
        assert!(driving.goes_on(9, 0), "else the wait would spin: its turn comes again at once");
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

    #[test]
    fn a_thread_that_only_drives_sleeps_until_there_is_work_or_it_is_stopped() {
        let signals = Signals::new(1);
        std::thread::scope(|scope| {
            let engine = scope.spawn(|| {
                let mut turns = 0;
                while let Some(mut driving) = signals.wait_to_drive() {
                    driving.looks();
                    driving.found_nothing();
                    turns += 1;
                    signals.raise(0);
                }
                turns
            });
            signals.kick();
            assert!(matches!(signals.wait(0, 0, far()), Turn::Raised(1) | Turn::Drive(_)));
            signals.stop();
            assert!(engine.join().unwrap() <= 1);
        });
        assert!(signals.wait_to_drive().is_none());
    }

    #[test]
    fn a_sink_is_told_of_what_is_raised_and_not_of_vectors_that_do_not_exist() {
        #[derive(Debug, Default)]
        struct Log(Mutex<Vec<u16>>);
        impl InterruptSink for Log {
            fn raised(&self, vector: u16) {
                self.0.lock().unwrap().push(vector);
            }
        }
        let (signals, log) = (Signals::new(2), Arc::new(Log::default()));
        signals.raise(0);
        assert!(signals.connect(Arc::<Log>::clone(&log)));
        assert!(!signals.connect(Arc::<Log>::clone(&log)), "there is one already");
        signals.raise(1);
        signals.raise(2);
        assert_eq!(*log.0.lock().unwrap(), [1]);
    }
}
