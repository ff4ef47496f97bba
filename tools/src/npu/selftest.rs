//! Does this device do what the interface says? `npu selftest` and `npu-smi selftest` run these tests.
//!
//! ```text
//! registers, interrupts, DMA, faults      bus.rs
//! programs built by hand                  programs.rs, compared with scalar.rs
//! latency, bandwidth                      speed.rs
//! ```
//! A device that does not answer, or loses its interrupts, ends the run as well: each wait has a limit, and
//! all of them together have one.

#[path = "selftest/bus.rs"]
mod bus;
#[path = "selftest/programs.rs"]
mod programs;
#[path = "selftest/scalar.rs"]
mod scalar;
#[path = "selftest/speed.rs"]
mod speed;

use anyhow::{Context as _, Result, anyhow};
use libnpu::{Context, Device, Done, Error, Job, Workers};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Longest that one job may take: the largest takes a second where plain code computes.
const JOB: Duration = Duration::from_secs(20);
/// Longest that an interrupt may take: microseconds, or a second on a machine that is overloaded.
const ARRIVAL: Duration = Duration::from_secs(4);
/// Longest that all tests together wait for the device. What they compute themselves does not count, so
/// that a slow machine has its time.
const RUN: Duration = Duration::from_secs(60);

/// What a test has of the device.
struct Bench {
    device: Device,
    context: Context,
    /// What is left of [`RUN`].
    left: Cell<Duration>,
}

impl Bench {
    /// What `wait` gives, which is told how long it may take: `most`, and no longer than the run has left.
    fn wait<T>(&self, most: Duration, wait: impl FnOnce(Duration) -> T) -> T {
        let left = self.left.get();
        let started = Instant::now();
        let given = wait(most.min(left));
        self.left.set(left.saturating_sub(started.elapsed()));
        given
    }

    /// Waits for the end of `job`; a device in this process computes it meanwhile, with `workers`.
    fn finish(&self, job: &Job, workers: &dyn Workers) -> Result<Done, Error> {
        self.wait(JOB, |most| job.wait(workers, most))
    }
}

/// What a test that passed reports.
#[derive(Default)]
struct Figures {
    /// Modelled cycles.
    cycles: u64,
    /// Time in the device; the whole test's when there is none.
    time: Option<Duration>,
    /// What was done.
    detail: String,
}

impl Figures {
    fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..Self::default() }
    }
}

type Test = fn(&Bench) -> Result<Figures>;

/// Every test, in the order of what rests on what.
const TESTS: &[(&str, Test)] = &[
    ("registers: patterns", bus::patterns),
    ("registers: access rules", bus::access_rules),
    ("interrupt: raised, masked", bus::interrupt),
    ("dma: fill", bus::fill),
    ("dma: copy", bus::copy),
    ("fault: unmapped address", bus::unmapped),
    ("fault: bad entry", bus::bad_entry),
    ("fault: bad program", programs::refused),
    ("program: matmul", programs::matmul),
    ("program: large matmul", programs::large_matmul),
    ("program: conv, add, pool", programs::conv_add_pool),
    ("latency: empty job", speed::latency),
    ("bandwidth: copy", speed::bandwidth),
];

/// A device under test.
pub(crate) struct Subject {
    bench: Bench,
}

/// What became of one test.
pub(crate) struct Outcome {
    /// What is tested.
    pub(crate) name: &'static str,
    /// Why it failed, if it did.
    pub(crate) error: Option<String>,
    /// Time in the device, or of the whole test.
    pub(crate) time: Duration,
    /// Modelled cycles; zero where none are counted.
    pub(crate) cycles: u64,
    /// What was done, where it passed.
    pub(crate) detail: String,
}

impl Subject {
    /// Opens `device` for tests.
    pub(crate) fn open(device: &str) -> Result<Self> {
        // A device of its own: a test may leave registers as no user would.
        let device = Device::open_private(device)
            .with_context(|| format!("cannot open device `{device}`"))?;
        let context = device.create_context().context("cannot create a context")?;
        Ok(Self { bench: Bench { device, context, left: Cell::new(RUN) } })
    }

    /// What it is, in a line.
    pub(crate) fn describe(&self) -> String {
        let device = &self.bench.device;
        format!("{}, {} workers", device.describe(), device.pool().count())
    }

    /// Its modelled sizes, in a line.
    pub(crate) fn sizes(&self) -> String {
        let limits = self.bench.device.limits();
        format!(
            "{} MAC a cycle, {} MHz, {} KiB of SRAM",
            limits.macs_per_cycle,
            limits.clock_khz / 1000,
            limits.sram_bytes >> 10
        )
    }

    fn is_out_of_time(&self) -> bool {
        self.bench.left.get().is_zero()
    }

    /// Runs every test, one at each step.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        TESTS.iter().map(|&(name, test)| {
            let started = Instant::now();
            let result = match self.is_out_of_time() {
                true => Err(anyhow!("not run: {}", out_of_time())),
                false => test(&self.bench).map_err(|error| match self.is_out_of_time() {
                    true => anyhow!("{error:#}; {}", out_of_time()),
                    false => error,
                }),
            };
            let elapsed = started.elapsed();
            match result {
                Ok(Figures { cycles, time, detail }) => {
                    let time = time.unwrap_or(elapsed);
                    Outcome { name, error: None, time, cycles, detail }
                }
                Err(error) => {
                    let error = Some(format!("{error:#}"));
                    Outcome { name, error, time: elapsed, cycles: 0, detail: String::new() }
                }
            }
        })
    }
}

/// Why no test waits any longer.
fn out_of_time() -> String {
    format!("the tests have waited {} s for the device, all that they may", RUN.as_secs())
}

impl Outcome {
    /// The line that a report has of it.
    pub(crate) fn line(&self) -> String {
        let Self { name, error, time, cycles, detail } = self;
        if let Some(error) = error {
            return format!("FAIL  {name:<26} {error}");
        }
        let cycles = if *cycles == 0 { String::new() } else { format!("{cycles} cycles") };
        let time = format!("{time:.1?}");
        format!("pass  {name:<26} {time:>10} {cycles:>16}  {detail}")
    }
}
