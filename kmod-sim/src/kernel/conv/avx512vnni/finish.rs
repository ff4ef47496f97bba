//! From the sums of a tile to codes in the output.

use super::{Pixels, ROOM};
use crate::kernel::vector::stage::{Kind, Stage};
use crate::kernel::vector::{mask_16, mask_64, store_16, store_32, store_64};
use crate::memory::isize_of;
use std::arch::x86_64::{
    __m512, __m512i, _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_extracti32x4_epi32,
    _mm512_extracti64x4_epi64,
};

/// Passes a tile's sums through the output stage, four vectors at a time. `lanes` says where in a pixel
/// they go, and how many channels there are.
///
/// # Safety
/// Vector instructions present; in each of `pixels`, the lanes that exist lie in the output, and with an
/// addition in the auxiliary tensor.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) unsafe fn finish<const BLOCKS: usize>(
    stage: &Stage,
    sums: &[[__m512i; 4]],
    multipliers: &[__m512; BLOCKS],
    pixels: &Pixels,
    lanes: (i64, i64),
) {
    let finish = match stage.kind() {
        Kind::Bare => of_kind::<BLOCKS, BARE>,
        Kind::Plain => of_kind::<BLOCKS, PLAIN>,
        Kind::Sum => of_kind::<BLOCKS, SUM>,
        Kind::SumAuxFirst => of_kind::<BLOCKS, SUM_AUX_FIRST>,
        Kind::Table => of_kind::<BLOCKS, TABLE>,
        Kind::TableSum | Kind::Tables => of_kind::<BLOCKS, TABLES>,
    };
    // SAFETY: the caller's promise.
    unsafe { finish(stage, sums, multipliers, pixels, lanes) };
}

/// The kinds of stages, as parameters.
pub(super) const PLAIN: u8 = 0;
pub(super) const SUM: u8 = 1;
pub(super) const SUM_AUX_FIRST: u8 = 2;
pub(super) const TABLE: u8 = 3;
pub(super) const TABLES: u8 = 4;
pub(super) const BARE: u8 = 5;

/// Passes a tile's sums through the output stage, for one kind of stages.
///
/// # Safety
/// As of [`finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline(never)]
unsafe fn of_kind<const BLOCKS: usize, const KIND: u8>(
    stage: &Stage,
    sums: &[[__m512i; 4]],
    multipliers: &[__m512; BLOCKS],
    pixels: &Pixels,
    (first_lane, lanes): (i64, i64),
) {
    let at = isize_of(first_lane);
    let mask = mask_64(lanes) & (u64::MAX >> (64 - 16 * BLOCKS));
    let multipliers = std::array::from_fn(|i| multipliers[i % BLOCKS]);
    let mut masks = [u16::MAX; 4];
    if mask != u64::MAX >> (64 - 16 * BLOCKS) {
        masks = std::array::from_fn(|i| mask_16(lanes - [0, 16, 32, 48][i % BLOCKS]));
    }
    for (group, four) in sums.iter().enumerate() {
        let first = group * (4 / BLOCKS);
        let pixel = |i: usize| (first + i / BLOCKS) % ROOM;
        let aux: [*const u8; 4] = std::array::from_fn(|i| {
            pixels.aux[pixel(i)].wrapping_offset(at).wrapping_add(i % BLOCKS * 16)
        });
        // SAFETY: the caller's promise.
        let bytes = unsafe { bytes::<KIND>(stage, *four, multipliers, masks, aux) };
        let out = |i: usize| pixels.out[(first + i) % ROOM].wrapping_offset(at);
        let left = pixels.count - first;
        match BLOCKS {
            // SAFETY: the caller's promise; so for the stores below.
            4 => unsafe { store_64(out(0), mask, bytes) },
            2 => {
                let low = _mm512_castsi512_si256(bytes);
                // SAFETY: as above.
                unsafe { store_32(out(0), masks, low) };
                if left > 1 {
                    let high = _mm512_extracti64x4_epi64::<1>(bytes);
                    // SAFETY: as above.
                    unsafe { store_32(out(1), masks, high) };
                }
            }
            _ => {
                let first = _mm512_castsi512_si128(bytes);
                // SAFETY: as above.
                unsafe { store_16(out(0), masks[0], first) };
                if left > 1 {
                    let part = _mm512_extracti32x4_epi32::<1>(bytes);
                    // SAFETY: as above.
                    unsafe { store_16(out(1), masks[0], part) };
                }
                if left > 2 {
                    let part = _mm512_extracti32x4_epi32::<2>(bytes);
                    // SAFETY: as above.
                    unsafe { store_16(out(2), masks[0], part) };
                }
                if left > 3 {
                    let part = _mm512_extracti32x4_epi32::<3>(bytes);
                    // SAFETY: as above.
                    unsafe { store_16(out(3), masks[0], part) };
                }
            }
        }
    }
}

/// Four vectors of sums through the output stage, for one kind of stages.
///
/// # Safety
/// As of [`finish`]; with an addition, the bytes of `masks` at `aux` must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) unsafe fn bytes<const KIND: u8>(
    stage: &Stage,
    sums: [__m512i; 4],
    multipliers: [__m512; 4],
    masks: [u16; 4],
    aux: [*const u8; 4],
) -> __m512i {
    match KIND {
        BARE => Stage::bare_64(sums, multipliers),
        PLAIN => stage.plain_64(sums, multipliers),
        // SAFETY: the caller's promise.
        SUM => unsafe { stage.sum_64::<false>(sums, multipliers, masks, aux) },
        // SAFETY: the caller's promise.
        SUM_AUX_FIRST => unsafe { stage.sum_64::<true>(sums, multipliers, masks, aux) },
        TABLE => stage.one_table(stage.plain_64(sums, multipliers)),
        // SAFETY: the caller's promise.
        _ => unsafe { stage.any_64(sums, multipliers, masks, aux) },
    }
}
