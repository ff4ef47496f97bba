//! Weights that are asked for ahead of their use: beside the products of the first tiles of a pass.
//! Unsafe: threads share a pointer that nothing reads through.

use super::super::Job;
use super::{Panel, Plan};
use crate::memory::isize_of;

/// Fewest bytes of weights for which those of the next command are asked for: fewer come by themselves.
const FEWEST_ASKED: i64 = 96 << 10;

/// Most bytes of the next command's weights that are asked for: about what it reads first.
const MOST_BEHIND: i64 = 256 << 10;

/// Which weights are asked for ahead of their use, beside the first tiles of a strip.
pub(super) struct Asks {
    /// What lies behind the job's constants: those of the next command.
    behind: *const u8,
    /// Bytes of a panel's weights: one pass of a strip by a panel asks for so many.
    bytes: i64,
    /// Of the passes behind the first strip, one in so many asks for what is behind.
    one_in: i64,
}

// SAFETY: the pointer is for hints only.
unsafe impl Sync for Asks {}

impl Asks {
    /// Of a job of panels of so many blocks; nothing where it has few weights.
    pub(super) fn new(job: &Job<'_>, blocks: i64, strips: i64, panels: i64) -> Self {
        let all = job.blocks * job.problem.groups * job.block_bytes;
        let end = job.weights.wrapping_offset(isize_of(all));
        let records = if end == job.records { 16 * job.problem.outputs } else { 0 };
        let many = all >= FEWEST_ASKED && job.problem.taps() == 1;
        let bytes = blocks * job.block_bytes;
        let passes = (all.min(MOST_BEHIND) + bytes - 1) / bytes;
        Self {
            behind: end.wrapping_offset(isize_of(records)),
            bytes: if many { bytes } else { 0 },
            one_in: ((strips - 1) * panels / passes).max(1),
        }
    }

    /// What pass number `pass` asks for instead of the panel behind its own. The first strip does that; the
    /// others, by whose time it is there, ask for the next chunk's and for what is behind.
    pub(super) fn of(&self, panel: &Panel, pass: i64, plan: &Plan) -> Option<*const u8> {
        let pass = pass - plan.panels;
        if self.bytes == 0 || pass < 0 {
            return None;
        }
        let bytes = isize_of(self.bytes);
        Some(if pass % self.one_in == 0 {
            self.behind.wrapping_offset(bytes.wrapping_mul(isize_of(pass / self.one_in)))
        } else {
            panel.weights.wrapping_offset(bytes.wrapping_mul(isize_of(plan.panels_a_chunk)))
        })
    }
}
