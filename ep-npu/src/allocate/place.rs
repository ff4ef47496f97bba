//! Offsets for blocks: the largest first, each into the tightest gap that is free while it lives; on
//! chip where one is, else in DRAM.

use super::live::Block;
use super::{Memory, Place, Space};
use crate::lower::Ops;

/// Alignment of every tensor, in bytes.
const ALIGN: u64 = 64;

pub(super) fn best_fit(ops: &Ops, blocks: &[Block], sram_bytes: u64) -> Memory {
    let mut by_size: Vec<&Block> = blocks.iter().collect();
    by_size.sort_by_key(|block| (std::cmp::Reverse(block.len_bytes), block.first));
    let steps = blocks.iter().map(|block| block.last + 1).max().unwrap_or(0);
    let (mut sram, mut scratch) = (Arena::new(steps), Arena::new(steps));
    let mut places = vec![None; ops.tensors.len()];
    for block in by_size {
        let on_chip = sram.tightest_gap(block);
        let place = if on_chip + block.len_bytes <= sram_bytes {
            sram.put(block, on_chip);
            Place { space: Space::Sram, offset: on_chip }
        } else {
            let offset = scratch.tightest_gap(block);
            scratch.put(block, offset);
            Place { space: Space::Scratch, offset }
        };
        for tensor in &block.tensors {
            places[tensor.0] = Some(place);
        }
    }
    Memory { places, sram_bytes: sram.end, scratch_bytes: scratch.end }
}

/// What is placed in one memory so far.
struct Arena<'a> {
    placed: Vec<(&'a Block, u64)>,
    /// Of each step, the places in `placed` of what begins to live there: several where a run of images begins.
    starts: Vec<Vec<usize>>,
    /// A binary tree over the steps: what lives through all steps below a node and not through all below
    /// its parent. The root is 1; the two below `n` are `2 * n` and `2 * n + 1`, the steps the last.
    lives: Vec<Vec<usize>>,
    end: u64,
}

impl<'a> Arena<'a> {
    /// An empty one, for a program of so many steps.
    fn new(steps: usize) -> Self {
        let leaves = steps.next_power_of_two();
        Self {
            placed: Vec::new(),
            starts: vec![Vec::new(); steps],
            lives: vec![Vec::new(); 2 * leaves],
            end: 0,
        }
    }

    fn put(&mut self, block: &'a Block, offset: u64) {
        let place = self.placed.len();
        self.placed.push((block, offset));
        self.end = self.end.max(offset + block.len_bytes);
        self.starts[block.first].push(place);
        let leaves = self.lives.len() / 2;
        let (mut from, mut to) = (block.first + leaves, block.last + 1 + leaves);
        while from < to {
            if from % 2 == 1 {
                self.lives[from].push(place);
                from += 1;
            }
            if to % 2 == 1 {
                to -= 1;
                self.lives[to].push(place);
            }
            (from, to) = (from / 2, to / 2);
        }
    }

    /// What lives at the same time as `block`: what does at its first step, and what starts later.
    fn beside(&self, block: &Block) -> impl Iterator<Item = &(&'a Block, u64)> {
        let leaf = block.first + self.lives.len() / 2;
        let path = std::iter::successors(Some(leaf), |node| Some(node / 2)).take_while(|&n| n > 0);
        let at_first = path.flat_map(|node| &self.lives[node]);
        let later = self.starts[block.first + 1..=block.last].iter().flatten();
        at_first.chain(later).map(|&place| &self.placed[place])
    }

    /// Where `block` leaves the least room unused among what lives at the same time; behind all of
    /// it when no gap is wide enough.
    fn tightest_gap(&self, block: &Block) -> u64 {
        let mut taken: Vec<(u64, u64)> = self
            .beside(block)
            .map(|(other, offset)| (*offset, (offset + other.len_bytes).next_multiple_of(ALIGN)))
            .collect();
        taken.sort_unstable();
        let mut best: Option<(u64, u64)> = None;
        let mut end = 0;
        for (start, stop) in taken {
            if let Some(gap) = start.checked_sub(end).filter(|&gap| gap >= block.len_bytes)
                && best.is_none_or(|(tightest, _)| gap < tightest)
            {
                best = Some((gap, end));
            }
            end = end.max(stop);
        }
        best.map_or(end, |(_, offset)| offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_lives_beside_a_block_is_what_shares_a_step_with_it(
            lives in proptest::collection::vec((0_usize..40, 0_usize..9, any::<bool>()), 1..40),
        ) {
            let block = |&(first, len, _): &(usize, usize, bool)| {
                Block { tensors: Vec::new(), first, last: first + len, len_bytes: 64 }
            };
            let blocks: Vec<Block> = lives.iter().map(block).collect();
            let steps = blocks.iter().map(|block| block.last + 1).max().unwrap_or(0);
            let (placed, others): (Vec<usize>, Vec<usize>) =
                (0..blocks.len()).partition(|&index| lives[index].2);
            let mut arena = Arena::new(steps);
            for &index in &placed {
                arena.put(&blocks[index], 0);
            }
            for block in others.into_iter().map(|index| &blocks[index]) {
                let mut found: Vec<_> = arena.beside(block).map(|(b, _)| (b.first, b.last)).collect();
                found.sort_unstable();
                let shares = |other: &&Block| other.first <= block.last && block.first <= other.last;
                let beside = placed.iter().map(|&index| &blocks[index]).filter(shares);
                let mut want: Vec<_> = beside.map(|b| (b.first, b.last)).collect();
                want.sort_unstable();
                prop_assert_eq!(found, want);
            }
        }
    }
}
