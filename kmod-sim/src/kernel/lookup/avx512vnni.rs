//! PAIR_TABLE and CHANNEL_TABLE on AVX-512; take every problem. Of many pixels, CHANNEL_TABLE has another
//! kernel for all but the last, which are gathered 16 at a time.
//!
//! A gather reads words of four bytes, so it fetches the aligned word of the table that an entry lies
//! in and shifts the entry down: no word reaches past a table, whose length is a multiple of four.

use super::channels_avx512vnni as tiles;
use crate::kernel::Stop;
use crate::kernel::lookup::{Channels, Pairs};
use crate::kernel::split::Split;
use crate::kernel::vector::{load_64, load_masked_64, mask_64, pack_64, runs, store_64, unpack_64};
use crate::memory::isize_of;
use npu_uapi::command::PAIR_TABLE_BYTES;
use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_castsi512_si256, _mm512_cvtepu8_epi16,
    _mm512_extracti64x4_epi64, _mm512_i32gather_epi32, _mm512_min_epi32, _mm512_or_si512,
    _mm512_set1_epi32, _mm512_setr_epi32, _mm512_setzero_si512, _mm512_slli_epi16,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_srlv_epi32, _mm512_storeu_si512,
};

/// Runs a PAIR_TABLE.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn pairs(p: &Pairs, split: &Split<'_>) -> Result<(), Stop> {
    runs::over([&p.a, &p.b, &p.out], p.dims, split, &|at, len| {
        // SAFETY: the processor is the caller's promise, the run lies in all three operands.
        unsafe { piece_of_pairs(p, at, len) }
    })
}

/// Runs a CHANNEL_TABLE.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn channels(p: &Channels, split: &Split<'_>) -> Result<(), Stop> {
    let [mut n, mut h, mut w, c] = p.dims;
    if [&p.src, &p.dst].iter().all(|map| map.is_linear(n, h, w)) {
        (n, h, w) = (1, 1, n * h * w);
    }
    // Units are tiles of a row while there are whole ones, then 64 channels of a pixel, so that one of
    // many channels is divided too.
    let pieces = (c + 63) / 64;
    let (tiles, rest) = (w / tiles::PIXELS, w % tiles::PIXELS);
    let units_a_row = tiles + rest * pieces;
    let units = n * h * units_a_row;
    let cost = 4 * if tiles > 0 { c * tiles::PIXELS } else { c.min(64) };
    let units_a_chunk = split.units_a_chunk(units, cost);
    split.chunks((units + units_a_chunk - 1) / units_a_chunk, &|chunk, budget| {
        let first = chunk * units_a_chunk;
        for unit in first..(first + units_a_chunk).min(units) {
            let (row, unit) = (unit / units_a_row, unit % units_a_row);
            let at = |x: i64| [&p.src, &p.dst].map(|map| map.at(row / h, row % h, x));
            if unit < tiles {
                // SAFETY: the processor is the caller's promise, the pixels lie in both operands.
                unsafe { tiles::tile(p, at(unit * tiles::PIXELS), budget)? };
                continue;
            }
            let (pixel, piece) = ((unit - tiles) / pieces, (unit - tiles) % pieces);
            let at = at(tiles * tiles::PIXELS + pixel).map(|at| at + 64 * piece);
            let len = (c - 64 * piece).min(64);
            budget.spend(4 * len)?;
            // SAFETY: the processor is the caller's promise, these channels lie in both operands.
            unsafe { piece_of_channels(p, at, 64 * piece, len) };
        }
        Ok(())
    })
}

/// # Safety
/// As of [`pairs`]; `len` elements from `at` on lie in each operand.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn piece_of_pairs(p: &Pairs, [a, b, out]: [i64; 3], len: i64) {
    let table = p.table.memory.pointer(p.table.start, PAIR_TABLE_BYTES);
    let (a, b, out) = (p.a.pointer(a), p.b.pointer(b), p.out.pointer(out));
    let mut some = [0; 64];
    for done in (0..len).step_by(64) {
        let (mask, at) = (mask_64(len - done), isize_of(done));
        // SAFETY: the elements of `mask` lie in the run.
        let first = unsafe { load_masked_64(mask, a.wrapping_offset(at)) };
        // SAFETY: as above.
        let second = unsafe { load_masked_64(mask, b.wrapping_offset(at)) };
        // A load for each is faster than a gather, which makes as many and more besides.
        let entries = entries_of(first, second);
        let out = out.wrapping_offset(at);
        // One by one to where they belong: read back as a vector, they would be waited for.
        let to = if mask == u64::MAX { out } else { some.as_mut_ptr() };
        for (i, entry) in entries.as_flattened().iter().enumerate() {
            // SAFETY: two codes make an entry below 2^16, the length of the table.
            let code = unsafe { *table.wrapping_add(usize::from(*entry)) };
            // SAFETY: 64 bytes of the result or of an array.
            unsafe { *to.wrapping_add(i) = code };
        }
        if mask != u64::MAX {
            // SAFETY: 64 bytes of an array.
            let codes = unsafe { load_64(some.as_ptr()) };
            // SAFETY: as above, of the result.
            unsafe { store_64(out, mask, codes) };
        }
    }
}

/// The entries of 64 pairs of codes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn entries_of(first: __m512i, second: __m512i) -> [[u16; 32]; 2] {
    let halves = |codes| [_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes)];
    let mut entries = [[0; 32]; 2];
    for ((a, b), to) in halves(first).into_iter().zip(halves(second)).zip(&mut entries) {
        let upper = _mm512_slli_epi16::<8>(_mm512_cvtepu8_epi16(a));
        let words = _mm512_or_si512(upper, _mm512_cvtepu8_epi16(b));
        // SAFETY: 64 bytes of an array.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
    }
    entries
}

/// # Safety
/// As of [`channels`]; `len` channels, at most 64, lie in each operand from `at` on, of which `first` is
/// the first.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn piece_of_channels(p: &Channels, [src, dst]: [i64; 2], first: i64, len: i64) {
    let tables = p.tables.memory.pointer(p.tables.start + 256 * first, 256 * len.unsigned_abs());
    let (src, dst, mask) = (p.src.pointer(src), p.dst.pointer(dst), mask_64(len));
    // SAFETY: the channels of `mask` lie in the pixel.
    let from = unpack_64(unsafe { load_masked_64(mask, src) });
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let last = _mm512_set1_epi32(i32::try_from(len - 1).expect("at most 64 channels"));
    let mut codes = [_mm512_setzero_si512(); 4];
    for ((lane, codes), from) in (0..len).step_by(16).zip(&mut codes).zip(from) {
        let lane = _mm512_set1_epi32(i32::try_from(lane).expect("at most 64 channels"));
        // Lanes behind the last channel look into its table: there is no other.
        let channels = _mm512_min_epi32(_mm512_add_epi32(lanes, lane), last);
        let entries = _mm512_or_si512(_mm512_slli_epi32::<8>(channels), from);
        // SAFETY: an entry of the table of a channel that exists.
        *codes = unsafe { gather_16(tables, entries) };
    }
    let codes = pack_64(codes);
    // SAFETY: as above, of the result.
    unsafe { store_64(dst, mask, codes) };
}

/// The bytes at 16 `entries` of a table, as integers.
///
/// # Safety
/// The table must have them, and be a multiple of four bytes long.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn gather_16(table: *const u8, entries: __m512i) -> __m512i {
    let words = _mm512_srli_epi32::<2>(entries);
    // SAFETY: the caller's promise: the word of four that an entry lies in lies within the table.
    let words = unsafe { _mm512_i32gather_epi32::<4>(words, table.cast()) };
    let bits = _mm512_slli_epi32::<3>(_mm512_and_si512(entries, _mm512_set1_epi32(3)));
    _mm512_and_si512(_mm512_srlv_epi32(words, bits), _mm512_set1_epi32(255))
}
