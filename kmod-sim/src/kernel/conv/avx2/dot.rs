//! Products of a step, on AVX2 and on AVX-VNNI: the one place where their dense kernels differ.
//! Unsafe: the instruction, raw loads, and a copy of the inputs as AVX2 reads them.

use super::super::avx512vnni::Runs;
use super::MOST_PIXELS;
use crate::kernel::vector_avx2::{all, load_32, load_some};
use std::arch::asm;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_madd_epi16, _mm256_permute2x128_si256,
    _mm256_slli_epi16, _mm256_srai_epi16, _mm256_srli_epi16, _mm256_storeu_si256,
    _mm256_unpackhi_epi32, _mm256_unpacklo_epi32,
};

/// Four input channels of some pixels times a block of 16 outputs.
pub(super) trait Dot {
    /// Bytes from one step of a pixel's inputs to the next.
    const STEP: usize;
    /// Inputs are widened to 16 bits before.
    const WIDE: bool;

    /// Adds the products of a step to `acc`.
    ///
    /// # Safety
    /// A processor with the instructions; `STEP` bytes are readable at each of `at`, 64 at `weights`.
    unsafe fn step<const PIXELS: usize>(
        acc: &mut [[__m256i; 2]; PIXELS],
        at: &[*const u8; PIXELS],
        weights: *const u8,
    );
}

/// AVX-VNNI: four products of bytes a lane, summed in 32 bits.
pub(super) struct Vnni;

/// AVX2: two products of 16 bits a lane, summed in 32 bits. The products of bytes that it has sum two of
/// u8 by s8 in 16 bits and saturate, so bytes are widened: of the four of a lane, those at even places in
/// one vector, those at odd places in another. |x w| <= 255 * 128, so two products and their sum are exact.
pub(super) struct Widened;

/// Four bytes, in all 8 lanes.
///
/// # Safety
/// They must be readable.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn broadcast_4(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    all(unsafe { from.cast::<i32>().read_unaligned() })
}

impl Dot for Vnni {
    const STEP: usize = 4;
    const WIDE: bool = false;

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn step<const PIXELS: usize>(
        acc: &mut [[__m256i; 2]; PIXELS],
        at: &[*const u8; PIXELS],
        weights: *const u8,
    ) {
        // SAFETY: the caller's promise, for both.
        let w = unsafe { [load_32(weights), load_32(weights.wrapping_add(32))] };
        for (acc, at) in acc.iter_mut().zip(at) {
            // SAFETY: the caller's promise.
            let x = unsafe { broadcast_4(*at) };
            for (acc, w) in acc.iter_mut().zip(w) {
                // By name: the function that has the intrinsic would need a feature that this code,
                // which serves AVX2 as well, cannot ask for.
                // SAFETY: the instruction exists, by the caller's promise; it has registers only.
                unsafe {
                    asm!(
                        "{{vex}} vpdpbusd {acc}, {x}, {w}",
                        acc = inout(ymm_reg) *acc,
                        x = in(ymm_reg) x,
                        w = in(ymm_reg) w,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
            }
        }
    }
}

impl Dot for Widened {
    const STEP: usize = 8;
    const WIDE: bool = true;

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn step<const PIXELS: usize>(
        acc: &mut [[__m256i; 2]; PIXELS],
        at: &[*const u8; PIXELS],
        weights: *const u8,
    ) {
        // SAFETY: the caller's promise, for both.
        let w = unsafe { [load_32(weights), load_32(weights.wrapping_add(32))] };
        let even = w.map(|w| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)));
        for (acc, at) in acc.iter_mut().zip(at) {
            // SAFETY: the caller's promise.
            let x = unsafe { broadcast_4(*at) };
            for (acc, w) in acc.iter_mut().zip(even) {
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(x, w));
            }
        }
        let odd = w.map(|w| _mm256_srai_epi16::<8>(w));
        for (acc, at) in acc.iter_mut().zip(at) {
            // SAFETY: the caller's promise.
            let x = unsafe { broadcast_4(at.wrapping_add(4)) };
            for (acc, w) in acc.iter_mut().zip(odd) {
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(x, w));
            }
        }
    }
}

/// The inputs of a tile and a group, as [`Dot::step`] reads them.
#[derive(Default)]
pub(super) struct Inputs {
    runs: Vec<[*const u8; MOST_PIXELS]>,
    steps: usize,
    /// Widened inputs; not used by what reads them in place.
    wide: Vec<u8>,
}

impl Inputs {
    pub(super) fn runs(&self) -> &[[*const u8; MOST_PIXELS]] {
        &self.runs
    }

    /// Steps of a run.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Takes the runs of `count` pixels from `first_input` of each on.
    ///
    /// # Safety
    /// Vector instructions present; the runs' bytes are readable from there on, while `self` is used.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn prepare<D: Dot>(
        &mut self,
        runs: &Runs<'_>,
        count: usize,
        first_input: isize,
    ) {
        self.steps = runs.steps;
        self.runs.clear();
        let offset = |at: *const u8| at.wrapping_offset(first_input);
        self.runs.extend(runs.addresses.iter().map(|run| std::array::from_fn(|r| offset(run[r]))));
        if !D::WIDE {
            return;
        }
        let len = 4 * self.steps;
        // Whole vectors, so that the last is stored as one.
        let room = 2 * len.next_multiple_of(32);
        self.wide.resize(room * count * self.runs.len(), 0);
        let mut to = self.wide.as_mut_ptr();
        for run in &mut self.runs {
            for at in &mut run[..count] {
                // SAFETY: the caller's promise, and room for the vectors.
                unsafe { widen(*at, len, to) };
                *at = to;
                to = to.wrapping_add(room);
            }
        }
    }
}

/// `len` bytes, in fours, as 16-bit numbers: the first and third of each four, then the others.
///
/// # Safety
/// Vector instructions present; so many bytes are readable, and there is room for twice as many,
/// rounded up to 64.
#[target_feature(enable = "avx2,fma")]
unsafe fn widen(from: *const u8, len: usize, to: *mut u8) {
    for at in (0..len).step_by(32) {
        // SAFETY: the caller's promise.
        let bytes = unsafe { load_some(from.wrapping_add(at), (len - at).min(32)) };
        let even = _mm256_and_si256(bytes, all(0x00ff_00ff));
        let odd = _mm256_srli_epi16::<8>(bytes);
        let (low, high) = (_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd));
        let to = to.wrapping_add(2 * at);
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_si256(to.cast(), _mm256_permute2x128_si256::<0x20>(low, high));
        }
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_si256(
                to.wrapping_add(32).cast(),
                _mm256_permute2x128_si256::<0x31>(low, high),
            );
        }
    }
}
