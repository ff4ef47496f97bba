//! AVX-512 building blocks that the vector kernels share: raw loads and stores, channel records,
//! the arithmetic of [`npu_uapi::requantise`] on 16 lanes, tables.
//!
//! Equal bits come from equal steps: one IEEE operation for each that the definition writes, fused only
//! where it fuses. `max(v, low)` before `min(v, high)` sends a NaN to `low`, as the definition does.

pub(crate) mod runs;
pub(crate) mod stage;
pub(crate) mod turn;

use crate::kernel::Stop;
use crate::kernel::split::Split;
use npu_uapi::requantise::{AddTerms, MulTerms};
use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _mm_loadu_si128, _mm_mask_storeu_epi8, _mm_maskz_loadu_epi8,
    _mm_storeu_si128, _mm256_loadu_si256, _mm256_mask_storeu_epi8, _mm256_storeu_si256,
    _mm512_add_epi32, _mm512_add_ps, _mm512_adds_epi16, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
    _mm512_cvtps_epi32, _mm512_extracti32x4_epi32, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_mask_blend_epi8, _mm512_mask_cmpge_epi32_mask, _mm512_mask_storeu_epi8,
    _mm512_mask_test_epi32_mask, _mm512_maskz_loadu_epi8, _mm512_max_epu8, _mm512_max_ps,
    _mm512_min_epu8, _mm512_min_ps, _mm512_movepi8_mask, _mm512_mul_ps, _mm512_packs_epi32,
    _mm512_packus_epi16, _mm512_packus_epi32, _mm512_permutex2var_epi8, _mm512_permutex2var_epi32,
    _mm512_permutexvar_epi32, _mm512_roundscale_ps, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_i64x2, _mm512_storeu_si512, _mm512_sub_ps, _mm512_unpackhi_epi8,
    _mm512_unpackhi_epi16, _mm512_unpacklo_epi8, _mm512_unpacklo_epi16, _mm512_zextsi128_si512,
    _mm512_zextsi256_si512,
};

/// Whether this processor has every instruction that the vector kernels use.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vbmi")
}

/// Lanes `0..count` of 16; all of them from 16 on.
#[inline]
pub(crate) fn mask_16(count: i64) -> u16 {
    if count <= 0 { 0 } else { u16::MAX >> (16 - count.min(16)) }
}

/// Lanes `0..count` of 64; all of them from 64 on.
#[inline]
pub(crate) fn mask_64(count: i64) -> u64 {
    if count <= 0 { 0 } else { u64::MAX >> (64 - count.min(64)) }
}

/// Four bytes, in all 16 lanes.
///
/// # Safety
/// The four bytes at `from` must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) unsafe fn broadcast_4(from: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
}

/// 64 bytes.
///
/// # Safety
/// They must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) unsafe fn load_64(from: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

/// The bytes of `mask` at `from`, zero in the other lanes, which are not touched.
///
/// # Safety
/// The bytes of `mask` must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) unsafe fn load_masked_64(mask: u64, from: *const u8) -> __m512i {
    // Some processors take several times as long for a masked access, so the usual widths go without.
    match mask {
        // SAFETY: the caller's promise, for all 64.
        u64::MAX => unsafe { load_64(from) },
        MASK_32 => {
            // SAFETY: the caller's promise, for 32.
            let low = unsafe { _mm256_loadu_si256(from.cast()) };
            _mm512_zextsi256_si512(low)
        }
        MASK_16 => {
            // SAFETY: the caller's promise, for 16.
            let low = unsafe { _mm_loadu_si128(from.cast()) };
            _mm512_zextsi128_si512(low)
        }
        // SAFETY: the caller's promise; masked-out lanes are not accessed.
        mask => unsafe { _mm512_maskz_loadu_epi8(mask, from.cast()) },
    }
}

/// The first 32 lanes of 64.
const MASK_32: u64 = u64::MAX >> 32;

/// The first 16 lanes of 64.
const MASK_16: u64 = u64::MAX >> 48;

/// The bytes of `mask` at `from` as 16 integers.
///
/// # Safety
/// The bytes of `mask` must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) unsafe fn load_codes(mask: u16, from: *const u8) -> __m512i {
    let bytes = if mask == u16::MAX {
        // SAFETY: the caller's promise, for all 16.
        unsafe { _mm_loadu_si128(from.cast()) }
    } else {
        // SAFETY: the caller's promise; masked-out lanes are not accessed.
        unsafe { _mm_maskz_loadu_epi8(mask, from.cast()) }
    };
    _mm512_cvtepu8_epi32(bytes)
}

/// Stores the bytes of `mask` of `bytes`.
///
/// # Safety
/// The bytes of `mask` must be writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) unsafe fn store_16(to: *mut u8, mask: u16, bytes: __m128i) {
    if mask == u16::MAX {
        // SAFETY: the caller's promise, for all 16.
        unsafe { _mm_storeu_si128(to.cast(), bytes) }
    } else {
        // SAFETY: the caller's promise; masked-out lanes are not accessed.
        unsafe { _mm_mask_storeu_epi8(to.cast(), mask, bytes) }
    }
}

/// Stores the bytes of the first two of `masks` of `bytes`.
///
/// # Safety
/// The bytes of the masks must be writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) unsafe fn store_32(to: *mut u8, [low, high, ..]: [u16; 4], bytes: __m256i) {
    if high == u16::MAX {
        // SAFETY: the caller's promise, for all 32; lanes exist from the first on.
        unsafe { _mm256_storeu_si256(to.cast(), bytes) }
    } else {
        let mask = u32::from(high) << 16 | u32::from(low);
        // SAFETY: the caller's promise; masked-out lanes are not accessed.
        unsafe { _mm256_mask_storeu_epi8(to.cast(), mask, bytes) }
    }
}

/// Stores the bytes of `mask` of `bytes`.
///
/// # Safety
/// The bytes of `mask` must be writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) unsafe fn store_64(to: *mut u8, mask: u64, bytes: __m512i) {
    match mask {
        // SAFETY: the caller's promise, for all 64.
        u64::MAX => unsafe { _mm512_storeu_si512(to.cast(), bytes) },
        MASK_32 => {
            let low = _mm512_castsi512_si256(bytes);
            // SAFETY: the caller's promise, for 32.
            unsafe { _mm256_storeu_si256(to.cast(), low) }
        }
        MASK_16 => {
            let low = _mm512_castsi512_si128(bytes);
            // SAFETY: the caller's promise, for 16.
            unsafe { _mm_storeu_si128(to.cast(), low) }
        }
        // SAFETY: the caller's promise; masked-out lanes are not accessed.
        mask => unsafe { _mm512_mask_storeu_epi8(to.cast(), mask, bytes) },
    }
}

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

/// `requantise` and the clamp behind it, in one: rounding is monotonic and keeps integers, so the
/// tighter bounds of the clamp may be applied before it, and all of them may be applied behind it to
/// what saturates on its way to a byte.
#[derive(Clone, Copy)]
pub(crate) struct Requantise {
    low: __m512,
    high: __m512,
    zero_point: __m512i,
    zero_point_float: __m512,
    zero_point_16: __m512i,
    low_8: __m512i,
    high_8: __m512i,
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
            low_8: _mm512_set1_epi8(low.cast_signed()),
            high_8: _mm512_set1_epi8(high.cast_signed()),
            small: false,
        }
    }

    /// The same for multipliers of which [`Channels::small`] is known.
    pub(crate) fn with_multipliers(self, channels: Channels) -> Self {
        Self { small: channels.small, ..self }
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
        let mut codes = sums;
        for (code, multipliers) in codes.iter_mut().zip(multipliers) {
            *code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(*code), multipliers));
        }
        self.packed(codes)
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

    /// Rounded products as bytes, in the order of [`pack_lanes`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn packed(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        let low = _mm512_adds_epi16(_mm512_packs_epi32(a, b), self.zero_point_16);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(c, d), self.zero_point_16);
        self.clamped(_mm512_packus_epi16(low, high))
    }

    /// Bytes within the bounds.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn clamped(&self, bytes: __m512i) -> __m512i {
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
    fn floats(self, accumulators: __m512i, multipliers: __m512) -> __m512 {
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
    fn rounded(self, first: __m512, second: __m512) -> __m512i {
        let inner = _mm512_fmadd_ps(second, self.second, self.offset);
        let sum = _mm512_fmadd_ps(first, self.first, inner);
        _mm512_cvtps_epi32(_mm512_min_ps(self.finish.high, sum)) // in this order, a NaN stays one
    }

    /// The same where no sum leaves 32 bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn rounded_within(&self, first: __m512, second: __m512) -> __m512i {
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

/// Four vectors of 16 codes as 64 bytes, in order.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn pack_64(codes: [__m512i; 4]) -> __m512i {
    in_order(pack_lanes(codes))
}

/// Four vectors of 16 codes as 64 bytes: 128-bit lane `i` holds lane `i` of each in turn.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn pack_lanes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d))
}

/// The same for integers of any size, saturated to bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn saturate_lanes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d))
}

/// The bytes of [`pack_lanes`], in order.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn in_order(lanes: __m512i) -> __m512i {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, lanes)
}

/// 64 bytes as four vectors of 16 codes, in order.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn unpack_64(bytes: __m512i) -> [__m512i; 4] {
    [
        _mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes)),
        _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<1>(bytes)),
        _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<2>(bytes)),
        _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<3>(bytes)),
    ]
}

/// Whether no product of two codes leaves 32 bits.
pub(crate) fn is_bounded_product(terms: MulTerms) -> bool {
    65025.0 * terms.multiplier.abs() < 1e9 // not so with a NaN
}

/// 64 bytes as four vectors of 16 codes, in the order from which [`pack_lanes`] restores theirs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn spread_64(bytes: __m512i) -> [__m512i; 4] {
    let zero = _mm512_setzero_si512();
    let (low, high) = (_mm512_unpacklo_epi8(bytes, zero), _mm512_unpackhi_epi8(bytes, zero));
    [
        _mm512_unpacklo_epi16(low, zero),
        _mm512_unpackhi_epi16(low, zero),
        _mm512_unpacklo_epi16(high, zero),
        _mm512_unpackhi_epi16(high, zero),
    ]
}

/// A table of 256 bytes in four registers.
#[derive(Clone, Copy)]
pub(crate) struct Lookup([__m512i; 4]);

impl Lookup {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn new(table: &[u8; 256]) -> Self {
        let mut registers = [_mm512_setzero_si512(); 4];
        for (register, quarter) in registers.iter_mut().zip(table.chunks_exact(64)) {
            // SAFETY: 64 bytes of the table.
            *register = unsafe { load_64(quarter.as_ptr()) };
        }
        Self(registers)
    }

    /// A table of zeros.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn zeros() -> Self {
        Self([_mm512_setzero_si512(); 4])
    }

    /// 64 lookups.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn bytes(self, codes: __m512i) -> __m512i {
        let low = _mm512_permutex2var_epi8(self.0[0], codes, self.0[1]);
        let high = _mm512_permutex2var_epi8(self.0[2], codes, self.0[3]);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_the_first_lanes() {
        let masks: Vec<u16> = [-1, 0, 1, 15, 16, 99].map(mask_16).to_vec();
        assert_eq!(masks, [0, 0, 1, 0x7fff, 0xffff, 0xffff]);
        assert_eq!([0, 1, 63, 64, 65].map(mask_64), [0, 1, u64::MAX >> 1, u64::MAX, u64::MAX]);
    }
}
