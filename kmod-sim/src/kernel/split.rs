//! One command over several workers: chunks pulled from a counter, with abort and heartbeat between.

use super::{Control, Stop};
use npu_uapi::workers::Workers;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Multiply-accumulates after which a kernel polls for abort at the latest.
pub(crate) const POLL_MACS: i64 = 1 << 24;

/// Who computes, and who may end it.
#[derive(Clone, Copy)]
pub(crate) struct Split<'a> {
    pub(crate) workers: &'a dyn Workers,
    pub(crate) control: &'a Control<'a>,
}

/// A chunk was left because the job is to end.
pub(crate) struct Aborted;

impl Split<'_> {
    /// Workers to plan for.
    pub(crate) fn workers(&self) -> i64 {
        i64::try_from(self.workers.count().clamp(1, 1 << 16)).expect("clamped on this line")
    }

    /// Calls `body(i)` once for each `i` in `0..count`, on all workers.
    ///
    /// A single chunk runs here, without waking anyone.
    pub(crate) fn chunks(
        &self,
        count: i64,
        body: &(dyn Fn(i64, &mut Budget<'_>) -> Result<(), Aborted> + Sync),
    ) -> Result<(), Stop> {
        let count = u64::try_from(count).unwrap_or(0);
        // Relaxed throughout: the counter orders nothing, `Workers::run` orders the memory.
        let (next, aborted) = (AtomicU64::new(0), AtomicBool::new(false));
        let piece = |_| loop {
            let mut budget = Budget { control: self.control, left: POLL_MACS };
            if budget.poll().is_err() {
                aborted.store(true, Relaxed);
                return;
            }
            let chunk = next.fetch_add(1, Relaxed);
            if chunk >= count {
                return;
            }
            let chunk = i64::try_from(chunk).expect("it was counted up from 0 to below an i64");
            if body(chunk, &mut budget).is_err() {
                aborted.store(true, Relaxed);
                return;
            }
            self.control.heartbeat.fetch_add(1, Relaxed);
        };
        if count <= 1 {
            piece(0);
        } else {
            self.workers.run(&piece);
        }
        if aborted.load(Relaxed) { Err(Stop::Aborted) } else { Ok(()) }
    }

    /// How many of `units` equal units of `macs` each make a chunk: about eight chunks a worker, for
    /// balance, neither too small to pay for the call nor too large to be polled.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vector kernels ask"))]
    pub(crate) fn units_a_chunk(&self, units: i64, macs: i64) -> i64 {
        const SMALLEST: i64 = 1 << 17;
        const LARGEST: i64 = 1 << 22;
        let macs = macs.max(1);
        let balanced = units / (8 * self.workers());
        let smallest = (SMALLEST / macs).max(1);
        balanced.clamp(smallest, (LARGEST / macs).max(smallest)).min(units.max(1))
    }
}

/// How much a chunk may still do before it must look whether the job is to end.
pub(crate) struct Budget<'a> {
    control: &'a Control<'a>,
    left: i64,
}

impl Budget<'_> {
    /// Counts `macs` multiply-accumulates, or as much other work, and polls when the budget is spent.
    #[inline]
    pub(crate) fn spend(&mut self, macs: i64) -> Result<(), Aborted> {
        self.left -= macs;
        if self.left > 0 {
            return Ok(());
        }
        self.left = POLL_MACS;
        self.control.heartbeat.fetch_add(1, Relaxed);
        self.poll()
    }

    fn poll(&self) -> Result<(), Aborted> {
        if self.control.abort.load(Relaxed) { Err(Aborted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::workers::Caller;

    #[test]
    fn every_chunk_runs_once_and_beats_once() {
        let (abort, heartbeat) = (AtomicBool::new(false), AtomicU64::new(0));
        let control = Control { abort: &abort, heartbeat: &heartbeat };
        let seen = AtomicU64::new(0);
        let split = Split { workers: &Caller, control: &control };
        let done = split.chunks(10, &|chunk, _| {
            seen.fetch_or(1 << chunk, Relaxed);
            Ok(())
        });
        assert_eq!((done, seen.into_inner()), (Ok(()), 0x3ff));
        assert_eq!(heartbeat.into_inner(), 10);
    }

    #[test]
    fn an_abort_within_a_chunk_ends_the_command() {
        let (abort, heartbeat) = (AtomicBool::new(false), AtomicU64::new(0));
        let control = Control { abort: &abort, heartbeat: &heartbeat };
        let split = Split { workers: &Caller, control: &control };
        let done = split.chunks(10, &|chunk, budget| {
            if chunk == 3 {
                abort.store(true, Relaxed);
                budget.spend(POLL_MACS)?;
                unreachable!("a spent budget polls");
            }
            Ok(())
        });
        assert_eq!(done, Err(Stop::Aborted));
    }
}
