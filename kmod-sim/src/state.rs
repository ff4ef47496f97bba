//! What a function is made of behind its lock: the blocks, and what passes between them.
//!
//! No method here waits or computes; commands execute in [`crate::device`], outside the lock.

use crate::config::Config;
use crate::counters::{Charge, charge};
use crate::fault::{FaultRing, Problem, Victim};
use crate::front_end::{Answer, header};
use crate::guest::Guest;
use crate::inject::{Injector, Kind};
use crate::interrupt::Signals;
use crate::job::{Running, Work};
use crate::kernel::Stop;
use crate::pci::Pci;
use crate::program::Program;
use crate::queue::{Queue, overlaps};
use crate::regs::Registers;
use crate::slots::Bindings;
use crate::sram::Sram;
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::command::ISA_VERSION;
use npu_uapi::queue::{Completion, Counters, access};
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    ABI, AbiRange, AdminBaseHigh, AdminBaseLow, AdminSize, Ctrl, FaultBaseHigh, FaultBaseLow,
    FaultHead, FaultLost, FaultTail, IrqStatus, IsaVersion, MAGIC, Magic, Platform,
    Status as StatusRegister, state,
};
use npu_uapi::ring::Permit;
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
    /// Index in `queues` of the one to look at next.
    turn: usize,
    pub(crate) running: Option<Running>,
    resets: u32,
}

/// What the thread that drives does next.
pub(crate) enum Step {
    /// Nothing, until the next kick.
    Idle,
    /// Look again.
    Again,
    /// Execute this command of the job that runs.
    Execute(Arc<Work>, usize),
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    Done,
    Stopped(Stop),
    /// A kernel panicked.
    Broken,
}

impl State {
    pub(crate) fn new(config: Config, signals: Arc<Signals>, injector: Arc<Injector>) -> Self {
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
            turn: 0,
            running: None,
            resets: 0,
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
            self.open_queue((0, 0, 0), base, log2)
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
        self.running = None;
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
    }

    fn pend(&mut self, cause: IrqStatus) {
        if self.regs.pend(cause) {
            self.raise(0);
        }
    }

    fn raise(&mut self, vector: u16) {
        self.counters.interrupts = self.counters.interrupts.saturating_add(1);
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
        let sequence = self.faults.report(&self.guest, (base, tail), (problem, victim), cycles);
        self.counters.faults = self.counters.faults.saturating_add(1);
        self.regs.set(FaultHead::from_raw(self.faults.head));
        self.regs.set(FaultLost::from_raw(self.faults.lost));
        self.pend(IrqStatus::default().with(IrqStatus::FAULT, true));
        sequence
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

    /// The next thing to do: admin entries first, then the job that runs, then the I/O queues in turn.
    pub(crate) fn step(&mut self) -> Step {
        if self.state() != state::READY {
            return Step::Idle;
        }
        match self.admin.as_mut().map(Queue::pop) {
            Some(Ok(Some(fetched))) => {
                self.serve_admin(fetched);
                return Step::Again;
            }
            Some(Err(_)) => {
                self.fail_admin();
                return Step::Idle;
            }
            Some(Ok(None)) | None => {}
        }
        if let Some(running) = &mut self.running {
            running.is_active = true;
            return Step::Execute(Arc::clone(&running.work), running.next);
        }
        for _ in 0..self.queues.len() {
            self.turn = (self.turn + 1) % self.queues.len();
            let queue = &mut self.queues[self.turn];
            let identity = (queue.id, queue.context);
            match queue.pop() {
                Ok(Some(fetched)) => {
                    if self.injector.fires(Kind::WrongRingIndex).is_some() {
                        queue.publish_wrong_index();
                    }
                    self.begin(identity, fetched);
                    return Step::Again;
                }
                Ok(None) => {}
                Err(_) => {
                    self.stop_queue(identity.0, Status::INVALID_FIELD);
                    return Step::Again;
                }
            }
        }
        let mut queues = self.admin.iter_mut().chain(&mut self.queues);
        // Where one is not asked, the look is repeated: it sleeps only with all of them armed.
        if queues.all(Queue::may_sleep) { Step::Idle } else { Step::Again }
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
        if let Some(running) = &mut self.running
            && running.queue == id
        {
            if running.is_active {
                running.end = Some(Status::ABORTED);
            } else {
                self.running = None;
            }
        }
        self.queues.retain(|queue| queue.id != id);
    }

    /// Takes note of how the active command ended; the job goes on, or is answered.
    pub(crate) fn ended(&mut self, ended: Ended) {
        let Some(running) = self.running.as_mut() else { return };
        running.is_active = false;
        if self.state() == state::QUIESCING {
            return self.reset();
        }
        let Some(running) = self.running.as_mut() else { return };
        let command = running.work.command(running.next);
        let (header, cost) = match command {
            Some((command, cost)) => (*command.header(), cost),
            None => (npu_uapi::command::Header::default(), Charge::default()),
        };
        let index = u32::try_from(running.next).unwrap_or(u32::MAX);
        let locate = |problem: Problem| problem.command(index, header.op_id, header.opcode);
        let problem = match (ended, running.end) {
            (Ended::Done, None) => None,
            (Ended::Done, Some(status)) => Some(Problem::new(status)),
            (Ended::Stopped(Stop::Aborted), status) => {
                Some(Problem::new(status.unwrap_or(Status::ABORTED)))
            }
            (Ended::Stopped(Stop::Fault { access, status }), _) => {
                let bit = if access.write { access::WRITE } else { access::READ };
                let slot: SlotId = access.slot;
                Some(Problem::new(status).slot(slot).at(access.start, access.len).access(bit))
            }
            (Ended::Broken, _) => Some(Problem::new(Status::INTERNAL)),
        };
        if let Some(problem) = problem {
            let problem = locate(problem);
            return self.finish(Err(problem));
        }
        charge(&mut self.counters, cost);
        running.cycles = running.cycles.saturating_add(cost.cycles);
        running.next += 1;
        if running.work.command(running.next).is_none() {
            let answer = Answer { cycles: running.cycles, ..Answer::default() };
            self.counters.jobs = self.counters.jobs.saturating_add(1);
            self.finish(Ok(answer));
        }
    }

    /// Answers the job that runs.
    fn finish(&mut self, answer: Result<Answer, Problem>) {
        let Some(running) = self.running.take() else { return };
        let Running { queue, job, opcode, permit, work, .. } = running;
        let bounced = &mut self.counters.bounced_bytes;
        *bounced = bounced.saturating_add(work.slots.bounced());
        self.answer(permit, Victim { queue, job, opcode }, answer);
    }

    /// Ends the job that runs: at once when it rests, else as soon as its thread notices. Whether the
    /// thread must be told.
    pub(crate) fn end_running(&mut self, status: Status) -> bool {
        let Some(running) = &mut self.running else { return false };
        if running.is_active {
            running.end = Some(status);
            return true;
        }
        let command = running.work.command(running.next);
        let header = command.map(|(command, _)| *command.header()).unwrap_or_default();
        let index = u32::try_from(running.next).unwrap_or(u32::MAX);
        let problem = Problem::new(status).command(index, header.op_id, header.opcode);
        self.finish(Err(problem));
        false
    }

    /// Ends every entry of `queue` with `ABORTED`. Whether a thread must be told.
    pub(crate) fn abort_queue(&mut self, queue: u16) -> bool {
        let is_running = self.running.as_ref().is_some_and(|running| running.queue == queue);
        let must_tell = is_running && self.end_running(Status::ABORTED);
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
