//! Rows on AVX-512: codes to floats and back sixteen at a time; the sums between by the compiler, which
//! keeps their order.

use super::{Buffers, Problem, Row, compute};
use crate::kernel::vector::{load_codes, mask_16, store_16};
use npu_uapi::rows::{Codes, Instructions};
use std::arch::x86_64::{
    __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    _mm256_sub_ps, _mm512_add_epi32, _mm512_add_pd, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps,
    _mm512_cvtps_epi32, _mm512_cvtps_pd, _mm512_div_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_add_pd,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_pd, _mm512_sub_epi32,
};

/// Instructions of the processor.
struct Native;

impl Instructions for Native {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn sqrt(value: f32) -> f32 {
        value.sqrt()
    }

    #[inline(always)]
    fn wide_sum(values: &[f32]) -> f64 {
        // SAFETY: `row`, the only caller, runs with the instructions.
        unsafe { wide_sum(values) }
    }

    #[inline(always)]
    fn squares(eights: &[[f32; 8]], mean: f32) -> [f32; 8] {
        // SAFETY: as above.
        unsafe { squares(eights, mean) }
    }
}

/// The sum in f64, sixteen at a time: exact, as the definition's is.
///
/// # Safety
/// Vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn wide_sum(values: &[f32]) -> f64 {
    let (sixteens, rest) = values.as_chunks::<16>();
    let mut sums = [_mm512_setzero_pd(); 2];
    for sixteen in sixteens {
        let (eights, _) = sixteen.as_chunks::<8>();
        for (sum, eight) in sums.iter_mut().zip(eights) {
            // SAFETY: eight floats.
            let eight = unsafe { _mm256_loadu_ps(eight.as_ptr()) };
            *sum = _mm512_add_pd(*sum, _mm512_cvtps_pd(eight));
        }
    }
    let sum = _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]));
    rest.iter().fold(sum, |sum, &value| sum + f64::from(value))
}

/// Squares of distances from `mean`, eight lanes together.
///
/// # Safety
/// Vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,fma")]
#[inline]
unsafe fn squares(eights: &[[f32; 8]], mean: f32) -> [f32; 8] {
    let (mean, mut sums) = (_mm256_set1_ps(mean), _mm256_setzero_ps());
    for eight in eights {
        // SAFETY: eight floats.
        let eight = unsafe { _mm256_loadu_ps(eight.as_ptr()) };
        let from_mean = _mm256_sub_ps(eight, mean);
        sums = _mm256_fmadd_ps(from_mean, from_mean, sums);
    }
    let mut lanes = [0.0; 8];
    // SAFETY: eight floats.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums) };
    lanes
}

/// Sixteen elements at a time.
struct Sixteen;

impl Row for Sixteen {
    #[inline(always)]
    fn load(p: &Problem, at: i64, codes: Codes, values: &mut [f32]) {
        let from = p.src.pointer(at);
        // SAFETY: `row`, the only caller, runs with the instructions; the channels lie in the slot.
        unsafe { load(from, codes, values) }
    }

    #[inline(always)]
    fn store(p: &Problem, at: i64, codes: Codes, values: &[f32]) {
        let to = p.dst.pointer(at);
        // SAFETY: as above, and the result may be written.
        unsafe { store(to, codes, values) }
    }
}

/// Row `row`.
///
/// # Safety
/// On a processor with the vector instructions; the row lies in the problem.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,fma")]
pub(super) unsafe fn row(p: &Problem, row: i64, buffers: &mut Buffers) {
    compute::<Native, Sixteen>(p, row, buffers);
}

/// The floats of as many codes as there are `values`.
///
/// # Safety
/// The codes are readable; vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn load(from: *const u8, codes: Codes, values: &mut [f32]) {
    let zero_point = _mm512_set1_epi32(codes.zero_point.into());
    let scale = _mm512_set1_ps(codes.scale);
    for (index, values) in values.chunks_mut(16).enumerate() {
        let mask = mask(values.len());
        // SAFETY: the codes of these values.
        let found = unsafe { load_codes(mask, from.wrapping_add(16 * index)) };
        let found = _mm512_cvtepi32_ps(_mm512_sub_epi32(found, zero_point));
        let found = _mm512_mul_ps(found, scale);
        // SAFETY: as many floats as the mask has lanes.
        unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), mask, found) };
    }
}

/// The codes of `values`.
///
/// # Safety
/// As many codes are writable; vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn store(to: *mut u8, codes: Codes, values: &[f32]) {
    let zero_point = _mm512_set1_epi32(codes.zero_point.into());
    let bound = |code: i16| _mm512_set1_ps(f32::from(code - i16::from(codes.zero_point)));
    let (low, high): (__m512, __m512) = (bound(0), bound(255));
    let scale = _mm512_set1_ps(codes.scale);
    for (index, values) in values.chunks(16).enumerate() {
        let mask = mask(values.len());
        // SAFETY: as many floats as the mask has lanes.
        let value = unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) };
        // `max` before `min`: a NaN becomes the lowest code.
        let value = _mm512_max_ps(_mm512_div_ps(value, scale), low);
        let value = _mm512_cvtps_epi32(_mm512_min_ps(value, high));
        let bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(value, zero_point));
        // SAFETY: the codes of these values.
        unsafe { store_16(to.wrapping_add(16 * index), mask, bytes) };
    }
}

#[inline]
fn mask(count: usize) -> u16 {
    mask_16(i64::try_from(count).unwrap_or(16))
}
