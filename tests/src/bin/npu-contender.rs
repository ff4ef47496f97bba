//! A client that keeps its queue full for a while, beside others, and tells the modelled cycles that it had.
//!
//! Arguments: its number, which makes its jobs larger, and a device string. It prints `ready`, starts at a
//! line on its input, and prints `cycles N faults N`. Number 0 also submits entries that fail.

use libnpu::{Caller, Context, Device, Error, Job, Priority};
use npu_tests::{HANG, Work};
use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

/// How long the processes compete.
const CONTEST: Duration = Duration::from_secs(10);
/// How long each is at it before it counts, and after.
const MARGIN: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let index: u32 = arguments.next().ok_or("the first argument is a number")?.parse()?;
    let name = arguments.next().ok_or("the second argument is a device string")?;
    let device = Device::open_private(&name)?;
    // Jobs of different sizes: the shares are of cycles, not of jobs.
    let work = Work::new(&device, Priority::Normal, 4, [128 + 64 * index, 256, 256])?;
    let mut jobs = VecDeque::new();
    let mut keep_full = |until: Instant| -> Result<(), Error> {
        while Instant::now() < until {
            fill(&work, &mut jobs)?;
            if let Some(oldest) = jobs.pop_front() {
                oldest.wait(&Caller, HANG)?;
            }
            if index == 0 {
                // What this one does wrong is its own affair.
                fail(&work.context);
            }
        }
        Ok(())
    };
    keep_full(Instant::now() + MARGIN / 10)?;
    say("ready")?;
    std::io::stdin().read_line(&mut String::new())?;
    // All are at it before the first counts, and until the last has.
    keep_full(Instant::now() + MARGIN)?;
    let before = device.counters()?.cycles;
    keep_full(Instant::now() + CONTEST)?;
    let cycles = device.counters()?.cycles - before;
    say(&format!("cycles {cycles} faults {}", device.faults()?.len()))?;
    keep_full(Instant::now() + MARGIN)?;
    Ok(())
}

/// Submits until the queue is full.
fn fill(work: &Work, jobs: &mut VecDeque<Job>) -> Result<(), Error> {
    loop {
        match work.submit() {
            Ok(job) => jobs.push_back(job),
            Err(Error::QueueFull { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Submits an entry with an opcode that there is not; a full queue does without.
fn fail(context: &Context) {
    let _refused = context.submit_words(|job| {
        let mut words = [0; 16];
        (words[0], words[1]) = (0xff, job);
        words
    });
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}
