//! Sums in blocks of fused steps, in the order that the command names: integer sums whose way is watched.
//!
//! An error of a sum in floats is the sum of its roundings, each at most `u = 2^-24` of the partial sum it
//! leaves. Partial sums wander around zero, far below the sum of the terms' sizes. So the integer sum is made
//! in the order of the floats, and every [`SEGMENT`] terms the size of the partial sum is added up:
//!
//! ```text
//! S(c)  partial sum of its block behind segment c      A = sum |S(c)|
//! V     sum |X*W| <= |X| * |W|, the Euclidean norms    L = SEGMENT
//! ```
//!
//! **The bound.** In a block, with `s(j)` and `p(j)` the partial sums of integers and of floats behind term
//! `j`, and `e(j) = p(j) - sx*sw*s(j)`: the operands' conversions add `2u*sx*sw*|X*W|` (and `u` of that), the
//! fused step at most `u*|p(j)| <= u*(sx*sw*|s(j)| + |e(j)|)`. So behind all terms, up to a factor of
//! `(1 - u)^-terms` in [`SLACK`],
//!
//! ```text
//! |e| <= u*sx*sw * (2*V + sum |s(j)|)
//! ```
//!
//! From the sum at a segment's start over `s(j)` to that at its end, partial sums move by no more than `v`, its
//! part of `V`: `2*|s(j)| <= |S(c - 1)| + |S(c)| + v`. Summed over the terms of all segments, the start of a
//! block being zero, `sum |s(j)|` is at most `L` times each `|S(c)|` within blocks, `L/2` times each at their
//! ends, and `L/2 * V`. Adding up the blocks leaves `blocks` totals, each at most the sum of all `|S(c)|` at
//! ends, and the bias as often where it comes first. In all
//!
//! ```text
//! |e| <= u*sx*sw * (max(L, L/2 + blocks) * A + (L/2 + 2) * V) + u*blocks*|bias|
//! ```
//!
//! Then the float sum passes two roundings (bias, division) and `t` three of each of its terms: together
//! `6u*|t| + 4u*|bias/sy|` more. Where `t` lies outside the codes, `q` may be further inside by that, but no
//! further from the outermost code than the bound says of it; so `|t|` counts as that code's distance from
//! the zero point. What [`super`] says of scales holds here as well.
//!
//! What is left is summed in floats by [`settle`].
//!
//! Kernels of several taps lie in another order, and are not taken.

mod settle;

use super::{Codes, FLOOR, SLACK, Unsettled, narrow, sane};
use crate::kernel::Stop;
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{
    Job, MOST_PIXELS, MOST_VECTORS, Plan, ROOM, isize_of, span, usize_of,
};
use crate::kernel::conv::float as definition;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::stage::Float;
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{
    Channels, broadcast_4, load_64, load_masked_64, mask_16, mask_64, store_16,
};
use std::arch::x86_64::{
    __m512i, _CMP_NLT_UQ, _mm512_abs_epi8, _mm512_abs_epi32, _mm512_abs_ps, _mm512_add_epi32,
    _mm512_add_ps, _mm512_castsi512_si128, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_ps, _mm512_cvtepu32_ps, _mm512_cvtps_epi32, _mm512_dpbusd_epi32,
    _mm512_dpwssd_epi32, _mm512_extracti32x4_epi32, _mm512_fmadd_ps, _mm512_inserti32x4,
    _mm512_load_si512, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_blend_epi8, _mm512_max_ps,
    _mm512_min_epu8, _mm512_min_ps, _mm512_mullo_epi32, _mm512_or_si512, _mm512_reduce_add_epi32,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_store_si512,
    _mm512_storeu_si512, _mm512_sub_ps, _mm512_subs_epu8, _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi8, _mm512_zextsi128_si512,
};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Terms between two looks at partial sums.
const SEGMENT: i64 = 32;

/// Steps of four terms of a segment.
const STEPS: usize = 8;

/// A problem whose integer sums are made in the order of the floats.
pub(super) struct Ordered<'a> {
    job: &'a Job<'a>,
    float: Float,
    codes: Codes,
    /// Terms of a sum.
    terms: i64,
    /// Steps of four terms of a sum, and of a block.
    steps: usize,
    block_steps: usize,
    /// Bound by the partial sums' sizes, by the norms, by the bias in codes, and in any case; in units of
    /// `u` and of what each counts in.
    by_sizes: f64,
    by_norms: f64,
    by_bias: f64,
    always: f64,
    /// By block of sixteen channels of all groups, once a chunk needs it.
    blocks: Vec<OnceLock<Block>>,
}

/// Sixteen output channels.
struct Block {
    /// With an input's zero point, what to add before each segment.
    shifts: Vec<[i32; 16]>,
    /// As the record has them.
    weight_scale: [f32; 16],
    record_bias: [f32; 16],
    /// In codes.
    multiplier: [f32; 16],
    bias: [f32; 16],
    by_sizes: [f32; 16],
    by_norm: [f32; 16],
    by_bias: [f32; 16],
}

/// Where the terms of a tile lie.
struct Terms {
    rows: [*const u8; MOST_PIXELS],
    norms: [f32; ROOM],
}

/// Sums of pixels, pixel by pixel, the blocks of each side by side; then the sizes of partial sums.
type Vectors = MaybeUninit<[[__m512i; MOST_VECTORS]; 2]>;

impl<'a> Ordered<'a> {
    /// `problem` with blocks of `len` terms; `None` when sizes might leave 32 bits or blocks end within a
    /// segment.
    pub(super) fn new(job: &'a Job<'a>, float: Float, len: u64) -> Option<Self> {
        let p = job.problem;
        let terms = p.taps() * p.group_inputs;
        let len = i64::try_from(len).unwrap_or(terms).min(terms);
        if p.taps() > 1 || len < terms && len % SEGMENT != 0 {
            return None;
        }
        let blocks = (terms + len - 1) / len;
        let segments = (len + SEGMENT - 1) / SEGMENT;
        let largest = SEGMENT * 255 * 128;
        if blocks * (segments * (segments + 1) / 2) * largest > i64::from(u32::MAX) {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "at most 2^15")]
        let (segment, blocks) = (SEGMENT as f64, blocks as f64);
        let codes = Codes::new(p);
        Some(Self {
            job,
            float,
            codes,
            terms,
            steps: usize_of(((terms + 3) / 4).unsigned_abs()),
            block_steps: usize_of(((len + 3) / 4).unsigned_abs()),
            by_sizes: segment.max(segment / 2.0 + blocks),
            by_norms: segment / 2.0 + 2.0,
            by_bias: blocks + 8.0,
            always: 6.0 * f64::from(codes.low.abs().max(codes.high.abs())),
            blocks: (0..job.blocks * p.groups).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Runs the problem.
    ///
    /// # Safety
    /// As of [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn run(&self, split: &Split<'_>) -> Result<(), Stop> {
        let plan = Plan::new(self.job, split);
        split.chunks(plan.chunks(), &|chunk, budget| {
            // SAFETY: the caller's promise; chunks are of the plan.
            unsafe { self.chunk(&plan, chunk, budget) }
        })
    }

    /// # Safety
    /// As of [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn chunk(
        &self,
        plan: &Plan,
        chunk: i64,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let (job, p) = (self.job, self.job.problem);
        let first_panel = chunk / plan.chunks_of_tiles() * plan.panels_a_chunk;
        let first_tile = chunk % plan.chunks_of_tiles() * plan.tiles_a_chunk;
        let panels = first_panel..(first_panel + plan.panels_a_chunk).min(plan.panels);
        let stage = Stage::new(&p.stage, Channels { symmetric: true, small: false });
        let finish = if stage.plain { finish::<true> } else { finish::<false> };
        let mut unsettled = Vec::new();
        let mut vectors = Vectors::zeroed();
        let to = vectors.as_mut_ptr().cast::<__m512i>();
        for tile in first_tile..(first_tile + plan.tiles_a_chunk).min(plan.tiles) {
            let (start, count) = span(tile, plan.tiles, job.pixels);
            let pixels = Pixels::new(job, start, count);
            let mut terms: Option<(i64, Terms)> = None;
            for panel in panels.clone() {
                let group = panel / plan.panels_a_group;
                let terms = match &terms {
                    Some((of, terms)) if *of == group => terms,
                    _ => {
                        // SAFETY: the caller's promise.
                        let found = unsafe { self.terms(&pixels, group) };
                        &terms.insert((group, found)).1
                    }
                };
                let mut block = panel % plan.panels_a_group * plan.blocks_a_panel;
                let end = (block + plan.blocks_a_panel).min(job.blocks);
                while block < end {
                    let width = match end - block {
                        4.. => 2,
                        2.. => 1,
                        _ => 0,
                    };
                    let most = if width == 2 { MOST_OF_FOUR } else { MOST_HERE };
                    let first = group * job.blocks + block;
                    // SAFETY: the caller's promise.
                    let blocks = unsafe { self.made(first, 1 << width, budget)? };
                    for (index, rows) in terms.rows[..pixels.count].chunks(most).enumerate() {
                        let kernel = TILES[width][rows.len() - 1];
                        let to = to.wrapping_add((index * most) << width);
                        // SAFETY: the rows are of the problem's pixels, and so are the blocks.
                        unsafe { kernel(self, &blocks, first, rows, to) };
                    }
                    for (v, made) in (0..).zip(blocks.iter().flatten()) {
                        let place = Place {
                            start,
                            block: first + v,
                            lane: isize_of(group * p.group_outputs + (block + v) * 16),
                            mask: mask_16(p.group_outputs - (block + v) * 16),
                            first: usize_of(v.unsigned_abs()),
                            stride: 1 << width,
                        };
                        let what = (self, &stage, *made);
                        // SAFETY: the sums are there; pixels and blocks lie in the problem.
                        unsafe { finish(what, to, &pixels, &terms.norms, &place, &mut unsettled) };
                    }
                    block += 1 << width;
                }
            }
        }
        // SAFETY: blocks and pixels of the problem.
        unsafe { self.settle(&stage, &unsettled, budget) }
    }

    /// `count` blocks from `first` of all groups on.
    ///
    /// # Safety
    /// As of [`super::run`]; the blocks exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn made(
        &self,
        first: i64,
        count: usize,
        budget: &mut Budget<'_>,
    ) -> Result<[Option<&Block>; 4], Aborted> {
        let mut made = [None; 4];
        let first = usize_of(first.unsigned_abs());
        for (made, index) in made.iter_mut().zip(first..first + count) {
            if self.blocks[index].get().is_none() {
                budget.spend(16 * self.terms)?;
                // SAFETY: the caller's promise. Another worker may have been faster.
                let _ = self.blocks[index].set(unsafe { self.block(index) });
            }
            *made = self.blocks[index].get();
        }
        Ok(made)
    }

    /// Sixteen channels: block `index` of all groups.
    ///
    /// # Safety
    /// As of [`super::run`]; the block exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn block(&self, index: usize) -> Block {
        let (job, p) = (self.job, self.job.problem);
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        let mut at = self.weights(index);
        let (mut shifts, mut norm) = (Vec::new(), _mm512_setzero_si512());
        let (one, most) = (_mm512_set1_epi8(1), _mm512_set1_epi8(127));
        let less = _mm512_set1_epi32(-i32::from(p.input_zero_point));
        if p.input_zero_point != 0 {
            shifts.resize(self.steps.div_ceil(STEPS), [0; 16]);
        }
        for first in (0..self.steps).step_by(STEPS) {
            let mut sum = _mm512_setzero_si512();
            for _ in first..(first + STEPS).min(self.steps) {
                // SAFETY: as many fours of weights as the block has.
                let four = unsafe { load_64(at) };
                at = at.wrapping_add(64);
                let size = _mm512_min_epu8(_mm512_abs_epi8(four), most);
                norm = _mm512_dpbusd_epi32(norm, size, size);
                sum = _mm512_dpbusd_epi32(sum, one, four);
            }
            if let Some(shift) = shifts.get_mut(first / STEPS) {
                *shift = lanes_of(_mm512_mullo_epi32(sum, less));
            }
        }
        let norms = lanes_of(norm);
        let mut block = Block {
            shifts,
            weight_scale: [0.0; 16],
            record_bias: [0.0; 16],
            multiplier: [0.0; 16],
            bias: [0.0; 16],
            by_sizes: [0.0; 16],
            by_norm: [0.0; 16],
            by_bias: [0.0; 16],
        };
        let u = 2f64.powi(-24) * SLACK;
        let first = index / job.blocks * p.group_outputs + index % job.blocks * 16;
        let count = (p.group_outputs - index % job.blocks * 16).min(16);
        for (lane, oc) in (first..first + count).enumerate() {
            let record = definition::record(p, oc);
            let [sx, sw, sy] =
                [self.float.input_scale, record.weight_scale, self.float.output_scale]
                    .map(f64::from);
            let (multiplier, bias) = (sx * sw / sy, f64::from(record.bias) / sy);
            block.weight_scale[lane] = record.weight_scale;
            block.record_bias[lane] = record.bias;
            block.multiplier[lane] = narrow(multiplier);
            block.bias[lane] = narrow(bias);
            block.by_sizes[lane] = narrow(multiplier * self.by_sizes * u);
            let norm = f64::from(norms[lane]).sqrt();
            block.by_norm[lane] = narrow(multiplier * self.by_norms * norm * u);
            let by_bias = (bias.abs() * self.by_bias + self.always) * u + FLOOR;
            block.by_bias[lane] =
                if sane(self.float, record) { narrow(by_bias) } else { f32::INFINITY };
        }
        block
    }

    /// Where the terms of `pixels` lie, of one group.
    fn rows(&self, pixels: &Pixels, group: i64) -> [*const u8; MOST_PIXELS] {
        let first_input = isize_of(group * self.job.problem.group_inputs);
        pixels.tap(self.job, 0, 0).map(|at| at.wrapping_offset(first_input))
    }

    /// The same, and what bounds need of them.
    ///
    /// # Safety
    /// As of [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn terms(&self, pixels: &Pixels, group: i64) -> Terms {
        let rows = self.rows(pixels, group);
        let mut norms = [0.0; ROOM];
        for (norm, row) in norms.iter_mut().zip(rows).take(pixels.count) {
            // SAFETY: as many bytes as the sum has terms.
            *norm = unsafe { self.norm(row) };
        }
        Terms { rows, norms }
    }

    /// The weights of block `index` of all groups.
    fn weights(&self, index: i64) -> *const u8 {
        self.job.weights.wrapping_offset(isize_of(index * self.job.block_bytes))
    }

    /// The norm of the terms of a pixel.
    ///
    /// # Safety
    /// As many bytes at `row` as a sum has terms; vector instructions present.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn norm(&self, row: *const u8) -> f32 {
        let zero = _mm512_set1_epi8(self.job.problem.input_zero_point.cast_signed());
        let none = _mm512_setzero_si512();
        let mut sums = [none; 2];
        let mut add = |codes| {
            let size =
                _mm512_or_si512(_mm512_subs_epu8(codes, zero), _mm512_subs_epu8(zero, codes));
            let (low, high) = (_mm512_unpacklo_epi8(size, none), _mm512_unpackhi_epi8(size, none));
            sums[0] = _mm512_dpwssd_epi32(sums[0], low, low);
            sums[1] = _mm512_dpwssd_epi32(sums[1], high, high);
        };
        let (whole, left) = (self.terms / 64, self.terms % 64);
        let mut at = row;
        for _ in 0..whole {
            // SAFETY: the caller's promise.
            add(unsafe { load_64(at) });
            at = at.wrapping_add(64);
        }
        if left > 0 {
            let mask = mask_64(left);
            // SAFETY: the caller's promise.
            let codes = unsafe { load_masked_64(mask, at) };
            add(_mm512_mask_blend_epi8(mask, zero, codes));
        }
        #[expect(clippy::cast_precision_loss, reason = "slack covers the rounding")]
        let total =
            _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1])).cast_unsigned() as f32;
        total.sqrt()
    }
}

/// Most pixels of a tile: 7 x 2 sums and as many sizes, 2 vectors of weights and a broadcast fill 31
/// registers.
const MOST_HERE: usize = 7;

/// The same of four blocks.
const MOST_OF_FOUR: usize = 3;

/// Kernels by log2 of blocks and by pixels less one.
type Kernel = unsafe fn(&Ordered<'_>, &[Option<&Block>; 4], i64, &[*const u8], *mut __m512i);
macro_rules! kernels {
    ($blocks:literal: $($pixels:literal)*) => { [$(tile::<$pixels, $blocks> as Kernel),*] };
}
const TILES: [[Kernel; MOST_HERE]; 3] = [
    kernels!(1: 1 2 3 4 5 6 7),
    kernels!(2: 1 2 3 4 5 6 7),
    kernels!(4: 1 2 3 3 3 3 3), // behind 3 never called
];

/// One tile: the pixels whose terms are at `rows` by `BLOCKS` blocks from `first_block` of all groups on.
/// Adds the sums of each pixel to those at `totals`, and stores the sizes of partial sums behind.
///
/// # Safety
/// As of [`super::run`]; the blocks exist and are made, there are `PIXELS` rows of as many terms as a sum
/// has, and `totals` leads to the place of the first pixel in [`Vectors`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn tile<const PIXELS: usize, const BLOCKS: usize>(
    all: &Ordered<'_>,
    blocks: &[Option<&Block>; 4],
    first_block: i64,
    rows: &[*const u8],
    totals: *mut __m512i,
) {
    let mut weights = [std::ptr::null(); BLOCKS];
    for (index, weights) in (first_block..).zip(&mut weights) {
        *weights = all.weights(index);
    }
    let shifts: [&[[i32; 16]]; BLOCKS] =
        std::array::from_fn(|v| blocks[v].map_or(&[][..], |block| &block.shifts[..]));
    let is_shifted = !shifts[0].is_empty();
    let at: [*const u8; PIXELS] = std::array::from_fn(|r| rows[r]);
    let mut sizes = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
    let mut step = 0;
    while step < all.steps {
        let block_end = (step + all.block_steps).min(all.steps);
        let mut acc = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
        while step < block_end {
            if is_shifted {
                for v in 0..BLOCKS {
                    let shift = shifts[v][step / STEPS].as_ptr();
                    // SAFETY: sixteen integers.
                    let shift = unsafe { _mm512_loadu_si512(shift.cast()) };
                    for row in &mut acc {
                        row[v] = _mm512_add_epi32(row[v], shift);
                    }
                }
            }
            for step in step..(step + STEPS).min(block_end) {
                let mut w = [_mm512_setzero_si512(); BLOCKS];
                for (w, &weights) in w.iter_mut().zip(&weights) {
                    // SAFETY: the weights of this step of the block.
                    *w = unsafe { load_64(weights.wrapping_add(64 * step)) };
                }
                for r in 0..PIXELS {
                    // SAFETY: four terms of the pixel, pad lanes included.
                    let x = unsafe { broadcast_4(at[r].wrapping_add(4 * step)) };
                    for v in 0..BLOCKS {
                        acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], x, w[v]);
                    }
                }
            }
            for r in 0..PIXELS {
                for v in 0..BLOCKS {
                    sizes[r][v] = _mm512_add_epi32(sizes[r][v], _mm512_abs_epi32(acc[r][v]));
                }
            }
            step += STEPS;
        }
        step = block_end;
        for (r, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                let to = totals.wrapping_add(r * BLOCKS + v);
                // SAFETY: the caller's promise.
                let before = unsafe { _mm512_load_si512(to.cast_const().cast()) };
                let after = _mm512_add_epi32(before, acc);
                // SAFETY: the caller's promise.
                unsafe { _mm512_store_si512(to.cast(), after) };
            }
        }
    }
    for (r, sizes) in sizes.iter().enumerate() {
        for (v, size) in sizes.iter().enumerate() {
            let to = totals.wrapping_add(MOST_VECTORS + r * BLOCKS + v);
            // SAFETY: the caller's promise.
            unsafe { _mm512_store_si512(to.cast(), *size) };
        }
    }
}

/// The vector at `from`, which becomes zero.
///
/// # Safety
/// It may be read and written.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn take(from: *mut __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    let found = unsafe { _mm512_load_si512(from.cast_const().cast()) };
    let none = _mm512_setzero_si512();
    // SAFETY: as above.
    unsafe { _mm512_store_si512(from.cast(), none) };
    found
}

/// Sixteen lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn lanes_of(vector: __m512i) -> [i32; 16] {
    let mut lanes = [0; 16];
    // SAFETY: sixteen integers.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), vector) };
    lanes
}

/// Where the sums of a block lie and their codes go.
struct Place {
    /// First pixel of the tile.
    start: i64,
    /// Of all groups.
    block: i64,
    /// Its first channel in a pixel, and the channels that exist.
    lane: isize,
    mask: u16,
    /// Its vector of the first pixel, and how many a pixel has.
    first: usize,
    stride: usize,
}

/// The codes of a block of a tile; notes those that are not settled. `PLAIN` says that the stage ends there.
///
/// # Safety
/// Vector instructions present; the sums of the place are there, and in each of `pixels` its lanes lie in
/// the output, and with an addition in the auxiliary tensor.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline(never)]
unsafe fn finish<const PLAIN: bool>(
    (all, stage, block): (&Ordered<'_>, &Stage, &Block),
    totals: *mut __m512i,
    pixels: &Pixels,
    norms: &[f32; ROOM],
    place: &Place,
    unsettled: &mut Vec<Unsettled>,
) {
    let sizes = totals.wrapping_add(MOST_VECTORS);
    let (low, high) = (_mm512_set1_ps(all.codes.low), _mm512_set1_ps(all.codes.high));
    let half = _mm512_set1_ps(0.5);
    let zero_point = _mm512_set1_epi32(all.codes.zero_point.into());
    let [multiplier, bias, by_sizes, by_norm, by_bias] =
        [&block.multiplier, &block.bias, &block.by_sizes, &block.by_norm, &block.by_bias]
            // SAFETY: sixteen floats.
            .map(|of_lanes| unsafe { _mm512_loadu_ps(of_lanes.as_ptr()) });
    let mut codes = [[0u8; 16]; ROOM];
    let mut settled = [0u16; ROOM];
    for r in 0..pixels.count.min(ROOM) {
        let at = r * place.stride + place.first;
        // SAFETY: the caller's promise.
        let total = unsafe { take(totals.wrapping_add(at)) };
        // SAFETY: as above.
        let size = unsafe { _mm512_load_si512(sizes.wrapping_add(at).cast_const().cast()) };
        let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), multiplier, bias);
        // In this order a NaN stays one.
        let clamped = _mm512_min_ps(high, _mm512_max_ps(low, value));
        let code = _mm512_cvtps_epi32(clamped);
        let off = _mm512_abs_ps(_mm512_sub_ps(clamped, _mm512_cvtepi32_ps(code)));
        let bound = _mm512_fmadd_ps(_mm512_set1_ps(norms[r]), by_norm, by_bias);
        let bound = _mm512_fmadd_ps(_mm512_cvtepu32_ps(size), by_sizes, bound);
        let open = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_add_ps(off, bound), half) & place.mask;
        let bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(code, zero_point));
        if PLAIN {
            let to = pixels.out[r].wrapping_offset(place.lane);
            // SAFETY: the caller's promise.
            unsafe { store_16(to, place.mask, bytes) };
        } else {
            // SAFETY: sixteen bytes.
            unsafe { store_16(codes[r].as_mut_ptr(), u16::MAX, bytes) };
            settled[r] = place.mask & !open;
        }
        if open != 0 {
            let pixel = place.start + i64::try_from(r).unwrap_or(0);
            unsettled.push(Unsettled { block: place.block, pixel, lanes: open });
        }
    }
    if !PLAIN {
        let has_aux = all.job.problem.aux.is_some();
        // SAFETY: the caller's promise.
        unsafe { rest(stage, &codes, &settled, pixels, place, has_aux) };
    }
}

/// Passes settled codes through the rest of the stage.
///
/// # Safety
/// As of [`finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline(never)]
unsafe fn rest(
    stage: &Stage,
    codes: &[[u8; 16]; ROOM],
    settled: &[u16; ROOM],
    pixels: &Pixels,
    place: &Place,
    has_aux: bool,
) {
    for first in (0..pixels.count).step_by(4) {
        // SAFETY: 64 bytes: there is room for whole fours of pixels.
        let four = unsafe { load_64(codes[first..first + 4].as_ptr().cast()) };
        let mut aux = _mm512_setzero_si512();
        if has_aux {
            let sixteen = |r: usize| {
                let from = pixels.aux[first + r].wrapping_offset(place.lane);
                // SAFETY: the caller's promise; behind the last pixel lies that one again.
                _mm512_castsi512_si128(unsafe { load_masked_64(place.mask.into(), from) })
            };
            aux = _mm512_zextsi128_si512(sixteen(0));
            aux = _mm512_inserti32x4::<1>(aux, sixteen(1));
            aux = _mm512_inserti32x4::<2>(aux, sixteen(2));
            aux = _mm512_inserti32x4::<3>(aux, sixteen(3));
        }
        let four = stage.rest_of_codes(four, aux);
        let sixteens = [
            _mm512_castsi512_si128(four),
            _mm512_extracti32x4_epi32::<1>(four),
            _mm512_extracti32x4_epi32::<2>(four),
            _mm512_extracti32x4_epi32::<3>(four),
        ];
        for (r, bytes) in (first..pixels.count).zip(sixteens) {
            // What is added may lie where the code goes, so each code is stored once.
            let to = pixels.out[r].wrapping_offset(place.lane);
            // SAFETY: the caller's promise.
            unsafe { store_16(to, settled[r], bytes) };
        }
    }
}
