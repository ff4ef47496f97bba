//! The order of codes in a vector: packed to bytes and spread, and tables of bytes.

use super::memory::load_64;
use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_castsi512_si128, _mm512_cvtepu8_epi32,
    _mm512_extracti32x4_epi32, _mm512_mask_blend_epi8, _mm512_movepi8_mask, _mm512_packs_epi32,
    _mm512_packus_epi16, _mm512_packus_epi32, _mm512_permutex2var_epi8, _mm512_permutexvar_epi32,
    _mm512_set1_epi32, _mm512_set4_epi32, _mm512_setr_epi32, _mm512_setzero_si512,
    _mm512_shuffle_epi8,
};

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
pub(super) fn saturate_lanes([a, b, c, d]: [__m512i; 4]) -> __m512i {
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

/// 64 bytes as four vectors of 16 codes, in the order from which [`pack_lanes`] restores theirs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn spread_64(bytes: __m512i) -> [__m512i; 4] {
    // One shuffle each; by unpacks, of two levels, they were six. A byte of 0x80 gives zero.
    let lane = |byte| i32::from_le_bytes([byte, 0x80, 0x80, 0x80]);
    let first = _mm512_set4_epi32(lane(3), lane(2), lane(1), lane(0));
    let four = _mm512_set1_epi32(4);
    let second = _mm512_add_epi32(first, four);
    let third = _mm512_add_epi32(second, four);
    [
        _mm512_shuffle_epi8(bytes, first),
        _mm512_shuffle_epi8(bytes, second),
        _mm512_shuffle_epi8(bytes, third),
        _mm512_shuffle_epi8(bytes, _mm512_add_epi32(third, four)),
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
