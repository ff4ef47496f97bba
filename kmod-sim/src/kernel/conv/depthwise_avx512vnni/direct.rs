//! Depthwise 3x3 and 5x5 windows at strides 1 and 2, 64 channels of a pixel at a time, from where they lie.
//!
//! ```text
//!   rows 4q .. 4q+3 of an input column, 64 channels each -> interleaved once -> all outputs over it
//! ```
//!
//! Under the second of two rows of 3x3 outputs lie the same four rows of inputs, its weights one byte
//! further, so that at stride 1 both are computed at once. Of 5x5 windows each column goes into all the
//! outputs that have begun and not ended, as their accumulators are fewer than its columns.

use super::flat::Area;
use super::{CHANNELS, accumulate, interleave, turned};
use crate::kernel::conv::Problem;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{Channels, load_64, load_masked_64, mask_64, store_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512, __m512i, _mm512_set1_epi8, _mm512_setzero_si512, _mm512_slli_epi32,
};

/// Kernel columns times quads of kernel rows, of 5x5.
const MOST_VECTORS: usize = 10;

/// 64 channels at stride `STRIDE`.
pub(super) struct Direct<'a, const STRIDE: usize> {
    p: &'a Problem,
    stage: Stage,
    first_channel: i64,
    /// By kernel column and quad of kernel rows.
    weights: [[__m512i; 4]; MOST_VECTORS],
    /// Those of the second of two rows of 3x3 outputs.
    second: [[__m512i; 4]; 3],
    bias: [__m512i; 4],
    multiplier: [__m512; 4],
    /// Lanes of a pixel that are read, and written.
    read: u64,
    written: u64,
    padding: [u8; 64],
}

/// An input row: the address of the first column of the first window, which may lie outside, and what of
/// a column's distance from it counts: all, or nothing in a row of zero points.
type Row = (*const u8, isize);

/// Columns under the windows of an area's row: from the first of all to behind the last that exists.
#[derive(Clone, Copy)]
struct Span {
    from: usize,
    to: usize,
}

impl<'a, const STRIDE: usize> Direct<'a, STRIDE> {
    /// Computes `area` of the channels from `channel` on.
    ///
    /// # Safety
    /// As of [`super::run`]; `super::flat::takes(p)`, the area lies in the output, and `channel` exists and
    /// is a multiple of 64.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn chunk(
        p: &'a Problem,
        channels: Channels,
        channel: i64,
        area: Area,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let mut weights = [[_mm512_setzero_si512(); 4]; MOST_VECTORS];
        // SAFETY: the caller's promise.
        let (bias, multiplier) = unsafe { turned(p, channel, 4, &mut weights) };
        let mut second = [[_mm512_setzero_si512(); 4]; 3];
        for (second, first) in second.iter_mut().zip(&weights) {
            *second = first.map(|lanes| _mm512_slli_epi32::<8>(lanes));
        }
        let direct = Self {
            p,
            stage: Stage::new(&p.stage, channels),
            first_channel: channel,
            weights,
            second,
            bias,
            multiplier,
            read: mask_64(p.ifm.lanes - channel),
            // Lanes of padding are the command's own.
            written: mask_64(p.ofm.lanes - channel),
            padding: [p.input_zero_point; 64],
        };
        // SAFETY: the caller's promise.
        unsafe { direct.area(area, budget) }
    }

    /// # Safety
    /// As of [`Self::chunk`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn area(&self, area: Area, budget: &mut Budget<'_>) -> Result<(), Aborted> {
        let p = self.p;
        let width = area.columns.1 - area.columns.0;
        let count = usize_of(width.unsigned_abs());
        let first = p.window.column(area.columns.0, 0);
        let span = Span {
            from: usize_of((-first).max(0).unsigned_abs()),
            to: usize_of((p.ifm_w - first).max(0).unsigned_abs()),
        };
        let macs = width * CHANNELS * p.taps();
        let mut oy = area.rows.0;
        while oy < area.rows.1 {
            let two = STRIDE == 1 && p.window.kernel_h == 3 && oy + 1 < area.rows.1;
            budget.spend(macs)?;
            let rows: [Row; 8] = [0, 1, 2, 3, 4, 5, 6, 7].map(|ky| self.row(area.n, oy, ky, first));
            let to = [oy, oy + i64::from(two)].map(|oy| {
                let first = p.ofm.at(area.n, oy, area.columns.0);
                p.ofm.pointer(first + self.first_channel)
            });
            if p.window.kernel_h == 5 {
                // SAFETY: the caller's promise: the rows are of inputs or zero points.
                unsafe { self.five(&rows, span, to[0], count) };
            } else if two {
                let four = [rows[0], rows[1], rows[2], rows[3]];
                // SAFETY: as above.
                unsafe { self.three::<2>(four, span, to, count) };
            } else {
                let four = [rows[0], rows[1], rows[2], rows[2]];
                // SAFETY: as above.
                unsafe { self.three::<1>(four, span, to, count) };
            }
            if !self.stage.plain {
                // A loop of its own: it calls, and across a call no vector stays in its register.
                for to in &to[..1 + usize::from(two)] {
                    // SAFETY: the pixels of a row of outputs.
                    unsafe { self.rest(*to, count) };
                }
            }
            oy += 1 + i64::from(two);
        }
        Ok(())
    }

    /// The input row `ky` below the first of output row `oy`; zero points outside the input.
    fn row(&self, n: i64, oy: i64, ky: i64, first: i64) -> Row {
        let p = self.p;
        let y = p.window.row(oy, ky);
        if !(0..p.ifm_h).contains(&y) {
            return (self.padding.as_ptr(), 0);
        }
        let pixel = p.ifm.pointer(p.ifm.at(n, y, 0) + self.first_channel).cast_const();
        (pixel.wrapping_offset(isize_of(first).wrapping_mul(isize_of(p.ifm.pixel))), !0)
    }

    /// Four rows of column `column`, interleaved; zero points outside `span`.
    ///
    /// # Safety
    /// As of [`Self::chunk`]; rows are of the input or of zero points.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn column(&self, rows: [Row; 4], span: Span, column: usize) -> [__m512i; 4] {
        let mut bytes = [_mm512_set1_epi8(self.p.input_zero_point.cast_signed()); 4];
        if (span.from..span.to).contains(&column) {
            let distance = column.cast_signed().wrapping_mul(isize_of(self.p.ifm.pixel));
            let at = rows.map(|(row, counts)| row.wrapping_offset(distance & counts));
            if self.read == u64::MAX {
                for (bytes, at) in bytes.iter_mut().zip(at) {
                    // SAFETY: 64 lanes of a pixel of the input, or zero points.
                    *bytes = unsafe { load_64(at) };
                }
            } else {
                for (bytes, at) in bytes.iter_mut().zip(at) {
                    // SAFETY: lanes of a pixel of the input that exist, or zero points.
                    *bytes = unsafe { load_masked_64(self.read, at) };
                }
            }
        }
        interleave(bytes)
    }

    /// A row or two of 3x3 outputs.
    ///
    /// # Safety
    /// As of [`Self::column`]; `count` pixels of each row of outputs exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn three<const OUTPUTS: usize>(
        &self,
        rows: [Row; 4],
        span: Span,
        to: [*mut u8; 2],
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        let read = |column| unsafe { self.column(rows, span, column) };
        let mut first = read(0);
        let mut middle = read(1);
        for pixel in 0..count {
            if STRIDE > 1 {
                middle = read(STRIDE * pixel + 1);
            }
            let last = read(STRIDE * pixel + 2);
            let mut sums = [self.bias; OUTPUTS];
            for (sums, weights) in sums.iter_mut().zip([&self.weights[..3], &self.second]) {
                for (under, weights) in [first, middle, last].iter().zip(weights) {
                    accumulate(sums, under, weights);
                }
            }
            for (sums, to) in sums.iter().zip(to) {
                // SAFETY: the caller's promise.
                unsafe { self.finish(sums, to, pixel) };
            }
            (first, middle) = if STRIDE == 1 { (middle, last) } else { (last, last) };
        }
    }

    /// A row of 5x5 outputs.
    ///
    /// # Safety
    /// As of [`Self::three`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn five(&self, rows: &[Row; 8], span: Span, to: *mut u8, count: usize) {
        if STRIDE == 1 {
            // SAFETY: the caller's promise.
            unsafe { self.stream::<5>(rows, span, to, count) };
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.stream::<3>(rows, span, to, count) };
        }
    }

    /// The same, `LIVE` outputs of which have begun and not ended at a time: `5 / STRIDE` rounded up.
    ///
    /// # Safety
    /// As of [`Self::three`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn stream<const LIVE: usize>(
        &self,
        rows: &[Row; 8],
        span: Span,
        to: *mut u8,
        count: usize,
    ) {
        let padding: Row = (self.padding.as_ptr(), 0);
        let quads = [[rows[0], rows[1], rows[2], rows[3]], [rows[4], padding, padding, padding]];
        let mut live = [self.bias; LIVE]; // the oldest first
        for step in 0..count + LIVE - 1 {
            for column in 0..STRIDE {
                for (quad, rows) in quads.into_iter().enumerate() {
                    // SAFETY: the caller's promise.
                    let bytes = unsafe { self.column(rows, span, STRIDE * step + column) };
                    for age in 0..LIVE {
                        let kx = age * STRIDE + column;
                        if kx < 5 {
                            accumulate(
                                &mut live[LIVE - 1 - age],
                                &bytes,
                                &self.weights[2 * kx + quad],
                            );
                        }
                    }
                }
            }
            if let Some(pixel) = step.checked_sub(LIVE - 1) {
                // SAFETY: the caller's promise.
                unsafe { self.finish(&live[0], to, pixel) };
            }
            for age in 1..LIVE {
                live[age - 1] = live[age];
            }
            live[LIVE - 1] = self.bias;
        }
    }

    /// Stores the codes of a pixel's sums.
    ///
    /// # Safety
    /// As of [`Self::chunk`]; the pixel exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn finish(&self, sums: &[__m512i; 4], to: *mut u8, pixel: usize) {
        let bytes = self.stage.requantise.lanes(*sums, self.multiplier);
        let distance = pixel.cast_signed().wrapping_mul(isize_of(self.p.ofm.pixel));
        // SAFETY: the lanes of a pixel of the output.
        unsafe { store_64(to.wrapping_offset(distance), self.written, bytes) };
    }

    /// Passes a row of codes through what comes behind requantisation, where they lie.
    ///
    /// # Safety
    /// As of [`Self::chunk`]; `count` pixels exist from `to` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn rest(&self, mut to: *mut u8, count: usize) {
        for _ in 0..count {
            // SAFETY: the lanes of a pixel of the output.
            let bytes = unsafe { load_masked_64(self.written, to) };
            // SAFETY: nothing is added, `flat::takes` says.
            let bytes = unsafe { self.stage.rest_64(bytes, 0, std::ptr::null()) };
            // SAFETY: as above.
            unsafe { store_64(to, self.written, bytes) };
            to = to.wrapping_offset(isize_of(self.p.ofm.pixel));
        }
    }
}
