//! The driver's end of one device queue: submit, wait, and match completions to what was submitted.
//!
//! Several threads may submit and wait. Of those that wait, one leads: it sleeps in the transport (and
//! so drives a device in this process), the others on a condition variable until it hands over.
//!
//! What a submission uses lives in the table of what is pending until its completion is here: dropping
//! a job handle frees nothing under the device.

mod awake;
mod pending;
pub(crate) mod words;

use crate::buffer::Buffer;
use crate::error::{Error, Loss, Stall};
use crate::heap::Heap;
use crate::transport::TransportExt;
use crate::uses::Uses;
use awake::Awake;
use npu_uapi::queue::Completion;
use npu_uapi::regs::{self, HeartbeatLow, IrqStatus, Kick};
use npu_uapi::ring::{Driver, LastLook, RingError, RingLayout, SUBMISSION_WORDS};
use npu_uapi::workers::Workers;
use pending::{Entry, Freed, Pending};
use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use words::RingWords;

/// What a submission keeps alive until it is answered.
#[derive(Debug)]
pub(crate) enum Kept {
    /// Of a job that runs a program: no allocation, as there are many.
    Exec { _uses: Uses },
    /// Of anything else, which is dropped when it has ended.
    Other { _uses: Box<dyn Any + Send> },
}

impl Kept {
    /// What is dropped when the job has ended.
    pub(crate) fn new(uses: impl Any + Send) -> Self {
        Self::Other { _uses: Box::new(uses) }
    }
}

/// Tickets kept for the next jobs: more than there are mostly in flight.
const SPARE_TICKETS: usize = 4;

/// The answer to one submission, once it is here.
#[derive(Debug, Default)]
pub(crate) struct Ticket {
    pub(crate) job: u32,
    outcome: OnceLock<Result<Completion, Loss>>,
}

impl Ticket {
    /// The completion, or how the queue was lost before it came; `None` while it is awaited.
    pub(crate) fn outcome(&self) -> Option<Result<Completion, Loss>> {
        self.outcome.get().cloned()
    }
}

#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) id: u16,
    vector: u16,
    heap: Arc<Heap>,
    words: Arc<RingWords>,
    state: Mutex<State>,
    /// A ticket was answered, or the leader left.
    changed: Condvar,
}

struct State {
    rings: Driver<Arc<RingWords>>,
    pending: Pending,
    /// Of jobs that have ended; those that nobody holds any more are used again.
    spare: Vec<Arc<Ticket>>,
    lost: Option<Loss>,
    has_leader: bool,
    /// Threads on the condition variable.
    followers: usize,
    awake: Awake,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pending, lost, has_leader, followers, .. } = self;
        write!(f, "State {{ pending: {}, lost: {lost:?}, ", pending.len())?;
        write!(f, "has_leader: {has_leader}, followers: {followers} }}")
    }
}

impl Queue {
    /// The driver's end of rings in `region`, zeroed, of which the device has or gets the other end.
    pub(crate) fn new(
        heap: &Arc<Heap>,
        (id, vector): (u16, u16),
        region: Buffer,
        layout: RingLayout,
    ) -> Result<Self, Error> {
        let lost = |error| Error::Lost { queue: id, why: Loss::Ring(error) };
        let words = Arc::new(RingWords::new(region));
        let rings = Driver::new(Arc::clone(&words), layout).map_err(lost)?;
        let state = State {
            rings,
            pending: Pending::new(layout.cq_depth()),
            spare: Vec::with_capacity(SPARE_TICKETS),
            lost: None,
            has_leader: false,
            followers: 0,
            awake: Awake::new(),
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Ok(Self { id, vector, heap: Arc::clone(heap), words, state, changed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, why: Loss) -> Error {
        Error::Lost { queue: self.id, why }
    }

    /// Submits the entry that `entry` makes for a job number, and keeps `kept` until it is answered.
    pub(crate) fn submit(
        &self,
        entry: impl FnOnce(u32) -> [u32; SUBMISSION_WORDS],
        kept: Kept,
    ) -> Result<Arc<Ticket>, Error> {
        self.heap.check_process()?;
        let mut freed = Freed::default();
        let mut state = self.lock();
        if state.pending.len() > 0 {
            state.reap(&mut freed);
            self.wake_followers(&state);
        }
        if let Some(why) = state.lost.clone() {
            return Err(self.lost(why));
        }
        let Some(job) = state.pending.next_job() else {
            return Err(Error::QueueFull { in_flight: state.rings.in_flight() });
        };
        let pushed = state.rings.push(&entry(job));
        match pushed {
            Ok(_) => {}
            Err(RingError::SubmissionsFull { .. } | RingError::CompletionsFull { .. }) => {
                return Err(Error::QueueFull { in_flight: state.rings.in_flight() });
            }
            Err(error) => {
                state.lose(Loss::Ring(error));
                self.wake_followers(&state);
                return Err(self.lost(Loss::Ring(error)));
            }
        }
        // The device may begin; its answer is looked for under the lock only.
        state.rings.publish();
        let ticket = state.ticket(job);
        state.pending.insert(Entry { ticket: Arc::clone(&ticket), kept });
        let needs_kick = state.rings.needs_kick();
        state.check_index();
        let lost = state.lost.clone();
        if lost.is_some() {
            self.wake_followers(&state);
        }
        drop(state);
        // Unlocked: what they kept may submit when it goes.
        drop(freed);
        if let Some(why) = lost {
            return Err(self.lost(why));
        }
        if needs_kick {
            let kick = Kick::default();
            self.heap.transport.write(npu_uapi::reg::Register::with(
                kick,
                Kick::QUEUE,
                u32::from(self.id),
            ))?;
        }
        Ok(ticket)
    }

    /// Waits until `ticket` is answered, at most `timeout`.
    pub(crate) fn wait(
        &self,
        ticket: &Ticket,
        workers: &dyn Workers,
        timeout: Duration,
    ) -> Result<Completion, Error> {
        // Before the lock, which another thread may have held when this process was forked.
        self.heap.check_process()?;
        let mut garbage = Freed::default();
        let mut clock: Option<Clock> = None;
        let mut beat = None;
        let runs_by_itself = self.heap.transport.runs_by_itself();
        // Whether to look at the ring for a while before a sleep: until that finds nothing.
        let mut looks = runs_by_itself;
        let mut has_looked = false;
        let mut state = self.lock();
        let outcome = loop {
            state.reap(&mut garbage);
            if let Some(outcome) = ticket.outcome() {
                break outcome.map_err(|why| self.lost(why));
            }
            if looks && !has_looked && !state.has_leader {
                // Before anything that costs time, the clock too: the answer may be close.
                has_looked = true;
                (state, looks) = self.looks_awake(state, timeout);
                if looks {
                    continue;
                }
            }
            let clock = clock.get_or_insert_with(|| Clock::new(timeout, runs_by_itself));
            if let Err(error) = self.heap.check_process() {
                break Err(error);
            }
            let now = Instant::now();
            if now >= clock.deadline {
                break Err(self.stall(&state, clock.started, beat));
            }
            if beat.is_none() && now >= clock.first_look {
                match self.heap.transport.read::<HeartbeatLow>() {
                    Ok(read) => beat = Some(npu_uapi::reg::Register::raw(read)),
                    Err(why) => {
                        // Its ticket says so in the next round, if this is not the answer.
                        state.reap(&mut garbage);
                        state.lose(Loss::Gone(why));
                        self.changed.notify_all();
                        continue;
                    }
                }
            }
            let until =
                if beat.is_none() { clock.first_look.min(clock.deadline) } else { clock.deadline };
            if state.has_leader {
                state.followers += 1;
                let left = until.saturating_duration_since(Instant::now());
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                state.followers -= 1;
                continue;
            }
            if looks {
                (state, looks) = self.looks_awake(state, clock.deadline - now);
                if looks {
                    continue;
                }
            }
            // In this order: a vector that is raised after the count was read ends the wait, one that
            // was raised before stands for a completion that the last look sees.
            let seen = self.heap.transport.interrupts(self.vector);
            if self.id == 0 {
                use npu_uapi::reg::Register;
                let cause = IrqStatus::default().with(IrqStatus::ADMIN, true);
                if let Err(error) = self.heap.transport.write(cause) {
                    break Err(error.into());
                }
            }
            if state.rings.arm_interrupt() == LastLook::Work {
                continue;
            }
            state.has_leader = true;
            drop(state);
            let leader = Leader(self);
            let waited = self.sleep(seen, until, workers);
            drop(leader);
            state = self.lock();
            state.check_index();
            state.awake.slept(clock.started.elapsed());
            looks = runs_by_itself;
            if let Err(why) = waited {
                // What it completed before it went counts.
                state.reap(&mut garbage);
                state.lose(why);
                self.changed.notify_all();
            }
        };
        self.wake_followers(&state);
        drop(state);
        // Unlocked: what they kept may submit when it goes.
        drop(garbage);
        outcome
    }

    /// Sleeps until the vector is raised, at most until `until`, and looks after the device meanwhile:
    /// completions whose interrupts are lost are found, and a device that stopped is.
    ///
    /// # Errors
    /// The queue is lost.
    fn sleep(&self, seen: u64, until: Instant, workers: &dyn Workers) -> Result<(), Loss> {
        let wait = |until| {
            let count = self.heap.transport.wait(self.vector, seen, until, workers);
            count.map(|count| count != seen).map_err(Loss::Gone)
        };
        let look = Instant::now() + LOOK;
        if wait(until.min(look))? {
            return Ok(());
        }
        if self.lock().rings.arm_interrupt() == LastLook::Work {
            // It may be on its way: the device posts first.
            if !wait(Instant::now() + GRACE)? {
                self.heap.missed_interrupts.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(());
        }
        if Instant::now() < look {
            return Ok(());
        }
        use npu_uapi::reg::Register;
        let status = self.heap.transport.read::<regs::Status>().map_err(Loss::Gone)?;
        match status.get(regs::Status::STATE) {
            regs::state::READY => Ok(()),
            state => Err(Loss::Stopped { state }),
        }
    }

    /// Takes what is here off the ring, without waiting.
    pub(crate) fn poll(&self) {
        let mut freed = Freed::default();
        self.lock().reap(&mut freed);
        // The lock is gone before what they kept.
        drop(freed);
    }

    /// Looks for the next completion while others use the queue, as long as that is likely to pay and
    /// at most `most`; whether it came.
    fn looks_awake<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        most: Duration,
    ) -> (MutexGuard<'a, State>, bool) {
        let (awake, next) = (state.awake, state.rings.next());
        state.has_leader = true;
        drop(state);
        let is_found = awake.finds(most, || next.is_here(&self.words));
        state = self.lock();
        state.has_leader = false;
        if is_found {
            // It may be theirs.
            self.wake_followers(&state);
        }
        (state, is_found)
    }

    fn wake_followers(&self, state: &State) {
        if state.followers > 0 {
            self.changed.notify_all();
        }
    }

    fn beat(&self) -> Option<u32> {
        use npu_uapi::reg::Register;
        self.heap.transport.read::<HeartbeatLow>().ok().map(Register::raw)
    }

    fn stall(&self, state: &State, started: Instant, beat: Option<u32>) -> Error {
        use npu_uapi::reg::Register;
        let status = self.heap.transport.read::<regs::Status>().ok();
        Error::Timeout(Box::new(Stall {
            waited: started.elapsed(),
            queue: self.id,
            in_flight: state.rings.in_flight(),
            state: status.map(|status| status.get(regs::Status::STATE)),
            has_moved: beat.is_some() && beat != self.beat(),
            missed_interrupts: self.heap.missed_interrupts.load(Ordering::Relaxed),
        }))
    }

    /// Ends every wait with `why`. What is pending stays alive: the device may still use it.
    pub(crate) fn lose(&self, why: Loss) {
        let mut state = self.lock();
        state.lose(why);
        self.changed.notify_all();
        drop(state);
        self.heap.transport.wake(self.vector);
    }

    /// Frees what unanswered submissions kept. The device has made its last access for this queue.
    pub(crate) fn release(&self) {
        // Unlocked: what they kept may submit when it goes.
        let pending = self.lock().pending.take();
        drop(pending);
    }

    /// Entries in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.lock().rings.in_flight()
    }
}

/// How long a wait sleeps before it looks whether an interrupt was lost or the device stopped.
const LOOK: Duration = Duration::from_millis(100);

/// How much later than its completion an interrupt may come.
const GRACE: Duration = Duration::from_millis(10);

/// When a long wait looks at the heartbeat of a device that runs by itself.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// A wait without a bound is bounded by this.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The times of one wait.
struct Clock {
    started: Instant,
    deadline: Instant,
    first_look: Instant,
}

impl Clock {
    fn new(timeout: Duration, runs_by_itself: bool) -> Self {
        let started = Instant::now();
        let deadline = started.checked_add(timeout).unwrap_or_else(|| started + FAR);
        // A look at the heartbeat is a round trip to a device that runs by itself: long waits begin
        // without one, which they mostly end without needing.
        let is_long = runs_by_itself && timeout >= FIRST_LOOK * 4;
        let first_look = if is_long { started + FIRST_LOOK } else { started };
        Self { started, deadline, first_look }
    }
}

/// The right to sleep in the transport; gives it back also when a worker panics.
struct Leader<'a>(&'a Queue);

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_leader = false;
        self.0.wake_followers(&state);
    }
}

impl State {
    /// A ticket for `job`.
    fn ticket(&mut self, job: u32) -> Arc<Ticket> {
        let mut spare = self.spare.iter_mut().enumerate();
        let free = spare.find_map(|(at, ticket)| Arc::get_mut(ticket).map(|ticket| (at, ticket)));
        let new = Ticket { job, outcome: OnceLock::new() };
        match free {
            Some((at, ticket)) => {
                *ticket = new;
                self.spare.swap_remove(at)
            }
            None => {
                // All of them are held by who does not ask for their outcome: they serve nobody here.
                self.spare.clear();
                Arc::new(new)
            }
        }
    }

    /// Takes completions off the ring and answers their tickets; adds what these kept to `freed`.
    fn reap(&mut self, freed: &mut Freed) {
        while self.lost.is_none() {
            let completion = match self.rings.reap() {
                Ok(Some(words)) => Completion::from_words(words),
                Ok(None) => break,
                Err(error) => {
                    self.lose(Loss::Ring(error));
                    break;
                }
            };
            let Some(Entry { ticket, kept }) = self.pending.remove(completion.job) else {
                self.lose(Loss::Stray { job: completion.job });
                break;
            };
            let _ = ticket.outcome.set(Ok(completion));
            if self.spare.len() < SPARE_TICKETS {
                self.spare.push(ticket);
            }
            freed.push(kept);
        }
    }

    /// Ends the queue when the device's index cannot be.
    fn check_index(&mut self) {
        if let Err(error) = self.rings.check_index() {
            self.lose(Loss::Ring(error));
        }
    }

    fn lose(&mut self, why: Loss) {
        let why = self.lost.get_or_insert(why);
        for ticket in self.pending.tickets() {
            let _ = ticket.outcome.set(Err(why.clone()));
        }
    }
}
