//! SOFTMAX on AVX-512: sixteen pixels side by side, so that each sum keeps its order.
//!
//! ```text
//! per pixel: largest code  |  per 16 channels: codes of 16 pixels x 16 channels, turned in registers:
//! sixteen sums grow by one channel a step  |  shares, 16 channels at a time
//! ```
//!
//! The share of a code depends on the pixel's sum alone: of many channels, each pixel gets a table of them.

use crate::kernel::Stop;
use crate::kernel::softmax::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::turn::turned;
use crate::kernel::vector::{
    Lookup, load_codes, load_masked_64, mask_16, mask_64, store_16, store_64,
};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_max_epu8, _mm_setzero_si128, _mm256_castsi256_si128,
    _mm256_extracti128_si256, _mm256_max_epu8, _mm512_add_epi32, _mm512_add_ps,
    _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_cvtepi32_epi8, _mm512_cvtepu8_epi32,
    _mm512_cvtps_epi32, _mm512_div_ps, _mm512_extracti64x4_epi64, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mask_blend_ps, _mm512_max_epu8, _mm512_max_ps, _mm512_min_epi32,
    _mm512_min_ps, _mm512_mul_ps, _mm512_permutex2var_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setr_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
    _mm512_test_epi32_mask,
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
    // Sums of pixels that are none are the last one's once more.
    let last = src[count - 1];
    src[count..].fill(last);
    // SAFETY: sixteen integers.
    let columns = unsafe { _mm512_loadu_si512(shifts.as_ptr().cast()) };
    let parts = Parts::new(p);
    let mut sums = _mm512_setzero_ps();
    for ch in (0..c).step_by(16) {
        budget.spend(256)?;
        let mask = mask_16(c - ch);
        let mut rows = [_mm_setzero_si128(); PIXELS];
        for (row, &src) in rows.iter_mut().zip(&src) {
            let from = src.wrapping_offset(isize_of(ch));
            // SAFETY: the channels of the mask.
            *row = _mm512_castsi512_si128(unsafe { load_masked_64(mask.into(), from) });
        }
        let channels = usize_of((c - ch).min(16).unsigned_abs());
        for codes in turned(rows).into_iter().take(channels) {
            sums = _mm512_add_ps(sums, parts.of(_mm512_cvtepu8_epi32(codes), columns));
        }
    }
    let mut all = [0.0_f32; PIXELS];
    // SAFETY: sixteen floats.
    unsafe { _mm512_storeu_ps(all.as_mut_ptr(), sums) };
    for pixel in 0..count {
        let shares = Shares::new(p, &parts, shifts[pixel], all[pixel]);
        let (src, dst) = (src[pixel], dst[pixel]);
        if c >= MANY {
            let table = shares.table();
            for ch in (0..c).step_by(64) {
                let mask = mask_64(c - ch);
                // SAFETY: the channels of the mask.
                let codes = unsafe { load_masked_64(mask, src.wrapping_offset(isize_of(ch))) };
                let codes = table.bytes(codes);
                // SAFETY: as above.
                unsafe { store_64(dst.wrapping_offset(isize_of(ch)), mask, codes) };
            }
        } else {
            for ch in (0..c).step_by(16) {
                let mask = mask_16(c - ch);
                // SAFETY: the channels of the mask.
                let codes = unsafe { load_codes(mask, src.wrapping_offset(isize_of(ch))) };
                let codes = shares.codes(codes);
                // SAFETY: the channels of the mask.
                unsafe { store_16(dst.wrapping_offset(isize_of(ch)), mask, codes) };
            }
        }
        budget.spend(16 * c.min(SOME))?;
    }
    Ok(())
}

/// Channels from which on a pixel has a table of its shares.
const MANY: i64 = 512;

/// What the codes of a pixel become.
struct Shares<'a> {
    parts: &'a Parts,
    shift: __m512i,
    sum: __m512,
    scale: __m512,
    most: __m512,
    zero_point: __m512i,
}

impl<'a> Shares<'a> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new(p: &Problem, parts: &'a Parts, shift: i32, sum: f32) -> Self {
        Self {
            parts,
            shift: _mm512_set1_epi32(shift),
            sum: _mm512_set1_ps(sum),
            scale: _mm512_set1_ps(p.terms.scale),
            most: _mm512_set1_ps(f32::from(255 - p.terms.zero_point)),
            zero_point: _mm512_set1_epi32(p.terms.zero_point.into()),
        }
    }

    /// Sixteen of them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn codes(&self, codes: __m512i) -> __m128i {
        let part = self.parts.of(codes, self.shift);
        let share = _mm512_div_ps(_mm512_mul_ps(part, self.scale), self.sum);
        // A NaN becomes nothing, as the definition has it.
        let share = _mm512_min_ps(_mm512_max_ps(share, _mm512_setzero_ps()), self.most);
        _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(share), self.zero_point))
    }

    /// All of them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn table(&self) -> Lookup {
        let mut table = [0; 256];
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (first, entries) in (0..).step_by(16).zip(table.chunks_exact_mut(16)) {
            let codes = self.codes(_mm512_add_epi32(lanes, _mm512_set1_epi32(first)));
            // SAFETY: sixteen bytes of the table.
            unsafe { store_16(entries.as_mut_ptr(), u16::MAX, codes) };
        }
        Lookup::new(&table)
    }
}

/// What each code counts, in registers: a gather takes twice as long.
#[derive(Clone, Copy)]
struct Parts([[__m512; 2]; 8]);

impl Parts {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new(p: &Problem) -> Self {
        let mut parts = [[_mm512_setzero_ps(); 2]; 8];
        for (part, sixteen) in parts.as_flattened_mut().iter_mut().zip(p.table.chunks_exact(16)) {
            // SAFETY: sixteen floats.
            *part = unsafe { _mm512_loadu_ps(sixteen.as_ptr()) };
        }
        Self(parts)
    }

    /// The parts of sixteen codes, each shifted so that the largest of its pixel is the last of all.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn of(&self, codes: __m512i, shift: __m512i) -> __m512 {
        let index = _mm512_add_epi32(codes, shift);
        // Memory that another writes meanwhile may hold more than the largest code that was found.
        let index = _mm512_min_epi32(index, _mm512_set1_epi32(255));
        let found = self.0.map(|[low, high]| _mm512_permutex2var_ps(low, index, high));
        let [bit_5, bit_6, bit_7] =
            [32, 64, 128].map(|bit| _mm512_test_epi32_mask(index, _mm512_set1_epi32(bit)));
        let [a, b, c, d, e, f, g, h] = found;
        let [a, c, e, g] =
            [[a, b], [c, d], [e, f], [g, h]].map(|[a, b]| _mm512_mask_blend_ps(bit_5, a, b));
        let [a, e] = [[a, c], [e, g]].map(|[a, b]| _mm512_mask_blend_ps(bit_6, a, b));
        _mm512_mask_blend_ps(bit_7, a, e)
    }
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
