//! Sixteen rows of sixteen bytes or words turned in registers: element `i` of row `j` to element `j` of row `i`.
//!
//! Of bytes, each of four steps turns the eight bits of the two indices by one.

use std::arch::x86_64::{
    __m128i, __m512i, _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm512_shuffle_i32x4,
    _mm512_unpackhi_epi8, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi8,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
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

/// Sixteen rows of sixteen 32-bit words turned: word `i` of row `j` to word `j` of row `i`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn turned_words(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut out = rows;
    // Four words of four rows each, in each 128-bit lane.
    for four in 0..4 {
        let first = 4 * four;
        let rows = [rows[first], rows[first + 1], rows[first + 2], rows[first + 3]];
        out[first..first + 4].copy_from_slice(&turned_words_of_lanes(rows));
    }
    // Then the lanes of four vectors.
    let fours = out;
    for word in 0..4 {
        let (a, b, c, d) = (fours[word], fours[word + 4], fours[word + 8], fours[word + 12]);
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (even_2, odd_2) =
            (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        out[word] = _mm512_shuffle_i32x4::<0x88>(even, even_2);
        out[word + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odd_2);
        out[word + 8] = _mm512_shuffle_i32x4::<0xdd>(even, even_2);
        out[word + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_2);
    }
    out
}

/// In each 128-bit lane, word `i` of register `j` to word `j` of register `i`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(crate) fn turned_words_of_lanes([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (low_2, high_2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(low, low_2),
        _mm512_unpackhi_epi64(low, low_2),
        _mm512_unpacklo_epi64(high, high_2),
        _mm512_unpackhi_epi64(high, high_2),
    ]
}
