//! From events to a timeline: a process a client, tracks for its queues, operations, transfers and signals.
//!
//! | track | slices | annotations |
//! |---|---|---|
//! | `client N queue Q` | jobs, category `job` | `job`, `entry`, `program`; at the end `status`, `took_cycles` |
//! | `client N operations` | commands, category `op`, named by their ONNX node | `op`, `op_id`, `command`, `program`, `job`; at the end `took_cycles`, and `saturated` where codes are counted |
//! | `client N transfers` | copies of slots, category `dma` | `job`, `bytes` |
//! | `client N signals` | kicks, interrupts, loads, resets, faults, gaps where events were lost, as moments | |
//! | `client N queue Q in flight` | a counter | |

use super::perfetto::{
    Annotation, Counter, FROM_THE_START, Packet, Process, Trace, TrackDescriptor, TrackEvent, Type,
};
use super::recording::{Event, Recording};
use std::collections::{BTreeMap, BTreeSet};

/// All packets are of one writer.
const SEQUENCE: u32 = 1;

/// The recordings as a timeline, by the clock of the wall or the modelled one.
pub(super) fn trace(recordings: &[Recording], is_modelled: bool) -> Trace {
    let mut packet = vec![Packet { sequence_flags: Some(FROM_THE_START), ..new() }];
    for recording in recordings {
        let mut writer = Writer {
            recording,
            is_modelled,
            tracks: BTreeSet::new(),
            open: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            last: 0,
            packets: &mut packet,
        };
        writer.describe_process();
        for (is_behind_gap, event) in recording.typed() {
            if is_behind_gap {
                writer.gap(&event);
            }
            writer.event(&event);
        }
        writer.close_all("the trace ends here");
    }
    Trace { packet }
}

fn new() -> Packet {
    Packet { trusted_packet_sequence_id: Some(SEQUENCE), ..Packet::default() }
}

/// A row of the timeline.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Track {
    Queue(u64),
    Operations,
    Transfers,
    Signals,
    InFlight(u64),
}

/// A queue, and a job of it.
type Owner = (u64, Option<u64>);

struct Writer<'a> {
    recording: &'a Recording,
    is_modelled: bool,
    /// Those that are described.
    tracks: BTreeSet<Track>,
    /// Slices that have begun and not ended: the queue and the job of each.
    open: BTreeMap<Track, Vec<Owner>>,
    in_flight: BTreeMap<u64, i64>,
    /// The latest moment.
    last: u64,
    packets: &'a mut Vec<Packet>,
}

impl Writer<'_> {
    fn event(&mut self, event: &Event) {
        let at = self.moment(event);
        let queue = Track::Queue(event.queue);
        let owner = (event.queue, event.job);
        let job = number("job", event.job);
        match event.kind.as_str() {
            "submit" => self.count(at, event.queue, 1),
            "job_begin" => {
                let entry = event.entry.as_deref().unwrap_or("job");
                let name = format!("{entry} {}", event.job.unwrap_or(0));
                let notes = [job, text("entry", &event.entry), number("program", event.program)];
                self.begin(at, queue, owner, ("job", name), notes);
            }
            "job_end" => {
                // What failed has no end of its own.
                for part in [Track::Operations, Track::Transfers] {
                    while self.open.get(&part).is_some_and(|open| open.last() == Some(&owner)) {
                        self.end(at, part, [text("status", &event.status)]);
                    }
                }
                let took = number("took_cycles", event.took_cycles);
                self.end(at, queue, [text("status", &event.status), took, None]);
                self.count(at, event.queue, -1);
            }
            "op_begin" => {
                let op = event.op.as_deref().unwrap_or("op");
                let name = event.node.as_deref().unwrap_or(op).to_owned();
                let notes = [
                    Some(noted("op", None, Some(op.to_owned()))),
                    number("op_id", event.op_id),
                    number("command", event.command),
                    number("program", event.program),
                    job,
                ];
                self.begin(at, Track::Operations, owner, ("op", name), notes);
            }
            "op_end" => {
                let took = number("took_cycles", event.took_cycles);
                self.end(at, Track::Operations, [took, number("saturated", event.saturated)]);
            }
            "op_rest" => self.end(at, Track::Operations, [text("rests", &Some("yes".into()))]),
            "dma_begin" => {
                let name = event.direction.clone().unwrap_or_else(|| "copy".into());
                self.begin(at, Track::Transfers, owner, ("dma", name), [job]);
            }
            "dma_end" => self.end(at, Track::Transfers, [number("bytes", event.bytes)]),
            "fault" => {
                let name = format!("fault {}", event.status.as_deref().unwrap_or("unknown"));
                self.instant(at, name, [job, number("sequence", event.sequence)]);
            }
            "reset" => {
                // What was under way has ended with it.
                self.close_all("the device was reset here");
                self.in_flight.clear();
                self.instant(at, "reset".into(), [None, None]);
            }
            // Of a newer device, perhaps: a moment with a name.
            kind => {
                let notes = [number("vector", event.vector), number("program", event.program)];
                self.instant(at, kind.to_owned(), notes);
            }
        }
    }

    /// When it was, in nanoseconds: of Unix time, or of the modelled clock.
    fn moment(&mut self, event: &Event) -> u64 {
        let at = match (self.is_modelled, event.ns) {
            (false, Some(ns)) => {
                self.recording.start_ms.saturating_mul(1_000_000).saturating_add(ns)
            }
            // Without a time of its own, it was when the last one was.
            (false, None) => self.last,
            (true, _) => {
                let ns = u128::from(event.cycles) * 1_000_000
                    / u128::from(self.recording.clock_khz.max(1));
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
        };
        self.last = self.last.max(at);
        self.last
    }

    fn begin<const N: usize>(
        &mut self,
        at: u64,
        track: Track,
        owner: Owner,
        (category, name): (&str, String),
        notes: [Option<Annotation>; N],
    ) {
        self.open.entry(track).or_default().push(owner);
        let event = TrackEvent {
            name: Some(name),
            categories: vec![category.to_owned()],
            ..kind(Type::SliceBegin, notes)
        };
        self.put(at, track, event);
    }

    /// Ends what has begun last; what began before the trace did is left out.
    fn end<const N: usize>(&mut self, at: u64, track: Track, notes: [Option<Annotation>; N]) {
        if self.open.get_mut(&track).and_then(Vec::pop).is_some() {
            self.put(at, track, kind(Type::SliceEnd, notes));
        }
    }

    fn instant<const N: usize>(&mut self, at: u64, name: String, notes: [Option<Annotation>; N]) {
        let categories = vec!["signal".to_owned()];
        let event = TrackEvent { name: Some(name), categories, ..kind(Type::Instant, notes) };
        self.put(at, Track::Signals, event);
    }

    fn count(&mut self, at: u64, queue: u64, change: i64) {
        let count = self.in_flight.entry(queue).or_default();
        // What was submitted before the trace began was not counted.
        *count = (*count + change).max(0);
        let event = TrackEvent { counter_value: Some(*count), ..kind(Type::Counter, [None]) };
        self.put(at, Track::InFlight(queue), event);
    }

    /// Events are missing here: what was under way may have ended, and an end that comes is of something else.
    fn gap(&mut self, next: &Event) {
        if self.last == 0 {
            // Nothing was before.
            self.moment(next);
        }
        self.close_all("events were lost here");
        self.in_flight.clear();
        self.instant(self.last, "events lost".into(), [None, None]);
    }

    /// Ends what is still under way.
    fn close_all(&mut self, why: &str) {
        for (track, open) in std::mem::take(&mut self.open) {
            for _ in open {
                let cut = text("cut", &Some(why.into()));
                self.put(self.last, track, kind(Type::SliceEnd, [cut]));
            }
        }
    }

    fn put(&mut self, at: u64, track: Track, event: TrackEvent) {
        self.describe(track);
        let track_event = Some(TrackEvent { track_uuid: Some(self.uuid(track)), ..event });
        self.packets.push(Packet { timestamp: Some(at), track_event, ..new() });
    }

    fn describe_process(&mut self) {
        let Recording { client, pid, process, .. } = self.recording;
        let name = process.as_deref().unwrap_or("client");
        // One process may have several clients, which Perfetto then shows as one with all their tracks.
        let pid = pid.and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.or_else(|| i32::try_from(*client).ok());
        let process = Process { pid, process_name: Some(name.to_owned()) };
        let uuid = Some(self.process_uuid());
        let descriptor =
            TrackDescriptor { uuid, process: Some(process), ..TrackDescriptor::default() };
        self.packets.push(Packet { track_descriptor: Some(descriptor), ..new() });
    }

    fn describe(&mut self, track: Track) {
        if !self.tracks.insert(track) {
            return;
        }
        let client = self.recording.client;
        let name = match track {
            Track::Queue(queue) => format!("client {client} queue {queue}"),
            Track::Operations => format!("client {client} operations"),
            Track::Transfers => format!("client {client} transfers"),
            Track::Signals => format!("client {client} signals"),
            Track::InFlight(queue) => format!("client {client} queue {queue} in flight"),
        };
        let counter = matches!(track, Track::InFlight(_))
            .then(|| Counter { unit_name: Some("entries".to_owned()) });
        let descriptor = TrackDescriptor {
            uuid: Some(self.uuid(track)),
            name: Some(name),
            parent_uuid: Some(self.process_uuid()),
            counter,
            ..TrackDescriptor::default()
        };
        self.packets.push(Packet { track_descriptor: Some(descriptor), ..new() });
    }

    fn process_uuid(&self) -> u64 {
        self.recording.client.wrapping_add(1) << 32
    }

    fn uuid(&self, track: Track) -> u64 {
        let number = match track {
            Track::Operations => 1,
            Track::Transfers => 2,
            Track::Signals => 3,
            Track::Queue(queue) => 0x1_0000 | queue & 0xffff,
            Track::InFlight(queue) => 0x2_0000 | queue & 0xffff,
        };
        self.process_uuid() | number
    }
}

fn kind<const N: usize>(kind: Type, notes: [Option<Annotation>; N]) -> TrackEvent {
    TrackEvent {
        r#type: Some(kind.into()),
        debug_annotations: notes.into_iter().flatten().collect(),
        ..TrackEvent::default()
    }
}

fn number(name: &str, value: Option<u64>) -> Option<Annotation> {
    value.map(|value| noted(name, Some(value), None))
}

fn text(name: &str, value: &Option<String>) -> Option<Annotation> {
    value.as_ref().map(|value| noted(name, None, Some(value.clone())))
}

fn noted(name: &str, uint_value: Option<u64>, string_value: Option<String>) -> Annotation {
    Annotation { uint_value, string_value, name: Some(name.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use serde_json::{Value, json};

    /// The packets of one client's events, before some of which others were lost.
    fn packets(events: Vec<Value>, gaps: &[usize]) -> Vec<Packet> {
        let gaps = gaps.iter().copied().collect();
        let recording = Recording {
            clock_khz: 1_000_000,
            start_ms: 1,
            events,
            gaps,
            ..Recording::new(3, None)
        };
        let trace = trace(&[recording], false);
        assert_eq!(Trace::decode(&trace.encode_to_vec()[..]), Ok(trace.clone()));
        trace.packet
    }

    fn events(events: Vec<Value>) -> Vec<TrackEvent> {
        packets(events, &[]).into_iter().filter_map(|packet| packet.track_event).collect()
    }

    #[test]
    fn what_began_before_is_left_out_and_what_did_not_end_is_cut() {
        let found = events(vec![
            json!({"kind": "op_end", "ns": 5, "cycles": 1, "queue": 1, "job": 7}),
            json!({"kind": "op_begin", "ns": 9, "cycles": 2, "queue": 1, "job": 8, "op": "conv"}),
            json!({"kind": "planet", "ns": 10, "cycles": 2, "queue": 1}),
        ]);
        let types: Vec<i32> = found.iter().filter_map(|event| event.r#type).collect();
        assert_eq!(types, [1, 3, 2], "a newer kind is a moment");
        assert_eq!(found[0].name.as_deref(), Some("conv"));
        assert_eq!(found[2].debug_annotations[0].name.as_deref(), Some("cut"));
    }

    #[test]
    fn an_operation_that_failed_ends_with_its_job() {
        let found = events(vec![
            json!({"kind": "op_begin", "ns": 5, "cycles": 1, "queue": 1, "job": 7, "op": "conv"}),
            json!({"kind": "job_end", "ns": 6, "cycles": 1, "queue": 2, "job": 7}),
            json!({"kind": "job_end", "ns": 9, "cycles": 2, "queue": 1, "job": 7, "status": "HUNG"}),
            json!({"kind": "op_begin", "ns": 11, "cycles": 2, "queue": 1, "job": 8, "op": "pool"}),
        ]);
        let slices = found.iter().filter(|event| event.counter_value.is_none());
        let types: Vec<i32> = slices.filter_map(|event| event.r#type).collect();
        assert_eq!(types, [1, 2, 1, 2]);
        let status = |event: &TrackEvent| event.debug_annotations[0].string_value.clone();
        assert!(
            found
                .iter()
                .filter(|event| event.r#type == Some(2))
                .any(|event| status(event) == Some("HUNG".into()))
        );
    }

    #[test]
    fn what_was_under_way_when_events_were_lost_is_cut_and_takes_no_other_end() {
        let events = vec![
            json!({"kind": "op_begin", "ns": 5, "cycles": 1, "queue": 1, "job": 7, "op": "conv"}),
            json!({"kind": "op_end", "ns": 9, "cycles": 2, "queue": 1, "job": 9, "took_cycles": 4}),
        ];
        let packets = packets(events, &[1]);
        let found: Vec<_> = packets.into_iter().filter_map(|packet| packet.track_event).collect();
        let types: Vec<i32> = found.iter().filter_map(|event| event.r#type).collect();
        assert_eq!(types, [1, 2, 3], "the end behind the gap is of what began in it");
        assert_eq!(found[1].debug_annotations[0].name.as_deref(), Some("cut"));
        assert_eq!(found[2].name.as_deref(), Some("events lost"));
    }

    #[test]
    fn a_gap_before_all_events_is_where_they_begin() {
        let events = vec![json!({"kind": "kick", "ns": 5, "cycles": 1, "queue": 1})];
        let packets = packets(events, &[0]);
        let moments = packets.iter().filter_map(|packet| packet.timestamp);
        assert_eq!(moments.collect::<Vec<_>>(), [1_000_005; 2]);
    }

    #[test]
    fn entries_in_flight_never_fall_below_none() {
        let found = events(vec![
            json!({"kind": "job_end", "ns": 5, "cycles": 1, "queue": 1, "job": 7}),
            json!({"kind": "submit", "ns": 6, "cycles": 1, "queue": 1, "job": 8}),
            json!({"kind": "reset", "ns": 7, "cycles": 0, "queue": 0}),
        ]);
        let counts: Vec<i64> = found.iter().filter_map(|event| event.counter_value).collect();
        assert_eq!(counts, [0, 1]);
    }
}
