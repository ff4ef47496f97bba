//! SOFTMAX on AVX-512: sixteen pixels side by side, so that each sum keeps its order.
//!
//! ```text
//! per pixel: largest code  |  per 16 channels: parts by gather, 16 pixels x 16 channels
//! transposed in memory: sixteen sums grow by one channel a step  |  shares, 16 channels at a time
//! ```

use crate::kernel::Stop;
use crate::kernel::softmax::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::{load_codes, load_masked_64, mask_16, mask_64, store_16};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512, __m512i, _mm_max_epu8, _mm256_castsi256_si128, _mm256_extracti128_si256,
    _mm256_max_epu8, _mm512_add_epi32, _mm512_add_ps, _mm512_castsi512_si256, _mm512_cvtepi32_epi8,
    _mm512_cvtps_epi32, _mm512_div_ps, _mm512_extracti64x4_epi64, _mm512_i32gather_ps,
    _mm512_max_epu8, _mm512_max_ps, _mm512_min_epi32, _mm512_min_ps, _mm512_mul_ps,
    _mm512_mullo_epi32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_ps,
};

/// Pixels side by side.
const PIXELS: usize = 16;

/// Channels between two looks whether the job is to end.
const SOME: i64 = 1 << 14;

/// Runs `problem`.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let [n, h, w, c] = p.dims;
    let pixels = n * h * w;
    let groups = (pixels + 15) / 16;
    let each = split.units_a_chunk(groups, c.saturating_mul(256));
    split.chunks((groups + each - 1) / each, &|chunk, budget| {
        for group in chunk * each..((chunk + 1) * each).min(groups) {
            let first = group * 16;
            // SAFETY: the caller's promise; the pixels exist.
            unsafe { pixels_from(p, first, (pixels - first).min(16), budget)? };
        }
        Ok(())
    })
}

/// `count` pixels from `first` on, counted through rows and images.
///
/// # Safety
/// As of [`run`]; the pixels lie in the problem.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn pixels_from(
    p: &Problem,
    first: i64,
    count: i64,
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let [_, h, w, c] = p.dims;
    let count = usize_of(count.unsigned_abs());
    let mut src = [std::ptr::null_mut::<u8>(); PIXELS];
    let mut dst = src;
    for (index, (src, dst)) in (first..).zip(src.iter_mut().zip(&mut dst)).take(count) {
        let (row, x) = (index / w, index % w);
        *src = p.src.pointer(p.src.at(row / h, row % h, x));
        *dst = p.dst.pointer(p.dst.at(row / h, row % h, x));
    }
    let mut shifts = [0_i32; PIXELS];
    for (shift, &src) in shifts.iter_mut().zip(&src).take(count) {
        // SAFETY: the channels of a pixel.
        *shift = 255 - i32::from(unsafe { largest(src, c, budget)? });
    }
    let mut sums = _mm512_setzero_ps();
    let mut parts = [0.0_f32; PIXELS * 16];
    let across = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_set1_epi32(16),
    );
    for ch in (0..c).step_by(16) {
        budget.spend(256)?;
        let mask = mask_16(c - ch);
        for (pixel, &src) in src.iter().enumerate().take(count) {
            // SAFETY: the channels of the mask.
            let codes = unsafe { load_codes(mask, src.wrapping_offset(isize_of(ch))) };
            let found = part(p, codes, shifts[pixel]);
            // SAFETY: sixteen of the local parts.
            unsafe { _mm512_storeu_ps(parts.as_mut_ptr().wrapping_add(pixel * 16), found) };
        }
        for at in 0..usize_of((c - ch).min(16).unsigned_abs()) {
            // SAFETY: one part of each pixel.
            let column =
                unsafe { _mm512_i32gather_ps::<4>(across, parts.as_ptr().wrapping_add(at)) };
            sums = _mm512_add_ps(sums, column);
        }
    }
    let mut all = [0.0_f32; PIXELS];
    // SAFETY: sixteen floats.
    unsafe { _mm512_storeu_ps(all.as_mut_ptr(), sums) };
    let room = _mm512_set1_ps(f32::from(255 - p.terms.zero_point));
    let zero_point = _mm512_set1_epi32(p.terms.zero_point.into());
    for pixel in 0..count {
        let (src, dst) = (src[pixel], dst[pixel]);
        let (sum, scale) = (_mm512_set1_ps(all[pixel]), _mm512_set1_ps(p.terms.scale));
        for ch in (0..c).step_by(16) {
            let mask = mask_16(c - ch);
            // SAFETY: the channels of the mask.
            let codes = unsafe { load_codes(mask, src.wrapping_offset(isize_of(ch))) };
            let share = _mm512_div_ps(_mm512_mul_ps(part(p, codes, shifts[pixel]), scale), sum);
            // A NaN becomes nothing, as the definition has it.
            let share = _mm512_min_ps(_mm512_max_ps(share, _mm512_setzero_ps()), room);
            let codes = _mm512_add_epi32(_mm512_cvtps_epi32(share), zero_point);
            let to = dst.wrapping_offset(isize_of(ch));
            let codes = _mm512_cvtepi32_epi8(codes);
            // SAFETY: the channels of the mask.
            unsafe { store_16(to, mask, codes) };
        }
        budget.spend(16 * c.min(SOME))?;
    }
    Ok(())
}

/// The parts of sixteen codes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn part(p: &Problem, codes: __m512i, shift: i32) -> __m512 {
    let index = _mm512_add_epi32(codes, _mm512_set1_epi32(shift));
    // Memory that another writes meanwhile may hold more than the largest code that was found.
    let index = _mm512_min_epi32(index, _mm512_set1_epi32(255));
    // SAFETY: indices into the 256 entries.
    unsafe { _mm512_i32gather_ps::<4>(index, p.table.as_ptr()) }
}

/// The largest of `c` codes.
///
/// # Safety
/// They are readable; vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn largest(from: *const u8, c: i64, budget: &mut Budget<'_>) -> Result<u8, Aborted> {
    let mut most = _mm512_setzero_si512();
    for ch in (0..c).step_by(64) {
        budget.spend(64)?;
        // SAFETY: the bytes of the mask are among them.
        let codes = unsafe { load_masked_64(mask_64(c - ch), from.wrapping_offset(isize_of(ch))) };
        most = _mm512_max_epu8(most, codes);
    }
    let half = _mm256_max_epu8(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64::<1>(most));
    let quarter = _mm_max_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
    let mut bytes = [0_u8; 16];
    // SAFETY: sixteen bytes.
    unsafe { store_16(bytes.as_mut_ptr(), u16::MAX, quarter) };
    Ok(bytes.into_iter().max().unwrap_or(0))
}
