//! Integer sums to codes where their bounds allow it, and those through the rest of the stage.

use super::Ordered;
use super::block::{Block, Terms};
use super::settle::Open;
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{MOST_PIXELS, MOST_VECTORS};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{in_order, load_masked_64, store_16};
use std::arch::x86_64::{
    __m512, __m512i, _CMP_NLT_UQ, _mm512_abs_ps, _mm512_adds_epi16, _mm512_castsi512_si128,
    _mm512_cmp_ps_mask, _mm512_cvtepi32_ps, _mm512_cvtepu32_ps, _mm512_cvtps_epi32,
    _mm512_extracti32x4_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_inserti32x4,
    _mm512_load_si512, _mm512_loadu_ps, _mm512_max_epu8, _mm512_max_ps, _mm512_min_epu8,
    _mm512_min_ps, _mm512_packs_epi32, _mm512_packus_epi16, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_sub_ps, _mm512_zextsi128_si512,
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

/// What codes and their bounds are made of, of sixteen channels, in registers; and where they go.
pub(super) struct Finish<'a> {
    stage: &'a Stage,
    pixels: &'a Pixels,
    terms: &'a Terms,
    place: &'a Place,
    has_aux: bool,
    multiplier: __m512,
    bias: __m512,
    by_sizes: __m512,
    by_norm: __m512,
    /// Half a code, less what is bounded in any case.
    left: __m512,
    /// The bounds of codes, less the zero point.
    low: f32,
    high: f32,
    zero_point: __m512i,
    /// The bounds of codes, as bytes.
    lowest: __m512i,
    highest: __m512i,
}

impl<'a> Finish<'a> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn new(
        (all, stage, block): (&Ordered<'_>, &'a Stage, &Block),
        (pixels, terms): (&'a Pixels, &'a Terms),
        place: &'a Place,
    ) -> Self {
        let load = |of_lanes: &[f32; 16]| {
            // SAFETY: sixteen floats.
            unsafe { _mm512_loadu_ps(of_lanes.as_ptr()) }
        };
        let p = all.job.problem;
        Self {
            stage,
            pixels,
            terms,
            place,
            has_aux: p.aux.is_some(),
            multiplier: load(&block.multiplier),
            bias: load(&block.bias),
            by_sizes: load(&block.by_sizes),
            by_norm: load(&block.by_norm),
            left: _mm512_sub_ps(_mm512_set1_ps(0.5), load(&block.by_bias)),
            low: all.codes.low,
            high: all.codes.high,
            zero_point: _mm512_set1_epi16(p.stage.zero_point.into()),
            lowest: _mm512_set1_epi8(p.stage.low.cast_signed()),
            highest: _mm512_set1_epi8(p.stage.high.cast_signed()),
        }
    }

    /// The block of channels, of all groups.
    pub(super) fn block(&self) -> i64 {
        self.place.block
    }

    /// The code of pixel `r`, less the zero point, and which of its channels are settled; notes those that are open.
    ///
    /// What lies beyond the codes counts as the outermost code, so that it is not open where it is near a tie. With
    /// `LATE` that is asked only where something is near one, and the code is not clamped yet: two steps less, which
    /// pays beside products.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn code<const LATE: bool>(
        &self,
        r: usize,
        (sum, size): (__m512i, __m512i),
        open: &mut Vec<Open>,
    ) -> (__m512i, u16) {
        let mut value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), self.multiplier, self.bias);
        if !LATE {
            value = self.clamped(value);
        }
        let code = _mm512_cvtps_epi32(value);
        let mut lanes = self.open(value, (r, size)) & self.place.mask;
        if lanes != 0 {
            if LATE {
                lanes = self.look_again((r, value, size), open);
            } else {
                self.note(r, lanes, open);
            }
        }
        (code, self.place.mask & !lanes)
    }

    /// In this order a NaN stays one.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn clamped(&self, value: __m512) -> __m512 {
        let (low, high) = (_mm512_set1_ps(self.low), _mm512_set1_ps(self.high));
        _mm512_min_ps(high, _mm512_max_ps(low, value))
    }

    /// Which of these values may lie beyond a tie.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn open(&self, value: __m512, (r, size): (usize, __m512i)) -> u16 {
        let nearest = _mm512_cvtepi32_ps(_mm512_cvtps_epi32(value));
        let off = _mm512_abs_ps(_mm512_sub_ps(value, nearest));
        let norm = _mm512_set1_ps(self.terms.norms[r]);
        let left = _mm512_fnmadd_ps(norm, self.by_norm, self.left);
        let left = _mm512_fnmadd_ps(_mm512_cvtepu32_ps(size), self.by_sizes, left);
        _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(off, left)
    }

    /// Which channels of a pixel are open once they are clamped; notes them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[cold]
    #[inline(never)]
    fn look_again(&self, (r, value, size): (usize, __m512, __m512i), open: &mut Vec<Open>) -> u16 {
        let lanes = self.open(self.clamped(value), (r, size)) & self.place.mask;
        if lanes != 0 {
            self.note(r, lanes, open);
        }
        lanes
    }

    /// Notes that these channels of a pixel are open.
    #[inline]
    fn note(&self, r: usize, lanes: u16, open: &mut Vec<Open>) {
        let place = self.place;
        open.push(Open {
            block: place.block,
            lanes,
            row: self.terms.rows[r],
            out: self.pixels.out[r].wrapping_offset(place.lane),
            aux: self.pixels.aux[r].wrapping_offset(place.lane),
        });
    }

    /// Puts the codes of up to four pixels, `count` from the `first` on, where they belong. `PLAIN` says that the
    /// stage ends there.
    ///
    /// # Safety
    /// Vector instructions present; the place's lanes of the pixels lie in the output, and with an addition in the
    /// auxiliary tensor.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) unsafe fn put<const PLAIN: bool>(
        &self,
        (first, count): (usize, usize),
        [a, b, c, d]: [__m512i; 4],
        settled: [u16; 4],
    ) {
        let low = _mm512_adds_epi16(_mm512_packs_epi32(a, b), self.zero_point);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(c, d), self.zero_point);
        let codes = in_order(_mm512_packus_epi16(low, high));
        let mut four = _mm512_min_epu8(_mm512_max_epu8(codes, self.lowest), self.highest);
        if !PLAIN {
            // SAFETY: the caller's promise.
            four = unsafe { self.rest(first, four) };
        }
        let sixteens = [
            _mm512_castsi512_si128(four),
            _mm512_extracti32x4_epi32::<1>(four),
            _mm512_extracti32x4_epi32::<2>(four),
            _mm512_extracti32x4_epi32::<3>(four),
        ];
        for (i, (bytes, settled)) in sixteens.into_iter().zip(settled).enumerate() {
            if i < count {
                let to = self.pixels.out[first + i].wrapping_offset(self.place.lane);
                // What is added may lie where the code goes, so each code is stored once.
                let mask = if PLAIN { self.place.mask } else { settled };
                // SAFETY: the caller's promise.
                unsafe { store_16(to, mask, bytes) };
            }
        }
    }

    /// Passes the codes of four pixels through the rest of the stage.
    ///
    /// # Safety
    /// As of [`Self::put`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline(never)]
    unsafe fn rest(&self, first: usize, four: __m512i) -> __m512i {
        let mut aux = _mm512_setzero_si512();
        if self.has_aux {
            let sixteen = |r: usize| {
                let from = self.pixels.aux[first + r].wrapping_offset(self.place.lane);
                // SAFETY: the caller's promise; behind the last pixel lies that one again.
                _mm512_castsi512_si128(unsafe { load_masked_64(self.place.mask.into(), from) })
            };
            aux = _mm512_zextsi128_si512(sixteen(0));
            aux = _mm512_inserti32x4::<1>(aux, sixteen(1));
            aux = _mm512_inserti32x4::<2>(aux, sixteen(2));
            aux = _mm512_inserti32x4::<3>(aux, sixteen(3));
        }
        self.stage.rest_of_codes(four, aux)
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
    what: (&Ordered<'_>, &Stage, &Block),
    totals: *mut __m512i,
    (pixels, terms): (&Pixels, &Terms),
    place: &Place,
    open: &mut Vec<Open>,
) {
    let finish = Finish::new(what, (pixels, terms), place);
    let count = pixels.count.min(MOST_PIXELS);
    for first in (0..count).step_by(4) {
        let mut codes = [_mm512_setzero_si512(); 4];
        let mut settled = [0; 4];
        for i in 0..4 {
            if first + i < count {
                let at = totals.wrapping_add((first + i) * place.stride + place.first);
                // SAFETY: the caller's promise.
                let sum = unsafe { _mm512_load_si512(at.cast_const().cast()) };
                let at = at.wrapping_add(MOST_VECTORS);
                // SAFETY: as above; the sizes lie behind the sums.
                let size = unsafe { _mm512_load_si512(at.cast_const().cast()) };
                (codes[i], settled[i]) = finish.code::<false>(first + i, (sum, size), open);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { finish.put::<PLAIN>((first, count - first), codes, settled) };
    }
}
