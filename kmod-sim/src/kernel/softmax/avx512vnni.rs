//! SOFTMAX on AVX-512: sixteen pixels side by side, so that each sum keeps its order.
//!
//! ```text
//! per pixel: largest code  |  per 16 channels: codes of 16 pixels x 16 channels, turned in registers
//! 4 channels x 16 pixels:  64 bytes looked up in each of the four planes of the parts, then added in turn
//! shares: of the parts that were kept, turned back to pixels
//! ```
//!
//! The share of a code depends on the pixel's sum alone: of many channels, each pixel gets a table of them,
//! and no parts are kept.

mod parts;

use crate::kernel::Stop;
use crate::kernel::room::Room;
use crate::kernel::softmax::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::{Lookup, load_masked_64, mask_16, mask_64, store_16, store_64};
use crate::memory::{isize_of, usize_of};
use parts::{Parts, of_pixels, to_channels, to_pixels};
use std::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_max_epu8, _mm_setzero_si128, _mm256_castsi256_si128,
    _mm256_extracti128_si256, _mm256_max_epu8, _mm512_add_epi32, _mm512_add_ps,
    _mm512_castsi128_si512, _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_cvtepi32_epi8,
    _mm512_cvtps_epi32, _mm512_div_ps, _mm512_extracti32x4_epi32, _mm512_extracti64x4_epi64,
    _mm512_inserti32x4, _mm512_load_ps, _mm512_loadu_ps, _mm512_max_epu8, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_store_ps, _mm512_storeu_ps,
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
        let mut kept = Room::new();
        if c < MANY {
            kept.resize(usize_of(c.unsigned_abs()).next_multiple_of(16), Kept([0.0; PIXELS]));
        }
        for group in chunk * each..((chunk + 1) * each).min(groups) {
            let first = group * 16;
            // SAFETY: the caller's promise; the pixels exist.
            unsafe { pixels_from(p, first, (pixels - first).min(16), &mut kept, budget)? };
        }
        Ok(())
    })
}

/// What each of sixteen pixels counts, of a channel.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Kept([f32; PIXELS]);

/// `count` pixels from `first` on, counted through rows and images.
///
/// # Safety
/// As of [`run`]; the pixels lie in the problem, and `kept` has room for their channels up to whole sixteens,
/// unless these are [`MANY`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn pixels_from(
    p: &Problem,
    first: i64,
    count: i64,
    kept: &mut [Kept],
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
    let mut shifts = [0; PIXELS];
    for (shift, &src) in shifts.iter_mut().zip(&src).take(count) {
        // SAFETY: the channels of a pixel.
        *shift = u8::MAX - unsafe { largest(src, c, budget)? };
    }
    // Sums of pixels that are none are the last one's once more.
    let last = src[count - 1];
    src[count..].fill(last);
    let (parts, all) = (Parts::new(p), of_pixels(&shifts));
    let mut sums = _mm512_setzero_ps();
    for ch in (0..c).step_by(16) {
        budget.spend(256)?;
        // SAFETY: these channels of the pixels.
        let codes = unsafe { of_channels(&src, isize_of(ch), mask_16(c - ch)) };
        for (four, codes) in (ch..c).step_by(4).zip(codes) {
            let found = parts.of(codes, all);
            for (channel, part) in (four..c).zip(found) {
                sums = _mm512_add_ps(sums, part);
                if c < MANY {
                    let to = &mut kept[usize_of(channel.unsigned_abs())];
                    // SAFETY: sixteen floats.
                    unsafe { _mm512_store_ps(to.0.as_mut_ptr(), part) };
                }
            }
        }
    }
    let shares = Shares::new(p);
    if c < MANY {
        for ch in (0..c).step_by(16) {
            budget.spend(256)?;
            let from = &kept[usize_of(ch.unsigned_abs())..];
            let mut codes = [[_mm512_setzero_si512(); 4]; 4];
            for (codes, from) in codes.as_flattened_mut().iter_mut().zip(from) {
                // SAFETY: sixteen floats.
                let part = unsafe { _mm512_load_ps(from.0.as_ptr()) };
                *codes = shares.codes(part, sums);
            }
            // SAFETY: these channels of the pixels.
            unsafe { to_memory(codes, &dst[..count], isize_of(ch), mask_16(c - ch)) };
        }
        return Ok(());
    }
    let mut sum_of = [0.0_f32; PIXELS];
    // SAFETY: sixteen floats.
    unsafe { _mm512_storeu_ps(sum_of.as_mut_ptr(), sums) };
    for pixel in 0..count {
        let table = shares.table(p, shifts[pixel], sum_of[pixel]);
        for first in (0..c).step_by(usize_of(SOME.unsigned_abs())) {
            budget.spend(16 * (c - first).min(SOME))?;
            for ch in (first..(first + SOME).min(c)).step_by(64) {
                let (at, mask) = (isize_of(ch), mask_64(c - ch));
                // SAFETY: the channels of the mask.
                let codes = unsafe { load_masked_64(mask, src[pixel].wrapping_offset(at)) };
                let codes = table.bytes(codes);
                // SAFETY: as above.
                unsafe { store_64(dst[pixel].wrapping_offset(at), mask, codes) };
            }
        }
    }
    Ok(())
}

/// The channels of `mask` from `at` on of sixteen pixels: four channels a register.
///
/// # Safety
/// They are readable; vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn of_channels(src: &[*mut u8; PIXELS], at: isize, mask: u16) -> [__m512i; 4] {
    let mut rows = [_mm_setzero_si128(); PIXELS];
    for (row, src) in rows.iter_mut().zip(src) {
        // SAFETY: the caller's promise.
        let codes = unsafe { load_masked_64(mask.into(), src.wrapping_offset(at)) };
        *row = _mm512_castsi512_si128(codes);
    }
    to_channels(std::array::from_fn(|i| {
        let four = _mm512_castsi128_si512(rows[i]);
        let four = _mm512_inserti32x4::<1>(four, rows[4 + i]);
        let four = _mm512_inserti32x4::<2>(four, rows[8 + i]);
        _mm512_inserti32x4::<3>(four, rows[12 + i])
    }))
}

/// Stores the codes of sixteen channels from `at` on, those of `mask`, to at most sixteen pixels.
///
/// # Safety
/// They are writable; vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn to_memory(codes: [[__m512i; 4]; 4], dst: &[*mut u8], at: isize, mask: u16) {
    let fours = to_pixels(codes);
    let lanes: [[__m128i; 4]; 4] = [
        fours.map(|four| _mm512_castsi512_si128(four)),
        fours.map(|four| _mm512_extracti32x4_epi32::<1>(four)),
        fours.map(|four| _mm512_extracti32x4_epi32::<2>(four)),
        fours.map(|four| _mm512_extracti32x4_epi32::<3>(four)),
    ];
    for (dst, &codes) in dst.iter().zip(lanes.as_flattened()) {
        // SAFETY: the caller's promise.
        unsafe { store_16(dst.wrapping_offset(at), mask, codes) };
    }
}

/// Channels from which on a pixel has a table of its shares.
const MANY: i64 = 512;

/// What parts become.
struct Shares {
    scale: __m512,
    most: __m512,
    zero_point: __m512i,
}

impl Shares {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new(p: &Problem) -> Self {
        Self {
            scale: _mm512_set1_ps(p.terms.scale),
            most: _mm512_set1_ps(f32::from(255 - p.terms.zero_point)),
            zero_point: _mm512_set1_epi32(p.terms.zero_point.into()),
        }
    }

    /// Sixteen of them, as 32-bit codes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn codes(&self, part: __m512, sum: __m512) -> __m512i {
        let share = _mm512_div_ps(_mm512_mul_ps(part, self.scale), sum);
        // A NaN becomes nothing, as the definition has it.
        let share = _mm512_min_ps(_mm512_max_ps(share, _mm512_setzero_ps()), self.most);
        _mm512_add_epi32(_mm512_cvtps_epi32(share), self.zero_point)
    }

    /// All that the codes of a pixel become.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn table(&self, p: &Problem, shift: u8, sum: f32) -> Lookup {
        // What each code counts there; behind the largest code, what that does.
        let mut parts = [p.table[255]; 256];
        let shift = usize::from(shift);
        parts[..256 - shift].copy_from_slice(&p.table[shift..]);
        let sum = _mm512_set1_ps(sum);
        let mut table = [0; 256];
        for (parts, entries) in parts.chunks_exact(16).zip(table.chunks_exact_mut(16)) {
            // SAFETY: sixteen floats.
            let part = unsafe { _mm512_loadu_ps(parts.as_ptr()) };
            let codes = _mm512_cvtepi32_epi8(self.codes(part, sum));
            // SAFETY: sixteen bytes of the table.
            unsafe { store_16(entries.as_mut_ptr(), u16::MAX, codes) };
        }
        Lookup::new(&table)
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
