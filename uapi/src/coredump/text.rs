//! A core dump in words, section by section.

use super::{Dump, QueueRow, reason};
use crate::command::Command;
use crate::image::slot_kind;
use crate::queue::{Completion, access, entry_name, priority_name};
use crate::regs::{TABLE, state};
use crate::ring::RingLayout;
use crate::status::Status;
use crate::text::{command_text, slot_kind_name};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Dump {
    /// All of it, for people. Lines end with a newline.
    pub fn text(&self) -> String {
        let mut out = self.head_text();
        out += &self.job_text();
        out += &self.listing_text();
        out += &self.registers_text();
        out += &self.queues_text();
        out += &self.tables_text();
        out += &self.events_text();
        out
    }

    /// What it is of: the fault in one line, when, and what the function had done.
    pub fn head_text(&self) -> String {
        let summary = &self.summary;
        let mut out = format!("core dump: {}", reason::name(summary.reason));
        if let Some(fault) = &self.fault {
            out += &format!("\n{}", fault.message(self.node()));
        }
        let state = state::name(summary.state);
        let (seconds, millis) = (summary.time_ms / 1000, summary.time_ms % 1000);
        out += &format!("\nby {}, at {seconds}.{millis:03} s of Unix time", self.origin);
        let (ms, us) = (summary.uptime_ns / 1_000_000, summary.uptime_ns / 1000 % 1000);
        out += &format!("\nfunction: {state}, up {ms}.{us:03} ms, {} resets", summary.resets);
        let c = &self.counters;
        out += &format!(
            "\n{} jobs, {} failed, {} commands, {} cycles; {} bytes mapped, heartbeat {}\n",
            c.jobs, c.failed, c.commands, c.cycles, summary.mapped_bytes, summary.heartbeat
        );
        out
    }

    fn job_text(&self) -> String {
        let Some(job) = &self.job else { return String::from("\nno job\n") };
        let entry = entry_name(job.opcode).unwrap_or("unknown entry");
        let mut out = format!("\njob {} of queue {}: {entry}", job.job, job.queue);
        if job.program != 0 {
            out += &format!(", program {}", job.program);
        }
        let (at, of) = (job.command, job.commands);
        out += &format!(", at command {at} of {of}, {} cycles so far\n", job.cycles);
        for slot in &self.slots {
            let kind = slot_kind_name(slot.kind);
            let where_ = match slot.kind {
                slot_kind::SRAM => "on the device".into(),
                _ => format!("{:#x}", slot.iova.raw()),
            };
            let access = access_text(slot.access);
            out += &format!(
                "  slot s{:<3} {kind:<8} {access:<2} {:>10} bytes  {where_}\n",
                slot.slot, slot.len
            );
        }
        out
    }

    fn listing_text(&self) -> String {
        let (Some(job), false) = (&self.job, self.listing.is_empty()) else {
            return String::new();
        };
        let mut out = String::from("\n");
        for (index, command) in (job.first_listed..).zip(&self.listing) {
            out += &self.command_lines(index, command, index == job.command);
        }
        out
    }

    /// One command of the listing, the one that the job is at marked.
    fn command_lines(&self, index: u32, command: &Command, is_current: bool) -> String {
        let mark = if is_current { "->" } else { "  " };
        let node = self.names.get(command.header().op_id);
        let node = node.map(|node| format!("  # `{node}`")).unwrap_or_default();
        let mut out = String::new();
        for (at, line) in command_text(command).lines().enumerate() {
            out += &match at {
                0 => format!("{mark} {index:>5}  {line}{node}\n"),
                _ => format!("          {line}\n"),
            };
        }
        out
    }

    fn registers_text(&self) -> String {
        let mut out = String::from("\nregisters\n");
        for row in &self.registers {
            let Some(info) = TABLE.iter().find(|info| info.offset == row.offset) else {
                out += &format!("  {:#06x}  {:<14} {:#010x}\n", row.offset, "", row.value);
                continue;
            };
            let fields = info.fields.iter().map(|field| {
                let mask = u32::MAX >> (31 - (field.high - field.low));
                format!("{} {}", field.name, row.value >> field.low & mask)
            });
            let fields: Vec<String> = fields.collect();
            let fields = fields.join(", ");
            out += &format!(
                "  {:#06x}  {:<14} {:#010x}  {fields}\n",
                row.offset, info.name, row.value
            );
        }
        out
    }

    fn queues_text(&self) -> String {
        self.queues.iter().map(|queue| self.queue_text(queue)).collect()
    }

    fn queue_text(&self, queue: &QueueRow) -> String {
        let priority = match queue.id {
            0 => "admin",
            _ => priority_name(queue.priority).unwrap_or("unknown priority"),
        };
        let mut out = format!(
            "\nqueue {}: {priority}, context {}, vector {}, rings of {} and {} entries at {:#x}\n",
            queue.id,
            queue.context,
            queue.vector,
            depth(queue.sq_log2),
            depth(queue.cq_log2),
            queue.base.raw()
        );
        out += &format!(
            "  submitted {}, fetched {}, answered {}, taken {}; {} in flight\n",
            queue.sq_tail, queue.sq_head, queue.cq_posted, queue.cq_head, queue.in_flight
        );
        for row in self.submissions.iter().filter(|row| row.queue == queue.id) {
            let [head, job, ..] = row.words;
            let [opcode, ..] = head.to_le_bytes();
            let entry = entry_name(opcode).unwrap_or("unknown entry");
            let waits = if row.is_fetched == 0 { ", waits" } else { "" };
            out += &format!("  submission {:<6} job {job:<6} {entry}{waits}\n", row.index);
        }
        for row in self.completions.iter().filter(|row| row.queue == queue.id) {
            let Completion { job, status, cycles, fault, .. } = Completion::from_words(row.words);
            let fault = match fault {
                0 => String::new(),
                fault => format!(", fault {fault}"),
            };
            let index = row.index;
            out += &format!(
                "  completion {index:<6} job {job:<6} {status:?}, {cycles} cycles{fault}\n"
            );
        }
        out
    }

    fn tables_text(&self) -> String {
        let mut out = String::new();
        for program in &self.programs {
            out += &format!(
                "\nprogram {}: context {}, {} commands, {} slots, {} names",
                program.id, program.context, program.commands, program.slots, program.names
            );
        }
        for table in &self.tables {
            out += &format!("\ntable {}: context {}", table.id, table.context);
            for row in self.bindings.iter().filter(|row| row.table == table.id) {
                let binding = &row.binding;
                out += &format!(
                    "\n  slot s{:<3} {:<2} {:>10} bytes  {:#x}",
                    binding.slot.0,
                    access_text(binding.access),
                    binding.len,
                    binding.base.raw()
                );
            }
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out
    }

    fn events_text(&self) -> String {
        let mut out = format!("\nlast {} events\n", self.events.len());
        let program = self.job.map_or(0, |job| job.program);
        for event in &self.events {
            let node = self.names.get(event.op_id).filter(|_| event.program == program);
            out += &format!("  {}\n", event.text(node));
        }
        out
    }
}

fn depth(log2: u8) -> u32 {
    let is_possible = RingLayout::LOG2_RANGE.contains(&log2.into());
    if is_possible { 1 << log2 } else { 0 }
}

/// `r`, `w` or `rw`.
pub fn access_text(bits: u8) -> &'static str {
    match bits & (access::READ | access::WRITE) {
        access::READ => "r",
        access::WRITE => "w",
        0 => "-",
        _ => "rw",
    }
}

/// `Status` of a summary, which may be any number.
impl Dump {
    /// How the job ended that the dump is of; `None` where none did.
    pub fn status(&self) -> Option<Status> {
        (self.summary.status != 0).then_some(Status(self.summary.status))
    }
}
