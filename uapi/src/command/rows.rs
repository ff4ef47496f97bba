//! Commands on whole rows of channels in floats: one code of each row, or each of them normalised.

use super::{Dims, Header, Strides};
use crate::addr::Operand;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// REDUCE: the sum or mean of the channels of each pixel, in f32. 2 units.
///
/// ```text
/// for n, y, x:                                         row = (n * h + y) * w + x
///   v[ch] = dequantise(src[n, y, x, ch], input_scale, input_zero_point)
///   dst[n, y, x, 0] = quantise(v summed in the order of `order`, divided by c if `mean`, output_scale, zero_point)
/// ```
///
/// Orders: [`crate::rows::Order`]. `dst` has one channel; `dims` are those of `src`, at most
/// [`crate::rows::MOST_ELEMENTS`] channels. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Reduce {
    /// `opcode::REDUCE`, 2 units.
    pub header: Header,
    /// Source.
    pub src: Operand,
    /// Result.
    pub dst: Operand,
    /// Dimensions of the source.
    pub dims: Dims,
    /// Strides of the source.
    pub src_strides: Strides,
    /// Strides of the result.
    pub dst_strides: Strides,
    /// Scale of the source.
    pub input_scale: f32,
    /// Scale of the result.
    pub output_scale: f32,
    /// Zero point of the source.
    pub input_zero_point: u8,
    /// Zero point of the result.
    pub zero_point: u8,
    /// One of [`crate::rows::sum_order`].
    pub order: u8,
    /// 1 for the mean, 0 for the sum.
    pub mean: u8,
    /// Must be zero.
    pub reserved: u32,
    /// Must be zero.
    pub reserved2: [u64; 2],
}
const _: () = assert!(size_of::<Reduce>() == 128 && offset_of!(Reduce, input_scale) == 96);

/// What a [`Norm`] does with a row.
pub mod norm_kind {
    /// `Spread::of_layer`, and `in_layer` with the terms of each channel. At least 8 channels.
    pub const LAYER: u8 = 1;
    /// `Spread::of_instance`, and for each element `Affine::of` `of_channel` with the terms of row
    /// `row % period`.
    pub const INSTANCE: u8 = 2;
    /// `Staged::of` gives the mean and a code: `(v - mean) / terms[code]`, where the terms are 256 f32.
    pub const STAGED: u8 = 3;
}

/// NORM: the channels of each pixel less their mean, over their deviation, in f32. 3 units.
///
/// ```text
/// for n, y, x:                                         row = (n * h + y) * w + x
///   v[ch] = dequantise(src[n, y, x, ch], input_scale, input_zero_point)
///   dst[n, y, x, ch] = quantise(kind of v[ch] in v, output_scale, zero_point)
/// ```
///
/// Kinds: [`norm_kind`], with the arithmetic of [`crate::rows`]. `terms` are pairs of f32, gain and bias:
/// one a channel (`LAYER`), `period` pairs (`INSTANCE`), or 256 divisors (`STAGED`). At most
/// [`crate::rows::MOST_ELEMENTS`] channels. The result may lie exactly on the source. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Norm {
    /// `opcode::NORM`, 3 units.
    pub header: Header,
    /// Source.
    pub src: Operand,
    /// Result.
    pub dst: Operand,
    /// The terms.
    pub terms: Operand,
    /// Dimensions of both.
    pub dims: Dims,
    /// Strides of the source.
    pub src_strides: Strides,
    /// Strides of the result.
    pub dst_strides: Strides,
    /// Scale of the source.
    pub input_scale: f32,
    /// Scale of the result.
    pub output_scale: f32,
    /// What is added to the variance (`LAYER`, `INSTANCE`), else zero.
    pub epsilon: f32,
    /// Scale of the variance (`STAGED`), else zero.
    pub variance_scale: f32,
    /// Rows after which the terms repeat (`INSTANCE`), else zero.
    pub period: u32,
    /// Zero point of the source.
    pub input_zero_point: u8,
    /// Zero point of the result.
    pub zero_point: u8,
    /// Zero point of the variance (`STAGED`), else zero.
    pub variance_zero_point: u8,
    /// One of [`norm_kind`].
    pub kind: u8,
    /// Order of the sum of elements (`STAGED`), one of [`crate::rows::sum_order`], else zero.
    pub order: u8,
    /// Order of the sum of squares, likewise.
    pub square_order: u8,
    /// Must be zero.
    pub reserved: [u8; 6],
    /// Must be zero.
    pub reserved2: [u64; 6],
}
const _: () = assert!(size_of::<Norm>() == 192 && offset_of!(Norm, period) == 128);

impl Reduce {
    /// Dimensions of the result.
    pub fn dst_dims(&self) -> Dims {
        Dims { c: 1, ..self.dims }
    }
}

impl Norm {
    /// Bytes of the terms.
    pub fn terms_bytes(&self) -> u64 {
        match self.kind {
            norm_kind::LAYER => 8 * u64::from(self.dims.c),
            norm_kind::INSTANCE => 8 * u64::from(self.period),
            _ => 4 * 256,
        }
    }
}
