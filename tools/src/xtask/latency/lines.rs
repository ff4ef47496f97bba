//! Cache lines that two processes share, and the two games that are played on them.
//!
//! The ping-pong moves the lines that an empty job moves, each written by the same side, and does
//! nothing else: entry, driver's line, device's line, completion. The other game is the real rings,
//! polled by both ends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memmap2::MmapRaw;
use nix::sys::memfd::{MFdFlags, memfd_create};
use npu_uapi::ring::{COMPLETION_WORDS, Device, Driver, RingLayout, SUBMISSION_WORDS, Words};

/// Log2 of the rings' depth: that of a context's queue.
const LOG2: u32 = 6;
/// Words of the lines that hold one word of interest.
const DRIVER_LINE: usize = 0;
const DEVICE_LINE: usize = 16;
const ENTRIES: usize = 32;
const COMPLETIONS: usize = ENTRIES + (SUBMISSION_WORDS << LOG2);
/// Looks between two looks at the clock, and how long the other side may take.
const LOOKS: u32 = 1 << 20;
const HANG: Duration = Duration::from_secs(60);

/// The shared memory, laid out as rings are.
pub(super) struct Lines(MmapRaw);

/// How another process names the file of [`Lines::new`].
pub(super) fn path(file: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

impl Lines {
    /// New lines, and their file, which lives as long as one has it open.
    pub(super) fn new() -> Result<(Self, OwnedFd)> {
        let file = memfd_create(c"npu-latency", MFdFlags::MFD_CLOEXEC)?;
        let bytes = i64::try_from(layout()?.total_bytes())?;
        nix::unistd::ftruncate(&file, bytes)?;
        Ok((Self::open(&path(&file))?, file))
    }

    /// The lines in the file at `path`.
    pub(super) fn open(path: &str) -> Result<Self> {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(Path::new(path));
        let file = file.with_context(|| format!("cannot open {path}"))?;
        let lines = Self(MmapRaw::map_raw(&file)?);
        ensure!(lines.0.len() >= layout()?.total_bytes(), "{path} is too short");
        Ok(lines)
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.0.len() / 4, "the lines stay within their file");
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
        let word = self.0.as_mut_ptr().cast::<u32>().wrapping_add(index);
        // SAFETY: the word is inside the mapping, which `self` keeps, aligned, and both processes
        // access it as an atomic only.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// Zeroes all; nobody plays.
    pub(super) fn clear(&self) {
        for index in 0..self.word_count() {
            self.store(index, 0, Ordering::Relaxed);
        }
    }

    /// The driver's side of `count` ping-pongs; calls `lap` after each.
    pub(super) fn ping(&self, count: u32, lap: &mut dyn FnMut()) -> Result<()> {
        for number in 1..=count {
            for at in submission(number) {
                self.store(at, number, Ordering::Relaxed);
            }
            self.store(DRIVER_LINE, number, Ordering::Release);
            // A job looks here whether it must kick.
            let _ = self.load(DEVICE_LINE + 1, Ordering::Relaxed);
            let completion = completion(number);
            self.spin(completion.end - 1, number)?;
            for at in completion {
                ensure!(self.load(at, Ordering::Relaxed) == number, "a torn completion");
            }
            self.store(DRIVER_LINE + 1, number, Ordering::Relaxed);
            lap();
        }
        Ok(())
    }

    /// The device's side.
    pub(super) fn pong(&self, count: u32) -> Result<()> {
        for number in 1..=count {
            self.spin(DRIVER_LINE, number)?;
            for at in submission(number) {
                ensure!(self.load(at, Ordering::Relaxed) == number, "a torn entry");
            }
            self.store(DEVICE_LINE, number, Ordering::Release);
            let completion = completion(number);
            let last = completion.end - 1;
            for at in completion.start..last {
                self.store(at, number, Ordering::Relaxed);
            }
            self.store(last, number, Ordering::Release);
            // A job looks here whether it must interrupt.
            let _ = self.load(DRIVER_LINE + 2, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits, awake, until the word at `index` is `wanted`.
    fn spin(&self, index: usize, wanted: u32) -> Result<()> {
        until(|| Ok((self.load(index, Ordering::Acquire) == wanted).then_some(())))
    }

    /// The driver's side of `count` commands through the rings; calls `lap` after each.
    pub(super) fn submit(&self, count: u32, lap: &mut dyn FnMut()) -> Result<()> {
        let mut rings = Driver::new(self, layout()?)?;
        for number in 0..count {
            rings.push(&[number; SUBMISSION_WORDS])?;
            rings.publish();
            // Nobody sleeps here, but what a driver does is done.
            let _ = rings.needs_kick();
            until(|| Ok(rings.reap()?))?;
            lap();
        }
        Ok(())
    }

    /// The device's side.
    pub(super) fn serve(&self, count: u32) -> Result<()> {
        let mut rings = Device::new(self, layout()?)?;
        for number in 0..count {
            let fetched = until(|| Ok(rings.pop()?))?;
            rings.post(fetched.permit, &[number; COMPLETION_WORDS]);
            let _ = rings.needs_interrupt();
        }
        Ok(())
    }
}

impl Words for Lines {
    fn word_count(&self) -> usize {
        self.0.len() / 4
    }
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }
    #[inline]
    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.word(index).store(value, order);
    }
}

fn layout() -> Result<RingLayout> {
    Ok(RingLayout::new(LOG2, LOG2)?)
}

/// The slot of a number, in words.
fn slot(number: u32) -> usize {
    number as usize & ((1 << LOG2) - 1)
}

fn submission(number: u32) -> std::ops::Range<usize> {
    let first = ENTRIES + slot(number) * SUBMISSION_WORDS;
    first..first + SUBMISSION_WORDS
}

fn completion(number: u32) -> std::ops::Range<usize> {
    let first = COMPLETIONS + slot(number) * COMPLETION_WORDS;
    first..first + COMPLETION_WORDS
}

/// Looks, awake, until there is something.
fn until<T>(mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if let Some(found) = look()? {
                return Ok(found);
            }
            std::hint::spin_loop();
        }
        ensure!(started.elapsed() < HANG, "the other process does not answer");
    }
}
