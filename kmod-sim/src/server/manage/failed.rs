//! What failed: the log of faults, and the core dumps that were kept.

use super::command::Reply;
use crate::mortem::Logged;
use crate::server::dumps::{Kept, Owner};
use crate::server::roster::Roster;
use npu_uapi::addr::SlotId;
use npu_uapi::command::Command;
use npu_uapi::queue::entry_name;
use npu_uapi::status::{NO_CAUSE, NOT_APPLICABLE};
use npu_uapi::verify::Rule;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// `log`.
pub(super) fn log(roster: &Roster, client: Option<u64>, most: usize) -> Value {
    // Those that are here first: who leaves meanwhile is there twice rather than not at all.
    let seen = roster.functions(client);
    let mut all: Vec<(Owner, bool, Logged)> = Vec::new();
    for seen in &seen {
        let owner = seen.owner();
        all.extend(seen.function.log().into_iter().map(|fault| (owner.clone(), true, fault)));
    }
    for (owner, fault) in roster.past_faults(client) {
        if seen.iter().all(|seen| seen.id != owner.client) {
            all.push((owner, false, fault));
        }
    }
    all.sort_by_key(|(owner, _, fault)| (fault.time_ms, owner.client, fault.record.sequence));
    let old = all.len().saturating_sub(most);
    let faults = all[old..].iter().map(|(owner, is_here, fault)| {
        let mut fields = self::owner(owner);
        fields.insert("is_here".into(), json!(is_here));
        fields.extend(self::fault(fault));
        Value::Object(fields)
    });
    json!({ "faults": faults.collect::<Vec<_>>() })
}

fn owner(owner: &Owner) -> Map<String, Value> {
    Map::from_iter([
        ("client".to_owned(), json!(owner.client)),
        ("pid".to_owned(), json!(owner.pid)),
        ("process".to_owned(), json!(owner.process.as_deref())),
    ])
}

/// All that is known of a fault.
fn fault(fault: &Logged) -> Map<String, Value> {
    let record = &fault.record;
    let some = |is_meant: bool, value: Value| if is_meant { value } else { Value::Null };
    let (has_command, has_range) = (record.command != NOT_APPLICABLE, record.len != 0);
    let access = ["", "read", "written", "read and written"].get(usize::from(record.access));
    let rule = Rule::ALL.iter().find(|rule| rule.number() == record.cause);
    let has_cause = record.cause != NO_CAUSE;
    Map::from_iter(
        [
            ("sequence", json!(record.sequence)),
            ("time_ms", json!(fault.time_ms)),
            ("cycles", json!(record.cycles)),
            ("status", json!(format!("{:?}", record.status))),
            ("code", json!(record.status.0)),
            ("text", json!(record.status.meaning())),
            ("queue", json!(record.queue)),
            ("job", json!(record.job)),
            ("entry", json!(entry_name(fault.entry))),
            ("program", some(fault.program != 0, json!(fault.program))),
            ("command", some(has_command, json!(record.command))),
            ("op_id", some(record.op_id != NOT_APPLICABLE, json!(record.op_id))),
            ("op", some(has_command, json!(Command::name_of(record.opcode)))),
            ("node", json!(fault.node.as_deref())),
            ("slot", some(record.slot != SlotId(u16::MAX), json!(record.slot.0))),
            ("offset", some(has_range, json!(record.offset))),
            ("len", some(has_range, json!(record.len))),
            ("access", some(record.access != 0, json!(access))),
            ("iova", some(record.iova != 0, json!(record.iova))),
            ("cause", some(has_cause, json!(record.cause))),
            ("rule", some(has_cause, json!(rule.map(|rule| format!("{rule:?}"))))),
            ("message", json!(record.message(fault.node.as_deref()))),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

/// `coredump`.
pub(super) fn dumps(roster: &Roster, id: Option<&Value>) -> Reply {
    let all = roster.dumps.all();
    let Some(id) = id else {
        let dumps: Vec<Value> = all.iter().map(|kept| Value::Object(about(kept))).collect();
        return Ok(json!({ "dumps": dumps }));
    };
    let kept = all.iter().find(|kept| id.as_u64() == Some(kept.id));
    let kept = kept.ok_or_else(|| format!("there is no dump {id} any more; see `coredump`"))?;
    let mut fields = about(kept);
    fields.insert("hex".into(), hex(&kept.left.bytes).into());
    Ok(Value::Object(fields))
}

fn about(kept: &Kept) -> Map<String, Value> {
    let mut fields = owner(&kept.owner);
    fields.insert("id".into(), json!(kept.id));
    fields.insert("bytes".into(), json!(kept.left.bytes.len()));
    let (file, error) = match &kept.file {
        None => (None, None),
        Some(Ok(path)) => (Some(path.display().to_string()), None),
        Some(Err(why)) => (None, Some(why.as_str())),
    };
    fields.insert("file".into(), json!(file));
    fields.insert("file_error".into(), json!(error));
    fields.extend(fault(&kept.left.fault));
    fields
}

/// Two digits a byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
