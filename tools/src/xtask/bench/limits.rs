//! What this machine can do at most: loops that do nothing but the instruction or the copy in question.
//!
//! Measured in the run that is judged by them, on the same processors, each loop several times and the
//! best taken: a limit is what is left when nobody disturbs.

#[path = "limits/x86.rs"]
mod x86;

use std::fmt;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// How often each loop is measured.
const TRIES: usize = 12;
/// Both buffers of a copy that stays in a second-level cache.
const IN_L2: usize = 192 << 10;
/// Either buffer of one that no cache holds.
const IN_MEMORY: usize = 128 << 20;
/// At least so long a copy is repeated for one figure.
const COPYING: Duration = Duration::from_millis(20);

/// What so many threads reach together; none where the processor lacks the instruction.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Limits {
    /// For one thread and for two, in order, as far as there are processors.
    pub(crate) one: Reached,
    pub(crate) two: Option<Reached>,
}

/// GMAC/s of 8-bit products, and GB/s read and written.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Reached {
    /// `vpdpbusd` on 512 bits.
    pub(crate) avx512_vnni: Option<f64>,
    /// `vpdpbusd` on 256 bits, VEX.
    pub(crate) avx_vnni: Option<f64>,
    /// `vpmaddubsw`, `vpmaddwd` and an addition, on 256 bits. It saturates: kernels whose results are exact
    /// cannot be made of it.
    pub(crate) avx2: Option<f64>,
    /// `vpmaddwd` of bytes widened to 16 bits and an addition, on 256 bits, which is exact.
    pub(crate) avx2_exact: Option<f64>,
    /// A copy within a second-level cache.
    pub(crate) l2: f64,
    /// A copy that no cache holds.
    pub(crate) memory: f64,
}

impl Reached {
    /// The most that any instruction gives; 0 where there is none.
    pub(crate) fn multiply(&self) -> f64 {
        [self.avx512_vnni, self.avx_vnni, self.avx2].into_iter().flatten().fold(0.0, f64::max)
    }
}

/// Measures all, which takes a few seconds.
pub(crate) fn measure() -> Result<Limits> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot ask for our processors")?;
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    let one = reached(cpus.get(..1).context("this process may use no processor")?)?;
    let two = cpus.get(..2).map(reached).transpose()?;
    Ok(Limits { one, two })
}

fn reached(cpus: &[usize]) -> Result<Reached> {
    let loops = x86::loops();
    let [avx512_vnni, avx_vnni, avx2, avx2_exact] =
        loops.map(|rate| rate.map(|rate| together(cpus, &|| rate())).transpose());
    let l2 = together(cpus, &|| copy(IN_L2 / 2))?;
    let memory = together(cpus, &|| copy(IN_MEMORY))?;
    Ok(Reached {
        avx512_vnni: avx512_vnni?,
        avx_vnni: avx_vnni?,
        avx2: avx2?,
        avx2_exact: avx2_exact?,
        l2,
        memory,
    })
}

/// The sum of what `rate` says on each of `cpus` at the same time; the best of several tries.
fn together(cpus: &[usize], rate: &(dyn Fn() -> f64 + Sync)) -> Result<f64> {
    let all = Barrier::new(cpus.len());
    let on = |cpu: usize| -> Result<Vec<f64>> {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        let pinned = sched_setaffinity(Pid::from_raw(0), &set);
        let tries = (0..TRIES)
            .map(|_| {
                all.wait();
                rate()
            })
            .collect();
        pinned.with_context(|| format!("cannot stay on processor {cpu}"))?;
        Ok(tries)
    };
    let each = thread::scope(|scope| {
        let threads: Vec<_> = cpus.iter().map(|&cpu| scope.spawn(move || on(cpu))).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().ok().context("a loop panicked"));
        joined.collect::<Result<Vec<_>>>()
    })?;
    let each = each.into_iter().collect::<Result<Vec<_>>>()?;
    let sum = |number: usize| each.iter().filter_map(|tries| tries.get(number)).sum();
    Ok((0..TRIES).map(sum).fold(0.0, f64::max))
}

/// GB/s read and written by copying `bytes` again and again.
fn copy(bytes: usize) -> f64 {
    let from = vec![1_u8; bytes];
    let mut to = vec![2_u8; bytes];
    let (mut copies, started) = (0_u32, Instant::now());
    while started.elapsed() < COPYING {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        copies += 1;
    }
    let moved = u32::try_from(bytes).map_or(f64::INFINITY, f64::from) * 2.0 * f64::from(copies);
    moved / started.elapsed().as_secs_f64() / 1e9
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
        writeln!(f, "| limit | 1 thread | 2 threads |\n|---|---|---|")?;
        type Field = fn(&Reached) -> Option<f64>;
        let rows: [(&str, Field); 6] = [
            ("AVX-512 VNNI, GMAC/s", |reached| reached.avx512_vnni),
            ("AVX-VNNI, GMAC/s", |reached| reached.avx_vnni),
            ("AVX2, bytes, GMAC/s", |reached| reached.avx2),
            ("AVX2, exact (16-bit words), GMAC/s", |reached| reached.avx2_exact),
            ("copy in L2, GB/s read and written", |reached| Some(reached.l2)),
            ("copy in memory, GB/s read and written", |reached| Some(reached.memory)),
        ];
        for (name, field) in rows {
            let two = self.two.as_ref().and_then(field);
            writeln!(f, "| {name} | {} | {} |", shown(field(&self.one)), shown(two))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_that_this_processor_has_reaches_something() {
        for rate in x86::loops().into_iter().flatten() {
            let reached = rate();
            assert!(reached.is_finite() && reached > 0.0, "{reached}");
        }
        assert!(copy(1 << 10) > 0.0);
    }

    #[test]
    fn what_a_processor_lacks_is_told_as_a_dash_and_is_no_limit() {
        let one = Reached {
            avx512_vnni: None,
            avx_vnni: None,
            avx2: Some(50.0),
            avx2_exact: Some(40.0),
            l2: 9.0,
            memory: 3.0,
        };
        assert!((one.multiply() - 50.0).abs() < 1e-9);
        let text = Limits { one, two: None }.to_string();
        assert!(text.contains("| AVX-512 VNNI, GMAC/s | - | - |"), "{text}");
        assert!(text.contains("| AVX2, bytes, GMAC/s | 50 | - |"), "{text}");
    }
}
