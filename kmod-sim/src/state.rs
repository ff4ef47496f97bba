//! What a function is made of behind its lock: the blocks, and what passes between them.
//!
//! No method here waits or computes; commands execute in [`crate::device`], outside the lock.

use crate::config::Config;
use crate::counters::charge;
use crate::fault::{FaultRing, Problem, Victim};
use crate::front_end::{Answer, header};
use crate::guest::Guest;
use crate::inject::{Injector, Kind};
use crate::interrupt::Signals;
use crate::job::{Running, Task, What, Work};
use crate::kernel::control::Place;
use crate::kernel::{Engine, Stop};
use crate::mortem::{Left, Log, Seen, program_of};
use crate::pci::Pci;
use crate::program::Program;
use crate::queue::{Queue, overlaps};
use crate::recorder::Recorder;
use crate::regs::Registers;
use crate::slots::Bindings;
use crate::sram::Sram;
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::command::ISA_VERSION;
use npu_uapi::event::{Event, kind};
use npu_uapi::queue::{Completion, Counters, access, priority};
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    ABI, AbiRange, AdminBaseHigh, AdminBaseLow, AdminSize, Ctrl, FaultBaseHigh, FaultBaseLow,
    FaultHead, FaultLost, FaultTail, IrqStatus, IsaVersion, MAGIC, Magic, Platform,
    Status as StatusRegister, state,
};
use npu_uapi::ring::{Fetched, Permit};
use npu_uapi::status::Status;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The blocks of a function.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) signals: Arc<Signals>,
    pub(crate) injector: Arc<Injector>,
    pub(crate) pci: Pci,
    pub(crate) regs: Registers,
    pub(crate) guest: Guest,
    pub(crate) sram: Sram,
    pub(crate) faults: FaultRing,
    pub(crate) counters: Counters,
    pub(crate) contexts: BTreeSet<u32>,
    pub(crate) programs: BTreeMap<u32, Arc<Program>>,
    /// Base tables, each with its context.
    pub(crate) tables: BTreeMap<u32, (u32, Bindings)>,
    /// The latest id of a context, program or table.
    pub(crate) last_id: u32,
    pub(crate) admin: Option<Queue>,
    pub(crate) queues: Vec<Queue>,
    /// By band, index in `queues` of the one to look at next.
    turns: [usize; priority::COUNT],
    /// The job of each band that was begun, and what the admin queue loads. One of them is active at most.
    pub(crate) running: [Option<Running>; LOADER + 1],
    pub(crate) resets: u32,
    /// Threads that wait for a command to end.
    awaiting: u32,
    /// The room of a job that has ended, for the next, and that of its table of bindings.
    pub(crate) spare: Option<Arc<Work>>,
    pub(crate) overlay: Bindings,
    /// Shows that commands make progress.
    pub(crate) engine: Arc<Engine>,
    /// What this is, for people.
    pub(crate) origin: String,
    pub(crate) recorder: Recorder,
    pub(crate) log: Log,
    /// What the last job that failed has left.
    pub(crate) last_dump: Option<Arc<[u8]>>,
    /// What was left since somebody took it; kept only where somebody does.
    pub(crate) left: Vec<Left>,
    pub(crate) keeps_dumps: bool,
}

/// What the thread that drives does next.
pub(crate) enum Step {
    /// Nothing now. Before it sleeps it asks [`State::may_sleep`].
    Idle,
    /// An entry was answered: look again.
    Again,
    /// A job was begun: look again.
    Begun,
    /// Execute this part of a job.
    Execute(Task),
}

/// Index in [`State::running`] of what the admin queue loads, behind the bands.
pub(crate) const LOADER: usize = priority::COUNT;

/// How a part of a job ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Done,
    Loaded(Result<Program, Problem>),
    Stopped(Stop),
    /// A kernel panicked.
    Broken,
}

impl State {
    pub(crate) fn new(
        config: Config,
        signals: Arc<Signals>,
        injector: Arc<Injector>,
        (engine, origin): (Arc<Engine>, String),
    ) -> Self {
        let limits = &config.limits;
        let vectors = u16::try_from(limits.vectors).unwrap_or(u16::MAX);
        let sram = Sram::new(usize::try_from(limits.sram_bytes).unwrap_or(usize::MAX >> 1));
        let mut new = Self {
            config,
            signals,
            pci: Pci::new(vectors),
            regs: Registers::new(),
            guest: Guest::new(Arc::clone(&injector)),
            injector,
            sram,
            faults: FaultRing::default(),
            counters: Counters::default(),
            contexts: BTreeSet::new(),
            programs: BTreeMap::new(),
            tables: BTreeMap::new(),
            last_id: 0,
            admin: None,
            queues: Vec::new(),
            turns: [0; priority::COUNT],
            running: Default::default(),
            resets: 0,
            awaiting: 0,
            spare: None,
            overlay: Bindings::default(),
            engine,
            origin,
            recorder: Recorder::new(),
            log: Log::default(),
            last_dump: None,
            left: Vec::new(),
            keeps_dumps: false,
        };
        new.set_constants();
        new
    }

    fn set_constants(&mut self) {
        let (low, high) = (ABI.0.into(), ABI.1.into());
        self.regs.set(Magic::from_raw(MAGIC));
        self.regs.set(AbiRange::default().with(AbiRange::LOW, low).with(AbiRange::HIGH, high));
        self.regs.set(IsaVersion::from_raw(ISA_VERSION));
        self.regs.set(Platform::default().with(Platform::KIND, 1));
        let resets = StatusRegister::default().with(StatusRegister::RESETS, self.resets & 0xff);
        self.regs.set(resets);
    }

    /// `Status.STATE`.
    pub(crate) fn state(&self) -> u32 {
        self.regs.get::<StatusRegister>().get(StatusRegister::STATE)
    }

    pub(crate) fn set_state(&mut self, state: u32) {
        let status: StatusRegister = self.regs.get();
        self.regs.set(status.with(StatusRegister::STATE, state));
        self.pend(IrqStatus::default().with(IrqStatus::STATE, true));
    }

    /// Takes up the admin queue that the registers describe.
    pub(crate) fn enable(&mut self) {
        let base = address(
            self.regs.get::<AdminBaseLow>().get(AdminBaseLow::VALUE),
            self.regs.get::<AdminBaseHigh>().get(AdminBaseHigh::VALUE),
        );
        let size: AdminSize = self.regs.get();
        let log2 = (size.get(AdminSize::SQ_LOG2), size.get(AdminSize::CQ_LOG2));
        let queue = if self.pci.is_bus_master() {
            self.open_queue((0, 0, 0), 0, base, log2)
        } else {
            Err(Problem::new(Status::ACCESS_DENIED).iova(base))
        };
        match queue {
            Ok(queue) => {
                self.admin = Some(queue);
                self.set_state(state::READY);
                self.signals.kick();
            }
            Err(problem) => {
                self.report(problem, Victim::default());
                self.set_state(state::FAILED);
            }
        }
    }

    /// Forgets everything but mappings and PCI addresses; no thread may be executing a command.
    pub(crate) fn reset(&mut self) {
        // The permit goes with its queue: nobody answers what a reset ends.
        self.running = Default::default();
        self.admin = None;
        self.queues.clear();
        self.contexts.clear();
        self.programs.clear();
        self.tables.clear();
        self.last_id = 0;
        self.faults = FaultRing::default();
        self.counters = Counters::default();
        self.regs = Registers::new();
        self.resets = self.resets.wrapping_add(1);
        self.set_constants();
        self.recorder.record(Event::new(kind::RESET));
    }

    fn pend(&mut self, cause: IrqStatus) {
        if self.regs.pend(cause) {
            self.raise(0);
        }
    }

    fn raise(&mut self, vector: u16) {
        self.counters.interrupts = self.counters.interrupts.saturating_add(1);
        let cycles = self.counters.cycles;
        self.recorder.record_traced(|| Event {
            index: vector.into(),
            cycles,
            ..Event::new(kind::INTERRUPT)
        });
        if self.pci.raise(vector) && self.injector.fires(Kind::LostInterrupt).is_none() {
            self.signals.raise(vector);
        }
    }

    /// Delivers vectors that were raised while they were masked.
    pub(crate) fn deliver_pending(&mut self) {
        for vector in self.pci.take_pending() {
            self.signals.raise(vector);
        }
    }

    /// Numbers and records a fault; returns its number.
    pub(crate) fn report(&mut self, problem: Problem, victim: Victim) -> u32 {
        let base = address(
            self.regs.get::<FaultBaseLow>().get(FaultBaseLow::VALUE),
            self.regs.get::<FaultBaseHigh>().get(FaultBaseHigh::VALUE),
        );
        let tail = self.regs.get::<FaultTail>().get(FaultTail::VALUE);
        let cycles = self.counters.cycles;
        let record = self.faults.report(&self.guest, (base, tail), (problem, victim), cycles);
        self.log_fault(record, victim.opcode);
        self.recorder.record(Event {
            opcode: victim.opcode,
            queue: victim.queue,
            job: victim.job,
            index: record.status.0.into(),
            value: record.sequence.into(),
            cycles,
            ..Event::new(kind::FAULT)
        });
        self.counters.faults = self.counters.faults.saturating_add(1);
        self.regs.set(FaultHead::from_raw(self.faults.head));
        self.regs.set(FaultLost::from_raw(self.faults.lost));
        self.pend(IrqStatus::default().with(IrqStatus::FAULT, true));
        record.sequence
    }

    /// Posts the one completion of an entry.
    pub(crate) fn answer(
        &mut self,
        permit: Permit,
        victim: Victim,
        answer: Result<Answer, Problem>,
    ) {
        let mut completion =
            Completion { job: victim.job, queue: victim.queue, ..Completion::default() };
        match answer {
            Ok(answer) => (completion.value, completion.cycles) = (answer.value, answer.cycles),
            Err(problem) => {
                completion.status = problem.status();
                completion.fault = self.report(problem, victim);
                self.counters.failed = self.counters.failed.saturating_add(1);
            }
        }
        self.recorder.record(Event {
            opcode: victim.opcode,
            queue: victim.queue,
            job: victim.job,
            index: completion.status.0.into(),
            value: completion.cycles,
            cycles: self.counters.cycles,
            ..Event::new(kind::JOB_END)
        });
        self.post(victim.queue, permit, completion);
    }

    fn post(&mut self, queue: u16, permit: Permit, mut completion: Completion) {
        if queue == 0 {
            let admin = self.admin.as_mut();
            if admin.is_some_and(|admin| admin.post(permit, completion)) {
                self.pend(IrqStatus::default().with(IrqStatus::ADMIN, true));
            }
        } else if let Some(found) = self.queues.iter_mut().find(|found| found.id == queue) {
            let vector = found.vector;
            self.injector.corrupt(&mut completion);
            if found.post(permit, completion) {
                self.raise(vector);
            }
        }
        // A queue that is gone took its permits with it: there is nowhere to post.
    }

    /// The next thing to do: admin entries first; then, band by band, the job that was begun, else the
    /// queues in turn.
    pub(crate) fn step(&mut self) -> Step {
        if self.state() != state::READY {
            return Step::Idle;
        }
        if let Some(task) = self.resume(LOADER) {
            return Step::Execute(task);
        }
        match self.admin.as_mut().map(Queue::pop) {
            Some(Ok(Some(fetched))) => {
                self.submitted(0, &fetched);
                self.serve_admin(fetched);
                return Step::Again;
            }
            Some(Err(_)) => {
                self.fail_admin();
                return Step::Idle;
            }
            Some(Ok(None)) | None => {}
        }
        for band in 0..priority::COUNT {
            if let Some(task) = self.resume(band) {
                return Step::Execute(task);
            }
            if self.fetch(band) {
                return if self.running[band].is_some() { Step::Begun } else { Step::Again };
            }
        }
        Step::Idle
    }

    /// Whether there may be something to do. Drivers notice nothing of this look at their queues.
    pub(crate) fn has_work(&self) -> bool {
        self.running.iter().any(Option::is_some)
            || self.admin.iter().chain(&self.queues).any(Queue::has_entry)
    }

    /// Asks for a kick at the next entry of any queue; false when one came before that, so that the
    /// device must not sleep.
    pub(crate) fn may_sleep(&mut self) -> bool {
        if self.state() != state::READY {
            // Nothing is fetched until a register is written, which kicks.
            return true;
        }
        // Where one is not asked, the look is repeated: it sleeps only with all of them armed.
        self.admin.iter_mut().chain(&mut self.queues).all(Queue::may_sleep)
    }

    /// An entry was fetched.
    fn submitted(&mut self, queue: u16, fetched: &Fetched) {
        let head = header(fetched.entry);
        self.recorder.record(Event {
            opcode: head.opcode,
            queue,
            job: head.job,
            program: program_of(fetched.entry),
            cycles: self.counters.cycles,
            ..Event::new(kind::SUBMIT)
        });
    }

    /// The next part of what was begun in `band`.
    fn resume(&mut self, band: usize) -> Option<Task> {
        let running = self.running[band].as_mut()?;
        running.is_active = true;
        let (work, place) = (Arc::clone(&running.work), running.place);
        let what = running.what();
        if let Some(event) = running.begins(&what) {
            self.recorder.record(Event { cycles: self.counters.cycles, ..event });
        }
        Some(Task { work, what, place, band })
    }

    /// Looks into the queues of `band`; whether there was something to do.
    fn fetch(&mut self, band: usize) -> bool {
        for _ in 0..self.queues.len() {
            self.turns[band] = (self.turns[band] + 1) % self.queues.len();
            let queue = &mut self.queues[self.turns[band]];
            if queue.band != band {
                continue;
            }
            let identity = (queue.id, queue.context, band);
            match queue.pop() {
                Ok(Some(fetched)) => {
                    if self.injector.fires(Kind::WrongRingIndex).is_some() {
                        queue.publish_wrong_index();
                    }
                    self.submitted(identity.0, &fetched);
                    self.begin(identity, fetched);
                    return true;
                }
                Ok(None) => {}
                Err(_) => {
                    self.stop_queue(identity.0, Status::INVALID_FIELD);
                    return true;
                }
            }
        }
        false
    }

    /// Whether an entry waits that comes before the jobs of `band`.
    pub(crate) fn has_entry_before(&self, band: usize) -> bool {
        let before = self.queues.iter().filter(|queue| queue.band < band);
        before.chain(&self.admin).any(Queue::has_entry)
    }

    /// Whether a thread executes a part of a job now.
    pub(crate) fn is_active(&self) -> bool {
        self.running.iter().flatten().any(|running| running.is_active)
    }

    /// The driver broke the admin queue's rings: nothing can be told to it but by a reset.
    fn fail_admin(&mut self) {
        self.report(Problem::new(Status::INVALID_FIELD), Victim::default());
        self.admin = None;
        self.set_state(state::FAILED);
    }

    /// Drops a queue whose rings can no longer be used; its job ends without an answer.
    fn stop_queue(&mut self, id: u16, status: Status) {
        let victim = Victim { queue: id, ..Victim::default() };
        self.report(Problem::new(status), victim);
        for slot in &mut self.running {
            match slot {
                Some(running) if running.queue != id => {}
                Some(running) if running.is_active => running.end = Some(Status::ABORTED),
                _ => *slot = None,
            }
        }
        self.queues.retain(|queue| queue.id != id);
    }

    /// Takes note of how the active part of the job in `band` ended, at `place` of its command; the job
    /// goes on, or is answered.
    pub(crate) fn ended(&mut self, band: usize, ended: Ended, place: Place) {
        let Some(running) = self.running[band].as_mut() else { return };
        running.is_active = false;
        if self.state() == state::QUIESCING {
            return self.reset();
        }
        let Some(running) = self.running[band].as_mut() else { return };
        let problem = match (ended, running.end) {
            (Ended::Stopped(Stop::Fault { access, status }), _) => {
                let bit = if access.write { access::WRITE } else { access::READ };
                let slot: SlotId = access.slot;
                Problem::new(status).slot(slot).at(access.start, access.len).access(bit)
            }
            (Ended::Broken, _) => Problem::new(Status::INTERNAL),
            (_, Some(status)) => Problem::new(status),
            (Ended::Stopped(Stop::Aborted), None) => Problem::new(Status::ABORTED),
            (Ended::Stopped(Stop::Hung), None) => {
                self.finish_at(band, Problem::new(Status::HUNG));
                return self.lose_sram();
            }
            (Ended::Stopped(Stop::Preempted), None) => {
                running.place = place;
                let event = running.event(kind::OP_REST);
                self.recorder.record(Event { cycles: self.counters.cycles, ..event });
                return;
            }
            (Ended::Loaded(loaded), None) => {
                let answer = loaded.and_then(|program| self.add_program(program));
                return self.finish(band, answer);
            }
            (Ended::Done, None) => return self.advance(band),
        };
        self.finish_at(band, problem);
    }

    /// Keeps the room of `work`, unless its job goes on.
    pub(crate) fn keep(&mut self, mut work: Arc<Work>) {
        if let Some(ended) = Arc::get_mut(&mut work) {
            ended.clear();
            self.spare = Some(work);
        }
    }

    /// Whether a thread waits for a command to end.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaiting > 0
    }

    /// A thread begins to wait for a command to end, or (`false`) has done so.
    pub(crate) fn await_end(&mut self, begins: bool) {
        self.awaiting = if begins { self.awaiting + 1 } else { self.awaiting - 1 };
    }

    /// The active part of the job in `band` is done.
    fn advance(&mut self, band: usize) {
        let Some(running) = self.running[band].as_mut() else { return };
        running.place = Place::default();
        match running.what() {
            What::Poison(_) => running.poison = None,
            What::Gather => {
                running.must_gather = false;
                let event = running.moved(0);
                self.recorder.record(Event { cycles: self.counters.cycles, ..event });
            }
            What::Command(index) => {
                let cost = running.work.command(index).map(|(_, cost)| cost).unwrap_or_default();
                charge(&mut self.counters, cost);
                let cycles = self.counters.cycles;
                self.recorder.record_traced(|| Event {
                    value: cost.cycles,
                    cycles,
                    ..running.event(kind::OP_END)
                });
                running.cycles = running.cycles.saturating_add(cost.cycles);
                running.next += 1;
            }
            What::Scatter => {
                running.must_scatter = false;
                let event = running.moved(1);
                self.recorder.record(Event { cycles: self.counters.cycles, ..event });
            }
            What::Load(_) | What::Nothing => {}
        }
        if matches!(running.what(), What::Nothing) {
            let answer = Answer { cycles: running.cycles, ..Answer::default() };
            self.counters.jobs = self.counters.jobs.saturating_add(1);
            self.finish(band, Ok(answer));
        }
    }

    /// The engine was reset because a job hung: what others had in SRAM is gone, and they with it.
    fn lose_sram(&mut self) {
        for band in 0..LOADER {
            let running = self.running[band].as_ref();
            if running.is_some_and(|running| running.work.slots.has_sram) {
                self.finish_at(band, Problem::new(Status::INNOCENT));
            }
        }
    }

    /// Answers the job of `band` with a problem, at the command that it has come to.
    fn finish_at(&mut self, band: usize, problem: Problem) {
        let Some(running) = &self.running[band] else { return };
        let problem = match running.work.command(running.next) {
            Some((command, _)) => {
                let (header, next) = (command.header(), running.next);
                let index = u32::try_from(next).unwrap_or(u32::MAX);
                problem.command(index, header.op_id, header.opcode)
            }
            None => problem,
        };
        self.finish(band, Err(problem));
    }

    /// Answers the job of `band`.
    fn finish(&mut self, band: usize, answer: Result<Answer, Problem>) {
        let Some(running) = self.running[band].take() else { return };
        let is_failed = answer.is_err();
        let Running { queue, job, opcode, permit, work, next, cycles, .. } = running;
        let bounced = &mut self.counters.bounced_bytes;
        *bounced = bounced.saturating_add(work.slots.bounced());
        self.answer(permit, Victim { queue, job, opcode }, answer);
        if is_failed {
            self.leave(&Seen { queue, opcode, job, work: &work, next, cycles, is_active: false });
        }
    }

    /// Ends the job of `band`: at once when it rests, else as soon as its thread notices. Whether the
    /// thread must be told.
    pub(crate) fn end_running(&mut self, band: usize, status: Status) -> bool {
        let Some(running) = &mut self.running[band] else { return false };
        if running.is_active {
            running.end = Some(status);
            return true;
        }
        self.finish_at(band, Problem::new(status));
        false
    }

    /// Ends every job that uses the IOVA range `(start, len)`, as far as that is possible at once. Whether
    /// a thread must be told.
    pub(crate) fn end_users_of(&mut self, range: (u64, u64), status: Status) -> bool {
        let mut must_tell = false;
        for band in 0..self.running.len() {
            if self.running[band].as_ref().is_some_and(|running| running.work.uses(range)) {
                must_tell |= self.end_running(band, status);
            }
        }
        must_tell
    }

    /// Ends every entry of `queue` with `ABORTED`. Whether a thread must be told.
    pub(crate) fn abort_queue(&mut self, queue: u16) -> bool {
        let mut must_tell = false;
        for band in 0..self.running.len() {
            if self.running[band].as_ref().is_some_and(|running| running.queue == queue) {
                must_tell |= self.end_running(band, Status::ABORTED);
            }
        }
        // What is in the ring now, not what a driver that goes on pushing adds.
        let mut fetched = Vec::new();
        if let Some(found) = self.queues.iter_mut().find(|found| found.id == queue) {
            for _ in 0..1 << npu_uapi::ring::RingLayout::LOG2_RANGE.end() {
                match found.pop() {
                    Ok(Some(entry)) => fetched.push(entry),
                    Ok(None) => break,
                    Err(_) => {
                        self.stop_queue(queue, Status::INVALID_FIELD);
                        return must_tell;
                    }
                }
            }
        }
        for entry in fetched {
            let head = header(entry.entry);
            let victim = Victim { queue, job: head.job, opcode: head.opcode };
            self.answer(entry.permit, victim, Err(Problem::new(Status::ABORTED)));
        }
        must_tell
    }

    /// Drops the queues whose rings lie in the IOVA range `(start, len)`, which is about to go.
    pub(crate) fn stop_queues_in(&mut self, range: (u64, u64)) {
        let hit: Vec<u16> = self
            .queues
            .iter()
            .filter(|queue| overlaps(queue.region, range))
            .map(|queue| queue.id)
            .collect();
        for queue in hit {
            self.stop_queue(queue, Status::UNMAPPED_IOVA);
        }
        if self.admin.as_ref().is_some_and(|admin| overlaps(admin.region, range)) {
            self.fail_admin();
        }
    }

    /// Entries that were submitted and not yet answered.
    pub(crate) fn in_flight(&self) -> u32 {
        self.admin.iter().chain(&self.queues).map(Queue::in_flight).sum()
    }

    /// Whether the driver has set `Ctrl.ENABLE`.
    pub(crate) fn is_enabled(&self) -> bool {
        self.regs.get::<Ctrl>().get(Ctrl::ENABLE)
    }
}

fn address(low: u32, high: u32) -> Iova {
    Iova::new(u64::from(high) << 32 | u64::from(low))
}
