//! Profiles: what the NPU ran, in the file that ONNX Runtime writes when a session is profiled.
//!
//! One event for each run of each part, with the modelled cycles, the bytes copied and the device. From
//! version 25 on; in older ones ONNX Runtime's own event of the node is all there is.

use std::ffi::{CString, c_char};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ort_sys::OrtStatusPtr;

use crate::run::RunReport;

use super::api::{Api, call};
use super::factory::Factory;
use super::status::{Failure, c_text, guard, guard_or};
use super::sys::{self, OrtEpProfilerImpl, OrtProfilingEvent, OrtProfilingEventsContainer};

/// Most events that are kept: further ones are counted only.
const MOST_EVENTS: usize = 1_000_000;

/// What the parts of a session ran while somebody profiles.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    /// Who listens: a profile of the session, and one of each run that asks for its own.
    listeners: usize,
    events: Vec<Arc<Event>>,
    /// How many events were before the first that is kept.
    forgotten: usize,
    lost: usize,
}

#[derive(Debug)]
struct Event {
    name: String,
    began: Instant,
    took: Duration,
    thread: i32,
    report: RunReport,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a run begins that is profiled; none where nobody listens.
    pub(crate) fn begin(&self) -> Option<Instant> {
        (self.lock().listeners > 0).then(Instant::now)
    }

    /// That run has ended.
    pub(crate) fn end(&self, began: Instant, name: &str, report: RunReport) {
        let (took, name) = (began.elapsed(), name.to_owned());
        let thread = thread_number();
        let event = Arc::new(Event { name, began, took, thread, report });
        let mut recorded = self.lock();
        match recorded.events.len() < MOST_EVENTS {
            true => recorded.events.push(event),
            false => recorded.lost += 1,
        }
    }

    /// Begins to listen; gives the number of the next event.
    fn listen(&self) -> usize {
        let mut recorded = self.lock();
        recorded.listeners += 1;
        recorded.forgotten + recorded.events.len()
    }

    /// The events from number `from` on, for one who listens no more.
    fn since(&self, from: usize) -> (Vec<Arc<Event>>, usize) {
        let mut recorded = self.lock();
        let start = from.saturating_sub(recorded.forgotten);
        let events = recorded.events.get(start..).unwrap_or_default().to_vec();
        let lost = recorded.lost;
        recorded.listeners = recorded.listeners.saturating_sub(1);
        if recorded.listeners == 0 {
            recorded.forgotten += recorded.events.len();
            recorded.events = Vec::new();
            recorded.lost = 0;
        }
        (events, lost)
    }
}

/// The number of this thread, as ONNX Runtime's events have it.
fn thread_number() -> i32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    let number = link.file_name().and_then(|name| name.to_str()?.parse().ok());
    number.unwrap_or_default()
}

/// One profile; ONNX Runtime sees its first field.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Profiler {
    ort: OrtEpProfilerImpl,
    factory: Arc<Factory>,
    events: Arc<Events>,
    started: Mutex<Option<Started>>,
}

/// When a profile began.
#[derive(Clone, Copy, Debug)]
struct Started {
    at: Instant,
    /// Nanoseconds between the profile's own zero and `at`.
    offset_ns: i64,
    /// Number of its first event.
    first: usize,
}

impl Profiler {
    /// A profiler, as the runtime holds it.
    pub(crate) fn into_raw(factory: Arc<Factory>, events: Arc<Events>) -> *mut OrtEpProfilerImpl {
        let ort = OrtEpProfilerImpl {
            version: factory.api().version(),
            release: Some(release),
            start_profiling: Some(start_profiling),
            start_event: None,
            stop_event: None,
            end_profiling: Some(end_profiling),
        };
        Box::into_raw(Box::new(Self { ort, factory, events, started: Mutex::new(None) })).cast()
    }

    /// # Safety
    /// `raw` is from [`Profiler::into_raw`] and is not released during `'a`.
    unsafe fn borrow<'a>(raw: *mut OrtEpProfilerImpl) -> &'a Self {
        // SAFETY: the caller's promise; the table is the first field.
        unsafe { &*raw.cast() }
    }

    fn started(&self) -> MutexGuard<'_, Option<Started>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, offset_ns: i64) {
        let first = self.events.listen();
        let before = self.started().replace(Started { at: Instant::now(), offset_ns, first });
        if let Some(before) = before {
            self.events.since(before.first);
        }
    }

    fn end(&self, container: *mut OrtProfilingEventsContainer) -> Result<(), Failure> {
        let Some(started) = self.started().take() else { return Ok(()) };
        let (events, lost) = self.events.since(started.first);
        let api = self.factory.api();
        let made = events.iter().map(|event| Made::new(api, event, started));
        let made = made.collect::<Result<Vec<_>, _>>()?;
        let list: Vec<*const OrtProfilingEvent> =
            made.iter().map(|event| event.raw.cast_const()).collect();
        if !list.is_empty() {
            call!(api, ep.add_profiling_events(container, list.as_ptr(), list.len()))?;
        }
        if lost > 0 {
            let line =
                format!("NPU: {lost} runs are not in the profile, which holds {MOST_EVENTS}");
            self.factory.logger().log(super::api::Severity::Warning, &line);
        }
        Ok(())
    }
}

/// An event of the runtime that we own; it copies what it is given.
struct Made<'a> {
    api: &'a Api,
    raw: *mut OrtProfilingEvent,
}

impl<'a> Made<'a> {
    fn new(api: &'a Api, event: &Event, started: Started) -> Result<Self, Failure> {
        let RunReport { cycles, copied_bytes, .. } = event.report;
        let pairs: [(CString, CString); 2] = [
            (c_text("npu_cycles"), c_text(&cycles.to_string())),
            (c_text("copied_bytes"), c_text(&copied_bytes.to_string())),
        ];
        let keys: Vec<*const c_char> = pairs.iter().map(|(key, _)| key.as_ptr()).collect();
        let values: Vec<*const c_char> = pairs.iter().map(|(_, value)| value.as_ptr()).collect();
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let since = nanoseconds(event.began.saturating_duration_since(started.at));
        let timestamp_us = started.offset_ns.saturating_add(since) / 1000;
        let process = i32::try_from(std::process::id()).unwrap_or(0);
        let name = c_text(&format!("npu:{}", event.name));
        let mut raw = std::ptr::null_mut();
        call!(
            api,
            ep.create_profiling_event(
                sys::PROFILING_KERNEL,
                process,
                event.thread,
                name.as_ptr(),
                timestamp_us,
                nanoseconds(event.took) / 1000,
                keys.as_ptr(),
                values.as_ptr(),
                pairs.len(),
                &raw mut raw,
            )
        )?;
        Ok(Self { api, raw })
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let table = self.api.ep();
        // SAFETY: profilers are made from version 25 on, which has the slot.
        let release = unsafe { (*table).release_profiling_event };
        // SAFETY: ours; the container has copied it.
        unsafe { release(self.raw) };
    }
}

unsafe extern "C" fn release(this: *mut OrtEpProfilerImpl) {
    guard_or((), || {
        if this.is_null() {
            return;
        }
        // SAFETY: the runtime returns a profiler of `into_raw`, once.
        let profiler: Box<Profiler> = unsafe { Box::from_raw(this.cast()) };
        let started = profiler.started().take();
        if let Some(started) = started {
            profiler.events.since(started.first);
        }
    });
}

unsafe extern "C" fn start_profiling(this: *mut OrtEpProfilerImpl, offset_ns: i64) -> OrtStatusPtr {
    // SAFETY: the runtime passes a profiler that it has not released.
    let profiler = unsafe { Profiler::borrow(this) };
    guard(profiler.factory.api(), || {
        profiler.start(offset_ns);
        Ok(())
    })
}

unsafe extern "C" fn end_profiling(
    this: *mut OrtEpProfilerImpl,
    container: *mut OrtProfilingEventsContainer,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes a profiler that it has not released.
    let profiler = unsafe { Profiler::borrow(this) };
    guard(profiler.factory.api(), || profiler.end(container))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_kept_only_while_somebody_listens_and_for_each_from_its_start() {
        let events = Events::default();
        assert!(events.begin().is_none());
        let run = |name: &str| {
            let began = events.begin().unwrap();
            events.end(began, name, RunReport::default());
        };
        let session = events.listen();
        run("one");
        let own = events.listen();
        run("two");
        let names = |from| -> Vec<String> {
            events.since(from).0.iter().map(|event| event.name.clone()).collect()
        };
        assert_eq!(names(own), ["two"]);
        run("three");
        assert_eq!(names(session), ["one", "two", "three"]);
        assert!(events.begin().is_none(), "nobody listens any more");
        let again = events.listen();
        run("four");
        assert_eq!(names(again), ["four"]);
    }
}
