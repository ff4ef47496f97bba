//! One step of a function, by the thread that drives it: what happens with the lock released.
//!
//! ```text
//!   State::step ──> Task ──> the array, where it is shared ──> kernel ──> State::ended
//!      locked                      unlocked, watched                         locked
//! ```

use crate::array::{Grant, Seat};
use crate::device::Function;
use crate::fault::Problem;
use crate::guest::Unreachable;
use crate::job::{Task, What};
use crate::kernel::control::{Control, Lookout};
use crate::kernel::{self, Stop};
use crate::program::Program;
use crate::saturation::{self, Counted};
use crate::sram::POISON;
use crate::state::{Ended, State, Step};
use crate::times::{self, Timed};
use npu_uapi::addr::Iova;
use npu_uapi::command::Command;
use npu_uapi::queue::LoadProgram;
use npu_uapi::regs::ABI_WITH_NAMES;
use npu_uapi::status::Status;
use npu_uapi::workers::Workers;
use std::mem::offset_of;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// Bytes of a program image that are copied at a time, under the lock.
const IMAGE_PIECE: usize = 256 << 10;
/// Bytes that are copied or filled without the array.
const SHORT_MOVE: u64 = 64 << 10;

/// Looks for work between two looks at the clock: a microsecond or so.
const LOOKS: u32 = 32;

impl Function {
    /// Does the next thing; false when there is nothing until a kick. `held` is the array, which the
    /// thread keeps from one step to the next as long as nobody asks for it.
    pub(crate) fn step<'a>(&'a self, workers: &dyn Workers, held: &mut Option<Grant<'a>>) -> bool {
        self.step_from(self.lock(), workers, held)
    }

    /// Looks for something to do for as long as the lock may be held, and does what it finds.
    pub(crate) fn look<'a>(&'a self, workers: &dyn Workers, held: &mut Option<Grant<'a>>) -> bool {
        let state = self.lock();
        for _ in 0..LOOKS {
            if state.has_work() {
                return self.step_from(state, workers, held);
            }
            std::hint::spin_loop();
        }
        drop(state);
        // Others may have the array while this thread looks on.
        *held = None;
        false
    }

    fn step_from<'a>(
        &'a self,
        mut state: MutexGuard<'_, State>,
        workers: &dyn Workers,
        held: &mut Option<Grant<'a>>,
    ) -> bool {
        let task = match state.step() {
            Step::Execute(task) => task,
            Step::Again => {
                self.show(&state, false);
                self.unlock(state);
                *held = held.take().and_then(Grant::after_answer);
                return true;
            }
            Step::Begun => {
                self.show(&state, false);
                return true;
            }
            Step::Idle => {
                drop(state);
                *held = None;
                return false;
            }
        };
        // Under the lock: whoever sees the command active after this asks this command to end.
        self.engine.begin(task.place);
        self.show(&state, true);
        drop(state);
        let mut ending = Ending { function: self, task: Some(task), how: Some(Ended::Broken) };
        self.engine.beat();
        ending.how = ending.task.as_ref().map(|task| self.execute(task, workers, held));
        true
    }

    fn execute<'a>(
        &'a self,
        task: &Task,
        workers: &dyn Workers,
        held: &mut Option<Grant<'a>>,
    ) -> Ended {
        let look = || self.comes_first(task.band);
        let lookout = Lookout::new(&look);
        let hang = self.config().hang;
        let control = Control { lookout: Some(&lookout), hang, ..Control::new(&self.engine) };
        // These wait for memory, or compute nothing: others may have the array meanwhile.
        let result = match &task.what {
            What::Nothing => {
                *held = None;
                return Ended::Done(None);
            }
            What::Load(entry) => {
                *held = None;
                return self.load(entry);
            }
            What::Gather => {
                *held = None;
                task.work.slots.gather(&control).map(|()| None)
            }
            What::Scatter => {
                *held = None;
                task.work.slots.scatter(&control).map(|()| None)
            }
            _ => {
                if self.injector.may_be_slow() {
                    *held = None;
                    self.injector.slow(&control);
                }
                self.compute(task, workers, held, &control)
            }
        };
        match result {
            Ok(counted) => Ended::Done(counted),
            Err(stop) => Ended::Stopped(stop),
        }
    }

    /// What the array does; what was counted in its result.
    fn compute<'a>(
        &'a self,
        task: &Task,
        workers: &dyn Workers,
        held: &mut Option<Grant<'a>>,
        control: &Control<'_>,
    ) -> Result<Option<Counted>, Stop> {
        let workers = match &self.seat {
            None => workers,
            Some(_) if is_short_move(task) => workers,
            Some(seat) => {
                hold(seat, task.band, held, control.lookout)?;
                seat.workers()
            }
        };
        let index = match task.what {
            What::Command(index) => index,
            What::Poison(bank) => {
                return kernel::poison(bank, POISON, workers, control).map(|()| None);
            }
            _ => return Ok(None),
        };
        let Some((command, cost)) = task.work.command(index) else { return Ok(None) };
        if let Some(grant) = &held {
            grant.begin(cost.cycles, task.place);
        }
        let slots = &task.work.slots.extents;
        let is_seen = self.telemetry.get().is_some();
        let began = (is_seen || self.config().is_timed).then(Instant::now);
        if is_seen {
            self.busy_since.store(self.now_ns(), Relaxed);
        }
        let run = || kernel::execute(command, slots, self.isa(), workers, control);
        let spoilt = self.injector.stick(control).and_then(|()| self.injector.spoil(command));
        let result = spoilt.and_then(|()| run());
        if let Some(took) = began.map(|began| began.elapsed()) {
            // Relaxed: this thread is the one that writes, and the sum may lag behind.
            self.busy_since.store(0, Relaxed);
            self.busy.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
            if self.config().is_timed {
                times::record(Timed { command: *command, index, took });
            }
        }
        if let Some(grant) = held {
            grant.end(result.is_err().then(|| self.engine.place()));
            grant.computed();
        }
        result?;
        if !self.counts_saturation() {
            return Ok(None);
        }
        // Behind the clock, and with the array given back: who waits for it waits no longer than without.
        *held = None;
        saturation::count(command, slots, &self.engine)
    }

    /// Whether an entry waits that comes before jobs of `band`. Where the lock is taken, not now.
    fn comes_first(&self, band: usize) -> bool {
        self.try_lock().is_some_and(|state| state.has_entry_before(band))
    }

    /// LOAD_PROGRAM: the copy piece by piece, verified without the lock.
    fn load(&self, entry: &LoadProgram) -> Ended {
        let read = |start: Iova, bytes: &mut [u8]| {
            let (mut at, len) = (start, bytes.len() as u64);
            for piece in bytes.chunks_mut(IMAGE_PIECE) {
                if self.engine.end().is_some() {
                    break;
                }
                let read = self.lock().guest.read(at, piece);
                read.map_err(|fault| Unreachable { iova: start, len, ..fault })?;
                // It cannot wrap: the whole range was found.
                at = at.checked_add(piece.len() as u64).unwrap_or(at);
            }
            Ok::<(), Problem>(())
        };
        let is_to_end = || self.engine.end().is_some();
        let limits = &self.config().limits;
        let is_named = entry.names_len != 0 || entry.names != Iova::default();
        let loaded = if is_named && self.config().abi.1 < ABI_WITH_NAMES {
            let (at, len) = (offset_of!(LoadProgram, names), size_of::<Iova>());
            Err(Problem::new(Status::RESERVED_FIELD).at(at as u64, len as u64).into())
        } else {
            Program::load(entry, limits, read, &is_to_end)
        };
        match self.engine.end() {
            Some(stop) => Ended::Stopped(stop),
            None => Ended::Loaded(loaded),
        }
    }
}

/// Whether it only moves a few bytes, which takes no longer than to hand the array over.
fn is_short_move(task: &Task) -> bool {
    let What::Command(index) = task.what else { return false };
    match task.work.command(index) {
        Some((Command::Copy(copy), _)) => copy.len <= SHORT_MOVE,
        Some((Command::Fill(fill), _)) => fill.len <= SHORT_MOVE,
        _ => false,
    }
}

/// Has `held` be the array, in `band`.
fn hold<'a>(
    seat: &'a Seat,
    band: usize,
    held: &mut Option<Grant<'a>>,
    lookout: Option<&Lookout<'_>>,
) -> Result<(), Stop> {
    *held = match held.take() {
        Some(grant) if grant.band() == band && !grant.is_asked_for() => Some(grant),
        Some(grant) if grant.band() == band => Some(grant.renew(lookout)?),
        other => {
            drop(other);
            Some(seat.acquire(band, lookout)?)
        }
    };
    Ok(())
}

/// Sees to it that a command that was begun is ended, even where a worker of the caller panics.
struct Ending<'a> {
    function: &'a Function,
    task: Option<Task>,
    how: Option<Ended>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let place = self.function.engine.place();
        let how = self.how.take().unwrap_or(Ended::Broken);
        let Some(task) = self.task.take() else { return };
        let mut state = self.function.lock();
        state.ended(task.band, how, place);
        state.keep(task.work);
        self.function.show(&state, false);
        let is_awaited = state.is_awaited();
        self.function.unlock(state);
        // Waking costs a system call even where nobody sleeps.
        if is_awaited {
            self.function.ended.notify_all();
        }
    }
}
