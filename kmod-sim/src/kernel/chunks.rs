//! Chunks of a command, taken from both ends by workers that keep to one.
//!
//! ```text
//!   front ->  0  1  2  3 | 4  5  6  7  <- back
//! ```
//!
//! A worker that keeps to one end finds in its own cache most of what the command before has written, which in
//! another processor's is far away; and what it counts is its own, until it has half of the chunks behind it
//! and takes on from the others'.

use crossbeam::utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The end of the chunks that a worker takes its own from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Front,
    Back,
}

impl Side {
    /// Of the workers' `index`th piece.
    pub(crate) fn of(index: usize) -> Self {
        if index.is_multiple_of(2) { Self::Front } else { Self::Back }
    }

    /// The half that it begins with.
    pub(crate) fn half(self) -> usize {
        usize::from(self == Self::Back)
    }
}

/// A chunk that a worker has taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) index: u64,
    /// Whether all the others were taken before it.
    pub(crate) is_last: bool,
}

/// Chunks `start .. end`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Range {
    start: u32,
    end: u32,
}

impl Range {
    fn new(bits: u64) -> Self {
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { start: half(bits), end: half(bits >> 32) }
    }

    fn bits(self) -> u64 {
        u64::from(self.end) << 32 | u64::from(self.start)
    }

    fn len(self) -> u64 {
        u64::from(self.end.saturating_sub(self.start))
    }

    /// The first or the last one, and those that are left.
    fn take(self, side: Side) -> Option<(u32, Self)> {
        let Self { start, end } = self;
        (start < end).then(|| match side {
            Side::Front => (start, Self { start: start + 1, end }),
            Side::Back => (end - 1, Self { start, end: end - 1 }),
        })
    }
}

/// The chunks of both halves that nobody has taken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Left([Range; 2]);

impl Left {
    /// The most chunks there can be.
    pub(crate) const MOST: u64 = u32::MAX as u64;

    /// All of `chunks`, [`Left::MOST`] at most.
    pub(crate) fn all(chunks: u64) -> Self {
        let end = u32::try_from(chunks).unwrap_or(u32::MAX);
        let middle = end - end / 2;
        Self([Range { start: 0, end: middle }, Range { start: middle, end }])
    }

    pub(crate) fn count(self) -> u64 {
        self.0[0].len() + self.0[1].len()
    }
}

/// [`Left`], for workers to take from: each half is in a cache line of its own.
#[derive(Debug, Default)]
pub(crate) struct Ends([CachePadded<AtomicU64>; 2]);

impl Ends {
    pub(crate) fn new(left: Left) -> Self {
        let ends = Self::default();
        ends.set(left);
        ends
    }

    pub(crate) fn set(&self, left: Left) {
        for (end, range) in self.0.iter().zip(left.0) {
            end.store(range.bits(), Relaxed);
        }
    }

    pub(crate) fn left(&self) -> Left {
        Left([self.range(0), self.range(1)])
    }

    fn range(&self, half: usize) -> Range {
        Range::new(self.0[half].load(Relaxed))
    }

    /// The next chunk from `side`; `None` when every one was taken.
    pub(crate) fn take(&self, side: Side) -> Option<Chunk> {
        // Relaxed: they order nothing, `Workers::run` orders the memory.
        for half in [side.half(), 1 - side.half()] {
            let less = |bits| Range::new(bits).take(side).map(|(_, left)| left.bits());
            if let Ok(before) = self.0[half].fetch_update(Relaxed, Relaxed, less)
                && let Some((index, left)) = Range::new(before).take(side)
            {
                let is_last = left.len() == 0 && self.range(1 - half).len() == 0;
                return Some(Chunk { index: u64::from(index), is_last });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whoever takes whenever: each chunk once, the front upwards and the back downwards.
        #[test]
        fn each_chunk_is_taken_once(count in 0u64..40, from in proptest::collection::vec(any::<bool>(), 50)) {
            let ends = Ends::new(Left::all(count));
            let mut taken = [Vec::new(), Vec::new()];
            for back in from.into_iter().chain(std::iter::repeat_n(true, 40)) {
                let side = if back { Side::Back } else { Side::Front };
                let before = ends.left().count();
                let Some(chunk) = ends.take(side) else {
                    prop_assert_eq!(before, 0);
                    continue;
                };
                prop_assert_eq!(ends.left().count(), before - 1);
                prop_assert_eq!(chunk.is_last, before == 1);
                taken[usize::from(back)].push(chunk.index);
            }
            let [front, back] = taken;
            prop_assert!(front.iter().copied().eq(0..front.len() as u64));
            prop_assert!(back.iter().copied().eq((front.len() as u64..count).rev()));
        }
    }

    #[test]
    fn threads_take_each_of_the_most_chunks_once() {
        let ends = Ends::new(Left::all(Left::MOST));
        assert_eq!(ends.left().count(), Left::MOST);
        assert_eq!(ends.take(Side::Back).unwrap().index, Left::MOST - 1);
        ends.set(Left::all(1 << 16));
        let seen: Vec<AtomicU64> = (0..1 << 16).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (ends, seen) = (&ends, &seen);
                scope.spawn(move || {
                    while let Some(chunk) = ends.take(Side::of(worker)) {
                        seen[usize::try_from(chunk.index).unwrap()].fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert!(seen.iter().all(|seen| seen.load(Relaxed) == 1));
    }
}
