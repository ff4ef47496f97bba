//! The command set: one struct a command, laid out as it goes on the wire, each with the loop it runs.
//!
//! Commands are self-contained descriptors of 1 to 4 units of 64 bytes. They run strictly in order.
//! Every operand is `(slot, offset)`; every dimension is unsigned, every stride signed and in bytes.
//!
//! **Tensors.** A *feature map* is channel-last: element `(n, y, x, ch)` lies at
//! `offset + n * image + y * row + x * pixel + ch`, one byte each. Behind its `c` channels a pixel may
//! have pad lanes, [`lanes`] in all: their content is undefined, any command that writes
//! the pixel may write them, and none lets one reach a real lane. Extents cover them.
//!
//! **Weights** are signed bytes in blocks of 16 output by 4 input channels:
//! `[group][output block of 16][reduction / 4][16][4]`, both padded with zeros. The reduction runs over
//! `(kernel row, kernel column, input channel rounded up to 4)`; in a depthwise convolution (one input
//! channel a group, as many outputs as inputs) there is one group of all channels instead, and the
//! reduction runs over the kernel's taps, rounded up to 4. See [`Conv::weight_bytes`].
//!
//! **Channel records** ([`ChannelRecord`], 16 bytes) follow output channels; the array is padded to a
//! multiple of 16 records.
//!
//! **Output stage** of CONV and MATMUL, each arrow an 8-bit code:
//!
//! ```text
//! accumulator -> requantise, clamp -> [table 0] -> [add auxiliary] -> [table 1] -> store
//! ```
//!
//! Arithmetic: [`crate::requantise`]. Scales are never folded together.
//!
//! **Sums in floats** (`FLOAT` of CONV and MATMUL). Codes stand for the floats that they dequantise to,
//! and the stage begins otherwise; channel records are [`FloatRecord`]s, as many and as large:
//!
//! ```text
//! terms   = (dequantise(x, input_scale, input_zero_point), f32(w) * record.weight_scale)
//!           by input channel, then kernel row, then kernel column; padding is 0
//! sum     = terms and record.bias in the order that float_order and float_block_log2 name
//! sum -> quantise(sum, output_scale, zero_point), clamp -> [table 0] -> ...
//! ```
//!
//! Order and arithmetic: [`crate::float_order`]. The modelled clock charges what it does without `FLOAT`.

mod any;
mod lookup;
mod parts;
mod pool;
mod product;
mod resize;
mod rows;

pub use any::Command;
pub use lookup::{ChannelTable, PAIR_TABLE_BYTES, PairTable};
pub use parts::{ChannelRecord, Dims, FloatRecord, Header, Stage, Strides, Strides4, Window};
pub use pool::{Pool, pool_kind};
pub use product::{Product, Softmax};
pub use resize::{MOST_TAPS, Resize, Tap};
pub use rows::{Norm, Reduce, norm_kind};

use crate::addr::Operand;
use bitflags::bitflags;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of one descriptor unit.
pub const UNIT_BYTES: usize = 64;

/// Version of the command set, major in the high half; the device refuses another major.
///
/// | version | what it added |
/// |---|---|
/// | 1.1 | MUL; inputs of ADD and MUL repeated over pixels; the outer dimension and the table of LAYOUT |
/// | 1.2 | `FLOAT` of CONV and MATMUL; PRODUCT; SOFTMAX; PAIR_TABLE; CHANNEL_TABLE |
/// | 1.3 | REDUCE; NORM; RESIZE |
pub const ISA_VERSION: u32 = 1 << 16 | 3;

/// Numbers of the commands. Zero is none, so that zeroed memory is not a program.
pub mod opcode {
    /// [`super::End`]
    pub const END: u8 = 0x01;
    /// [`super::Copy`]
    pub const COPY: u8 = 0x10;
    /// [`super::Fill`]
    pub const FILL: u8 = 0x11;
    /// [`super::Layout`]
    pub const LAYOUT: u8 = 0x12;
    /// [`super::Table`]
    pub const TABLE: u8 = 0x13;
    /// [`super::PairTable`]
    pub const PAIR_TABLE: u8 = 0x14;
    /// [`super::ChannelTable`]
    pub const CHANNEL_TABLE: u8 = 0x15;
    /// [`super::Add`]
    pub const ADD: u8 = 0x20;
    /// [`super::Pool`]
    pub const POOL: u8 = 0x21;
    /// [`super::Mul`]
    pub const MUL: u8 = 0x22;
    /// [`super::Reduce`]
    pub const REDUCE: u8 = 0x23;
    /// [`super::Softmax`]
    pub const SOFTMAX: u8 = 0x24;
    /// [`super::Resize`]
    pub const RESIZE: u8 = 0x25;
    /// [`super::Norm`]
    pub const NORM: u8 = 0x26;
    /// [`super::Conv`]
    pub const CONV: u8 = 0x30;
    /// [`super::MatMul`]
    pub const MATMUL: u8 = 0x31;
    /// [`super::Product`]
    pub const PRODUCT: u8 = 0x32;
}

bitflags! {
    /// Flags of a command header; which of them a command takes, its description says.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub struct Flags: u16 {
        /// Apply the 256-byte table at `tables` after requantisation (CONV, MATMUL), after the
        /// sum (ADD), the product (MUL) or the pooling (POOL), or to what is moved (LAYOUT); PRODUCT too.
        const TABLE_0 = 1 << 0;
        /// Add the auxiliary tensor after table 0 (CONV, MATMUL).
        const ADD_AUX = 1 << 1;
        /// The auxiliary tensor is the first operand of that addition, the command's result the second.
        const AUX_FIRST = 1 << 2;
        /// Apply the 256-byte table at `tables + 256` after the addition (CONV, MATMUL).
        const TABLE_1 = 1 << 3;
        /// Scales and zero points come from the record at `quant`. The field is laid out from version
        /// 1.0 on; a device without `Features::DYNAMIC_QUANT` refuses the flag.
        const DYNAMIC = 1 << 4;
        /// Sum dequantised operands in floats (CONV, MATMUL; not with `DYNAMIC`): see
        /// [`FloatRecord`].
        const FLOAT = 1 << 5;
    }
}

/// CONV: convolution with the output stage. 4 units.
///
/// ```text
/// for n, oy, ox, oc:                                   g = oc / (ofm_c / groups)
///   acc = record[oc].bias
///   for ky, kx, ic in 0..ifm.c/groups:
///     x = ifm[n, oy*stride_h - pad_top + ky*dilation_h, ox*stride_w - pad_left + kx*dilation_w, g*(ifm.c/groups) + ic]
///         or input_zero_point outside the input
///     acc += x * w[oc, ky, kx, ic] - x * record[oc].weight_zero_point        (wrapping 32-bit)
///   ofm[n, oy, ox, oc] = stage(acc, record[oc], aux[n, oy, ox, oc])
/// ```
///
/// Inputs are unsigned, weights signed. `ifm.c` and `ofm_c` are multiples of `groups`; `pixel` of the
/// input is a multiple of 4. Flags: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Conv {
    /// `opcode::CONV`, 4 units.
    pub header: Header,
    /// Input feature map.
    pub ifm: Operand,
    /// Weights.
    pub weights: Operand,
    /// Channel records.
    pub channels: Operand,
    /// Output feature map.
    pub ofm: Operand,
    /// Auxiliary feature map, of the output's dimensions; unused without `ADD_AUX`.
    pub aux: Operand,
    /// Table 0, then table 1, 256 bytes each; unused without a table flag.
    pub tables: Operand,
    /// Record of dynamic quantisation; unused without `DYNAMIC`.
    pub quant: Operand,
    /// Dimensions of the input.
    pub ifm_dims: Dims,
    /// Rows of the output.
    pub ofm_h: u32,
    /// Columns of the output.
    pub ofm_w: u32,
    /// Channels of the output.
    pub ofm_c: u32,
    /// Groups.
    pub groups: u32,
    /// Strides of the input.
    pub ifm_strides: Strides,
    /// Strides of the output.
    pub ofm_strides: Strides,
    /// Strides of the auxiliary tensor; zero without `ADD_AUX`.
    pub aux_strides: Strides,
    /// The window.
    pub window: Window,
    /// Immediates of the output stage.
    pub stage: Stage,
}
const _: () = assert!(size_of::<Conv>() == 256 && offset_of!(Conv, ifm_dims) == 128);
const _: () = assert!(offset_of!(Conv, window) == 208 && offset_of!(Conv, stage) == 224);

/// MATMUL: a matrix product with the output stage. 3 units.
///
/// ```text
/// for i in 0..m, j in 0..n:
///   acc = record[j].bias + sum over l in 0..k of a[i, l] * (w[j, l] - record[j].weight_zero_point)
///   out[i, j] = stage(acc, record[j], aux[i, j])
/// ```
///
/// `a[i, l]` lies at `a + i * a_row + l`; weights as of a 1x1 CONV with `k` input and `n` output
/// channels; a row of `out` has pad lanes as a pixel has. `a_row` is a multiple of 4. Flags: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MatMul {
    /// `opcode::MATMUL`, 3 units.
    pub header: Header,
    /// Left matrix, rows of bytes.
    pub a: Operand,
    /// Weights.
    pub weights: Operand,
    /// Channel records, one a column.
    pub channels: Operand,
    /// Result, rows of bytes.
    pub out: Operand,
    /// Auxiliary matrix; unused without `ADD_AUX`.
    pub aux: Operand,
    /// Tables, as in [`Conv`].
    pub tables: Operand,
    /// As in [`Conv`].
    pub quant: Operand,
    /// Rows of `a` and of the result.
    pub m: u32,
    /// Columns of the result.
    pub n: u32,
    /// Columns of `a`.
    pub k: u32,
    /// Must be zero.
    pub reserved: u32,
    /// From a row of `a` to the next, in bytes.
    pub a_row: i32,
    /// From a row of the result to the next, in bytes.
    pub out_row: i32,
    /// From a row of the auxiliary matrix to the next, in bytes; zero without `ADD_AUX`.
    pub aux_row: i32,
    /// Must be zero.
    pub reserved2: u32,
    /// Immediates of the output stage.
    pub stage: Stage,
}
const _: () = assert!(size_of::<MatMul>() == 192 && offset_of!(MatMul, stage) == 160);

/// ADD: two feature maps of equal dimensions, element by element. 3 units.
///
/// ```text
/// for n, y, x, ch:  out = table0(clamp(add(a, b, {first, second, offset})))
/// ```
///
/// The result may lie exactly on an operand (same offset and strides). A stride of zero repeats an
/// operand: `pixel` 0 one pixel's channels, `row` and `image` likewise. Flags: `TABLE_0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Add {
    /// `opcode::ADD`, 3 units.
    pub header: Header,
    /// First operand.
    pub a: Operand,
    /// Second operand.
    pub b: Operand,
    /// Result.
    pub out: Operand,
    /// Table 0; unused without `TABLE_0`.
    pub tables: Operand,
    /// As in [`Conv`].
    pub quant: Operand,
    /// Dimensions of all three.
    pub dims: Dims,
    /// Strides of the first operand.
    pub a_strides: Strides,
    /// Strides of the second operand.
    pub b_strides: Strides,
    /// Strides of the result.
    pub out_strides: Strides,
    /// See [`crate::requantise::AddTerms`].
    pub first: f32,
    /// Second term.
    pub second: f32,
    /// Third term.
    pub offset: f32,
    /// Lowest code.
    pub clamp_low: u8,
    /// Highest code.
    pub clamp_high: u8,
    /// Must be zero.
    pub reserved: u16,
    /// Must be zero.
    pub reserved2: [u64; 2],
}
const _: () = assert!(size_of::<Add>() == 192 && offset_of!(Add, first) == 160);

/// MUL: two feature maps of equal dimensions, element by element. 3 units.
///
/// ```text
/// for n, y, x, ch:
///   out = table0(clamp(multiply(a, b, {multiplier, first_zero_point, second_zero_point, zero_point})))
/// ```
///
/// Operands as in [`Add`]. Flags: `TABLE_0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Mul {
    /// `opcode::MUL`, 3 units.
    pub header: Header,
    /// First operand.
    pub a: Operand,
    /// Second operand.
    pub b: Operand,
    /// Result.
    pub out: Operand,
    /// Table 0; unused without `TABLE_0`.
    pub tables: Operand,
    /// As in [`Conv`].
    pub quant: Operand,
    /// Dimensions of all three.
    pub dims: Dims,
    /// Strides of the first operand.
    pub a_strides: Strides,
    /// Strides of the second operand.
    pub b_strides: Strides,
    /// Strides of the result.
    pub out_strides: Strides,
    /// See [`crate::requantise::MulTerms`].
    pub multiplier: f32,
    /// Zero point of the first operand.
    pub first_zero_point: u8,
    /// Zero point of the second operand.
    pub second_zero_point: u8,
    /// Zero point of the result.
    pub zero_point: u8,
    /// Lowest code.
    pub clamp_low: u8,
    /// Highest code.
    pub clamp_high: u8,
    /// Must be zero.
    pub reserved: [u8; 7],
    /// Must be zero.
    pub reserved2: [u64; 2],
}
const _: () = assert!(size_of::<Mul>() == 192 && offset_of!(Mul, multiplier) == 160);

/// TABLE: every element through a table of 256 bytes. 2 units.
///
/// ```text
/// for n, y, x, ch:  dst = table[src]
/// ```
///
/// The result may lie exactly on the source. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Table {
    /// `opcode::TABLE`, 2 units.
    pub header: Header,
    /// Source.
    pub src: Operand,
    /// Result.
    pub dst: Operand,
    /// The table.
    pub table: Operand,
    /// Dimensions of both.
    pub dims: Dims,
    /// Strides of the source.
    pub src_strides: Strides,
    /// Strides of the result.
    pub dst_strides: Strides,
    /// Must be zero.
    pub reserved: [u64; 2],
}
const _: () = assert!(size_of::<Table>() == 128 && offset_of!(Table, reserved) == 112);

/// Element types of [`Layout`].
pub mod element {
    /// Unsigned 8-bit code.
    pub const U8: u8 = 1;
    /// IEEE 754 binary32.
    pub const F32: u8 = 2;

    /// Bytes of an element of `code`, `None` for an unknown one.
    pub const fn bytes(code: u8) -> Option<u64> {
        match code {
            U8 => Some(1),
            F32 => Some(4),
            _ => None,
        }
    }
}

/// LAYOUT: moves a tensor between layouts, with quantise or dequantise on the way. 3 units.
///
/// ```text
/// for i in 0..max(outer, 1), n, y, x, ch:
///   dst[i, n, y, x, ch] = convert(src[i, n, y, x, ch])
///   f32 -> u8: quantise(v, scale, zero_point)      u8 -> f32: dequantise(v, scale, zero_point)
///   u8 -> u8: table0(v); f32 -> f32: the element as it is; scale and zero_point are zero in both
/// ```
///
/// Strides of the source may be zero or negative, so a move also repeats, reverses and takes every
/// other element. Pad lanes of `dst` are not written: parts of a pixel may be written one by one.
/// Flags: `DYNAMIC`, `TABLE_0` (u8 -> u8 only).
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Layout {
    /// `opcode::LAYOUT`, 3 units.
    pub header: Header,
    /// Source.
    pub src: Operand,
    /// Result.
    pub dst: Operand,
    /// As in [`Conv`].
    pub quant: Operand,
    /// Dimensions of both.
    pub dims: Dims,
    /// Strides of the source.
    pub src_strides: Strides4,
    /// Strides of the result.
    pub dst_strides: Strides4,
    /// One of [`element`].
    pub src_element: u8,
    /// One of [`element`].
    pub dst_element: u8,
    /// Must be zero.
    pub reserved: u16,
    /// Zero point of the 8-bit side, `0..=255`.
    pub zero_point: i32,
    /// Scale of the 8-bit side.
    pub scale: f32,
    /// Length of a fifth dimension around the four; 0 stands for 1, and has both strides zero.
    pub outer: u32,
    /// From one of them to the next, in bytes of the source.
    pub src_outer: i64,
    /// The same of the result.
    pub dst_outer: i64,
    /// Table 0; unused without `TABLE_0`.
    pub tables: Operand,
}
const _: () = assert!(size_of::<Layout>() == 192 && offset_of!(Layout, src_element) == 144);
const _: () = assert!(offset_of!(Layout, outer) == 156 && offset_of!(Layout, tables) == 176);

/// COPY: `dst[0..len] = src[0..len]`, bytes, not overlapping. 1 unit. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Copy {
    /// `opcode::COPY`, 1 unit.
    pub header: Header,
    /// Source.
    pub src: Operand,
    /// Result.
    pub dst: Operand,
    /// Bytes to copy.
    pub len: u64,
    /// Must be zero.
    pub reserved: u64,
}
const _: () = assert!(size_of::<Copy>() == 64);

/// FILL: `dst[0..len] = value`. 1 unit. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Fill {
    /// `opcode::FILL`, 1 unit.
    pub header: Header,
    /// Result.
    pub dst: Operand,
    /// Bytes to fill.
    pub len: u64,
    /// The byte.
    pub value: u8,
    /// Must be zero.
    pub reserved: [u8; 7],
    /// Must be zero.
    pub reserved2: [u64; 2],
}
const _: () = assert!(size_of::<Fill>() == 64);

/// END: the last command of a program, and only the last. 1 unit. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct End {
    /// `opcode::END`, 1 unit.
    pub header: Header,
    /// Must be zero.
    pub reserved: [u64; 6],
}
const _: () = assert!(size_of::<End>() == 64);

/// Lanes of a pixel of `c` channels at a stride of `pixel` bytes: `c` rounded up to 16, as far as the
/// stride reaches; never fewer than `c`.
pub fn lanes(c: u32, pixel: i32) -> u32 {
    c.div_ceil(16).saturating_mul(16).min(pixel.unsigned_abs()).max(c)
}

impl Conv {
    /// Whether weights are laid out for a depthwise convolution.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.ifm_dims.c && self.groups == self.ofm_c
    }

    /// Bytes of the weights; `None` when the count overflows or `groups` is zero.
    pub fn weight_bytes(&self) -> Option<u64> {
        let taps = u64::from(self.window.kernel_h) * u64::from(self.window.kernel_w);
        if self.is_depthwise() {
            let blocks = u64::from(self.ofm_c.div_ceil(16));
            return blocks.checked_mul(taps.next_multiple_of(4))?.checked_mul(16);
        }
        let inputs = self.ifm_dims.c.checked_div(self.groups)?;
        let outputs = self.ofm_c.checked_div(self.groups)?;
        weight_bytes(self.groups, outputs, taps.checked_mul(u64::from(inputs).next_multiple_of(4))?)
    }
}

impl Layout {
    /// Times that the four dimensions are walked.
    pub fn repeats(&self) -> u32 {
        self.outer.max(1)
    }
}

impl MatMul {
    /// Bytes of the weights; `None` when the count overflows.
    pub fn weight_bytes(&self) -> Option<u64> {
        weight_bytes(1, self.n, u64::from(self.k).next_multiple_of(4))
    }
}

fn weight_bytes(groups: u32, outputs: u32, reduction: u64) -> Option<u64> {
    let block = reduction.checked_mul(16)?;
    u64::from(groups).checked_mul(u64::from(outputs.div_ceil(16)))?.checked_mul(block)
}

/// Bytes of the channel records of `outputs` output channels.
pub fn record_bytes(outputs: u32) -> u64 {
    u64::from(outputs).next_multiple_of(16) * 16
}
