//! Products of a step, on AVX2 and on AVX-VNNI: the one place where their dense kernels differ.
//! Unsafe: the instruction, raw loads, and a copy of the inputs as AVX2 reads them.

use super::super::avx512vnni::Runs;
use super::MOST_PIXELS;
use crate::kernel::vector_avx2::{all, load_32, load_64};
use std::arch::asm;
use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_permute2x128_si256, _mm256_slli_epi16, _mm256_srai_epi16,
    _mm256_srli_epi16, _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpacklo_epi32,
};

/// Four input channels of some pixels times a block of 16 outputs.
pub(super) trait Dot {
    /// Bytes from one step of a pixel's inputs to the next.
    const STEP: usize;
    /// Inputs are widened to 16 bits before.
    const WIDE: bool;
    /// The same products for the first block of all, before whose weights nothing is read.
    type First: Dot;

    /// Adds the products of a step to `acc`.
    ///
    /// # Safety
    /// A processor with the instructions; `STEP` bytes are readable `done` bytes behind each of
    /// `at`, 64 at `weights`, and
    /// one before them but where that is the first block.
    unsafe fn step<const PIXELS: usize>(
        acc: &mut [[__m256i; 2]; PIXELS],
        at: &[*const u8; PIXELS],
        done: usize,
        weights: *const u8,
    );
}

/// AVX-VNNI: four products of bytes a lane, summed in 32 bits.
pub(super) struct Vnni;

/// AVX2: two products of 16 bits a lane, summed in 32 bits. The products of bytes that it has sum two of
/// u8 by s8 in 16 bits and saturate, so bytes are widened: of the four of a lane, those at even places in
/// one vector, those at odd places in another. |x w| <= 255 * 128, so two products and their sum are exact.
///
/// The upper byte of a word moves down by one shift, so weights at even places are read as upper bytes,
/// from an address less one. Of the `FIRST` block there may be no byte before; it takes two shifts.
pub(super) struct Widened<const FIRST: bool>;

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
    type First = Self;

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn step<const PIXELS: usize>(
        acc: &mut [[__m256i; 2]; PIXELS],
        at: &[*const u8; PIXELS],
        done: usize,
        weights: *const u8,
    ) {
        // SAFETY: the caller's promise.
        let w = unsafe { load_64(weights) };
        for (acc, at) in acc.iter_mut().zip(at) {
            // SAFETY: the caller's promise.
            let x = unsafe { broadcast_4(at.wrapping_add(done)) };
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

impl<const FIRST: bool> Dot for Widened<FIRST> {
    const STEP: usize = 8;
    const WIDE: bool = true;
    type First = Widened<true>;

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn step<const PIXELS: usize>(
        acc: &mut [[__m256i; 2]; PIXELS],
        at: &[*const u8; PIXELS],
        done: usize,
        weights: *const u8,
    ) {
        let even = if FIRST {
            // SAFETY: the caller's promise.
            let w = unsafe { load_64(weights) };
            w.map(|w| _mm256_slli_epi16::<8>(w))
        } else {
            // SAFETY: the caller's promise; the byte before is of the block before.
            unsafe { load_64(weights.wrapping_sub(1)) }
        };
        let even = even.map(|w| _mm256_srai_epi16::<8>(w));
        for (acc, at) in acc.iter_mut().zip(at) {
            // SAFETY: the caller's promise.
            unsafe { add_products::<0>(acc, *at, done, even) };
        }
        // SAFETY: the caller's promise.
        let w = unsafe { load_64(weights) };
        let odd = w.map(|w| _mm256_srai_epi16::<8>(w));
        for (acc, at) in acc.iter_mut().zip(at) {
            // SAFETY: the caller's promise.
            unsafe { add_products::<4>(acc, *at, done, odd) };
        }
    }
}

/// Adds two products of 16 bits to each lane of `acc`: of the inputs `AT + done` bytes from `at` on.
///
/// As one statement, for the sake of registers: the compiler would add the products of even and odd places
/// first, and load inputs ahead, and has none left for either.
///
/// # Safety
/// The four bytes must be readable.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn add_products<const AT: usize>(
    [acc_0, acc_1]: &mut [__m256i; 2],
    at: *const u8,
    done: usize,
    [w_0, w_1]: [__m256i; 2],
) {
    // SAFETY: AVX2 is enabled; reads what the caller promises, writes registers only.
    unsafe {
        asm!(
            "vpbroadcastd {x}, dword ptr [{at} + {done} + {offset}]",
            "vpmaddwd {two}, {x}, {w_0}",
            "vpmaddwd {x}, {x}, {w_1}",
            "vpaddd {acc_0}, {acc_0}, {two}",
            "vpaddd {acc_1}, {acc_1}, {x}",
            at = in(reg) at,
            done = in(reg) done,
            offset = const AT,
            acc_0 = inout(ymm_reg) *acc_0,
            acc_1 = inout(ymm_reg) *acc_1,
            w_0 = in(ymm_reg) w_0,
            w_1 = in(ymm_reg) w_1,
            x = out(ymm_reg) _,
            two = out(ymm_reg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
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
        let room = 2 * len;
        self.wide.resize(room * count * self.runs.len(), 0);
        let mut to = self.wide.as_mut_ptr();
        for run in &mut self.runs {
            for at in &mut run[..count] {
                // SAFETY: the caller's promise, and room for the words.
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
/// Vector instructions present; so many bytes are readable, and there is room for twice as many.
#[target_feature(enable = "avx2,fma")]
unsafe fn widen(from: *const u8, len: usize, to: *mut u8) {
    let whole = len / 32 * 32;
    for at in (0..whole).step_by(32) {
        // SAFETY: the caller's promise.
        let bytes = unsafe { load_32(from.wrapping_add(at)) };
        let even = _mm256_and_si256(bytes, all(0x00ff_00ff));
        let odd = _mm256_srli_epi16::<8>(bytes);
        let (low, high) = (_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd));
        let to = to.wrapping_add(2 * at);
        let (low, high) = (
            _mm256_permute2x128_si256::<0x20>(low, high),
            _mm256_permute2x128_si256::<0x31>(low, high),
        );
        // SAFETY: the caller's promise, for both.
        unsafe { _mm256_storeu_si256(to.cast(), low) };
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.wrapping_add(32).cast(), high) };
    }
    for at in (whole..len).step_by(4) {
        // SAFETY: the caller's promise.
        let four = unsafe { from.wrapping_add(at).cast::<u32>().read_unaligned() };
        let (even, odd) = (four & 0x00ff_00ff, four >> 8 & 0x00ff_00ff);
        let words = u64::from(odd) << 32 | u64::from(even);
        // SAFETY: the caller's promise.
        unsafe { to.wrapping_add(2 * at).cast::<u64>().write_unaligned(words) };
    }
}
