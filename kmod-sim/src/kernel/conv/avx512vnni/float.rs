//! Sums in floats (`FLOAT`) on AVX-512: the integer sum, and floats only where it does not settle the code.
//!
//! ```text
//! integer sum S of (x - zx) * w  ->  t = S * sx*sw/sy + bias/sy
//! t further from a rounding tie than the bound: the code is that of t
//! else: the sixteen channels around it are summed in floats, in the order that the command names
//! ```
//!
//! Sums in blocks of fused steps are [`ordered`]'s where the kernel has one tap: it makes the integer sum in the
//! same order, and so has a tighter bound. What is here is for all others.
//!
//! **The bound.** Let `u = 2^-24`, and `T` the real number `(S * sx * sw + bias) / sy`. In the defined
//! arithmetic a term `X * W` (two integers) passes `c` roundings on its way into the quotient `q` that is
//! rounded to a code: two as its factors become floats, one each time that it is part of a sum that is
//! rounded, and the division. Each multiplies it by at most `1 + u`, so
//!
//! ```text
//! |q - T| <= sx*sw/sy * sum(|X| |W| g(c)) + |bias/sy| * g(cb)          g(c) = c*u / (1 - c*u)
//! ```
//!
//! and `t`, computed with three roundings of each term (conversion of `S`, the factor, the sum), is as
//! near to `T` with `g(3)`. Together, with `g(a) + g(b) <= g(a + b)` and the inequality of Cauchy and Schwarz,
//!
//! ```text
//! |q - t| <= |X| * (sx*sw/sy * |g(c + 3) W|) + |bias/sy| * g(cb + 3)    |.| the Euclidean norm
//! ```
//!
//! The first norm is one a pixel, the second one a channel. `c` is what remains of the term's block behind
//! it, the blocks from its own on, and at most 5 more. Nothing underflows or overflows on the way while
//! scales lie in `2^-50 ..= 2^30`: then every product and partial sum is a multiple of `2^-148` and below
//! `2^93`. A channel where they do not, or whose bias is not finite, has an infinite bound: it is always
//! summed in floats. When no half-integer lies between `t` and `q`, both round to the same code; beyond the
//! codes both saturate, so `t` is clamped first.

mod ordered;
mod settle;

use self::ordered::Ordered;
use self::settle::{ABREAST, one_by_one, settle};
use super::pixels::{Pixels, Runs};
use super::{Job, Plan, ROOM, TILES, isize_of, span, usize_of};
use crate::kernel::Stop;
use crate::kernel::conv::{Problem, float as definition};
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::stage::Float;
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{Channels, load_64, load_masked_64, mask_16, mask_64, store_16};
use npu_uapi::command::{ChannelRecord, FloatRecord};
use npu_uapi::float_order::Steps;
use std::arch::x86_64::{
    __m512, __m512i, _CMP_NLE_UQ, _mm512_abs_epi8, _mm512_abs_ps, _mm512_add_epi32,
    _mm512_castsi512_si128, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps,
    _mm512_cvtps_epi32, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_max_ps, _mm512_min_epu8, _mm512_min_ps, _mm512_or_si512, _mm512_reduce_add_epi32,
    _mm512_roundscale_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps, _mm512_subs_epu8,
    _mm512_unpackhi_epi8, _mm512_unpacklo_epi8, _mm512_zextsi128_si512,
};

/// Most terms of a sum, lanes of padding included: below it neither sums nor squares leave 32 bits.
const MOST_TERMS: i64 = 1 << 15;

/// What the bound is multiplied by, for the roundings in computing it: those of `1 / (1 - c*u)`, of
/// weights of -128 that count as 127, of inputs 255 off their zero point that count as 254, and of some thousand
/// additions.
const SLACK: f64 = 1.02;

/// Added to the bound, in codes.
const FLOOR: f64 = 1.0 / 1_048_576.0;

/// What each output channel needs beside its weights.
pub(super) struct Prepared {
    float: Float,
    codes: Codes,
    /// Start of the integer sum, and its multiplier.
    records: Vec<ChannelRecord>,
    /// Bias in codes, bound by the norm of the input, bound by the bias; by output channel.
    bias: Vec<f32>,
    by_norm: Vec<f32>,
    by_bias: Vec<f32>,
}

/// The codes that a stage begins with: the clamp, less the zero point, and the zero point.
#[derive(Clone, Copy)]
struct Codes {
    low: f32,
    high: f32,
    zero_point: u8,
}

impl Codes {
    fn new(p: &Problem) -> Self {
        let less = |code: u8| f32::from(i16::from(code) - i16::from(p.stage.zero_point));
        Self { low: less(p.stage.low), high: less(p.stage.high), zero_point: p.stage.zero_point }
    }
}

/// A block of sixteen output channels of one pixel whose codes the integer sum does not settle.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Unsettled {
    /// Block of all groups.
    block: i64,
    pixel: i64,
    lanes: u16,
}

/// Runs `problem`, which sums in floats; `None` when it is too deep.
///
/// # Safety
/// As of [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) unsafe fn run(p: &Problem, float: Float, split: &Split<'_>) -> Option<Result<(), Stop>> {
    if p.taps().saturating_mul(p.group_inputs.div_euclid(4).saturating_add(1).saturating_mul(4))
        > MOST_TERMS
    {
        return None;
    }
    let mut job = Job::new(p);
    if let Steps::Fused(len) = float.order.steps
        && let Some(ordered) = Ordered::new(&job, float, len)
    {
        // SAFETY: the caller's promise.
        return Some(unsafe { ordered.run(split) });
    }
    // SAFETY: the caller's promise.
    let prepared = match unsafe { Prepared::new(&job, float, split) } {
        Ok(prepared) => prepared,
        Err(stop) => return Some(Err(stop)),
    };
    job.records = prepared.records.as_ptr().cast();
    job.floats = Some(&prepared);
    let plan = Plan::new(&job, split);
    Some(split.chunks(plan.chunks(), &|chunk, budget| {
        // SAFETY: the caller's promise; chunks are of the plan.
        unsafe { plan.float_chunk(&job, &prepared, chunk, budget) }
    }))
}

impl Prepared {
    /// # Safety
    /// As of [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn new(job: &Job<'_>, float: Float, split: &Split<'_>) -> Result<Self, Stop> {
        let p = job.problem;
        let outputs = usize_of(p.outputs.unsigned_abs());
        let room = outputs.next_multiple_of(16);
        let mut all = Self {
            float,
            codes: Codes::new(p),
            records: vec![ChannelRecord::default(); room],
            bias: vec![0.0; room],
            by_norm: vec![0.0; room],
            by_bias: vec![0.0; room],
        };
        let roundings = Roundings::of(job, float);
        let squares = roundings.squares(job);
        for block in 0..job.blocks * p.groups {
            if block % 64 == 63 {
                split.poll()?;
            }
            // SAFETY: the weights of a block of the command.
            let (sums, norms) = unsafe { weigh(job, block, &squares) };
            let first = block / job.blocks * p.group_outputs + block % job.blocks * 16;
            let count = (p.group_outputs - block % job.blocks * 16).min(16);
            for lane in 0..usize_of(count.unsigned_abs()) {
                let oc = usize_of(first.unsigned_abs()) + lane;
                let record = definition::record(p, first + i64::try_from(lane).unwrap_or(0));
                let scales = [float.input_scale, record.weight_scale, float.output_scale];
                let [sx, sw, sy] = scales.map(f64::from);
                let (multiplier, bias) = (sx * sw / sy, f64::from(record.bias) / sy);
                all.records[oc].bias = i32::from(p.input_zero_point).wrapping_mul(-sums[lane]);
                all.records[oc].multiplier = narrow(multiplier);
                all.bias[oc] = narrow(bias);
                let u = 2f64.powi(-24);
                let by_norm = multiplier * f64::from(norms[lane]).sqrt() * u * SLACK;
                let by_bias = bias.abs() * roundings.of_bias * u * SLACK + FLOOR;
                all.by_norm[oc] = narrow(by_norm);
                all.by_bias[oc] = if sane(float, record) { narrow(by_bias) } else { f32::INFINITY };
            }
        }
        Ok(all)
    }
}

/// Whether nothing underflows or overflows on the way.
fn sane(float: Float, record: FloatRecord) -> bool {
    let scales = [float.input_scale, record.weight_scale, float.output_scale];
    scales.iter().all(|scale| (2f32.powi(-50)..=2f32.powi(30)).contains(scale))
        && record.bias.is_finite()
}

#[expect(clippy::cast_possible_truncation, reason = "rounded to binary32; slack covers it")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// How many roundings each term passes at most, those of `t` included.
struct Roundings {
    /// Terms of a block, and of all.
    block: i64,
    terms: i64,
    /// For all terms alike, where there are no blocks.
    flat: Option<f64>,
    of_bias: f64,
}

impl Roundings {
    fn of(job: &Job<'_>, float: Float) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "at most 2^15")]
        let count = |terms: i64| terms as f64;
        let terms = job.problem.taps() * job.problem.group_inputs;
        let (block, flat) = match float.order.steps {
            Steps::Fused(len) => (i64::try_from(len).unwrap_or(terms).min(terms).max(1), None),
            Steps::Quads => (terms, Some(count(terms / 4) + 14.0)),
            Steps::Lanes => (terms, Some(count(terms / 8) + 14.0)),
        };
        let sums = flat.unwrap_or(count((terms + block - 1) / block));
        Self { block, terms, flat, of_bias: sums + 8.0 }
    }

    /// The square of the count, for each four of weights in the order of the weights: the largest of four.
    fn squares(&self, job: &Job<'_>) -> Vec<f32> {
        let taps = job.problem.taps();
        let blocks = (self.terms + self.block - 1) / self.block;
        let of = |k: i64| {
            let (block, within) = (k / self.block, k % self.block);
            let len = self.block.min(self.terms - block * self.block);
            len - within + blocks - block + 8
        };
        let mut squares = Vec::new();
        for tap in 0..taps {
            for step in 0..job.steps {
                let inputs = (4 * step..4 * step + 4).filter(|&ic| ic < job.problem.group_inputs);
                let most = inputs.map(|ic| of(ic * taps + tap)).max().unwrap_or(0);
                #[expect(clippy::cast_precision_loss, reason = "at most 2^16")]
                let most = self.flat.unwrap_or(most as f64);
                squares.push(narrow(most * most));
            }
        }
        squares
    }
}

/// Of each channel of a block: the sum of the weights, and the sum of their squares times `squares`.
///
/// # Safety
/// Vector instructions present; the block exists.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn weigh(job: &Job<'_>, block: i64, squares: &[f32]) -> ([i32; 16], [f32; 16]) {
    let mut at = job.weights.wrapping_offset(isize_of(block * job.block_bytes));
    let (mut sum, mut norm) = (_mm512_setzero_si512(), _mm512_setzero_ps());
    let (one, most) = (_mm512_set1_epi8(1), _mm512_set1_epi8(127));
    for &square in squares {
        // SAFETY: as many fours of weights as the block has.
        let weights = unsafe { load_64(at) };
        sum = _mm512_dpbusd_epi32(sum, one, weights);
        let size = _mm512_min_epu8(_mm512_abs_epi8(weights), most);
        let four = _mm512_dpbusd_epi32(_mm512_setzero_si512(), size, size);
        norm = _mm512_fmadd_ps(_mm512_cvtepi32_ps(four), _mm512_set1_ps(square), norm);
        at = at.wrapping_add(64);
    }
    let (mut sums, mut norms) = ([0; 16], [0.0; 16]);
    // SAFETY: sixteen each, of the arrays' types.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum) };
    // SAFETY: as above.
    unsafe { _mm512_storeu_ps(norms.as_mut_ptr(), norm) };
    (sums, norms)
}

/// The norm of what each of `count` pixels' windows cover, of one group's channels. Pad lanes, which no
/// weight meets, may count: then the bound is wider than it need be.
///
/// # Safety
/// As of [`super::run`]; the runs are those of the pixels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn norms(runs: &Runs<'_>, count: usize, first_input: isize, zero_point: u8) -> [f32; ROOM] {
    let zero = _mm512_set1_epi8(zero_point.cast_signed());
    let none = _mm512_setzero_si512();
    let mut out = [0.0; ROOM];
    for (r, out) in out.iter_mut().enumerate().take(count) {
        let mut sum = none;
        for run in runs.addresses {
            let at = run[r].wrapping_offset(first_input);
            let len = 4 * runs.steps;
            for first in (0..len).step_by(64) {
                let mask = mask_64(i64::try_from(len - first).unwrap_or(64));
                // SAFETY: the bytes of the run, which the tile reads as well.
                let codes = unsafe { load_masked_64(mask, at.wrapping_add(first)) };
                let keep = if mask == u64::MAX { codes } else { blend(mask, zero, codes) };
                let size =
                    _mm512_or_si512(_mm512_subs_epu8(keep, zero), _mm512_subs_epu8(zero, keep));
                let (low, high) =
                    (_mm512_unpacklo_epi8(size, none), _mm512_unpackhi_epi8(size, none));
                sum = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(sum, low, low), high, high);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "slack covers the rounding")]
        let total = _mm512_reduce_add_epi32(sum).cast_unsigned() as f32;
        *out = total.sqrt();
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn blend(mask: u64, zero: __m512i, codes: __m512i) -> __m512i {
    std::arch::x86_64::_mm512_mask_blend_epi8(mask, zero, codes)
}

impl Plan {
    /// Computes one chunk.
    ///
    /// # Safety
    /// As of [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn float_chunk(
        &self,
        job: &Job<'_>,
        prepared: &Prepared,
        chunk: i64,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let p = job.problem;
        let (first_panel, first_tile) = self.first(chunk);
        let stage = Stage::new(&p.stage, Channels { symmetric: true, small: false });
        let (mut addresses, mut window) = (Vec::new(), Vec::new());
        let mut unsettled = Vec::new();
        for tile in first_tile..(first_tile + self.tiles_a_chunk).min(self.tiles) {
            let (start, count) = span(tile, self.tiles, job.pixels);
            let mut pixels = Pixels::new(job, start, count);
            let runs = pixels.runs(job, &mut addresses, &mut window);
            let mut normed = None;
            for panel in first_panel..(first_panel + self.panels_a_chunk).min(self.panels) {
                let group = panel / self.panels_a_group;
                if normed != Some(group) {
                    let first_input = isize_of(group * p.group_inputs);
                    // SAFETY: the runs are of these pixels.
                    pixels.norms =
                        unsafe { norms(&runs, pixels.count, first_input, p.input_zero_point) };
                    normed = Some(group);
                }
                let mut block = panel % self.panels_a_group * self.blocks_a_panel;
                let end = (block + self.blocks_a_panel).min(job.blocks);
                while block < end {
                    let width = match end - block {
                        4.. => 2,
                        2.. => 1,
                        _ => 0,
                    };
                    let kernel = TILES[width][pixels.count - 1];
                    // SAFETY: the pixels lie in the problem, and so do `1 << width` blocks.
                    unsafe { kernel(job, &stage, &pixels, &runs, [group, block]) };
                    block += 1 << width;
                }
            }
            for (r, block, lanes) in pixels.unsettled.take() {
                let pixel = start + i64::try_from(r).unwrap_or(0);
                unsettled.push(Unsettled { block, pixel, lanes });
            }
        }
        // SAFETY: blocks and pixels of the problem.
        unsafe { settle_all(job, prepared.float, prepared.codes, &stage, unsettled, budget) }
    }
}

/// Sums all of `unsettled` in floats, and stores their codes.
///
/// # Safety
/// As of [`super::run`]; blocks and pixels exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn settle_all(
    job: &Job<'_>,
    float: Float,
    codes: Codes,
    stage: &Stage,
    mut unsettled: Vec<Unsettled>,
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    unsettled.sort_unstable();
    for of_block in unsettled.chunk_by(|a, b| a.block == b.block) {
        for some in of_block.chunks(ABREAST) {
            match float.order.steps {
                // SAFETY: blocks and pixels of the problem.
                Steps::Fused(len) => unsafe {
                    settle(job, (float, codes), stage, some, len, budget)?;
                },
                Steps::Quads | Steps::Lanes => one_by_one(job, float, some, budget)?,
            }
        }
    }
    Ok(())
}

/// The codes of a tile of `BLOCKS` blocks from output channel `first_output` on, of which `lanes` exist;
/// notes those that the integer sums do not settle.
///
/// # Safety
/// As of [`super::finish::finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline(never)]
pub(super) unsafe fn finish<const BLOCKS: usize>(
    prepared: &Prepared,
    stage: &Stage,
    sums: &[[__m512i; 4]],
    multipliers: &[__m512; BLOCKS],
    pixels: &Pixels,
    (first_block, first_output, lanes): (i64, i64, i64),
) {
    const NEAREST_QUIETLY: i32 = 8;
    let (low, high) = (_mm512_set1_ps(prepared.codes.low), _mm512_set1_ps(prepared.codes.high));
    let half = _mm512_set1_ps(0.5);
    for (v, &multiplier) in multipliers.iter().enumerate() {
        let of_block = i64::try_from(v).unwrap_or(0);
        let mask = mask_16(lanes - of_block * 16);
        let first = usize_of((first_output + of_block * 16).unsigned_abs());
        let load = |from: &[f32]| {
            // SAFETY: the arrays have whole blocks of sixteen.
            unsafe { _mm512_loadu_ps(from[first..first + 16].as_ptr()) }
        };
        let (bias, by_norm, by_bias) =
            (load(&prepared.bias), load(&prepared.by_norm), load(&prepared.by_bias));
        for r in 0..pixels.count {
            let at = r * BLOCKS + v;
            let sum = _mm512_cvtepi32_ps(sums[at / 4][at % 4]);
            let value = _mm512_fmadd_ps(sum, multiplier, bias);
            // In this order a NaN stays one.
            let clamped = _mm512_min_ps(high, _mm512_max_ps(low, value));
            let rounded = _mm512_roundscale_ps::<NEAREST_QUIETLY>(clamped);
            let off = _mm512_abs_ps(_mm512_sub_ps(clamped, rounded));
            let bound = _mm512_fmadd_ps(_mm512_set1_ps(pixels.norms[r]), by_norm, by_bias);
            let sure = _mm512_sub_ps(half, bound);
            let unsettled = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(off, sure) & mask;
            if unsettled != 0 {
                pixels.unsettled.borrow_mut().push((r, first_block + of_block, unsettled));
            }
            let to = isize_of(first_output + of_block * 16);
            let places = (pixels.out[r].wrapping_offset(to), pixels.aux[r].wrapping_offset(to));
            // What is added may lie where the code goes, so each code is stored once.
            let settled = mask & !unsettled;
            // SAFETY: the caller's promise for the lanes of `mask`.
            unsafe { store(prepared.codes, stage, rounded, settled, places) };
        }
    }
}

/// Stores rounded values, less the zero point and within the clamp, through the rest of the stage.
///
/// # Safety
/// Lanes of `mask` writable, and with an addition readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn store(
    codes: Codes,
    stage: &Stage,
    rounded: __m512,
    mask: u16,
    (out, aux): (*mut u8, *const u8),
) {
    let zero_point = _mm512_set1_epi32(codes.zero_point.into());
    let codes = _mm512_add_epi32(_mm512_cvtps_epi32(rounded), zero_point);
    let mut bytes = _mm512_cvtepi32_epi8(codes);
    if !stage.plain {
        let wide = _mm512_zextsi128_si512(bytes);
        // SAFETY: the caller's promise.
        bytes = _mm512_castsi512_si128(unsafe { stage.rest_64(wide, mask.into(), aux) });
    }
    // SAFETY: the caller's promise.
    unsafe { store_16(out, mask, bytes) };
}
