//! What the management socket is asked: the request is read and held to its command here, the replies are
//! the modules' beside this one. `docs/management.md` says what is in them.

use super::{clients, events, failed, state};
use crate::inject::Plan;
use crate::server::roster::{Roster, Seen};
use npu_uapi::reg::Register;
use npu_uapi::regs::Ctrl;
use serde_json::{Map, Value, json};

/// The version of requests and replies: another is refused.
pub(super) const SCHEMA: u64 = 1;
/// Its minor version, which only adds.
const MINOR: u64 = 2;

const COMMANDS: &str = "list, stats, show, log, dump, trace, coredump, inject, saturation, reset";

/// What cannot be done, and what can.
pub(super) fn refusal(why: &str) -> Value {
    json!({ "schema": SCHEMA, "minor": MINOR, "error": why })
}

/// Does what a line asks for.
pub(super) fn answer(line: &[u8], roster: &Roster) -> Value {
    match perform(line, roster) {
        Ok(mut reply) => {
            reply.insert("schema".into(), SCHEMA.into());
            reply.insert("minor".into(), MINOR.into());
            Value::Object(reply)
        }
        Err(why) => refusal(&why),
    }
}

/// A reply, or why there is none.
pub(super) type Reply = Result<Value, String>;

/// The fields of a request that its command has not taken yet.
struct Request(Map<String, Value>);

impl Request {
    fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field)
    }

    /// A number of `range`, `default` where there is none.
    fn number(
        &mut self,
        field: &str,
        (low, high): (u64, u64),
        default: u64,
    ) -> Result<u64, String> {
        let Some(value) = self.take(field) else { return Ok(default) };
        let number = value.as_u64().filter(|number| (low..=high).contains(number));
        number.ok_or_else(|| format!("`{field}` is {value}; it is a number from {low} to {high}"))
    }

    /// Refuses what `command` has no use for.
    fn done(&self, command: &str) -> Result<(), String> {
        match self.0.keys().next() {
            Some(field) => Err(format!("`{command}` has no field `{field}`; leave it out")),
            None => Ok(()),
        }
    }
}

fn perform(line: &[u8], roster: &Roster) -> Result<Map<String, Value>, String> {
    let request: Value = serde_json::from_slice(line)
        .map_err(|error| format!("a request is one JSON object a line: {error}"))?;
    let Value::Object(request) = request else {
        return Err("a request is a JSON object, such as {\"command\":\"stats\"}".into());
    };
    let mut request = Request(request);
    if let Some(schema) = request.take("schema")
        && schema != SCHEMA
    {
        return Err(format!("schema {schema} is unknown; this server speaks schema {SCHEMA}"));
    }
    let command = request.take("command");
    let unknown = || format!("`command` must be one of {COMMANDS}");
    let command = command.as_ref().and_then(Value::as_str).ok_or_else(unknown)?;
    let reply = match command {
        "list" | "stats" | "show" => {
            request.done(command)?;
            match command {
                "list" => clients::list(roster),
                "stats" => clients::stats(roster),
                _ => clients::show(roster),
            }
        }
        "log" => {
            let client = meant(request.take("client").as_ref())?;
            let most = request.number("most", (1, 1000), 256)?;
            request.done(command)?;
            failed::log(roster, client, usize::try_from(most).unwrap_or(usize::MAX))
        }
        "dump" => {
            let client = request.take("client");
            request.done(command)?;
            state::dump(&one(roster, client.as_ref(), command)?)
        }
        "trace" => {
            let (client, action) = (request.take("client"), request.take("action"));
            let from = request.number("from", (0, u64::MAX), 0)?;
            let most = request.number("most", (1, 8192), 4096)?;
            request.done(command)?;
            let seen = one(roster, client.as_ref(), command)?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            match action.as_ref().and_then(Value::as_str) {
                Some("start") => events::set(&seen, true),
                Some("stop") => events::set(&seen, false),
                Some("read") => events::read(&seen, from, most),
                _ => return Err("`trace` needs `action`: start, stop or read".into()),
            }
        }
        "coredump" => {
            let id = request.take("id");
            request.done(command)?;
            failed::dumps(roster, id.as_ref())?
        }
        "inject" => {
            let (client, fault) = (request.take("client"), request.take("fault"));
            request.done(command)?;
            inject(roster, client.as_ref(), fault.as_ref())?
        }
        "saturation" => {
            let (client, count) = (request.take("client"), request.take("count"));
            request.done(command)?;
            count_saturation(roster, client.as_ref(), count.as_ref())?
        }
        "reset" => {
            let client = request.take("client");
            request.done(command)?;
            let client = client.ok_or("`reset` needs `client`: a number of `list`, or \"all\"")?;
            reset(roster, &client)?
        }
        _ => return Err(unknown()),
    };
    match reply {
        Value::Object(reply) => Ok(reply),
        _ => Err("the reply is no object; please report this".into()),
    }
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

/// The one client that `command` is about.
fn one(roster: &Roster, client: Option<&Value>, command: &str) -> Result<Seen, String> {
    let needed = || format!("`{command}` needs `client`: a number of `list`");
    let id = client.and_then(Value::as_u64).ok_or_else(needed)?;
    find(roster, Some(id))?.pop().ok_or_else(needed)
}

fn inject(roster: &Roster, client: Option<&Value>, fault: Option<&Value>) -> Reply {
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

fn count_saturation(roster: &Roster, client: Option<&Value>, count: Option<&Value>) -> Reply {
    let wanted = "`saturation` needs `count`: true to count from now on, false to stop";
    let is_on = count.and_then(Value::as_bool).ok_or(wanted)?;
    let found = match meant(client)? {
        None => roster.count_saturation(is_on),
        only => find(roster, only)?,
    };
    let mut reached = Vec::new();
    for seen in found {
        seen.function.count_saturation(is_on);
        reached.push(seen.id);
    }
    Ok(json!({ "clients": reached }))
}

fn reset(roster: &Roster, client: &Value) -> Reply {
    let mut reset = Vec::new();
    for seen in find(roster, meant(Some(client))?)? {
        // As its driver would: it begins at once, and waits for nothing.
        seen.function.write32(Ctrl::OFFSET, Ctrl::default().with(Ctrl::RESET, true).raw());
        reset.push(seen.id);
    }
    Ok(json!({ "clients": reset }))
}
