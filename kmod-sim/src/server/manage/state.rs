//! What a function is at one moment: its core dump, as a reply has it.

use super::{events, failed};
use crate::server::roster::Seen;
use npu_uapi::command::Command;
use npu_uapi::coredump::{BindingRow, Dump, JobRow, QueueRow, RegisterRow, access_text};
use npu_uapi::image::slot_kind;
use npu_uapi::queue::{Completion, entry_name, priority_name};
use npu_uapi::regs::{TABLE, state};
use npu_uapi::text::{command_text, slot_kind_name};
use serde_json::{Map, Value, json};

/// `dump`.
pub(super) fn dump(seen: &Seen) -> Value {
    let dump = seen.function.dump();
    let mut fields = fields(&dump);
    fields.insert("client".into(), seen.id.into());
    fields.insert("bytes".into(), failed::hex(&dump.to_bytes()).into());
    Value::Object(fields)
}

/// What a dump holds, as the reply to `dump` has it.
pub(crate) fn fields(dump: &Dump) -> Map<String, Value> {
    let queues: Vec<Value> = dump.queues.iter().map(|row| queue(dump, row)).collect();
    let tables = dump.tables.iter().map(|table| {
        let bindings = dump.bindings.iter().filter(|row| row.table == table.id).map(binding);
        let bindings: Vec<Value> = bindings.collect();
        json!({ "id": table.id, "context": table.context, "bindings": bindings })
    });
    let programs = dump.programs.iter().map(|row| {
        json!({
            "id": row.id,
            "context": row.context,
            "commands": row.commands,
            "slots": row.slots,
            "names": row.names,
        })
    });
    let program = dump.job.map_or(0, |job| job.program);
    let events = dump.events.iter().map(|event| {
        let node = dump.names.get(event.op_id).filter(|_| event.program == program);
        events::event(event, node)
    });
    let fields = [
        ("time_ms", json!(dump.summary.time_ms)),
        ("state", json!(state::name(dump.summary.state))),
        ("cycles", json!(dump.counters.cycles)),
        ("registers", json!(dump.registers.iter().map(register).collect::<Vec<_>>())),
        ("queues", json!(queues)),
        ("tables", json!(tables.collect::<Vec<_>>())),
        ("programs", json!(programs.collect::<Vec<_>>())),
        ("job", json!(dump.job.map(|row| job(dump, &row)))),
        ("events", json!(events.collect::<Vec<_>>())),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

fn register(row: &RegisterRow) -> Value {
    let info = TABLE.iter().find(|info| info.offset == row.offset);
    let fields = info.map_or(&[][..], |info| info.fields).iter().map(|field| {
        let mask = u32::MAX >> (31 - (field.high - field.low));
        json!({ "name": field.name, "value": row.value >> field.low & mask })
    });
    json!({
        "name": info.map(|info| info.name),
        "offset": row.offset,
        "value": row.value,
        "fields": fields.collect::<Vec<_>>(),
    })
}

fn queue(dump: &Dump, row: &QueueRow) -> Value {
    let submissions = dump.submissions.iter().filter(|entry| entry.queue == row.id).map(|entry| {
        let [head, job, ..] = entry.words;
        let [opcode, ..] = head.to_le_bytes();
        json!({
            "index": entry.index,
            "entry": entry_name(opcode),
            "opcode": opcode,
            "job": job,
            "is_fetched": entry.is_fetched == 1,
            "words": entry.words,
        })
    });
    let completions = dump.completions.iter().filter(|entry| entry.queue == row.id).map(|entry| {
        let done = Completion::from_words(entry.words);
        json!({
            "index": entry.index,
            "job": done.job,
            "status": format!("{:?}", done.status),
            "queue": done.queue,
            "value": done.value,
            "fault": done.fault,
            "cycles": done.cycles,
        })
    });
    json!({
        "id": row.id,
        "context": row.context,
        "priority": if row.id == 0 { None } else { priority_name(row.priority) },
        "vector": row.vector,
        "depth": 1_u64 << row.sq_log2.min(32),
        "in_flight": row.in_flight,
        "base": row.base.raw(),
        "sq_tail": row.sq_tail,
        "sq_head": row.sq_head,
        "cq_posted": row.cq_posted,
        "cq_head": row.cq_head,
        "submissions": submissions.collect::<Vec<_>>(),
        "completions": completions.collect::<Vec<_>>(),
    })
}

fn binding(row: &BindingRow) -> Value {
    let binding = &row.binding;
    json!({
        "slot": binding.slot.0,
        "iova": binding.base.raw(),
        "len": binding.len,
        "access": access_text(binding.access),
    })
}

fn job(dump: &Dump, row: &JobRow) -> Value {
    let current = dump.current().map(Command::header);
    let node = |op_id: u32| dump.names.get(op_id);
    let slots = dump.slots.iter().map(|slot| {
        let iova = if slot.kind == slot_kind::SRAM { None } else { Some(slot.iova.raw()) };
        json!({
            "slot": slot.slot,
            "kind": slot_kind_name(slot.kind),
            "iova": iova,
            "len": slot.len,
            "access": access_text(slot.access),
        })
    });
    let listing = (row.first_listed..).zip(&dump.listing).map(|(index, command)| {
        let op_id = command.header().op_id;
        json!({
            "index": index,
            "op_id": op_id,
            "node": node(op_id),
            "text": command_text(command).trim_end(),
            "is_current": index == row.command,
        })
    });
    json!({
        "queue": row.queue,
        "job": row.job,
        "entry": entry_name(row.opcode),
        "program": if row.program == 0 { None } else { Some(row.program) },
        "command": row.command,
        "commands": row.commands,
        "op_id": current.map(|header| header.op_id),
        "op": current.and_then(|header| Command::name_of(header.opcode)),
        "node": current.and_then(|header| node(header.op_id)),
        "cycles": row.cycles,
        "is_running": row.is_running == 1,
        "slots": slots.collect::<Vec<_>>(),
        "listing": listing.collect::<Vec<_>>(),
    })
}
