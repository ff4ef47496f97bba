//! Two tensors' codes: their sums and products.

use super::lanes::saturate_lanes;
use super::requantise::Requantise;
use npu_uapi::requantise::{AddTerms, MulTerms};
use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_cvtps_epi32, _mm512_fmadd_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_sub_ps,
};

/// The addition of two tensors' codes.
#[derive(Clone, Copy)]
pub(crate) struct Addition {
    first: __m512,
    second: __m512,
    offset: __m512,
    finish: Requantise,
}

impl Addition {
    /// The addition, clamped to `low..=high`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn new(terms: AddTerms, low: u8, high: u8) -> Self {
        Self {
            first: _mm512_set1_ps(terms.first),
            second: _mm512_set1_ps(terms.second),
            offset: _mm512_set1_ps(terms.offset),
            finish: Requantise::new(0, low, high),
        }
    }

    /// 16 sums of codes of 0..=255 as integers, to be saturated to bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn rounded(self, first: __m512, second: __m512) -> __m512i {
        let inner = _mm512_fmadd_ps(second, self.second, self.offset);
        let sum = _mm512_fmadd_ps(first, self.first, inner);
        _mm512_cvtps_epi32(_mm512_min_ps(self.finish.high, sum)) // in this order, a NaN stays one
    }

    /// The same where no sum leaves 32 bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn rounded_within(&self, first: __m512, second: __m512) -> __m512i {
        let inner = _mm512_fmadd_ps(second, self.second, self.offset);
        _mm512_cvtps_epi32(_mm512_fmadd_ps(first, self.first, inner))
    }

    /// 16 sums of codes, all as integers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn codes(self, first: __m512i, second: __m512i) -> __m512i {
        let inner = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), self.second, self.offset);
        self.finish.finish(_mm512_fmadd_ps(_mm512_cvtepi32_ps(first), self.first, inner))
    }

    /// Codes of either operand as floats.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn floats(codes: [__m512i; 4]) -> [__m512; 4] {
        let mut out = [_mm512_setzero_ps(); 4];
        for (out, codes) in out.iter_mut().zip(codes) {
            *out = _mm512_cvtepi32_ps(codes);
        }
        out
    }

    /// 64 sums of codes, which are given as floats in the order of [`spread_64`], as bytes in order.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn bytes<const WITHIN: bool>(
        &self,
        first: [__m512; 4],
        second: [__m512; 4],
    ) -> __m512i {
        let mut sums = [_mm512_setzero_si512(); 4];
        for (sum, (first, second)) in sums.iter_mut().zip(first.into_iter().zip(second)) {
            *sum = match WITHIN {
                true => self.rounded_within(first, second),
                false => self.rounded(first, second),
            };
        }
        self.finish.clamped(saturate_lanes(sums))
    }
}

/// Whether no sum of two codes leaves 32 bits.
pub(crate) fn is_bounded(terms: AddTerms) -> bool {
    let most = 255.0 * (terms.first.abs() + terms.second.abs()) + terms.offset.abs();
    most < 1e9 // not so with a NaN
}

/// The product of two tensors' codes.
#[derive(Clone, Copy)]
pub(crate) struct Multiplication {
    multiplier: __m512,
    first_zero_point: __m512,
    second_zero_point: __m512,
    zero_point: __m512,
    finish: Requantise,
}

impl Multiplication {
    /// The product, clamped to `low..=high`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn new(terms: MulTerms, low: u8, high: u8) -> Self {
        Self {
            multiplier: _mm512_set1_ps(terms.multiplier),
            first_zero_point: _mm512_set1_ps(terms.first_zero_point.into()),
            second_zero_point: _mm512_set1_ps(terms.second_zero_point.into()),
            zero_point: _mm512_set1_ps(terms.zero_point.into()),
            finish: Requantise::new(0, low, high),
        }
    }

    /// Codes of the first and of the second operand as floats, less their zero points.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn floats<const SECOND: bool>(&self, codes: [__m512i; 4]) -> [__m512; 4] {
        let zero_point = if SECOND { self.second_zero_point } else { self.first_zero_point };
        let mut out = [_mm512_setzero_ps(); 4];
        for (out, codes) in out.iter_mut().zip(codes) {
            *out = _mm512_sub_ps(_mm512_cvtepi32_ps(codes), zero_point);
        }
        out
    }

    /// 64 products of codes as bytes in order. The codes are given as floats in the order of
    /// [`spread_64`], less their zero points.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn bytes<const WITHIN: bool>(
        &self,
        first: [__m512; 4],
        second: [__m512; 4],
    ) -> __m512i {
        let mut codes = [_mm512_setzero_si512(); 4];
        for (code, (first, second)) in codes.iter_mut().zip(first.into_iter().zip(second)) {
            let scaled = _mm512_mul_ps(_mm512_mul_ps(first, second), self.multiplier);
            let value = _mm512_add_ps(scaled, self.zero_point);
            // In this order, a NaN stays one, and becomes the lowest integer.
            let value = if WITHIN { value } else { _mm512_min_ps(self.finish.high, value) };
            *code = _mm512_cvtps_epi32(value);
        }
        self.finish.clamped(saturate_lanes(codes))
    }
}

/// Whether no product of two codes leaves 32 bits.
pub(crate) fn is_bounded_product(terms: MulTerms) -> bool {
    65025.0 * terms.multiplier.abs() < 1e9 // not so with a NaN
}
