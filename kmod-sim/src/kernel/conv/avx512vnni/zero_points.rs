//! Weights with zero points: a sum of products is that of the weights as they are, less the sum of the
//! inputs times the zero point.

use super::pixels::Runs;
use super::{Job, ROOM};
use crate::kernel::room::Room;
use crate::kernel::vector::{load_64, load_masked_64, mask_64};
use crate::memory::usize_of;
use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_i32gather_epi32, _mm512_load_si512, _mm512_mullo_epi32,
    _mm512_reduce_add_epi32, _mm512_set1_epi32, _mm512_setr_epi32, _mm512_setzero_si512,
    _mm512_store_si512, _mm512_sub_epi32,
};

/// For each byte of the longest run, whether it counts in a sum of inputs; in whole vectors.
pub(in crate::kernel::conv) fn counted(job: &Job<'_>) -> Room<u8> {
    let lanes = usize_of((4 * job.steps).unsigned_abs());
    let channels = usize_of(job.problem.group_inputs.unsigned_abs());
    let len = lanes * usize_of(job.window.kernel_w.unsigned_abs());
    (0..len.next_multiple_of(64)).map(|at| u8::from(at % lanes < channels)).collect()
}

/// The sum of what each of `count` pixels' windows cover, of the group whose first input that is.
///
/// # Safety
/// As of [`super::run`]; the runs are those of the pixels, and `counted` is that of the job.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) unsafe fn sums(
    runs: &Runs<'_>,
    count: usize,
    first_input: isize,
    counted: &[u8],
) -> [i32; ROOM] {
    let len = 4 * runs.steps;
    let mut out = [0; ROOM];
    for (r, out) in out.iter_mut().enumerate().take(count) {
        let mut sum = _mm512_setzero_si512();
        for run in runs.addresses {
            let at = run[r].wrapping_offset(first_input);
            for (first, ones) in (0..len).step_by(64).zip(counted.chunks_exact(64)) {
                let mask = mask_64(i64::try_from(len - first).unwrap_or(64));
                // SAFETY: the bytes of the run, which the tile reads as well.
                let codes = unsafe { load_masked_64(mask, at.wrapping_add(first)) };
                // SAFETY: 64 bytes of a slice.
                let ones = unsafe { load_64(ones.as_ptr()) };
                sum = _mm512_dpbusd_epi32(sum, codes, ones);
            }
        }
        *out = _mm512_reduce_add_epi32(sum);
    }
    out
}

/// Takes the sum of each pixel's inputs times each channel's zero point from `sums`.
///
/// # Safety
/// Vector instructions present; `sums` are `BLOCKS` vectors for each of `count` pixels, aligned, and the
/// records of as many blocks are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline(never)]
pub(super) unsafe fn subtract<const BLOCKS: usize>(
    sums: *mut __m512i,
    inputs: &[i32; ROOM],
    count: usize,
    records: *const u8,
) {
    // Records are 16 bytes: twice the scale of the indices.
    let record = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for v in 0..BLOCKS {
        let zero_points = records.wrapping_add(256 * v + 8);
        // SAFETY: the third word of each of 16 records.
        let zero_points = unsafe { _mm512_i32gather_epi32::<8>(record, zero_points.cast()) };
        for (r, &input) in inputs.iter().enumerate().take(count) {
            let at = sums.wrapping_add(r * BLOCKS + v);
            let less = _mm512_mullo_epi32(_mm512_set1_epi32(input), zero_points);
            // SAFETY: a vector of the caller's.
            let sum = unsafe { _mm512_load_si512(at.cast()) };
            let sum = _mm512_sub_epi32(sum, less);
            // SAFETY: as above.
            unsafe { _mm512_store_si512(at.cast(), sum) };
        }
    }
}
