//! Depthwise 3x3 and 5x5 windows at strides 1 and 2, 64 channels of a pixel at a time, from where they lie.
//!
//! ```text
//!   rows 0 .. 3 of an input column, 64 channels each -> interleaved once -> all outputs over it
//!   columns 0 .. 3 of row 4 of a 5x5 window          -> likewise: 7 products instead of 10
//! ```
//!
//! Under the second of two rows of 3x3 outputs lie the same four rows of inputs, its weights one byte
//! further, so that at stride 1 both are computed at once.
//!
//! Half of the 64 channels of a 5x5 window pass by at a time: so all weights stay in registers, and nothing
//! is loaded but inputs. The first half's codes wait as 16-bit integers.

use super::flat::Area;
use super::{
    ANY, BARE, CHANNELS, Finish, SMALL, SMALL_TABLE, accumulate, accumulate_half, halves,
    interleave, interleave_half, turned,
};
use crate::kernel::conv::Problem;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{load_64, mask_64, store_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512i, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_or_si512, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_sllv_epi32, _mm512_unpackhi_epi8,
    _mm512_unpackhi_epi16, _mm512_unpacklo_epi8, _mm512_unpacklo_epi16,
};
use std::mem::MaybeUninit;

/// Most pixels of a row between its two halves.
const PIECE: usize = 32;

/// Codes of first halves.
struct Halves([MaybeUninit<__m512i>; PIECE]);

/// Kernel columns times quads of kernel rows, of 5x5.
const MOST_VECTORS: usize = 10;

/// 64 channels at stride `STRIDE`.
pub(super) struct Direct<'a, const STRIDE: usize> {
    p: &'a Problem,
    finish: Finish<'a>,
    kind: u8,
    first_channel: i64,
    /// By kernel column, of kernel rows 0 to 3; those of 5x5 windows at even places.
    weights: [[__m512i; 4]; MOST_VECTORS],
    /// Of the second of two rows of 3x3 outputs; of row 4 of 5x5 windows, columns 0 to 3 and, for the
    /// columns that begin a stride further, column 4.
    second: [[__m512i; 4]; 3],
    bias: [__m512i; 4],
    /// Lanes of a pixel that are read, and written.
    read: u64,
    written: u64,
    padding: [u8; 64],
}

/// An input row: the address of the first column of the first window, which may lie outside, and what of
/// a column's distance from it counts: all, or nothing in a row of zero points.
type Row = (*const u8, isize);

/// The rows under a row of windows, and which of their columns exist.
struct Rows {
    rows: [Row; 5],
    /// The first column that exists, and how many do.
    from: usize,
    count: usize,
    pixel: isize,
    padding: *const u8,
}

impl Rows {
    /// Address of column `column` of row `row`; zero points where there is none.
    #[inline]
    fn at(&self, row: usize, column: usize) -> *const u8 {
        let (first, counts) = self.rows[row];
        let distance = column.cast_signed().wrapping_mul(self.pixel) & counts;
        let exists = column.wrapping_sub(self.from) < self.count;
        if exists { first.wrapping_offset(distance) } else { self.padding }
    }
}

/// A kernel for some rows of outputs: their rows of inputs, where they go, and how many pixels they have.
type Pass<'a, const STRIDE: usize> = unsafe fn(&Direct<'a, STRIDE>, &Rows, [*mut u8; 2], usize);

/// Kernels by kind of stage: of two rows of 3x3 outputs, of one, and of one of 5x5 outputs.
type Passes<'a, const STRIDE: usize> = [Pass<'a, STRIDE>; 3];

impl<'a, const STRIDE: usize> Direct<'a, STRIDE> {
    /// Computes `area` of the channels from `channel` on.
    ///
    /// # Safety
    /// As of [`super::run`]; `super::flat::takes(p)`, the area lies in the output, and `channel` exists and
    /// is a multiple of 64.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn chunk(
        p: &'a Problem,
        (stage, kind): (&'a Stage, u8),
        channel: i64,
        area: Area,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let zero = [_mm512_setzero_si512(); 4];
        let (mut weights, mut second) = ([zero; MOST_VECTORS], [zero; 3]);
        // SAFETY: the caller's promise.
        let (bias, multiplier) = unsafe { turned(p, channel, 4, &mut weights) };
        if p.window.kernel_h == 5 {
            for (column, quads) in weights.chunks_exact(2).enumerate() {
                let (to, byte) = if column < 4 {
                    (&mut second[0], column)
                } else {
                    (&mut second[1], 4 - STRIDE)
                };
                let bits = _mm512_set1_epi32([0, 8, 16, 24][byte]);
                for (to, from) in to.iter_mut().zip(quads[1]) {
                    *to = _mm512_or_si512(*to, _mm512_sllv_epi32(from, bits));
                }
            }
        } else {
            for (second, first) in second.iter_mut().zip(&weights) {
                *second = first.map(|lanes| _mm512_slli_epi32::<8>(lanes));
            }
        }
        let direct = Self {
            p,
            finish: Finish::new(stage, multiplier),
            kind,
            first_channel: channel,
            weights,
            second,
            bias,
            read: mask_64(p.ifm.lanes - channel),
            // Lanes of padding are the command's own.
            written: mask_64(p.ofm.lanes - channel),
            padding: [p.input_zero_point; 64],
        };
        // SAFETY: the caller's promise.
        unsafe { direct.area(area, budget) }
    }

    fn passes(&self) -> Passes<'a, STRIDE> {
        let is_whole = (self.read, self.written) == (u64::MAX, u64::MAX);
        match (self.kind, is_whole) {
            (BARE, true) => Self::passes_of::<BARE, true>(),
            (BARE, false) => Self::passes_of::<BARE, false>(),
            (SMALL, true) => Self::passes_of::<SMALL, true>(),
            (SMALL, false) => Self::passes_of::<SMALL, false>(),
            (SMALL_TABLE, true) => Self::passes_of::<SMALL_TABLE, true>(),
            (SMALL_TABLE, false) => Self::passes_of::<SMALL_TABLE, false>(),
            _ => Self::passes_of::<ANY, false>(),
        }
    }

    fn passes_of<const KIND: u8, const WHOLE: bool>() -> Passes<'a, STRIDE> {
        [Self::three::<2, KIND, WHOLE>, Self::three::<1, KIND, WHOLE>, Self::five::<KIND, WHOLE>]
    }

    /// # Safety
    /// As of [`Self::chunk`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn area(&self, area: Area, budget: &mut Budget<'_>) -> Result<(), Aborted> {
        let p = self.p;
        let width = area.columns.1 - area.columns.0;
        let count = usize_of(width.unsigned_abs());
        let first = p.window.column(area.columns.0, 0);
        let from = (-first).max(0);
        let columns = (p.ifm_w - first).max(from) - from;
        let macs = width * CHANNELS * p.taps();
        let [two_rows, one_row, five] = self.passes();
        let mut oy = area.rows.0;
        while oy < area.rows.1 {
            let two = STRIDE == 1 && p.window.kernel_h == 3 && oy + 1 < area.rows.1;
            budget.spend(macs)?;
            let rows = Rows {
                rows: [0, 1, 2, 3, 4].map(|ky| self.row(area.n, oy, ky, first)),
                from: usize_of(from.unsigned_abs()),
                count: usize_of(columns.unsigned_abs()),
                pixel: isize_of(p.ifm.pixel),
                padding: self.padding.as_ptr(),
            };
            let to = [oy, oy + i64::from(two)].map(|oy| {
                let first = p.ofm.at(area.n, oy, area.columns.0);
                p.ofm.pointer(first + self.first_channel)
            });
            let pass = match (p.window.kernel_h, two) {
                (5, _) => five,
                (_, true) => two_rows,
                (_, false) => one_row,
            };
            // SAFETY: the caller's promise: the rows are of inputs or zero points.
            unsafe { pass(self, &rows, to, count) };
            oy += 1 + i64::from(two);
        }
        Ok(())
    }

    /// The input row `ky` below the first of output row `oy`; zero points outside the input, and behind
    /// the last that is looked at.
    fn row(&self, n: i64, oy: i64, ky: i64, first: i64) -> Row {
        let p = self.p;
        let y = p.window.row(oy, ky);
        if !(0..p.ifm_h).contains(&y) {
            return (self.padding.as_ptr(), 0);
        }
        let pixel = p.ifm.pointer(p.ifm.at(n, y, 0) + self.first_channel).cast_const();
        (pixel.wrapping_offset(isize_of(first).wrapping_mul(isize_of(p.ifm.pixel))), !0)
    }

    /// The lanes of a pixel that are read.
    ///
    /// # Safety
    /// As of [`Self::chunk`]; `at` is a pixel of the input or of zero points, and with `WHOLE` all its lanes
    /// are read.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn load<const WHOLE: bool>(&self, at: *const u8) -> __m512i {
        if WHOLE {
            // SAFETY: the caller's promise.
            unsafe { load_64(at) }
        } else {
            // SAFETY: the caller's promise; masked-out lanes are not accessed.
            unsafe { _mm512_maskz_loadu_epi8(self.read, at.cast()) }
        }
    }

    /// Rows 0 to 3 of column `column`, interleaved.
    ///
    /// # Safety
    /// As of [`Self::load`]; rows are of the input or of zero points.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn column<const WHOLE: bool>(&self, rows: &Rows, column: usize) -> [__m512i; 4] {
        let mut bytes = [_mm512_setzero_si512(); 4];
        for (row, bytes) in bytes.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *bytes = unsafe { self.load::<WHOLE>(rows.at(row, column)) };
        }
        interleave(bytes)
    }

    /// A row or two of 3x3 outputs.
    ///
    /// # Safety
    /// As of [`Self::column`]; `count` pixels of each row of outputs exist, and the stage is of `KIND`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn three<const OUTPUTS: usize, const KIND: u8, const WHOLE: bool>(
        &self,
        rows: &Rows,
        to: [*mut u8; 2],
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        let read = |column| unsafe { self.column::<WHOLE>(rows, column) };
        let mut first = read(0);
        let mut middle = read(1);
        for pixel in 0..count {
            if STRIDE > 1 {
                middle = read(STRIDE * pixel + 1);
            }
            let last = read(STRIDE * pixel + 2);
            for (output, to) in to.into_iter().enumerate().take(OUTPUTS) {
                let weights = if output == 0 { &self.weights[..3] } else { &self.second };
                let mut sums = self.bias;
                for (under, weights) in [&first, &middle, &last].into_iter().zip(weights) {
                    accumulate(&mut sums, under, weights);
                }
                // SAFETY: the caller's promise.
                unsafe { self.store::<KIND, WHOLE>(sums, to, pixel) };
            }
            (first, middle) = if STRIDE == 1 { (middle, last) } else { (last, last) };
        }
    }

    /// Stores the codes of a pixel's sums.
    ///
    /// # Safety
    /// As of [`Self::three`]; the pixel exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn store<const KIND: u8, const WHOLE: bool>(
        &self,
        sums: [__m512i; 4],
        to: *mut u8,
        pixel: usize,
    ) {
        let bytes = self.finish.codes::<KIND>(sums);
        // SAFETY: the caller's promise.
        unsafe { self.store_bytes::<WHOLE>(bytes, to, pixel) };
    }

    /// Stores 64 codes.
    ///
    /// # Safety
    /// As of [`Self::store`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn store_bytes<const WHOLE: bool>(&self, bytes: __m512i, to: *mut u8, pixel: usize) {
        let distance = pixel.cast_signed().wrapping_mul(isize_of(self.p.ofm.pixel));
        let to = to.wrapping_offset(distance);
        if WHOLE {
            // SAFETY: the lanes of a pixel of the output.
            unsafe { store_64(to, u64::MAX, bytes) };
        } else {
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_epi8(to.cast(), self.written, bytes) };
        }
    }

    /// A row of 5x5 outputs.
    ///
    /// # Safety
    /// As of [`Self::three`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn five<const KIND: u8, const WHOLE: bool>(
        &self,
        rows: &Rows,
        to: [*mut u8; 2],
        count: usize,
    ) {
        let mut low = Halves([MaybeUninit::uninit(); PIECE]);
        for first in (0..count).step_by(PIECE) {
            let piece = (first, (count - first).min(PIECE));
            // SAFETY: the caller's promise.
            unsafe { self.half_of_five::<false, KIND, WHOLE>(rows, to[0], piece, &mut low) };
            // SAFETY: as above; the codes of the first half are there.
            unsafe { self.half_of_five::<true, KIND, WHOLE>(rows, to[0], piece, &mut low) };
        }
    }

    /// Half of rows 0 to 3 of column `column`, interleaved.
    ///
    /// # Safety
    /// As of [`Self::three`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn half_column<const HIGH: bool, const WHOLE: bool>(
        &self,
        rows: &Rows,
        column: usize,
    ) -> [__m512i; 2] {
        let mut bytes = [_mm512_setzero_si512(); 4];
        for (row, bytes) in bytes.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *bytes = unsafe { self.load::<WHOLE>(rows.at(row, column)) };
        }
        interleave_half::<HIGH>(bytes)
    }

    /// Half of columns `column` and the next of row 4, interleaved.
    ///
    /// # Safety
    /// As of [`Self::three`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn pair<const HIGH: bool, const WHOLE: bool>(
        &self,
        rows: &Rows,
        column: usize,
    ) -> __m512i {
        // SAFETY: the caller's promise.
        let one = unsafe { self.load::<WHOLE>(rows.at(4, column)) };
        // SAFETY: as above.
        let other = unsafe { self.load::<WHOLE>(rows.at(4, column + 1)) };
        if HIGH { _mm512_unpackhi_epi8(one, other) } else { _mm512_unpacklo_epi8(one, other) }
    }

    /// Half of a row of 5x5 outputs.
    ///
    /// # Safety
    /// As of [`Self::three`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline(never)] // else the weights of both halves are kept, in memory
    unsafe fn half_of_five<const HIGH: bool, const KIND: u8, const WHOLE: bool>(
        &self,
        rows: &Rows,
        to: *mut u8,
        (start, count): (usize, usize),
        low: &mut Halves,
    ) {
        let base = STRIDE * start;
        // SAFETY: the caller's promise.
        let read = |column| unsafe { self.half_column::<HIGH, WHOLE>(rows, base + column) };
        // SAFETY: as above.
        let pair = |column| unsafe { self.pair::<HIGH, WHOLE>(rows, base + column) };
        // Four columns of row 4.
        let four =
            |one, other| [_mm512_unpacklo_epi16(one, other), _mm512_unpackhi_epi16(one, other)];
        let weights: [_; 5] = std::array::from_fn(|kx| halves::<_, HIGH>(&self.weights[2 * kx]));
        let row_4 = [0, 1].map(|part| halves::<_, HIGH>(&self.second[part]));
        let bias = halves::<_, HIGH>(&self.bias);
        let mut columns = [read(0), read(1), read(2), read(3)];
        // Those of row 4 under this output, and what those under the next one begin with.
        let mut under = four(pair(0), pair(2));
        let mut pairs = [pair(STRIDE), pair(2)];
        for pixel in 0..count {
            let x = STRIDE * pixel;
            if STRIDE > 1 {
                columns[3] = read(x + 3);
            }
            let last = read(x + 4);
            let new = pair(x + STRIDE + 2);
            let next = four(pairs[0], new);
            let mut sums = bias;
            accumulate_half(&mut sums, &columns[0], &weights[0]);
            accumulate_half(&mut sums, &columns[1], &weights[1]);
            accumulate_half(&mut sums, &columns[2], &weights[2]);
            accumulate_half(&mut sums, &columns[3], &weights[3]);
            accumulate_half(&mut sums, &under, &row_4[0]);
            accumulate_half(&mut sums, &last, &weights[4]);
            accumulate_half(&mut sums, &next, &row_4[1]);
            // SAFETY: the caller's promise.
            unsafe { self.store_half::<HIGH, KIND, WHOLE>(sums, low, (to, start, pixel)) };
            under = next;
            if STRIDE == 1 {
                columns = [columns[1], columns[2], columns[3], last];
                pairs = [pairs[1], new];
            } else {
                columns = [columns[2], columns[3], last, last];
                pairs = [new, new];
            }
        }
    }

    /// Keeps the codes of a pixel's first half, or stores them with those of the other.
    ///
    /// # Safety
    /// As of [`Self::three`]; the pixel exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn store_half<const HIGH: bool, const KIND: u8, const WHOLE: bool>(
        &self,
        sums: [__m512i; 2],
        low: &mut Halves,
        (to, start, pixel): (*mut u8, usize, usize),
    ) {
        let codes = self.finish.half::<KIND, HIGH>(sums);
        if !HIGH {
            low.0[pixel].write(codes);
            return;
        }
        // SAFETY: the pass of the first half has written it.
        let bytes = self.finish.joined::<KIND>(unsafe { low.0[pixel].assume_init() }, codes);
        // SAFETY: the caller's promise.
        unsafe { self.store_bytes::<WHOLE>(bytes, to, start + pixel) };
    }
}
