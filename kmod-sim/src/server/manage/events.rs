//! Events of a function, as replies have them.

use crate::server::roster::Seen;
use npu_uapi::command::Command;
use npu_uapi::event::{Event, kind};
use npu_uapi::queue::entry_name;
use npu_uapi::status::Status;
use serde_json::{Map, Value, json};

/// `trace`, to start or stop one.
pub(super) fn set(seen: &Seen, is_on: bool) -> Value {
    let recorded = seen.function.trace(is_on);
    json!({ "client": seen.id, "is_traced": is_on, "recorded": recorded })
}

/// `trace`, to read one.
pub(super) fn read(seen: &Seen, from: u64, most: usize) -> Value {
    let piece = seen.function.traced(from, most);
    let next = piece.from.saturating_add(piece.events.len() as u64);
    let events: Vec<Value> =
        piece.events.iter().map(|(event, node)| self::event(event, node.as_deref())).collect();
    json!({
        "client": seen.id,
        "process": seen.process.as_deref(),
        "is_traced": piece.is_traced,
        "from": piece.from,
        "next": next,
        "lost": piece.lost,
        "recorded": piece.recorded,
        "now_ns": piece.now_ns,
        "start_ms": piece.start_ms,
        "clock_khz": seen.function.limits().clock_khz,
        "events": events,
    })
}

/// One event, with the fields that its kind has.
pub(super) fn event(event: &Event, node: Option<&str>) -> Value {
    let Event { job, program, index, value, .. } = *event;
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    add("kind", json!(kind::name(event.kind)));
    add("ns", if event.wall_ns == 0 { Value::Null } else { json!(event.wall_ns) });
    add("cycles", json!(event.cycles));
    add("queue", json!(event.queue));
    let status = || format!("{:?}", Status(u16::try_from(index).unwrap_or(u16::MAX)));
    let program = || if program == 0 { Value::Null } else { json!(program) };
    match event.kind {
        kind::SUBMIT | kind::JOB_BEGIN => {
            add("job", json!(job));
            add("entry", json!(entry_name(event.opcode)));
            add("program", program());
        }
        kind::OP_BEGIN | kind::OP_END | kind::OP_REST => {
            add("job", json!(job));
            add("program", program());
            add("command", json!(index));
            add("op_id", json!(event.op_id));
            add("op", json!(Command::name_of(event.opcode)));
            add("node", json!(node));
            if event.kind == kind::OP_END {
                add("took_cycles", json!(value));
                if let Some(at_ends) = event.at_ends.checked_sub(1) {
                    add("saturated", json!(at_ends));
                }
            }
        }
        kind::DMA_BEGIN | kind::DMA_END => {
            add("job", json!(job));
            add("direction", json!(if index == 0 { "gather" } else { "scatter" }));
            if event.kind == kind::DMA_END {
                add("bytes", json!(value));
            }
        }
        kind::JOB_END => {
            add("job", json!(job));
            add("status", json!(status()));
            add("took_cycles", json!(value));
        }
        kind::INTERRUPT => drop(add("vector", json!(index))),
        kind::FAULT => {
            add("job", json!(job));
            add("sequence", json!(value));
            add("status", json!(status()));
        }
        kind::LOAD => drop(add("program", program())),
        _ => {}
    }
    Value::Object(fields)
}
