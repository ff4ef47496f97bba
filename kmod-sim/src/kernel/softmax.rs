//! SOFTMAX: the channels of each pixel as shares of their sum.

#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod scalar;

use super::Stop;
use super::operand::{Map, Slots, signed};
use super::split::Split;
use npu_uapi::command;
use npu_uapi::requantise::ShareTerms;

/// A softmax with resolved operands.
pub(crate) struct Problem {
    pub(crate) src: Map,
    pub(crate) dst: Map,
    /// `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) table: [f32; 256],
    pub(crate) terms: ShareTerms,
}

/// Runs a SOFTMAX.
pub(crate) fn run(
    c: &command::Softmax,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let table = slots.region(c.table);
    let mut parts = [0.0; 256];
    for (at, part) in (0..).step_by(4).zip(parts.iter_mut()) {
        *part = f32::from_le_bytes(table.memory.load_bytes(table.start + at));
    }
    let problem = Problem {
        src: slots.map(c.src, &c.dims, &c.src_strides),
        dst: slots.map(c.dst, &c.dims, &c.dst_strides),
        dims: signed(&c.dims),
        table: parts,
        terms: ShareTerms { scale: c.scale, zero_point: c.zero_point },
    };
    #[cfg(target_arch = "x86_64")]
    if vector {
        // SAFETY: `vector` says that the instructions exist.
        return unsafe { avx512vnni::run(&problem, split) };
    }
    let _ = vector;
    scalar::run(&problem, split)
}
