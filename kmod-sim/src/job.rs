//! The job that runs: its commands, the memory of its slots, and how far it has come.

use crate::counters::Charge;
use crate::kernel::{Control, Stop};
use crate::program::Program;
use crate::queue::overlaps;
use crate::slots::Slots;
use npu_uapi::command::Command;
use npu_uapi::ring::Permit;
use npu_uapi::status::Status;
use std::sync::Arc;

/// What a job does and where; shared with the thread that executes a command of it.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) commands: Commands,
    pub(crate) slots: Slots,
}

/// The commands of a job.
#[derive(Debug)]
pub(crate) enum Commands {
    /// Those of a loaded program.
    Program(Arc<Program>),
    /// A transfer: one command, with its cost.
    One(Box<(Command, Charge)>),
}

impl Work {
    /// Command `index` and its cost; `None` behind the last.
    pub(crate) fn command(&self, index: usize) -> Option<(&Command, Charge)> {
        match &self.commands {
            Commands::Program(program) => program.command(index),
            Commands::One(one) => (index == 0).then_some((&one.0, one.1)),
        }
    }

    /// What comes before command `index`: the slots are brought here, once.
    pub(crate) fn before(&self, index: usize, control: &Control<'_>) -> Result<(), Stop> {
        if index == 0 { self.slots.gather(control) } else { Ok(()) }
    }

    /// What comes after it: the results are taken where they belong, once.
    pub(crate) fn after(&self, index: usize, control: &Control<'_>) -> Result<(), Stop> {
        let is_last = self.command(index + 1).is_none();
        if is_last { self.slots.scatter(control) } else { Ok(()) }
    }

    /// Whether the job reaches memory in the IOVA range `(start, len)`.
    pub(crate) fn uses(&self, range: (u64, u64)) -> bool {
        self.slots.ranges.iter().any(|&used| overlaps(used, range))
    }
}

/// A job under way. Between two commands it rests, and any thread may go on with it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) queue: u16,
    pub(crate) job: u32,
    pub(crate) opcode: u8,
    pub(crate) permit: Permit,
    pub(crate) work: Arc<Work>,
    /// The next command, or the one that is executed now.
    pub(crate) next: usize,
    /// Modelled cycles so far.
    pub(crate) cycles: u64,
    /// Whether a thread executes a command of it now.
    pub(crate) is_active: bool,
    /// Why it is to end before its last command.
    pub(crate) end: Option<Status>,
}
