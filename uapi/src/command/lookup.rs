//! Commands that look codes up in tables wider than one of 256 bytes: of two tensors, or by channel.

use super::{Dims, Header, Strides};
use crate::addr::Operand;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the table of a [`PairTable`]: a code for each pair of codes.
pub const PAIR_TABLE_BYTES: u64 = 1 << 16;

/// PAIR_TABLE: two feature maps of equal dimensions, each pair of codes through a table of 65,536 bytes.
/// 3 units.
///
/// ```text
/// for n, y, x, ch:  out = table[a * 256 + b]
/// ```
///
/// Whatever function of two codes, so exact where the table is. Operands as in [`super::Add`]; the
/// table is apart from the result. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PairTable {
    /// `opcode::PAIR_TABLE`, 3 units.
    pub header: Header,
    /// First operand.
    pub a: Operand,
    /// Second operand.
    pub b: Operand,
    /// Result.
    pub out: Operand,
    /// The table.
    pub table: Operand,
    /// Dimensions of all three.
    pub dims: Dims,
    /// Strides of the first operand.
    pub a_strides: Strides,
    /// Strides of the second operand.
    pub b_strides: Strides,
    /// Strides of the result.
    pub out_strides: Strides,
    /// Must be zero.
    pub reserved: [u64; 6],
}
const _: () = assert!(size_of::<PairTable>() == 192 && offset_of!(PairTable, reserved) == 144);

/// CHANNEL_TABLE: every element through the table of its channel. 2 units.
///
/// ```text
/// for n, y, x, ch:  dst = tables[ch * 256 + src]
/// ```
///
/// `tables` has 256 bytes a channel. The result may lie exactly on the source. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ChannelTable {
    /// `opcode::CHANNEL_TABLE`, 2 units.
    pub header: Header,
    /// Source.
    pub src: Operand,
    /// Result.
    pub dst: Operand,
    /// The tables, one a channel.
    pub tables: Operand,
    /// Dimensions of both.
    pub dims: Dims,
    /// Strides of the source.
    pub src_strides: Strides,
    /// Strides of the result.
    pub dst_strides: Strides,
    /// Must be zero.
    pub reserved: [u64; 2],
}
const _: () =
    assert!(size_of::<ChannelTable>() == 128 && offset_of!(ChannelTable, reserved) == 112);

impl ChannelTable {
    /// Bytes of the tables.
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.dims.c) * 256
    }
}
