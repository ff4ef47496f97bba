//! The flight recorder of a function: its last events, always; and a trace, while somebody asks for one.
//!
//! An event is a store of 48 bytes into a ring, and no clock is read, unless it is traced. What would be an
//! event of each command's end, of each interrupt and kick, is one only in a trace.

use npu_uapi::coredump::EVENTS;
use npu_uapi::event::Event;
use std::time::Instant;

/// Events that a trace keeps.
pub(crate) const TRACED: usize = 1 << 16;

/// What a function did last.
#[derive(Debug)]
pub(crate) struct Recorder {
    ring: Box<[Event; EVENTS]>,
    /// Events so far; the low bits are the place of the next.
    count: usize,
    /// Zero of the wall times.
    epoch: Instant,
    is_traced: bool,
    trace: Trace,
}

/// The events of a trace, in a ring once it is full.
#[derive(Debug, Default)]
struct Trace {
    events: Vec<Event>,
    count: u64,
}

/// A piece of a trace.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) is_traced: bool,
    /// Number of the first event.
    pub(crate) from: u64,
    /// Events that were overwritten before it.
    pub(crate) lost: u64,
    /// All that were recorded.
    pub(crate) recorded: u64,
    pub(crate) events: Vec<Event>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            ring: Box::new([Event::default(); EVENTS]),
            count: 0,
            epoch: Instant::now(),
            is_traced: false,
            trace: Trace::default(),
        }
    }

    /// Wall time since the function was made, in ns.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Records `event`.
    #[inline]
    pub(crate) fn record(&mut self, event: Event) {
        let event = if self.is_traced { self.traced(event) } else { event };
        self.ring[self.count % EVENTS] = event;
        self.count = self.count.wrapping_add(1);
    }

    /// Records what is an event in traces only.
    #[inline]
    pub(crate) fn record_traced(&mut self, event: impl FnOnce() -> Event) {
        if self.is_traced {
            self.record(event());
        }
    }

    #[cold]
    fn traced(&mut self, event: Event) -> Event {
        let event = Event { wall_ns: self.now_ns().max(1), ..event };
        let at = usize::try_from(self.trace.count).unwrap_or(0) % TRACED;
        match self.trace.events.get_mut(at) {
            Some(old) => *old = event,
            None => self.trace.events.push(event),
        }
        self.trace.count += 1;
        Event { at_ends: 0, ..event }
    }

    pub(crate) fn is_traced(&self) -> bool {
        self.is_traced
    }

    /// Begins a trace anew, or ends it and keeps what it has.
    pub(crate) fn trace(&mut self, is_on: bool) {
        if is_on {
            self.trace = Trace { events: Vec::with_capacity(TRACED), count: 0 };
        }
        self.is_traced = is_on;
    }

    /// At most `most` events of the trace, from number `from` on.
    pub(crate) fn piece(&self, from: u64, most: usize) -> Piece {
        let Trace { events, count } = &self.trace;
        let oldest = count.saturating_sub(TRACED as u64);
        let first = from.clamp(oldest, *count);
        let numbers = (first..*count).take(most);
        let at = |number: u64| usize::try_from(number).unwrap_or(0) % TRACED;
        Piece {
            is_traced: self.is_traced,
            from: first,
            lost: oldest.saturating_sub(from),
            recorded: *count,
            events: numbers.filter_map(|number| events.get(at(number)).copied()).collect(),
        }
    }

    /// The last events, oldest first, and how many were before them.
    pub(crate) fn last(&self) -> (Vec<Event>, u64) {
        let len = self.count.min(EVENTS);
        let first = self.count - len;
        let events = (first..self.count).map(|number| self.ring[number % EVENTS]);
        (events.collect(), first as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::event::kind;

    fn event(value: u64) -> Event {
        Event { value, ..Event::new(kind::KICK) }
    }

    #[test]
    fn the_last_events_are_kept_and_no_clock_is_read_for_them() {
        let mut recorder = Recorder::new();
        assert!(recorder.last().0.is_empty());
        (0..300).for_each(|value| recorder.record(event(value)));
        recorder.record_traced(|| panic!("nobody traces"));
        let (events, before) = recorder.last();
        assert_eq!((events.len(), before), (EVENTS, 300 - EVENTS as u64));
        assert!(events.iter().zip(before..).all(|(event, number)| event.value == number));
        assert!(events.iter().all(|event| event.wall_ns == 0));
        assert!(recorder.piece(0, 10).events.is_empty());
    }

    #[test]
    fn a_trace_is_read_in_pieces_and_tells_what_was_overwritten() {
        let mut recorder = Recorder::new();
        recorder.trace(true);
        (0..5).for_each(|value| recorder.record(event(value)));
        let piece = recorder.piece(3, 100);
        assert_eq!((piece.from, piece.lost, piece.recorded), (3, 0, 5));
        assert_eq!(piece.events.iter().map(|event| event.value).collect::<Vec<_>>(), [3, 4]);
        assert!(piece.events[0].wall_ns > 0 && piece.events[0].wall_ns <= piece.events[1].wall_ns);
        let more = TRACED as u64 + 2;
        (5..more).for_each(|value| recorder.record_traced(|| event(value)));
        let piece = recorder.piece(0, 2);
        assert_eq!((piece.from, piece.lost, piece.recorded), (2, 2, more));
        assert_eq!(piece.events.iter().map(|event| event.value).collect::<Vec<_>>(), [2, 3]);
        recorder.trace(false);
        recorder.record(event(0));
        assert_eq!(recorder.piece(0, 1).recorded, more, "it is kept, and ends");
        assert!(recorder.piece(u64::MAX, 9).events.is_empty());
        recorder.trace(true);
        assert_eq!(recorder.piece(0, 9).recorded, 0);
    }
}
