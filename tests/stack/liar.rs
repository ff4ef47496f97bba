//! A device that lies in what it answers, in memory and in its registers: the driver ends with success
//! or a typed error, in bounded time.

use crate::registers::Registers;
use libnpu::transport::inproc::InProcess;
use libnpu::transport::vfio_user::VfioUser;
use libnpu::{Caller, Device, Error, Memory, Transport};
use npu_tests::liar::{self, Lie, Plan};
use npu_tests::{Noise, Simulator};
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const SEEDS: u64 = 440;
/// Each of them mostly waits.
const AT_ONCE: usize = 40;
const PATIENCE: Duration = Duration::from_millis(300);
const JOB_PATIENCE: Duration = Duration::from_secs(1);
/// Some admin commands and a change of state at their longest, 30 s each, and room to spare.
const LIMIT: Duration = Duration::from_secs(240);

/// Opens, allocates, runs a few jobs and closes.
fn exercise(transport: Arc<dyn Transport>) -> Result<(), Error> {
    let device = Device::over("the liar", transport)?;
    let context = device.create_context()?;
    let (one, other) = (device.allocate(4096)?, device.allocate(4096)?);
    for value in 0..4 {
        context.fill(&Memory::from(&one), value)?.wait(&Caller, JOB_PATIENCE)?;
        context.copy(&Memory::from(&one), &Memory::from(&other))?.wait(&Caller, JOB_PATIENCE)?;
    }
    device.counters()?;
    device.faults()?;
    Ok(())
}

/// Runs `one` for every seed, some at once; each ends in time and without a panic. What came of them.
fn all_seeds(
    one: impl Fn(u64) -> (String, Result<(), Error>) + Sync,
) -> BTreeMap<String, [u64; 2]> {
    let (next, ends) = (AtomicU64::new(0), Mutex::new(BTreeMap::<String, [u64; 2]>::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    let started = Instant::now();
                    let ended = catch_unwind(AssertUnwindSafe(|| one(seed)));
                    let took = started.elapsed();
                    let (kind, result) = ended.unwrap_or_else(|_| panic!("seed {seed} panics"));
                    assert!(took < LIMIT, "seed {seed} ({kind}) took {took:?}: {result:?}");
                    if took > Duration::from_secs(20) {
                        println!("seed {seed} ({kind}) took {took:?}: {result:?}");
                    }
                    let mut ends = ends.lock().unwrap();
                    ends.entry(kind).or_default()[usize::from(result.is_err())] += 1;
                }
            });
        }
    });
    ends.into_inner().unwrap()
}

#[test]
fn whatever_a_device_answers_or_writes_the_driver_ends_in_time_with_a_typed_error() {
    let server = Simulator::start("");
    let path = server.device().trim_start_matches("vfio-user:").to_owned();
    let canary = vec![0xa5_u8; 1 << 20];
    let ends = all_seeds(|seed| {
        let plan = Plan::new(seed);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let result = thread::scope(|scope| {
            let liar = scope.spawn(|| liar::serve(theirs, path.as_ref(), plan));
            let socket = ours.try_clone().unwrap();
            let result = VfioUser::over("the liar", ours, PATIENCE)
                .map_err(Error::from)
                .and_then(|transport| exercise(Arc::new(transport)));
            // A driver whose queue the device does not give up keeps it, and the connection, for good.
            let _ = socket.shutdown(Shutdown::Both);
            liar.join().unwrap().unwrap();
            result
        });
        if plan.lie == Lie::None {
            assert!(result.is_ok(), "nothing is wrong, but {result:?}");
        }
        (format!("{:?}", plan.lie), result)
    });
    println!("lie: [successes, errors]: {ends:?}");
    assert_eq!(ends.values().flatten().sum::<u64>(), SEEDS);
    assert!(canary.iter().all(|&byte| byte == 0xa5), "memory outside arenas is not the device's");
    for (kind, [_, errors]) in &ends {
        assert!((kind == "None") == (*errors == 0), "{kind}: {ends:?}");
    }
    // The real device behind it has survived as well.
    let device = Device::open_private(&server.device()).unwrap();
    device.create_context().unwrap().nop().unwrap().wait(&Caller, npu_tests::HANG).unwrap();
}

#[test]
fn whatever_registers_read_the_driver_ends_in_time_with_a_typed_error() {
    let ends = all_seeds(|seed| {
        let mut noise = Noise::new(seed);
        let is_honest = seed % 8 == 0;
        let honest = if is_honest { u64::MAX } else { noise.below(16) };
        let state = Mutex::new((noise, honest));
        let read = move |device: &InProcess, offset| {
            let value = device.read32(offset)?;
            let (noise, honest) = &mut *state.lock().unwrap();
            if *honest > 0 {
                *honest -= 1;
                return Ok(value);
            }
            Ok(match noise.below(8) {
                0 => noise.word(),
                1 => value ^ 1 << noise.below(32),
                2 => u32::MAX,
                3 => 0,
                _ => value,
            })
        };
        let result = exercise(Arc::new(Registers::new(read)));
        assert!(!is_honest || result.is_ok(), "nothing is wrong, but {result:?}");
        (if is_honest { "honest" } else { "lies" }.to_owned(), result)
    });
    println!("registers: [successes, errors]: {ends:?}");
    assert!(ends["lies"][1] > 0);
}
