//! Sixteen rows of sixteen bytes turned in registers: byte `i` of row `j` to byte `j` of row `i`.
//!
//! Each of four steps turns the eight bits of the two indices by one.

use std::arch::x86_64::{
    __m128i, __m512i, _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi8,
};

/// One tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn turned(mut rows: [__m128i; 16]) -> [__m128i; 16] {
    for _ in 0..4 {
        let before = rows;
        for i in 0..8 {
            rows[2 * i] = _mm_unpacklo_epi8(before[i], before[i + 8]);
            rows[2 * i + 1] = _mm_unpackhi_epi8(before[i], before[i + 8]);
        }
    }
    rows
}

/// Four tiles, one in each 128-bit lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn turned_lanes(mut rows: [__m512i; 16]) -> [__m512i; 16] {
    for _ in 0..4 {
        let before = rows;
        for i in 0..8 {
            rows[2 * i] = _mm512_unpacklo_epi8(before[i], before[i + 8]);
            rows[2 * i + 1] = _mm512_unpackhi_epi8(before[i], before[i + 8]);
        }
    }
    rows
}
