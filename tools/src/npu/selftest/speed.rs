//! How fast it answers and moves memory, on this machine: figures, which no limit is set to.

use super::{Bench, Figures, TIMEOUT};
use anyhow::{Result, ensure};
use libnpu::{Access, Caller, Memory};
use std::time::{Duration, Instant};

/// Empty jobs, one after the other.
const JOBS: usize = 2000;
/// Bytes of a copy: more than the caches in front of the memory.
const COPY_BYTES: usize = 16 << 20;
const COPIES: u8 = 8;
/// What all empty jobs take only where each waits for what does not come: they are done in a second.
const LONGEST: Duration = Duration::from_secs(10);

/// From the submission of an empty job to its completion.
pub(super) fn latency(bench: &Bench) -> Result<Figures> {
    let mut times = Vec::with_capacity(JOBS);
    let begun = Instant::now();
    for done in 0..JOBS {
        let spent = begun.elapsed();
        ensure!(
            spent < LONGEST,
            "{done} of {JOBS} empty jobs in {:.0} s: each is found late, as when interrupts are lost",
            spent.as_secs_f64()
        );
        let started = Instant::now();
        bench.context.nop()?.wait(&Caller, TIMEOUT)?;
        times.push(started.elapsed());
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
        cycles += bench.context.copy(&from, &to)?.wait(&Caller, TIMEOUT)?.cycles;
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
