//! The telemetry page, BAR4: what a function has done, for whoever looks without asking.
//!
//! ```text
//! word 0  MAGIC     1  VERSION     2  bytes in use     3  sequence, odd while the rest changes
//!      4  busy      5..8  zero     8..40  [`Counters`]                        layout 1
//!     40..88  [`Gauges`]                                                     layout 2
//! ```
//!
//! One side writes, any number read: a reader that sees the same even sequence before and after has a
//! whole snapshot. Both ends are here, over [`Words`], so that neither needs a reference to memory
//! that the other changes.

use crate::queue::Counters;
use crate::ring::Words;
use core::hint::spin_loop;
use core::sync::atomic::{Ordering, fence};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of BAR4.
pub const PAGE_BYTES: u32 = 4096;
/// Word 0: `NPUT`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NPUT");
/// Word 1: of the layout. A higher one only adds words.
pub const VERSION: u32 = 2;
/// The oldest layout that is read; a page of it has no [`Gauges`].
pub const OLDEST: u32 = 1;
/// Queues whose depth the page shows, by id; the admin queue is 0.
pub const DEPTHS: usize = 32;

const SEQUENCE: usize = 3;
const BUSY: usize = 4;
const COUNTERS: usize = 8;
const COUNTER_WORDS: usize = size_of::<Counters>() / 4;
/// Words of layout 1: the fewest that there are.
const LEAST_WORDS: usize = COUNTERS + COUNTER_WORDS;
const GAUGES: usize = LEAST_WORDS;
const WORDS: usize = GAUGES + size_of::<Gauges>() / 4;
const _: () = assert!(WORDS * 4 <= PAGE_BYTES as usize && size_of::<Counters>() == 128);

/// What a function is at one moment, beside what it has done. 192 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Gauges {
    /// Unix time at which the function was made.
    pub started_ms: u64,
    /// Since then: when the page was last changed.
    pub uptime_ns: u64,
    /// Wall time in which a command was executed, the one under way not yet included.
    pub busy_ns: u64,
    /// Bytes that the device may reach.
    pub mapped_bytes: u64,
    /// Bands and commands begun since power-on.
    pub heartbeat: u64,
    /// Clock of the modelled device, in kHz.
    pub clock_khz: u32,
    /// Multiply-accumulates of its array in a cycle.
    pub macs_per_cycle: u32,
    /// `Status.STATE`, one of [`crate::regs::state`].
    pub state: u32,
    /// Resets since the function was made.
    pub resets: u32,
    /// Entries that were submitted and not yet answered, of all queues.
    pub in_flight: u32,
    /// I/O queues.
    pub queues: u32,
    /// The same of each queue, by id; those of higher ids are only in the sum.
    pub depths: [u32; DEPTHS],
}
const _: () = assert!(size_of::<Gauges>() == 192);

/// What the page said at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// Whether a command was executing.
    pub is_busy: bool,
    /// What was done since the last reset.
    pub counters: Counters,
    /// What it is now; `None` on a page of layout 1.
    pub gauges: Option<Gauges>,
}

impl Snapshot {
    /// Modelled power, in mW: [`Counters::power_mw`]; `None` where the page does not tell the clock.
    pub fn power_mw(&self) -> Option<u64> {
        Some(self.counters.power_mw(self.gauges?.clock_khz))
    }
}

/// Why a page gives no snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// Too short for the words that are read.
    #[error("a telemetry page of {found} words; it has at least {LEAST_WORDS}")]
    TooShort {
        /// Words that there are.
        found: usize,
    },
    /// Not a telemetry page, or one of before the first version.
    #[error("no telemetry page: it begins with {magic:#x}, version {version}")]
    Foreign {
        /// Word 0.
        magic: u32,
        /// Word 1.
        version: u32,
    },
    /// The writer is slower than so many looks, or gone in the middle of a change.
    #[error("the telemetry page does not come to rest; look again later")]
    Changing,
}

/// The side that writes. One a page.
#[derive(Debug)]
pub struct Writer<W> {
    words: W,
    sequence: u32,
}

impl<W: Words> Writer<W> {
    /// Begins a page in `words`, which nobody reads yet.
    ///
    /// # Errors
    /// [`TelemetryError::TooShort`].
    pub fn new(words: W) -> Result<Self, TelemetryError> {
        check_len(&words, WORDS)?;
        let len = u32::try_from(WORDS * 4).unwrap_or(PAGE_BYTES);
        for (at, word) in [MAGIC, VERSION, len, 0].into_iter().enumerate() {
            words.store(at, word, Ordering::Relaxed);
        }
        Ok(Self { words, sequence: 0 })
    }

    /// Shows `snapshot` from now on.
    pub fn show(&mut self, snapshot: &Snapshot) {
        self.words.store(SEQUENCE, self.sequence.wrapping_add(1), Ordering::Relaxed);
        // Pairs with the reader's Acquire fence: who sees a word of below sees the odd sequence too.
        fence(Ordering::Release);
        self.words.store(BUSY, snapshot.is_busy.into(), Ordering::Relaxed);
        self.store(COUNTERS, snapshot.counters.as_bytes());
        if let Some(gauges) = &snapshot.gauges {
            self.store(GAUGES, gauges.as_bytes());
        }
        self.sequence = self.sequence.wrapping_add(2);
        // Release pairs with the reader's Acquire of the sequence: the words are written before it.
        self.words.store(SEQUENCE, self.sequence, Ordering::Release);
    }

    fn store(&self, first: usize, bytes: &[u8]) {
        for (at, word) in (first..).zip(bytes.as_chunks::<4>().0) {
            self.words.store(at, u32::from_le_bytes(*word), Ordering::Relaxed);
        }
    }

    /// The page.
    pub fn words(&self) -> &W {
        &self.words
    }
}

/// Most looks before [`read`] gives up.
const LOOKS: u32 = 10_000;

/// What the page in `words` says now.
///
/// # Errors
/// It is none, or does not come to rest.
pub fn read(words: &impl Words) -> Result<Snapshot, TelemetryError> {
    check_len(words, LEAST_WORDS)?;
    let [magic, version] = [0, 1].map(|at| words.load(at, Ordering::Relaxed));
    if magic != MAGIC || version < OLDEST {
        return Err(TelemetryError::Foreign { magic, version });
    }
    for _ in 0..LOOKS {
        // Acquire pairs with the writer's Release of the sequence.
        let before = words.load(SEQUENCE, Ordering::Acquire);
        let is_busy = words.load(BUSY, Ordering::Relaxed) & 1 != 0;
        let counters = load(words, COUNTERS);
        // A page that says it has them, and is too short, has none.
        let has_gauges = version >= VERSION && words.word_count() >= WORDS;
        let gauges = has_gauges.then(|| load(words, GAUGES));
        // Pairs with the writer's Release fence.
        fence(Ordering::Acquire);
        let after = words.load(SEQUENCE, Ordering::Relaxed);
        if before == after && before.is_multiple_of(2) {
            return Ok(Snapshot { is_busy, counters, gauges });
        }
        spin_loop();
    }
    Err(TelemetryError::Changing)
}

/// The structure whose first word is at `first`.
fn load<T: FromBytes + IntoBytes + Default>(words: &impl Words, first: usize) -> T {
    let mut value = T::default();
    for (at, word) in (first..).zip(value.as_mut_bytes().as_chunks_mut::<4>().0) {
        *word = words.load(at, Ordering::Relaxed).to_le_bytes();
    }
    value
}

fn check_len(words: &impl Words, least: usize) -> Result<(), TelemetryError> {
    let found = words.word_count();
    if found < least { Err(TelemetryError::TooShort { found }) } else { Ok(()) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU32;
    use std::sync::atomic::AtomicBool;
    use std::vec::Vec;

    fn page(len: usize) -> Vec<AtomicU32> {
        (0..len).map(|_| AtomicU32::new(0)).collect()
    }

    #[test]
    fn what_is_no_page_is_not_read() {
        assert_eq!(read(&&page(39)[..]), Err(TelemetryError::TooShort { found: 39 }));
        let foreign = TelemetryError::Foreign { magic: 0, version: 0 };
        assert_eq!(read(&&page(40)[..]), Err(foreign));
        let page = page(WORDS);
        let mut writer = Writer::new(&page[..]).unwrap();
        let gauges = Some(Gauges::default());
        assert_eq!(read(writer.words()), Ok(Snapshot { gauges, ..Snapshot::default() }));
        writer.show(&Snapshot { is_busy: true, ..Snapshot::default() });
        assert!(read(writer.words()).unwrap().is_busy);
        page[SEQUENCE].store(7, Ordering::Relaxed);
        assert_eq!(read(&&page[..]), Err(TelemetryError::Changing), "its writer is gone");
    }

    #[test]
    fn a_page_of_layout_1_is_read_without_what_layout_2_added() {
        let words = page(LEAST_WORDS);
        words[0].store(MAGIC, Ordering::Relaxed);
        words[1].store(OLDEST, Ordering::Relaxed);
        words[COUNTERS].store(7, Ordering::Relaxed);
        let seen = read(&&words[..]).unwrap();
        assert_eq!((seen.counters.cycles, seen.gauges, seen.power_mw()), (7, None, None));
        // One that claims more than it has is read as far as it goes.
        words[1].store(VERSION + 1, Ordering::Relaxed);
        assert_eq!(read(&&words[..]).unwrap(), seen);
        let whole = page(WORDS);
        let mut writer = Writer::new(&whole[..]).unwrap();
        let mut gauges = Gauges { clock_khz: 1000, busy_ns: 5, ..Gauges::default() };
        gauges.depths[DEPTHS - 1] = 9;
        writer.show(&Snapshot { gauges: Some(gauges), ..Snapshot::default() });
        let seen = read(writer.words()).unwrap();
        assert_eq!((seen.gauges, seen.power_mw()), (Some(gauges), Some(50)));
    }

    #[test]
    fn a_reader_never_sees_half_a_change() {
        let page = page(1024);
        let is_done = AtomicBool::new(false);
        let mut writer = Writer::new(&page[..]).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while !is_done.load(Ordering::Relaxed) {
                    // Where the writer is at it all the time, there is no snapshot to have.
                    if let Ok(Snapshot { counters, .. }) = read(&&page[..]) {
                        assert_eq!(counters.cycles, counters.faults);
                        assert!(counters.cycles >= seen);
                        seen = counters.cycles;
                    }
                }
            });
            for n in 1..=20_000 {
                let n = n << 20;
                let counters = Counters { cycles: n, faults: n, ..Counters::default() };
                writer.show(&Snapshot { counters, ..Snapshot::default() });
            }
            is_done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        assert_eq!(read(&&page[..]).unwrap().counters.cycles, 20_000 << 20);
    }
}
