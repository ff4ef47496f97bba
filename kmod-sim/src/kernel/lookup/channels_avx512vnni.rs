//! CHANNEL_TABLE on AVX-512 where pixels are many: 64 of them by 16 channels at a time, turned so that a
//! register holds one channel of all, whose table fits four more.

use super::Channels;
use crate::kernel::operand::Map;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::vector::load_64;
use crate::kernel::vector::turn::turned_lanes;
use crate::memory::isize_of;
use std::arch::x86_64::{
    __m128i, _mm_loadl_epi64, _mm_loadu_si128, _mm_mask_storeu_epi8, _mm_maskz_loadu_epi8,
    _mm_storel_epi64, _mm_storeu_si128, _mm512_castsi128_si512, _mm512_castsi512_si128,
    _mm512_extracti32x4_epi32, _mm512_inserti32x4, _mm512_mask_blend_epi8, _mm512_movepi8_mask,
    _mm512_permutex2var_epi8, _mm512_setzero_si512,
};

/// Pixels of a tile.
pub(super) const PIXELS: i64 = 64;

/// What the table of a tile's channels costs, in multiply-accumulates.
const COST: i64 = 4 * PIXELS * 16;

/// The channels of 64 pixels, one stride after the other, the first of which lie at `at`.
///
/// # Safety
/// On a processor with the vector instructions; the pixels lie in both operands.
pub(super) unsafe fn tile(
    p: &Channels,
    at: [i64; 2],
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let c = p.dims[3];
    for first in (0..c).step_by(16) {
        budget.spend(COST)?;
        // A pixel's lanes are its own, so they are read and written whole where that is faster.
        let width = |map: &Map| (map.lanes - first).min(16);
        let block = Block {
            src: p.src.pointer(at[0] + first),
            dst: p.dst.pointer(at[1] + first),
            steps: [p.src.pixel, p.dst.pixel].map(isize_of),
            tables: p.tables.memory.pointer(p.tables.start + 256 * first, 256),
            channels: (c - first).min(16),
        };
        match (width(&p.src), width(&p.dst)) {
            // SAFETY: the caller's promise; so many bytes are the pixel's on both sides.
            (16, 16) => unsafe { block.run::<16>() },
            // SAFETY: as above.
            (8.., 8..) if block.channels <= 8 => unsafe { block.run::<8>() },
            // SAFETY: as above, of the channels alone.
            _ => unsafe { block.run::<0>() },
        }
    }
    Ok(())
}

/// Up to 16 channels of 64 pixels.
struct Block {
    src: *const u8,
    dst: *mut u8,
    /// From a pixel to the next.
    steps: [isize; 2],
    tables: *const u8,
    channels: i64,
}

impl Block {
    /// `WIDTH` bytes of each pixel; 0 for the channels alone.
    ///
    /// # Safety
    /// As of [`tile`]; so many bytes belong to each pixel.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn run<const WIDTH: usize>(&self) {
        let mask = u16::MAX >> (16 - self.channels.clamp(1, 16));
        let mut rows = [_mm512_setzero_si512(); 16];
        for (i, row) in (0..).zip(&mut rows) {
            let load = |lane: isize| {
                let from = self.src.wrapping_offset((i + 16 * lane) * self.steps[0]);
                // SAFETY: bytes of one of the 64 pixels.
                unsafe { load::<WIDTH>(mask, from) }
            };
            let low = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(load(0)), load(1));
            *row = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(low, load(2)), load(3));
        }
        let mut rows = turned_lanes(rows);
        let tables = (0..self.channels).map(|channel| 256 * isize_of(channel));
        for (codes, at) in rows.iter_mut().zip(tables) {
            let quarter = |index: isize| {
                // SAFETY: a quarter of the 256 bytes of a channel that exists.
                unsafe { load_64(self.tables.wrapping_offset(at + 64 * index)) }
            };
            let low = _mm512_permutex2var_epi8(quarter(0), *codes, quarter(1));
            let high = _mm512_permutex2var_epi8(quarter(2), *codes, quarter(3));
            *codes = _mm512_mask_blend_epi8(_mm512_movepi8_mask(*codes), low, high);
        }
        let rows = turned_lanes(rows);
        for (i, row) in (0..).zip(rows) {
            let lanes = [
                _mm512_castsi512_si128(row),
                _mm512_extracti32x4_epi32::<1>(row),
                _mm512_extracti32x4_epi32::<2>(row),
                _mm512_extracti32x4_epi32::<3>(row),
            ];
            for (lane, bytes) in (0..).zip(lanes) {
                let to = self.dst.wrapping_offset((i + 16 * lane) * self.steps[1]);
                // SAFETY: bytes of one of the 64 pixels.
                unsafe { store::<WIDTH>(mask, to, bytes) };
            }
        }
    }
}

/// # Safety
/// `WIDTH` bytes at `from`, or those of `mask` where that is 0, must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn load<const WIDTH: usize>(mask: u16, from: *const u8) -> __m128i {
    match WIDTH {
        // SAFETY: the caller's promise.
        16 => unsafe { _mm_loadu_si128(from.cast()) },
        // SAFETY: the caller's promise.
        8 => unsafe { _mm_loadl_epi64(from.cast()) },
        // SAFETY: the caller's promise; masked-out bytes are not accessed.
        _ => unsafe { _mm_maskz_loadu_epi8(mask, from.cast()) },
    }
}

/// # Safety
/// As of [`load`], writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn store<const WIDTH: usize>(mask: u16, to: *mut u8, bytes: __m128i) {
    match WIDTH {
        // SAFETY: the caller's promise.
        16 => unsafe { _mm_storeu_si128(to.cast(), bytes) },
        // SAFETY: the caller's promise.
        8 => unsafe { _mm_storel_epi64(to.cast(), bytes) },
        // SAFETY: the caller's promise; masked-out bytes are not accessed.
        _ => unsafe { _mm_mask_storeu_epi8(to.cast(), mask, bytes) },
    }
}
