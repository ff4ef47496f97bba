//! The arithmetic of [`npu_uapi::requantise`] on vectors: 32-bit sums to 8-bit codes.

use super::channels::Channels;
use super::lanes::saturate_lanes;
use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_epi16, _mm512_add_epi32, _mm512_add_ps, _mm512_adds_epi16,
    _mm512_cvtepi32_ps, _mm512_cvtps_epi32, _mm512_max_epu8, _mm512_max_ps, _mm512_min_epi16,
    _mm512_min_epu8, _mm512_min_ps, _mm512_mul_ps, _mm512_packs_epi32, _mm512_packus_epi16,
    _mm512_roundscale_ps, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_ps,
};

/// `requantise` and the clamp behind it, in one: rounding is monotonic and keeps integers, so the
/// tighter bounds of the clamp may be applied before it, and all of them may be applied behind it to
/// what saturates on its way to a byte.
#[derive(Clone, Copy)]
pub(crate) struct Requantise {
    low: __m512,
    pub(super) high: __m512,
    zero_point: __m512i,
    zero_point_float: __m512,
    zero_point_16: __m512i,
    /// `high` less the zero point.
    high_16: __m512i,
    low_8: __m512i,
    high_8: __m512i,
    /// No zero point, and all codes are within the bounds: saturating to bytes is all.
    bare: bool,
    /// Of [`Channels`]: products need no clamp to be rounded to integers.
    small: bool,
}

impl Requantise {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn new(zero_point: u8, low: u8, high: u8) -> Self {
        // Differences of bytes are exact in f32.
        let less_zero_point = |code: u8| f32::from(i16::from(code) - i16::from(zero_point));
        Self {
            low: _mm512_set1_ps(less_zero_point(low)),
            high: _mm512_set1_ps(less_zero_point(high)),
            zero_point: _mm512_set1_epi32(zero_point.into()),
            zero_point_float: _mm512_set1_ps(zero_point.into()),
            zero_point_16: _mm512_set1_epi16(zero_point.into()),
            high_16: _mm512_set1_epi16(i16::from(high) - i16::from(zero_point)),
            low_8: _mm512_set1_epi8(low.cast_signed()),
            high_8: _mm512_set1_epi8(high.cast_signed()),
            bare: (zero_point, low, high) == (0, 0, u8::MAX),
            small: false,
        }
    }

    /// The same for multipliers of which [`Channels::small`] is known.
    pub(crate) fn with_multipliers(self, channels: Channels) -> Self {
        Self { small: channels.small, ..self }
    }

    /// Whether [`Self::bare_lanes`] are [`Self::lanes`].
    pub(super) fn is_bare(&self) -> bool {
        self.bare && self.small
    }

    /// 64 codes as bytes, in the order of [`pack_lanes`].
    ///
    /// A NaN, and what lies below all integers, rounds to the lowest integer, which saturates to the
    /// lowest code, as the definition has it; what lies above all integers would too, so it is clamped.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn lanes(self, sums: [__m512i; 4], multipliers: [__m512; 4]) -> __m512i {
        if self.small {
            return self.small_lanes(sums, multipliers);
        }
        let mut codes = sums;
        for (code, multipliers) in codes.iter_mut().zip(multipliers) {
            let product = _mm512_mul_ps(_mm512_cvtepi32_ps(*code), multipliers);
            // In this order, a NaN stays one.
            *code = _mm512_cvtps_epi32(_mm512_min_ps(self.high, product));
        }
        self.packed(codes)
    }

    /// The same where multipliers are small.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn small_lanes(self, sums: [__m512i; 4], multipliers: [__m512; 4]) -> __m512i {
        self.packed(rounded(sums, multipliers))
    }

    /// The same where, besides, there is no zero point, and all codes are within the bounds.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn bare_lanes(sums: [__m512i; 4], multipliers: [__m512; 4]) -> __m512i {
        saturate_lanes(rounded(sums, multipliers))
    }

    /// The same where multipliers are small, for what has the bounds itself.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn unbounded_lanes(&self, sums: [__m512i; 4], multipliers: [__m512; 4]) -> __m512i {
        let [a, b, c, d] = rounded(sums, multipliers);
        let low = _mm512_adds_epi16(_mm512_packs_epi32(a, b), self.zero_point_16);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(c, d), self.zero_point_16);
        _mm512_packus_epi16(low, high)
    }

    /// Half of [`Self::bare_lanes`]: 32 codes as 16-bit integers, not yet saturated to bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn bare_half(sums: [__m512i; 2], multipliers: [__m512; 2]) -> __m512i {
        let [a, b] = rounded(sums, multipliers);
        _mm512_packs_epi32(a, b)
    }

    /// Half of [`Self::lanes`]: 32 codes as 16-bit integers, not yet saturated to bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn half<const SMALL: bool>(
        &self,
        sums: [__m512i; 2],
        multipliers: [__m512; 2],
    ) -> __m512i {
        let mut codes = sums;
        for (code, multipliers) in codes.iter_mut().zip(multipliers) {
            let product = _mm512_mul_ps(_mm512_cvtepi32_ps(*code), multipliers);
            let product = if SMALL { product } else { _mm512_min_ps(self.high, product) };
            *code = _mm512_cvtps_epi32(product);
        }
        _mm512_adds_epi16(_mm512_packs_epi32(codes[0], codes[1]), self.zero_point_16)
    }

    /// Both halves of [`Self::lanes`] as bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn joined(&self, low: __m512i, high: __m512i) -> __m512i {
        self.clamped(_mm512_packus_epi16(low, high))
    }

    /// Both halves as bytes, for what has the bounds itself or needs none.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn unbounded(low: __m512i, high: __m512i) -> __m512i {
        _mm512_packus_epi16(low, high)
    }

    /// Rounded products as bytes, in the order of [`pack_lanes`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn packed(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        let low = self.with_zero_point(_mm512_packs_epi32(a, b));
        let high = self.with_zero_point(_mm512_packs_epi32(c, d));
        _mm512_max_epu8(_mm512_packus_epi16(low, high), self.low_8)
    }

    /// Rounded products, saturated to 16 bits, as codes that are `high` at most.
    ///
    /// Below that bound, the zero point can be added without saturation: on Zen 4, additions that saturate
    /// take a multiplier.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn with_zero_point(&self, rounded: __m512i) -> __m512i {
        _mm512_add_epi16(_mm512_min_epi16(rounded, self.high_16), self.zero_point_16)
    }

    /// Bytes within the bounds.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn clamped(&self, bytes: __m512i) -> __m512i {
        _mm512_min_epu8(_mm512_max_epu8(bytes, self.low_8), self.high_8)
    }

    /// 16 codes, as integers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn codes(self, accumulators: __m512i, multipliers: __m512) -> __m512i {
        let product = _mm512_mul_ps(_mm512_cvtepi32_ps(accumulators), multipliers);
        self.finish(product)
    }

    /// 16 codes as floats.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn floats(self, accumulators: __m512i, multipliers: __m512) -> __m512 {
        const NEAREST_QUIETLY: i32 = 8;
        let product = _mm512_mul_ps(_mm512_cvtepi32_ps(accumulators), multipliers);
        let clamped = _mm512_min_ps(_mm512_max_ps(product, self.low), self.high);
        let rounded = _mm512_roundscale_ps::<NEAREST_QUIETLY>(clamped);
        _mm512_add_ps(rounded, self.zero_point_float)
    }

    /// Rounds values that lack the zero point, saturated to the clamp.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn finish(self, values: __m512) -> __m512i {
        let clamped = _mm512_min_ps(_mm512_max_ps(values, self.low), self.high);
        _mm512_add_epi32(_mm512_cvtps_epi32(clamped), self.zero_point)
    }
}

/// Sums times small multipliers, rounded.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn rounded<const VECTORS: usize>(
    sums: [__m512i; VECTORS],
    multipliers: [__m512; VECTORS],
) -> [__m512i; VECTORS] {
    let mut rounded = sums;
    for (code, multipliers) in rounded.iter_mut().zip(multipliers) {
        *code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(*code), multipliers));
    }
    rounded
}
