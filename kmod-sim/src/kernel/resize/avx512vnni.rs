//! RESIZE on AVX-512, 64 channels at a time; takes every problem.

use crate::kernel::Stop;
use crate::kernel::resize::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::{Requantise, load_masked_64, mask_64, pack_64, store_64, unpack_64};
use crate::memory::usize_of;
use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_sub_epi32,
};

/// Channels of a step.
const CHANNELS: i64 = 64;
/// What a step costs, in multiply-accumulates.
const STEP: i64 = 1024;

/// Runs `problem`.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let [n, h, w, c] = p.dims;
    let steps = (c + CHANNELS - 1) / CHANNELS;
    let units = n * h;
    let each = split.units_a_chunk(units, w.saturating_mul(steps).saturating_mul(STEP));
    split.chunks((units + each - 1) / each, &|chunk, budget| {
        for unit in chunk * each..((chunk + 1) * each).min(units) {
            // SAFETY: the processor is the caller's promise; the row exists.
            unsafe { output_row(p, unit / h, unit % h, budget)? };
        }
        Ok(())
    })
}

/// A row of output pixels.
///
/// # Safety
/// As of [`run`]; the row exists.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn output_row(p: &Problem, n: i64, oy: i64, budget: &mut Budget<'_>) -> Result<(), Aborted> {
    let row = p.rows[usize_of(oy.unsigned_abs())];
    let (input_zero, input_scale) =
        (_mm512_set1_epi32(p.input.1.into()), _mm512_set1_ps(p.input.0));
    let (output_scale, finish) = (_mm512_set1_ps(p.output.0), Requantise::new(p.output.1, 0, 255));
    for (ox, column) in (0..).zip(&p.columns) {
        let [first, second] = row.weights;
        let weights = [first, second].map(|row| column.weights.map(|column| column * row));
        let corners = row.at.map(|y| column.at.map(|x| p.ifm.at(n, y, x)));
        let to = p.ofm.at(n, oy, ox);
        for channel in (0..p.dims[3]).step_by(64) {
            budget.spend(STEP)?;
            let mask = mask_64(p.dims[3] - channel);
            let mut sums = [_mm512_setzero_ps(); 4];
            for (place, (corners, weights)) in corners.iter().zip(&weights).enumerate() {
                for (side, (&from, &weight)) in corners.iter().zip(weights).enumerate() {
                    let weight = _mm512_set1_ps(weight);
                    let from = p.ifm.pointer(from + channel);
                    // SAFETY: the channels of `mask` of a pixel of the input.
                    let codes = unsafe { load_masked_64(mask, from) };
                    for (sum, codes) in sums.iter_mut().zip(unpack_64(codes)) {
                        let real = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, input_zero));
                        let term = _mm512_mul_ps(weight, _mm512_mul_ps(real, input_scale));
                        *sum = added(*sum, term, place + side == 0);
                    }
                }
            }
            let mut codes = [_mm512_setzero_si512(); 4];
            for (codes, sum) in codes.iter_mut().zip(sums) {
                *codes = finish.finish(_mm512_div_ps(sum, output_scale));
            }
            let (to, codes) = (p.ofm.pointer(to + channel), pack_64(codes));
            // SAFETY: the channels of `mask` of a pixel of the output.
            unsafe { store_64(to, mask, codes) };
        }
    }
    Ok(())
}

/// `sum + term`, or `term` alone when it is the first.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn added(sum: __m512, term: __m512, is_first: bool) -> __m512 {
    if is_first { term } else { _mm512_add_ps(sum, term) }
}
