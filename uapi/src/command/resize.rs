//! RESIZE.

use super::{Dims, Header, Strides};
use crate::addr::Operand;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most rows or columns of a [`Resize`]'s output.
pub const MOST_TAPS: u32 = 1 << 16;

/// Where a row or column of a [`Resize`]'s output comes from: two of the input, each with its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Tap {
    /// The first; beyond the input it is the last one.
    pub first: u32,
    /// The second, likewise.
    pub second: u32,
    /// Weight of the first.
    pub first_weight: f32,
    /// Weight of the second.
    pub second_weight: f32,
}
const _: () = assert!(size_of::<Tap>() == 16);

/// RESIZE: each pixel from four of the input, in f32. 3 units.
///
/// ```text
/// for n, oy, ox, ch:
///   r = taps[oy], c = taps[ofm_h + ox]
///   X(y, x) = dequantise(ifm[n, min(y, h - 1), min(x, w - 1), ch], input_scale, input_zero_point)
///   ofm = quantise(blend([r weights, c weights], [X(r.first, c.first), X(r.first, c.second),
///                         X(r.second, c.first), X(r.second, c.second)]), output_scale, zero_point)
/// ```
///
/// Arithmetic: [`crate::requantise::blend`]. `taps` holds [`Tap`]s, of rows, then of columns; of each at
/// most 65,536. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Resize {
    /// `opcode::RESIZE`, 3 units.
    pub header: Header,
    /// Input feature map.
    pub ifm: Operand,
    /// Output feature map.
    pub ofm: Operand,
    /// The taps, 16 bytes each.
    pub taps: Operand,
    /// Dimensions of the input; images and channels of the output.
    pub ifm_dims: Dims,
    /// Rows of the output.
    pub ofm_h: u32,
    /// Columns of the output.
    pub ofm_w: u32,
    /// Strides of the input.
    pub ifm_strides: Strides,
    /// Strides of the output.
    pub ofm_strides: Strides,
    /// Scale of the input.
    pub input_scale: f32,
    /// Scale of the output.
    pub output_scale: f32,
    /// Zero point of the input.
    pub input_zero_point: u8,
    /// Zero point of the output.
    pub zero_point: u8,
    /// Must be zero.
    pub reserved: [u8; 6],
    /// Must be zero.
    pub reserved2: [u64; 7],
}
const _: () = assert!(size_of::<Resize>() == 192 && offset_of!(Resize, reserved2) == 136);

impl Resize {
    /// Bytes of the taps.
    pub fn tap_bytes(&self) -> u64 {
        (u64::from(self.ofm_h) + u64::from(self.ofm_w)) * size_of::<Tap>() as u64
    }

    /// Dimensions of the output.
    pub fn ofm_dims(&self) -> Dims {
        Dims { h: self.ofm_h, w: self.ofm_w, ..self.ifm_dims }
    }
}
