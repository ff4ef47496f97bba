//! RESIZE on AVX-512, 16 channels at a time; takes every problem.

use crate::kernel::Stop;
use crate::kernel::resize::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::{Requantise, load_codes, mask_16, store_16};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    _mm512_add_ps, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_sub_epi32,
};

/// Channels of a step.
const CHANNELS: i64 = 16;
/// What a step costs, in multiply-accumulates.
const STEP: i64 = 256;

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
    let c = p.dims[3];
    let (zero, scale) = (_mm512_set1_epi32(p.input.1.into()), _mm512_set1_ps(p.input.0));
    let (output_scale, finish) = (_mm512_set1_ps(p.output.0), Requantise::new(p.output.1, 0, 255));
    for (ox, column) in (0..).zip(&p.columns) {
        let [first, second] = row.weights;
        let [left, right] = column.weights;
        let weights = [left * first, right * first, left * second, right * second];
        let weights = weights.map(|weight| _mm512_set1_ps(weight));
        let [above, below] = row.at;
        let [before, behind] = column.at;
        let corners = [[above, before], [above, behind], [below, before], [below, behind]];
        let corners = corners.map(|[y, x]| p.ifm.pointer(p.ifm.at(n, y, x)));
        let to = p.ofm.pointer(p.ofm.at(n, oy, ox));
        for channel in (0..c).step_by(16) {
            budget.spend(STEP)?;
            let (mask, at) = (mask_16(c - channel), isize_of(channel));
            let terms: [_; 4] = std::array::from_fn(|corner| {
                let from = corners[corner].wrapping_offset(at);
                // SAFETY: the channels of `mask` of a pixel of the input.
                let codes = unsafe { load_codes(mask, from) };
                let real = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero)), scale);
                _mm512_mul_ps(weights[corner], real)
            });
            let above = _mm512_add_ps(terms[0], terms[1]);
            let value = _mm512_add_ps(_mm512_add_ps(above, terms[2]), terms[3]);
            let codes = _mm512_cvtepi32_epi8(finish.finish(_mm512_div_ps(value, output_scale)));
            // SAFETY: the channels of `mask` of a pixel of the output.
            unsafe { store_16(to.wrapping_offset(at), mask, codes) };
        }
    }
    Ok(())
}
