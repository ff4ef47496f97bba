//! Threads that compute: a pool that stands ready, and how many threads the process may use.
//!
//! The driver lends its [`Pool`] to a device in its own process; a device in a process of its own has
//! one for all its clients. So neither of the two needs to name the other.

use npu_uapi::workers::Workers;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Looks at the next task before a thread sleeps: some ten microseconds.
const LOOKS: u32 = 4000;

/// Persistent threads; the caller of [`Workers::run`] is one of the workers.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held by the one task that runs; another caller meanwhile computes alone.
    busy: Mutex<()>,
    /// The process that has the threads: a forked child has only the handles.
    owner: u32,
}

/// Pieces are claimed, not assigned: a thread that the system has not scheduled yet holds nobody up,
/// because the caller takes what is left.
#[derive(Debug)]
struct Shared {
    /// The task's number in the high half, its next unclaimed piece in the low half. A claim with an
    /// old number fails, so no thread touches a task that has ended.
    claim: AtomicU64,
    slot: Mutex<Slot>,
    start: Condvar,
    /// Pieces that have not ended.
    left: AtomicUsize,
    finished: Condvar,
}

#[derive(Debug, Default)]
struct Slot {
    task: Option<Task>,
    is_closing: bool,
    sleepers: usize,
    is_waited_for: bool,
    panic: Option<Box<dyn Any + Send>>,
}

/// The task's closure, its lifetime erased: [`Pool::run`] does not return before all are done with it.
#[derive(Clone, Copy)]
struct Task {
    piece: *const (dyn Fn(usize) + Sync),
    pieces: u64,
}

/// Mask of the low half of [`Shared::claim`].
const LOW: u64 = u32::MAX as u64;

// SAFETY: the closure is `Sync`, and `Pool::run` keeps it alive for as long as any thread has it.
unsafe impl Send for Task {}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Pool {
    /// A pool of `count` workers: the caller and `count - 1` threads.
    pub fn new(count: usize) -> Self {
        let shared = Arc::new(Shared {
            claim: AtomicU64::new(0),
            slot: Mutex::new(Slot::default()),
            start: Condvar::new(),
            left: AtomicUsize::new(0),
            finished: Condvar::new(),
        });
        let threads = (1..count.max(1)).map_while(|index| {
            let shared = Arc::clone(&shared);
            // Fewer threads than asked for is slower, not wrong.
            let builder = std::thread::Builder::new().name(format!("npu-worker-{index}"));
            builder.spawn(move || shared.work()).ok()
        });
        let threads = threads.collect();
        Self { shared, threads, busy: Mutex::new(()), owner: std::process::id() }
    }

    /// How many workers this process may use: its affinity mask, bounded by its cgroup's quota.
    pub fn default_count() -> usize {
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        let by_mask = affinity().unwrap_or(allowed);
        let by_quota = quota().unwrap_or(by_mask);
        by_mask.min(by_quota).max(1)
    }
}

/// Processors in the affinity mask.
fn affinity() -> Option<usize> {
    use nix::sched::{CpuSet, sched_getaffinity};
    let mask = sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok()?;
    let count = (0..CpuSet::count()).filter(|&cpu| mask.is_set(cpu).unwrap_or(false)).count();
    (count > 0).then_some(count)
}

/// Whole processors that the cgroup (version 2) and its parents leave to this process.
fn quota() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let leaf = Path::new("/sys/fs/cgroup").join(group);
    let quotas = leaf.ancestors().take_while(|path| path.starts_with("/sys/fs/cgroup"));
    quotas
        .filter_map(|path| std::fs::read_to_string(path.join("cpu.max")).ok())
        .filter_map(|text| whole_processors(&text))
        .min()
}

/// `quota period` in microseconds, as `cpu.max` has it; `max` is no bound.
fn whole_processors(text: &str) -> Option<usize> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (usize, usize) = (quota.parse().ok()?, period.parse().ok()?);
    Some(quota.checked_div(period)?.max(1))
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the task that is current, or was last.
    fn number(&self) -> u64 {
        // Relaxed: what goes with it is read under the lock.
        self.claim.load(Ordering::Relaxed) >> 32
    }

    /// What a thread does: spin for a task, then sleep for one; run pieces of it.
    fn work(&self) {
        let mut seen = 0;
        loop {
            let mut looks = 0;
            while looks < LOOKS && self.number() == seen {
                looks += 1;
                std::hint::spin_loop();
            }
            let mut slot = self.lock();
            while self.number() == seen {
                slot.sleepers += 1;
                slot = self.start.wait(slot).unwrap_or_else(PoisonError::into_inner);
                slot.sleepers -= 1;
            }
            seen = self.number();
            if slot.is_closing {
                return;
            }
            let task = slot.task;
            drop(slot);
            if let Some(task) = task {
                self.run_pieces(seen, task);
            }
        }
    }

    /// Runs pieces of task `number` until none is unclaimed.
    fn run_pieces(&self, number: u64, task: Task) {
        // Relaxed: the lock, under which `task` was read or written, orders what the pieces read.
        let claim = |found: u64| {
            let is_open = found >> 32 == number && (found & LOW) < task.pieces;
            is_open.then_some(found + 1)
        };
        while let Ok(claimed) = self.claim.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim)
        {
            self.run_piece(task, usize::try_from(claimed & LOW).unwrap_or(usize::MAX));
        }
    }

    /// Runs a piece that was claimed.
    fn run_piece(&self, task: Task, index: usize) {
        // SAFETY: the piece was claimed, so `Pool::run` has not returned: it waits for `left`.
        let piece = unsafe { &*task.piece };
        let result = catch_unwind(AssertUnwindSafe(|| piece(index)));
        if let Err(panic) = result {
            self.lock().panic = Some(panic);
        }
        // Release pairs with the Acquire in `finish`: what the piece wrote is there.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let slot = self.lock();
            if slot.is_waited_for {
                self.finished.notify_one();
            }
        }
    }

    /// Begins the next task; returns its number.
    ///
    /// The first piece is the caller's own, always: what it keeps to from task to task is in its cache.
    fn publish(&self, change: impl FnOnce(&mut Slot)) -> u64 {
        let mut slot = self.lock();
        change(&mut slot);
        // Never zero, which threads have seen from the start.
        let number = (self.number() + 1) & LOW;
        let number = number.max(1);
        self.claim.store(number << 32 | 1, Ordering::Relaxed);
        if slot.sleepers > 0 {
            self.start.notify_all();
        }
        number
    }

    /// Waits until every piece has ended.
    fn finish(&self) -> Option<Box<dyn Any + Send>> {
        let mut looks = 0;
        while looks < LOOKS && self.left.load(Ordering::Acquire) != 0 {
            looks += 1;
            std::hint::spin_loop();
        }
        let mut slot = self.lock();
        slot.is_waited_for = true;
        while self.left.load(Ordering::Acquire) != 0 {
            slot = self.finished.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
        slot.is_waited_for = false;
        slot.task = None;
        slot.panic.take()
    }
}

impl Workers for Pool {
    fn count(&self) -> usize {
        self.threads.len() + 1
    }

    fn run(&self, piece: &(dyn Fn(usize) + Sync)) {
        let busy = match self.busy.try_lock() {
            Ok(busy) => Some(busy),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        };
        if busy.is_none() || self.threads.is_empty() {
            (0..self.count()).for_each(piece);
            return;
        }
        let erased = std::ptr::from_ref(piece);
        // SAFETY: only the lifetime changes; `finish` below returns after the last use, and a piece
        // that panics does not skip it.
        let piece: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(erased) };
        let task = Task { piece, pieces: self.count() as u64 };
        self.shared.left.store(self.count(), Ordering::Relaxed);
        let number = self.shared.publish(|slot| slot.task = Some(task));
        self.shared.run_piece(task, 0);
        self.shared.run_pieces(number, task);
        let panic = self.shared.finish();
        drop(busy);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.owner != std::process::id() {
            return;
        }
        self.shared.publish(|slot| slot.is_closing = true);
        for thread in self.threads.drain(..) {
            // A worker never panics: it catches what its pieces do.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_piece_runs_exactly_once_a_task() {
        let pool = Pool::new(4);
        assert_eq!(pool.count(), 4);
        let counts: [AtomicU32; 4] = Default::default();
        for _ in 0..2000 {
            pool.run(&|index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 2000));
    }

    #[test]
    fn tasks_from_several_threads_and_from_inside_a_task_all_complete() {
        let (pool, total) = (Pool::new(3), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(&|_| {
                            pool.run(&|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 200 * 9);
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        for bad in 0..2 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|index| assert!(index != bad, "piece {index}"));
            }));
            assert!(result.is_err());
        }
        let count = AtomicU32::new(0);
        pool.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_quota_counts_whole_processors_and_max_is_none() {
        assert_eq!(whole_processors("250000 100000\n"), Some(2));
        assert_eq!(whole_processors("50000 100000"), Some(1));
        assert_eq!(whole_processors("max 100000"), None);
        assert!(Pool::default_count() >= 1);
    }
}
