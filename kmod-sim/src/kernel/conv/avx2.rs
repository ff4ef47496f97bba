//! CONV and MATMUL on vectors of 256 bits, as implicit matrix products: [`Dot`] is AVX2 or AVX-VNNI, all
//! else is the same.
//!
//! ```text
//!   up to 6 pixels  x  taps, four input channels a step  x  a block of 16 output channels, 2 vectors
//! ```
//!
//! Problem, pixels and runs of a reduction are those of [`super::avx512vnni`], and so are the weights,
//! a step of a block of which is two vectors here. 12 accumulators, 2 vectors of weights, an input and
//! a product fill the 16 registers.
//!
//! Takes what that kernel takes, but sums of floats.

mod dot;
pub(super) mod zero_points;

use super::avx512vnni::{Job, Pixels, ROOM, counted, span, takes as takes_512};
use crate::kernel::conv::Problem;
use crate::kernel::order::Order;
use crate::kernel::split::{POLL_MACS, Split};
use crate::kernel::vector_avx2::stage::{Kind, PLAIN, SUM, Stage, TABLES};
use crate::kernel::vector_avx2::{Records, store_some, upper};
use crate::kernel::{Isa, Stop};
use crate::memory::{isize_of, usize_of};
use dot::{Dot, Vnni, Widened};
use std::arch::x86_64::{
    __m256i, _MM_HINT_T1, _mm_prefetch, _mm256_setzero_si256, _mm256_storeu_si256,
};
use std::mem::MaybeUninit;

/// Most pixels of a tile.
const MOST_PIXELS: usize = 6;

/// Bytes of weights that a chunk works on, about: they are read once for each tile of pixels, from the
/// level-2 cache.
const CHUNK_WEIGHTS: i64 = 256 << 10;

/// Whether this kernel takes `problem`.
pub(crate) fn takes(p: &Problem) -> bool {
    p.stage.float.is_none() && takes_512(p)
}

/// Runs `problem`.
///
/// # Safety
/// `takes(problem)`, on a processor with the instructions of `isa`, one of those on 256 bits.
pub(crate) unsafe fn run(p: &Problem, isa: Isa, split: &Split<'_>) -> Result<(), Stop> {
    if isa == Isa::AvxVnni {
        // SAFETY: the caller's promise.
        unsafe { run_with::<Vnni>(p, split) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { run_with::<Widened<false>>(p, split) }
    }
}

/// # Safety
/// As of [`run`], and for the products of `D`.
unsafe fn run_with<D: Dot>(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let mut job = Job::new(p);
    // SAFETY: the caller's promise.
    if !unsafe { zero_points::are_zero(p, split)? } {
        job.counted = Some(counted(&job));
    }
    let job = job;
    let plan = Plan::new(&job, split);
    split.chunks(plan.order().chunks(), &|chunk, _| {
        // SAFETY: the caller's promise; a chunk is at most as large as `Plan::new` bounds it.
        unsafe { plan.chunk::<D>(&job, chunk) };
        Ok(())
    })
}

/// How a job is cut: tiles of pixels, blocks of outputs, chunks of both.
struct Plan {
    tiles: i64,
    tiles_a_chunk: i64,
    /// Blocks of all groups.
    blocks: i64,
    blocks_a_chunk: i64,
    in_halves: bool,
}

impl Plan {
    fn new(job: &Job<'_>, split: &Split<'_>) -> Self {
        let block_macs = job.block_bytes / 4; // of one pixel
        let most = i64::try_from(MOST_PIXELS).expect("6");
        let most = (POLL_MACS / block_macs).clamp(1, most);
        let tiles = (job.pixels + most - 1) / most;
        let pixels = (job.pixels + tiles - 1) / tiles;
        let blocks = job.blocks * job.problem.groups;
        let units = split.units_a_chunk(tiles * blocks, pixels * block_macs);
        let blocks_a_chunk = (CHUNK_WEIGHTS / job.block_bytes).clamp(1, blocks).min(units);
        let tiles_a_chunk = (units / blocks_a_chunk).clamp(1, tiles);
        // What the tiles do not use of a chunk, more blocks do.
        let blocks_a_chunk = (units / tiles_a_chunk).clamp(blocks_a_chunk, blocks);
        let in_halves = job.in_halves(split);
        Self { tiles, tiles_a_chunk, blocks, blocks_a_chunk, in_halves }
    }

    fn order(&self) -> Order {
        Order {
            weights: (self.blocks + self.blocks_a_chunk - 1) / self.blocks_a_chunk,
            pixels: (self.tiles + self.tiles_a_chunk - 1) / self.tiles_a_chunk,
            in_halves: self.in_halves,
        }
    }

    /// Computes one chunk.
    ///
    /// # Safety
    /// As of [`run_with`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn chunk<D: Dot>(&self, job: &Job<'_>, chunk: i64) {
        // All tiles, or those of a half, pass by before the next weights are fetched.
        let (first_block, first_tile) = self.order().at(chunk);
        let first_block = first_block * self.blocks_a_chunk;
        let first_tile = first_tile * self.tiles_a_chunk;
        let stage = Stage::new(&job.problem.stage);
        let (mut addresses, mut window) = (Vec::new(), Vec::new());
        let mut inputs = dot::Inputs::default();
        let blocks = first_block..(first_block + self.blocks_a_chunk).min(self.blocks);
        // SAFETY: the caller's promise; the blocks exist.
        let records: Vec<_> = blocks.clone().map(|at| unsafe { records(job, at) }).collect();
        for tile in first_tile..(first_tile + self.tiles_a_chunk).min(self.tiles) {
            let (start, count) = span(tile, self.tiles, job.pixels);
            let mut pixels = Pixels::new(job, start, count);
            let runs = pixels.runs(job, &mut addresses, &mut window);
            let mut prepared = None;
            for (at, records) in blocks.clone().zip(&records) {
                let (group, block) = (at / job.blocks, at % job.blocks);
                if prepared != Some(group) {
                    let first_input = isize_of(group * job.problem.group_inputs);
                    // SAFETY: the runs are of these pixels.
                    unsafe { inputs.prepare::<D>(&runs, pixels.count, first_input) };
                    if let Some(counted) = &job.counted {
                        // SAFETY: as above.
                        pixels.sums = Some(unsafe {
                            zero_points::sums(&runs, pixels.count, first_input, counted)
                        });
                    }
                    prepared = Some(group);
                }
                // Only the very first block may have no byte before it.
                let kernels = if at == 0 { tiles::<D::First>() } else { tiles::<D>() };
                let kernel = kernels[pixels.count - 1];
                // SAFETY: the pixels lie in the problem, and so does the block.
                unsafe { kernel(job, &stage, &pixels, &inputs, records, [group, block]) };
            }
        }
    }
}

/// Records of block `at` of all groups.
///
/// # Safety
/// Vector instructions present; the block exists.
#[target_feature(enable = "avx2,fma")]
unsafe fn records(job: &Job<'_>, at: i64) -> [Records; 2] {
    let output = at / job.blocks * job.problem.group_outputs + at % job.blocks * 16;
    let from = job.records.wrapping_offset(isize_of(output * 16));
    // SAFETY: groups of more than one have whole blocks, so the records of a block are sixteen.
    unsafe { Records::load_16(from) }
}

/// Kernels by pixels less one.
type Kernel = unsafe fn(&Job<'_>, &Stage, &Pixels, &dot::Inputs, &[Records; 2], [i64; 2]);
fn tiles<D: Dot>() -> [Kernel; MOST_PIXELS] {
    [tile::<D, 1>, tile::<D, 2>, tile::<D, 3>, tile::<D, 4>, tile::<D, 5>, tile::<D, 6>]
}

/// One tile: `PIXELS` pixels by block `block` of `group`.
///
/// # Safety
/// As of [`run_with`]; pixels and block lie in the problem, `pixels.count` is `PIXELS`, and `inputs` are
/// those of the pixels and the group, `records` those of the block.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<D: Dot, const PIXELS: usize>(
    job: &Job<'_>,
    stage: &Stage,
    pixels: &Pixels,
    inputs: &dot::Inputs,
    records: &[Records; 2],
    [group, block]: [i64; 2],
) {
    let p = job.problem;
    let first_output = group * p.group_outputs + block * 16;
    let mut weights =
        job.weights.wrapping_offset(isize_of((group * job.blocks + block) * job.block_bytes));
    let mut acc = [[_mm256_setzero_si256(); 2]; PIXELS];
    for row in &mut acc {
        *row = [records[0].bias, records[1].bias];
    }
    let mut next = weights.wrapping_offset(isize_of(job.block_bytes));
    for run in inputs.runs() {
        let at: [*const u8; PIXELS] = std::array::from_fn(|r| run[r]);
        for step in 0..inputs.steps() {
            // SAFETY: the weights of this step, within `weight_bytes`; four channels of each pixel,
            // pad lanes included, or of the padding, which is as long.
            unsafe { D::step(&mut acc, &at, step * D::STEP, weights) };
            weights = weights.wrapping_add(64);
            // A hint, which reads nothing: any address will do.
            _mm_prefetch::<_MM_HINT_T1>(next.cast());
            next = next.wrapping_add(64);
        }
    }

    // Stored one by one: accumulators that are indexed in a loop live in memory from the start.
    let mut sums = MaybeUninit::<[[__m256i; 2]; MOST_PIXELS]>::uninit();
    let to = sums.as_mut_ptr().cast::<__m256i>();
    for (r, acc) in acc.iter().enumerate() {
        for (v, acc) in acc.iter().enumerate() {
            let to = to.wrapping_add(r * 2 + v);
            // SAFETY: an element of the local array.
            unsafe { _mm256_storeu_si256(to, *acc) };
        }
    }
    // SAFETY: so many pairs were stored above.
    let sums = unsafe { std::slice::from_raw_parts_mut(to.cast::<[__m256i; 2]>(), PIXELS) };
    if let Some(inputs) = &pixels.sums {
        // SAFETY: as of this function.
        unsafe { zero_points::subtract(sums, inputs, records) };
    }
    let lanes = usize_of((p.group_outputs - block * 16).min(16).unsigned_abs());
    let finish = match stage.kind() {
        Kind::Plain => finish::<PLAIN>,
        Kind::Sum => finish::<SUM>,
        Kind::Tables => finish::<TABLES>,
    };
    // SAFETY: the pixels lie in the problem, and so does the block.
    unsafe { finish(stage, sums, records, pixels, (isize_of(first_output), lanes)) };
}

/// Passes a tile's sums through the output stage, two pixels at a time. `lanes` says where in a pixel
/// they go, and how many channels there are.
///
/// # Safety
/// Vector instructions present; in each of `pixels`, the lanes that exist lie in the output, and with an
/// addition in the auxiliary tensor.
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
unsafe fn finish<const KIND: u8>(
    stage: &Stage,
    sums: &[[__m256i; 2]],
    [low, high]: &[Records; 2],
    pixels: &Pixels,
    (first_lane, lanes): (isize, usize),
) {
    let multipliers = [low.multiplier, high.multiplier, low.multiplier, high.multiplier];
    for (pair, two) in sums.chunks(2).enumerate() {
        let first = 2 * pair;
        // An odd pixel is its own neighbour, of which nothing is stored.
        let [a, b] = two[0];
        let [c, d] = two[two.len() - 1];
        let of = |i: usize| (first + i) % ROOM;
        let aux = [of(0), of(1)].map(|i| pixels.aux[i].wrapping_offset(first_lane));
        // SAFETY: the caller's promise; behind the last pixel, `aux` is that of one which exists.
        let bytes = unsafe { stage.codes::<KIND>([a, b, c, d], multipliers, aux, [lanes; 2]) };
        // SAFETY: the caller's promise.
        unsafe { store_some(pixels.out[of(0)].wrapping_offset(first_lane), lanes, bytes) };
        if two.len() == 2 {
            let (to, bytes) = (pixels.out[of(1)].wrapping_offset(first_lane), upper(bytes));
            // SAFETY: the caller's promise.
            unsafe { store_some(to, lanes, bytes) };
        }
    }
}
