//! TABLE: every element through a table of 256 bytes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod scalar;

use super::operand::{Map, Slots, signed};
use super::split::Split;
use super::{Isa, Stop};
use npu_uapi::command;

/// A lookup with resolved operands.
pub(crate) struct Problem {
    pub(crate) src: Map,
    pub(crate) dst: Map,
    /// `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) table: [u8; 256],
}

/// Runs a TABLE.
pub(crate) fn run(
    c: &command::Table,
    slots: Slots<'_>,
    isa: Isa,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let problem = Problem {
        src: slots.map(c.src, &c.dims, &c.src_strides),
        dst: slots.map(c.dst, &c.dims, &c.dst_strides),
        dims: signed(&c.dims),
        table: slots.table(c.table, 0),
    };
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni {
        // SAFETY: `isa` says that the instructions exist.
        return unsafe { avx512vnni::run(&problem, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa.is_256() {
        // SAFETY: as above.
        return unsafe { avx2::run(&problem, split) };
    }
    let _ = isa;
    scalar::run(&problem, split)
}
