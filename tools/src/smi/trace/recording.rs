//! The events of one client, as they are read from the server.

use crate::smi::connection::Connection;
use crate::smi::error::SmiError;
use crate::smi::reply;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// What a client did.
#[derive(Debug, Default, Serialize)]
pub(super) struct Recording {
    pub(super) client: u64,
    pub(super) pid: Option<i64>,
    pub(super) process: Option<String>,
    /// Unix time of the zero of the events' clock.
    pub(super) start_ms: u64,
    /// Of the modelled clock.
    pub(super) clock_khz: u64,
    /// Events that were overwritten before they could be read.
    pub(super) lost: u64,
    /// Whether it left before the end.
    pub(super) has_left: bool,
    /// As the server tells them, oldest first.
    pub(super) events: Vec<Value>,
    /// Those of `events` before which some were lost.
    #[serde(skip)]
    pub(super) gaps: BTreeSet<usize>,
    /// Number of the event to read from next, once something was read.
    #[serde(skip)]
    pub(super) next: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Piece {
    #[serde(default)]
    process: Option<String>,
    next: u64,
    #[serde(default)]
    lost: u64,
    start_ms: u64,
    clock_khz: u64,
    events: Vec<Value>,
}

/// An event, with the fields that its kind has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    pub(super) kind: String,
    /// Since the function was made.
    pub(super) ns: Option<u64>,
    pub(super) cycles: u64,
    pub(super) queue: u64,
    pub(super) job: Option<u64>,
    pub(super) entry: Option<String>,
    pub(super) program: Option<u64>,
    pub(super) command: Option<u64>,
    pub(super) op_id: Option<u64>,
    pub(super) op: Option<String>,
    pub(super) node: Option<String>,
    pub(super) took_cycles: Option<u64>,
    pub(super) saturated: Option<u64>,
    pub(super) direction: Option<String>,
    pub(super) bytes: Option<u64>,
    pub(super) status: Option<String>,
    pub(super) vector: Option<u64>,
    pub(super) sequence: Option<u64>,
}

impl Recording {
    pub(super) fn new(client: u64, pid: Option<i64>) -> Self {
        Self { client, pid, ..Self::default() }
    }

    /// Reads what is new; how many events that were.
    pub(super) fn read(&mut self, connection: &mut Connection) -> Result<usize, SmiError> {
        if self.has_left {
            return Ok(0);
        }
        let fields = [
            ("client", Value::from(self.client)),
            ("action", "read".into()),
            ("from", self.next.unwrap_or(0).into()),
            ("most", 8192.into()),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value));
        let piece: Piece = match reply::ask(connection, "trace", Map::from_iter(fields)) {
            Ok(piece) => piece,
            Err(SmiError::Refused { .. }) => {
                self.has_left = true;
                return Ok(0);
            }
            Err(error) => return Err(error),
        };
        for event in &piece.events {
            // Garbage is told here, where the place is known.
            let _: Event = reply::read(connection.place(), "trace", event.clone())?;
        }
        if self.next.is_none() {
            // Of the first: what is reckoned anew each time would wander by a millisecond.
            (self.start_ms, self.clock_khz) = (piece.start_ms, piece.clock_khz);
            self.process = piece.process;
        }
        self.next = Some(piece.next);
        self.lost = self.lost.saturating_add(piece.lost);
        if piece.lost > 0 {
            self.gaps.insert(self.events.len());
        }
        let count = piece.events.len();
        self.events.extend(piece.events);
        Ok(count)
    }

    /// The events in types, each with whether some were lost before it.
    pub(super) fn typed(&self) -> impl Iterator<Item = (bool, Event)> {
        let typed =
            |(index, event)| Some((self.gaps.contains(&index), Event::deserialize(event).ok()?));
        self.events.iter().enumerate().filter_map(typed)
    }
}
