//! POOL on AVX2, 32 channels at a time; takes every problem.

use crate::kernel::Stop;
use crate::kernel::pool::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector_avx2::{
    Clamp, Lookup, Requantise, all, load_some, store_some, unpack_32,
};
use crate::memory::usize_of;
use npu_uapi::command::pool_kind;
use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi32, _mm256_add_ps, _mm256_cvtepi32_ps, _mm256_div_ps,
    _mm256_max_epu8, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_sub_epi32,
};
use std::ops::Range;

/// Channels of a step.
const CHANNELS: i64 = 32;

/// Runs `problem`.
///
/// # Safety
/// On a processor with AVX2 and FMA.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let groups = (p.dims[3] + CHANNELS - 1) / CHANNELS;
    let units = p.dims[0] * p.ofm_h * groups;
    let window = match pool_kind::is_global(p.kind) {
        true => p.dims[1] * p.dims[2],
        false => p.window.kernel_h * p.window.kernel_w,
    };
    // A step of 32 channels costs about as much as 512 multiply-accumulates.
    let units_a_chunk =
        split.units_a_chunk(units, p.ofm_w.saturating_mul(window).saturating_mul(512));
    split.chunks((units + units_a_chunk - 1) / units_a_chunk, &|chunk, budget| {
        let first = chunk * units_a_chunk;
        for unit in first..(first + units_a_chunk).min(units) {
            let (row, group) = (unit / groups, unit % groups);
            let at = [row / p.ofm_h, row % p.ofm_h, group * CHANNELS];
            // SAFETY: the processor is the caller's promise; row and channels exist.
            unsafe { output_row(p, at, budget)? };
        }
        Ok(())
    })
}

/// 32 channels of a row of output pixels.
///
/// # Safety
/// As of [`run`]; row and first channel exist.
#[target_feature(enable = "avx2,fma")]
unsafe fn output_row(
    p: &Problem,
    [n, oy, channel]: [i64; 3],
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let len = |lanes: i64| usize_of((lanes - channel).min(CHANNELS).unsigned_abs());
    let table = p.table.as_ref().map(|table| Lookup::new(table));
    let global = pool_kind::is_global(p.kind);
    let (rows, counted_rows) = if global { (0..p.dims[1], p.dims[1]) } else { p.rows(oy) };
    for ox in 0..p.ofm_w {
        let (columns, counted_columns) =
            if global { (0..p.dims[2], p.dims[2]) } else { p.columns(ox) };
        let len_in = len(p.ifm.lanes);
        let window = Window { p, n, oy, ox, channel, len: len_in, rows: rows.clone(), columns };
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
        // SAFETY: so many lanes of a pixel of the output.
        unsafe { store_some(to, len(p.ofm.lanes), codes) };
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
    /// Lanes from `channel` on, at most 32.
    len: usize,
    rows: Range<i64>,
    columns: Range<i64>,
}

impl Window<'_> {
    /// Calls `step` with 32 channels of each pixel, row by row.
    ///
    /// # Safety
    /// As of [`run`]; the window lies in the input.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn each(
        &self,
        budget: &mut Budget<'_>,
        mut step: impl FnMut(__m256i),
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
                // SAFETY: so many lanes of a pixel of the input.
                step(unsafe { load_some(from, self.len) });
            }
        }
        budget.spend(self.p.window.kernel_h + self.p.window.kernel_w)
    }

    /// # Safety
    /// As of [`Self::each`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn maximum(&self, budget: &mut Budget<'_>) -> Result<__m256i, Aborted> {
        let mut largest = _mm256_setzero_si256();
        let step = |codes| largest = _mm256_max_epu8(largest, codes);
        // SAFETY: the caller's promise.
        unsafe { self.each(budget, step)? };
        Ok(Clamp::new(self.p.low, self.p.high).bytes(largest))
    }

    /// What 8 codes stand for.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn values(&self, codes: __m256i) -> __m256 {
        let differences = _mm256_sub_epi32(codes, all(self.p.input_zero_point.into()));
        _mm256_mul_ps(_mm256_cvtepi32_ps(differences), _mm256_set1_ps(self.p.input_scale))
    }

    /// # Safety
    /// As of [`Self::each`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn average(&self, count: i64, budget: &mut Budget<'_>) -> Result<__m256i, Aborted> {
        let mut sums = [_mm256_setzero_ps(); 4];
        let step = |codes| {
            for (sum, codes) in sums.iter_mut().zip(unpack_32(codes)) {
                *sum = _mm256_add_ps(*sum, self.values(codes));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { self.each(budget, step)? };
        let count = _mm256_set1_ps(as_float(count));
        let output_scale = _mm256_set1_ps(self.p.output_scale);
        let zero_point = _mm256_set1_ps(self.p.zero_point.into());
        // The zero point is in the sum before the rounding, so the codes are the rounded values.
        let finish = Requantise::new(0, self.p.low, self.p.high);
        let mut values = sums;
        for value in &mut values {
            let mean = _mm256_div_ps(_mm256_div_ps(*value, count), output_scale);
            *value = _mm256_add_ps(mean, zero_point);
        }
        Ok(finish.finish(values))
    }

    /// # Safety
    /// As of [`Self::each`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn global_average(&self, budget: &mut Budget<'_>) -> Result<__m256i, Aborted> {
        let zero_point = all(self.p.input_zero_point.into());
        let mut sums = [_mm256_setzero_si256(); 4];
        let step = |codes| {
            for (sum, codes) in sums.iter_mut().zip(unpack_32(codes)) {
                *sum = _mm256_add_epi32(*sum, _mm256_sub_epi32(codes, zero_point));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { self.each(budget, step)? };
        let requantise = Requantise::new(self.p.zero_point, self.p.low, self.p.high);
        let multipliers: [__m256; 4] = [_mm256_set1_ps(self.p.multiplier); 4];
        Ok(requantise.bytes(sums, multipliers))
    }

    /// # Safety
    /// As of [`Self::each`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn global_mean(&self, count: i64, budget: &mut Budget<'_>) -> Result<__m256i, Aborted> {
        // Four parts of every fourth pixel; behind them, in the first, what is left.
        let mut parts = [[_mm256_setzero_ps(); 4]; 4];
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
            for (sum, codes) in sums.iter_mut().zip(unpack_32(codes)) {
                *sum = _mm256_add_ps(*sum, self.values(codes));
            }
        };
        // SAFETY: the caller's promise.
        unsafe { self.each(budget, step)? };
        let sums = if count == interleaved { joined(&parts) } else { parts[0] };
        let count = _mm256_set1_ps(as_float(count));
        let output_scale = _mm256_set1_ps(self.p.output_scale);
        let finish = Requantise::new(self.p.zero_point, self.p.low, self.p.high);
        let mut values = sums;
        for value in &mut values {
            *value = _mm256_div_ps(_mm256_div_ps(*value, count), output_scale);
        }
        Ok(finish.finish(values))
    }
}

/// `(0 + 2) + (1 + 3)` of the four parts of each lane.
#[target_feature(enable = "avx2,fma")]
fn joined(parts: &[[__m256; 4]; 4]) -> [__m256; 4] {
    let mut sums = parts[0];
    for (lane, sum) in sums.iter_mut().enumerate() {
        let [even, odd] = [[0, 2], [1, 3]]
            .map(|[first, second]| _mm256_add_ps(parts[first][lane], parts[second][lane]));
        *sum = _mm256_add_ps(even, odd);
    }
    sums
}

/// `count` rounded to 24 bits, as in the definition.
#[expect(clippy::cast_precision_loss, reason = "the rounding is part of the definition")]
fn as_float(count: i64) -> f32 {
    count as f32
}
