//! `npu selftest`: does this device do what the interface says? One line a test, with its figures.
//!
//! ```text
//! registers, interrupts, DMA, faults      bus.rs
//! programs built by hand                  programs.rs, compared with scalar.rs
//! ```

#[path = "selftest/bus.rs"]
mod bus;
#[path = "selftest/programs.rs"]
mod programs;
#[path = "selftest/scalar.rs"]
mod scalar;

use anyhow::{Context as _, Result};
use libnpu::{Context, Device};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long any one step may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Options of `npu selftest`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The device: `sim`, or with options as `sim:macs=256,sram=512K,threads=2`.
    #[arg(long, default_value = "sim")]
    device: String,
}

/// What a test has of the device.
struct Bench {
    device: Device,
    context: Context,
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
];

/// Runs every test on the device that `args` name.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // A device of its own: a test may leave registers as no user would.
    let device = Device::open_private(&args.device)
        .with_context(|| format!("cannot open device `{}`", args.device))?;
    let limits = device.limits();
    println!("{}: {}, {} workers", args.device, device.describe(), device.pool().count());
    println!(
        "modelled: {} MAC a cycle, {} MHz, {} KiB of SRAM",
        limits.macs_per_cycle,
        limits.clock_khz / 1000,
        limits.sram_bytes >> 10
    );
    let context = device.create_context().context("cannot create a context")?;
    let bench = Bench { device, context };
    let mut failed = 0;
    for (name, test) in TESTS {
        let started = Instant::now();
        let result = test(&bench);
        let elapsed = started.elapsed();
        match result {
            Ok(figures) => {
                let time = figures.time.unwrap_or(elapsed);
                let cycles = match figures.cycles {
                    0 => String::new(),
                    cycles => format!("{cycles} cycles"),
                };
                let time = format!("{time:.1?}");
                println!("pass  {name:<26} {time:>10} {cycles:>16}  {}", figures.detail);
            }
            Err(error) => {
                failed += 1;
                println!("FAIL  {name:<26} {error:#}");
            }
        }
    }
    println!("{} of {} passed", TESTS.len() - failed, TESTS.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
