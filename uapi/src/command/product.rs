//! Commands whose operands are all results: the product of two tensors, and what attention puts behind it.

use super::{Dims, Header, Strides};
use crate::addr::Operand;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// PRODUCT: matrix products of two tensors of codes, as many as two loops say. 3 units.
///
/// ```text
/// for p in 0..outer, q in 0..batch, i in 0..m, j in 0..n:
///   acc = sum over l in 0..k of (a[p, q, i, l] - a_zero_point) * (b[p, q, l, j] - b_zero_point)
///   out[p, q, i, j] = table0(clamp(requantise(acc, multiplier, zero_point)))      (wrapping 32-bit)
/// ```
///
/// `a[p, q, i, l]` lies at `a + p * a_outer + q * a_batch + i * a_row + l`, `b[p, q, l, j]` at
/// `b + p * b_outer + q * b_batch + l * b_row + j * b_column`, so either order of `b` will do; the
/// result lies as `a` does. Strides of `a` and `b` may be zero, which repeats a matrix. There are no pad
/// lanes: neither read nor written. Flags: `TABLE_0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Product {
    /// `opcode::PRODUCT`, 3 units.
    pub header: Header,
    /// Left matrices.
    pub a: Operand,
    /// Right matrices.
    pub b: Operand,
    /// Results.
    pub out: Operand,
    /// Table 0; unused without `TABLE_0`.
    pub tables: Operand,
    /// Turns of the outer loop.
    pub outer: u32,
    /// Turns of the inner loop.
    pub batch: u32,
    /// Rows of `a` and of the result.
    pub m: u32,
    /// Columns of `b` and of the result.
    pub n: u32,
    /// Columns of `a`, rows of `b`.
    pub k: u32,
    /// What sums are multiplied by.
    pub multiplier: f32,
    /// Zero point of `a`.
    pub a_zero_point: u8,
    /// Zero point of `b`.
    pub b_zero_point: u8,
    /// Zero point of the result.
    pub zero_point: u8,
    /// Lowest code.
    pub clamp_low: u8,
    /// Highest code.
    pub clamp_high: u8,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// From a turn of the outer loop to the next, in bytes of `a`.
    pub a_outer: i64,
    /// The same of `b`.
    pub b_outer: i64,
    /// The same of the result.
    pub out_outer: i64,
    /// From a turn of the inner loop to the next, in bytes of `a`.
    pub a_batch: i64,
    /// The same of `b`.
    pub b_batch: i64,
    /// The same of the result.
    pub out_batch: i64,
    /// From a row of `a` to the next.
    pub a_row: i32,
    /// From a row of `b` to the next.
    pub b_row: i32,
    /// From a column of `b` to the next.
    pub b_column: i32,
    /// From a row of the result to the next.
    pub out_row: i32,
    /// Must be zero.
    pub reserved2: [u64; 2],
}
const _: () = assert!(size_of::<Product>() == 192 && offset_of!(Product, a_outer) == 112);
const _: () = assert!(offset_of!(Product, reserved2) == 176);

/// SOFTMAX: the channels of each pixel as shares of their sum, in f32. 2 units.
///
/// ```text
/// for n, y, x:
///   e[ch] = table[255 - max + src[n, y, x, ch]]          max: the largest code of the pixel
///   sum = e[0] + e[1] + ..                               from zero, in this order
///   dst[n, y, x, ch] = share(e[ch], sum, {scale, zero_point})
/// ```
///
/// `table` holds 256 f32. The result may lie exactly on the source. Flags: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Softmax {
    /// `opcode::SOFTMAX`, 2 units.
    pub header: Header,
    /// Source.
    pub src: Operand,
    /// Result.
    pub dst: Operand,
    /// The table, 1024 bytes.
    pub table: Operand,
    /// Dimensions of both.
    pub dims: Dims,
    /// Strides of the source.
    pub src_strides: Strides,
    /// Strides of the result.
    pub dst_strides: Strides,
    /// See [`crate::requantise::ShareTerms`].
    pub scale: f32,
    /// Zero point of the result.
    pub zero_point: u8,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// Must be zero.
    pub reserved2: u64,
}
const _: () = assert!(size_of::<Softmax>() == 128 && offset_of!(Softmax, scale) == 112);
