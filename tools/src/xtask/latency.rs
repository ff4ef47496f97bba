//! `cargo xtask latency`: what an empty job costs on a device in another process, beside the least that
//! the same cache lines can cost between the same two processes; and what both cost when nothing is done.
//!
//! ```text
//! this process, first CPU                     child, last CPU (latency/peer.rs)
//!   ping-pong   lines.rs  ── shared memory ──  lines.rs
//!   rings       npu_uapi  ── shared memory ──  npu_uapi
//!   jobs        libnpu    ──── socket ───────  kmod_sim::server
//! ```
//!
//! The three take turns, a block of each a round, so that whatever else the machine does meets all.
//! Where it does much, means say more of that than of us: then the quiet laps of a block are compared.

#[path = "latency/laps.rs"]
mod laps;
#[path = "latency/lines.rs"]
mod lines;
#[path = "latency/peer.rs"]
mod peer;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libnpu::{Context, Device};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use npu_uapi::workers::Caller;

use laps::{Laps, Times};
use lines::Lines;
pub(crate) use peer::Peer;

/// Jobs, and ping-pongs, of a block.
const BLOCK: u32 = 100_000;
/// Blocks of each kind.
const ROUNDS: usize = 9;
/// How many times the ping-pong a job may cost.
const MOST_RATIO: f64 = 2.0;
/// How far the mean of a ping-pong may be above its quiet laps where means are judged.
const MOST_NOISE: f64 = 1.5;
/// Kicks and interrupts a job that count as none: whoever shares the CPUs can put a side to sleep.
const MOST_SIGNALS: f64 = 0.001;
/// How long nothing is done.
const IDLE: Duration = Duration::from_secs(10);
/// Clock ticks that a process may take meanwhile.
const MOST_TICKS: u64 = 1;
/// A job that takes this long hangs.
const HANG: Duration = Duration::from_secs(60);

/// The times of each kind of round trip in one round, and what the device counted in it, a job.
struct Round {
    ping_pong: Times,
    rings: Times,
    job: Times,
    signals: f64,
}

/// Measures and prints; fails unless the figures are what `docs/performance.md` promises, also where
/// the machine is too busy to say.
pub(crate) fn run() -> Result<ExitCode> {
    let (ours, theirs) = cpus()?;
    if ours == theirs {
        println!("one CPU: the two processes take turns, neither can be awake while the other is");
    }
    pin(ours)?;
    let mut child = Played::start(theirs)?;
    let device = Device::open_private(&format!("vfio-user:{}", child.socket.display()))?;
    let context = device.create_context()?;
    let mut rounds = Vec::new();
    println!("ns: mean of {BLOCK} (quiet laps)");
    println!("round  ping-pong        rings alone      job              ratio        signals/job");
    for number in 0..=ROUNDS {
        let round = measure(&mut child, &device, &context)?;
        let name = if number == 0 { "warm".to_owned() } else { number.to_string() };
        let Round { ping_pong, rings, job, signals } = &round;
        let ratio = (job.mean / ping_pong.mean, job.quiet / ping_pong.quiet);
        let ratio = format!("{:.2} ({:.2})", ratio.0, ratio.1);
        println!("{name:<5}  {ping_pong:<15}  {rings:<15}  {job:<15}  {ratio:<11}  {signals:.5}");
        if number > 0 {
            rounds.push(round);
        }
    }
    let of = |what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
    let mean = of(|round| round.job.mean / round.ping_pong.mean);
    let quiet = of(|round| round.job.quiet / round.ping_pong.quiet);
    let signals = of(|round| round.signals);
    let noise = of(|round| round.ping_pong.mean / round.ping_pong.quiet);
    println!();
    let mut is_met = if noise <= MOST_NOISE {
        shows("job / ping-pong, means, median of the rounds", mean, MOST_RATIO)
            & shows("kicks and interrupts (each an eventfd write) a job", signals, MOST_SIGNALS)
    } else {
        println!(
            "the CPUs are shared: a ping-pong takes {noise:.1} times its quiet time; not judged:"
        );
        shows("job / ping-pong, quiet laps, median of the rounds", quiet, MOST_RATIO);
        println!("kicks and interrupts (each an eventfd write) a job: {signals:.4}");
        false
    };
    is_met &= idle(child.child.id())?;
    drop(context);
    Ok(if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a figure beside its bound; whether it holds.
fn shows(what: &str, found: f64, most: f64) -> bool {
    let is_met = found <= most;
    let verdict = if is_met { "ok" } else { "TOO MUCH" };
    println!("{what}: {found:.4} (at most {most}) {verdict}");
    is_met
}

fn measure(child: &mut Played, device: &Device, context: &Context) -> Result<Round> {
    let ping_pong = child.play("ping-pong", Lines::ping)?;
    let rings = child.play("rings", Lines::submit)?;
    let before = device.counters()?;
    let mut laps = Laps::start();
    for _ in 0..BLOCK {
        context.nop()?.wait(&Caller, HANG)?;
        laps.count();
    }
    let job = laps.times();
    let after = device.counters()?;
    let signals = (after.kicks + after.interrupts).saturating_sub(before.kicks + before.interrupts);
    // Far below 2^32: a few for each job at most.
    let signals = f64::from(u32::try_from(signals)?) / f64::from(BLOCK);
    Ok(Round { ping_pong, rings, job, signals })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Sleeps, and prints what CPU time both processes took meanwhile; whether it is next to none.
fn idle(child: u32) -> Result<bool> {
    let processes = [("driver", std::process::id()), ("device", child)];
    let ticks = || -> Result<Vec<u64>> {
        processes.iter().map(|&(_, pid)| cpu_ticks(&std::fs::read_to_string(stat(pid))?)).collect()
    };
    let before = ticks()?;
    std::thread::sleep(IDLE);
    let after = ticks()?;
    let mut is_met = true;
    for (&(name, _), (from, to)) in processes.iter().zip(before.iter().zip(&after)) {
        let taken = to.saturating_sub(*from);
        let verdict = if taken <= MOST_TICKS { "ok" } else { "TOO MUCH" };
        let seconds = IDLE.as_secs();
        println!("{name} idle for {seconds} s: {taken} ticks (at most {MOST_TICKS}) {verdict}");
        is_met &= taken <= MOST_TICKS;
    }
    Ok(is_met)
}

fn stat(pid: u32) -> String {
    format!("/proc/{pid}/stat")
}

/// User and system time in a line of `/proc/<pid>/stat`: 12th and 13th field after the name.
fn cpu_ticks(stat: &str) -> Result<u64> {
    let fields = stat.rsplit_once(')').context("no name in the line")?.1.split_whitespace();
    let times: Vec<u64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(times.len() == 2, "the line is too short");
    Ok(times.iter().sum())
}

/// The first and the last CPU that this process may use.
fn cpus() -> Result<(usize, usize)> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let mut allowed = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false));
    let first = allowed.next().context("this process may use no CPU")?;
    Ok((first, allowed.next_back().unwrap_or(first)))
}

/// Keeps this process on one CPU, with the threads that it starts from now on.
fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot stay on one CPU")
}

/// The other process; it ends with this value, or by itself when this process does.
struct Played {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    lines: Lines,
    socket: PathBuf,
}

impl Played {
    fn start(cpu: usize) -> Result<Self> {
        let (lines, file) = Lines::new()?;
        let socket = std::env::temp_dir().join(format!("npu-latency-{}.sock", std::process::id()));
        let mut child = Command::new(std::env::current_exe()?)
            .args(["latency-peer", "--cpu", &cpu.to_string()])
            .args(["--lines", &lines::path(&file), "--socket"])
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the other process")?;
        let orders = child.stdin.take().context("its input is piped")?;
        let answers = BufReader::new(child.stdout.take().context("its output is piped")?);
        let mut played = Self { child, orders, answers, lines, socket };
        played.hears(peer::READY)?;
        Ok(played)
    }

    fn hears(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == expected, "the other process said {line:?}, not {expected:?}");
        Ok(())
    }

    /// Plays a block of the game `name`.
    fn play(
        &mut self,
        name: &str,
        side: fn(&Lines, u32, &mut dyn FnMut()) -> Result<()>,
    ) -> Result<Times> {
        self.lines.clear();
        writeln!(self.orders, "{name} {BLOCK}")?;
        self.hears(name)?;
        let mut laps = Laps::start();
        side(&self.lines, BLOCK, &mut || laps.count())?;
        let times = laps.times();
        self.hears(peer::DONE)?;
        Ok(times)
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_brackets() {
        let line = "7 (odd) name)) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14";
        assert_eq!(cpu_ticks(line).unwrap(), 42);
        assert!(cpu_ticks("7 (short) S 1 2").is_err());
    }

    #[test]
    fn both_ends_of_both_games_play_to_the_end() {
        let (driver, file) = Lines::new().unwrap();
        let device = Lines::open(&lines::path(&file)).unwrap();
        type Ours = fn(&Lines, u32, &mut dyn FnMut()) -> Result<()>;
        type Theirs = fn(&Lines, u32) -> Result<()>;
        let games: [(Ours, Theirs); 2] =
            [(Lines::ping, Lines::pong), (Lines::submit, Lines::serve)];
        for (ours, theirs) in games {
            driver.clear();
            std::thread::scope(|scope| {
                let peer = scope.spawn(|| theirs(&device, 1000));
                let mut count = 0;
                ours(&driver, 1000, &mut || count += 1).unwrap();
                assert_eq!(count, 1000);
                peer.join().unwrap().unwrap();
            });
        }
    }
}
