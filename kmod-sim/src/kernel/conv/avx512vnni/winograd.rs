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
use crate::memory::usize_of;
use inputs::Inputs;
use outputs::Outputs;
use panel::Panel;
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
struct Line(#[expect(dead_code, reason = "reached by address")] MaybeUninit<[u8; 64]>);

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
    let plan = unsafe { Plan::new(job, &grid, split) };
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
    fn most_blocks(&self) -> usize {
        self.panel(0).blocks
    }

    /// Whether chunks share what is made of the weights; if not, what is made of the inputs.
    fn shares_weights(&self, job: &Job<'_>) -> bool {
        job.problem.group_outputs <= self.tiles
    }

    /// Whether all this is faster than the products one by one: cycles of either, about, of a Zen 4. A Zen 5
    /// takes half as many for any of them.
    fn pays(&self, job: &Job<'_>) -> bool {
        /// Of a tile, of 32 inputs and of 16 outputs of it, and of 32 weights, which come from memory.
        const OF_TILE: i128 = 80;
        const INPUTS: i128 = 200;
        const OUTPUTS: i128 = 280;
        const WEIGHTS: i128 = 220;
        /// Of 16 outputs of a tile, behind the products one by one.
        const DIRECT: i128 = 100;
        let wide = i128::from;
        let (inputs, outputs) = (wide(job.problem.group_inputs), wide(job.problem.group_outputs));
        let (tiles, macs) = (wide(self.tiles), inputs * outputs);
        let (shared, most) = if self.shares_weights(job) {
            (outputs, MOST_SHARED_WEIGHTS)
        } else {
            (tiles, MOST_SHARED_INPUTS)
        };
        let direct = wide(job.pixels) * 9 * macs / 64 + tiles * outputs / 16 * DIRECT;
        let products = tiles * 36 * macs / 32;
        let maps = (inputs + 31) / 32 * INPUTS + outputs * wide(self.parts) * OUTPUTS / 16;
        let maps = tiles * (OF_TILE + maps) + macs / 32 * WEIGHTS;
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
    unsafe fn new(job: &Job<'_>, grid: &'a Grid, split: &Split<'_>) -> Self {
        if grid.shares_weights(job) {
            let mut weights = Weights::new(grid, grid.panels);
            for panel in 0..grid.panels {
                // SAFETY: the caller's promise.
                unsafe { weights.fill(job, grid, &grid.panel(panel), panel) };
            }
            let macs = 72 * job.problem.group_inputs * job.problem.group_outputs;
            let few = split.fine(MOST_ROWS).min(grid.tiles / split.workers());
            let tiles_a_chunk = split.units_a_chunk(grid.tiles, macs).max(few);
            Self { grid, shared: Shared::Weights(weights), tiles_a_chunk }
        } else {
            let mut inputs = Inputs::new(grid, grid.tiles);
            // SAFETY: the caller's promise.
            unsafe { inputs.fill(job, grid, 0, grid.tiles) };
            Self { grid, shared: Shared::Inputs(inputs), tiles_a_chunk: grid.tiles }
        }
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
        let mut outputs = Outputs::new(grid, MOST_TILES.min(self.tiles_a_chunk));
        match &self.shared {
            Shared::Weights(weights) => {
                let (start, tiles) = span(chunk, self.chunks(), grid.tiles);
                let bands = (tiles + MOST_TILES - 1) / MOST_TILES;
                let mut inputs = Inputs::new(grid, MOST_TILES.min(tiles));
                for band in 0..bands {
                    let (first, count) = span(band, bands, tiles);
                    // SAFETY: the tiles exist.
                    unsafe { inputs.fill(job, grid, start + first, count) };
                    for number in 0..grid.panels {
                        let work = Work {
                            job,
                            grid,
                            stage: &stage,
                            inputs: &inputs,
                            weights: (weights, number),
                            panel: grid.panel(number),
                        };
                        // SAFETY: the panel exists, and its weights are in their places.
                        unsafe { work.run((0, count), &mut outputs, budget)? };
                    }
                }
            }
            Shared::Inputs(inputs) => {
                let panel = grid.panel(chunk);
                let mut weights = Weights::new(grid, 1);
                // SAFETY: the panel exists.
                unsafe { weights.fill(job, grid, &panel, 0) };
                let work = Work { job, grid, stage: &stage, inputs, weights: (&weights, 0), panel };
                let bands = (inputs.count + MOST_TILES - 1) / MOST_TILES;
                for band in 0..bands {
                    // SAFETY: as above. Pairs begin at even places: of few outputs, all tiles are one band.
                    unsafe { work.run(span(band, bands, inputs.count), &mut outputs, budget)? };
                }
            }
        }
        Ok(())
    }
}

/// # Safety
/// Vector instructions present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn stage(job: &Job<'_>, channels: Channels) -> Stage {
    Stage::new(&job.problem.stage, channels)
}

/// A panel of outputs of some tiles of `inputs`, with the weights at that place of theirs.
struct Work<'a> {
    job: &'a Job<'a>,
    grid: &'a Grid,
    stage: &'a Stage,
    inputs: &'a Inputs,
    weights: (&'a Weights, i64),
    panel: Panel,
}

impl Work<'_> {
    /// Computes `count` tiles from `first` on, at most [`MOST_TILES`].
    ///
    /// # Safety
    /// As of [`run`](self::run); tiles and panel exist, and the panel's weights are there.
    unsafe fn run(
        &self,
        (first, count): (i64, i64),
        outputs: &mut Outputs,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let (job, grid, panel) = (self.job, self.grid, &self.panel);
        let (weights, at) = self.weights;
        for part in 0..grid.parts {
            budget.spend(count * 36 * panel.outputs() * grid.inputs(job, part))?;
            // SAFETY: the caller's promise; the tiles and the part exist.
            unsafe { self.products(part, (first, count), outputs) };
            let tiles = (self.inputs.first + first, count);
            let part = (part, weights.offsets(at, part));
            // SAFETY: the products were just made, and those of the parts before it before.
            unsafe { outputs.finish(job, (grid, self.stage, panel), tiles, part) };
        }
        Ok(())
    }

    /// The 36 matrix products of `count` tiles from `first` on.
    ///
    /// # Safety
    /// As of [`Work::run`]; tiles and part exist.
    unsafe fn products(&self, part: i64, (first, count): (i64, i64), outputs: &mut Outputs) {
        let steps = self.grid.inputs(self.job, part) / 2;
        let (weights, at) = self.weights;
        let units = self.panel.units(count);
        let (most, products) = product::products(&self.panel);
        let rows = (units + most - 1) / most;
        for value in 0..VALUES {
            let weights = weights.matrix(at, part, value);
            for row in 0..rows {
                let (unit, count) = span(row, rows, units);
                let tile = first + unit * self.panel.tiles_a_unit();
                let inputs = (self.inputs.at(part, value, tile), self.inputs.tile_bytes);
                let product = products[usize_of(count.unsigned_abs()) - 1];
                let to = outputs.products(&self.panel, value, unit);
                // SAFETY: so many tiles are there, with as many steps as the weights.
                unsafe { product(inputs, weights, steps, to) };
            }
        }
    }
}
