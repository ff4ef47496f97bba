//! Channel records: bias and multiplier of 16 channels, and what all records of a command have in common.

use super::memory::load_64;
use crate::kernel::Stop;
use crate::kernel::split::Split;
use std::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_castsi512_ps, _mm512_mask_cmpge_epi32_mask,
    _mm512_mask_test_epi32_mask, _mm512_permutex2var_epi32, _mm512_set1_epi32, _mm512_setr_epi32,
    _mm512_setzero_si512, _mm512_shuffle_i64x2,
};

/// Bias and multiplier of 16 channels.
///
/// # Safety
/// The 256 bytes of 16 records at `from` must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) unsafe fn load_records(from: *const u8) -> (__m512i, __m512) {
    // Of two vectors of four records each: eight biases, then eight multipliers.
    let pick = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    let mut four = [_mm512_setzero_si512(); 4];
    for (index, four) in four.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *four = unsafe { load_64(from.wrapping_add(64 * index)) };
    }
    let [r0, r1, r2, r3] = four;
    let low = _mm512_permutex2var_epi32(r0, pick, r1);
    let high = _mm512_permutex2var_epi32(r2, pick, r3);
    let bias = _mm512_shuffle_i64x2::<0b01_00_01_00>(low, high);
    let multiplier = _mm512_shuffle_i64x2::<0b11_10_11_10>(low, high);
    (bias, _mm512_castsi512_ps(multiplier))
}

/// What a kernel may take for granted about the channels of a command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Channels {
    /// All weight zero points are zero.
    pub(crate) symmetric: bool,
    /// All multipliers lie between -1 and 1, so that products with integers stay in their range.
    pub(crate) small: bool,
}

/// Looks through `count` records at `from`.
///
/// # Safety
/// Vector instructions present; the records, rounded up to 16, must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn some_channels(from: *const u8, count: usize) -> Channels {
    const SECOND_OF_FOUR: u16 = 0x2222;
    const THIRD_OF_FOUR: u16 = 0x4444;
    let no_sign = _mm512_set1_epi32(i32::MAX);
    let one = _mm512_set1_epi32(1f32.to_bits().cast_signed());
    let (mut zero_points, mut large) = (0, 0);
    for first in (0..count).step_by(4) {
        let used = u16::MAX >> (16 - 4 * (count - first).min(4));
        // SAFETY: the caller's promise; records come in sixteens, so four from any used one exist.
        let four = unsafe { load_64(from.wrapping_add(first * 16)) };
        zero_points |= _mm512_mask_test_epi32_mask(used & THIRD_OF_FOUR, four, four);
        // As integers, magnitudes of floats are in order, NaN last.
        let magnitude = _mm512_and_si512(four, no_sign);
        large |= _mm512_mask_cmpge_epi32_mask(used & SECOND_OF_FOUR, magnitude, one);
    }
    Channels { symmetric: zero_points == 0, small: large == 0 }
}

/// What the `count` records at `from` have in common.
///
/// # Safety
/// As of [`some_channels`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(crate) unsafe fn channels(
    from: *const u8,
    count: usize,
    split: &Split<'_>,
) -> Result<Channels, Stop> {
    /// Records between two looks whether the job is to end: some milliseconds.
    const SOME: usize = 1 << 20;
    let mut all = Channels { symmetric: true, small: true };
    for first in (0..count).step_by(SOME) {
        if first > 0 {
            split.poll()?;
        }
        let at = from.wrapping_add(first * 16);
        // SAFETY: the caller's promise; `SOME` is a multiple of 16.
        let some = unsafe { some_channels(at, (count - first).min(SOME)) };
        all.symmetric &= some.symmetric;
        all.small &= some.small;
    }
    Ok(all)
}
