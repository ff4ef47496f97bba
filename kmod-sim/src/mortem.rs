//! What is left of a job that failed: a line in the function's log, and a core dump.
//!
//! All of it is made on the way of a failure only, with the function locked: sizes are bounded.

use crate::front_end::header;
use crate::job::{Commands, Work};
use crate::queue::Queue;
use crate::slots::Bindings;
use crate::state::{LOADER, State};
use npu_uapi::addr::Iova;
use npu_uapi::coredump::{
    AROUND, BindingRow, CompletionRow, Dump, JobRow, ProgramRow, QueueRow, RING_ENTRIES,
    RegisterRow, SubmissionRow, SummaryRow, TableRow, reason,
};
use npu_uapi::event::SlotRange;
use npu_uapi::image::slot_kind;
use npu_uapi::names::Names;
use npu_uapi::queue::{access, opcode, priority};
use npu_uapi::reg::{Access, Register};
use npu_uapi::regs::{HeartbeatHigh, HeartbeatLow, TABLE};
use npu_uapi::status::{FaultRecord, NOT_APPLICABLE, Status};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Faults that the log keeps.
const LOGGED: usize = 64;
/// Bindings of all tables that a dump shows.
const BINDINGS: usize = 1024;

/// A fault, with what its record does not say.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The record.
    pub record: FaultRecord,
    /// Unix time.
    pub time_ms: u64,
    /// The program, zero where none is meant.
    pub program: u32,
    /// Opcode of the entry.
    pub entry: u8,
    /// The node behind `op_id`, where the driver gave names.
    pub node: Option<Arc<str>>,
}

/// The latest faults of a function.
#[derive(Debug, Default)]
pub(crate) struct Log(VecDeque<Logged>);

impl Log {
    pub(crate) fn push(&mut self, logged: Logged) {
        if self.0.len() == LOGGED {
            self.0.pop_front();
        }
        self.0.push_back(logged);
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Logged> {
        self.0.iter()
    }

    fn last(&self) -> Option<&Logged> {
        self.0.back()
    }
}

/// A core dump, and what it is of.
#[derive(Clone, Debug)]
pub struct Left {
    /// The fault.
    pub fault: Logged,
    /// The dump.
    pub bytes: Arc<[u8]>,
}

/// A job, for those who look at it: what [`crate::job::Running`] is made of.
pub(crate) struct Seen<'a> {
    pub(crate) queue: u16,
    pub(crate) opcode: u8,
    pub(crate) job: u32,
    pub(crate) work: &'a Work,
    pub(crate) next: usize,
    pub(crate) cycles: u64,
    pub(crate) is_active: bool,
}

pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Work {
    /// Id of the program, zero for none.
    pub(crate) fn program(&self) -> u32 {
        match &self.commands {
            Commands::Program(program) => program.id,
            _ => 0,
        }
    }

    /// What the driver calls the operation.
    pub(crate) fn node(&self, op_id: u32) -> Option<&str> {
        match &self.commands {
            Commands::Program(program) if op_id != NOT_APPLICABLE => program.names.get(op_id),
            _ => None,
        }
    }
}

impl State {
    /// Logs a fault of which nothing is known but its record.
    pub(crate) fn log_fault(&mut self, record: FaultRecord, entry: u8) {
        self.log.push(Logged { record, time_ms: unix_ms(), program: 0, entry, node: None });
    }

    /// The last fault was at `node`, if there is one.
    pub(crate) fn name_last_fault(&mut self, node: Option<Arc<str>>) {
        if let (Some(last), Some(node)) = (self.log.0.back_mut(), node) {
            last.node = Some(node);
        }
    }

    /// The last fault was of this job: it is logged with what is known, and leaves a dump, unless it was
    /// ended by somebody's wish or another's fault.
    #[cold]
    pub(crate) fn leave(&mut self, job: &Seen<'_>) {
        let Some(last) = self.log.0.back_mut() else { return };
        last.program = job.work.program();
        last.node = job.work.node(last.record.op_id).map(Arc::from);
        let status = last.record.status;
        let is_computed = matches!(job.opcode, opcode::EXEC | opcode::COPY | opcode::FILL);
        if !is_computed || matches!(status, Status::ABORTED | Status::INNOCENT) {
            return;
        }
        let why = if status == Status::HUNG { reason::HANG } else { reason::FAULT };
        let Some(fault) = self.log.last().cloned() else { return };
        let dump = self.dump(why, Some(fault.record), Some(job));
        let left = Left { fault, bytes: dump.to_bytes().into() };
        self.last_dump = Some(Arc::clone(&left.bytes));
        if self.keeps_dumps {
            self.left.push(left);
        }
    }

    /// The job that a thread executes, or the first that rests.
    pub(crate) fn current(&self) -> Option<Seen<'_>> {
        let jobs = || self.running[..LOADER].iter().flatten();
        let running = jobs().find(|running| running.is_active).or_else(|| jobs().next())?;
        Some(running.seen())
    }

    /// What the function is now.
    pub(crate) fn dump(
        &self,
        why: u16,
        fault: Option<FaultRecord>,
        job: Option<&Seen<'_>>,
    ) -> Dump {
        let (events, events_before) = self.recorder.last();
        let heartbeat = self.engine.heartbeat();
        let summary = SummaryRow {
            reason: why,
            status: fault.map_or(0, |fault| fault.status.0),
            state: self.state(),
            time_ms: unix_ms(),
            uptime_ns: self.recorder.now_ns(),
            heartbeat,
            mapped_bytes: self.guest.mapped_bytes(),
            events_before,
            resets: self.resets,
            contexts: u32::try_from(self.contexts.len()).unwrap_or(u32::MAX),
            reserved: 0,
        };
        let mut dump = Dump {
            summary,
            origin: self.origin.clone(),
            fault,
            registers: self.register_rows(heartbeat),
            limits: self.config.limits,
            counters: self.counters,
            events,
            ..Dump::default()
        };
        for queue in self.admin.iter().chain(&self.queues) {
            add_queue(&mut dump, queue);
        }
        for (&id, (context, bindings)) in &self.tables {
            add_table(&mut dump, (id, *context), bindings);
        }
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        dump.programs.extend(self.programs.values().map(|program| ProgramRow {
            id: program.id,
            context: program.context,
            commands: count(program.verified().commands().len()),
            slots: count(program.verified().slots().len()),
            names: count(program.names.iter().count()),
            reserved: 0,
        }));
        if let Some(job) = job {
            add_job(&mut dump, job);
        }
        dump
    }

    fn register_rows(&self, heartbeat: u64) -> Vec<RegisterRow> {
        let readable = TABLE.iter().filter(|info| info.access != Access::WriteOnly);
        let rows = readable.map(|info| {
            let value = match info.offset {
                HeartbeatLow::OFFSET => heartbeat & u64::from(u32::MAX),
                HeartbeatHigh::OFFSET => heartbeat >> 32,
                offset => self.regs.read(offset).into(),
            };
            RegisterRow { offset: info.offset, value: u32::try_from(value).unwrap_or(u32::MAX) }
        });
        rows.collect()
    }
}

/// A band's number, as entries have it.
pub(crate) fn priority_of(band: usize) -> u32 {
    let all = [priority::NORMAL, priority::HIGH, priority::URGENT, priority::BACKGROUND];
    let found = all.into_iter().find(|&priority| priority::band(priority) == Some(band));
    found.unwrap_or(priority::NORMAL)
}

fn add_queue(dump: &mut Dump, queue: &Queue) {
    let rings = queue.rings();
    let (layout, [sq_tail, sq_head, cq_posted, cq_head]) = (rings.layout(), rings.indices());
    let small = |log2: u32| u8::try_from(log2).unwrap_or(u8::MAX);
    dump.queues.push(QueueRow {
        id: queue.id,
        vector: queue.vector,
        context: queue.context,
        priority: if queue.id == 0 { u32::MAX } else { priority_of(queue.band) },
        sq_log2: small(layout.sq_log2()),
        cq_log2: small(layout.cq_log2()),
        reserved: 0,
        base: Iova::new(queue.region.0),
        sq_tail,
        sq_head,
        cq_posted,
        cq_head,
        in_flight: queue.in_flight(),
        reserved2: [0; 5],
    });
    // What the driver says it has published, where that can be.
    let waiting = sq_tail.wrapping_sub(sq_head);
    let tail = if waiting <= layout.sq_depth() { sq_tail } else { sq_head };
    // Free-running: before the first lap there are no older ones, and after 2^32 that is forgotten.
    let last = |end: u32| (1..=16_u32).rev().filter_map(move |back| end.checked_sub(back));
    const { assert!(RING_ENTRIES == 16) };
    dump.submissions.extend(last(tail).map(|index| SubmissionRow {
        queue: queue.id,
        is_fetched: u16::from(sq_head.wrapping_sub(index).wrapping_sub(1) < u32::MAX / 2),
        index,
        words: rings.submission_words(index),
    }));
    dump.completions.extend(last(cq_posted).map(|index| CompletionRow {
        queue: queue.id,
        reserved: 0,
        index,
        words: rings.completion_words(index),
    }));
}

fn add_table(dump: &mut Dump, (id, context): (u32, u32), bindings: &Bindings) {
    let count = u32::try_from(bindings.iter().count()).unwrap_or(u32::MAX);
    dump.tables.push(TableRow { id, context, bindings: count, reserved: 0 });
    let room = BINDINGS.saturating_sub(dump.bindings.len());
    let rows = bindings.iter().take(room);
    let rows = rows.map(|&binding| BindingRow { table: id, reserved: 0, binding });
    dump.bindings.extend(rows);
}

fn add_job(dump: &mut Dump, job: &Seen<'_>) {
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let first = job.next.saturating_sub(AROUND);
    let mut commands = 0;
    match &job.work.commands {
        Commands::Program(program) => {
            let all = program.verified().commands();
            commands = all.len();
            let listed = all.iter().skip(first).take(2 * AROUND + 1);
            dump.listing = listed.copied().collect();
            let named = dump.listing.iter().map(|command| command.header().op_id);
            dump.names =
                Names::new(named.filter_map(|op_id| Some((op_id, program.names.get(op_id)?))));
            let slots = program.verified().slots().iter().zip(program.verified().used());
            let mut ranges = job.work.slots.ranges.iter();
            for (slot, (decl, &used)) in (0..).zip(slots) {
                let (iova, len) = match decl.kind {
                    slot_kind::SRAM => (0, decl.len),
                    // In the order of slots: those that the program uses.
                    _ if used != 0 => match ranges.next() {
                        Some(&range) => range,
                        None => continue,
                    },
                    _ => continue,
                };
                let iova = Iova::new(iova);
                let kind = decl.kind;
                dump.slots.push(SlotRange { iova, len, slot, kind, access: used, reserved: 0 });
            }
        }
        Commands::One(one) => {
            commands = 1;
            dump.listing = vec![one.0];
            // A fill has but the second of these.
            let accesses = [access::READ, access::WRITE];
            let ranges = &job.work.slots.ranges;
            let used = &accesses[2 - ranges.len().min(2)..];
            for (slot, (&(iova, len), &access)) in (0..).zip(ranges.iter().zip(used)) {
                let kind = slot_kind::SCRATCH;
                let iova = Iova::new(iova);
                dump.slots.push(SlotRange { iova, len, slot, kind, access, reserved: 0 });
            }
        }
        Commands::Load(_) | Commands::Ended => {}
    }
    dump.job = Some(JobRow {
        queue: job.queue,
        opcode: job.opcode,
        is_running: u8::from(job.is_active),
        job: job.job,
        program: job.work.program(),
        command: count(job.next),
        commands: count(commands),
        first_listed: count(first),
        cycles: job.cycles,
        reserved: [0; 2],
    });
}

/// The program that an entry names, zero where it names none.
pub(crate) fn program_of(words: [u32; npu_uapi::ring::SUBMISSION_WORDS]) -> u32 {
    match header(words).opcode {
        opcode::EXEC => npu_uapi::queue::Exec::from_words(words).program,
        _ => 0,
    }
}
