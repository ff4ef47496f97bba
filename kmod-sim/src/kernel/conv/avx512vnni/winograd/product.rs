//! The 36 matrix products: tiles by outputs, summed over inputs, in registers.

use super::outputs::TILE_PRODUCTS;
use crate::kernel::vector::{broadcast_4, load_64};
use crate::memory::isize_of;
use std::arch::asm;
use std::arch::x86_64::{__m512i, _mm512_setzero_si512, _mm512_store_si512};

/// Most tiles of a product: 14 x 2 accumulators, 2 vectors of weights and a broadcast.
pub(super) const MOST_ROWS: i64 = 14;

/// Products by tiles less one.
pub(super) type Product = unsafe fn((*const u8, isize), *const u8, i64, *mut u8);
pub(super) const PRODUCTS: [Product; 14] = [
    product::<1>,
    product::<2>,
    product::<3>,
    product::<4>,
    product::<5>,
    product::<6>,
    product::<7>,
    product::<8>,
    product::<9>,
    product::<10>,
    product::<11>,
    product::<12>,
    product::<13>,
    product::<14>,
];

/// One of the 36 matrix products: `TILES` tiles, `tile_bytes` apart, by a panel of outputs, in `steps` of two
/// inputs.
///
/// # Safety
/// Vector instructions present; values of so many inputs are at each of the tiles, two vectors of weights for
/// each step, and room for two vectors at each of the tiles' products, aligned.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn product<const TILES: usize>(
    (inputs, tile_bytes): (*const u8, isize),
    mut weights: *const u8,
    steps: i64,
    to: *mut u8,
) {
    let at: [*const u8; TILES] =
        std::array::from_fn(|t| inputs.wrapping_offset(tile_bytes.wrapping_mul(t.cast_signed())));
    let mut acc = [[_mm512_setzero_si512(); 2]; TILES];
    for step in 0..isize_of(steps) {
        let mut w = [_mm512_setzero_si512(); 2];
        for (block, w) in w.iter_mut().enumerate() {
            // SAFETY: the weights of a step of a block.
            *w = unsafe { load_64(weights.wrapping_add(64 * block)) };
        }
        for t in 0..TILES {
            // SAFETY: two inputs of a tile.
            let x = unsafe { broadcast_4(at[t].wrapping_offset(4 * step)) };
            acc[t] = [multiply_add(acc[t][0], x, w[0]), multiply_add(acc[t][1], x, w[1])];
        }
        weights = weights.wrapping_add(128);
    }
    for (t, acc) in acc.iter().enumerate() {
        let to = to.wrapping_add(TILE_PRODUCTS * t);
        // SAFETY: the first vector of the tile.
        unsafe { _mm512_store_si512(to.cast(), acc[0]) };
        // SAFETY: the second.
        unsafe { _mm512_store_si512(to.wrapping_add(64).cast(), acc[1]) };
    }
}

/// `sums` and in each lane the products of two pairs, modulo 2^32.
///
/// Of the intrinsic for it, LLVM makes a product and an addition, which take more of the units.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn multiply_add(mut sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: an instruction of AVX-512 VNNI on registers, without other effects.
    unsafe {
        asm!(
            "vpdpwssd {sums}, {a}, {b}",
            sums = inout(zmm_reg) sums,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
