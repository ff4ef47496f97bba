//! Weights with zero points, as [`super::super::avx512vnni`] has them: a sum of products is that of the
//! weights as they are, less the sum of the inputs times the zero point. Unsafe: raw loads of inputs.

use super::super::Problem;
use super::super::avx512vnni::Runs;
use super::ROOM;
use crate::kernel::Stop;
use crate::kernel::split::Split;
use crate::kernel::vector_avx2::{Records, all, load_32, load_some};
use crate::memory::usize_of;
use std::arch::x86_64::{
    __m256i, _mm_extract_epi32, _mm_loadu_si128, _mm_or_si128, _mm_setzero_si128, _mm256_add_epi32,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mullo_epi32, _mm256_set1_epi16,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm256_sub_epi32,
};

/// Whether no output channel's weights have a zero point.
///
/// # Safety
/// Vector instructions present.
#[target_feature(enable = "avx2,fma")]
pub(in crate::kernel::conv) unsafe fn are_zero(
    p: &Problem,
    split: &Split<'_>,
) -> Result<bool, Stop> {
    /// Records between two looks whether the job is to end.
    const SOME: u64 = 1 << 20;
    let outputs = p.outputs.unsigned_abs();
    let records = p.records.memory.pointer(p.records.start, 16 * outputs);
    let mut seen = _mm_setzero_si128();
    for output in 0..outputs {
        if output % SOME == SOME - 1 {
            split.poll()?;
        }
        let at = records.wrapping_add(usize_of(16 * output));
        // SAFETY: a record, within what `pointer` checked.
        seen = _mm_or_si128(seen, unsafe { _mm_loadu_si128(at.cast()) });
    }
    Ok(_mm_extract_epi32::<2>(seen) == 0)
}

/// The sum of what each of `count` pixels' windows cover, of the group whose first input that is.
///
/// # Safety
/// As of [`super::run_with`]; the runs are those of the pixels, and `counted` is that of the job.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn sums(
    runs: &Runs<'_>,
    count: usize,
    first_input: isize,
    counted: &[u8],
) -> [i32; ROOM] {
    let len = 4 * runs.steps;
    let mut out = [0; ROOM];
    for (r, out) in out.iter_mut().enumerate().take(count) {
        let mut sum = _mm256_setzero_si256();
        for run in runs.addresses {
            let at = run[r].wrapping_offset(first_input);
            for (first, ones) in (0..len).step_by(32).zip(counted.chunks_exact(32)) {
                // SAFETY: the bytes of the run, which the tile reads as well.
                let codes = unsafe { load_some(at.wrapping_add(first), (len - first).min(32)) };
                // SAFETY: 32 bytes of a slice.
                let ones = unsafe { load_32(ones.as_ptr()) };
                // By ones and zeros, two products do not come near 16 bits.
                let pairs = _mm256_maddubs_epi16(codes, ones);
                let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                sum = _mm256_add_epi32(sum, fours);
            }
        }
        let mut lanes = [0i32; 8];
        // SAFETY: eight integers.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        *out = lanes.iter().fold(0, |sum: i32, lane| sum.wrapping_add(*lane));
    }
    out
}

/// Takes the sum of each pixel's inputs times each channel's zero point from `sums`.
///
/// # Safety
/// Vector instructions present.
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
pub(super) unsafe fn subtract(
    sums: &mut [[__m256i; 2]],
    inputs: &[i32; ROOM],
    records: &[Records; 2],
) {
    for (sums, &input) in sums.iter_mut().zip(inputs) {
        for (sum, records) in sums.iter_mut().zip(records) {
            *sum = _mm256_sub_epi32(*sum, _mm256_mullo_epi32(all(input), records.zero_point));
        }
    }
}
