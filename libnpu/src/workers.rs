//! The driver's own threads, for a device that computes in this process.

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

#[derive(Debug)]
struct Shared {
    /// Counts tasks; threads watch it. Changed with `slot` locked.
    generation: AtomicU64,
    slot: Mutex<Slot>,
    start: Condvar,
    /// Threads that have not finished the task.
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
struct Task(*const (dyn Fn(usize) + Sync));

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
            generation: AtomicU64::new(0),
            slot: Mutex::new(Slot::default()),
            start: Condvar::new(),
            left: AtomicUsize::new(0),
            finished: Condvar::new(),
        });
        let threads = (1..count.max(1)).map_while(|index| {
            let shared = Arc::clone(&shared);
            // Fewer threads than asked for is slower, not wrong.
            let builder = std::thread::Builder::new().name(format!("npu-worker-{index}"));
            builder.spawn(move || shared.work(index)).ok()
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

    /// What a thread does: spin for a task, then sleep for one; run its piece.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let mut looks = 0;
            while looks < LOOKS && self.generation.load(Ordering::Relaxed) == seen {
                looks += 1;
                std::hint::spin_loop();
            }
            let mut slot = self.lock();
            while self.generation.load(Ordering::Relaxed) == seen {
                slot.sleepers += 1;
                slot = self.start.wait(slot).unwrap_or_else(PoisonError::into_inner);
                slot.sleepers -= 1;
            }
            // Relaxed: the lock orders it.
            seen = self.generation.load(Ordering::Relaxed);
            if slot.is_closing {
                return;
            }
            let task = slot.task;
            drop(slot);
            if let Some(Task(piece)) = task {
                // SAFETY: `Pool::run` waits until `left` is zero before the closure goes.
                let piece = unsafe { &*piece };
                let result = catch_unwind(AssertUnwindSafe(|| piece(index)));
                if let Err(panic) = result {
                    self.lock().panic = Some(panic);
                }
            }
            // Release pairs with the Acquire in `run`: what the piece wrote is there.
            if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                let slot = self.lock();
                if slot.is_waited_for {
                    self.finished.notify_one();
                }
            }
        }
    }

    fn publish(&self, change: impl FnOnce(&mut Slot)) {
        let mut slot = self.lock();
        change(&mut slot);
        self.generation.fetch_add(1, Ordering::Relaxed);
        if slot.sleepers > 0 {
            self.start.notify_all();
        }
    }

    /// Waits until no thread has the task any more.
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
        // SAFETY: only the lifetime changes; `finish` below returns after the last use, also when
        // this thread's own piece panics.
        let erased: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(erased) };
        self.shared.left.store(self.threads.len(), Ordering::Relaxed);
        self.shared.publish(|slot| slot.task = Some(Task(erased)));
        let own = catch_unwind(AssertUnwindSafe(|| piece(0)));
        let other = self.shared.finish();
        drop(busy);
        if let Some(panic) = own.err().or(other) {
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
