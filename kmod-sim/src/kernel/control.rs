//! A command under way, as others see it: that it lives, how far it is, and how to stop it.
//!
//! ```text
//!   who asks                          Engine                     the threads that compute
//!   abort, reset, unmap  ──ABORT──>                   <── look at each chunk, and every 2^21 MACs
//!   a watchdog           ──HUNG───>   request
//!   the array, a lookout ──PREEMPT─>                  <── look behind each chunk
//!                                     heartbeat       <── one more for each chunk
//!                                     place           <── the chunks that are left: where to resume
//! ```

use super::Stop;
use super::chunks::{Chunk, Ends, Left, Side};
use crossbeam::utils::CachePadded;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often a thread that computes looks for what comes before its job.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The longest sleep of a stalled engine, which then looks whether it is to end.
const NAP: Duration = Duration::from_millis(2);
/// How long an engine may go without progress where nobody says otherwise.
pub(crate) const HANG: Duration = Duration::from_millis(500);

/// What is asked of the threads that compute, in order: a stronger wish is never overwritten.
const GO_ON: u8 = 0;
const PREEMPT: u8 = 1;
const HUNG: u8 = 2;
const ABORT: u8 = 3;

/// What those who compute a command share with those who wait for it, stop it or watch it.
#[derive(Debug, Default)]
pub struct Engine {
    /// Read by all workers at each chunk, hardly ever written: a cache line of its own.
    request: CachePadded<AtomicU8>,
    /// Of the workers on either side, who count each in a cache line of their own.
    heartbeats: [CachePadded<AtomicU64>; 2],
    /// The chunks that nobody has taken.
    ends: Ends,
    plan: Plan,
}

/// Written once a command.
#[derive(Debug, Default)]
struct Plan {
    /// All chunks of the command; 0 before they are known.
    chunks: AtomicU64,
    /// The workers that the chunks were planned for; 0 before that.
    workers: AtomicU64,
}

/// How far a command has come that was stopped between two chunks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Place {
    left: Left,
    chunks: u64,
    workers: u64,
}

impl Place {
    /// The part of `cost` that is done.
    pub(crate) fn of(self, cost: u64) -> u64 {
        let done = u128::from(self.chunks.saturating_sub(self.left.count()));
        let all = u128::from(self.chunks.max(1));
        u64::try_from(u128::from(cost) * done / all).expect("at most the cost itself")
    }
}

impl Engine {
    /// Counts up as chunks of work end.
    pub fn heartbeat(&self) -> u64 {
        let beats = self.heartbeats.iter().map(|beats| beats.load(Relaxed));
        beats.fold(0, u64::wrapping_add)
    }

    /// Ends the command under way; its results are undefined.
    pub fn abort(&self) {
        self.request.fetch_max(ABORT, Relaxed);
    }

    /// Ends the command as one that makes no progress.
    pub(crate) fn hang(&self) {
        self.request.fetch_max(HUNG, Relaxed);
    }

    /// Lets the command rest behind the chunks that are under way.
    pub fn preempt(&self) {
        self.request.fetch_max(PREEMPT, Relaxed);
    }

    /// Forgets what was asked, and begins a command anew.
    pub fn reset(&self) {
        self.begin(Place::default());
    }

    /// Forgets what was asked; the next command goes on from `place`.
    pub(crate) fn begin(&self, place: Place) {
        self.request.store(GO_ON, Relaxed);
        self.set_place(place);
    }

    /// The command is through: the next one begins at its start.
    pub(super) fn forget_place(&self) {
        self.set_place(Place::default());
    }

    fn set_place(&self, place: Place) {
        self.ends.set(place.left);
        self.plan.chunks.store(place.chunks, Relaxed);
        self.plan.workers.store(place.workers, Relaxed);
    }

    /// How far the command has come.
    pub(crate) fn place(&self) -> Place {
        Place {
            left: self.ends.left(),
            chunks: self.plan.chunks.load(Relaxed),
            workers: self.plan.workers.load(Relaxed),
        }
    }

    pub(crate) fn beat(&self) {
        self.beat_of(Side::Front);
    }

    /// Of a worker on `side`.
    pub(super) fn beat_of(&self, side: Side) {
        self.heartbeats[side.half()].fetch_add(1, Relaxed);
    }

    /// Whether anything is asked, be it that the command rests.
    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        self.request.load(Relaxed) != GO_ON
    }

    /// What ends the command at once.
    #[inline]
    pub(crate) fn end(&self) -> Option<Stop> {
        match self.request.load(Relaxed) {
            GO_ON | PREEMPT => None,
            HUNG => Some(Stop::Hung),
            _ => Some(Stop::Aborted),
        }
    }

    /// The workers to plan for: those of the first time, when the command is resumed.
    pub(super) fn planned_workers(&self, now: u64) -> u64 {
        match self.plan.workers.load(Relaxed) {
            0 => {
                self.plan.workers.store(now, Relaxed);
                now
            }
            planned => planned,
        }
    }

    /// The command has `count` chunks, [`Left::MOST`] at most; some are done where it is resumed.
    pub(crate) fn set_chunks(&self, count: u64) {
        if self.plan.chunks.load(Relaxed) != count {
            self.ends.set(Left::all(count));
            self.plan.chunks.store(count, Relaxed);
        }
    }

    /// Whether every chunk was taken.
    pub(super) fn is_through(&self) -> bool {
        self.ends.left().count() == 0
    }

    /// The next chunk from `side`; `None` when every one was taken.
    pub(crate) fn take_chunk(&self, side: Side) -> Option<Chunk> {
        self.ends.take(side)
    }
}

/// How a command under way is stopped, and what shows that it lives.
#[derive(Clone, Copy, Debug)]
pub struct Control<'a> {
    pub(crate) engine: &'a Engine,
    /// Whoever computes looks there from time to time.
    pub(crate) lookout: Option<&'a Lookout<'a>>,
    /// How long the command may go without progress.
    pub(crate) hang: Duration,
    /// Chunks are to be 2 to this power times smaller, for tests of what happens between two.
    pub(crate) fineness: u32,
}

impl<'a> Control<'a> {
    /// A command that only `engine` stops.
    pub fn new(engine: &'a Engine) -> Self {
        Self { engine, lookout: None, hang: HANG, fineness: 0 }
    }

    /// Asks for preemption where the lookout has found what comes first.
    #[inline]
    pub(super) fn look(&self) {
        if let Some(lookout) = self.lookout
            && lookout.look()
        {
            self.engine.preempt();
        }
    }

    /// What an engine does that is stuck, for fault injection: nothing, and no heartbeat, until it is
    /// ended or `until`. It can not be preempted, and it is its own watchdog: without progress of its
    /// other workers for as long as the device allows, it ends as hung.
    ///
    /// # Errors
    /// [`Stop::Aborted`] or [`Stop::Hung`].
    pub fn stall(&self, until: Option<Instant>) -> Result<(), Stop> {
        let (mut beat, mut since) = (self.engine.heartbeat(), Instant::now());
        loop {
            if let Some(stop) = self.engine.end() {
                return Err(stop);
            }
            let (now, found) = (Instant::now(), self.engine.heartbeat());
            if until.is_some_and(|until| now >= until) {
                return Ok(());
            }
            if found != beat {
                (beat, since) = (found, now);
            } else if now - since >= self.hang {
                return Err(Stop::Hung);
            }
            let left = until.map_or(NAP, |until| NAP.min(until - now));
            std::thread::park_timeout(left);
        }
    }
}

/// Looks from time to time, from within a command, whether something else comes first.
pub(crate) struct Lookout<'a> {
    look: &'a (dyn Fn() -> bool + Sync),
    every: Duration,
    /// When it was first asked: a short command reads no clock.
    start: OnceLock<Instant>,
    /// When to look next, in nanoseconds from `start`.
    next: AtomicU64,
}

impl fmt::Debug for Lookout<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookout").field("next", &self.next).finish_non_exhaustive()
    }
}

impl<'a> Lookout<'a> {
    pub(crate) fn new(look: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self::looking_every(LOOK_EVERY, look)
    }

    pub(crate) fn looking_every(every: Duration, look: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { look, every, start: OnceLock::new(), next: AtomicU64::new(nanos(every)) }
    }

    /// Whether something comes first; looks at most that often, whichever thread asks.
    pub(crate) fn look(&self) -> bool {
        let start = self.start.get_or_init(Instant::now);
        let (now, due) = (nanos(start.elapsed()), self.next.load(Relaxed));
        // One of several threads looks; the others go on.
        now >= due
            && self
                .next
                .compare_exchange(due, now.saturating_add(nanos(self.every)), Relaxed, Relaxed)
                .is_ok()
            && (self.look)()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stronger_wish_stays() {
        let engine = Engine::default();
        engine.preempt();
        assert!(engine.is_asked() && engine.end().is_none());
        engine.abort();
        engine.hang();
        engine.preempt();
        assert_eq!(engine.end(), Some(Stop::Aborted));
        engine.reset();
        engine.hang();
        assert_eq!(engine.end(), Some(Stop::Hung));
    }

    #[test]
    fn a_stalled_engine_ends_by_its_own_watchdog_by_an_abort_or_in_time() {
        let engine = Engine::default();
        let control = Control { hang: Duration::from_millis(20), ..Control::new(&engine) };
        engine.preempt();
        let before = Instant::now();
        assert_eq!(control.stall(None), Err(Stop::Hung));
        assert!(before.elapsed() >= control.hang);
        assert_eq!(control.stall(Some(Instant::now())), Ok(()));
        engine.abort();
        assert_eq!(control.stall(None), Err(Stop::Aborted));
    }

    #[test]
    fn a_part_of_a_cost_never_passes_the_whole() {
        let place = |left, chunks| Place { left: Left::all(left), chunks, workers: 1 };
        assert_eq!(place(0, 0).of(u64::MAX), 0);
        assert_eq!(place(1, 4).of(u64::MAX), u64::MAX / 4 * 3 + 2);
        assert_eq!(place(0, 4).of(1000), 1000);
        assert_eq!(place(1, 0).of(1000), 0, "its chunks are not known yet");
    }
}
