//! CONV and MATMUL on AVX-512 VNNI, as implicit matrix products.
//!
//! ```text
//!   pixels (rows)  x  taps, input channels  x  output channels (columns)
//!   up to 14          4 a step: vpdpbusd       1, 2 or 4 blocks of 16
//! ```
//!
//! A tile of pixels times blocks stays in registers for its whole reduction and through the output
//! stage, and is stored once. A step reads four channels of each pixel (one broadcast) and one vector of
//! weights a block. There is no im2col: the reduction is a list of runs, each with an address for every
//! pixel, made once a tile for all blocks. Where windows reach into the padding, the rows that a tile
//! covers are copied with zero points around them, or taps in the padding point at zero points. Pixels
//! run over all rows and images, so small feature maps fill tiles as well as large ones.
//!
//! Takes: dense problems of any size, and grouped ones whose inputs a group are a multiple of 4 and
//! outputs a multiple of 16. Where weights have zero points, each pixel's inputs are summed as well, once
//! a tile. Everything else is the scalar kernel's.

mod finish;
mod float;
mod pixels;
mod shallow;
mod wide;
mod winograd;
mod zero_points;

use crate::kernel::Stop;
use crate::kernel::conv::{Problem, Taps};
use crate::kernel::operand::Map;
use crate::kernel::order::{self, Order};
use crate::kernel::room::Room;
use crate::kernel::split::{POLL_MACS, Split};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{Channels, broadcast_4, channels, load_64, load_records};
use crate::memory::{isize_of, usize_of};
pub(super) use pixels::{Pixels, Runs};
use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_dpbusd_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_store_si512,
};
use std::mem::MaybeUninit;
pub(super) use zero_points::counted;

/// Most pixels of a tile: 14 x 2 accumulators, 2 vectors of weights and a broadcast fill 31 registers.
const MOST_PIXELS: usize = 14;

/// Places for pixels, so that whole fours of vectors can be counted in them.
pub(super) const ROOM: usize = 16;

/// Most accumulators of a tile.
const MOST_VECTORS: usize = 28;

/// Most pixels of a tile of four blocks.
const MOST_PIXELS_OF_FOUR: usize = 6;

/// Bytes of weights that a chunk works on, about: they are read once for each tile of pixels, from the
/// level-2 cache.
const CHUNK_WEIGHTS: i64 = 256 << 10;

/// Whether this kernel takes `problem`.
pub(crate) fn takes(p: &Problem) -> bool {
    let fours = (p.group_inputs + 3) / 4;
    let groups = p.groups == 1 || (p.group_inputs % 4 == 0 && p.group_outputs % 16 == 0);
    // A pixel of padding is made for each job: not where it is larger than any model's.
    let groups = groups && p.groups.saturating_mul(p.group_inputs) <= 1 << 24;
    // A step may read pad lanes up to a multiple of 4 channels; they must be in the slot.
    !p.depthwise && groups && p.ifm.lanes >= 4 * fours && p.taps() * fours * 4 * 32 <= POLL_MACS
}

/// Runs `problem`; `None` when it sums more in floats than this kernel can.
///
/// # Safety
/// `takes(problem)`, on a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Option<Result<(), Stop>> {
    if let Some(float) = p.stage.float {
        // SAFETY: the caller's promise.
        return unsafe { float::run(p, float, split) };
    }
    let mut job = Job::new(p);
    let outputs = usize_of(p.outputs.unsigned_abs());
    // SAFETY: the processor is the caller's promise; the records were checked, in sixteens.
    let channels = unsafe { channels(job.records, outputs, split) };
    let channels = match channels {
        Ok(channels) => channels,
        Err(stop) => return Some(Err(stop)),
    };
    if !channels.symmetric {
        job.counted = Some(zero_points::counted(&job));
    }
    let job = job;
    if winograd::takes(&job, channels) {
        // SAFETY: the caller's promise; it takes the job.
        return Some(unsafe { winograd::run(&job, channels, split) });
    }
    if wide::takes(&job, channels) {
        // SAFETY: the caller's promise; it takes the job.
        return Some(unsafe { wide::run(&job, channels, split) });
    }
    if shallow::takes(&job) {
        // SAFETY: the caller's promise; it takes the job.
        return Some(unsafe { shallow::run(&job, channels, split) });
    }
    let plan = Plan::new(&job, split);
    Some(split.chunks(plan.chunks(), &|chunk, _| {
        // SAFETY: the caller's promise; a chunk is at most as large as `Plan::new` bounds it.
        unsafe { plan.chunk(&job, channels, chunk) };
        Ok(())
    }))
}

/// A problem in the terms of this kernel: addresses, steps, blocks.
pub(super) struct Job<'a> {
    pub(super) problem: &'a Problem,
    /// Dimensions and window; a dense 1x1 convolution is one row of pixels.
    ofm_h: i64,
    ofm_w: i64,
    ifm_h: i64,
    ifm_w: i64,
    pub(super) pixels: i64,
    window: Taps,
    ifm: Plane,
    ofm: Plane,
    aux: Option<Plane>,
    pub(super) weights: *const u8,
    /// Channel records; with sums of floats, what their integer sums need.
    pub(super) records: *const u8,
    /// Steps of four channels in a tap.
    steps: i64,
    /// Bytes of the weights of one block of 16 outputs.
    pub(super) block_bytes: i64,
    /// Blocks of a group.
    pub(super) blocks: i64,
    /// When a kernel row of a pixel is contiguous: all its columns in one run.
    contiguous_rows: bool,
    /// Present when sums are of floats.
    floats: Option<&'a float::Prepared>,
    /// Where weights have zero points: for each byte of a run, 1 when it is a channel, 0 in pad lanes.
    pub(super) counted: Option<Room<u8>>,
    /// A pixel of zero points; empty when no pixel of the problem is in the padding.
    padding: Room<u8>,
}

// SAFETY: the pointers lead to slots of the command, which `Extent` lets any thread reach.
unsafe impl Sync for Job<'_> {}

/// A feature map: the address of its first pixel, and its strides.
#[derive(Clone, Copy)]
struct Plane {
    base: *mut u8,
    image: isize,
    row: isize,
    pixel: isize,
}

impl Plane {
    fn new(map: &Map) -> Self {
        Self {
            base: map.pointer(map.region.start),
            image: isize_of(map.image),
            row: isize_of(map.row),
            pixel: isize_of(map.pixel),
        }
    }

    /// Address of pixel `(n, y, x)`; the pixel may lie outside, then so does the address.
    #[inline]
    fn at(&self, n: i64, y: i64, x: i64) -> *mut u8 {
        let image = isize_of(n).wrapping_mul(self.image);
        let row = isize_of(y).wrapping_mul(self.row);
        self.base
            .wrapping_offset(image)
            .wrapping_offset(row)
            .wrapping_offset(isize_of(x).wrapping_mul(self.pixel))
    }
}

impl<'a> Job<'a> {
    pub(super) fn new(p: &'a Problem) -> Self {
        let w = p.window;
        let steps = (p.group_inputs + 3) / 4;
        let one = w.kernel_h == 1 && w.kernel_w == 1;
        let same = p.ofm_h == p.ifm_h && p.ofm_w == p.ifm_w;
        let dense = one && same && w.pad_top == 0 && w.pad_left == 0;
        let dense = dense && (w.stride_h == 1 || p.ofm_h == 1) && (w.stride_w == 1 || p.ofm_w == 1);
        let linear = |map: &Map| map.is_linear(p.images, p.ofm_h, p.ofm_w);
        let dense = dense && linear(&p.ifm) && linear(&p.ofm) && p.aux.as_ref().is_none_or(linear);
        let pixels = p.images * p.ofm_h * p.ofm_w;
        let (ofm_h, ofm_w, ifm_h, ifm_w, window) = if dense {
            (1, pixels, 1, pixels, Taps { stride_h: 1, stride_w: 1, ..w })
        } else {
            (p.ofm_h, p.ofm_w, p.ifm_h, p.ifm_w, w)
        };
        let padded = !dense;
        Self {
            problem: p,
            ofm_h,
            ofm_w,
            ifm_h,
            ifm_w,
            pixels,
            window,
            ifm: Plane::new(&p.ifm),
            ofm: Plane::new(&p.ofm),
            aux: p.aux.as_ref().map(Plane::new),
            weights: p.weights.memory.pointer(p.weights.start, 1),
            records: p.records.memory.pointer(p.records.start, 1),
            steps,
            block_bytes: p.taps() * steps * 64,
            blocks: (p.group_outputs + 15) / 16,
            contiguous_rows: p.groups == 1 && w.dilation_w == 1 && p.ifm.pixel == 4 * steps,
            floats: None,
            counted: None,
            padding: if padded {
                // As long as a run, from the first channel of any group on, and as the lanes of a pixel.
                let len = (4 * steps + 15) / 16 * 16 + (p.groups - 1) * p.group_inputs;
                Room::of(p.input_zero_point, usize_of(len.unsigned_abs()))
            } else {
                Room::new()
            },
        }
    }

    /// Whether its chunks are better in halves.
    pub(super) fn in_halves(&self, split: &Split<'_>) -> bool {
        let weights = self.problem.groups * self.blocks * self.block_bytes;
        order::in_halves(split, weights, self.problem.codes())
    }
}

/// How a job is cut: tiles of pixels, panels of blocks, chunks of both.
struct Plan {
    tiles: i64,
    tiles_a_chunk: i64,
    /// Blocks of a panel; the last panel of a group may be short.
    blocks_a_panel: i64,
    panels_a_group: i64,
    panels: i64,
    panels_a_chunk: i64,
    in_halves: bool,
}

impl Plan {
    fn new(job: &Job<'_>, split: &Split<'_>) -> Self {
        let block_macs = job.block_bytes / 4; // of one pixel
        let most = i64::try_from(MOST_PIXELS).expect("14");
        let most = (POLL_MACS / (2 * block_macs)).clamp(1, most);
        let tiles = (job.pixels + most - 1) / most;
        let few = i64::try_from(MOST_PIXELS_OF_FOUR).expect("6");
        let pixels = (job.pixels + tiles - 1) / tiles;
        let wide = pixels <= few && pixels * 4 * block_macs <= POLL_MACS;
        let blocks_a_panel = if wide { 4 } else { 2 };
        let panels_a_group = (job.blocks + blocks_a_panel - 1) / blocks_a_panel;
        let panels = panels_a_group * job.problem.groups;
        let panel_bytes = blocks_a_panel * job.block_bytes;
        let macs = pixels * blocks_a_panel * block_macs;
        let units = split.units_a_chunk(tiles * panels, macs);
        let panels_a_chunk = (CHUNK_WEIGHTS / panel_bytes).clamp(1, panels).min(units);
        let tiles_a_chunk = (units / panels_a_chunk).clamp(1, tiles);
        // What the tiles do not use of a chunk, more panels do.
        let panels_a_chunk = (units / tiles_a_chunk).clamp(panels_a_chunk, panels);
        Self {
            tiles,
            tiles_a_chunk,
            blocks_a_panel,
            panels_a_group,
            panels,
            panels_a_chunk,
            in_halves: job.in_halves(split),
        }
    }

    fn order(&self) -> Order {
        Order {
            weights: (self.panels + self.panels_a_chunk - 1) / self.panels_a_chunk,
            pixels: (self.tiles + self.tiles_a_chunk - 1) / self.tiles_a_chunk,
            in_halves: self.in_halves,
        }
    }

    fn chunks(&self) -> i64 {
        self.order().chunks()
    }

    /// The first panel and the first tile of `chunk`.
    fn first(&self, chunk: i64) -> (i64, i64) {
        let (panels, tiles) = self.order().at(chunk);
        (panels * self.panels_a_chunk, tiles * self.tiles_a_chunk)
    }

    /// Computes one chunk.
    ///
    /// # Safety
    /// As of [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn chunk(&self, job: &Job<'_>, channels: Channels, chunk: i64) {
        // All tiles, or those of a half, pass by before the next weights are fetched, which are the larger part
        // of a deep layer's memory.
        let (first_panel, first_tile) = self.first(chunk);
        let end_panel = (first_panel + self.panels_a_chunk).min(self.panels);
        let stage = Stage::new(&job.problem.stage, channels);
        let (mut addresses, mut window) = (Room::new(), Room::new());
        for tile in first_tile..(first_tile + self.tiles_a_chunk).min(self.tiles) {
            let (start, count) = span(tile, self.tiles, job.pixels);
            let mut pixels = Pixels::new(job, start, count);
            let mut runs = pixels.runs(job, &mut addresses, &mut window);
            let mut summed = None;
            for panel in first_panel..end_panel {
                let group = panel / self.panels_a_group;
                if let Some(counted) = job.counted.as_ref().filter(|_| summed != Some(group)) {
                    let first_input = isize_of(group * job.problem.group_inputs);
                    // SAFETY: the runs are of these pixels.
                    pixels.sums = Some(unsafe {
                        zero_points::sums(&runs, pixels.count, first_input, counted)
                    });
                    summed = Some(group);
                }
                let mut block = panel % self.panels_a_group * self.blocks_a_panel;
                let end = (block + self.blocks_a_panel).min(job.blocks);
                // Each tile asks for a block of the weights that follow when all tiles have passed by.
                // Behind the last are those of the next command.
                let next = block + (end_panel - first_panel) * self.blocks_a_panel;
                let next = group * job.blocks + next + tile % self.blocks_a_panel;
                runs.next = job.weights.wrapping_offset(isize_of(next * job.block_bytes));
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
        }
    }
}

/// First pixel of `tile` of `tiles`, and how many it has: tiles differ by one pixel at most.
///
/// Without a product of the two, which overflows where a hostile program has 2^40 pixels.
pub(super) fn span(tile: i64, tiles: i64, pixels: i64) -> (i64, i64) {
    let (each, over) = (pixels / tiles, pixels % tiles);
    (tile * each + tile.min(over), each + i64::from(tile < over))
}

/// Kernels by log2 of blocks and by pixels less one.
type Kernel = unsafe fn(&Job<'_>, &Stage, &Pixels, &Runs<'_>, [i64; 2]);
macro_rules! kernels {
    ($blocks:literal: $($pixels:literal)*) => { [$(tile::<$pixels, $blocks> as Kernel),*] };
}
const TILES: [[Kernel; MOST_PIXELS]; 3] = [
    kernels!(1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    kernels!(2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    kernels!(4: 1 2 3 4 5 6 6 6 6 6 6 6 6 6), // behind 6 never called: panels of four are for fewer
];

/// One tile: `PIXELS` pixels by `BLOCKS` blocks of output channels, from `block` of `group` on.
///
/// # Safety
/// As of [`run`]; pixels and blocks lie in the problem, and `pixels.count` is `PIXELS`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn tile<const PIXELS: usize, const BLOCKS: usize>(
    job: &Job<'_>,
    stage: &Stage,
    pixels: &Pixels,
    runs: &Runs<'_>,
    [group, block]: [i64; 2],
) {
    let p = job.problem;
    let block_bytes = isize_of(job.block_bytes);
    let first_output = group * p.group_outputs + block * 16;
    let first_input = isize_of(group * p.group_inputs);
    let records = job.records.wrapping_offset(isize_of(first_output * 16));
    let mut weights =
        job.weights.wrapping_offset(isize_of(group * job.blocks + block) * block_bytes);

    let mut acc = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
    let mut multipliers = [_mm512_setzero_ps(); BLOCKS];
    for v in 0..BLOCKS {
        // SAFETY: groups of more than one have whole blocks, so the records of a block are sixteen.
        let (bias, multiplier) = unsafe { load_records(records.wrapping_add(256 * v)) };
        multipliers[v] = multiplier;
        for row in &mut acc {
            row[v] = bias;
        }
    }

    let mut next = runs.next;
    for run in runs.addresses {
        let at: [*const u8; PIXELS] = std::array::from_fn(|r| run[r].wrapping_offset(first_input));
        for step in 0..runs.steps {
            let mut w = [_mm512_setzero_si512(); BLOCKS];
            for (v, w) in (0..).zip(&mut w) {
                // SAFETY: the weights of this step of each block, within `weight_bytes`.
                *w = unsafe { load_64(weights.wrapping_offset(v * block_bytes)) };
            }
            for r in 0..PIXELS {
                // SAFETY: four channels of a pixel of the input, pad lanes included, or of the
                // padding, which is as long.
                let x = unsafe { broadcast_4(at[r].wrapping_add(4 * step)) };
                for v in 0..BLOCKS {
                    acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], x, w[v]);
                }
            }
            weights = weights.wrapping_add(64);
            // A hint, which reads nothing: any address will do.
            _mm_prefetch::<_MM_HINT_T1>(next.cast());
            next = next.wrapping_add(64);
        }
    }

    // Stored one by one: accumulators that are indexed in a loop live in memory from the start.
    let mut sums = MaybeUninit::<[__m512i; MOST_VECTORS]>::uninit();
    let to = sums.as_mut_ptr().cast::<__m512i>();
    for (r, acc) in acc.iter().enumerate() {
        for (v, acc) in acc.iter().enumerate() {
            let to = to.wrapping_add(r * BLOCKS + v);
            // SAFETY: an element of the local array, aligned as its type is.
            unsafe { _mm512_store_si512(to.cast(), *acc) };
        }
    }
    if let Some(inputs) = &pixels.sums {
        // SAFETY: the records of the blocks, and the vectors stored above.
        unsafe { zero_points::subtract::<BLOCKS>(to, inputs, pixels.count, records) };
    }
    for i in PIXELS * BLOCKS..(PIXELS * BLOCKS).next_multiple_of(4) {
        // Any vector fills the last four.
        // SAFETY: as above.
        unsafe { _mm512_store_si512(to.wrapping_add(i).cast(), acc[0][0]) };
    }
    // SAFETY: so many fours were stored above.
    let sums = unsafe { std::slice::from_raw_parts(to.cast(), (PIXELS * BLOCKS).div_ceil(4)) };
    if let Some(floats) = job.floats {
        let place = (group * job.blocks + block, first_output, p.group_outputs - block * 16);
        // SAFETY: the pixels lie in the problem, and so do the blocks.
        unsafe { float::finish::<BLOCKS>(floats, stage, sums, &multipliers, pixels, place) };
        return;
    }
    let lanes = (first_output, p.group_outputs - block * 16);
    // SAFETY: the pixels lie in the problem, and so do the blocks.
    unsafe { finish::finish(stage, sums, &multipliers, pixels, lanes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_pixel_once_however_many_there_are() {
        for pixels in [1, 13, 14, 15, 1000, 12_345, (1 << 40) + 5, 1 << 48] {
            let most = i64::try_from(MOST_PIXELS).unwrap();
            let tiles = (pixels + most - 1) / most;
            for tile in [0, 1, tiles / 3, tiles / 2, tiles - 2, tiles - 1] {
                if !(0..tiles).contains(&tile) {
                    continue;
                }
                let (start, count) = span(tile, tiles, pixels);
                assert!((1..=most).contains(&count), "{count} pixels in tile {tile} of {pixels}");
                let next = if tile + 1 < tiles { span(tile + 1, tiles, pixels).0 } else { pixels };
                assert_eq!(start + count, next, "tile {tile} of {pixels}");
                assert!(tile > 0 || start == 0);
            }
        }
    }
}
