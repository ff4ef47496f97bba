//! One command over several workers: chunks taken from both ends, with a look at what is asked between.

use super::Stop;
use super::chunks::{Chunk, Ends, Left, Side};
use super::control::Control;
use npu_uapi::workers::Workers;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Multiply-accumulates after which a kernel looks at the latest whether it is to end.
pub(crate) const POLL_MACS: i64 = 1 << 24;
/// The same within a chunk, where a look costs nothing beside the work: scalar code that misses its caches
/// takes a hundred times as long as vector code.
const LOOK_MACS: i64 = POLL_MACS >> 3;

/// Who computes, and who may end it.
#[derive(Clone, Copy)]
pub(crate) struct Split<'a> {
    pub(crate) workers: &'a dyn Workers,
    pub(crate) control: &'a Control<'a>,
}

/// What is done to one element.
type Element<'a, const N: usize> =
    dyn Fn([i64; N], &mut Budget<'_>) -> Result<(), Aborted> + Sync + 'a;

/// A chunk was left because the job is to end.
pub(crate) struct Aborted;

impl Split<'_> {
    /// Workers to plan for. The same when a command is resumed, so that its chunks are.
    pub(crate) fn workers(&self) -> i64 {
        let now = self.workers.count().clamp(1, 1 << 16) as u64;
        i64::try_from(self.control.engine.planned_workers(now)).unwrap_or(1)
    }

    /// `size` of a chunk, or less where chunks are to be small.
    pub(crate) fn fine(&self, size: i64) -> i64 {
        (size >> self.control.fineness).max(1)
    }

    /// Calls `body(i)` once for each `i` in `0..count`, on all workers. A kernel calls this once.
    ///
    /// A single chunk runs here, without waking anyone. When others come first, the chunks that were
    /// begun are ended, and the call that resumes the command goes on behind them. At least one is done
    /// each time, so that a command gets on however often it is preempted.
    pub(crate) fn chunks(
        &self,
        count: i64,
        body: &(dyn Fn(i64, &mut Budget<'_>) -> Result<(), Aborted> + Sync),
    ) -> Result<(), Stop> {
        let engine = self.control.engine;
        // More than can be counted are taken some at a time.
        let group = i64::try_from(u64::try_from(count).unwrap_or(0) / Left::MOST).unwrap_or(0) + 1;
        let groups = (count.max(0) + group - 1) / group;
        engine.set_chunks(groups.unsigned_abs());
        let left = AtomicBool::new(false);
        let piece = |worker| {
            let side = Side::of(worker);
            while engine.end().is_none() {
                let Some(Chunk { index, is_last }) = engine.take_chunk(side) else { return };
                let first = i64::try_from(index).expect("it is below an i64") * group;
                for chunk in first..(first + group).min(count) {
                    let mut budget = Budget { control: self.control, side, left: LOOK_MACS };
                    if body(chunk, &mut budget).is_err() {
                        left.store(true, Relaxed);
                        return;
                    }
                }
                engine.beat_of(side);
                // Behind the last there is nothing left to preempt.
                if !is_last {
                    self.control.look();
                }
                if engine.is_asked() {
                    return;
                }
            }
        };
        if groups <= 1 {
            piece(0);
        } else {
            self.workers.run(&piece);
        }
        if engine.is_asked() && (left.load(Relaxed) || !engine.is_through()) {
            return Err(engine.end().unwrap_or(Stop::Preempted));
        }
        engine.forget_place();
        Ok(())
    }

    /// Calls `body(i)` once for each `i` in `0..count`, on all workers: for what the chunks share, before
    /// them. It is short, is not preempted, and is done anew when the command is resumed. `count` is
    /// [`Left::MOST`] at most.
    ///
    /// # Errors
    /// What ends the command; then some are not done.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vector kernels share"))]
    pub(crate) fn before(&self, count: i64, body: &(dyn Fn(i64) + Sync)) -> Result<(), Stop> {
        let ends = Ends::new(Left::all(u64::try_from(count).unwrap_or(0)));
        let piece = |worker| {
            let side = Side::of(worker);
            while self.control.engine.end().is_none()
                && let Some(chunk) = ends.take(side)
            {
                body(i64::try_from(chunk.index).expect("it is below an i64"));
                self.control.engine.beat_of(side);
            }
        };
        if count <= 1 {
            piece(0);
        } else {
            self.workers.run(&piece);
        }
        self.control.engine.end().map_or(Ok(()), Err)
    }

    /// For a kernel that reads much before its first chunk.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vector kernels ask"))]
    pub(crate) fn poll(&self) -> Result<(), Stop> {
        self.control.engine.beat();
        self.control.engine.end().map_or(Ok(()), Err)
    }

    /// Calls `body` with the indices of each element of `dims`, at about `macs` each: the definitions'
    /// loops over a tensor, the last index fastest, in chunks whatever its shape is.
    pub(crate) fn elements<const N: usize>(
        &self,
        dims: [i64; N],
        macs: i64,
        body: &Element<'_, N>,
    ) -> Result<(), Stop> {
        const CHUNK: i64 = 1 << 18;
        let count: i64 = dims.iter().product();
        let each = (self.fine(CHUNK) / macs.max(1)).max(1);
        self.chunks((count + each - 1) / each, &|chunk, budget| {
            let first = chunk * each;
            let (mut at, mut rest) = ([0; N], first);
            for (index, dim) in at.iter_mut().zip(dims).rev() {
                (*index, rest) = (rest % dim, rest / dim);
            }
            for _ in first..(first + each).min(count) {
                budget.spend(macs)?;
                body(at, budget)?;
                for (index, dim) in at.iter_mut().zip(dims).rev() {
                    *index += 1;
                    if *index < dim {
                        break;
                    }
                    *index = 0;
                }
            }
            Ok(())
        })
    }

    /// How many of `units` equal units of `macs` each make a chunk: about eight chunks a worker, for
    /// balance, neither too small to pay for the call nor too large to be polled.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vector kernels ask"))]
    pub(crate) fn units_a_chunk(&self, units: i64, macs: i64) -> i64 {
        const SMALLEST: i64 = 1 << 17;
        const LARGEST: i64 = 1 << 22;
        let macs = macs.max(1);
        let balanced = units / (8 * self.workers());
        let smallest = (self.fine(SMALLEST) / macs).max(1);
        balanced.clamp(smallest, (self.fine(LARGEST) / macs).max(smallest)).min(units.max(1))
    }
}

/// How much a chunk may still do before it must look whether the job is to end.
pub(crate) struct Budget<'a> {
    control: &'a Control<'a>,
    side: Side,
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
        self.look()
    }

    /// Shows that there is progress, and looks whether it is to end. Apart, so that the count is in its loop.
    #[cold]
    fn look(&mut self) -> Result<(), Aborted> {
        self.left = LOOK_MACS;
        self.control.engine.beat_of(self.side);
        self.control.look();
        if self.control.engine.end().is_some() { Err(Aborted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::control::{Engine, Lookout};
    use npu_uapi::workers::Caller;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_chunk_runs_once_and_beats_once() {
        let engine = Engine::default();
        let seen = AtomicU64::new(0);
        let split = Split { workers: &Caller, control: &Control::new(&engine) };
        let done = split.chunks(10, &|chunk, _| {
            assert_eq!(seen.fetch_or(1 << chunk, Relaxed) >> chunk, 0);
            Ok(())
        });
        assert_eq!((done, seen.into_inner()), (Ok(()), 0x3ff));
        assert_eq!(engine.heartbeat(), 10);
    }

    #[test]
    fn two_workers_meet_between_the_ends() {
        /// The second piece first.
        struct Two;
        impl Workers for Two {
            fn count(&self) -> usize {
                2
            }
            fn run(&self, piece: &(dyn Fn(usize) + Sync)) {
                piece(1);
                piece(0);
            }
        }
        let engine = Engine::default();
        let split = Split { workers: &Two, control: &Control::new(&engine) };
        let seen = std::sync::Mutex::new(Vec::new());
        let note = |chunk| seen.lock().unwrap().push(chunk);
        split.before(3, &note).unwrap();
        engine.preempt();
        for _ in 0..2 {
            // One from each end, and is asked to rest; then the rest of them, from the back.
            let _ = split.chunks(5, &|chunk, _| {
                note(chunk);
                Ok(())
            });
            let place = engine.place();
            engine.reset();
            engine.begin(place);
        }
        assert_eq!(seen.into_inner().unwrap(), [2, 1, 0, 4, 0, 3, 2, 1]);
        assert!(engine.heartbeat() >= 8);
    }

    #[test]
    fn an_abort_within_a_chunk_ends_the_command() {
        let engine = Engine::default();
        let split = Split { workers: &Caller, control: &Control::new(&engine) };
        let done = split.chunks(10, &|chunk, budget| {
            if chunk == 3 {
                engine.abort();
                budget.spend(POLL_MACS)?;
                unreachable!("a spent budget polls");
            }
            Ok(())
        });
        assert_eq!(done, Err(Stop::Aborted));
    }

    #[test]
    fn a_preempted_command_goes_on_where_it_stopped_and_gets_on_each_time() {
        let engine = Engine::default();
        let split = Split { workers: &Caller, control: &Control::new(&engine) };
        let (seen, mut stops) = (std::sync::Mutex::new(Vec::new()), 0);
        loop {
            engine.preempt();
            let done = split.chunks(5, &|chunk, _| {
                seen.lock().unwrap().push(chunk);
                Ok(())
            });
            if done.is_ok() {
                break;
            }
            assert_eq!(done, Err(Stop::Preempted));
            let place = engine.place();
            engine.reset();
            engine.begin(place);
            stops += 1;
        }
        assert_eq!(seen.into_inner().unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(stops, 4, "behind the last chunk there is nothing left to preempt");
    }

    #[test]
    fn what_a_lookout_finds_preempts() {
        let engine = Engine::default();
        let look = || true;
        let lookout = Lookout::new(&look);
        let control = Control { lookout: Some(&lookout), ..Control::new(&engine) };
        let split = Split { workers: &Caller, control: &control };
        assert_eq!(split.chunks(1 << 40, &|_, _| Ok(())), Err(Stop::Preempted));
    }

    #[test]
    fn elements_come_once_each_in_order() {
        let (engine, seen) = (Engine::default(), std::sync::Mutex::new(Vec::new()));
        let split = Split { workers: &Caller, control: &Control::new(&engine) };
        let done = split.elements([2, 1, 3, 2], 1 << 17, &|at, _| {
            seen.lock().unwrap().push(at);
            Ok(())
        });
        assert_eq!((done, engine.heartbeat()), (Ok(()), 6), "two elements a chunk");
        let all = (0..2).flat_map(|n| (0..3).flat_map(move |x| (0..2).map(move |c| [n, 0, x, c])));
        assert!(seen.into_inner().unwrap().into_iter().eq(all));
    }
}
