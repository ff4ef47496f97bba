//! Faults on demand: the device misbehaves in a chosen way at a chosen moment, for tests of its drivers.
//!
//! ```text
//! device string  inject=FAULT[+FAULT..]  ┐
//! management socket  "fault": "FAULT.."  ┴─> Plan ─> Injector of a function ─> asked where it can happen
//! ```
//!
//! A fault is `KIND[@N][:ARG]`: at the `N`-th occurrence from now, the first unless said otherwise. The
//! places that ask do so with one relaxed load while nothing is armed. What is armed outlives resets of the
//! function, as a broken part would.

use crate::kernel::{Control, Stop};
use npu_uapi::command::Command;
use npu_uapi::extent::accesses;
use npu_uapi::queue::Completion;
use npu_uapi::status::Status;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most faults in one [`Plan`], and most that one function has armed.
pub const MOST_FAULTS: usize = 8;
/// Longest delay: whoever waits for a device that is late must be able to wait for its end.
const MOST_MS: u32 = 60_000;
/// How long a slow command sleeps between two looks whether it is to end.
const STEP: Duration = Duration::from_millis(1);

macro_rules! kinds {
    ($( $(#[$doc:meta])* $kind:ident = $bit:literal, $name:literal, $argument:expr; )*) => {
        /// What can go wrong.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[non_exhaustive]
        pub enum Kind {
            $( $(#[$doc])* $kind = $bit, )*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// Its name in a device string.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            fn argument(self) -> Argument {
                match self { $(Self::$kind => $argument,)* }
            }
        }
    };
}

kinds! {
    /// An interrupt is not delivered.
    LostInterrupt = 0, "lost-interrupt", Argument::Count;
    /// A command makes no progress until something ends its job.
    StuckEngine = 1, "stuck-engine", Argument::Count;
    /// An access to memory fails: of a table or an image, or of an operand when its job begins.
    DmaError = 2, "dma-error", Argument::Count;
    /// Each command takes longer, from the n-th on.
    SlowDma = 3, "slow-dma", Argument::Millis;
    /// The completion of a job names another job.
    CorruptCompletion = 4, "corrupt-completion", Argument::Count;
    /// After an entry of an I/O queue was fetched, the device publishes an index that cannot be.
    WrongRingIndex = 5, "wrong-ring-index", Argument::Count;
    /// The reply to a message comes late; in the driver's process, the value of a register.
    DelayedReply = 6, "delayed-reply", Argument::Millis;
    /// An access of a command to its first operand fails, when it begins to compute.
    BusError = 7, "bus-error", Argument::Count;
}

const KINDS: usize = Kind::ALL.len();

/// What the number behind the colon is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Argument {
    /// How many occurrences in a row, one by default.
    Count,
    /// Milliseconds, which have no default.
    Millis,
}

impl Kind {
    fn bit(self) -> u32 {
        1 << self.index()
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Why text is no fault.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InjectError {
    /// No such kind.
    #[error("`{found}` is no fault; write KIND[@N][:ARG] with one of {}", names())]
    Kind {
        /// What was found.
        found: String,
    },
    /// A number is none, or out of range.
    #[error("fault `{found}`: {want}")]
    Number {
        /// The fault.
        found: String,
        /// What it must be.
        want: String,
    },
    /// Too many.
    #[error("more than {MOST_FAULTS} faults at once; inject the others later")]
    TooMany,
}

fn names() -> String {
    Kind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// One fault that is to happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    kind: Kind,
    /// Occurrences until it does: 1 is the next.
    nth: u32,
    argument: u32,
}

impl Fault {
    fn parse(text: &str) -> Result<Self, InjectError> {
        let (head, argument) = match text.split_once(':') {
            Some((head, argument)) => (head, Some(argument)),
            None => (text, None),
        };
        let (name, nth) = match head.split_once('@') {
            Some((name, nth)) => (name, Some(nth)),
            None => (head, None),
        };
        let kind = Kind::ALL.iter().copied().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| InjectError::Kind { found: text.to_owned() })?;
        let number = |digits: &str, most: u32, what: &str| {
            let number = digits.parse().ok().filter(|n| (1..=most).contains(n));
            number.ok_or_else(|| InjectError::Number {
                found: text.to_owned(),
                want: format!("{what} is a number from 1 to {most}"),
            })
        };
        let nth = nth.map_or(Ok(1), |nth| number(nth, u32::MAX, "what follows @"))?;
        let argument = match (kind.argument(), argument) {
            (Argument::Count, None) => 1,
            (Argument::Count, Some(count)) => {
                number(count, u32::MAX, "the count behind the colon")?
            }
            (Argument::Millis, millis) => number(
                millis.unwrap_or(""),
                MOST_MS,
                "behind a colon must stand the ms it takes, which",
            )?,
        };
        Ok(Self { kind, nth, argument })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.kind.name(), self.nth, self.argument)
    }
}

/// Faults, in the order of their text.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Plan([Option<Fault>; MOST_FAULTS]);

impl Plan {
    /// Reads `FAULT[+FAULT..]`.
    ///
    /// # Errors
    /// What is no fault, and more of them than [`MOST_FAULTS`].
    pub fn parse(text: &str) -> Result<Self, InjectError> {
        let mut plan = Self::default();
        for (at, fault) in text.split('+').enumerate() {
            let fault = Fault::parse(fault)?;
            *plan.0.get_mut(at).ok_or(InjectError::TooMany)? = Some(fault);
        }
        Ok(plan)
    }

    /// Whether there is no fault in it.
    pub fn is_empty(&self) -> bool {
        self.faults().next().is_none()
    }

    fn faults(&self) -> impl Iterator<Item = Fault> {
        self.0.iter().flatten().copied()
    }
}

/// The faults that one function has before it, and those that it had.
#[derive(Debug, Default)]
pub struct Injector {
    /// A bit for each kind that is armed.
    armed: AtomicU32,
    state: Mutex<State>,
    /// [`Injector::clear`] was called.
    cleared: Condvar,
    happened: [AtomicU64; KINDS],
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    clears: u64,
}

impl Injector {
    /// An injector with the faults of `plan` armed.
    pub fn new(plan: &Plan) -> Self {
        let new = Self::default();
        // A plan holds no more than an injector does.
        let _ = new.arm(plan);
        new
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves a list of faults whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, faults: &[Fault]) {
        // Relaxed: who sees it late counts from a later occurrence. The list has its own lock.
        self.armed.store(faults.iter().fold(0, |bits, fault| bits | fault.kind.bit()), Relaxed);
    }

    /// Arms the faults of `plan`, besides those that are armed; counts begin now.
    ///
    /// # Errors
    /// There would be more than [`MOST_FAULTS`]; none was added.
    pub fn arm(&self, plan: &Plan) -> Result<(), InjectError> {
        let faults = &mut self.lock().faults;
        if faults.len() + plan.faults().count() > MOST_FAULTS {
            return Err(InjectError::TooMany);
        }
        faults.extend(plan.faults());
        self.publish(faults);
        Ok(())
    }

    /// Disarms everything, and ends delays that are under way.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.clears += 1;
        self.publish(&state.faults);
        self.cleared.notify_all();
    }

    /// What is armed, as text.
    pub fn armed(&self) -> Vec<String> {
        self.lock().faults.iter().map(Fault::to_string).collect()
    }

    /// How often a fault of `kind` has happened.
    pub fn happened(&self, kind: Kind) -> u64 {
        self.happened[kind.index()].load(Relaxed)
    }

    /// One occurrence of what `kind` can spoil: its argument where it does.
    #[inline]
    pub fn fires(&self, kind: Kind) -> Option<u32> {
        if self.armed.load(Relaxed) & kind.bit() == 0 { None } else { self.count(kind) }
    }

    #[cold]
    fn count(&self, kind: Kind) -> Option<u32> {
        let faults = &mut self.lock().faults;
        let mut fired = None;
        faults.retain_mut(|fault| {
            if fault.kind != kind {
                return true;
            }
            if fault.nth > 1 {
                fault.nth -= 1;
                return true;
            }
            fired = Some(fault.argument);
            match (kind, kind.argument()) {
                // A slow memory stays slow.
                (Kind::SlowDma, _) => true,
                (_, Argument::Millis) => false,
                (_, Argument::Count) => {
                    fault.argument -= 1;
                    fault.argument > 0
                }
            }
        });
        self.publish(faults);
        self.happened[kind.index()].fetch_add(fired.is_some().into(), Relaxed);
        fired
    }

    /// Turns a completion into one that answers no job.
    pub(crate) fn corrupt(&self, completion: &mut Completion) {
        if self.fires(Kind::CorruptCompletion).is_some() {
            completion.job ^= 0x8000_0000;
            completion.cycles ^= u64::MAX;
        }
    }

    /// Holds a command up where memory is slow, until its job is to end. It beats meanwhile.
    pub(crate) fn slow(&self, control: &Control<'_>) {
        if let Some(millis) = self.fires(Kind::SlowDma) {
            let end = Instant::now() + Duration::from_millis(millis.into());
            while control.engine.end().is_none() && Instant::now() < end {
                std::thread::sleep(STEP.min(end.saturating_duration_since(Instant::now())));
                control.engine.beat();
            }
        }
    }

    /// Whether memory may be slow.
    pub(crate) fn may_be_slow(&self) -> bool {
        self.armed.load(Relaxed) & Kind::SlowDma.bit() != 0
    }

    /// Holds a command up where the engine is stuck, without a beat, until its job is ended.
    pub(crate) fn stick(&self, control: &Control<'_>) -> Result<(), Stop> {
        if self.fires(Kind::StuckEngine).is_some() { control.stall(None) } else { Ok(()) }
    }

    /// Fails the first access of `command` where the bus is to.
    pub(crate) fn spoil(&self, command: &Command) -> Result<(), Stop> {
        if self.armed.load(Relaxed) & Kind::BusError.bit() == 0 {
            return Ok(());
        }
        // A command that touches no memory is no occurrence.
        let Some(access) = accesses(command).ok().and_then(|all| all.iter().next().copied()) else {
            return Ok(());
        };
        match self.fires(Kind::BusError) {
            Some(_) => Err(Stop::Fault { access, status: Status::DMA_ERROR }),
            None => Ok(()),
        }
    }

    /// Makes a reply late where it is to be.
    #[inline]
    pub fn delay_reply(&self) {
        if let Some(millis) = self.fires(Kind::DelayedReply) {
            let late = Duration::from_millis(millis.into());
            let state = self.lock();
            let clears = state.clears;
            let waited = self.cleared.wait_timeout_while(state, late, |now| now.clears == clears);
            drop(waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Engine;

    #[test]
    fn a_fault_happens_at_its_occurrence_as_often_as_it_says_and_no_more() {
        let plan = Plan::parse("lost-interrupt@3:2+dma-error").unwrap();
        let injector = Injector::new(&plan);
        let fired: Vec<bool> =
            (0..6).map(|_| injector.fires(Kind::LostInterrupt).is_some()).collect();
        assert_eq!(fired, [false, false, true, true, false, false]);
        assert_eq!(injector.happened(Kind::LostInterrupt), 2);
        assert_eq!(injector.armed(), ["dma-error@1:1"]);
        injector.clear();
        assert_eq!((injector.fires(Kind::DmaError), injector.armed().len()), (None, 0));
    }

    #[test]
    fn what_is_slow_stays_slow_and_what_is_late_is_late_once() {
        let injector = Injector::new(&Plan::parse("slow-dma@2:5+delayed-reply:7").unwrap());
        let slow: Vec<_> = (0..4).map(|_| injector.fires(Kind::SlowDma)).collect();
        assert_eq!(slow, [None, Some(5), Some(5), Some(5)]);
        let late: Vec<_> = (0..2).map(|_| injector.fires(Kind::DelayedReply)).collect();
        assert_eq!(late, [Some(7), None]);
    }

    #[test]
    fn a_stuck_command_is_held_until_its_job_is_to_end() {
        let injector = Injector::new(&Plan::parse("stuck-engine").unwrap());
        let engine = Engine::default();
        let control = Control { hang: Duration::from_secs(600), ..Control::new(&engine) };
        std::thread::scope(|scope| {
            let held = scope.spawn(|| injector.stick(&control));
            while injector.happened(Kind::StuckEngine) == 0 {
                std::thread::yield_now();
            }
            assert!(!held.is_finished());
            engine.abort();
            assert_eq!(held.join().unwrap(), Err(Stop::Aborted));
        });
        assert_eq!(engine.heartbeat(), 0);
    }

    #[test]
    fn a_delay_ends_when_it_is_cleared() {
        let injector = Injector::new(&Plan::parse("delayed-reply:60000").unwrap());
        let started = Instant::now();
        std::thread::scope(|scope| {
            let late = scope.spawn(|| injector.delay_reply());
            while injector.happened(Kind::DelayedReply) == 0 {
                std::thread::yield_now();
            }
            // The one that is late may not wait yet.
            while !late.is_finished() {
                injector.clear();
                std::thread::yield_now();
            }
        });
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn what_is_no_fault_is_refused_with_what_is() {
        let message = Plan::parse("stuck").unwrap_err().to_string();
        for kind in Kind::ALL {
            assert!(message.contains(kind.name()), "{message}");
        }
        for bad in ["", "dma-error@0", "dma-error@x", "slow-dma", "slow-dma:60001", "dma-error:0"] {
            assert!(Plan::parse(bad).is_err(), "{bad}");
        }
        assert!(Plan::parse("slow-dma").unwrap_err().to_string().contains("ms"));
        let nine = ["dma-error"; 9].join("+");
        assert_eq!(Plan::parse(&nine), Err(InjectError::TooMany));
        let full = Injector::new(&Plan::parse(&["dma-error"; 8].join("+")).unwrap());
        assert_eq!(full.arm(&Plan::parse("dma-error").unwrap()), Err(InjectError::TooMany));
        assert_eq!(full.armed().len(), 8);
    }
}
