//! Ending runs from outside: a thread that looks, while runs are under way, whether one is to end.
//! Unsafe: it reads a byte of the caller's.
//!
//! A device in this process computes on the thread that waits for the job, which so cannot look itself,
//! and a command may be long; the device looks for an abort within each command. Between runs the
//! thread sleeps. It only looks: the abort is another thread's, one for each run that is to end, so that a
//! device which is slow to answer is in nobody else's way.

use super::{Executable, Loaded, RunError};
use libnpu::{Context, Done, Memory, PerProcess, Workers};
use npu_uapi::addr::SlotId;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How often runs are looked after. A look takes a worker's processor for 40 us: of every 5 ms, that was 1 %.
const LOOK: Duration = Duration::from_millis(25);
/// How long after the last run it goes to sleep: in a row of runs nobody needs to be woken.
const LINGER: Duration = Duration::from_millis(200);

/// How often a run is submitted whose jobs are aborted for the sake of other runs.
const MOST_SUBMISSIONS: u32 = 1000;

/// A byte of the caller's that becomes other than zero when a run is to end.
#[derive(Clone, Copy)]
pub struct StopFlag(NonNull<AtomicU8>);

// SAFETY: it is only read, as an atomic.
unsafe impl Send for StopFlag {}
// SAFETY: as for `Send`.
unsafe impl Sync for StopFlag {}

impl StopFlag {
    /// # Safety
    /// `byte` is valid for atomic reads until every run that is given the flag has returned.
    pub unsafe fn new(byte: NonNull<AtomicU8>) -> Self {
        Self(byte)
    }

    /// Whether the run is to end.
    pub fn is_set(self) -> bool {
        // SAFETY: the promise of `new`; a run leaves `WATCH` before it returns.
        let byte = unsafe { self.0.as_ref() };
        byte.load(Ordering::Relaxed) != 0
    }
}

impl fmt::Debug for StopFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StopFlag")
    }
}

/// The runs under way, and who looks after them.
#[derive(Debug, Default)]
struct Watch {
    runs: Vec<Arc<Run>>,
    thread: Option<Thread>,
    is_asleep: bool,
    /// Runs begun so far.
    begun: u64,
}

static WATCH: PerProcess<Watch> = PerProcess::new();

#[derive(Debug)]
struct Run {
    flag: StopFlag,
    context: Context,
    /// Whether a thread is aborting it.
    is_aborting: AtomicBool,
    /// Held while it is aborted; whether it has returned since.
    has_returned: Mutex<bool>,
}

impl Run {
    /// Ends the jobs of its context, if it has not returned. When that fails the device is gone, and so
    /// are its jobs.
    fn abort(&self) {
        let has_returned = self.has_returned.lock().unwrap_or_else(PoisonError::into_inner);
        if !*has_returned {
            let _ = self.context.abort();
        }
        drop(has_returned);
        self.is_aborting.store(false, Ordering::Release);
    }
}

/// One run, looked after until this is dropped.
#[derive(Debug)]
pub(super) struct Watched(Arc<Run>);

impl Watched {
    /// From now on jobs of `context` are aborted when `flag` is set. Without a thread to be had, the
    /// run ends by itself.
    pub(super) fn new(flag: StopFlag, context: &Context) -> Self {
        let run = Arc::new(Run {
            flag,
            context: context.clone(),
            is_aborting: AtomicBool::new(false),
            has_returned: Mutex::new(false),
        });
        let mut watch = WATCH.lock();
        watch.begun += 1;
        watch.runs.push(Arc::clone(&run));
        match &watch.thread {
            Some(thread) if watch.is_asleep => thread.unpark(),
            Some(_) => {}
            None => {
                let started = thread::Builder::new().name("npu-stop".into()).spawn(look_after);
                watch.thread = started.ok().map(|handle| handle.thread().clone());
            }
        }
        Self(run)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut watch = WATCH.lock();
        watch.runs.retain(|run| !Arc::ptr_eq(run, &self.0));
        drop(watch);
        // An abort under way ends before the run returns, so that it meets no later one's job.
        *self.0.has_returned.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

impl Executable {
    /// As [`Executable::job`], aborted when `flag` is set. An abort, also that of a run whose time is
    /// up, ends all jobs of the context: those of runs that nobody asked to end are submitted again.
    pub(super) fn job_until(
        &self,
        loaded: &Loaded,
        overlay: &[(SlotId, Memory)],
        workers: &dyn Workers,
        timeout: Duration,
        is_in_place: bool,
        flag: Option<StopFlag>,
    ) -> Result<Done, RunError> {
        let _watched = flag.map(|flag| Watched::new(flag, &self.context));
        let is_set = || flag.is_some_and(StopFlag::is_set);
        let started = Instant::now();
        let mut left = MOST_SUBMISSIONS;
        loop {
            if is_set() {
                return Err(RunError::Stopped);
            }
            let remaining = timeout.saturating_sub(started.elapsed());
            let done = self.job(loaded, overlay, workers, remaining, is_in_place);
            left -= 1;
            match done {
                Err(error) if error.is_abort() && is_set() => return Err(RunError::Stopped),
                Err(error) if error.is_abort() && left > 0 => {}
                done => return done,
            }
        }
    }
}

fn look_after() {
    let (mut seen, mut worked) = (0, Instant::now());
    loop {
        let mut watch = WATCH.lock();
        let flagged = watch.runs.iter().filter(|run| run.flag.is_set());
        // Each time it looks: a job may have been submitted just behind the last abort.
        let free = flagged.filter(|run| !run.is_aborting.swap(true, Ordering::AcqRel));
        let to_end: Vec<Arc<Run>> = free.cloned().collect();
        if watch.begun != seen || !watch.runs.is_empty() {
            (seen, worked) = (watch.begun, Instant::now());
        }
        watch.is_asleep = worked.elapsed() > LINGER;
        let is_asleep = watch.is_asleep;
        drop(watch);
        for run in to_end {
            let aborted = Arc::clone(&run);
            let started =
                thread::Builder::new().name("npu-abort".into()).spawn(move || aborted.abort());
            if started.is_err() {
                run.abort();
            }
        }
        match is_asleep {
            true => thread::park(),
            false => thread::park_timeout(LOOK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libnpu::Device;

    static FLAGS: [AtomicU8; 2] = [AtomicU8::new(0), AtomicU8::new(0)];

    #[test]
    fn a_device_that_is_slow_to_abort_delays_no_other_run_s_stop() {
        let watched = FLAGS.each_ref().map(|flag| {
            let context = Device::open("sim").unwrap().create_context().unwrap();
            // SAFETY: a static.
            Watched::new(unsafe { StopFlag::new(NonNull::from(flag)) }, &context)
        });
        let [slow, other] = &watched;
        // As if the abort of the first were under way, for as long as this is held.
        let held = slow.0.has_returned.lock().unwrap();
        FLAGS[0].store(1, Ordering::Relaxed);
        let until = Instant::now() + Duration::from_secs(60);
        let wait_for = |run: &Watched| {
            while !run.0.is_aborting.load(Ordering::Acquire) {
                assert!(Instant::now() < until, "nobody aborts the run");
                thread::yield_now();
            }
        };
        wait_for(slow);
        FLAGS[1].store(1, Ordering::Relaxed);
        wait_for(other);
        assert!(slow.0.is_aborting.load(Ordering::Acquire), "the first is still held up");
        drop(held);
        // Waits for what is under way, and leaves nothing that looks at the flags.
        drop(watched);
    }
}
