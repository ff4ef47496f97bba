//! Tiles of integer sums in the order of the floats, and of the sizes of their partial sums.

use super::block::Block;
use super::{Ordered, STEPS};
use crate::kernel::conv::avx512vnni::MOST_VECTORS;
use crate::kernel::vector::{broadcast_4, load_64};
use std::arch::x86_64::{
    __m512i, _mm512_abs_epi32, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_load_si512,
    _mm512_loadu_si512, _mm512_setzero_si512, _mm512_store_si512,
};
use std::ops::Range;

/// Most pixels of a tile: 7 x 2 sums and as many sizes, 2 vectors of weights and a broadcast fill 31
/// registers.
pub(super) const MOST_HERE: usize = 7;

/// The same of four blocks.
pub(super) const MOST_OF_FOUR: usize = 3;

/// Kernels by log2 of blocks and by pixels less one.
pub(super) type Kernel =
    unsafe fn(&Ordered<'_>, &[Option<&Block>; 4], i64, &[*const u8], *mut __m512i);
macro_rules! kernels {
    ($blocks:literal: $($pixels:literal)*) => { [$(tile::<$pixels, $blocks> as Kernel),*] };
}
pub(super) const TILES: [[Kernel; MOST_HERE]; 3] = [
    kernels!(1: 1 2 3 4 5 6 7),
    kernels!(2: 1 2 3 4 5 6 7),
    kernels!(4: 1 2 3 3 3 3 3), // behind 3 never called
];

/// The sums of a block of terms, of these `steps`, whose partial sums' sizes are added to `sizes`.
///
/// # Safety
/// Vector instructions present; there are such steps of the pixels `at` and of the blocks of channels whose
/// `weights` these are, and of their `shifts` if there are any.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) unsafe fn sums<const PIXELS: usize, const BLOCKS: usize>(
    at: &[*const u8; PIXELS],
    weights: &[*const u8; BLOCKS],
    shifts: &[&[[i32; 16]]; BLOCKS],
    steps: Range<usize>,
    sizes: &mut [[__m512i; BLOCKS]; PIXELS],
) -> [[__m512i; BLOCKS]; PIXELS] {
    let is_shifted = !shifts[0].is_empty();
    let mut acc = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
    let mut step = steps.start;
    while step < steps.end {
        if is_shifted {
            for v in 0..BLOCKS {
                let shift = shifts[v][step / STEPS].as_ptr();
                // SAFETY: sixteen integers.
                let shift = unsafe { _mm512_loadu_si512(shift.cast()) };
                for row in &mut acc {
                    row[v] = _mm512_add_epi32(row[v], shift);
                }
            }
        }
        for step in step..(step + STEPS).min(steps.end) {
            let mut w = [_mm512_setzero_si512(); BLOCKS];
            for (w, &weights) in w.iter_mut().zip(weights) {
                // SAFETY: the weights of this step of the block.
                *w = unsafe { load_64(weights.wrapping_add(64 * step)) };
            }
            for r in 0..PIXELS {
                // SAFETY: four terms of the pixel, pad lanes included.
                let x = unsafe { broadcast_4(at[r].wrapping_add(4 * step)) };
                for v in 0..BLOCKS {
                    acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], x, w[v]);
                }
            }
        }
        for r in 0..PIXELS {
            for v in 0..BLOCKS {
                sizes[r][v] = _mm512_add_epi32(sizes[r][v], _mm512_abs_epi32(acc[r][v]));
            }
        }
        step += STEPS;
    }
    acc
}

/// One tile: the pixels whose terms are at `rows` by `BLOCKS` blocks from `first_block` of all groups on.
/// Stores the sums of each pixel at `totals`, and the sizes of partial sums behind.
///
/// # Safety
/// As of [`super::run`]; the blocks exist and are made, there are `PIXELS` rows of as many terms as a sum
/// has, and `totals` leads to the place of the first pixel in [`Vectors`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn tile<const PIXELS: usize, const BLOCKS: usize>(
    all: &Ordered<'_>,
    blocks: &[Option<&Block>; 4],
    first_block: i64,
    rows: &[*const u8],
    totals: *mut __m512i,
) {
    let mut weights = [std::ptr::null(); BLOCKS];
    for (index, weights) in (first_block..).zip(&mut weights) {
        *weights = all.weights(index);
    }
    let mut shifts: [&[[i32; 16]]; BLOCKS] = [&[]; BLOCKS];
    for (shifts, block) in shifts.iter_mut().zip(blocks.iter().flatten()) {
        *shifts = &block.shifts;
    }
    let mut at = [std::ptr::null(); PIXELS];
    at.copy_from_slice(rows);
    let mut sizes = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
    let mut step = 0;
    while step < all.steps {
        let is_first = step == 0;
        let block_end = (step + all.block_steps).min(all.steps);
        // SAFETY: the caller's promise.
        let acc = unsafe { sums(&at, &weights, &shifts, step..block_end, &mut sizes) };
        step = block_end;
        for (r, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                let to = totals.wrapping_add(r * BLOCKS + v);
                let mut total = acc;
                if !is_first {
                    // SAFETY: the caller's promise; it was stored behind the block before.
                    let before = unsafe { _mm512_load_si512(to.cast_const().cast()) };
                    total = _mm512_add_epi32(before, acc);
                }
                // SAFETY: the caller's promise.
                unsafe { _mm512_store_si512(to.cast(), total) };
            }
        }
    }
    for (r, sizes) in sizes.iter().enumerate() {
        for (v, size) in sizes.iter().enumerate() {
            let to = totals.wrapping_add(MOST_VECTORS + r * BLOCKS + v);
            // SAFETY: the caller's promise.
            unsafe { _mm512_store_si512(to.cast(), *size) };
        }
    }
}
