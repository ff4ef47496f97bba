//! 3x3 windows of stride 1 with a quarter of the products: Winograd's minimal filtering, F(4x4, 3x3).
//!
//! ```text
//! 6x6 pixels of the input -> 36 values   -+
//!                                         +-> 36 matrix products -> 36 sums -> 4x4 outputs -> stage
//! 3x3 weights             -> 36 values   -+   tiles x inputs x outputs
//! ```
//! Each arrow beside the products is a fixed linear map of few additions. The values have 16 bits, and
//! `vpdpwssd` does half as many products as `vpdpbusd`: half the time, less what the maps cost.
//!
//! Sums are exact, not rounded: the maps have whole coefficients and yield 576 times a sum, modulo 2^32.
//! 576 is 9 * 64, and 9 has an inverse modulo 2^32, so that 26 bits of the sum are known. Of at most
//! [`MOST_INPUTS`] inputs less 128, no sum has more. Deeper ones are added up from parts.
//!
//! Either the weights are few, and their values made once and shared by all chunks, which are bands of tiles;
//! or the pixels are, and chunks are panels of outputs.
//!
//! After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016).

mod inputs;
mod outputs;
mod panel;
mod product;
mod weights;

use super::{Job, span};
use crate::kernel::Stop;
use crate::kernel::room::Room;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::Channels;
use crate::kernel::vector::stage::Stage;
use crate::memory::{isize_of, usize_of};
use inputs::Inputs;
use outputs::Outputs;
use panel::Panel;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use weights::Weights;

/// Rows and columns of a tile of outputs, of the pixels that it covers, and values of such a square.
const TILE: i64 = 4;
const COVERED: i64 = 6;
const VALUES: usize = 36;

/// Channels that are a vector of 16-bit values, and half of them.
const LANES: i64 = 32;
const HALF: i64 = 16;

/// Most inputs of a part: `128 * 128 * 9 * 192` is less than `2^25`.
const MOST_INPUTS: i64 = 192;

/// Most bytes of mapped weights that chunks share, about: each chunk reads them all, from the level-2 cache.
const MOST_SHARED_WEIGHTS: i64 = 1280 << 10;

/// Most bytes of mapped inputs that chunks share: each reads them once, for 32 outputs, which the third-level
/// cache is fast enough for.
const MOST_SHARED_INPUTS: i64 = 2560 << 10;

/// Tiles whose products are made before they become outputs: those of two products of two blocks. They stay
/// in the level-2 cache.
const MOST_TILES: i64 = 28;

/// Fewest tiles of a chunk, if there are so many: a product's.
const MOST_ROWS: i64 = 14;

/// A line of the cache, not written yet.
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "reached by address")] UnsafeCell<MaybeUninit<[u8; 64]>>);

// SAFETY: it is reached by address alone, and whoever writes there promises to be the only one.
unsafe impl Sync for Line {}

/// Where `lines` are.
fn first(lines: &Room<Line>) -> *mut u8 {
    lines.as_ptr().cast::<u8>().cast_mut()
}

/// Room for `bytes`, which are what they happen to be.
fn room(bytes: usize) -> Room<Line> {
    let lines = bytes.div_ceil(64);
    let mut room = Room::new();
    room.reserve(lines);
    // SAFETY: there is room for them, and lines need no value.
    unsafe { room.set_len(lines) };
    room
}

/// Whether this kernel takes `job`: where that is faster.
pub(super) fn takes(job: &Job<'_>, channels: Channels) -> bool {
    let (p, w) = (job.problem, &job.window);
    let window = [w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w];
    window == [3, 3, 1, 1, 1, 1]
        && p.groups == 1
        && p.group_inputs % 4 == 0
        && (p.group_inputs + HALF - 1) / HALF * HALF <= p.ifm.lanes
        && Panel::covers(p.group_outputs)
        && channels.symmetric
        && job.floats.is_none()
        && Grid::new(job).pays(job)
}

/// Runs `job`.
///
/// # Safety
/// As of [`super::run`]; `takes(job, channels)`.
pub(super) unsafe fn run(job: &Job<'_>, channels: Channels, split: &Split<'_>) -> Result<(), Stop> {
    let grid = Grid::new(job);
    // SAFETY: the caller's promise.
    let plan = unsafe { Plan::new(job, &grid, split)? };
    split.chunks(plan.chunks(), &|chunk, budget| {
        // SAFETY: the caller's promise.
        unsafe { plan.chunk(job, channels, chunk, budget) }
    })
}

/// How a job's outputs lie in tiles and panels, and its inputs in parts.
struct Grid {
    rows: i64,
    columns: i64,
    tiles: i64,
    parts: i64,
    inputs_a_part: i64,
    panels: i64,
    outputs: i64,
}

impl Grid {
    fn new(job: &Job<'_>) -> Self {
        let rows = (job.ofm_h + TILE - 1) / TILE;
        let columns = (job.ofm_w + TILE - 1) / TILE;
        let (inputs, outputs) = (job.problem.group_inputs, job.problem.group_outputs);
        let parts = (inputs + MOST_INPUTS - 1) / MOST_INPUTS;
        let vectors = (inputs + LANES - 1) / LANES;
        let inputs_a_part = (vectors + parts - 1) / parts * LANES;
        Self {
            rows,
            columns,
            tiles: job.problem.images * rows * columns,
            parts: (inputs + inputs_a_part - 1) / inputs_a_part,
            inputs_a_part: inputs_a_part.min(inputs),
            panels: Panel::count(outputs),
            outputs,
        }
    }

    /// Inputs of `part`.
    fn inputs(&self, job: &Job<'_>, part: i64) -> i64 {
        (job.problem.group_inputs - part * self.inputs_a_part).min(self.inputs_a_part)
    }

    fn panel(&self, number: i64) -> Panel {
        Panel::new(self.outputs, number)
    }

    /// Blocks of the largest panel.
    fn most_blocks(&self) -> i64 {
        self.panel(0).blocks
    }

    /// Whether chunks share what is made of the weights; if not, what is made of the inputs.
    fn shares_weights(&self, job: &Job<'_>) -> bool {
        job.problem.group_outputs <= self.tiles
    }

    /// Whether all this is faster than the products one by one: cycles of either, about, of a Zen 4. A Zen 5
    /// takes half as many for any of them.
    fn pays(&self, job: &Job<'_>) -> bool {
        /// Of a tile, of 32 inputs and of 16 outputs of it, and of 32 weights, asked for ahead or not.
        const OF_TILE: i128 = 80;
        const INPUTS: i128 = 200;
        const OUTPUTS: i128 = 180;
        const ASKED_WEIGHTS: i128 = 150;
        const WEIGHTS: i128 = 400;
        let wide = i128::from;
        let (inputs, outputs) = (wide(job.problem.group_inputs), wide(job.problem.group_outputs));
        let (tiles, macs) = (wide(self.tiles), inputs * outputs);
        let (shared, most, weights) = if self.shares_weights(job) {
            (outputs, MOST_SHARED_WEIGHTS, WEIGHTS)
        } else {
            (tiles, MOST_SHARED_INPUTS, ASKED_WEIGHTS)
        };
        let direct = wide(job.pixels) * 9 * macs / 64;
        let products = tiles * 36 * macs / 32;
        let maps = (inputs + 31) / 32 * INPUTS + outputs * wide(self.parts) * OUTPUTS / 16;
        let maps = tiles * (OF_TILE + maps) + macs / 32 * weights;
        // Random problems are small, and should be computed so, too.
        let faster = cfg!(test) || 10 * (products + maps) < 9 * direct;
        shared * inputs * 72 <= wide(most) && faster
    }
}

/// What chunks share.
enum Shared {
    Weights(Weights),
    Inputs(Inputs),
}

/// How a job is cut: bands of tiles for all panels, or panels for all tiles.
struct Plan<'a> {
    grid: &'a Grid,
    shared: Shared,
    tiles_a_chunk: i64,
}

impl<'a> Plan<'a> {
    /// # Safety
    /// As of [`run`].
    unsafe fn new(job: &Job<'_>, grid: &'a Grid, split: &Split<'_>) -> Result<Self, Stop> {
        Ok(if grid.shares_weights(job) {
            let weights = Weights::new(grid, grid.panels * grid.parts);
            split.before(grid.panels * grid.parts, &|at| {
                let panel = grid.panel(at / grid.parts);
                // SAFETY: the caller's promise; each place is its own.
                unsafe { weights.fill(job, grid, (&panel, at % grid.parts), at) };
            })?;
            let macs = 72 * job.problem.group_inputs * job.problem.group_outputs;
            let few = split.fine(MOST_ROWS).min(grid.tiles / split.workers());
            let tiles_a_chunk = split.units_a_chunk(grid.tiles, macs).max(few);
            Self { grid, shared: Shared::Weights(weights), tiles_a_chunk }
        } else {
            let mut inputs = Inputs::new(grid, grid.tiles);
            inputs.be_for(0, grid.tiles);
            split.before(inputs.pairs(), &|pair| {
                // SAFETY: the caller's promise; each pair is its own.
                unsafe { inputs.fill_pair(job, grid, pair) };
            })?;
            Self { grid, shared: Shared::Inputs(inputs), tiles_a_chunk: grid.tiles }
        })
    }

    fn chunks(&self) -> i64 {
        match self.shared {
            Shared::Weights(_) => (self.grid.tiles + self.tiles_a_chunk - 1) / self.tiles_a_chunk,
            Shared::Inputs(_) => self.grid.panels,
        }
    }

    /// Computes one chunk.
    ///
    /// # Safety
    /// As of [`run`].
    unsafe fn chunk(
        &self,
        job: &Job<'_>,
        channels: Channels,
        chunk: i64,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let grid = self.grid;
        // SAFETY: the caller's promise.
        let stage = unsafe { stage(job, channels) };
        match &self.shared {
            Shared::Weights(weights) => {
                let (start, tiles) = span(chunk, self.chunks(), grid.tiles);
                let bands = (tiles + MOST_TILES - 1) / MOST_TILES;
                let mut inputs = Inputs::new(grid, MOST_TILES.min(tiles));
                let mut outputs = Outputs::new(grid, MOST_TILES.min(tiles));
                for band in 0..bands {
                    let (first, count) = span(band, bands, tiles);
                    // SAFETY: the tiles exist.
                    unsafe { inputs.fill(job, grid, start + first, count) };
                    for number in 0..grid.panels {
                        let panel = grid.panel(number);
                        let asks = Asks::NONE;
                        let mut work =
                            Work { job, grid, stage: &stage, inputs: &inputs, panel, asks };
                        for part in 0..grid.parts {
                            let weights = (weights, number * grid.parts + part);
                            // SAFETY: the panel exists, and its weights are in their places.
                            unsafe { work.run(part, weights, (0, count), &mut outputs, budget)? };
                        }
                    }
                }
            }
            Shared::Inputs(inputs) => {
                let weights = Weights::new(grid, 1);
                let mut outputs = Outputs::new(grid, inputs.count);
                let panel = grid.panel(chunk);
                let bands = (inputs.count + MOST_TILES - 1) / MOST_TILES;
                let asks = Asks::behind(job, &panel, grid.parts * bands);
                let mut work = Work { job, grid, stage: &stage, inputs, panel, asks };
                for part in 0..grid.parts {
                    // SAFETY: the panel exists.
                    unsafe { weights.fill(job, grid, (&work.panel, part), 0) };
                    for band in 0..bands {
                        // Pairs begin at even places: of few outputs, all tiles are one band.
                        let tiles = span(band, bands, inputs.count);
                        // SAFETY: as above.
                        unsafe { work.run(part, (&weights, 0), tiles, &mut outputs, budget)? };
                    }
                }
            }
        }
        Ok(())
    }
}

/// Weights that are asked for beside the products: the next panel's, or the next command's behind the last.
struct Asks {
    next: *const u8,
    lines_a_value: i64,
}

impl Asks {
    const NONE: Self = Self { next: std::ptr::null(), lines_a_value: 0 };

    /// Those behind `panel`, as many as its own, in so many passes through all values.
    fn behind(job: &Job<'_>, panel: &Panel, passes: i64) -> Self {
        let bytes = job.block_bytes * panel.blocks;
        let end = job.block_bytes * panel.first_block + bytes;
        let values = 64 * 36 * passes;
        let lines_a_value = (bytes + values - 1) / values;
        Self { next: job.weights.wrapping_offset(isize_of(end)), lines_a_value }
    }

    /// Asks for some lines, beside the products of a value.
    #[inline]
    fn ask(&mut self) {
        for _ in 0..self.lines_a_value {
            // SAFETY: a hint, which reads nothing: any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.next.cast()) };
            self.next = self.next.wrapping_add(64);
        }
    }
}

/// # Safety
/// Vector instructions present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn stage(job: &Job<'_>, channels: Channels) -> Stage {
    Stage::new(&job.problem.stage, channels)
}

/// A panel of outputs of some tiles of `inputs`.
struct Work<'a> {
    job: &'a Job<'a>,
    grid: &'a Grid,
    stage: &'a Stage,
    inputs: &'a Inputs,
    panel: Panel,
    asks: Asks,
}

impl Work<'_> {
    /// Computes `count` tiles from `first` on, at most [`MOST_TILES`], as far as the inputs of `part` go, with
    /// the weights at that place of theirs.
    ///
    /// # Safety
    /// As of [`run`](self::run); part, tiles and panel exist, the weights of both are there, and the parts
    /// before it were computed.
    unsafe fn run(
        &mut self,
        part: i64,
        (weights, at): (&Weights, i64),
        (first, count): (i64, i64),
        outputs: &mut Outputs,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let (inputs, outputs_a_panel) = (self.grid.inputs(self.job, part), self.panel.outputs());
        budget.spend(count * 36 * outputs_a_panel * inputs)?;
        let units = self.panel.units(count);
        let (most, products) = product::products(&self.panel);
        let rows = (units + most - 1) / most;
        for value in 0..VALUES {
            self.asks.ask();
            let weights = weights.matrix(at, value);
            for row in 0..rows {
                let (unit, count) = span(row, rows, units);
                let tile = first + unit * self.panel.tiles_a_unit();
                let tiles = (self.inputs.at(part, value, tile), self.inputs.tile_bytes);
                let product = products[usize_of(count.unsigned_abs()) - 1];
                let to = outputs.products(&self.panel, value, unit);
                // SAFETY: so many tiles are there, with as many steps as the weights.
                unsafe { product(tiles, weights, inputs / 2, to) };
            }
        }
        let tiles = (first, self.inputs.first, count);
        let part = (part, weights.offsets(at));
        // SAFETY: the products were just made, and those of the parts before it before.
        unsafe { outputs.finish(self.job, (self.grid, self.stage, &self.panel), tiles, part) };
        Ok(())
    }
}
