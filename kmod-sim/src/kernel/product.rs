//! PRODUCT: matrix products of two tensors of codes.

#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod pack;
mod scalar;

use super::Stop;
use super::operand::{Region, Slots};
use super::split::Split;
use npu_uapi::command::{self, Flags};

/// A product with resolved operands. Strides follow the loops `outer`, `batch`, then those of a matrix.
pub(crate) struct Problem {
    pub(crate) a: Region,
    pub(crate) b: Region,
    pub(crate) out: Region,
    /// Turns of the two loops around the matrices.
    pub(crate) turns: [i64; 2],
    pub(crate) m: i64,
    pub(crate) n: i64,
    pub(crate) k: i64,
    pub(crate) a_turns: [i64; 2],
    pub(crate) b_turns: [i64; 2],
    pub(crate) out_turns: [i64; 2],
    pub(crate) a_row: i64,
    pub(crate) b_row: i64,
    pub(crate) b_column: i64,
    pub(crate) out_row: i64,
    pub(crate) a_zero_point: u8,
    pub(crate) b_zero_point: u8,
    pub(crate) zero_point: u8,
    pub(crate) low: u8,
    pub(crate) high: u8,
    pub(crate) multiplier: f32,
    pub(crate) table: Option<[u8; 256]>,
}

impl Problem {
    fn new(c: &command::Product, slots: Slots<'_>) -> Self {
        Self {
            a: slots.region(c.a),
            b: slots.region(c.b),
            out: slots.region(c.out),
            turns: [c.outer.into(), c.batch.into()],
            m: c.m.into(),
            n: c.n.into(),
            k: c.k.into(),
            a_turns: [c.a_outer, c.a_batch],
            b_turns: [c.b_outer, c.b_batch],
            out_turns: [c.out_outer, c.out_batch],
            a_row: c.a_row.into(),
            b_row: c.b_row.into(),
            b_column: c.b_column.into(),
            out_row: c.out_row.into(),
            a_zero_point: c.a_zero_point,
            b_zero_point: c.b_zero_point,
            zero_point: c.zero_point,
            low: c.clamp_low,
            high: c.clamp_high,
            multiplier: c.multiplier,
            table: c.header.flags().contains(Flags::TABLE_0).then(|| slots.table(c.tables, 0)),
        }
    }

    /// Offsets of the first byte of each operand in matrix `index` of all.
    pub(crate) fn matrices(&self, index: i64) -> [i64; 3] {
        let (outer, batch) = (index / self.turns[1], index % self.turns[1]);
        let at =
            |region: &Region, turns: [i64; 2]| region.start + outer * turns[0] + batch * turns[1];
        [at(&self.a, self.a_turns), at(&self.b, self.b_turns), at(&self.out, self.out_turns)]
    }
}

/// Runs a PRODUCT.
pub(crate) fn run(
    c: &command::Product,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let problem = Problem::new(c, slots);
    #[cfg(target_arch = "x86_64")]
    if vector && avx512vnni::takes(&problem) {
        // SAFETY: it takes the problem, and `vector` says that the instructions exist.
        return unsafe { avx512vnni::run(&problem, split) };
    }
    let _ = vector;
    scalar::run(&problem, split)
}
