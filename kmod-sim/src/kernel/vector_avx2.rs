//! AVX2 building blocks that the kernels on 256-bit vectors share: raw loads and stores, channel records,
//! the arithmetic of [`npu_uapi::requantise`] on 8 lanes, tables.
//!
//! Equal bits come from equal steps, as in [`super::vector`]. There are no masks: what is narrower than
//! a vector goes through the stack.

pub(crate) mod stage;

use npu_uapi::requantise::{AddTerms, MulTerms};
use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_loadl_epi64, _mm_loadu_si128, _mm_storeu_si128, _mm256_add_ps,
    _mm256_adds_epi16, _mm256_broadcastsi128_si256, _mm256_castsi128_si256, _mm256_castsi256_ps,
    _mm256_castsi256_si128, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtps_epi32,
    _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_inserti128_si256, _mm256_loadu_si256,
    _mm256_max_epu8, _mm256_max_ps, _mm256_min_epu8, _mm256_min_ps, _mm256_mul_ps,
    _mm256_packs_epi32, _mm256_packus_epi16, _mm256_permutevar8x32_epi32, _mm256_round_ps,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_storeu_si256, _mm256_sub_ps,
    _mm256_subs_epi8, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm256_xor_si256,
};

/// Whether this processor has every instruction that the kernels on 256 bits use.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Whether it has dot products of bytes on 256 bits.
pub(crate) fn has_vnni() -> bool {
    is_x86_feature_detected!("avxvnni")
}

/// 32 bytes.
///
/// # Safety
/// They must be readable.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) unsafe fn load_32(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// 64 bytes.
///
/// # Safety
/// They must be readable.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) unsafe fn load_64(from: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    let low = unsafe { load_32(from) };
    // SAFETY: the caller's promise.
    [low, unsafe { load_32(from.wrapping_add(32)) }]
}

/// The first `len` bytes at `from`, at most 32, and zeros behind them.
///
/// # Safety
/// So many bytes must be readable.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) unsafe fn load_some(from: *const u8, len: usize) -> __m256i {
    match len {
        // SAFETY: the caller's promise.
        32 => unsafe { load_32(from) },
        16 => {
            // SAFETY: the caller's promise.
            let low = unsafe { _mm_loadu_si128(from.cast()) };
            _mm256_inserti128_si256::<0>(_mm256_setzero_si256(), low)
        }
        _ => {
            let mut bytes = [0u8; 32];
            // SAFETY: the caller's promise; the array has 32.
            unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), len.min(32)) };
            // SAFETY: the array.
            unsafe { load_32(bytes.as_ptr()) }
        }
    }
}

/// Stores the first `len` of 32 bytes.
///
/// # Safety
/// So many bytes must be writable.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) unsafe fn store_some(to: *mut u8, len: usize, bytes: __m256i) {
    match len {
        // SAFETY: the caller's promise.
        32 => unsafe { _mm256_storeu_si256(to.cast(), bytes) },
        16 => {
            let low = _mm256_castsi256_si128(bytes);
            // SAFETY: the caller's promise.
            unsafe { _mm_storeu_si128(to.cast(), low) }
        }
        _ => {
            let mut all = [0u8; 32];
            // SAFETY: the array.
            unsafe { _mm256_storeu_si256(all.as_mut_ptr().cast(), bytes) };
            // SAFETY: the caller's promise; the array has 32.
            unsafe { all.as_ptr().copy_to_nonoverlapping(to, len.min(32)) };
        }
    }
}

/// The upper 16 bytes, in the place of the lower.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) fn upper(bytes: __m256i) -> __m256i {
    _mm256_castsi128_si256(_mm256_extracti128_si256::<1>(bytes))
}

/// Eight bytes as integers.
///
/// # Safety
/// They must be readable.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) unsafe fn load_codes(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(from.cast()) })
}

/// 32 bytes as four vectors of 8 codes, in order.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) fn unpack_32(bytes: __m256i) -> [__m256i; 4] {
    let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
    let second = |half: __m128i| std::arch::x86_64::_mm_srli_si128::<8>(half);
    [
        _mm256_cvtepu8_epi32(low),
        _mm256_cvtepu8_epi32(second(low)),
        _mm256_cvtepu8_epi32(high),
        _mm256_cvtepu8_epi32(second(high)),
    ]
}

/// Four vectors of 8 integers of any size as 32 bytes in order, saturated.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) fn saturate_32([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let lanes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    in_order(lanes)
}

/// What two levels of packing put into lanes, in order.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn in_order(lanes: __m256i) -> __m256i {
    _mm256_permutevar8x32_epi32(lanes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// The words of eight channel records: biases, multipliers, weight zero points.
#[derive(Clone, Copy)]
pub(crate) struct Records {
    pub(crate) bias: __m256i,
    pub(crate) multiplier: __m256,
    pub(crate) zero_point: __m256i,
}

impl Records {
    /// Those of 16 channels.
    ///
    /// # Safety
    /// The 256 bytes of 16 records at `from` must be readable.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) unsafe fn load_16(from: *const u8) -> [Self; 2] {
        // SAFETY: the caller's promise.
        let low = unsafe { Self::load(from) };
        // SAFETY: the caller's promise.
        [low, unsafe { Self::load(from.wrapping_add(128)) }]
    }

    /// # Safety
    /// The 128 bytes of 8 records at `from` must be readable.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn load(from: *const u8) -> Self {
        let mut pairs = [_mm256_setzero_si256(); 4];
        for (index, pair) in pairs.iter_mut().enumerate() {
            let at = from.wrapping_add(16 * index);
            // SAFETY: the caller's promise.
            let low = unsafe { _mm_loadu_si128(at.cast()) };
            // SAFETY: the caller's promise.
            let high = unsafe { _mm_loadu_si128(at.wrapping_add(64).cast()) };
            *pair = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
        }
        let [r0, r1, r2, r3] = pairs;
        let (low_01, low_23) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpacklo_epi32(r2, r3));
        let (high_01, high_23) = (_mm256_unpackhi_epi32(r0, r1), _mm256_unpackhi_epi32(r2, r3));
        Self {
            bias: _mm256_unpacklo_epi64(low_01, low_23),
            multiplier: _mm256_castsi256_ps(_mm256_unpackhi_epi64(low_01, low_23)),
            zero_point: _mm256_unpacklo_epi64(high_01, high_23),
        }
    }
}

/// `requantise` and the clamp behind it; see [`super::vector::Requantise`] on why they may be one.
#[derive(Clone, Copy)]
pub(crate) struct Requantise {
    low: __m256,
    high: __m256,
    zero_point: __m256,
    zero_point_16: __m256i,
    clamp: Clamp,
}

impl Requantise {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn new(zero_point: u8, low: u8, high: u8) -> Self {
        // Differences of bytes are exact in f32.
        let less_zero_point = |code: u8| f32::from(i16::from(code) - i16::from(zero_point));
        Self {
            low: _mm256_set1_ps(less_zero_point(low)),
            high: _mm256_set1_ps(less_zero_point(high)),
            zero_point: _mm256_set1_ps(zero_point.into()),
            zero_point_16: _mm256_set1_epi16(zero_point.into()),
            clamp: Clamp::new(low, high),
        }
    }

    /// 32 sums as codes, in order.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn bytes(&self, sums: [__m256i; 4], multipliers: [__m256; 4]) -> __m256i {
        let mut values = multipliers;
        for (value, sums) in values.iter_mut().zip(sums) {
            *value = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), *value);
        }
        self.finish(values)
    }

    /// Rounds 32 values that lack the zero point, as codes in order.
    ///
    /// A NaN, and what lies below all integers, rounds to the lowest integer, which saturates to the
    /// lowest code, as the definition has it; what lies above all integers would too, so it is clamped.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn finish(&self, values: [__m256; 4]) -> __m256i {
        let mut codes = [_mm256_setzero_si256(); 4];
        for (code, value) in codes.iter_mut().zip(values) {
            // In this order, a NaN stays one.
            *code = _mm256_cvtps_epi32(_mm256_min_ps(self.high, value));
        }
        let [a, b, c, d] = codes;
        let low = _mm256_adds_epi16(_mm256_packs_epi32(a, b), self.zero_point_16);
        let high = _mm256_adds_epi16(_mm256_packs_epi32(c, d), self.zero_point_16);
        in_order(self.clamp.bytes(_mm256_packus_epi16(low, high)))
    }

    /// 8 codes as floats.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn floats(&self, sums: __m256i, multipliers: __m256) -> __m256 {
        const NEAREST_QUIETLY: i32 = 8;
        let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), multipliers);
        // `max` first sends a NaN to `low`, as the definition does.
        let clamped = _mm256_min_ps(_mm256_max_ps(product, self.low), self.high);
        _mm256_add_ps(_mm256_round_ps::<NEAREST_QUIETLY>(clamped), self.zero_point)
    }
}

/// Bounds of codes as bytes.
#[derive(Clone, Copy)]
pub(crate) struct Clamp {
    low: __m256i,
    high: __m256i,
}

impl Clamp {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn new(low: u8, high: u8) -> Self {
        Self {
            low: _mm256_set1_epi8(low.cast_signed()),
            high: _mm256_set1_epi8(high.cast_signed()),
        }
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn bytes(&self, codes: __m256i) -> __m256i {
        _mm256_min_epu8(_mm256_max_epu8(codes, self.low), self.high)
    }
}

/// Rounds values; what lies above all codes is clamped, lest it round to the lowest integer.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn rounded(values: __m256) -> __m256i {
    _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(255.0), values)) // in this order, a NaN stays one
}

/// The addition of two tensors' codes.
#[derive(Clone, Copy)]
pub(crate) struct Addition {
    first: __m256,
    second: __m256,
    offset: __m256,
}

impl Addition {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn new(terms: AddTerms) -> Self {
        Self {
            first: _mm256_set1_ps(terms.first),
            second: _mm256_set1_ps(terms.second),
            offset: _mm256_set1_ps(terms.offset),
        }
    }

    /// 8 sums of codes that are floats already, as integers to be saturated to bytes.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn rounded(&self, first: __m256, second: __m256) -> __m256i {
        let inner = _mm256_fmadd_ps(second, self.second, self.offset);
        rounded(_mm256_fmadd_ps(first, self.first, inner))
    }

    /// 8 sums of codes, as integers to be saturated to bytes.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn codes(&self, first: __m256i, second: __m256i) -> __m256i {
        self.rounded(_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second))
    }
}

/// The product of two tensors' codes.
#[derive(Clone, Copy)]
pub(crate) struct Multiplication {
    multiplier: __m256,
    first_zero_point: __m256,
    second_zero_point: __m256,
    zero_point: __m256,
}

impl Multiplication {
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn new(terms: MulTerms) -> Self {
        Self {
            multiplier: _mm256_set1_ps(terms.multiplier),
            first_zero_point: _mm256_set1_ps(terms.first_zero_point.into()),
            second_zero_point: _mm256_set1_ps(terms.second_zero_point.into()),
            zero_point: _mm256_set1_ps(terms.zero_point.into()),
        }
    }

    /// 8 products of codes, as integers to be saturated to bytes.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn codes(&self, first: __m256i, second: __m256i) -> __m256i {
        // Differences of codes and their product are exact in f32.
        let first = _mm256_sub_ps(_mm256_cvtepi32_ps(first), self.first_zero_point);
        let second = _mm256_sub_ps(_mm256_cvtepi32_ps(second), self.second_zero_point);
        let scaled = _mm256_mul_ps(_mm256_mul_ps(first, second), self.multiplier);
        rounded(_mm256_add_ps(scaled, self.zero_point))
    }
}

/// A table of 256 bytes, in rows of 16, each but the first of a half as its difference from the row before.
///
/// A code goes down the rows of its half, 16 less at each, until it is negative: `vpshufb` gives 0 for
/// what is negative, and the differences up to there come to the entry.
pub(crate) struct Lookup([__m256i; 16]);

impl Lookup {
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(table: &[u8; 256]) -> Self {
        let mut rows = [_mm256_setzero_si256(); 16];
        let mut before = _mm256_setzero_si256();
        for (index, (row, bytes)) in rows.iter_mut().zip(table.chunks_exact(16)).enumerate() {
            // SAFETY: 16 bytes of the table.
            let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            let bytes = _mm256_broadcastsi128_si256(bytes);
            *row = if index % 8 == 0 { bytes } else { _mm256_xor_si256(bytes, before) };
            before = bytes;
        }
        Self(rows)
    }

    /// 32 lookups.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn bytes(&self, codes: __m256i) -> __m256i {
        let sixteen = _mm256_set1_epi8(16);
        let mut left = codes;
        let mut right = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
        let mut found = _mm256_setzero_si256();
        for row in 0..8 {
            let low = _mm256_shuffle_epi8(self.0[row], left);
            let high = _mm256_shuffle_epi8(self.0[row + 8], right);
            found = _mm256_xor_si256(found, _mm256_xor_si256(low, high));
            left = _mm256_subs_epi8(left, sixteen);
            right = _mm256_subs_epi8(right, sixteen);
        }
        found
    }
}

/// The same integer in 8 lanes.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) fn all(value: i32) -> __m256i {
    _mm256_set1_epi32(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_gives_each_of_its_entries() {
        if !is_available() {
            return;
        }
        let table: [u8; 256] = std::array::from_fn(|i| u8::try_from(i * i * 7 % 251).unwrap());
        let codes: [u8; 256] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let mut found = [0u8; 256];
        for at in (0..256).step_by(32) {
            // SAFETY: 32 bytes of the array; the processor has the instructions, here and below.
            let codes = unsafe { load_32(codes[at..].as_ptr()) };
            // SAFETY: a whole table.
            let lookup = unsafe { Lookup::new(&table) };
            // SAFETY: nothing is read or written.
            let looked = unsafe { lookup.bytes(codes) };
            // SAFETY: 32 bytes of the array.
            unsafe { store_some(found[at..].as_mut_ptr(), 32, looked) };
        }
        assert_eq!(found, table);
    }
}
