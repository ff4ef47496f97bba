//! The 36 matrix products: tiles by outputs, summed over inputs, in registers.
//!
//! A panel is of one to three blocks of 16 outputs; or of one and a half, where two tiles are a unit:
//!
//! ```text
//! tile a: outputs 0-15    tile b: outputs 0-15    outputs 16-23 of a | of b
//! ```

use super::{Panel, VALUES};
use crate::kernel::vector::{broadcast_4, load_64};
use crate::memory::isize_of;
use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm512_mask_blend_epi32, _mm512_setzero_si512, _mm512_store_si512,
};

/// Most units of a product: 14 x 2 accumulators, or 9 x 3, or 7 of pairs, beside weights and broadcasts.
const MOST: [i64; 4] = [14, 14, 9, 7];

/// Bytes from one unit's products of so many vectors to the next's. A line more than they are: powers of two
/// would all be in the same places of the level-1 cache.
pub(super) const fn unit_bytes(vectors: usize) -> usize {
    VALUES * 64 * vectors + 64
}

/// One of the 36 matrix products of some units: of values of inputs, so many bytes from tile to tile, and
/// weights, in steps of two inputs.
type Product = unsafe fn((*const u8, isize), *const u8, i64, *mut u8);

/// Most units of one product, and products by units less one.
pub(super) fn products(panel: &Panel) -> (i64, &'static [Product; 14]) {
    let kind = if panel.in_pairs { 3 } else { panel.vectors() - 1 };
    (MOST[kind], &PRODUCTS[kind])
}

macro_rules! kernels {
    ($blocks:literal: $($tiles:literal)*) => { [$(product::<$tiles, $blocks> as Product),*] };
    (pairs: $($pairs:literal)*) => { [$(pairs::<$pairs> as Product),*] };
}

// Those behind the most are never called.
const PRODUCTS: [[Product; 14]; 4] = [
    kernels!(1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    kernels!(2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    kernels!(3: 1 2 3 4 5 6 7 8 9 9 9 9 9 9),
    kernels!(pairs: 1 2 3 4 5 6 7 7 7 7 7 7 7 7),
];

/// A product of `TILES` tiles and a panel of `BLOCKS` blocks.
///
/// # Safety
/// Vector instructions present; values of so many inputs are at each of the tiles, a vector of weights of each
/// block for each step, and room for as many at each of the tiles' products, aligned.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn product<const TILES: usize, const BLOCKS: usize>(
    (inputs, tile_bytes): (*const u8, isize),
    mut weights: *const u8,
    steps: i64,
    to: *mut u8,
) {
    let at: [*const u8; TILES] =
        std::array::from_fn(|t| inputs.wrapping_offset(tile_bytes.wrapping_mul(t.cast_signed())));
    let mut acc = [[_mm512_setzero_si512(); BLOCKS]; TILES];
    for step in 0..isize_of(steps) {
        let mut w = [_mm512_setzero_si512(); BLOCKS];
        for (block, w) in w.iter_mut().enumerate() {
            // SAFETY: the weights of a step of a block.
            *w = unsafe { load_64(weights.wrapping_add(64 * block)) };
        }
        for t in 0..TILES {
            // SAFETY: two inputs of a tile.
            let x = unsafe { broadcast_4(at[t].wrapping_offset(4 * step)) };
            for (acc, w) in acc[t].iter_mut().zip(w) {
                *acc = multiply_add(*acc, x, w);
            }
        }
        weights = weights.wrapping_add(64 * BLOCKS);
    }
    for (t, acc) in acc.iter().enumerate() {
        let to = to.wrapping_add(unit_bytes(BLOCKS) * t);
        for (block, acc) in acc.iter().enumerate() {
            // SAFETY: a vector of the tile.
            unsafe { _mm512_store_si512(to.wrapping_add(64 * block).cast(), *acc) };
        }
    }
}

/// A product of `PAIRS` pairs of tiles and a panel of a block and a half.
///
/// # Safety
/// As of [`product`]; of the second block, each vector of weights is the lower half twice.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn pairs<const PAIRS: usize>(
    (inputs, tile_bytes): (*const u8, isize),
    mut weights: *const u8,
    steps: i64,
    to: *mut u8,
) {
    let at: [[*const u8; 2]; PAIRS] = std::array::from_fn(|pair| {
        let tile = |t| inputs.wrapping_offset(tile_bytes.wrapping_mul(t));
        [tile(2 * pair.cast_signed()), tile(2 * pair.cast_signed() + 1)]
    });
    // Where the compiler knows it, it makes a permutation of a blend, which waits longer for fewer units.
    let upper = std::hint::black_box(0xff00_u16);
    let mut acc = [[_mm512_setzero_si512(); 3]; PAIRS];
    for step in 0..isize_of(steps) {
        // SAFETY: the weights of a step of the first block.
        let whole = unsafe { load_64(weights) };
        // SAFETY: of the second.
        let lower = unsafe { load_64(weights.wrapping_add(64)) };
        for pair in 0..PAIRS {
            // SAFETY: two inputs of a tile.
            let [a, b] = at[pair].map(|at| unsafe { broadcast_4(at.wrapping_offset(4 * step)) });
            let both = _mm512_mask_blend_epi32(upper, a, b);
            acc[pair] = [
                multiply_add(acc[pair][0], a, whole),
                multiply_add(acc[pair][1], b, whole),
                multiply_add(acc[pair][2], both, lower),
            ];
        }
        weights = weights.wrapping_add(128);
    }
    for (pair, acc) in acc.iter().enumerate() {
        let to = to.wrapping_add(unit_bytes(3) * pair);
        for (vector, acc) in acc.iter().enumerate() {
            // SAFETY: a vector of the pair.
            unsafe { _mm512_store_si512(to.wrapping_add(64 * vector).cast(), *acc) };
        }
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
