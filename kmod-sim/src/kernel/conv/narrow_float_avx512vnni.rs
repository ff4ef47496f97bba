//! Sums in floats of one tap and few output channels on AVX-512: lanes are pixels, not output channels, most
//! of which would be none. Sums are made as they are defined, nothing is settled by integers first.
//!
//! ```text
//! 64 pixels x 16 channels, turned:  a register holds one channel of all pixels
//! per channel: codes -> floats, times the weight of each of four outputs, fused
//! ```

use super::depthwise_avx512vnni::{interleave, transpose_lanes};
use super::scalar::weight_at;
use super::{Problem, float as definition};
use crate::kernel::Stop;
use crate::kernel::operand::Map;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::stage::Float;
use crate::kernel::vector::turn::turned_lanes;
use crate::kernel::vector::{Channels, load_masked_64, mask_64, pack_64, stage::Stage};
use crate::memory::{isize_of, usize_of};
use npu_uapi::float_order::{Steps, weight};
use std::arch::x86_64::{
    __m512, __m512i, _mm_loadu_si128, _mm512_add_epi32, _mm512_add_ps, _mm512_castsi128_si512,
    _mm512_castsi512_si128, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtps_epi32,
    _mm512_div_ps, _mm512_fmadd_ps, _mm512_inserti32x4, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_storeu_si512, _mm512_sub_epi32,
};

/// Pixels side by side.
const PIXELS: usize = 64;

/// Outputs side by side.
const OUTPUTS: usize = 4;

/// Most input channels.
const INPUTS: usize = 128;

/// Whether this kernel takes `p`, which sums in floats.
pub(crate) fn takes(p: &Problem, float: Float) -> bool {
    let [inputs, outputs] = [INPUTS, OUTPUTS].map(|count| i64::try_from(count).unwrap_or(0));
    is_one_block(p, float) && p.group_inputs <= inputs && p.outputs <= outputs && p.aux.is_none()
}

/// Whether sums are of one tap, in one block of fused steps.
pub(super) fn is_one_block(p: &Problem, float: Float) -> bool {
    let w = &p.window;
    let is_one_tap = p.taps() == 1
        && (w.stride_h, w.stride_w, w.pad_top, w.pad_left) == (1, 1, 0, 0)
        && (p.ofm_h, p.ofm_w) == (p.ifm_h, p.ifm_w);
    let is_one_block = match float.order.steps {
        Steps::Fused(terms) => terms >= p.group_inputs.unsigned_abs(),
        Steps::Quads | Steps::Lanes => false,
    };
    is_one_tap && is_one_block && p.groups == 1
}

/// What each output needs.
struct Weights {
    /// By input channel.
    weights: [[f32; OUTPUTS]; INPUTS],
    biases: [f32; OUTPUTS],
}

/// Runs `problem`.
///
/// # Safety
/// `takes(problem, float)`, on a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, float: Float, split: &Split<'_>) -> Result<(), Stop> {
    let mut weights = Weights { weights: [[0.0; OUTPUTS]; INPUTS], biases: [0.0; OUTPUTS] };
    for (oc, output) in (0..p.outputs).zip(0..OUTPUTS) {
        let record = definition::record(p, oc);
        weights.biases[output] = record.bias;
        let first = weight_at(p, oc, 0);
        for (ic, input) in (0..p.group_inputs).zip(&mut weights.weights) {
            let code = p.weights.memory.load(first + ic / 4 * 64 + ic % 4).cast_signed();
            input[output] = weight(code, record.weight_scale);
        }
    }
    let (mut images, mut rows, mut columns) = (p.images, p.ofm_h, p.ofm_w);
    if [&p.ifm, &p.ofm].iter().all(|map| map.is_linear(images, rows, columns)) {
        (images, rows, columns) = (1, 1, images * rows * columns);
    }
    let room = i64::try_from(PIXELS).unwrap_or(64);
    let tiles = (columns + room - 1) / room;
    let units = images * rows * tiles;
    let cost = room * p.group_inputs * 8;
    let each = split.units_a_chunk(units, cost);
    split.chunks((units + each - 1) / each, &|chunk, budget| {
        for unit in chunk * each..((chunk + 1) * each).min(units) {
            let (row, x) = (unit / tiles, unit % tiles * room);
            let at = [row / rows, row % rows, x];
            let count = (columns - x).min(room);
            // SAFETY: the processor is the caller's promise; the pixels exist.
            unsafe { tile(p, float, &weights, at, count, budget)? };
        }
        Ok(())
    })
}

/// `count` pixels of a row, at most 64, from `at` on.
///
/// # Safety
/// As of [`run`]; the pixels exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn tile(
    p: &Problem,
    float: Float,
    weights: &Weights,
    [n, y, x]: [i64; 3],
    count: i64,
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    budget.spend(p.group_inputs * 8 * count)?;
    let from = p.ifm.pointer(p.ifm.at(n, y, x));
    let (zero, scale) =
        (_mm512_set1_epi32(p.input_zero_point.into()), _mm512_set1_ps(float.input_scale));
    let mut sums = [[_mm512_setzero_ps(); 4]; OUTPUTS];
    for first in (0..p.group_inputs).step_by(16) {
        // SAFETY: the caller's promise, of these channels.
        let turned = unsafe { channels(&p.ifm, from, first, p.group_inputs - first, count) };
        let inputs = usize_of(first.unsigned_abs())..usize_of(p.group_inputs.unsigned_abs());
        for (codes, weights) in turned.iter().zip(&weights.weights[inputs]) {
            let mut values = [_mm512_setzero_ps(); 4];
            for (value, quarter) in values.iter_mut().zip(codes.chunks_exact(16)) {
                // SAFETY: sixteen bytes.
                let codes = unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) };
                let codes = _mm512_sub_epi32(_mm512_cvtepu8_epi32(codes), zero);
                *value = _mm512_mul_ps(_mm512_cvtepi32_ps(codes), scale);
            }
            for (sums, &weight) in sums.iter_mut().zip(weights) {
                let weight = _mm512_set1_ps(weight);
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = _mm512_fmadd_ps(value, weight, *sum);
                }
            }
        }
    }
    let stage = Stage::new(&p.stage, Channels { symmetric: true, small: false });
    let outputs = usize_of(p.outputs.unsigned_abs());
    let mut vectors = [_mm512_setzero_si512(); OUTPUTS];
    for ((vector, sums), &bias) in vectors.iter_mut().zip(sums).zip(&weights.biases).take(outputs) {
        let mut bytes = pack_64(sums.map(|sum| code(p, float, sum, bias)));
        if !stage.plain {
            // SAFETY: nothing is added, so nothing is read.
            bytes = unsafe { stage.rest_64(bytes, 0, std::ptr::null()) };
        }
        *vector = bytes;
    }
    let to = p.ofm.pointer(p.ofm.at(n, y, x));
    if outputs == OUTPUTS && count == 64 && p.ofm.pixel == 4 {
        for (quarter, bytes) in transpose_lanes(interleave(vectors)).into_iter().enumerate() {
            // SAFETY: sixteen pixels of the output, which follow without a gap.
            unsafe { _mm512_storeu_si512(to.wrapping_add(64 * quarter).cast(), bytes) };
        }
        return Ok(());
    }
    let mut planes = [[0_u8; PIXELS]; OUTPUTS];
    for (plane, vector) in planes.iter_mut().zip(vectors) {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(plane.as_mut_ptr().cast(), vector) };
    }
    for (pixel, at) in (0..count).zip(0..PIXELS) {
        let to = to.wrapping_offset(isize_of(pixel * p.ofm.pixel));
        if outputs == OUTPUTS {
            let codes = planes.each_ref().map(|plane| plane[at]);
            // SAFETY: four channels of a pixel of the output.
            unsafe { to.cast::<[u8; OUTPUTS]>().write(codes) };
            continue;
        }
        for (output, plane) in planes.iter().enumerate().take(outputs) {
            // SAFETY: a channel of a pixel of the output.
            unsafe { to.wrapping_add(output).write(plane[at]) };
        }
    }
    Ok(())
}

/// Sixteen sums without their bias as codes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn code(p: &Problem, float: Float, sum: __m512, bias: f32) -> __m512i {
    let bias = _mm512_set1_ps(bias);
    let start = if float.order.bias_first { bias } else { _mm512_setzero_ps() };
    let sum = _mm512_add_ps(start, sum);
    let sum = if float.order.bias_first { sum } else { _mm512_add_ps(sum, bias) };
    let value = _mm512_div_ps(sum, _mm512_set1_ps(float.output_scale));
    let [low, high] = [p.stage.low, p.stage.high]
        .map(|code| _mm512_set1_ps(f32::from(i16::from(code) - i16::from(p.stage.zero_point))));
    // In this order a NaN becomes the lowest code.
    let clamped = _mm512_min_ps(_mm512_max_ps(value, low), high);
    let zero_point = _mm512_set1_epi32(p.stage.zero_point.into());
    _mm512_add_epi32(_mm512_cvtps_epi32(clamped), zero_point)
}

/// Up to sixteen channels from `first` on of `count` pixels; channels that are none are zero, pixels that
/// are none repeat the last.
///
/// # Safety
/// They are readable; vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn channels(
    map: &Map,
    from: *const u8,
    first: i64,
    channels: i64,
    count: i64,
) -> [[u8; PIXELS]; 16] {
    // A pixel's lanes are its own; those that are no channels are left aside.
    let lanes = if map.lanes - first >= 16 { 16 } else { channels.min(16) };
    let mask = mask_64(lanes);
    let mut rows = [_mm512_setzero_si512(); 16];
    for (row, pixel) in rows.iter_mut().zip(0..) {
        let load = |lane: i64| {
            let pixel = (pixel + 16 * lane).min(count - 1);
            let at = from.wrapping_offset(isize_of(pixel * map.pixel + first));
            // SAFETY: lanes of a pixel that exists.
            _mm512_castsi512_si128(unsafe { load_masked_64(mask, at) })
        };
        let low = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(load(0)), load(1));
        *row = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(low, load(2)), load(3));
    }
    let mut out = [[0; PIXELS]; 16];
    for (out, row) in out.iter_mut().zip(turned_lanes(rows)) {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), row) };
    }
    out
}
