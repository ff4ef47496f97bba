//! Depthwise CONV with sums in floats on AVX-512, 16 channels at a time: the definition's steps, on lanes.
//!
//! ```text
//!   input row, 16 channels  ->  dequantised, padding around it; one buffer a kernel row
//!     -> x0*w0 + x1*w1 + x2*w2 + x3*w3 of four taps, added to the sum of each of 8 output pixels
//!     -> / output scale, rounded, clamped, rest of the stage
//! ```
//!
//! A kernel has few taps, and an integer sum first would save little. A row that is dequantised once
//! serves all the output rows of a chunk whose windows have it: it stays until its buffer is needed.
//!
//! Takes the order [`Steps::Quads`], which is the CPU provider's of one filter a group; kernels and rows
//! of any model's size. The scalar kernel takes the rest.

use super::{Problem, float as definition};
use crate::kernel::Stop;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::stage::Float;
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{Channels, load_64, load_codes, mask_16, store_16};
use crate::memory::{isize_of, usize_of};
use npu_uapi::float_order::Steps;
use std::arch::x86_64::{
    __m512, _mm_cvtsi32_si128, _mm512_add_ps, _mm512_castsi512_si128, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_sll_epi32, _mm512_srai_epi32, _mm512_sub_epi32,
    _mm512_zextsi128_si512,
};

/// Channels of a step.
const CHANNELS: i64 = 16;

/// Output pixels side by side.
const PIXELS: usize = 8;

/// Multiply-accumulates of a tap of so many.
const TAP_MACS: i64 = 8 * CHANNELS;

/// Most taps of a kernel.
const MOST_TAPS: i64 = 1024;

/// Most dequantised pixels that a chunk holds: 8 MiB.
const MOST_ROOM: i64 = 1 << 17;

/// Whether this kernel takes `problem`.
pub(super) fn takes(p: &Problem) -> bool {
    let quads = p.stage.float.is_some_and(|float| float.order.steps == Steps::Quads);
    quads && p.depthwise && p.taps() <= MOST_TAPS && p.window.kernel_h * width(p) <= MOST_ROOM
}

/// Pixels of an input row under the windows of an output row, whose length counts in whole [`PIXELS`].
fn width(p: &Problem) -> i64 {
    let pixels = p.ofm_w.unsigned_abs().next_multiple_of(PIXELS as u64).cast_signed();
    (pixels - 1) * p.window.stride_w + (p.window.kernel_w - 1) * p.window.dilation_w + 1
}

/// Runs `problem`.
///
/// # Safety
/// `takes(problem)`, on a processor with the vector instructions.
pub(super) unsafe fn run(p: &Problem, float: Float, split: &Split<'_>) -> Result<(), Stop> {
    let rows = p.images * p.ofm_h;
    let blocks = (p.outputs + CHANNELS - 1) / CHANNELS;
    let row_macs = p.ofm_w * CHANNELS * p.taps();
    let rows_a_chunk = split.units_a_chunk(rows * blocks, row_macs).min(rows);
    let bands = (rows + rows_a_chunk - 1) / rows_a_chunk;
    split.chunks(bands * blocks, &|chunk, budget| {
        let (first, block) = (chunk / blocks * rows_a_chunk, chunk % blocks);
        // SAFETY: the caller's promise; the block exists.
        let mut block = unsafe { Block::new(p, float, block) };
        for row in first..(first + rows_a_chunk).min(rows) {
            // SAFETY: the caller's promise.
            unsafe { block.row(p, [row / p.ofm_h, row % p.ofm_h], budget)? };
        }
        Ok(())
    })
}

/// Sixteen channels: their parameters, and the input rows that were dequantised last.
struct Block {
    float: Float,
    stage: Stage,
    first_channel: i64,
    /// The channels that exist.
    mask: u16,
    /// By tap.
    weights: Vec<__m512>,
    bias: __m512,
    /// A buffer for each kernel row, `width` pixels each.
    rows: Vec<__m512>,
    width: usize,
    /// Image and row in each buffer.
    held: Vec<Option<[i64; 2]>>,
    /// By tap, what it covers for the first output pixel of the row at hand.
    under: Vec<*const __m512>,
}

impl Block {
    /// # Safety
    /// As of [`run`]; block `block` of channels exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn new(p: &Problem, float: Float, block: i64) -> Self {
        let count = |value: i64| usize_of(value.unsigned_abs());
        let first_channel = block * CHANNELS;
        let (mut scales, mut biases) = ([0f32; 16], [0f32; 16]);
        for (channel, (scale, bias)) in
            (first_channel..p.outputs).zip(scales.iter_mut().zip(&mut biases))
        {
            let record = definition::record(p, channel);
            (*scale, *bias) = (record.weight_scale, record.bias);
        }
        // SAFETY: sixteen floats.
        let scales = unsafe { _mm512_loadu_ps(scales.as_ptr()) };
        // SAFETY: sixteen floats.
        let bias = unsafe { _mm512_loadu_ps(biases.as_ptr()) };
        let taps = count(p.taps());
        let packed = p.weights.memory.pointer(p.weights.start, 1);
        let packed = packed.wrapping_add(count(block) * taps.div_ceil(4) * 64);
        let mut weights = Vec::with_capacity(taps);
        for tap in 0..taps {
            // SAFETY: the four taps around this one, of a block that exists.
            let four = unsafe { load_64(packed.wrapping_add(tap / 4 * 64)) };
            let up = _mm_cvtsi32_si128([24, 16, 8, 0][tap % 4]);
            let whole = _mm512_srai_epi32::<24>(_mm512_sll_epi32(four, up));
            weights.push(_mm512_mul_ps(_mm512_cvtepi32_ps(whole), scales));
        }
        let (kernel_h, width) = (count(p.window.kernel_h), count(width(p)));
        Self {
            float,
            stage: Stage::new(&p.stage, Channels { symmetric: true, small: false }),
            first_channel,
            mask: mask_16(p.outputs - first_channel),
            weights,
            bias,
            rows: vec![_mm512_setzero_ps(); kernel_h * width],
            width,
            held: vec![None; kernel_h],
            under: Vec::with_capacity(taps),
        }
    }

    /// One row of output pixels.
    ///
    /// # Safety
    /// As of [`run`]; row `at` of the images exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn row(
        &mut self,
        p: &Problem,
        [n, oy]: [i64; 2],
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let w = &p.window;
        // Rows of one window differ by multiples of the dilation, so each has a buffer of its own.
        let buffer_of =
            |y: i64| usize_of(y.div_euclid(w.dilation_h).rem_euclid(w.kernel_h).unsigned_abs());
        for y in (0..w.kernel_h).map(|ky| w.row(oy, ky)) {
            let buffer = buffer_of(y);
            if self.held[buffer] != Some([n, y]) {
                budget.spend(i64::try_from(self.width).unwrap_or(0) * CHANNELS)?;
                // SAFETY: the caller's promise.
                unsafe { self.dequantise(p, [n, y], buffer) };
                self.held[buffer] = Some([n, y]);
            }
        }
        self.under.clear();
        for ky in 0..w.kernel_h {
            let row = &self.rows[buffer_of(w.row(oy, ky)) * self.width..][..self.width];
            let columns = (0..w.kernel_w).map(|kx| kx * w.dilation_w);
            self.under.extend(columns.map(|x| &raw const row[usize_of(x.unsigned_abs())]));
        }
        let start = if self.float.order.bias_first { self.bias } else { _mm512_setzero_ps() };
        let scale = _mm512_set1_ps(self.float.output_scale);
        for first in (0..p.ofm_w).step_by(PIXELS) {
            budget.spend(TAP_MACS * p.taps())?;
            let at = [first, 1].map(|pixels| usize_of((pixels * w.stride_w).unsigned_abs()));
            // SAFETY: rows are as long as all windows of an output row of whole `PIXELS` reach.
            let sums = unsafe { sums(&self.weights, &self.under, at, start) };
            for (ox, sum) in (first..p.ofm_w).zip(sums) {
                let sum =
                    if self.float.order.bias_first { sum } else { _mm512_add_ps(sum, self.bias) };
                let codes = self.stage.requantise.finish(_mm512_div_ps(sum, scale));
                let mut bytes = _mm512_cvtepi32_epi8(codes);
                if !self.stage.plain {
                    let aux = p.aux.map_or(std::ptr::null_mut(), |aux| {
                        aux.pointer(aux.at(n, oy, ox) + self.first_channel)
                    });
                    let wide = _mm512_zextsi128_si512(bytes);
                    // SAFETY: the channels of `mask` of a pixel of the auxiliary tensor.
                    let rest = unsafe { self.stage.rest_64(wide, self.mask.into(), aux) };
                    bytes = _mm512_castsi512_si128(rest);
                }
                let to = p.ofm.pointer(p.ofm.at(n, oy, ox) + self.first_channel);
                // SAFETY: the channels of `mask` of a pixel of the output.
                unsafe { store_16(to, self.mask, bytes) };
            }
        }
        Ok(())
    }

    /// Dequantises row `y` of image `n` into `buffer`; what lies outside the input is zero points.
    ///
    /// # Safety
    /// As of [`run`]; the image exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn dequantise(&mut self, p: &Problem, [n, y]: [i64; 2], buffer: usize) {
        let zero = _mm512_set1_epi32(p.input_zero_point.into());
        let scale = _mm512_set1_ps(self.float.input_scale);
        // Of a scale that is no number, zero times it is none either.
        let padding = _mm512_mul_ps(_mm512_setzero_ps(), scale);
        let row = &mut self.rows[buffer * self.width..][..self.width];
        if !(0..p.ifm_h).contains(&y) {
            row.fill(padding);
            return;
        }
        let left = usize_of(p.window.pad_left.unsigned_abs()).min(row.len());
        let (before, row) = row.split_at_mut(left);
        let inside = usize_of(p.ifm_w.unsigned_abs()).min(row.len());
        let (row, behind) = row.split_at_mut(inside);
        before.fill(padding);
        behind.fill(padding);
        let mut from = p.ifm.pointer(p.ifm.at(n, y, 0) + self.first_channel).cast_const();
        for x in row {
            // SAFETY: the channels of `mask` of a pixel of the input.
            let codes = unsafe { load_codes(self.mask, from) };
            *x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero)), scale);
            from = from.wrapping_offset(isize_of(p.ifm.pixel));
        }
    }
}

/// The sums of [`PIXELS`] output pixels of a row in the order of `Quads`, of which the first lies `first`
/// input pixels from the row's first, and the next `stride` further each.
///
/// # Safety
/// Vector instructions present; each of `under` so many pixels further, too, is a float vector.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn sums(
    weights: &[__m512],
    under: &[*const __m512],
    [first, stride]: [usize; 2],
    start: __m512,
) -> [__m512; PIXELS] {
    let mut sums = [start; PIXELS];
    let product = |under: *const __m512, weight: __m512, pixel: usize| {
        // SAFETY: the caller's promise.
        let x = unsafe { *under.wrapping_add(first + pixel * stride) };
        _mm512_mul_ps(x, weight)
    };
    let (fours, last) = weights.as_chunks::<4>();
    let (under_fours, under_last) = under.as_chunks::<4>();
    for (w, under) in fours.iter().zip(under_fours) {
        for (pixel, sum) in sums.iter_mut().enumerate() {
            let mut four = product(under[0], w[0], pixel);
            for k in 1..4 {
                four = _mm512_add_ps(four, product(under[k], w[k], pixel));
            }
            *sum = _mm512_add_ps(*sum, four);
        }
    }
    let (twos, last) = last.as_chunks::<2>();
    let (under_twos, under_last) = under_last.as_chunks::<2>();
    for (w, under) in twos.iter().zip(under_twos) {
        for (pixel, sum) in sums.iter_mut().enumerate() {
            let (a, b) = (product(under[0], w[0], pixel), product(under[1], w[1], pixel));
            *sum = _mm512_add_ps(*sum, _mm512_add_ps(a, b));
        }
    }
    for (&w, &under) in last.iter().zip(under_last) {
        for (pixel, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_add_ps(*sum, product(under, w, pixel));
        }
    }
    sums
}
