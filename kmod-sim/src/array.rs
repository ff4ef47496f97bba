//! The MAC array of a server: one, shared by the functions of all its clients.
//!
//! ```text
//!   function ── Seat ──acquire──> waits ──┐ by band, then virtual time (`fair`)
//!                                         v
//!              Grant <────────────── one holder, on all workers of the array
//!                │  goes from command to command until it is asked to give the array back
//!                └─ drop, or renew
//! ```
//!
//! Nothing here has a thread. The first of those who wait is the clock: it asks the holder to give the
//! array back, at once where its own band is higher, after a slice where they are equal; and it ends, as
//! hung, a holder that has not come to the end of a chunk within the device's `hang_ms` of being asked.
//! A holder that nobody waits for pays a few atomic stores for each command.

mod fair;

use crate::kernel::Stop;
use crate::kernel::control::{Engine, LOOK_EVERY, Lookout, Place};
use fair::Fair;
use npu_uapi::queue::priority;
use npu_uapi::workers::Workers;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a holder keeps the array while others of its band wait.
const SLICE: Duration = Duration::from_millis(2);

/// A MAC array, with the threads that compute for whoever holds it.
pub struct Array {
    workers: Box<dyn Workers + Send>,
    hang: Duration,
    shared: Mutex<Shared>,
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array").field("shared", &self.shared).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Shared {
    members: BTreeMap<u64, Arc<Member>>,
    last_member: u64,
    fair: Fair,
    holder: Option<Holder>,
}

#[derive(Debug)]
struct Holder {
    member: u64,
    band: usize,
    /// Virtual time at the grant.
    start: u64,
    since: Instant,
    /// When it was asked to give the array back.
    asked: Option<Instant>,
}

/// A function, as the array sees it.
#[derive(Debug)]
struct Member {
    engine: Arc<Engine>,
    /// Its turn has come, it is the first of those who wait, or it is to look at its engine.
    turn: Condvar,
    is_asked: AtomicBool,
    is_stopped: AtomicBool,
    account: Account,
    /// Where its grants ended, by band.
    finish: [AtomicU64; priority::COUNT],
}

/// What the holder has spent in its grant, readable while it computes.
#[derive(Debug, Default)]
struct Account {
    spent: AtomicU64,
    /// Cost of the command under way, and the part of it that was paid for in earlier grants.
    cost: AtomicU64,
    paid: AtomicU64,
}

impl Member {
    /// Cycles of this grant so far, the part of the command under way included.
    fn spent(&self) -> u64 {
        let part = self.engine.place().of(self.account.cost.load(Relaxed));
        let new = part.saturating_sub(self.account.paid.load(Relaxed));
        self.account.spent.load(Relaxed).saturating_add(new)
    }
}

impl Array {
    /// An array that computes with `workers`, and ends a holder that does not give it back for `hang`.
    pub fn new(workers: Box<dyn Workers + Send>, hang: Duration) -> Self {
        Self { workers, hang, shared: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // What is inside is consistent between any two calls here.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn first(&self) -> Option<&Arc<Member>> {
        self.members.get(&self.fair.first()?.member)
    }

    /// Tells the first of those who wait that it is.
    fn notify_first(&self) {
        if let Some(member) = self.first() {
            member.turn.notify_one();
        }
    }

    /// Grants the array to the first of those who wait, if nobody has it.
    fn grant(&mut self) {
        if self.holder.is_some() {
            return;
        }
        if let Some(wish) = self.fair.take_first() {
            let (member, band, start) = (wish.member, wish.band, wish.start);
            let since = Instant::now();
            self.holder = Some(Holder { member, band, start, since, asked: None });
            if let Some(member) = self.members.get(&member) {
                member.is_asked.store(false, Relaxed);
                member.account.spent.store(0, Relaxed);
                member.turn.notify_one();
            }
            self.notify_first();
        }
    }

    /// Ends the grant of the holder; where it stands in virtual time now.
    fn take_back(&mut self) -> Option<(Holder, u64)> {
        let holder = self.holder.take()?;
        let member = self.members.get(&holder.member)?;
        let finish = holder.start.saturating_add(member.spent());
        member.finish[holder.band].store(finish, Relaxed);
        Some((holder, finish))
    }

    /// Asks the holder for the array on behalf of a first waiter of `band`, if it is time; when to come
    /// back, if ever.
    fn ask(&mut self, now: Instant, band: usize, hang: Duration) -> Option<Duration> {
        let holder = self.holder.as_mut()?;
        let member = self.members.get(&holder.member)?;
        if let Some(asked) = holder.asked {
            let waited = now.saturating_duration_since(asked);
            if waited < hang {
                return Some(hang - waited);
            }
            member.engine.hang();
            return Some(hang);
        }
        let had = now.saturating_duration_since(holder.since);
        if band > holder.band {
            return None;
        }
        if band == holder.band && had < SLICE {
            return Some(SLICE - had);
        }
        holder.asked = Some(now);
        // In this order: whoever clears the request looks at this behind it.
        member.is_asked.store(true, Relaxed);
        member.engine.preempt();
        Some(hang)
    }
}

/// A function's place at an array.
#[derive(Debug)]
pub(crate) struct Seat {
    array: Arc<Array>,
    id: u64,
    member: Arc<Member>,
}

impl Seat {
    pub(crate) fn new(array: Arc<Array>, engine: Arc<Engine>) -> Self {
        let member = Arc::new(Member {
            engine,
            turn: Condvar::new(),
            is_asked: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            account: Account::default(),
            finish: Default::default(),
        });
        let mut shared = array.lock();
        shared.last_member += 1;
        let id = shared.last_member;
        shared.members.insert(id, Arc::clone(&member));
        drop(shared);
        Self { array, id, member }
    }

    /// Who computes for the holder.
    pub(crate) fn workers(&self) -> &dyn Workers {
        self.array.workers.as_ref()
    }

    /// To be called when the engine was asked to end: a wait for the array is over then.
    pub(crate) fn wake(&self) {
        // Under the lock: the waiter is either before its look at the engine or asleep.
        let _shared = self.array.lock();
        self.member.turn.notify_one();
    }

    /// Ends waits for the array, now and for ever.
    pub(crate) fn stop(&self) {
        self.member.is_stopped.store(true, Relaxed);
        self.member.engine.preempt();
        self.wake();
    }

    /// Waits for the array in `band`.
    ///
    /// # Errors
    /// The engine was asked to end, or something else comes first.
    pub(crate) fn acquire(
        &self,
        band: usize,
        lookout: Option<&Lookout<'_>>,
    ) -> Result<Grant<'_>, Stop> {
        let mut shared = self.array.lock();
        let held = shared.holder.as_ref().filter(|holder| holder.band == band);
        let held = held.and_then(|holder| {
            Some(holder.start.saturating_add(shared.members.get(&holder.member)?.spent()))
        });
        let finish = self.member.finish[band].load(Relaxed);
        shared.fair.arrive(self.id, band, finish, held);
        self.wait(shared, band, lookout)
    }

    fn wait<'a>(
        &'a self,
        mut shared: MutexGuard<'a, Shared>,
        band: usize,
        lookout: Option<&Lookout<'_>>,
    ) -> Result<Grant<'a>, Stop> {
        shared.grant();
        loop {
            let is_mine = shared.holder.as_ref().is_some_and(|holder| holder.member == self.id);
            let end = match self.member.engine.end() {
                None if self.member.is_stopped.load(Relaxed) => Some(Stop::Preempted),
                end => end,
            };
            if is_mine {
                let grant = Grant { seat: self, band, answered: 0 };
                drop(shared);
                return end.map_or(Ok(grant), Err);
            }
            if let Some(stop) = end {
                return Err(self.withdraw(&mut shared, stop));
            }
            let is_first = shared.fair.first().is_some_and(|wish| wish.member == self.id);
            let ask = is_first.then(|| shared.ask(Instant::now(), band, self.array.hang)).flatten();
            let nap = lookout.map(|_| LOOK_EVERY);
            let nap = nap.into_iter().chain(ask).min();
            let turn = &self.member.turn;
            shared = match nap {
                None => turn.wait(shared).unwrap_or_else(PoisonError::into_inner),
                Some(nap) => {
                    turn.wait_timeout(shared, nap).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            if let Some(lookout) = lookout {
                // The look takes the function's lock, under which others take the array's.
                drop(shared);
                let found = lookout.look();
                shared = self.array.lock();
                let is_mine = shared.holder.as_ref().is_some_and(|holder| holder.member == self.id);
                if found && !is_mine {
                    return Err(self.withdraw(&mut shared, Stop::Preempted));
                }
            }
        }
    }

    fn withdraw(&self, shared: &mut Shared, stop: Stop) -> Stop {
        shared.fair.withdraw(self.id);
        shared.notify_first();
        stop
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.array.lock().members.remove(&self.id);
    }
}

/// The array, held by one function until this is dropped.
#[derive(Debug)]
pub(crate) struct Grant<'a> {
    seat: &'a Seat,
    band: usize,
    /// Entries that were answered since the array last computed.
    answered: u32,
}

/// Entries that a holder may answer in a row: who fails one beside each job keeps its turn, and an endless
/// row of entries that compute nothing does not.
const MOST_ANSWERED: u32 = 8;

impl<'a> Grant<'a> {
    /// The array after one more entry that needs it for nothing; `None` where others are to have it.
    pub(crate) fn after_answer(mut self) -> Option<Self> {
        self.answered += 1;
        (self.answered < MOST_ANSWERED).then_some(self)
    }

    /// The array after it has computed.
    pub(crate) fn computed(&mut self) {
        self.answered = 0;
    }

    /// The band it was granted in.
    pub(crate) fn band(&self) -> usize {
        self.band
    }

    /// Whether others are to have the array first.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.seat.member.is_asked.load(Relaxed)
    }

    /// Lets others go first where they come first, then goes on.
    ///
    /// # Errors
    /// As of [`Seat::acquire`]; then the array is given back.
    pub(crate) fn renew(self, lookout: Option<&Lookout<'_>>) -> Result<Self, Stop> {
        let (seat, band) = (self.seat, self.band);
        // What the drop would do is done here, at once with the new wish.
        std::mem::forget(self);
        let mut shared = seat.array.lock();
        if let Some((holder, finish)) = shared.take_back() {
            shared.fair.stay(seat.id, holder.band, finish);
        }
        seat.wait(shared, band, lookout)
    }

    /// A command of `cost` cycles begins, of which `place` was done and paid for before.
    pub(crate) fn begin(&self, cost: u64, place: Place) {
        let account = &self.seat.member.account;
        account.paid.store(place.of(cost), Relaxed);
        account.cost.store(cost, Relaxed);
    }

    /// It has come to `place`, or to its end.
    pub(crate) fn end(&self, place: Option<Place>) {
        let account = &self.seat.member.account;
        let cost = account.cost.swap(0, Relaxed);
        let part = place.map_or(cost, |place| place.of(cost));
        let new = part.saturating_sub(account.paid.load(Relaxed));
        account.spent.store(account.spent.load(Relaxed).saturating_add(new), Relaxed);
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        let mut shared = self.seat.array.lock();
        if let Some((holder, finish)) = shared.take_back() {
            shared.fair.leave(holder.band, finish);
        }
        shared.grant();
    }
}

#[cfg(test)]
mod tests;
