//! Whatever is aborted, dropped, preempted or reset, each job ends exactly once.
//!
//! Random clients on one device: contexts of random priorities with jobs of random lengths, some aborted,
//! some dropped with jobs in flight. The driver itself refuses an answer that nothing waits for; here each
//! handle must tell of one end, and the device's counters of as many.

use libnpu::{Caller, Device, Error, Job, Loss, Memory, Pool, Priority};
use npu_tests::{HANG, Noise, Work, over_each_transport};
use npu_uapi::status::Status;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

over_each_transport! {
    each_job_ends_once_whatever_is_aborted_dropped_or_preempted,
    each_job_ends_once_when_the_device_is_reset_under_its_clients,
}

const CLIENTS: u64 = 3;
/// Contexts that a client makes, one after another.
const TURNS: u64 = 12;

/// How jobs ended.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    done: u64,
    aborted: u64,
    /// With their context, or by a reset.
    lost: u64,
}

impl Ends {
    fn add(&mut self, job: &Job, may_be_reset: bool) {
        let end = job.wait(&Caller, HANG);
        let again = job.poll().expect("it has ended");
        assert_eq!(format!("{end:?}"), format!("{again:?}"), "a job has one end");
        match end {
            Ok(_) => self.done += 1,
            Err(Error::Lost { why: Loss::Destroyed, .. }) => self.lost += 1,
            // Whatever shows first that the device is reset, but no answer that nothing waits for.
            Err(Error::Lost { why, .. })
                if may_be_reset && !matches!(why, Loss::Stray { .. } | Loss::Ring(_)) =>
            {
                self.lost += 1;
            }
            Err(error) => {
                let status = error.fault().map(|fault| fault.status);
                assert_eq!(status, Some(Status::ABORTED), "{error}");
                self.aborted += 1;
            }
        }
    }
}

/// One turn of a client.
fn turn(device: &Device, noise: &mut Noise, ends: &mut Ends, resets: bool) -> Result<(), Error> {
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
        match job {
            Ok(job) => jobs.push(job),
            Err(error) if resets => drop(error),
            Err(error) => return Err(error),
        }
    }
    let pool = Pool::new(2);
    let mut work = Some(work);
    for job in &jobs {
        match (&work, noise.below(12)) {
            // A reset may come first: then there is nothing to abort.
            (Some(work), 0) => {
                work.context.abort().or_else(|e| if resets { Ok(()) } else { Err(e) })?
            }
            (Some(_), 1) => work = None,
            (_, 2) => drop(job.wait(&pool, HANG)),
            _ => {}
        }
        ends.add(job, resets);
    }
    Ok(())
}

/// Clients at the same time; how their jobs ended.
fn clients(device: &Device, resets: bool) -> Ends {
    std::thread::scope(|scope| {
        let client = |seed| {
            move || {
                let (mut noise, mut ends) = (Noise::new(seed), Ends::default());
                let (mut turns, start) = (0, Instant::now());
                while turns < TURNS {
                    match turn(device, &mut noise, &mut ends, resets) {
                        Ok(()) => turns += 1,
                        // The reset came before its first job.
                        Err(_) if resets && start.elapsed() < HANG => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                ends
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|seed| scope.spawn(client(seed))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).fold(
            Ends::default(),
            |all, one| Ends {
                done: all.done + one.done,
                aborted: all.aborted + one.aborted,
                lost: all.lost + one.lost,
            },
        )
    })
}

fn each_job_ends_once_whatever_is_aborted_dropped_or_preempted(
    device: &Device,
) -> Result<(), Error> {
    let before = device.counters()?;
    let ends = clients(device, false);
    let after = device.counters()?;
    assert!(ends.done > 0 && ends.aborted + ends.lost > 0, "{ends:?}");
    assert_eq!(after.jobs - before.jobs, ends.done, "{ends:?}");
    assert_eq!(after.failed - before.failed, ends.aborted + ends.lost, "{ends:?}");
    Ok(())
}

fn each_job_ends_once_when_the_device_is_reset_under_its_clients(
    device: &Device,
) -> Result<(), Error> {
    let is_over = AtomicBool::new(false);
    let ends = std::thread::scope(|scope| {
        let resets = scope.spawn(|| {
            let mut noise = Noise::new(9);
            while !is_over.load(Ordering::Relaxed) {
                device.reset()?;
                // Now and then, whatever is under way.
                std::thread::sleep(Duration::from_millis(noise.below(200)));
            }
            device.reset()
        });
        let ends = clients(device, true);
        is_over.store(true, Ordering::Relaxed);
        resets.join().unwrap().map(|()| ends)
    })?;
    assert!(ends.lost > 0, "{ends:?}");
    let work = Work::new(device, Priority::Normal, 2, [64, 64, 64])?;
    work.submit()?.wait(&Caller, HANG)?;
    Ok(())
}
