//! What commands are made of: head, dimensions, strides, window, output stage.

use super::Flags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Head of every command. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// One of [`super::opcode`].
    pub opcode: u8,
    /// Length of the command, in units of 64 bytes.
    pub units: u8,
    /// [`Flags`].
    pub flags: u16,
    /// Leads back to the source operation through the container's names; echoed in fault records.
    pub op_id: u32,
    /// Must be zero.
    pub reserved: u64,
}

/// Dimensions of a feature map. 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Dims {
    /// Images.
    pub n: u32,
    /// Rows of an image.
    pub h: u32,
    /// Pixels of a row.
    pub w: u32,
    /// Channels of a pixel, pad lanes not counted.
    pub c: u32,
}

/// Strides of a feature map, in bytes; a channel is one byte wide. 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Strides {
    /// From an image to the next.
    pub image: i64,
    /// From a row to the next.
    pub row: i32,
    /// From a pixel to the next.
    pub pixel: i32,
}

/// Window of a convolution or pooling. 16 bytes.
///
/// Output `(oy, ox)` covers input rows `oy * stride_h - pad_top + ky * dilation_h`, columns likewise;
/// positions outside the input are padding. Bottom and right pads follow from the output's size.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Window {
    /// Rows.
    pub kernel_h: u16,
    /// Columns.
    pub kernel_w: u16,
    /// Input rows from an output row to the next.
    pub stride_h: u16,
    /// Input columns from an output column to the next.
    pub stride_w: u16,
    /// Input rows from a kernel row to the next.
    pub dilation_h: u16,
    /// Input columns from a kernel column to the next.
    pub dilation_w: u16,
    /// Rows of padding above the input.
    pub pad_top: u16,
    /// Columns of padding left of the input.
    pub pad_left: u16,
}

/// Immediates of the output stage of CONV and MATMUL. 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Stage {
    /// Zero point of the input, `0..=255`: what padding holds.
    pub input_zero_point: i32,
    /// Zero point of the requantised code, `0..=255`.
    pub zero_point: i32,
    /// Lowest code after requantisation.
    pub clamp_low: u8,
    /// Highest code after requantisation.
    pub clamp_high: u8,
    /// With `FLOAT`, one of [`crate::float_order::code`]; else zero.
    pub float_order: u8,
    /// With `FLOAT`, log2 of a block's terms where the order has blocks; else zero.
    pub float_block_log2: u8,
    /// Terms of the addition (`ADD_AUX`), zero without it; see [`crate::requantise::AddTerms`].
    pub add_first: f32,
    /// Second term.
    pub add_second: f32,
    /// Third term.
    pub add_offset: f32,
    /// With `FLOAT`, the scale of the input, any bits; else zero.
    pub input_scale: f32,
    /// With `FLOAT`, the scale of the quantised result, any bits; else zero.
    pub output_scale: f32,
}

/// One output channel of a sum in floats (`FLOAT`). 16 bytes, in memory; any bits are safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct FloatRecord {
    /// What a weight is multiplied by.
    pub weight_scale: f32,
    /// What is added to the sum of the products.
    pub bias: f32,
    /// Not read.
    pub unused: [u32; 2],
}

/// One output channel's share of the output stage. 16 bytes, in memory; any bits are safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ChannelRecord {
    /// Start of the accumulator: the bias, less `input_zero_point * sum(w)`, plus
    /// `taps * input_zero_point * weight_zero_point` over all taps, padding included.
    pub bias: i32,
    /// What the accumulator is multiplied by.
    pub multiplier: f32,
    /// Zero point of this channel's weights; the sum of the inputs times it is subtracted.
    pub weight_zero_point: i32,
    /// Sum of this channel's weights. Read only with `DYNAMIC`.
    pub weight_sum: i32,
}

/// Strides of any tensor of four dimensions, in bytes. 32 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Strides4 {
    /// From an image to the next.
    pub image: i64,
    /// From a row to the next.
    pub row: i64,
    /// From a pixel to the next.
    pub pixel: i64,
    /// From a channel to the next.
    pub channel: i64,
}

impl Header {
    /// A head for `opcode` of `units` units.
    pub const fn new(opcode: u8, units: u8, flags: Flags, op_id: u32) -> Self {
        Self { opcode, units, flags: flags.bits(), op_id, reserved: 0 }
    }

    /// The flags, unknown bits kept.
    pub fn flags(&self) -> Flags {
        Flags::from_bits_retain(self.flags)
    }
}
