//! PAIR_TABLE and CHANNEL_TABLE: codes through tables that do not fit registers.

#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod channels_avx512vnni;
mod scalar;

use super::Stop;
use super::operand::{Map, Region, Slots, signed};
use super::split::Split;
use npu_uapi::command;

/// A PAIR_TABLE with resolved operands.
pub(crate) struct Pairs {
    pub(crate) a: Map,
    pub(crate) b: Map,
    pub(crate) out: Map,
    /// `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) table: Region,
}

/// A CHANNEL_TABLE with resolved operands.
pub(crate) struct Channels {
    pub(crate) src: Map,
    pub(crate) dst: Map,
    /// `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) tables: Region,
}

/// Runs a PAIR_TABLE.
pub(crate) fn pairs(
    c: &command::PairTable,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let problem = Pairs {
        a: slots.map(c.a, &c.dims, &c.a_strides),
        b: slots.map(c.b, &c.dims, &c.b_strides),
        out: slots.map(c.out, &c.dims, &c.out_strides),
        dims: signed(&c.dims),
        table: slots.region(c.table),
    };
    #[cfg(target_arch = "x86_64")]
    if vector {
        // SAFETY: `vector` says that the instructions exist.
        return unsafe { avx512vnni::pairs(&problem, split) };
    }
    let _ = vector;
    scalar::pairs(&problem, split)
}

/// Runs a CHANNEL_TABLE.
pub(crate) fn channels(
    c: &command::ChannelTable,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let problem = Channels {
        src: slots.map(c.src, &c.dims, &c.src_strides),
        dst: slots.map(c.dst, &c.dims, &c.dst_strides),
        dims: signed(&c.dims),
        tables: slots.region(c.tables),
    };
    #[cfg(target_arch = "x86_64")]
    if vector {
        // SAFETY: `vector` says that the instructions exist.
        return unsafe { avx512vnni::channels(&problem, split) };
    }
    let _ = vector;
    scalar::channels(&problem, split)
}
