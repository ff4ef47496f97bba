//! Integer sums to codes where their bounds allow it, and those through the rest of the stage.

use super::Ordered;
use super::block::{Block, Terms};
use super::settle::Open;
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{MOST_PIXELS, MOST_VECTORS, ROOM};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{load_64, load_masked_64, store_16};
use std::arch::x86_64::{
    __m128i, __m512, __m512i, _CMP_NLT_UQ, _mm512_abs_ps, _mm512_add_epi32, _mm512_add_ps,
    _mm512_castsi512_si128, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps,
    _mm512_cvtepu32_ps, _mm512_cvtps_epi32, _mm512_extracti32x4_epi32, _mm512_fmadd_ps,
    _mm512_inserti32x4, _mm512_load_si512, _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_sub_ps, _mm512_zextsi128_si512,
};

/// Where the sums of a block lie and their codes go.
pub(super) struct Place {
    /// Of all groups.
    pub(super) block: i64,
    /// Its first channel in a pixel, and the channels that exist.
    pub(super) lane: isize,
    pub(super) mask: u16,
    /// Its vector of the first pixel, and how many a pixel has.
    pub(super) first: usize,
    pub(super) stride: usize,
}

/// What codes and their bounds are made of, of sixteen channels, in registers.
pub(super) struct Bounds {
    multiplier: __m512,
    bias: __m512,
    by_sizes: __m512,
    by_norm: __m512,
    by_bias: __m512,
    low: __m512,
    high: __m512,
    zero_point: __m512i,
}

impl Bounds {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn new(all: &Ordered<'_>, block: &Block) -> Self {
        let load = |of_lanes: &[f32; 16]| {
            // SAFETY: sixteen floats.
            unsafe { _mm512_loadu_ps(of_lanes.as_ptr()) }
        };
        Self {
            multiplier: load(&block.multiplier),
            bias: load(&block.bias),
            by_sizes: load(&block.by_sizes),
            by_norm: load(&block.by_norm),
            by_bias: load(&block.by_bias),
            low: _mm512_set1_ps(all.codes.low),
            high: _mm512_set1_ps(all.codes.high),
            zero_point: _mm512_set1_epi32(all.codes.zero_point.into()),
        }
    }

    /// The codes of sums, and which of them are open.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn codes(&self, sum: __m512i, size: __m512i, norm: f32) -> (__m128i, u16) {
        let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), self.multiplier, self.bias);
        // In this order a NaN stays one.
        let clamped = _mm512_min_ps(self.high, _mm512_max_ps(self.low, value));
        let code = _mm512_cvtps_epi32(clamped);
        let off = _mm512_abs_ps(_mm512_sub_ps(clamped, _mm512_cvtepi32_ps(code)));
        let bound = _mm512_fmadd_ps(_mm512_set1_ps(norm), self.by_norm, self.by_bias);
        let bound = _mm512_fmadd_ps(_mm512_cvtepu32_ps(size), self.by_sizes, bound);
        let half = _mm512_set1_ps(0.5);
        let open = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_add_ps(off, bound), half);
        (_mm512_cvtepi32_epi8(_mm512_add_epi32(code, self.zero_point)), open)
    }
}

/// Waiting of the pixels of a tile that the rest of the stage is to see, and which of them are settled.
pub(super) struct Waiting {
    codes: [[u8; 16]; ROOM],
    settled: [u16; ROOM],
}

impl Waiting {
    pub(super) fn none() -> Self {
        Self { codes: [[0; 16]; ROOM], settled: [0; ROOM] }
    }
}

/// Puts the codes of pixel `r` where they belong, in the output or, unless the stage is `PLAIN`, into
/// `waiting`; notes those that are open.
///
/// # Safety
/// Vector instructions present; the place's lanes of the pixel lie in the output.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) unsafe fn put<const PLAIN: bool>(
    (bytes, open): (__m128i, u16),
    (r, pixels, terms): (usize, &Pixels, &Terms),
    place: &Place,
    waiting: &mut Waiting,
    all_open: &mut Vec<Open>,
) {
    let open = open & place.mask;
    if PLAIN {
        let to = pixels.out[r].wrapping_offset(place.lane);
        // SAFETY: the caller's promise.
        unsafe { store_16(to, place.mask, bytes) };
    } else {
        // SAFETY: sixteen bytes.
        unsafe { store_16(waiting.codes[r].as_mut_ptr(), u16::MAX, bytes) };
        waiting.settled[r] = place.mask & !open;
    }
    if open != 0 {
        all_open.push(Open {
            block: place.block,
            lanes: open,
            row: terms.rows[r],
            out: pixels.out[r].wrapping_offset(place.lane),
            aux: pixels.aux[r].wrapping_offset(place.lane),
        });
    }
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
    (pixels, terms): (&Pixels, &Terms),
    place: &Place,
    open: &mut Vec<Open>,
) {
    let bounds = Bounds::new(all, block);
    let mut waiting = Waiting::none();
    for r in 0..pixels.count.min(MOST_PIXELS) {
        let at = totals.wrapping_add(r * place.stride + place.first).cast_const();
        // SAFETY: the caller's promise.
        let sum = unsafe { _mm512_load_si512(at.cast()) };
        // SAFETY: as above; the sizes lie behind the sums.
        let size = unsafe { _mm512_load_si512(at.wrapping_add(MOST_VECTORS).cast()) };
        let found = bounds.codes(sum, size, terms.norms[r]);
        // SAFETY: the caller's promise.
        unsafe { put::<PLAIN>(found, (r, pixels, terms), place, &mut waiting, open) };
    }
    if !PLAIN {
        let has_aux = all.job.problem.aux.is_some();
        // SAFETY: the caller's promise.
        unsafe { rest(stage, &waiting, pixels, place, has_aux) };
    }
}

/// Passes settled codes through the rest of the stage.
///
/// # Safety
/// As of [`finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline(never)]
pub(super) unsafe fn rest(
    stage: &Stage,
    Waiting { codes, settled }: &Waiting,
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
