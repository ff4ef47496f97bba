//! POOL on AVX-512, 64 channels at a time; takes every problem.

use super::{maximum_avx512vnni as maximum, sums_avx512vnni as sums};
use crate::kernel::Stop;
use crate::kernel::pool::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::{
    Lookup, Requantise, load_masked_64, mask_64, pack_64, store_64, unpack_64,
};
use npu_uapi::command::pool_kind;
use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_cvtepu32_ps, _mm512_cvtss_f32,
    _mm512_div_ps, _mm512_max_epu8, _mm512_min_epu8, _mm512_mul_ps, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_epi64, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_sub_epi32,
};
use std::ops::Range;

/// Channels of a step.
const CHANNELS: i64 = 64;

/// Runs `problem`.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let groups = (p.dims[3] + CHANNELS - 1) / CHANNELS;
    let units = p.dims[0] * p.ofm_h * groups;
    let window = match pool_kind::is_global(p.kind) {
        true => p.dims[1] * p.dims[2],
        false => p.window.kernel_h * p.window.kernel_w,
    };
    // A step of 64 channels costs about as much as 512 multiply-accumulates.
    let units_a_chunk =
        split.units_a_chunk(units, p.ofm_w.saturating_mul(window).saturating_mul(512));
    split.chunks((units + units_a_chunk - 1) / units_a_chunk, &|chunk, budget| {
        let first = chunk * units_a_chunk;
        for unit in first..(first + units_a_chunk).min(units) {
            let (row, group) = (unit / groups, unit % groups);
            let at = [row / p.ofm_h, row % p.ofm_h, group * CHANNELS];
            if maximum::takes(p) {
                // SAFETY: the processor is the caller's promise; row and channels exist.
                unsafe { maximum::output_row(p, at, budget)? };
            } else {
                // SAFETY: as above.
                unsafe { output_row(p, at, budget)? };
            }
        }
        Ok(())
    })
}

/// 64 channels of a row of output pixels.
///
/// # Safety
/// As of [`run`]; row and first channel exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn output_row(
    p: &Problem,
    [n, oy, channel]: [i64; 3],
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let mask = mask_64(p.dims[3] - channel);
    let table = p.table.as_ref().map(|table| Lookup::new(table));
    let global = pool_kind::is_global(p.kind);
    let (rows, counted_rows) = if global { (0..p.dims[1], p.dims[1]) } else { p.rows(oy) };
    for ox in 0..p.ofm_w {
        let (columns, counted_columns) =
            if global { (0..p.dims[2], p.dims[2]) } else { p.columns(ox) };
        let window = Window { p, n, oy, ox, channel, mask, rows: rows.clone(), columns };
        let count = counted_rows * counted_columns;
        let mut codes = match p.kind {
            // SAFETY: the caller's promise.
            pool_kind::MAX => unsafe { window.maximum(budget)? },
            // SAFETY: the caller's promise.
            pool_kind::AVERAGE => unsafe { window.average(count, budget)? },
            // SAFETY: the caller's promise.
            pool_kind::GLOBAL_MEAN => unsafe { window.global_mean(count, budget)? },
            // SAFETY: the caller's promise.
            _ => unsafe { window.global_average(budget)? },
        };
        if let Some(table) = &table {
            codes = table.bytes(codes);
        }
        let to = p.ofm.pointer(p.ofm.at(n, oy, ox) + channel);
        // SAFETY: the channels of `mask` of a pixel of the output.
        unsafe { store_64(to, mask, codes) };
    }
    Ok(())
}

/// One output pixel's window, as far as it lies in the input.
struct Window<'a> {
    p: &'a Problem,
    n: i64,
    oy: i64,
    ox: i64,
    channel: i64,
    mask: u64,
    rows: Range<i64>,
    columns: Range<i64>,
}

impl Window<'_> {
    /// Calls `step` with 64 channels of each pixel, row by row.
    ///
    /// # Safety
    /// As of [`run`]; the window lies in the input.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn each(
        &self,
        budget: &mut Budget<'_>,
        mut step: impl FnMut(__m512i),
    ) -> Result<(), Aborted> {
        let ifm = &self.p.ifm;
        let global = pool_kind::is_global(self.p.kind);
        for ky in self.rows.clone() {
            budget.spend((self.columns.end - self.columns.start) * 512)?;
            for kx in self.columns.clone() {
                let (y, x) = if global {
                    (ky, kx)
                } else {
                    (self.p.window.row(self.oy, ky), self.p.window.column(self.ox, kx))
                };
                let from = ifm.pointer(ifm.at(self.n, y, x) + self.channel);
                // SAFETY: the channels of `mask` of a pixel of the input.
                step(unsafe { load_masked_64(self.mask, from) });
            }
        }
        budget.spend(self.p.window.kernel_h + self.p.window.kernel_w)
    }

    /// # Safety
    /// As of [`Self::each`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn maximum(&self, budget: &mut Budget<'_>) -> Result<__m512i, Aborted> {
        let mut largest = _mm512_setzero_si512();
        let step = |codes| largest = _mm512_max_epu8(largest, codes);
        // SAFETY: the caller's promise.
        unsafe { self.each(budget, step)? };
        let low = _mm512_set1_epi8(self.p.low.cast_signed());
        let high = _mm512_set1_epi8(self.p.high.cast_signed());
        Ok(_mm512_min_epu8(_mm512_max_epu8(largest, low), high))
    }

    /// # Safety
    /// As of [`Self::each`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn average(&self, count: i64, budget: &mut Budget<'_>) -> Result<__m512i, Aborted> {
        let zero_point = _mm512_set1_epi32(self.p.input_zero_point.into());
        let scale = _mm512_set1_ps(self.p.input_scale);
        let mut sums = [_mm512_setzero_ps(); 4];
        let step = |codes| {
            for (sum, codes) in sums.iter_mut().zip(unpack_64(codes)) {
                let value = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero_point));
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(value, scale));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { self.each(budget, step)? };
        let count = count_lanes(count);
        let output_scale = _mm512_set1_ps(self.p.output_scale);
        let zero_point = _mm512_set1_ps(self.p.zero_point.into());
        // The zero point is in the sum before the rounding, so the codes are the rounded values.
        let finish = Requantise::new(0, self.p.low, self.p.high);
        let mut codes = [_mm512_setzero_si512(); 4];
        for (codes, sum) in codes.iter_mut().zip(sums) {
            let mean = _mm512_div_ps(_mm512_div_ps(sum, count), output_scale);
            *codes = finish.finish(_mm512_add_ps(mean, zero_point));
        }
        Ok(pack_64(codes))
    }

    /// # Safety
    /// As of [`Self::each`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn global_average(&self, budget: &mut Budget<'_>) -> Result<__m512i, Aborted> {
        // SAFETY: the caller's promise.
        let sums = unsafe { sums::of_image(self.p, self.n, self.channel, self.mask, budget)? };
        // All sums wrap, so the count may.
        let count = (self.p.dims[1] * self.p.dims[2]) & i64::from(u32::MAX);
        let count = u32::try_from(count).expect("masked on the line above").cast_signed();
        let less = _mm512_set1_epi32(count.wrapping_mul(self.p.input_zero_point.into()));
        let requantise = Requantise::new(self.p.zero_point, self.p.low, self.p.high);
        let multiplier = _mm512_set1_ps(self.p.multiplier);
        let mut codes = sums;
        for (codes, sum) in codes.iter_mut().zip(sums) {
            *codes = requantise.codes(_mm512_sub_epi32(sum, less), multiplier);
        }
        Ok(pack_64(codes))
    }

    /// # Safety
    /// As of [`Self::each`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn global_mean(&self, count: i64, budget: &mut Budget<'_>) -> Result<__m512i, Aborted> {
        let zero_point = _mm512_set1_epi32(self.p.input_zero_point.into());
        let scale = _mm512_set1_ps(self.p.input_scale);
        // Four parts of every fourth pixel; behind them, in the first, what is left.
        let mut parts = [[_mm512_setzero_ps(); 4]; 4];
        let (mut pixel, interleaved) = (0, count / 4 * 4);
        let step = |codes| {
            if pixel == interleaved {
                parts[0] = joined(&parts);
            }
            let part = if pixel < interleaved { pixel % 4 } else { 0 };
            pixel += 1;
            let [first, second, third, fourth] = &mut parts;
            let sums = match part {
                0 => first,
                1 => second,
                2 => third,
                _ => fourth,
            };
            for (sum, codes) in sums.iter_mut().zip(unpack_64(codes)) {
                let value = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero_point));
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(value, scale));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { self.each(budget, step)? };
        let sums = if count == interleaved { joined(&parts) } else { parts[0] };
        let (count, output_scale) = (count_lanes(count), _mm512_set1_ps(self.p.output_scale));
        let finish = Requantise::new(self.p.zero_point, self.p.low, self.p.high);
        let mut codes = [_mm512_setzero_si512(); 4];
        for (codes, sum) in codes.iter_mut().zip(sums) {
            *codes = finish.finish(_mm512_div_ps(_mm512_div_ps(sum, count), output_scale));
        }
        Ok(pack_64(codes))
    }
}

/// `(0 + 2) + (1 + 3)` of the four parts of each lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn joined(parts: &[[__m512; 4]; 4]) -> [__m512; 4] {
    let mut sums = parts[0];
    for (lane, sum) in sums.iter_mut().enumerate() {
        let [even, odd] = [[0, 2], [1, 3]]
            .map(|[first, second]| _mm512_add_ps(parts[first][lane], parts[second][lane]));
        *sum = _mm512_add_ps(even, odd);
    }
    sums
}

/// `count` in each lane, through the same conversion as the definition: 32-bit integer to float, rounded
/// to nearest.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn count_lanes(count: i64) -> __m512 {
    let count = i32::try_from(count).map_or_else(
        |_| _mm512_cvtepu32_ps(_mm512_set1_epi64(count)),
        |count| _mm512_cvtepi32_ps(_mm512_set1_epi32(count)),
    );
    _mm512_set1_ps(_mm512_cvtss_f32(count))
}
