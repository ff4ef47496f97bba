//! The telemetry page, BAR4: what a function has done, for whoever looks without asking.
//!
//! ```text
//! word 0  MAGIC     1  VERSION     2  bytes in use     3  sequence, odd while the rest changes
//!      4  busy      5..8  zero     8..40  [`Counters`]                        layout 1
//!     40..88  [`Gauges`]                                                     layout 2
//!     88..102 [`Saturation`]                                                 layout 3
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
pub const VERSION: u32 = 3;
/// The oldest layout that is read; a page of it has neither [`Gauges`] nor [`Saturation`].
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
const SATURATION: usize = GAUGES + size_of::<Gauges>() / 4;
const WORDS: usize = SATURATION + size_of::<Saturation>() / 4;
/// The layouts that have [`Gauges`], and [`Saturation`].
const WITH_GAUGES: u32 = 2;
const WITH_SATURATION: u32 = 3;
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

/// How many output codes lie at an end of their range, since the last reset. 56 bytes.
///
/// Looked at is what each command has written that quantises its result (CONV, MATMUL, PRODUCT, ADD, MUL,
/// POOL but for its maximum, SOFTMAX, REDUCE, NORM, RESIZE, and LAYOUT from floats), once it is through:
/// every code of the result as it lies in memory, behind the command's tables, pad lanes not included. A
/// code of 0 or 255 is at an end, which for a signed tensor is -128 or 127: the two are those that a value
/// beyond the range is clamped to. The device cannot tell them from values that are there by right, so a
/// ReLU whose zero point is 0 has its zeros among the lowest. What commands move or look up (COPY, FILL,
/// other LAYOUTs, tables, maxima) quantises nothing and is not looked at.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Saturation {
    /// 1 while codes are counted; 0 while they are not, and the counts stand still.
    pub is_counted: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Results of the MAC array.
    pub array: EndCodes,
    /// Results of the vector unit.
    pub vector: EndCodes,
}
const _: () = assert!(size_of::<Saturation>() == 56);

/// Codes that were looked at, and those of them at an end. 24 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct EndCodes {
    /// Codes that were looked at.
    pub codes: u64,
    /// Of these, 0.
    pub lowest: u64,
    /// Of these, 255.
    pub highest: u64,
}

impl EndCodes {
    /// Adds `more`; counts saturate.
    pub fn add(&mut self, more: Self) {
        self.codes = self.codes.saturating_add(more.codes);
        self.lowest = self.lowest.saturating_add(more.lowest);
        self.highest = self.highest.saturating_add(more.highest);
    }
}

/// What the page said at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// Whether a command was executing.
    pub is_busy: bool,
    /// What was done since the last reset.
    pub counters: Counters,
    /// What it is now; `None` on a page of layout 1.
    pub gauges: Option<Gauges>,
    /// Codes at the ends of their range; `None` on a page of layout 1 or 2.
    pub saturation: Option<Saturation>,
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
        if let Some(saturation) = &snapshot.saturation {
            self.store(SATURATION, saturation.as_bytes());
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
        // A page that says it has something, and is too short for it, has not.
        let has = |since: u32, end: usize| version >= since && words.word_count() >= end;
        let gauges = has(WITH_GAUGES, SATURATION).then(|| load(words, GAUGES));
        let saturation = has(WITH_SATURATION, WORDS).then(|| load(words, SATURATION));
        // Pairs with the writer's Release fence.
        fence(Ordering::Acquire);
        let after = words.load(SEQUENCE, Ordering::Relaxed);
        if before == after && before.is_multiple_of(2) {
            return Ok(Snapshot { is_busy, counters, gauges, saturation });
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
        let (gauges, saturation) = (Some(Gauges::default()), Some(Saturation::default()));
        let empty = Snapshot { gauges, saturation, ..Snapshot::default() };
        assert_eq!(read(writer.words()), Ok(empty));
        writer.show(&Snapshot { is_busy: true, ..Snapshot::default() });
        assert!(read(writer.words()).unwrap().is_busy);
        page[SEQUENCE].store(7, Ordering::Relaxed);
        assert_eq!(read(&&page[..]), Err(TelemetryError::Changing), "its writer is gone");
    }

    /// The pages of the golden files, one a layout: what all have, and what came later.
    fn golden() -> Snapshot {
        let mut value = 0_u64;
        let mut next = || {
            value += 1;
            value << 32 | value
        };
        let mut counters = Counters::default();
        let mut gauges = Gauges::default();
        let mut saturation = Saturation::default();
        for bytes in [counters.as_mut_bytes(), gauges.as_mut_bytes(), saturation.as_mut_bytes()] {
            for word in bytes.as_chunks_mut::<8>().0 {
                *word = next().to_le_bytes();
            }
        }
        let (gauges, saturation) = (Some(gauges), Some(saturation));
        Snapshot { is_busy: true, counters, gauges, saturation }
    }

    fn words_of(file: &str) -> Vec<AtomicU32> {
        let read = |word| u32::from_str_radix(word, 16).expect("the file holds hex words");
        let words = file.split_whitespace().map(read);
        words.map(AtomicU32::new).collect()
    }

    #[test]
    fn pages_of_every_layout_are_read_as_far_as_they_go() {
        let files = [
            include_str!("telemetry/layout-1.txt"),
            include_str!("telemetry/layout-2.txt"),
            include_str!("telemetry/layout-3.txt"),
        ];
        let all = golden();
        let seen = [
            Snapshot { gauges: None, saturation: None, ..all },
            Snapshot { saturation: None, ..all },
            all,
        ];
        assert_eq!(u32::try_from(files.len()), Ok(VERSION), "each layout has a file");
        for (file, seen) in files.into_iter().zip(seen) {
            let words = words_of(file);
            assert_eq!(read(&&words[..]), Ok(seen));
            // One that claims more than it has is read as far as it goes.
            words[1].store(VERSION + 1, Ordering::Relaxed);
            assert_eq!(read(&&words[..]), Ok(seen));
        }
    }

    #[test]
    fn a_page_is_written_as_the_golden_file_of_its_layout_has_it() {
        let page = page(WORDS);
        Writer::new(&page[..]).unwrap().show(&golden());
        let word = |word: &AtomicU32| word.load(Ordering::Relaxed);
        let written: Vec<u32> = page.iter().map(word).collect();
        let lines = written.chunks(8).map(|line| {
            let words: Vec<_> = line.iter().map(|word| std::format!("{word:08x}")).collect();
            words.join(" ") + "\n"
        });
        assert_eq!(lines.collect::<std::string::String>(), include_str!("telemetry/layout-3.txt"));
    }

    #[test]
    fn power_is_told_where_the_clock_is() {
        let gauges = Some(Gauges { clock_khz: 1000, ..Gauges::default() });
        assert_eq!(Snapshot { gauges, ..Snapshot::default() }.power_mw(), Some(50));
        assert_eq!(Snapshot::default().power_mw(), None);
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
