//! A job that was begun: its commands, the memory of its slots, and how far it has come.

use crate::counters::Charge;
use crate::kernel::control::Place;
use crate::memory::Extent;
use crate::mortem::Seen;
use crate::program::Program;
use crate::queue::overlaps;
use crate::slots::Slots;
use npu_uapi::command::Command;
use npu_uapi::event::{Event, kind};
use npu_uapi::queue::{EntryHeader, LoadProgram};
use npu_uapi::ring::Permit;
use npu_uapi::status::{NOT_APPLICABLE, Status};
use std::sync::Arc;

/// What a job does and where; shared with the thread that executes a command of it.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) commands: Commands,
    pub(crate) slots: Slots,
}

/// The commands of a job.
#[derive(Debug, Default)]
pub(crate) enum Commands {
    /// None: it has ended.
    #[default]
    Ended,
    /// Those of a loaded program.
    Program(Arc<Program>),
    /// A transfer: one command, with its cost.
    One(Box<(Command, Charge)>),
    /// None: an image is loaded.
    Load(LoadProgram),
}

impl Work {
    /// Command `index` and its cost; `None` behind the last.
    pub(crate) fn command(&self, index: usize) -> Option<(&Command, Charge)> {
        match &self.commands {
            Commands::Program(program) => program.command(index),
            Commands::One(one) => (index == 0).then_some((&one.0, one.1)),
            Commands::Load(_) | Commands::Ended => None,
        }
    }

    /// Lets go of commands and memory, and keeps the room for those of another job.
    pub(crate) fn clear(&mut self) {
        self.commands = Commands::Ended;
        self.slots.clear();
    }

    /// Whether the job reaches memory in the IOVA range `(start, len)`.
    pub(crate) fn uses(&self, range: (u64, u64)) -> bool {
        self.slots.ranges.iter().any(|&used| overlaps(used, range))
    }
}

/// A job under way. It rests between two commands, and where others come first between two chunks of one;
/// any thread may go on with it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) queue: u16,
    pub(crate) job: u32,
    pub(crate) opcode: u8,
    pub(crate) permit: Permit,
    pub(crate) work: Arc<Work>,
    /// The SRAM to poison before the first command.
    pub(crate) poison: Option<Extent>,
    /// Whether slots that are not one piece of memory are yet to be brought here, and back.
    pub(crate) must_gather: bool,
    pub(crate) must_scatter: bool,
    /// The next command, or the one that is executed now.
    pub(crate) next: usize,
    /// How far that one had come when it was preempted.
    pub(crate) place: Place,
    /// Modelled cycles so far.
    pub(crate) cycles: u64,
    /// Whether a thread executes a command of it now.
    pub(crate) is_active: bool,
    /// Why it is to end before its last command.
    pub(crate) end: Option<Status>,
}

impl Running {
    /// A job that has done nothing yet.
    pub(crate) fn new(queue: u16, head: EntryHeader, permit: Permit, work: Arc<Work>) -> Self {
        let is_bounced = work.slots.is_bounced();
        Self {
            queue,
            job: head.job,
            opcode: head.opcode,
            permit,
            work,
            poison: None,
            must_gather: is_bounced,
            must_scatter: is_bounced,
            next: 0,
            place: Place::default(),
            cycles: 0,
            is_active: false,
            end: None,
        }
    }

    /// An event of it at its command.
    pub(crate) fn event(&self, kind: u8) -> Event {
        let command = self.work.command(self.next).map(|(command, _)| command.header());
        Event {
            opcode: command.map_or(self.opcode, |header| header.opcode),
            queue: self.queue,
            job: self.job,
            program: self.work.program(),
            index: u32::try_from(self.next).unwrap_or(u32::MAX),
            op_id: command.map_or(NOT_APPLICABLE, |header| header.op_id),
            ..Event::new(kind)
        }
    }

    /// The event that `what` begins with, where it is one.
    pub(crate) fn begins(&self, what: &What) -> Option<Event> {
        match what {
            What::Command(_) => Some(self.event(kind::OP_BEGIN)),
            What::Gather => Some(self.of_job(kind::DMA_BEGIN, 0)),
            What::Scatter => Some(self.of_job(kind::DMA_BEGIN, 1)),
            What::Poison(_) | What::Nothing | What::Load(_) => None,
        }
    }

    /// Slots were copied here (`way` 0) or back (1).
    pub(crate) fn moved(&self, way: u32) -> Event {
        Event { value: self.work.slots.bounced(), ..self.of_job(kind::DMA_END, way) }
    }

    /// An event of the job as a whole.
    pub(crate) fn of_job(&self, kind: u8, index: u32) -> Event {
        let (opcode, program) = (self.opcode, self.work.program());
        let (queue, job) = (self.queue, self.job);
        Event { opcode, queue, job, program, index, ..Event::new(kind) }
    }

    /// For those who look at it.
    pub(crate) fn seen(&self) -> Seen<'_> {
        Seen {
            queue: self.queue,
            opcode: self.opcode,
            job: self.job,
            work: &self.work,
            next: self.next,
            cycles: self.cycles,
            is_active: self.is_active,
        }
    }

    /// What a thread does of it next.
    pub(crate) fn what(&self) -> What {
        match (&self.work.commands, self.poison) {
            (Commands::Load(entry), _) => What::Load(*entry),
            (_, Some(bank)) => What::Poison(bank),
            _ if self.must_gather => What::Gather,
            _ if self.work.command(self.next).is_some() => What::Command(self.next),
            _ if self.must_scatter => What::Scatter,
            _ => What::Nothing,
        }
    }
}

/// What the thread that drives executes with the lock released.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) work: Arc<Work>,
    pub(crate) what: What,
    /// Where to resume it.
    pub(crate) place: Place,
    /// The band of its job.
    pub(crate) band: usize,
}

/// A part of a job.
#[derive(Debug)]
pub(crate) enum What {
    /// Overwrite the SRAM, in strict mode.
    Poison(Extent),
    /// Bring the slots here that are not one piece of memory.
    Gather,
    /// Execute the command of this index.
    Command(usize),
    /// Take them back.
    Scatter,
    /// It is done.
    Nothing,
    /// Load an image.
    Load(LoadProgram),
}
