//! Integer sums to codes where their bounds allow it, and those through the rest of the stage.

use super::Ordered;
use super::block::Block;
use crate::kernel::conv::avx512vnni::float::Unsettled;
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{MOST_VECTORS, ROOM};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{load_64, load_masked_64, store_16};
use std::arch::x86_64::{
    __m512i, _CMP_NLT_UQ, _mm512_abs_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_castsi512_si128,
    _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtepu32_ps,
    _mm512_cvtps_epi32, _mm512_extracti32x4_epi32, _mm512_fmadd_ps, _mm512_inserti32x4,
    _mm512_load_si512, _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_store_si512, _mm512_sub_ps,
    _mm512_zextsi128_si512,
};

/// Where the sums of a block lie and their codes go.
pub(super) struct Place {
    /// First pixel of the tile.
    pub(super) start: i64,
    /// Of all groups.
    pub(super) block: i64,
    /// Its first channel in a pixel, and the channels that exist.
    pub(super) lane: isize,
    pub(super) mask: u16,
    /// Its vector of the first pixel, and how many a pixel has.
    pub(super) first: usize,
    pub(super) stride: usize,
}

/// The vector at `from`, which becomes zero.
///
/// # Safety
/// It may be read and written.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn take(from: *mut __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    let found = unsafe { _mm512_load_si512(from.cast_const().cast()) };
    let none = _mm512_setzero_si512();
    // SAFETY: as above.
    unsafe { _mm512_store_si512(from.cast(), none) };
    found
}

/// The codes of a block of a tile; notes those that are not settled. `PLAIN` says that the stage ends there.
///
/// # Safety
/// Vector instructions present; the sums of the place are there, and in each of `pixels` its lanes lie in
/// the output, and with an addition in the auxiliary tensor.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline(never)]
pub(super) unsafe fn finish<const PLAIN: bool>(
    (all, stage, block): (&Ordered<'_>, &Stage, &Block),
    totals: *mut __m512i,
    pixels: &Pixels,
    norms: &[f32; ROOM],
    place: &Place,
    unsettled: &mut Vec<Unsettled>,
) {
    let sizes = totals.wrapping_add(MOST_VECTORS);
    let (low, high) = (_mm512_set1_ps(all.codes.low), _mm512_set1_ps(all.codes.high));
    let half = _mm512_set1_ps(0.5);
    let zero_point = _mm512_set1_epi32(all.codes.zero_point.into());
    let [multiplier, bias, by_sizes, by_norm, by_bias] =
        [&block.multiplier, &block.bias, &block.by_sizes, &block.by_norm, &block.by_bias]
            // SAFETY: sixteen floats.
            .map(|of_lanes| unsafe { _mm512_loadu_ps(of_lanes.as_ptr()) });
    let mut codes = [[0u8; 16]; ROOM];
    let mut settled = [0u16; ROOM];
    for r in 0..pixels.count.min(ROOM) {
        let at = r * place.stride + place.first;
        // SAFETY: the caller's promise.
        let total = unsafe { take(totals.wrapping_add(at)) };
        // SAFETY: as above.
        let size = unsafe { _mm512_load_si512(sizes.wrapping_add(at).cast_const().cast()) };
        let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), multiplier, bias);
        // In this order a NaN stays one.
        let clamped = _mm512_min_ps(high, _mm512_max_ps(low, value));
        let code = _mm512_cvtps_epi32(clamped);
        let off = _mm512_abs_ps(_mm512_sub_ps(clamped, _mm512_cvtepi32_ps(code)));
        let bound = _mm512_fmadd_ps(_mm512_set1_ps(norms[r]), by_norm, by_bias);
        let bound = _mm512_fmadd_ps(_mm512_cvtepu32_ps(size), by_sizes, bound);
        let open = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_add_ps(off, bound), half) & place.mask;
        let bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(code, zero_point));
        if PLAIN {
            let to = pixels.out[r].wrapping_offset(place.lane);
            // SAFETY: the caller's promise.
            unsafe { store_16(to, place.mask, bytes) };
        } else {
            // SAFETY: sixteen bytes.
            unsafe { store_16(codes[r].as_mut_ptr(), u16::MAX, bytes) };
            settled[r] = place.mask & !open;
        }
        if open != 0 {
            let pixel = place.start + i64::try_from(r).unwrap_or(0);
            unsettled.push(Unsettled { block: place.block, pixel, lanes: open });
        }
    }
    if !PLAIN {
        let has_aux = all.job.problem.aux.is_some();
        // SAFETY: the caller's promise.
        unsafe { rest(stage, &codes, &settled, pixels, place, has_aux) };
    }
}

/// Passes settled codes through the rest of the stage.
///
/// # Safety
/// As of [`finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline(never)]
unsafe fn rest(
    stage: &Stage,
    codes: &[[u8; 16]; ROOM],
    settled: &[u16; ROOM],
    pixels: &Pixels,
    place: &Place,
    has_aux: bool,
) {
    for first in (0..pixels.count).step_by(4) {
        // SAFETY: 64 bytes: there is room for whole fours of pixels.
        let four = unsafe { load_64(codes[first..first + 4].as_ptr().cast()) };
        let mut aux = _mm512_setzero_si512();
        if has_aux {
            let sixteen = |r: usize| {
                let from = pixels.aux[first + r].wrapping_offset(place.lane);
                // SAFETY: the caller's promise; behind the last pixel lies that one again.
                _mm512_castsi512_si128(unsafe { load_masked_64(place.mask.into(), from) })
            };
            aux = _mm512_zextsi128_si512(sixteen(0));
            aux = _mm512_inserti32x4::<1>(aux, sixteen(1));
            aux = _mm512_inserti32x4::<2>(aux, sixteen(2));
            aux = _mm512_inserti32x4::<3>(aux, sixteen(3));
        }
        let four = stage.rest_of_codes(four, aux);
        let sixteens = [
            _mm512_castsi512_si128(four),
            _mm512_extracti32x4_epi32::<1>(four),
            _mm512_extracti32x4_epi32::<2>(four),
            _mm512_extracti32x4_epi32::<3>(four),
        ];
        for (r, bytes) in (first..pixels.count).zip(sixteens) {
            // What is added may lie where the code goes, so each code is stored once.
            let to = pixels.out[r].wrapping_offset(place.lane);
            // SAFETY: the caller's promise.
            unsafe { store_16(to, settled[r], bytes) };
        }
    }
}
