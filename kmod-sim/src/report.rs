//! What a function tells of itself to those who manage it, beside its driver. Nothing here changes what it
//! does, and the lock is held for as long as it takes to copy.

#[cfg(feature = "server")]
use crate::device::DumpSink;
use crate::device::Function;
use crate::mortem::{Left, Logged, priority_of, unix_ms};
use crate::program::Program;
use crate::recorder::Piece;
use crate::state::State;
use npu_uapi::coredump::{Dump, reason};
use npu_uapi::event::Event;
use npu_uapi::queue::Counters;
use npu_uapi::regs::Status;
use npu_uapi::status::NOT_APPLICABLE;
use npu_uapi::telemetry::{DEPTHS, Gauges, Saturation, Snapshot};
use std::mem::take;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

/// A function at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was done since the last reset.
    pub counters: Counters,
    /// Its `Status` register.
    pub status: Status,
    /// Resets since it was made.
    pub resets: u32,
    /// Bands and commands begun since it was made.
    pub heartbeat: u64,
    /// Bytes that it may reach.
    pub mapped_bytes: u64,
    /// Wall time in which a command of it was executed, in ns.
    pub busy_ns: u64,
    /// Objects that the driver has made.
    pub contexts: usize,
    /// As above.
    pub programs: usize,
    /// As above.
    pub tables: usize,
    /// Its queues, the admin queue first.
    pub queues: Vec<QueueReport>,
    /// Whether its events are traced.
    pub is_traced: bool,
    /// Codes at the ends of their range.
    pub saturation: Saturation,
}

/// A queue at one moment.
#[derive(Clone, Copy, Debug)]
pub struct QueueReport {
    /// Its id, 0 for the admin queue.
    pub id: u16,
    /// The context its jobs run in.
    pub context: u32,
    /// One of [`npu_uapi::queue::priority`], `None` for the admin queue.
    pub priority: Option<u32>,
    /// Interrupt vector of its completions.
    pub vector: u16,
    /// Entries of its submission ring.
    pub depth: u32,
    /// Entries submitted and not yet answered.
    pub in_flight: u32,
}

/// A piece of a trace.
#[derive(Clone, Debug)]
pub struct TracePiece {
    /// Whether the trace goes on.
    pub is_traced: bool,
    /// Number of the first event.
    pub from: u64,
    /// Events that were overwritten before it.
    pub lost: u64,
    /// Events that were recorded.
    pub recorded: u64,
    /// The clock of the events now.
    pub now_ns: u64,
    /// Unix time of its zero.
    pub start_ms: u64,
    /// The events, each with the node of its operation.
    pub events: Vec<(Event, Option<Arc<str>>)>,
}

impl Function {
    /// What it is and has done.
    pub fn report(&self) -> Report {
        self.report_at(Instant::now())
    }

    /// As [`Function::report`], with the time that it was busy until `now`, a moment ago: then several
    /// functions, and the clock that their use is told by, are of one moment, however long it takes to ask all.
    pub(crate) fn report_at(&self, now: Instant) -> Report {
        let now_ns = now.saturating_duration_since(self.epoch).as_nanos();
        let now_ns = u64::try_from(now_ns).unwrap_or(u64::MAX);
        let state = self.lock();
        let queues = state.admin.iter().chain(&state.queues).map(|queue| QueueReport {
            id: queue.id,
            context: queue.context,
            priority: (queue.id != 0).then(|| priority_of(queue.band)),
            vector: queue.vector,
            depth: queue.rings().layout().sq_depth(),
            in_flight: queue.in_flight(),
        });
        Report {
            counters: state.counters,
            status: state.regs.get(),
            resets: state.resets,
            heartbeat: self.engine.heartbeat(),
            mapped_bytes: state.guest.mapped_bytes(),
            busy_ns: self.busy_ns(now_ns),
            contexts: state.contexts.len(),
            programs: state.programs.len(),
            tables: state.tables.len(),
            queues: queues.collect(),
            is_traced: state.recorder.is_traced(),
            saturation: self.saturation(&state),
        }
    }

    /// The latest faults, oldest first.
    pub fn log(&self) -> Vec<Logged> {
        self.lock().log.iter().cloned().collect()
    }

    /// What the last job that faulted or hung has left, as [`npu_uapi::coredump`] reads it.
    pub fn last_dump(&self) -> Option<Arc<[u8]>> {
        self.lock().last_dump.clone()
    }

    /// A dump of what it is now.
    pub fn dump(&self) -> Dump {
        let state = self.lock();
        state.dump(reason::ASKED, None, state.current().as_ref())
    }

    /// Begins to record its events anew, or ends it and keeps what was recorded; how many are.
    pub fn trace(&self, is_on: bool) -> u64 {
        let mut state = self.lock();
        state.recorder.trace(is_on);
        state.recorder.piece(0, 0).recorded
    }

    /// At most `most` of the events that were traced, from number `from` on.
    pub fn traced(&self, from: u64, most: usize) -> TracePiece {
        let state = self.lock();
        let Piece { is_traced, from, lost, recorded, events } = state.recorder.piece(from, most);
        let now_ns = state.recorder.now_ns();
        let programs: Vec<Arc<Program>> = state.programs.values().cloned().collect();
        drop(state);
        let start_ms = unix_ms().saturating_sub(now_ns / 1_000_000);
        let events = events.into_iter().map(|event| (event, node(&programs, &event))).collect();
        TracePiece { is_traced, from, lost, recorded, now_ns, start_ms, events }
    }

    /// Wall time since it was made, in ns; never zero.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// Hands what jobs leave to `sink` from now on; only the first is handed anything.
    #[cfg(feature = "server")]
    pub(crate) fn connect_dumps(&self, sink: Arc<dyn DumpSink>) {
        if self.dumps.set(sink).is_ok() {
            self.lock().keeps_dumps = true;
        }
    }

    /// Unlocks, then hands over what was left meanwhile.
    pub(crate) fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let left = take(&mut state.left);
        drop(state);
        if !left.is_empty() {
            self.hand_over(left);
        }
    }

    #[cold]
    fn hand_over(&self, left: Vec<Left>) {
        if let Some(sink) = self.dumps.get() {
            left.into_iter().for_each(|left| sink.left(left));
        }
    }

    /// Wall time in which it computed, that of the command under way included.
    fn busy_ns(&self, now_ns: u64) -> u64 {
        let under_way = match self.busy_since.load(Relaxed) {
            0 => 0,
            since => now_ns.saturating_sub(since),
        };
        self.busy.load(Relaxed).saturating_add(under_way)
    }

    fn saturation(&self, state: &State) -> Saturation {
        Saturation { is_counted: self.counts_saturation().into(), ..state.saturation }
    }

    /// Shows what is done, where somebody looks.
    pub(crate) fn show(&self, state: &State, is_busy: bool) {
        if let Some(telemetry) = self.telemetry.get() {
            telemetry.show(&self.snapshot_of(state, is_busy));
        }
    }

    /// Shows what changed beside its work.
    pub(crate) fn show_again(&self) {
        let state = self.lock();
        self.show(&state, state.is_active());
    }

    /// What its telemetry page says now, of which a device in this process has none.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        self.snapshot_of(&state, state.is_active())
    }

    fn snapshot_of(&self, state: &State, is_busy: bool) -> Snapshot {
        let uptime_ns = state.recorder.now_ns();
        let mut gauges = Gauges {
            started_ms: self.started_ms,
            uptime_ns,
            busy_ns: self.busy.load(Relaxed),
            mapped_bytes: state.guest.mapped_bytes(),
            heartbeat: self.engine.heartbeat(),
            clock_khz: state.config.limits.clock_khz,
            macs_per_cycle: state.config.limits.macs_per_cycle,
            state: state.state(),
            resets: state.resets,
            queues: u32::try_from(state.queues.len()).unwrap_or(u32::MAX),
            in_flight: 0,
            depths: [0; DEPTHS],
        };
        for queue in state.admin.iter().chain(&state.queues) {
            let in_flight = queue.in_flight();
            gauges.in_flight = gauges.in_flight.saturating_add(in_flight);
            if let Some(depth) = gauges.depths.get_mut(usize::from(queue.id)) {
                *depth = in_flight;
            }
        }
        let saturation = Some(self.saturation(state));
        Snapshot { is_busy, counters: state.counters, gauges: Some(gauges), saturation }
    }
}

/// The node of an event's operation, where its program is still there.
fn node(programs: &[Arc<Program>], event: &Event) -> Option<Arc<str>> {
    if event.op_id == NOT_APPLICABLE {
        return None;
    }
    let program = programs.iter().find(|program| program.id == event.program)?;
    program.names.get(event.op_id).map(Arc::from)
}
