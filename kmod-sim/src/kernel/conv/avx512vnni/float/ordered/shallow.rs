//! Tiles of shallow layers: few terms a sum, so that what follows the products weighs as much as they do.
//!
//! Sums become codes in the registers in which they were made, one block of channels after the other.

use super::Ordered;
use super::block::{Block, Terms};
use super::finish::{Finish, Place};
use super::settle::Open;
use super::tile::{MOST_HERE, sums};
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::vector::stage::Stage;
use std::arch::x86_64::_mm512_setzero_si512;

/// Most terms of a shallow layer's sum.
pub(super) const MOST_TERMS: i64 = 128;

/// Kernels by pixels less one.
type Kernel = unsafe fn((&Ordered<'_>, &Block), usize, &Finish<'_>, &Terms, &mut Vec<Open>);
macro_rules! kernels {
    ($plain:literal: $($pixels:literal)*) => { [$(tile::<$pixels, $plain> as Kernel),*] };
}
const TILES: [[Kernel; MOST_HERE]; 2] =
    [kernels!(false: 1 2 3 4 5 6 7), kernels!(true: 1 2 3 4 5 6 7)];

/// The codes of a block of channels of some pixels; notes those that are open.
///
/// # Safety
/// As of [`super::run`]; pixels and the place's lanes lie in the problem, and the layer is shallow.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) unsafe fn codes(
    (all, stage, block): (&Ordered<'_>, &Stage, &Block),
    (pixels, terms): (&Pixels, &Terms),
    place: &Place,
    open: &mut Vec<Open>,
) {
    let finish = Finish::new((all, stage, block), (pixels, terms), place);
    let mut first = 0;
    while first < pixels.count {
        let count = (pixels.count - first).min(MOST_HERE);
        let kernel = TILES[usize::from(stage.plain)][count - 1];
        // SAFETY: the caller's promise.
        unsafe { kernel((all, block), first, &finish, terms, open) };
        first += count;
    }
}

/// One tile: `PIXELS` pixels from `first` on.
///
/// # Safety
/// As of [`codes`]; there are so many pixels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn tile<const PIXELS: usize, const PLAIN: bool>(
    (all, block): (&Ordered<'_>, &Block),
    first: usize,
    finish: &Finish<'_>,
    terms: &Terms,
    open: &mut Vec<Open>,
) {
    let mut at = [std::ptr::null(); PIXELS];
    at.copy_from_slice(&terms.rows[first..first + PIXELS]);
    let weights = [all.weights(finish.block())];
    let mut sizes = [[_mm512_setzero_si512()]; PIXELS];
    // SAFETY: the caller's promise.
    let sums = unsafe { sums(&at, &weights, &[&block.shifts], 0..all.steps, &mut sizes) };
    let mut codes = [_mm512_setzero_si512(); MOST_HERE + 1];
    let mut settled = [0; MOST_HERE + 1];
    for r in 0..PIXELS {
        let ([sum], [size]) = (sums[r], sizes[r]);
        (codes[r], settled[r]) = finish.code::<true>(first + r, (sum, size), open);
    }
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (codes, settled);
    // SAFETY: the caller's promise.
    unsafe { finish.put::<PLAIN>((first, PIXELS.min(4)), [a, b, c, d], [i, j, k, l]) };
    if PIXELS > 4 {
        // SAFETY: the caller's promise.
        unsafe { finish.put::<PLAIN>((first + 4, PIXELS - 4), [e, f, g, h], [m, n, o, p]) };
    }
}
