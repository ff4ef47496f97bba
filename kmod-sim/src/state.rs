//! What a function is made of behind its lock: the blocks, and what passes between them.
//!
//! No method here waits or computes; commands execute in [`crate::device`], outside the lock.

mod jobs;

pub(crate) use jobs::{Ended, Step};

use crate::config::Config;
use crate::fault::{FaultRing, Problem, Victim};
use crate::front_end::{Answer, header};
use crate::guest::Guest;
use crate::inject::{Injector, Kind};
use crate::interrupt::Signals;
use crate::job::{Running, Work};
use crate::kernel::Engine;
use crate::mortem::{Left, Log};
use crate::pci::Pci;
use crate::program::Program;
use crate::queue::{Queue, overlaps};
use crate::recorder::Recorder;
use crate::regs::Registers;
use crate::slots::Bindings;
use crate::sram::Sram;
use npu_uapi::addr::Iova;
use npu_uapi::command::ISA_VERSION;
use npu_uapi::event::{Event, kind};
use npu_uapi::queue::{Completion, Counters, priority};
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    AbiRange, AdminBaseHigh, AdminBaseLow, AdminSize, Ctrl, FaultBaseHigh, FaultBaseLow, FaultHead,
    FaultLost, FaultTail, IrqStatus, IsaVersion, MAGIC, Magic, Platform, Status as StatusRegister,
    state,
};
use npu_uapi::ring::Permit;
use npu_uapi::status::Status;
use npu_uapi::telemetry::Saturation;
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
    /// Whether it goes on is the function's to say.
    pub(crate) saturation: Saturation,
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

/// Index in [`State::running`] of what the admin queue loads, behind the bands.
pub(crate) const LOADER: usize = priority::COUNT;

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
            saturation: Saturation::default(),
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
        let (low, high) = (self.config.abi.0.into(), self.config.abi.1.into());
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
        self.saturation = Saturation::default();
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
