//! What the management socket is asked, and what it answers.
//!
//! | request | reply, beside `"schema":1` |
//! |---|---|
//! | `{"command":"list"}` | `functions`: `id`, `pid`, `uid`, `since_ms` (Unix time), `state`, `in_flight` |
//! | `{"command":"stats"}` | `clients`, `accepted`, `refused`, `ended`, `ended_in_flight`, `threads`; `functions`: as in `list`, with `cycles`, `jobs`, `failed`, `commands`, `macs`, `dram_read`, `dram_written`, `kicks`, `interrupts`, `faults`, `injected`, `armed` |
//! | `{"command":"inject","fault":"KIND[@N][:ARG]+.."}` | `clients`: those that have it now. With `"client":ID` it is for that one; else for all, those to come too. `"fault":"none"` takes back what is armed |
//! | `{"command":"reset","client":ID}` | `clients`: those that were reset; `"all"` is every one |
//!
//! What cannot be done is answered with `error`. Pids are as the server sees them; `null` where the
//! system does not tell.

use crate::inject::{Kind, Plan};
use crate::server::roster::{Roster, Seen};
use npu_uapi::reg::Register;
use npu_uapi::regs::{Ctrl, Status, state};
use serde_json::{Map, Value, json};
use std::time::UNIX_EPOCH;

/// The version of requests and replies.
pub(super) const SCHEMA: u64 = 1;

/// What cannot be done, and what can.
pub(super) fn refusal(why: &str) -> Value {
    json!({ "schema": SCHEMA, "error": why })
}

/// Does what a line asks for.
pub(super) fn answer(line: &[u8], roster: &Roster) -> Value {
    match perform(line, roster) {
        Ok(mut reply) => {
            reply.insert("schema".into(), SCHEMA.into());
            Value::Object(reply)
        }
        Err(why) => refusal(&why),
    }
}

type Reply = Result<Map<String, Value>, String>;

fn perform(line: &[u8], roster: &Roster) -> Reply {
    let request: Value = serde_json::from_slice(line)
        .map_err(|error| format!("a request is one JSON object a line: {error}"))?;
    let Value::Object(mut request) = request else {
        return Err("a request is a JSON object, such as {\"command\":\"stats\"}".into());
    };
    if let Some(schema) = request.remove("schema")
        && schema != SCHEMA
    {
        return Err(format!("schema {schema} is unknown; this server speaks schema {SCHEMA}"));
    }
    let command = request.remove("command");
    let reply = match command.as_ref().and_then(Value::as_str) {
        Some("list") => {
            done(&request, "list")?;
            list(roster)
        }
        Some("stats") => {
            done(&request, "stats")?;
            stats(roster)
        }
        Some("inject") => {
            let (client, fault) = (request.remove("client"), request.remove("fault"));
            done(&request, "inject")?;
            inject(roster, client.as_ref(), fault.as_ref())?
        }
        Some("reset") => {
            let client = request.remove("client");
            done(&request, "reset")?;
            let client = client.ok_or("`reset` needs `client`: a number of `list`, or \"all\"")?;
            reset(roster, &client)?
        }
        _ => return Err("`command` must be one of list, stats, inject, reset".into()),
    };
    match reply {
        Value::Object(reply) => Ok(reply),
        _ => Err("the reply is no object; please report this".into()),
    }
}

/// Refuses what a command has no use for.
fn done(rest: &Map<String, Value>, command: &str) -> Result<(), String> {
    match rest.keys().next() {
        Some(field) => Err(format!("`{command}` has no field `{field}`; leave it out")),
        None => Ok(()),
    }
}

fn list(roster: &Roster) -> Value {
    let functions: Vec<Value> =
        roster.functions(None).iter().map(|seen| Value::Object(about(seen))).collect();
    json!({ "functions": functions })
}

fn about(seen: &Seen) -> Map<String, Value> {
    let (_, status) = seen.function.counters();
    let since = seen.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Map::from_iter([
        ("id".to_owned(), json!(seen.id)),
        ("pid".to_owned(), json!(seen.peer.map(|(pid, _)| pid))),
        ("uid".to_owned(), json!(seen.peer.map(|(_, uid)| uid))),
        ("since_ms".to_owned(), json!(u64::try_from(since).unwrap_or(u64::MAX))),
        ("state".to_owned(), json!(state_name(status.get(Status::STATE)))),
        ("in_flight".to_owned(), json!(seen.function.in_flight())),
    ])
}

fn state_name(state: u32) -> &'static str {
    match state {
        state::RESET => "reset",
        state::READY => "ready",
        state::FAILED => "failed",
        state::QUIESCING => "quiescing",
        _ => "unknown",
    }
}

fn stats(roster: &Roster) -> Value {
    let functions: Vec<Value> = roster
        .functions(None)
        .iter()
        .map(|seen| {
            let mut about = about(seen);
            let (c, _) = seen.function.counters();
            let counters = [
                ("cycles", c.cycles),
                ("jobs", c.jobs),
                ("failed", c.failed),
                ("commands", c.commands),
                ("macs", c.macs),
                ("dram_read", c.dram_read),
                ("dram_written", c.dram_written),
                ("kicks", c.kicks),
                ("interrupts", c.interrupts),
                ("faults", c.faults),
            ];
            about.extend(counters.map(|(name, count)| (name.to_owned(), json!(count))));
            let injector = seen.function.injector();
            let happened = Kind::ALL.iter().map(|&kind| (kind, injector.happened(kind)));
            let happened = happened.filter(|&(_, times)| times > 0);
            let happened: Map<String, Value> =
                happened.map(|(kind, times)| (kind.name().to_owned(), json!(times))).collect();
            about.insert("injected".into(), Value::Object(happened));
            about.insert("armed".into(), json!(injector.armed()));
            Value::Object(about)
        })
        .collect();
    let (clients, counts) = roster.counts();
    json!({
        "clients": clients,
        "accepted": counts.accepted,
        "refused": counts.refused,
        "ended": counts.ended,
        "ended_in_flight": counts.ended_in_flight,
        "threads": threads(),
        "functions": functions,
    })
}

/// Threads of this process; `null` where the system does not tell.
fn threads() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok())
}

/// The clients that a request means, `None` for all.
fn meant(client: Option<&Value>) -> Result<Option<u64>, String> {
    match client {
        None => Ok(None),
        Some(all) if all == "all" => Ok(None),
        Some(id) => match id.as_u64() {
            Some(id) => Ok(Some(id)),
            None => Err(format!("`client` is {id}; it is a number of `list`, or \"all\"")),
        },
    }
}

fn find(roster: &Roster, only: Option<u64>) -> Result<Vec<Seen>, String> {
    let found = roster.functions(only);
    match only {
        Some(id) if found.is_empty() => Err(format!("there is no client {id}; see `list`")),
        _ => Ok(found),
    }
}

fn inject(roster: &Roster, client: Option<&Value>, fault: Option<&Value>) -> Result<Value, String> {
    let wanted = "`inject` needs `fault`: text as behind inject= in a device string, or \"none\"";
    let fault = fault.and_then(Value::as_str).ok_or(wanted)?;
    let plan = match fault {
        "none" => Plan::default(),
        text => Plan::parse(text).map_err(|error| error.to_string())?,
    };
    let found = match meant(client)? {
        None => roster.plan(plan),
        only => find(roster, only)?,
    };
    let mut armed = Vec::new();
    for seen in found {
        if plan.is_empty() {
            seen.function.injector().clear();
        } else {
            let result = seen.function.injector().arm(&plan);
            result.map_err(|error| format!("client {}: {error}", seen.id))?;
        }
        armed.push(seen.id);
    }
    Ok(json!({ "clients": armed }))
}

fn reset(roster: &Roster, client: &Value) -> Result<Value, String> {
    let mut reset = Vec::new();
    for seen in find(roster, meant(Some(client))?)? {
        // As its driver would: it begins at once, and waits for nothing.
        seen.function.write32(Ctrl::OFFSET, Ctrl::default().with(Ctrl::RESET, true).raw());
        reset.push(seen.id);
    }
    Ok(json!({ "clients": reset }))
}
