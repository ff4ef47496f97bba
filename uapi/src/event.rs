//! Events: what a function did, one record each, for traces and core dumps.

use crate::addr::Iova;
use crate::command::Command;
use crate::queue::entry_name;
use crate::status::{NOT_APPLICABLE, Status};
use alloc::format;
use alloc::string::String;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kinds of events.
pub mod kind {
    /// An entry was fetched from its queue.
    pub const SUBMIT: u8 = 1;
    /// Its job begins.
    pub const JOB_BEGIN: u8 = 2;
    /// A command begins, or goes on after a rest.
    pub const OP_BEGIN: u8 = 3;
    /// It is through; `value` is its modelled cycles.
    pub const OP_END: u8 = 4;
    /// It makes room for what comes first.
    pub const OP_REST: u8 = 5;
    /// Slots are copied here (`index` 0) or back (1).
    pub const DMA_BEGIN: u8 = 6;
    /// They are; `value` is the bytes.
    pub const DMA_END: u8 = 7;
    /// An entry was answered: `index` is the status, `value` the modelled cycles of the job.
    pub const JOB_END: u8 = 8;
    /// Vector `index` was raised.
    pub const INTERRUPT: u8 = 9;
    /// The driver rang.
    pub const KICK: u8 = 10;
    /// A fault was recorded: `index` is its status, `value` its number.
    pub const FAULT: u8 = 11;
    /// A program was loaded.
    pub const LOAD: u8 = 12;
    /// The function was reset.
    pub const RESET: u8 = 13;

    /// The name of a kind; `None` for one that this version does not know.
    pub const fn name(kind: u8) -> Option<&'static str> {
        Some(match kind {
            SUBMIT => "submit",
            JOB_BEGIN => "job_begin",
            OP_BEGIN => "op_begin",
            OP_END => "op_end",
            OP_REST => "op_rest",
            DMA_BEGIN => "dma_begin",
            DMA_END => "dma_end",
            JOB_END => "job_end",
            INTERRUPT => "interrupt",
            KICK => "kick",
            FAULT => "fault",
            LOAD => "load",
            RESET => "reset",
            _ => return None,
        })
    }
}

/// One event. 48 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Event {
    /// One of [`kind`].
    pub kind: u8,
    /// Opcode of the entry, or of the command where the event is one's.
    pub opcode: u8,
    /// The queue, 0 for the admin queue and where none is meant.
    pub queue: u16,
    /// The job.
    pub job: u32,
    /// The program, zero where none is meant.
    pub program: u32,
    /// Index of the command, or what the kind says.
    pub index: u32,
    /// The command's `op_id`, [`NOT_APPLICABLE`] where none is meant.
    pub op_id: u32,
    /// Of [`kind::OP_END`] in a trace: one more than the codes of the result at an end of their range, where
    /// they are counted ([`crate::telemetry::Saturation`]); else zero, and so in a core dump.
    pub at_ends: u32,
    /// What the kind says.
    pub value: u64,
    /// Modelled cycles of the function.
    pub cycles: u64,
    /// Wall time since the function was made, in ns; zero where no clock was read.
    pub wall_ns: u64,
}
const _: () = assert!(size_of::<Event>() == 48);

impl Event {
    /// An event of `kind` that means no command.
    pub fn new(kind: u8) -> Self {
        Self { kind, op_id: NOT_APPLICABLE, ..Self::default() }
    }

    /// The event in words; `node` is the name behind its `op_id`.
    pub fn text(&self, node: Option<&str>) -> String {
        let Self { queue, job, program, index, value, .. } = *self;
        let name = kind::name(self.kind).unwrap_or("unknown");
        let at = if self.wall_ns == 0 {
            String::new()
        } else {
            format!("{:>9}.{:03} us  ", self.wall_ns / 1000, self.wall_ns % 1000)
        };
        let head = format!("{at}{:>14} cycles  {name:<10}", self.cycles);
        let entry = || entry_name(self.opcode).unwrap_or("unknown entry");
        let status = || Status(u16::try_from(index).unwrap_or(u16::MAX));
        let what = match self.kind {
            kind::SUBMIT | kind::JOB_BEGIN if program != 0 => {
                format!("queue {queue} job {job} {}, program {program}", entry())
            }
            kind::SUBMIT | kind::JOB_BEGIN => format!("queue {queue} job {job} {}", entry()),
            kind::OP_BEGIN | kind::OP_END | kind::OP_REST => {
                let op = Command::name_of(self.opcode).unwrap_or("unknown command");
                let node = node.map(|node| format!(" `{node}`")).unwrap_or_default();
                let took = match self.kind {
                    kind::OP_END => format!(", {value} cycles"),
                    _ => String::new(),
                };
                let op_id = self.op_id;
                format!("queue {queue} job {job} command {index} {op} op {op_id}{node}{took}")
            }
            kind::DMA_BEGIN | kind::DMA_END => {
                let way = if index == 0 { "gather" } else { "scatter" };
                format!("queue {queue} job {job} {way}, {value} bytes")
            }
            kind::JOB_END => {
                format!("queue {queue} job {job} {} {:?}, {value} cycles", entry(), status())
            }
            kind::INTERRUPT => format!("vector {index}"),
            kind::FAULT => format!("queue {queue} job {job} fault {value}: {:?}", status()),
            kind::LOAD => format!("program {program}"),
            _ => String::new(),
        };
        format!("{head} {what}")
    }
}

/// A range of memory that a slot of a job is. 24 bytes, in core dumps.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct SlotRange {
    /// Start of the memory; zero where the device has it, as for SRAM.
    pub iova: Iova,
    /// Bytes.
    pub len: u64,
    /// Which slot.
    pub slot: u16,
    /// One of [`crate::image::slot_kind`].
    pub kind: u8,
    /// [`crate::queue::access`] bits that the program uses.
    pub access: u8,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<SlotRange>() == 24);
