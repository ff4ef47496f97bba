//! POOL.

use super::{Dims, Header, Strides, Window};
use crate::addr::Operand;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a [`Pool`] does with a window.
pub mod pool_kind {
    /// The largest code; padding never wins. Window wholly in the padding gives 0.
    pub const MAX: u8 = 1;
    /// Mean in f32: `average_step` in row-major window order, then `average_finish` with
    /// `input_scale`, `output_scale` and both zero points. Padding adds nothing; it counts when
    /// `count_padding` is 1 (as far as the window lies within the padded input).
    pub const AVERAGE: u8 = 2;
    /// Integer mean of whole images: `requantise(sum(x - input_zero_point), multiplier, zero_point)`.
    /// The output is 1 by 1; the window and both scales are zero.
    pub const GLOBAL_AVERAGE: u8 = 3;
    /// Mean of whole images in f32, in four interleaved parts: `global_mean` of `dequantise(x,
    /// input_scale, input_zero_point)` in row-major order, then `quantise` with `output_scale` and
    /// `zero_point`. The output is 1 by 1; the window and the multiplier are zero.
    pub const GLOBAL_MEAN: u8 = 4;

    /// Whether it is of whole images.
    pub const fn is_global(kind: u8) -> bool {
        matches!(kind, GLOBAL_AVERAGE | GLOBAL_MEAN)
    }
}

/// POOL: a window's maximum or mean. 3 units.
///
/// ```text
/// for n, oy, ox, ch:  ofm = table0(clamp(kind over the window of ifm[n, .., .., ch]))
/// ```
///
/// Flags: `TABLE_0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Pool {
    /// `opcode::POOL`, 3 units.
    pub header: Header,
    /// Input feature map.
    pub ifm: Operand,
    /// Output feature map.
    pub ofm: Operand,
    /// Table 0; unused without `TABLE_0`.
    pub tables: Operand,
    /// As in [`super::Conv`].
    pub quant: Operand,
    /// Dimensions of the input; images and channels of the output.
    pub ifm_dims: Dims,
    /// Rows of the output.
    pub ofm_h: u32,
    /// Columns of the output.
    pub ofm_w: u32,
    /// One of [`pool_kind`].
    pub kind: u8,
    /// 1 when padding counts in a mean.
    pub count_padding: u8,
    /// Rows of padding below the input (`AVERAGE` with `count_padding` only; else zero).
    pub pad_bottom: u16,
    /// Columns of padding right of the input, likewise.
    pub pad_right: u16,
    /// Must be zero.
    pub reserved: u16,
    /// Strides of the input.
    pub ifm_strides: Strides,
    /// Strides of the output.
    pub ofm_strides: Strides,
    /// The window.
    pub window: Window,
    /// Zero point of the input, `0..=255`; zero for `MAX`.
    pub input_zero_point: i32,
    /// Zero point of the output, `0..=255`; zero for `MAX`.
    pub zero_point: i32,
    /// Lowest code.
    pub clamp_low: u8,
    /// Highest code.
    pub clamp_high: u8,
    /// Must be zero.
    pub reserved2: u16,
    /// Must be zero.
    pub reserved3: u32,
    /// Scale of the input (`AVERAGE`, `GLOBAL_MEAN`), else zero.
    pub input_scale: f32,
    /// Scale of the output (`AVERAGE`, `GLOBAL_MEAN`), else zero.
    pub output_scale: f32,
    /// Multiplier (`GLOBAL_AVERAGE`), else zero.
    pub multiplier: f32,
    /// Must be zero.
    pub reserved4: u32,
}
const _: () = assert!(size_of::<Pool>() == 192 && offset_of!(Pool, window) == 144);
