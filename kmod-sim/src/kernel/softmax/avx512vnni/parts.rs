//! What codes count, four channels of sixteen pixels at a time, and how such blocks are turned.
//!
//! ```text
//! 128-bit lane l:  [channel 0: pixels 4l .. 4l+3] [channel 1: the same] [channel 2] [channel 3]
//! ```
//!
//! The bytes of a part are looked up in a plane each. Their unpacking leaves a register a channel, with the
//! sixteen pixels in order; packing codes to bytes goes the same way back.

use crate::kernel::softmax::Problem;
use crate::kernel::vector::turn::turned_words_of_lanes;
use crate::kernel::vector::{Lookup, pack_lanes};
use std::arch::x86_64::{
    __m512, __m512i, _mm_loadu_si128, _mm512_adds_epu8, _mm512_broadcast_i32x4,
    _mm512_castsi512_ps, _mm512_permutexvar_epi32, _mm512_setr_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_unpackhi_epi8, _mm512_unpackhi_epi16,
    _mm512_unpacklo_epi8, _mm512_unpacklo_epi16, _mm512_zextsi128_si512,
};

/// The four bytes of what each code counts.
#[derive(Clone, Copy)]
pub(super) struct Parts([Lookup; 4]);

impl Parts {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn new(p: &Problem) -> Self {
        let mut planes = [[0; 256]; 4];
        for (code, part) in p.table.iter().enumerate() {
            for (plane, byte) in planes.iter_mut().zip(part.to_le_bytes()) {
                plane[code] = byte;
            }
        }
        let [a, b, c, d] = planes.each_ref();
        Self([Lookup::new(a), Lookup::new(b), Lookup::new(c), Lookup::new(d)])
    }

    /// The parts of four channels of sixteen pixels, each code shifted so that the largest of its pixel is the
    /// last of all; not further, as memory that another writes meanwhile may hold a larger one.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn of(&self, codes: __m512i, shifts: __m512i) -> [__m512; 4] {
        let index = _mm512_adds_epu8(codes, shifts);
        let [a, b, c, d] = self.0;
        let [a, b, c, d] = [a.bytes(index), b.bytes(index), c.bytes(index), d.bytes(index)];
        let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let (low_2, high_2) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
        let channels = [
            _mm512_unpacklo_epi16(low, low_2),
            _mm512_unpackhi_epi16(low, low_2),
            _mm512_unpacklo_epi16(high, high_2),
            _mm512_unpackhi_epi16(high, high_2),
        ];
        let mut parts = [_mm512_setzero_ps(); 4];
        for (part, channel) in parts.iter_mut().zip(channels) {
            *part = _mm512_castsi512_ps(channel);
        }
        parts
    }
}

/// A byte of each pixel, to every channel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn of_pixels(bytes: &[u8; 16]) -> __m512i {
    // SAFETY: sixteen bytes.
    let bytes = _mm512_zextsi128_si512(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
    let order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    _mm512_permutexvar_epi32(order, bytes)
}

/// Of four registers, the `i`th with sixteen channels of pixels `i`, `4 + i`, `8 + i` and `12 + i`: four
/// channels of all pixels each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) fn to_channels(pixels: [__m512i; 4]) -> [__m512i; 4] {
    let mut channels = turned_words_of_lanes(pixels);
    for four in &mut channels {
        *four = within_words(*four);
    }
    channels
}

/// The codes of four times four channels, of all pixels each, as [`to_channels`] takes them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) fn to_pixels(channels: [[__m512i; 4]; 4]) -> [__m512i; 4] {
    let mut pixels = [_mm512_setzero_si512(); 4];
    for (pixels, four) in pixels.iter_mut().zip(channels) {
        *pixels = within_words(pack_lanes(four));
    }
    turned_words_of_lanes(pixels)
}

/// In each lane, byte `i` of word `j` to byte `j` of word `i`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn within_words(bytes: __m512i) -> __m512i {
    const ORDER: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    // SAFETY: sixteen bytes.
    let order = unsafe { _mm_loadu_si128(ORDER.as_ptr().cast()) };
    _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order))
}
