//! Sums in floats of one tap and few input channels on AVX-512: so few products that making them as they are
//! defined takes less than integer sums and the settling of what they leave open.
//!
//! ```text
//! 8 pixels x up to 3 blocks of 16 outputs: a fused step for each input channel, all in registers
//! ```
//!
//! [`super::narrow_float_avx512vnni`] has those of few outputs.

use super::narrow_float_avx512vnni::is_one_block;
use super::scalar::weight_at;
use super::{Problem, float as definition};
use crate::kernel::Stop;
use crate::kernel::room::Room;
use crate::kernel::split::Split;
use crate::kernel::stage::Float;
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{Channels, load_codes, mask_16, store_16};
use crate::memory::{isize_of, usize_of};
use npu_uapi::float_order::weight;
use std::arch::x86_64::{
    __m512, _mm512_add_epi32, _mm512_add_ps, _mm512_castsi512_si128, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_ps, _mm512_cvtps_epi32, _mm512_div_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_epi32, _mm512_zextsi128_si512,
};

/// Pixels of a tile.
const PIXELS: usize = 8;

/// Blocks of a panel: 24 sums, 3 vectors of weights and an input fill 28 registers.
const BLOCKS: usize = 3;

/// Most input channels: with more, integers win.
const INPUTS: usize = 32;

/// Whether this kernel takes `p`, which sums in floats.
pub(crate) fn takes(p: &Problem, float: Float) -> bool {
    let inputs = i64::try_from(INPUTS).unwrap_or(0);
    is_one_block(p, float) && p.group_inputs <= inputs && p.outputs <= 1 << 16 && p.aux.is_none()
}

/// What each output needs, by block of sixteen.
struct Weights {
    inputs: usize,
    /// By block and input channel.
    weights: Room<f32>,
    biases: Room<f32>,
}

impl Weights {
    fn new(p: &Problem) -> Self {
        let (inputs, outputs) =
            (usize_of(p.group_inputs.unsigned_abs()), usize_of(p.outputs.unsigned_abs()));
        let room = outputs.next_multiple_of(16);
        let (mut weights, mut biases) = (Room::of(0.0, room * inputs), Room::of(0.0, room));
        for (oc, (output, bias)) in (0..p.outputs).zip(biases.iter_mut().enumerate()) {
            let record = definition::record(p, oc);
            *bias = record.bias;
            let first = weight_at(p, oc, 0);
            let block = &mut weights[output / 16 * 16 * inputs..][..16 * inputs];
            for (ic, input) in (0..p.group_inputs).zip(block.chunks_exact_mut(16)) {
                let code = p.weights.memory.load(first + ic / 4 * 64 + ic % 4).cast_signed();
                input[output % 16] = weight(code, record.weight_scale);
            }
        }
        Self { inputs, weights, biases }
    }
}

/// Pixels of a tile: how many, and addresses of the first one's input and result.
#[derive(Clone, Copy)]
struct Tile {
    count: usize,
    from: *const u8,
    to: *mut u8,
}

/// Inputs of a tile as floats, by pixel.
type Values = [[f32; INPUTS]; PIXELS];

/// Runs `problem`.
///
/// # Safety
/// `takes(problem, float)`, on a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, float: Float, split: &Split<'_>) -> Result<(), Stop> {
    let weights = Weights::new(p);
    let (mut images, mut rows, mut columns) = (p.images, p.ofm_h, p.ofm_w);
    if [&p.ifm, &p.ofm].iter().all(|map| map.is_linear(images, rows, columns)) {
        (images, rows, columns) = (1, 1, images * rows * columns);
    }
    let room = i64::try_from(PIXELS).unwrap_or(8);
    let tiles = (columns + room - 1) / room;
    let units = images * rows * tiles;
    let cost = room * p.group_inputs * p.outputs * 4;
    let each = split.units_a_chunk(units, cost);
    split.chunks((units + each - 1) / each, &|chunk, budget| {
        // SAFETY: the processor is the caller's promise.
        let sums = unsafe { Sums::new(p, float, &weights) };
        for unit in chunk * each..((chunk + 1) * each).min(units) {
            budget.spend(cost)?;
            let (row, x) = (unit / tiles, unit % tiles * room);
            let (n, y) = (row / rows, row % rows);
            let tile = Tile {
                count: usize_of((columns - x).min(room).unsigned_abs()),
                from: p.ifm.pointer(p.ifm.at(n, y, x)).cast_const(),
                to: p.ofm.pointer(p.ofm.at(n, y, x)),
            };
            // SAFETY: the caller's promise; the pixels exist.
            unsafe { sums.tile(tile) };
        }
        Ok(())
    })
}

/// What a chunk's tiles share.
struct Sums<'a> {
    p: &'a Problem,
    float: Float,
    weights: &'a Weights,
    stage: Stage,
    /// The clamp, less the zero point.
    low: __m512,
    high: __m512,
}

impl<'a> Sums<'a> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new(p: &'a Problem, float: Float, weights: &'a Weights) -> Self {
        let less = |code: u8| f32::from(i16::from(code) - i16::from(p.stage.zero_point));
        Self {
            p,
            float,
            weights,
            stage: Stage::new(&p.stage, Channels { symmetric: true, small: false }),
            low: _mm512_set1_ps(less(p.stage.low)),
            high: _mm512_set1_ps(less(p.stage.high)),
        }
    }

    /// # Safety
    /// As of [`run`]; the pixels exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn tile(&self, tile: Tile) {
        let mut values = [[0.0; INPUTS]; PIXELS];
        // SAFETY: the caller's promise.
        unsafe { self.values(tile, &mut values) };
        let blocks = self.weights.biases.len() / 16;
        for first in (0..blocks).step_by(BLOCKS) {
            let panel = match blocks - first {
                1 => Self::panel::<1>,
                2 => Self::panel::<2>,
                _ => Self::panel::<BLOCKS>,
            };
            // SAFETY: the caller's promise; so many blocks exist.
            unsafe { panel(self, tile, &values, first) };
        }
    }

    /// The inputs of a tile; pixels that are none repeat the last.
    ///
    /// # Safety
    /// As of [`Self::tile`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn values(&self, tile: Tile, values: &mut Values) {
        let zero_point = _mm512_set1_epi32(self.p.input_zero_point.into());
        let scale = _mm512_set1_ps(self.float.input_scale);
        for (pixel, values) in values.iter_mut().enumerate() {
            let pixel = pixel.min(tile.count - 1).cast_signed();
            let from = tile.from.wrapping_offset(pixel.wrapping_mul(isize_of(self.p.ifm.pixel)));
            for (first, values) in
                (0..self.p.group_inputs).step_by(16).zip(values.chunks_exact_mut(16))
            {
                let mask = mask_16(self.p.group_inputs - first);
                // SAFETY: the channels of the mask.
                let codes = unsafe { load_codes(mask, from.wrapping_offset(isize_of(first))) };
                let codes = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero_point));
                let floats = _mm512_mul_ps(codes, scale);
                // SAFETY: sixteen floats.
                unsafe { _mm512_storeu_ps(values.as_mut_ptr(), floats) };
            }
        }
    }

    /// A tile by `COUNT` blocks from `first` on.
    ///
    /// # Safety
    /// As of [`Self::tile`]; the blocks exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline(never)] // so that its sums are in registers
    unsafe fn panel<const COUNT: usize>(&self, tile: Tile, values: &Values, first: usize) {
        let inputs = self.weights.inputs;
        let weights = &self.weights.weights[16 * first * inputs..][..16 * COUNT * inputs];
        let mut sums = [[_mm512_setzero_ps(); COUNT]; PIXELS];
        for ic in 0..inputs.min(INPUTS) {
            let mut vectors = [_mm512_setzero_ps(); COUNT];
            for (v, vector) in vectors.iter_mut().enumerate() {
                let at = weights.as_ptr().wrapping_add(16 * (v * inputs + ic));
                // SAFETY: the weights of a block for this input.
                *vector = unsafe { _mm512_loadu_ps(at) };
            }
            for (sums, values) in sums.iter_mut().zip(values) {
                let value = _mm512_set1_ps(values[ic]);
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = _mm512_fmadd_ps(value, vector, *sum);
                }
            }
        }
        let mut biases = [_mm512_setzero_ps(); COUNT];
        for (v, bias) in biases.iter_mut().enumerate() {
            let at = self.weights.biases[16 * (first + v)..][..16].as_ptr();
            // SAFETY: sixteen floats.
            *bias = unsafe { _mm512_loadu_ps(at) };
        }
        let zero_point = _mm512_set1_epi32(self.p.stage.zero_point.into());
        let scale = _mm512_set1_ps(self.float.output_scale);
        for (pixel, sums) in sums.into_iter().enumerate() {
            if pixel >= tile.count {
                return;
            }
            let step = isize_of(self.p.ofm.pixel).wrapping_mul(pixel.cast_signed());
            let to = tile.to.wrapping_offset(step).wrapping_add(16 * first);
            for (v, (sum, bias)) in sums.into_iter().zip(biases).enumerate() {
                let sum = if self.float.order.bias_first {
                    _mm512_add_ps(bias, sum)
                } else {
                    _mm512_add_ps(_mm512_add_ps(_mm512_setzero_ps(), sum), bias)
                };
                let value = _mm512_div_ps(sum, scale);
                // In this order a NaN becomes the lowest code.
                let clamped = _mm512_min_ps(_mm512_max_ps(value, self.low), self.high);
                let codes = _mm512_add_epi32(_mm512_cvtps_epi32(clamped), zero_point);
                let mut bytes = _mm512_cvtepi32_epi8(codes);
                if !self.stage.plain {
                    let wide = self.stage.one_table(_mm512_zextsi128_si512(bytes));
                    bytes = _mm512_castsi512_si128(wide);
                }
                let outputs = self.p.outputs - first_of(first + v);
                // SAFETY: the outputs of a block of a pixel that exists.
                unsafe { store_16(to.wrapping_add(16 * v), mask_16(outputs), bytes) };
            }
        }
    }
}

/// The first output of a block.
fn first_of(block: usize) -> i64 {
    i64::try_from(16 * block).unwrap_or(i64::MAX)
}
