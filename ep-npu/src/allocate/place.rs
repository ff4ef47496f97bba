//! Offsets for blocks: the largest first, each into the tightest gap that is free while it lives.

use super::Memory;
use super::live::Block;
use crate::lower::Ops;

/// Alignment of every tensor, in bytes.
const ALIGN: u64 = 64;

pub(super) fn best_fit(ops: &Ops, blocks: &[Block]) -> Memory {
    let mut by_size: Vec<&Block> = blocks.iter().collect();
    by_size.sort_by_key(|block| (std::cmp::Reverse(block.len_bytes), block.first));
    let mut placed: Vec<(&Block, u64)> = Vec::with_capacity(blocks.len());
    let mut offsets = vec![0; ops.tensors.len()];
    let mut scratch_bytes = 0;
    for block in by_size {
        let offset = tightest_gap(block, &placed);
        for tensor in &block.tensors {
            offsets[tensor.0] = offset;
        }
        scratch_bytes = scratch_bytes.max(offset + block.len_bytes);
        placed.push((block, offset));
    }
    Memory { offsets, scratch_bytes: scratch_bytes.next_multiple_of(ALIGN) }
}

fn tightest_gap(block: &Block, placed: &[(&Block, u64)]) -> u64 {
    let mut taken: Vec<(u64, u64)> = placed
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
