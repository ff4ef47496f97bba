//! Sums of whole images on AVX-512, 64 bytes a step: in 16 bits for as long as they hold, several pixels at
//! a time where they are that narrow.

use crate::kernel::pool::Problem;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::vector::{load_masked_64, mask_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512i, _mm512_add_epi16, _mm512_add_epi32, _mm512_loadu_si512, _mm512_setzero_si512,
    _mm512_storeu_si512, _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpacklo_epi8,
    _mm512_unpacklo_epi16,
};

/// Codes whose sum fits 16 bits.
const SOME: i64 = 257;

/// Sums of 64 bytes each of so many steps.
struct Steps {
    from: *const u8,
    step: isize,
    count: i64,
    mask: u64,
}

/// The sums of up to 64 channels of image `n` from `channel` on, wrapping, in their order.
///
/// # Safety
/// On a processor with the vector instructions; the channels of `mask` exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) unsafe fn of_image(
    p: &Problem,
    n: i64,
    channel: i64,
    mask: u64,
    budget: &mut Budget<'_>,
) -> Result<[__m512i; 4], Aborted> {
    let [_, mut h, mut w, _] = p.dims;
    let map = &p.ifm;
    if map.is_linear(1, h, w) {
        (h, w) = (1, h * w);
    }
    let mut all = [0_i32; 64];
    // A pixel's lanes are its own: what is summed of them is of no channel.
    let at_once =
        if map.pixel == map.lanes && [16, 32].contains(&map.pixel) { 64 / map.pixel } else { 1 };
    for y in 0..h {
        let from = map.pointer(map.at(n, y, 0) + channel);
        let step = isize_of(at_once * map.pixel);
        let (whole, rest) = (w / at_once, w % at_once);
        let every = if at_once > 1 { u64::MAX } else { mask };
        let steps = Steps { from, step, count: whole, mask: every };
        // SAFETY: the pixels of the row, the caller's promise.
        unsafe { steps.add(&mut all, budget)? };
        if rest > 0 {
            let from = from.wrapping_offset(isize_of(whole) * step);
            let steps = Steps { from, step, count: 1, mask: mask_64(rest * map.pixel) };
            // SAFETY: as above, what is left of the row.
            unsafe { steps.add(&mut all, budget)? };
        }
    }
    if at_once > 1 {
        let (first, others) = all.split_at_mut(usize_of(map.pixel.unsigned_abs()));
        for other in others.chunks_exact(first.len()) {
            for (sum, other) in first.iter_mut().zip(other) {
                *sum = sum.wrapping_add(*other);
            }
        }
    }
    let mut sums = [_mm512_setzero_si512(); 4];
    for (sum, sixteen) in sums.iter_mut().zip(all.chunks_exact(16)) {
        // SAFETY: sixteen integers.
        *sum = unsafe { _mm512_loadu_si512(sixteen.as_ptr().cast()) };
    }
    Ok(sums)
}

impl Steps {
    /// Adds them to `all`.
    ///
    /// # Safety
    /// Vector instructions present; the bytes of the mask of each step are readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn add(&self, all: &mut [i32; 64], budget: &mut Budget<'_>) -> Result<(), Aborted> {
        let none = _mm512_setzero_si512();
        let mut sums = [none; 4];
        let mut at = self.from;
        for first in (0..self.count).step_by(usize_of(SOME.unsigned_abs())) {
            let some = (self.count - first).min(SOME);
            budget.spend(some * 512)?;
            let (mut low, mut high) = (none, none);
            for _ in 0..some {
                // SAFETY: the caller's promise.
                let codes = unsafe { load_masked_64(self.mask, at) };
                low = _mm512_add_epi16(low, _mm512_unpacklo_epi8(codes, none));
                high = _mm512_add_epi16(high, _mm512_unpackhi_epi8(codes, none));
                at = at.wrapping_offset(self.step);
            }
            let wide = [
                _mm512_unpacklo_epi16(low, none),
                _mm512_unpackhi_epi16(low, none),
                _mm512_unpacklo_epi16(high, none),
                _mm512_unpackhi_epi16(high, none),
            ];
            for (sum, wide) in sums.iter_mut().zip(wide) {
                *sum = _mm512_add_epi32(*sum, wide);
            }
        }
        for (quarter, sum) in sums.into_iter().enumerate() {
            let mut parts = [0_i32; 16];
            // SAFETY: sixteen integers.
            unsafe { _mm512_storeu_si512(parts.as_mut_ptr().cast(), sum) };
            // Each 128-bit lane was taken apart in four.
            for (index, part) in parts.into_iter().enumerate() {
                let place = &mut all[index / 4 * 16 + quarter * 4 + index % 4];
                *place = place.wrapping_add(part);
            }
        }
        Ok(())
    }
}
