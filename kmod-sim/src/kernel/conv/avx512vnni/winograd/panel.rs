//! Panels of outputs, whose products are made together: two blocks of 16, three where blocks are odd, or all of
//! 24 outputs as a block and a half.

use crate::memory::usize_of;

/// A panel: blocks of weights, of which vectors of products are made for each unit of tiles.
pub(super) struct Panel {
    pub(super) first_block: i64,
    pub(super) blocks: i64,
    /// The second block is half a one, and two tiles are a unit, which share a vector of it.
    pub(super) in_pairs: bool,
}

/// Outputs that are a panel in pairs.
pub(super) const OF_PAIRS: i64 = 24;

impl Panel {
    /// Whether so many outputs are whole panels.
    pub(super) fn covers(outputs: i64) -> bool {
        outputs == OF_PAIRS || outputs % 16 == 0
    }

    /// Panels of so many outputs.
    pub(super) fn count(outputs: i64) -> i64 {
        if outputs == OF_PAIRS { 1 } else { (outputs / 32).max(1) }
    }

    /// Panel `number` of so many outputs.
    pub(super) fn new(outputs: i64, number: i64) -> Self {
        if outputs == OF_PAIRS {
            return Self { first_block: 0, blocks: 2, in_pairs: true };
        }
        let (blocks, odd) = (outputs / 16, outputs / 16 % 2);
        // The first takes the odd one.
        match number {
            0 if blocks == 1 => Self { first_block: 0, blocks: 1, in_pairs: false },
            0 => Self { first_block: 0, blocks: if odd == 1 { 3 } else { 2 }, in_pairs: false },
            _ => Self { first_block: odd + 2 * number, blocks: 2, in_pairs: false },
        }
    }

    /// Outputs of the panel.
    pub(super) fn outputs(&self) -> i64 {
        if self.in_pairs { OF_PAIRS } else { 16 * self.blocks }
    }

    /// Tiles whose products are vectors of their own.
    pub(super) fn tiles_a_unit(&self) -> i64 {
        if self.in_pairs { 2 } else { 1 }
    }

    /// Units of so many tiles.
    pub(super) fn units(&self, tiles: i64) -> i64 {
        (tiles + self.tiles_a_unit() - 1) / self.tiles_a_unit()
    }

    /// Vectors of products of a unit and a value.
    pub(super) fn vectors(&self) -> usize {
        if self.in_pairs { 3 } else { usize_of(self.blocks.unsigned_abs()) }
    }

    /// The block of a vector, and whether it is half a one.
    pub(super) fn block_of(&self, vector: usize) -> (usize, bool) {
        if self.in_pairs { (vector / 2, vector == 2) } else { (vector, false) }
    }

    /// Whether `block` is half a one.
    pub(super) fn is_half(&self, block: i64) -> bool {
        self.in_pairs && block == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_all_blocks_once_in_order() {
        for outputs in [16, 24, 32, 48, 64, 80, 96, 112, 512] {
            assert!(Panel::covers(outputs));
            let mut next = 0;
            for number in 0..Panel::count(outputs) {
                let panel = Panel::new(outputs, number);
                assert_eq!(16 * panel.first_block, next, "panel {number} of {outputs} outputs");
                assert!((1..=3).contains(&panel.blocks));
                next += panel.outputs();
            }
            assert_eq!(next, outputs);
        }
        assert!([8, 17, 23, 40].iter().all(|&outputs| !Panel::covers(outputs)));
    }
}
