//! Ranges of addresses: allocated first fit, freed, coalesced. For I/O addresses and inside arenas.

use std::collections::BTreeMap;
use std::ops::Range;

/// The free ranges of an address space, by start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    free: BTreeMap<u64, u64>,
}

impl Ranges {
    pub(crate) fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut new = Self::default();
        for range in ranges.into_iter().filter(|range| range.start < range.end) {
            new.free(range.start, range.end - range.start);
        }
        new
    }

    /// Takes `len > 0` bytes that begin at `phase` modulo `align`, a power of two.
    pub(crate) fn allocate(&mut self, len: u64, align: u64, phase: u64) -> Option<u64> {
        let (at, start, end) = self.free.iter().find_map(|(&start, &size)| {
            let end = start.checked_add(size)?;
            let at = start.checked_add(phase.wrapping_sub(start) & (align - 1))?;
            (at.checked_add(len)? <= end).then_some((at, start, end))
        })?;
        self.free.remove(&start);
        if start < at {
            self.free.insert(start, at - start);
        }
        if at + len < end {
            self.free.insert(at + len, end - at - len);
        }
        Some(at)
    }

    /// Gives back `len` bytes at `at`, which were allocated.
    pub(crate) fn free(&mut self, at: u64, len: u64) {
        let (mut start, mut size) = (at, len);
        if let Some((&before, &before_size)) = self.free.range(..at).next_back() {
            assert!(before + before_size <= at, "a range is freed once");
            if before + before_size == at {
                self.free.remove(&before);
                (start, size) = (before, before_size + len);
            }
        }
        if let Some((&after, &after_size)) = self.free.range(at..).next() {
            assert!(at + len <= after, "a range is freed once");
            if at + len == after {
                self.free.remove(&after);
                size += after_size;
            }
        }
        self.free.insert(start, size);
    }

    /// Whether `len` bytes at `at` are free, in one piece.
    pub(crate) fn is_free(&self, at: u64, len: u64) -> bool {
        let before = self.free.range(..=at).next_back();
        before.is_some_and(|(&start, &size)| start + size >= at + len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn alignment_and_phase_are_kept() {
        let mut ranges = Ranges::new(std::iter::once(0x10..0x10_000));
        assert_eq!(ranges.allocate(1, 0x1000, 0x123), Some(0x123));
        assert_eq!(ranges.allocate(0x20, 0x1000, 0), Some(0x1000));
        assert_eq!(ranges.allocate(0x10_000, 1, 0), None);
    }

    proptest! {
        /// Against a map of bytes: no two live ranges overlap, and freeing all leaves one range.
        #[test]
        fn live_ranges_are_disjoint_and_free_ones_coalesce(
            steps in proptest::collection::vec((any::<bool>(), 1u64..40, 0u32..4), 1..60),
        ) {
            let mut ranges = Ranges::new(std::iter::once(0..512));
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (allocates, len, align) in steps {
                if allocates || live.is_empty() {
                    if let Some(at) = ranges.allocate(len, 1 << align, 0) {
                        prop_assert!(at % (1 << align) == 0 && at + len <= 512);
                        let is_disjoint = live.iter().all(|&(a, l)| a + l <= at || at + len <= a);
                        prop_assert!(is_disjoint);
                        live.push((at, len));
                    }
                } else {
                    let (at, len) = live.remove(usize::try_from(len).unwrap() % live.len());
                    ranges.free(at, len);
                }
            }
            for (at, len) in live {
                ranges.free(at, len);
            }
            prop_assert!(ranges.is_free(0, 512));
        }
    }
}
