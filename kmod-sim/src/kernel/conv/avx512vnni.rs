//! CONV and MATMUL on AVX-512 VNNI, as implicit matrix products.
//!
//! ```text
//!   pixels (rows)  x  taps, input channels  x  output channels (columns)
//!   up to 14          4 a step: vpdpbusd       1, 2 or 4 blocks of 16
//! ```
//!
//! A tile of pixels times blocks stays in registers for its whole reduction and through the output
//! stage, and is stored once. A step reads four channels of each pixel (one broadcast) and one vector of
//! weights a block. There is no im2col: each tap finds the address of its pixels, and positions in the
//! padding point at one row of zero points. Pixels run over all rows and images, so small feature maps
//! fill tiles as well as large ones.
//!
//! Takes: dense problems of any size, and grouped ones whose inputs a group are a multiple of 4 and
//! outputs a multiple of 16; weight zero points of zero. Everything else is the scalar kernel's.

use crate::kernel::Stop;
use crate::kernel::conv::{Problem, Taps};
use crate::kernel::operand::Map;
use crate::kernel::split::{POLL_MACS, Split};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{
    broadcast_4, load_64, load_records, mask_16, store_16, weights_are_symmetric,
};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    _mm512_cvtepi32_epi8, _mm512_dpbusd_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_store_si512,
};

/// Most pixels of a tile: 14 x 2 accumulators, 2 vectors of weights and a broadcast fill 31 registers.
const MOST_PIXELS: usize = 14;

/// Most pixels of a tile of four blocks.
const MOST_PIXELS_OF_FOUR: usize = 6;

/// Bytes of weights that a chunk works on, about: they are read once for each tile of pixels, from the
/// level-2 cache.
const CHUNK_WEIGHTS: i64 = 256 << 10;

/// Whether this kernel takes `problem`.
pub(crate) fn takes(p: &Problem) -> bool {
    let fours = (p.group_inputs + 3) / 4;
    let groups = p.groups == 1 || (p.group_inputs % 4 == 0 && p.group_outputs % 16 == 0);
    // A step may read pad lanes up to a multiple of 4 channels; they must be in the slot.
    !p.depthwise && groups && p.ifm.lanes >= 4 * fours && p.taps() * fours * 4 * 32 <= POLL_MACS
}

/// Runs `problem`; `None` when its weights have zero points.
///
/// # Safety
/// `takes(problem)`, on a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Option<Result<(), Stop>> {
    let job = Job::new(p);
    let outputs = usize_of(p.outputs.unsigned_abs());
    // SAFETY: the processor is the caller's promise; the records were checked, in sixteens.
    if !unsafe { weights_are_symmetric(job.records, outputs) } {
        return None;
    }
    let plan = Plan::new(&job, split);
    Some(split.chunks(plan.chunks(), &|chunk, _| {
        // SAFETY: the caller's promise; a chunk is at most as large as `Plan::new` bounds it.
        unsafe { plan.chunk(&job, chunk) };
        Ok(())
    }))
}

/// A problem in the terms of this kernel: addresses, steps, blocks.
struct Job<'a> {
    problem: &'a Problem,
    /// Dimensions and window; a dense 1x1 convolution is one row of pixels.
    ofm_h: i64,
    ofm_w: i64,
    ifm_h: i64,
    ifm_w: i64,
    pixels: i64,
    window: Taps,
    ifm: Plane,
    ofm: Plane,
    aux: Option<Plane>,
    weights: *const u8,
    records: *const u8,
    /// Steps of four channels in a tap.
    steps: i64,
    /// Bytes of the weights of one block of 16 outputs.
    block_bytes: i64,
    /// Blocks of a group.
    blocks: i64,
    /// When a kernel row of a pixel is contiguous: all its columns in one run.
    contiguous_rows: bool,
    /// A pixel of zero points; empty when no pixel of the problem is in the padding.
    padding: Vec<u8>,
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
    fn new(p: &'a Problem) -> Self {
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
            padding: if padded {
                vec![p.input_zero_point; usize_of(4 * steps.unsigned_abs())]
            } else {
                Vec::new()
            },
        }
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
        Self { tiles, tiles_a_chunk, blocks_a_panel, panels_a_group, panels, panels_a_chunk }
    }

    fn chunks_of_panels(&self) -> i64 {
        (self.panels + self.panels_a_chunk - 1) / self.panels_a_chunk
    }

    fn chunks(&self) -> i64 {
        (self.tiles + self.tiles_a_chunk - 1) / self.tiles_a_chunk * self.chunks_of_panels()
    }

    /// Computes one chunk.
    ///
    /// # Safety
    /// As of [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn chunk(&self, job: &Job<'_>, chunk: i64) {
        let first_tile = chunk / self.chunks_of_panels() * self.tiles_a_chunk;
        let first_panel = chunk % self.chunks_of_panels() * self.panels_a_chunk;
        let stage = Stage::new(&job.problem.stage);
        for tile in first_tile..(first_tile + self.tiles_a_chunk).min(self.tiles) {
            let (start, count) = span(tile, self.tiles, job.pixels);
            let pixels = Pixels::new(job, start, count);
            for panel in first_panel..(first_panel + self.panels_a_chunk).min(self.panels) {
                let group = panel / self.panels_a_group;
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
                    unsafe { kernel(job, &stage, &pixels, group, block) };
                    block += 1 << width;
                }
            }
        }
    }
}

/// First pixel of `tile` of `tiles`, and how many it has: tiles differ by one pixel at most.
///
/// Without a product of the two, which overflows where a hostile program has 2^40 pixels.
fn span(tile: i64, tiles: i64, pixels: i64) -> (i64, i64) {
    let (each, over) = (pixels / tiles, pixels % tiles);
    (tile * each + tile.min(over), each + i64::from(tile < over))
}

/// Kernels by log2 of blocks and by pixels less one.
type Kernel = unsafe fn(&Job<'_>, &Stage, &Pixels, i64, i64);
macro_rules! kernels {
    ($blocks:literal: $($pixels:literal)*) => { [$(tile::<$pixels, $blocks> as Kernel),*] };
}
const TILES: [[Kernel; MOST_PIXELS]; 3] = [
    kernels!(1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    kernels!(2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    kernels!(4: 1 2 3 4 5 6 6 6 6 6 6 6 6 6), // behind 6 never called: panels of four are for fewer
];

/// The pixels of a tile: where their windows begin in the input, and where their results go.
struct Pixels {
    count: usize,
    /// Whether no window reaches into the padding.
    inside: bool,
    /// First tap of each pixel's window; an address outside the input when that is in the padding.
    input: [*const u8; MOST_PIXELS],
    /// Row and column of that tap.
    y: [i64; MOST_PIXELS],
    x: [i64; MOST_PIXELS],
    out: [*mut u8; MOST_PIXELS],
    aux: [*const u8; MOST_PIXELS],
}

impl Pixels {
    /// Pixels `first .. first + count` of the output, counted through rows and images.
    fn new(job: &Job<'_>, first: i64, count: i64) -> Self {
        let (row, mut ox) = (first / job.ofm_w, first % job.ofm_w);
        let (mut n, mut oy) = (row / job.ofm_h, row % job.ofm_h);
        let w = &job.window;
        let last_y = job.ifm_h - 1 - (w.kernel_h - 1) * w.dilation_h;
        let last_x = job.ifm_w - 1 - (w.kernel_w - 1) * w.dilation_w;
        let mut pixels = Self {
            count: usize_of(count.unsigned_abs()),
            inside: true,
            input: [std::ptr::null(); MOST_PIXELS],
            y: [0; MOST_PIXELS],
            x: [0; MOST_PIXELS],
            out: [std::ptr::null_mut(); MOST_PIXELS],
            aux: [std::ptr::null(); MOST_PIXELS],
        };
        // By rows of the output: within one, addresses step by a stride.
        let input_step = isize_of(w.stride_w).wrapping_mul(job.ifm.pixel);
        let mut r = 0;
        while r < pixels.count {
            let end = pixels.count.min(r + usize_of((job.ofm_w - ox).unsigned_abs()));
            let (y, mut x) = (w.row(oy, 0), w.column(ox, 0));
            let mut input = job.ifm.at(n, y, x);
            let mut out = job.ofm.at(n, oy, ox);
            let (mut aux, aux_step) = match &job.aux {
                Some(aux) => (aux.at(n, oy, ox), aux.pixel),
                None => (std::ptr::null_mut(), 0),
            };
            pixels.inside &= y >= 0 && y <= last_y && x >= 0;
            for r in r..end {
                pixels.input[r] = input;
                (pixels.y[r], pixels.x[r]) = (y, x);
                (pixels.out[r], pixels.aux[r]) = (out, aux);
                input = input.wrapping_offset(input_step);
                out = out.wrapping_offset(job.ofm.pixel);
                aux = aux.wrapping_offset(aux_step);
                x += w.stride_w;
            }
            pixels.inside &= x - w.stride_w <= last_x;
            (r, ox, oy) = (end, 0, oy + 1);
            if oy == job.ofm_h {
                (oy, n) = (0, n + 1);
            }
        }
        pixels
    }

    /// Addresses of channel `first_channel` under tap `(ky, kx)`, or of the zero points in the padding.
    #[inline(always)]
    fn tap<const PIXELS: usize>(
        &self,
        job: &Job<'_>,
        ky: i64,
        kx: i64,
        first_channel: isize,
    ) -> [*const u8; PIXELS] {
        let (dy, dx) = (ky * job.window.dilation_h, kx * job.window.dilation_w);
        let offset = isize_of(dy).wrapping_mul(job.ifm.row);
        let offset = offset.wrapping_add(isize_of(dx).wrapping_mul(job.ifm.pixel));
        let offset = offset.wrapping_add(first_channel);
        let mut at = [std::ptr::null(); PIXELS];
        for (r, at) in at.iter_mut().enumerate() {
            *at = self.input[r].wrapping_offset(offset);
        }
        if !self.inside {
            for (r, at) in at.iter_mut().enumerate() {
                let outside = !(0..job.ifm_h).contains(&(self.y[r] + dy))
                    || !(0..job.ifm_w).contains(&(self.x[r] + dx));
                if outside {
                    *at = job.padding.as_ptr();
                }
            }
        }
        at
    }
}

/// One tile: `PIXELS` pixels by `BLOCKS` blocks of output channels, from `block` of `group` on.
///
/// # Safety
/// As of [`run`]; pixels and blocks lie in the problem, and `pixels.count` is `PIXELS`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn tile<const PIXELS: usize, const BLOCKS: usize>(
    job: &Job<'_>,
    stage: &Stage,
    pixels: &Pixels,
    group: i64,
    block: i64,
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

    // Inside, contiguous columns are one run.
    let merged = job.contiguous_rows && pixels.inside;
    let (columns, steps) = if merged {
        (1, job.steps * job.window.kernel_w)
    } else {
        (job.window.kernel_w, job.steps)
    };
    for ky in 0..job.window.kernel_h {
        for kx in 0..columns {
            let at: [*const u8; PIXELS] = pixels.tap(job, ky, kx, first_input);
            for step in 0..usize_of(steps.unsigned_abs()) {
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
            }
        }
    }

    let lanes_left = p.group_outputs - block * 16;
    if stage.plain {
        // Written out, so that the accumulators stay in registers: one that is indexed in a loop, even
        // behind the reduction, lives in memory from the start.
        macro_rules! store {
            ($v:literal: $($r:literal)*) => {
                if $v < BLOCKS {
                    let mask = mask_16(lanes_left - 16 * $v);
                    let at = isize_of(first_output + 16 * $v);
                    if mask == u16::MAX {
                        $(store!($v, $r, at, u16::MAX);)*
                    } else {
                        $(store!($v, $r, at, mask);)*
                    }
                }
            };
            ($v:literal, $r:literal, $at:expr, $mask:expr) => {
                if $r < PIXELS {
                    let codes = stage.requantise.codes(acc[$r][$v], multipliers[$v]);
                    let bytes = _mm512_cvtepi32_epi8(codes);
                    // SAFETY: the real lanes of a pixel of the output.
                    unsafe { store_16(pixels.out[$r].wrapping_offset($at), $mask, bytes) };
                }
            };
        }
        store!(0: 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
        store!(1: 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
        store!(2: 0 1 2 3 4 5);
        store!(3: 0 1 2 3 4 5);
        return;
    }
    let mut sums = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
    for r in 0..PIXELS {
        for v in 0..BLOCKS {
            // SAFETY: an element of a local array, aligned as its type is.
            unsafe { _mm512_store_si512((&raw mut sums[r][v]).cast(), acc[r][v]) };
        }
    }
    for (v, lane) in (0..BLOCKS).zip((0..).step_by(16)) {
        let mask = mask_16(lanes_left - lane);
        let at = isize_of(first_output + lane);
        for (r, sums) in sums.iter().enumerate() {
            let codes = stage.requantise.codes(sums[v], multipliers[v]);
            // SAFETY: the real lanes of a pixel of the auxiliary tensor.
            let codes = unsafe { stage.rest(codes, mask, pixels.aux[r].wrapping_offset(at)) };
            let bytes = _mm512_cvtepi32_epi8(codes);
            // SAFETY: the real lanes of a pixel of the output.
            unsafe { store_16(pixels.out[r].wrapping_offset(at), mask, bytes) };
        }
    }
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
