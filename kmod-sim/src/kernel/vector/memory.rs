//! Raw loads and stores of some bytes of a vector.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_mask_storeu_epi8, _mm_maskz_loadu_epi8,
    _mm_storeu_si128, _mm256_loadu_si256, _mm256_mask_storeu_epi8, _mm256_storeu_si256,
    _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_cvtepu8_epi32, _mm512_loadu_si512,
    _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_set1_epi32, _mm512_storeu_si512,
    _mm512_zextsi128_si512, _mm512_zextsi256_si512,
};

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
