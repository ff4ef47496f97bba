//! ADD: two feature maps, element by element.

#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod scalar;

use super::Stop;
use super::operand::{Map, Slots, signed};
use super::split::Split;
use npu_uapi::command::{self, Flags};
use npu_uapi::requantise::AddTerms;

/// An addition with resolved operands.
pub(crate) struct Problem {
    pub(crate) a: Map,
    pub(crate) b: Map,
    pub(crate) out: Map,
    /// `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) terms: AddTerms,
    pub(crate) low: u8,
    pub(crate) high: u8,
    pub(crate) table: Option<[u8; 256]>,
}

/// Runs an ADD.
pub(crate) fn run(
    c: &command::Add,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let problem = Problem {
        a: slots.map(c.a, &c.dims, &c.a_strides),
        b: slots.map(c.b, &c.dims, &c.b_strides),
        out: slots.map(c.out, &c.dims, &c.out_strides),
        dims: signed(&c.dims),
        terms: AddTerms { first: c.first, second: c.second, offset: c.offset },
        low: c.clamp_low,
        high: c.clamp_high,
        table: c.header.flags().contains(Flags::TABLE_0).then(|| slots.table(c.tables, 0)),
    };
    #[cfg(target_arch = "x86_64")]
    if vector {
        // SAFETY: `vector` says that the instructions exist.
        return unsafe { avx512vnni::run(&problem, split) };
    }
    let _ = vector;
    scalar::run(&problem, split)
}
