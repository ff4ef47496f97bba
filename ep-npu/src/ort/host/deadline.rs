//! Ends runs of ONNX Runtime that take too long: a thread that sleeps until the next one is due.
//!
//! ONNX Runtime looks at the flag of a run's options before each node, so a run ends behind the node that
//! it is in. In a row of runs with the same limit the thread is not woken: it wakes when the first of them
//! would have been due, and sleeps on for the one that is due next.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use libnpu::PerProcess;
use ort_sys::OrtRunOptions;

use crate::ort::api::{Api, call};
use crate::ort::status::Failure;

/// The runs under way, and who looks after them.
#[derive(Debug, Default)]
struct Watch {
    runs: Vec<Arc<Run>>,
    thread: Option<Thread>,
    /// When the thread wakes by itself; `None` while it sleeps for good.
    wakes: Option<Instant>,
}

static WATCH: PerProcess<Watch> = PerProcess::new();

/// One run's options.
#[derive(Debug)]
struct Run {
    api: Api,
    raw: *mut OrtRunOptions,
    due: Instant,
    is_over: AtomicBool,
}

// SAFETY: options may be flagged from any thread while their run is under way.
unsafe impl Send for Run {}
// SAFETY: as for `Send`.
unsafe impl Sync for Run {}

impl Drop for Run {
    fn drop(&mut self) {
        let table = self.api.ort();
        // SAFETY: the slot is in every version.
        let release = unsafe { (*table).ReleaseRunOptions };
        // SAFETY: ours, and not used again.
        unsafe { release(self.raw) };
    }
}

/// A run that is ended when it is due, looked after until this is dropped.
#[derive(Debug)]
pub(super) struct Due(Arc<Run>);

impl Due {
    /// A run that is due when `limit` is over.
    pub(super) fn new(api: &Api, limit: Duration) -> Result<Self, Failure> {
        let mut raw = ptr::null_mut();
        call!(api, CreateRunOptions(&raw mut raw))?;
        // A limit beyond what clocks hold is none.
        let now = Instant::now();
        let due = now.checked_add(limit).unwrap_or_else(|| now + Duration::from_secs(1 << 30));
        let run = Arc::new(Run { api: *api, raw, due, is_over: AtomicBool::new(false) });
        let mut watch = WATCH.lock();
        watch.runs.push(Arc::clone(&run));
        if watch.wakes.is_none_or(|wakes| due < wakes) {
            match &watch.thread {
                Some(thread) => thread.unpark(),
                None => {
                    let started = thread::Builder::new().name("npu-due".into()).spawn(look_after);
                    // Without a thread there is nobody to end the run, so it does not begin.
                    let started = started.map_err(|error| {
                        watch.runs.pop();
                        Failure::provider(format!("no thread to end the run in time: {error}"))
                    })?;
                    watch.thread = Some(started.thread().clone());
                }
            }
        }
        drop(watch);
        DEADLINE.set(Some(due));
        Ok(Self(run))
    }

    /// The options to run with.
    pub(super) fn options(&self) -> *const OrtRunOptions {
        self.0.raw.cast_const()
    }

    /// Whether the run was ended because it was due.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        DEADLINE.set(None);
        WATCH.lock().runs.retain(|run| !Arc::ptr_eq(run, &self.0));
    }
}

thread_local! {
    /// When the run that this thread asked for is due. Parts of ours run on the thread that asked.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What is left of the time of the run that this thread asked for, if it has a limit.
pub(super) fn remaining() -> Option<Duration> {
    DEADLINE.get().map(|due| due.saturating_duration_since(Instant::now()))
}

fn look_after() {
    loop {
        let mut watch = WATCH.lock();
        let now = Instant::now();
        for run in watch.runs.iter().filter(|run| run.due <= now) {
            run.is_over.store(true, Ordering::Relaxed);
            // When that fails, the run ends by itself.
            let _ = call!(&run.api, RunOptionsSetTerminate(run.raw));
        }
        let next = watch.runs.iter().map(|run| run.due).filter(|&due| due > now).min();
        watch.wakes = next;
        drop(watch);
        match next {
            None => thread::park(),
            Some(next) => thread::park_timeout(next.saturating_duration_since(Instant::now())),
        }
    }
}
