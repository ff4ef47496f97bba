//! Whatever is aborted, dropped, preempted or reset, each job ends exactly once.
//!
//! Random clients on one device: contexts of random priorities with jobs of random lengths, some aborted,
//! some dropped with jobs in flight. The driver itself refuses an answer that nothing waits for; here each
//! handle must tell of one end, and the device's counters of as many.

use libnpu::{Caller, Device, Error, Job, Loss, Memory, Pool, Priority};
use npu_tests::{HANG, Noise, Work, over_each_transport};
use npu_uapi::status::Status;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

over_each_transport! {
    each_job_ends_once_whatever_is_aborted_dropped_or_preempted,
    each_job_ends_once_when_the_device_is_reset_under_its_clients,
}

const CLIENTS: u64 = 3;
/// Contexts that a client makes, one after another.
const TURNS: u64 = 12;
/// Most jobs from one reset to the next.
const JOBS_BETWEEN_RESETS: u64 = 30;

/// How jobs ended.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    done: u64,
    aborted: u64,
    /// With their context.
    dropped: u64,
    /// By a reset.
    reset: u64,
}

impl Ends {
    fn add(&mut self, job: &Job, may_be_reset: bool) {
        let end = job.wait(&Caller, HANG);
        let again = job.poll().expect("it has ended");
        assert_eq!(format!("{end:?}"), format!("{again:?}"), "a job has one end");
        match end {
            Ok(_) => self.done += 1,
            Err(Error::Lost { why: Loss::Destroyed, .. }) => self.dropped += 1,
            // Whatever shows first that the device is reset, but no answer that nothing waits for.
            Err(Error::Lost { why, .. })
                if may_be_reset && !matches!(why, Loss::Stray { .. } | Loss::Ring(_)) =>
            {
                self.reset += 1;
            }
            Err(error) => {
                let status = error.fault().map(|fault| fault.status);
                assert_eq!(status, Some(Status::ABORTED), "{error}");
                self.aborted += 1;
            }
        }
    }
}

/// What clients and whoever resets their device know of each other.
#[derive(Default)]
struct Course {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    submitted: u64,
    /// A reset has ended a job.
    has_hit: bool,
    is_over: bool,
}

impl Course {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `more` jobs than now are submitted; whether there are no more.
    fn is_over_before(&self, more: u64) -> bool {
        let state = self.state.lock().unwrap();
        let goal = state.submitted + more;
        let is_before = |state: &mut State| !state.is_over && state.submitted < goal;
        let (state, waited) = self.changed.wait_timeout_while(state, HANG, is_before).unwrap();
        assert!(!waited.timed_out(), "the clients hang after {} jobs", state.submitted);
        state.is_over
    }
}

/// One turn of a client. `course` is that of a device which is reset meanwhile.
fn turn(
    device: &Device,
    noise: &mut Noise,
    ends: &mut Ends,
    course: Option<&Course>,
) -> Result<(), Error> {
    let priorities = [Priority::Background, Priority::Normal, Priority::High, Priority::Urgent];
    let priority = priorities[usize::try_from(noise.below(4)).unwrap()];
    let (count, size) =
        [(1, 16), (3, 64), (8, 128), (20, 512)][usize::try_from(noise.below(4)).unwrap()];
    let work = Work::new(device, priority, count, [size, size, size])?;
    let buffer = device.allocate(4096)?;
    let mut jobs = Vec::new();
    for _ in 0..=noise.below(8) {
        let fills = noise.below(3) == 0;
        let job = if fills { work.context.fill(&Memory::from(&buffer), 1) } else { work.submit() };
        match (job, course) {
            (Ok(job), None) => jobs.push(job),
            (Ok(job), Some(course)) => {
                jobs.push(job);
                course.change(|state| state.submitted += 1);
            }
            (Err(_), Some(_)) => {}
            (Err(error), None) => return Err(error),
        }
    }
    let pool = Pool::new(2);
    let mut work = Some(work);
    for job in &jobs {
        match (&work, noise.below(12)) {
            // A reset may come first: then there is nothing to abort.
            (Some(work), 0) => {
                work.context.abort().or_else(|e| course.map(drop).ok_or(e))?;
            }
            (Some(_), 1) => work = None,
            (_, 2) => drop(job.wait(&pool, HANG)),
            _ => {}
        }
        ends.add(job, course.is_some());
    }
    Ok(())
}

/// Clients at the same time; how their jobs ended. Where the device is reset meanwhile, they go on until a
/// reset has ended a job of theirs.
fn clients(device: &Device, course: Option<&Course>) -> Ends {
    let client = |seed| {
        let (mut noise, mut ends) = (Noise::new(seed), Ends::default());
        let (mut turns, start) = (0, Instant::now());
        let is_waiting = || course.is_some_and(|course| !course.state.lock().unwrap().has_hit);
        while turns < TURNS || is_waiting() {
            assert!(start.elapsed() < HANG, "after {turns} turns: {ends:?}");
            match turn(device, &mut noise, &mut ends, course) {
                Ok(()) => turns += 1,
                // The reset came before its first job.
                Err(_) if course.is_some() => {}
                Err(error) => panic!("{error}"),
            }
            if let (Some(course), true) = (course, ends.reset > 0) {
                course.change(|state| state.has_hit = true);
            }
        }
        ends
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|seed| scope.spawn(move || client(seed))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).fold(
            Ends::default(),
            |all, one| Ends {
                done: all.done + one.done,
                aborted: all.aborted + one.aborted,
                dropped: all.dropped + one.dropped,
                reset: all.reset + one.reset,
            },
        )
    })
}

fn each_job_ends_once_whatever_is_aborted_dropped_or_preempted(
    device: &Device,
) -> Result<(), Error> {
    let before = device.counters()?;
    let ends = clients(device, None);
    let after = device.counters()?;
    assert!(ends.done > 0 && ends.aborted + ends.dropped > 0, "{ends:?}");
    assert_eq!(after.jobs - before.jobs, ends.done, "{ends:?}");
    assert_eq!(after.failed - before.failed, ends.aborted + ends.dropped, "{ends:?}");
    Ok(())
}

fn each_job_ends_once_when_the_device_is_reset_under_its_clients(
    device: &Device,
) -> Result<(), Error> {
    let course = Course::default();
    let ends = std::thread::scope(|scope| {
        let resets = scope.spawn(|| {
            let mut noise = Noise::new(9);
            // Whatever of those jobs is under way by then.
            while !course.is_over_before(1 + noise.below(JOBS_BETWEEN_RESETS)) {
                device.reset()?;
            }
            device.reset()
        });
        let ends = clients(device, Some(&course));
        course.change(|state| state.is_over = true);
        resets.join().unwrap().map(|()| ends)
    })?;
    assert!(ends.reset > 0, "{ends:?}");
    let work = Work::new(device, Priority::Normal, 2, [64, 64, 64])?;
    work.submit()?.wait(&Caller, HANG)?;
    Ok(())
}
