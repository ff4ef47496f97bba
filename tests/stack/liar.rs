//! A device that lies in what it answers, in memory and in its registers: the driver ends with success
//! or a typed error, in bounded time.

use libnpu::transport::inproc::InProcess;
use libnpu::transport::vfio_user::VfioUser;
use libnpu::{
    Access, Caller, Device, DmaMemory, Error, Memory, Transport, TransportError, Workers,
};
use npu_tests::liar::{self, Lie, Plan};
use npu_tests::{Noise, Simulator};
use npu_uapi::addr::Iova;
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::ops::Range;
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

/// A device in this process, some of whose registers read as something else.
#[derive(Debug)]
struct LyingRegisters {
    device: InProcess,
    noise: Mutex<Noise>,
    honest: AtomicU64,
}

impl Transport for LyingRegisters {
    fn read32(&self, offset: u32) -> Result<u32, TransportError> {
        let value = self.device.read32(offset)?;
        if self
            .honest
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
        {
            return Ok(value);
        }
        let mut noise = self.noise.lock().unwrap();
        Ok(match noise.below(8) {
            0 => noise.word(),
            1 => value ^ 1 << noise.below(32),
            2 => u32::MAX,
            3 => 0,
            _ => value,
        })
    }
    fn write32(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.device.write32(offset, value)
    }
    fn config_read(&self, offset: u32) -> Result<u32, TransportError> {
        self.device.config_read(offset)
    }
    fn config_write(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.device.config_write(offset, value)
    }
    fn map(&self, memory: Arc<DmaMemory>, at: Iova, access: Access) -> Result<(), TransportError> {
        self.device.map(memory, at, access)
    }
    fn unmap(&self, at: Iova) -> Result<(), TransportError> {
        self.device.unmap(at)
    }
    fn iova_ranges(&self) -> Vec<Range<u64>> {
        self.device.iova_ranges()
    }
    fn reaches_process_memory(&self) -> bool {
        self.device.reaches_process_memory()
    }
    fn runs_by_itself(&self) -> bool {
        self.device.runs_by_itself()
    }
    fn interrupts(&self, vector: u16) -> u64 {
        self.device.interrupts(vector)
    }
    fn wait(
        &self,
        vector: u16,
        seen: u64,
        deadline: Instant,
        workers: &dyn Workers,
    ) -> Result<u64, TransportError> {
        self.device.wait(vector, seen, deadline, workers)
    }
    fn wake(&self, vector: u16) {
        self.device.wake(vector);
    }
    fn reset(&self) -> Result<(), TransportError> {
        self.device.reset()
    }
    fn is_gone(&self) -> bool {
        self.device.is_gone()
    }
    fn threads(&self) -> Option<usize> {
        self.device.threads()
    }
    fn describe(&self) -> String {
        self.device.describe()
    }
}

#[test]
fn whatever_registers_read_the_driver_ends_in_time_with_a_typed_error() {
    let ends = all_seeds(|seed| {
        let mut noise = Noise::new(seed);
        let honest = AtomicU64::new(if seed % 8 == 0 { u64::MAX } else { noise.below(16) });
        let is_honest = seed % 8 == 0;
        let device = InProcess::new("").unwrap();
        let noise = Mutex::new(noise);
        let result = exercise(Arc::new(LyingRegisters { device, noise, honest }));
        assert!(!is_honest || result.is_ok(), "nothing is wrong, but {result:?}");
        (if is_honest { "honest" } else { "lies" }.to_owned(), result)
    });
    println!("registers: [successes, errors]: {ends:?}");
    assert!(ends["lies"][1] > 0);
}
