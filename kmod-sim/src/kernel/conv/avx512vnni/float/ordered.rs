//! Sums in blocks of fused steps, in the order that the command names: integer sums whose way is watched.
//!
//! An error of a sum in floats is the sum of its roundings, each at most `u = 2^-24` of the partial sum it
//! leaves. Partial sums wander around zero, far below the sum of the terms' sizes. So the integer sum is made
//! in the order of the floats, and every [`SEGMENT`] terms the size of the partial sum is added up:
//!
//! ```text
//! S(c)  partial sum of its block behind segment c      A = sum |S(c)|
//! V     sum |X * g*W| <= |X| * |g*W|, the norms        L = SEGMENT
//! ```
//!
//! **The bound.** In a block, with `s(j)` and `p(j)` the partial sums of integers and of floats behind term
//! `j`, and `e(j) = p(j) - sx*sw*s(j)`: the operands' conversions add `2u*sx*sw*|X*W|` (and `u` of that), the
//! fused step at most `u*|p(j)| <= u*(sx*sw*|s(j)| + |e(j)|)`. So behind all terms, up to a factor of
//! `(1 - u)^-terms` in [`SLACK`],
//!
//! ```text
//! |e| <= u*sx*sw * (2 * sum |X*W| + sum |s(j)|)
//! ```
//!
//! In the first half of a segment `s(j)` is the sum at its start and the terms up to `j`; in the second half the sum
//! at its end, less the terms behind `j`. So a term counts once for each sum between it and the segment's middle:
//! that often and twice is `g`, 2 to 18. Over all terms, the start of a block being zero, `sum |s(j)|` has each
//! `|S(c)|` at most `L` times within blocks and `L/2` times at their ends. Adding up the blocks leaves `blocks`
//! totals, each at most the sum of all `|S(c)|` at ends, and the bias as often where it comes first. In all
//!
//! ```text
//! |e| <= u*sx*sw * (max(L, L/2 + blocks) * A + V) + u*blocks*|bias|
//! ```
//!
//! Then the float sum passes two roundings (bias, division) and `t` three of each of its terms: together
//! `6u*|t| + 4u*|bias/sy|` more. Where `t` lies outside the codes, `q` may be further inside by that, but no
//! further from the outermost code than the bound says of it; so `|t|` counts as that code's distance from
//! the zero point. What [`super`] says of scales holds here as well.
//!
//! What is left is summed in floats by [`settle`]. The module `tile` makes the sums, `finish` the codes of them, and
//! `shallow` both where terms are few.
//!
//! Kernels of several taps lie in another order, and are not taken.

mod block;
mod finish;
mod settle;
mod shallow;
mod tile;

use super::Codes;
use crate::kernel::Stop;
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{
    Job, MOST_PIXELS, MOST_VECTORS, Plan, ROOM, isize_of, span, usize_of,
};
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::stage::Float;
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{Channels, mask_16};
use block::{Block, Terms};
use finish::{Place, finish};
use std::arch::x86_64::__m512i;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use tile::{MOST_HERE, MOST_OF_FOUR, TILES};

/// Terms between two looks at partial sums.
const SEGMENT: i64 = 32;

/// Tiles that a chunk has if it can.
const MANY_TILES: i64 = 16;

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
    /// Whether terms are few, and of one block.
    is_shallow: bool,
    /// Bound by the partial sums' sizes, by the bias in codes, and in any case; in units of `u` and of what each
    /// counts in.
    by_sizes: f64,
    by_bias: f64,
    always: f64,
    /// By block of sixteen channels of all groups, once a chunk needs it.
    blocks: Vec<OnceLock<Block>>,
}

/// By tile and group, norms of its pixels, once a chunk needs them; none where there are too many.
type Norms = Vec<OnceLock<[f32; ROOM]>>;

/// Most norms that are kept for other chunks, of tiles.
const MOST_NORMS: i64 = 1 << 14;

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
            is_shallow: len == terms && terms <= shallow::MOST_TERMS,
            by_sizes: segment.max(segment / 2.0 + blocks),
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
        let plan = self.plan(split);
        let count = plan.tiles.checked_mul(self.job.problem.groups).filter(|n| *n <= MOST_NORMS);
        let norms: Norms = (0..count.unwrap_or(0)).map(|_| OnceLock::new()).collect();
        split.chunks(plan.chunks(), &|chunk, budget| {
            // SAFETY: the caller's promise; chunks are of the plan.
            unsafe { self.chunk(&plan, &norms, chunk, budget) }
        })
    }

    /// How the problem is cut: with pixels enough in a chunk that blocks of channels are open in several.
    fn plan(&self, split: &Split<'_>) -> Plan {
        let plan = Plan::new(self.job, split);
        let units = plan.tiles_a_chunk * plan.panels_a_chunk;
        let tiles_a_chunk = plan.tiles_a_chunk.max(MANY_TILES.min(units)).min(plan.tiles);
        let panels_a_chunk = (units / tiles_a_chunk).clamp(1, plan.panels);
        Plan { tiles_a_chunk, panels_a_chunk, ..plan }
    }

    /// # Safety
    /// As of [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn chunk(
        &self,
        plan: &Plan,
        norms: &Norms,
        chunk: i64,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let (job, p) = (self.job, self.job.problem);
        let (first_panel, first_tile) = plan.first(chunk);
        let panels = first_panel..(first_panel + plan.panels_a_chunk).min(plan.panels);
        let stage = Stage::new(&p.stage, Channels { symmetric: true, small: false });
        let finish = if stage.plain { finish::<true> } else { finish::<false> };
        let mut open = Vec::new();
        let mut vectors = Vectors::uninit();
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
                        let found = unsafe { self.terms(&pixels, tile, group, norms) };
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
                    let deep = if self.is_shallow { &[] } else { &terms.rows[..pixels.count] };
                    for (index, rows) in deep.chunks(most).enumerate() {
                        let kernel = TILES[width][rows.len() - 1];
                        let to = to.wrapping_add((index * most) << width);
                        // SAFETY: the rows are of the problem's pixels, and so are the blocks.
                        unsafe { kernel(self, &blocks, first, rows, to) };
                    }
                    for (v, made) in (0..).zip(blocks.iter().flatten()) {
                        let place = Place {
                            block: first + v,
                            lane: isize_of(group * p.group_outputs + (block + v) * 16),
                            mask: mask_16(p.group_outputs - (block + v) * 16),
                            first: usize_of(v.unsigned_abs()),
                            stride: 1 << width,
                        };
                        let what = (self, &stage, *made);
                        if self.is_shallow {
                            // SAFETY: pixels and blocks lie in the problem.
                            unsafe { shallow::codes(what, (&pixels, terms), &place, &mut open) };
                        } else {
                            // SAFETY: as above, and the sums are there.
                            unsafe { finish(what, to, (&pixels, terms), &place, &mut open) };
                        }
                    }
                    block += 1 << width;
                }
            }
        }
        // SAFETY: blocks and pixels of the problem.
        unsafe { self.settle(&stage, &mut open, budget) }
    }

    /// Where the terms of `pixels` lie, of one group.
    fn rows(&self, pixels: &Pixels, group: i64) -> [*const u8; MOST_PIXELS] {
        let first_input = isize_of(group * self.job.problem.group_inputs);
        pixels.tap(self.job, 0, 0).map(|at| at.wrapping_offset(first_input))
    }

    /// The weights of block `index` of all groups.
    fn weights(&self, index: i64) -> *const u8 {
        self.job.weights.wrapping_offset(isize_of(index * self.job.block_bytes))
    }
}
