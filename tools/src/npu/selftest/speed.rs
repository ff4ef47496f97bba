//! How fast it answers and moves memory, on this machine: figures, which no limit is set to.

use super::{Bench, Figures};
use anyhow::{Result, ensure};
use libnpu::{Access, Caller, Memory};
use std::time::{Duration, Instant};

/// Empty jobs, one after the other.
const JOBS: usize = 2000;
/// Bytes of a copy: more than the caches in front of the memory.
const COPY_BYTES: usize = 16 << 20;
const COPIES: u8 = 8;
/// Interrupts that may be missed, beside one in [`ONE_IN`]: on a machine that is overloaded some are so late
/// that their jobs are found without them. Each costs a tenth of a second, so that few jobs show the loss.
const MISSED: u64 = 8;
const ONE_IN: u64 = 50;

/// From the submission of an empty job to its completion.
pub(super) fn latency(bench: &Bench) -> Result<Figures> {
    let mut times = Vec::with_capacity(JOBS);
    let before = bench.device.missed_interrupts();
    for done in 1..=JOBS {
        let started = Instant::now();
        bench.finish(&bench.context.nop()?, &Caller)?;
        times.push(started.elapsed());
        let missed = bench.device.missed_interrupts() - before;
        ensure!(
            missed <= MISSED + u64::try_from(done)? / ONE_IN,
            "of {done} empty jobs {missed} were done, but their interrupts did not come"
        );
    }
    times.sort_unstable();
    let at = |percent: usize| times[(JOBS - 1) * percent / 100];
    let [median, late, worst] = [at(50), at(99), at(100)].map(micros);
    let detail = format!("{JOBS} jobs: median {median}, 99 % below {late}, longest {worst}");
    Ok(Figures { time: Some(at(50)), detail, ..Figures::default() })
}

/// Copies from one buffer to another, which is what was copied afterwards.
pub(super) fn bandwidth(bench: &Bench) -> Result<Figures> {
    let (source, target) = (bench.device.allocate(COPY_BYTES)?, bench.device.allocate(COPY_BYTES)?);
    let len = COPY_BYTES as u64;
    let (from, to) = (
        Memory::buffer(&source, 0, len, Access::Read)?,
        Memory::buffer(&target, 0, len, Access::Write)?,
    );
    source.write(0, &super::scalar::codes(COPY_BYTES, 3))?;
    let (mut cycles, mut best) = (0, Duration::MAX);
    for _ in 0..COPIES {
        let started = Instant::now();
        cycles += bench.finish(&bench.context.copy(&from, &to)?, &Caller)?.cycles;
        best = best.min(started.elapsed());
    }
    ensure!(source.to_vec() == target.to_vec(), "a copy of {COPY_BYTES} bytes differs");
    let gigabytes = f64::from(u32::try_from(COPY_BYTES)?) / 1e9 / best.as_secs_f64();
    let detail =
        format!("{COPIES} copies of {} MiB, {gigabytes:.1} GB/s at best", COPY_BYTES >> 20);
    Ok(Figures { cycles, time: Some(best), detail })
}

fn micros(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}
