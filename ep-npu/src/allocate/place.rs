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
    let (mut sram, mut scratch) = (Arena::default(), Arena::default());
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
#[derive(Default)]
struct Arena<'a> {
    placed: Vec<(&'a Block, u64)>,
    end: u64,
}

impl<'a> Arena<'a> {
    fn put(&mut self, block: &'a Block, offset: u64) {
        self.placed.push((block, offset));
        self.end = self.end.max(offset + block.len_bytes);
    }

    /// Where `block` leaves the least room unused among what lives at the same time; behind all of
    /// it when no gap is wide enough.
    fn tightest_gap(&self, block: &Block) -> u64 {
        let mut taken: Vec<(u64, u64)> = self
            .placed
            .iter()
            .filter(|(other, _)| other.first <= block.last && block.first <= other.last)
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
