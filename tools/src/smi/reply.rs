//! What a server replies, in types. The contract is `docs/management.md`.
//!
//! A newer minor only adds, and an older one lacks: what is not known is left out, what is missing has no value.

use super::connection::Connection;
use super::error::SmiError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A client of a server: a connection with a function of its own.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) pid: Option<i64>,
    pub(crate) uid: Option<u32>,
    /// The name of its process.
    pub(crate) process: Option<String>,
    /// When it connected, in Unix time.
    pub(crate) since_ms: u64,
    pub(crate) state: String,
    pub(crate) in_flight: u64,
}

/// A client with what its function has done.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Function {
    #[serde(flatten)]
    pub(crate) client: Client,
    pub(crate) cycles: u64,
    pub(crate) array_cycles: Option<u64>,
    pub(crate) vector_cycles: Option<u64>,
    pub(crate) dma_cycles: Option<u64>,
    pub(crate) jobs: u64,
    pub(crate) failed: u64,
    pub(crate) commands: u64,
    pub(crate) macs: u64,
    pub(crate) dram_read: u64,
    pub(crate) dram_written: u64,
    pub(crate) kicks: u64,
    pub(crate) interrupts: u64,
    pub(crate) faults: u64,
    pub(crate) copied_bytes: Option<u64>,
    pub(crate) mapped_bytes: Option<u64>,
    pub(crate) energy_uj: Option<u64>,
    pub(crate) power_mw: Option<u64>,
    /// Wall time in which it executed.
    pub(crate) busy_us: Option<u64>,
    pub(crate) resets: Option<u64>,
    pub(crate) heartbeat: Option<u64>,
    pub(crate) contexts: Option<u64>,
    pub(crate) programs: Option<u64>,
    pub(crate) tables: Option<u64>,
    pub(crate) queues: Option<Vec<Queue>>,
    /// Injected faults that happened, by kind.
    pub(crate) injected: BTreeMap<String, u64>,
    pub(crate) armed: Vec<String>,
    pub(crate) is_traced: Option<bool>,
    pub(crate) saturation: Option<Saturation>,
}

/// Output codes of a function at the ends of their range.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Saturation {
    /// Whether they are counted; else the counts stand still.
    pub(crate) is_counted: bool,
    pub(crate) array: EndCodes,
    pub(crate) vector: EndCodes,
}

/// Of one engine.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct EndCodes {
    /// Codes that were looked at.
    pub(crate) codes: u64,
    /// Of these, 0, or -128 of a signed tensor.
    pub(crate) lowest: u64,
    /// Of these, 255, or 127.
    pub(crate) highest: u64,
}

/// A queue of a function.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Queue {
    pub(crate) id: u64,
    pub(crate) context: Option<u64>,
    pub(crate) priority: Option<String>,
    pub(crate) vector: Option<u64>,
    pub(crate) depth: u64,
    pub(crate) in_flight: u64,
}

/// Who is there.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Clients {
    pub(crate) functions: Vec<Client>,
}

/// What a server and its functions have done.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Stats {
    #[serde(flatten)]
    pub(crate) server: Counts,
    pub(crate) functions: Vec<Function>,
}

/// What has become of a server's connections.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Counts {
    pub(crate) clients: u64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) ended: u64,
    pub(crate) ended_in_flight: u64,
    pub(crate) threads: Option<u64>,
    /// Since the server started.
    pub(crate) time_us: Option<u64>,
}

/// Those that a request was about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Reached {
    pub(crate) clients: Vec<u64>,
}

/// Asks `command` with `fields`, and reads the reply as a `T`.
pub(crate) fn ask<T: DeserializeOwned>(
    connection: &mut Connection,
    command: &str,
    fields: Map<String, Value>,
) -> Result<T, SmiError> {
    let reply = connection.ask(command, fields)?;
    read(connection.place(), command, Value::Object(reply))
}

/// A part of the reply to `command` as a `T`.
pub(crate) fn read<T: DeserializeOwned>(
    place: &str,
    command: &str,
    value: Value,
) -> Result<T, SmiError> {
    serde_json::from_value(value).map_err(|error| SmiError::Garbage {
        place: place.to_owned(),
        command: command.to_owned(),
        found: error.to_string(),
    })
}

impl Client {
    /// Its process's name, where the system tells.
    pub(crate) fn process(&self) -> &str {
        self.process.as_deref().unwrap_or(super::figure::UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_and_newer_replies_are_read() {
        let old = r#"{"schema":1,"clients":1,"functions":[{"id":3,"pid":null,"state":"ready","cycles":7}]}"#;
        let stats: Stats = serde_json::from_str(old).unwrap();
        let function = &stats.functions[0];
        assert_eq!((function.client.id, function.cycles, function.busy_us), (3, 7, None));
        let new = r#"{"functions":[{"id":4,"colour":"red"}],"planets":9}"#;
        assert_eq!(serde_json::from_str::<Clients>(new).unwrap().functions[0].id, 4);
        assert!(serde_json::from_str::<Stats>(r#"{"functions":7}"#).is_err());
    }
}
