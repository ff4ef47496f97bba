//! Codes that an integer sum does not settle: the sixteen channels around them, summed in floats.

use super::{Codes, Unsettled, store};
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{Job, isize_of, usize_of};
use crate::kernel::conv::float as definition;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::stage::Float;
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{load_64, load_codes, mask_16};
use std::arch::x86_64::{
    __m512, _mm_cvtsi32_si128, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_roundscale_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_sll_epi32, _mm512_srai_epi32,
    _mm512_storeu_ps, _mm512_sub_epi32,
};

/// Sums in floats that are made side by side, to hide the latency of one another.
pub(super) const ABREAST: usize = 8;

/// Sums the pixels of `some`, which are of one block, in floats, and stores their codes.
///
/// # Safety
/// As of [`super::run`]; blocks and pixels exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) unsafe fn settle(
    job: &Job<'_>,
    (float, codes): (Float, Codes),
    stage: &Stage,
    some: &[Unsettled],
    len: u64,
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let p = job.problem;
    let block = some[0].block;
    let (group, within) = (block / job.blocks, block % job.blocks);
    let first_output = group * p.group_outputs + within * 16;
    let [taps, inputs_a_tap] =
        [p.taps(), 4 * job.steps].map(|count| usize_of(count.unsigned_abs()));
    // Taps are read side by side: without a gap, those of 512 channels would fall on two sets of the cache.
    let gap = if inputs_a_tap.is_multiple_of(16) { 16 } else { 0 };
    let tap_room = inputs_a_tap + gap;
    let terms = taps * tap_room;
    let (mut addresses, mut window) = (Vec::new(), Vec::new());
    let mut inputs = vec![0f32; terms * some.len() + 16];
    let mut places = [(std::ptr::null_mut(), std::ptr::null()); ABREAST];
    let scale = _mm512_set1_ps(float.input_scale);
    let zero = _mm512_set1_epi32(p.input_zero_point.into());
    for (index, one) in some.iter().enumerate() {
        let pixels = Pixels::new(job, one.pixel, 1);
        let runs = pixels.runs(job, &mut addresses, &mut window);
        let to = isize_of(first_output);
        places[index] = (pixels.out[0].wrapping_offset(to), pixels.aux[0].wrapping_offset(to));
        let (room, mut at) = (&mut inputs[index * terms..], 0);
        for run in runs.addresses {
            let from = run[0].wrapping_offset(isize_of(group * p.group_inputs));
            for first in (0..4 * runs.steps).step_by(16) {
                let lanes = mask_16(i64::try_from(4 * runs.steps - first).unwrap_or(16));
                // SAFETY: bytes of the run, which the tile read as well.
                let codes = unsafe { load_codes(lanes, from.wrapping_add(first)) };
                let floats =
                    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero)), scale);
                let to = at + first + (at + first) / inputs_a_tap * gap;
                let to = room[to..to + 16].as_mut_ptr();
                // SAFETY: sixteen floats of the vector; what lies behind a run is written over.
                unsafe { _mm512_storeu_ps(to, floats) };
            }
            at += 4 * runs.steps;
        }
    }
    budget.spend(8 * p.taps() * p.group_inputs * 16)?;
    let mut weight_scales = [0f32; 16];
    let mut biases = [0f32; 16];
    for lane in 0..(p.group_outputs - within * 16).min(16) {
        let record = definition::record(p, first_output + lane);
        let lane = usize_of(lane.unsigned_abs());
        (weight_scales[lane], biases[lane]) = (record.weight_scale, record.bias);
    }
    // SAFETY: sixteen floats.
    let weight_scales = unsafe { _mm512_loadu_ps(weight_scales.as_ptr()) };
    // SAFETY: sixteen floats.
    let bias = unsafe { _mm512_loadu_ps(biases.as_ptr()) };
    let bias_first = float.order.bias_first;
    let start = if bias_first { bias } else { _mm512_setzero_ps() };
    let weights = job.weights.wrapping_offset(isize_of(block * job.block_bytes));
    let shape = Shape { taps, tap_room, inputs: usize_of(p.group_inputs.unsigned_abs()), len };
    let start = (weight_scales, start);
    let sums = if some.len() > ABREAST / 2 {
        // SAFETY: the weights of the block, and as many inputs as terms for each.
        unsafe { sums::<ABREAST>(weights, &inputs, terms, some.len(), shape, start) }
    } else {
        // SAFETY: the weights of the block, and as many inputs as terms for each.
        unsafe { sums::<{ ABREAST / 2 }>(weights, &inputs, terms, some.len(), shape, start) }
    };
    let divisor = _mm512_set1_ps(float.output_scale);
    let (low, high) = (_mm512_set1_ps(codes.low), _mm512_set1_ps(codes.high));
    for ((one, &sum), &places) in some.iter().zip(&sums).zip(&places) {
        let sum = if bias_first { sum } else { _mm512_add_ps(sum, bias) };
        let value = _mm512_div_ps(sum, divisor);
        // In this order a NaN becomes the lowest code.
        let clamped = _mm512_min_ps(_mm512_max_ps(value, low), high);
        let rounded = _mm512_roundscale_ps::<8>(clamped);
        // SAFETY: these lanes exist.
        unsafe { store(codes, stage, rounded, one.lanes, places) };
    }
    Ok(())
}

/// Taps, floats from one to the next, input channels and terms of a block.
#[derive(Clone, Copy)]
struct Shape {
    taps: usize,
    tap_room: usize,
    inputs: usize,
    len: u64,
}

/// Up to `COUNT` sums of a block of channels in the order of `Fused`. Those that do not exist repeat the last.
///
/// # Safety
/// Vector instructions present; `weights` are those of a block of the shape, and `inputs` holds `terms`
/// floats for each of `count`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn sums<const COUNT: usize>(
    weights: *const u8,
    inputs: &[f32],
    terms: usize,
    count: usize,
    shape: Shape,
    (scales, start): (__m512, __m512),
) -> [__m512; ABREAST] {
    let at: [*const f32; COUNT] =
        std::array::from_fn(|i| inputs[i.min(count - 1) * terms..].as_ptr());
    let steps = shape.inputs.div_ceil(4);
    let mut total = [start; COUNT];
    let mut part = [_mm512_setzero_ps(); COUNT];
    let mut left = shape.len;
    for input in 0..shape.inputs {
        let (step, byte) = (input / 4, input % 4);
        let up = _mm_cvtsi32_si128([24, 16, 8, 0][byte]);
        for tap in 0..shape.taps {
            // SAFETY: the weights of a tap and four inputs of the block.
            let four = unsafe { load_64(weights.wrapping_add((tap * steps + step) * 64)) };
            let whole = _mm512_srai_epi32::<24>(_mm512_sll_epi32(four, up));
            let weight = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scales);
            let index = tap * shape.tap_room + input;
            for i in 0..COUNT {
                // SAFETY: one of the terms of the sum's inputs.
                let x = _mm512_set1_ps(unsafe { *at[i].wrapping_add(index) });
                part[i] = _mm512_fmadd_ps(x, weight, part[i]);
            }
            left -= 1;
            if left == 0 {
                for i in 0..COUNT {
                    total[i] = _mm512_add_ps(total[i], part[i]);
                    part[i] = _mm512_setzero_ps();
                }
                left = shape.len;
            }
        }
    }
    let mut out = [start; ABREAST];
    for i in 0..COUNT {
        out[i] = if left < shape.len { _mm512_add_ps(total[i], part[i]) } else { total[i] };
    }
    out
}

/// The definition, for each code of `some`.
pub(super) fn one_by_one(
    job: &Job<'_>,
    float: Float,
    some: &[Unsettled],
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let p = job.problem;
    for one in some {
        let first = one.block / job.blocks * p.group_outputs + one.block % job.blocks * 16;
        let (row, ox) = (one.pixel / p.ofm_w, one.pixel % p.ofm_w);
        let (n, oy) = (row / p.ofm_h, row % p.ofm_h);
        for lane in (0..16).filter(|lane| one.lanes >> lane & 1 != 0) {
            let oc = first + lane;
            let sum = definition::sum(p, float, [n, oy, ox, oc], budget)?;
            let aux = || p.aux.map_or(0, |aux| aux.load(aux.at(n, oy, ox) + oc));
            let code = p.stage.float_code(float, sum, aux);
            p.ofm.store(p.ofm.at(n, oy, ox) + oc, code);
        }
    }
    Ok(())
}
