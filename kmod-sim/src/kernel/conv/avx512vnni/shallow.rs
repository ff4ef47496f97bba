//! Dense problems of few products an output: thin 1x1 layers, first layers of few channels.
//!
//! ```text
//!   4 pixels x 4 blocks of 16 outputs, or 8 pixels x 2 or 1:
//!   bias -> a few steps of vpdpbusd -> output stage -> 64-byte stores, all in registers
//! ```
//!
//! With so few steps a tile of [`super::tile`] spends more on its addresses, on the way of its sums through
//! memory and on narrow stores than on products. Here a strip of one row's pixels passes by for the same
//! blocks, and the steps are offsets from the first tap of a pixel, the same for all of them. The windows
//! of a strip that reaches into the padding are copied with zero points around them.

use super::{Job, span};
use crate::kernel::Stop;
use crate::kernel::split::Split;
use crate::kernel::vector::stage::{Kind, Stage};
use crate::kernel::vector::{
    Channels, broadcast_4, load_64, load_records, mask_16, mask_64, store_16, store_32, store_64,
};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512, __m512i, _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_dpbusd_epi32,
    _mm512_extracti32x4_epi32, _mm512_extracti64x4_epi64, _mm512_setzero_ps, _mm512_setzero_si512,
};

/// Most steps of four products in a sum: beyond, tiles with more accumulators read less.
const MOST_STEPS: usize = 40;

/// Most pixels of a strip: what they read stays in the level-1 cache for all blocks.
const MOST_PIXELS: i64 = 64;

/// Most bytes of a strip's windows that are copied at the padding.
const MOST_WINDOW: usize = 16 << 10;

/// Fewest pixels of a row: with less a tile has more of them at a time.
const FEWEST_PIXELS: i64 = 8;

/// Blocks of outputs that pass by together.
const PANEL: i64 = 4;

/// Whether this kernel takes `job`.
pub(super) fn takes(job: &Job<'_>) -> bool {
    let p = job.problem;
    let few = usize_of((p.taps() * job.steps).unsigned_abs()) <= MOST_STEPS;
    let plain = p.groups == 1 && job.floats.is_none() && job.counted.is_none();
    few && plain
        && job.ofm_w >= FEWEST_PIXELS
        && (job.padding.is_empty() || window_row(job).is_some())
}

/// Bytes of a row of a strip's windows, if they are few enough to be copied.
fn window_row(job: &Job<'_>) -> Option<i64> {
    let w = &job.window;
    let columns = MOST_PIXELS.checked_mul(w.stride_w)?.checked_add(w.kernel_w * w.dilation_w)?;
    let row = columns.checked_mul(4 * job.steps)?;
    let all = row.checked_mul(w.kernel_h)?;
    (usize_of(all.unsigned_abs()) <= MOST_WINDOW).then_some(row)
}

/// Runs `job`.
///
/// # Safety
/// As of [`super::run`]; `takes(job)`.
pub(super) unsafe fn run(job: &Job<'_>, channels: Channels, split: &Split<'_>) -> Result<(), Stop> {
    let strips_a_row = (job.ofm_w + MOST_PIXELS - 1) / MOST_PIXELS;
    // Where a dense 1x1 convolution is one row of pixels, that row is of all images.
    let strips = job.pixels / job.ofm_w * strips_a_row;
    let panels = (job.blocks + PANEL - 1) / PANEL;
    // A unit is a strip for all panels or, where strips are few, for a part of them.
    let parts = (8 * split.workers() / strips).clamp(1, panels);
    let panels_a_unit = (panels + parts - 1) / parts;
    let parts = (panels + panels_a_unit - 1) / panels_a_unit;
    let panel_macs = MOST_PIXELS.min(job.ofm_w) * PANEL * job.block_bytes / 4;
    let (units, macs) = (strips * parts, panel_macs * panels_a_unit);
    let each = split.units_a_chunk(units, macs);
    split.chunks((units + each - 1) / each, &|chunk, budget| {
        let first = chunk * each;
        // SAFETY: the caller's promise.
        let strips = unsafe { Strips::new(job, channels) };
        let mut window = [0; MOST_WINDOW];
        for unit in first..(first + each).min(units) {
            let (strip, part) = (unit / parts, unit % parts);
            let (row, place) = (strip / strips_a_row, strip % strips_a_row);
            let (start, count) = span(place, strips_a_row, job.ofm_w);
            // SAFETY: the caller's promise; the pixels lie in a row that exists.
            let strip = unsafe { strips.strip(row, start, count, &mut window) };
            let first = part * panels_a_unit;
            for panel in first..(first + panels_a_unit).min(panels) {
                budget.spend(panel_macs)?;
                // SAFETY: the caller's promise; the panel exists.
                unsafe { strips.pass(&strip, panel) };
            }
        }
        Ok(())
    })
}

/// What a chunk's strips share.
struct Strips<'a> {
    job: &'a Job<'a>,
    stage: Stage,
    /// Kernel by blocks less one.
    kernels: [Kernel; 4],
    steps: usize,
    /// Of each step from the first tap of a pixel, in the input.
    offsets: Offsets,
    /// The same in a copy of windows, of rows of `window_row` bytes.
    window_offsets: Offsets,
    window_row: usize,
    /// Channels of an output pixel that may be written.
    lanes: i64,
}

/// Pixels of a row: the address of the first one's first tap, result and auxiliary codes, and from each
/// to the next.
struct Strip<'a> {
    count: usize,
    /// Of each step from a pixel's first tap.
    offsets: &'a [isize],
    input: *const u8,
    input_step: isize,
    out: *mut u8,
    out_step: isize,
    aux: *const u8,
    aux_step: isize,
}

/// Up to [`PANEL`] blocks of outputs.
struct Panel {
    /// Bytes from the first lane of a pixel.
    at: isize,
    weights: *const u8,
    /// From one block's weights to the next.
    block_bytes: isize,
    records: *const u8,
    /// Lanes from the first on that are outputs, and that may be written.
    outputs: i64,
    lanes: i64,
    /// Pixels of the output follow each other without a gap, and without other panels between them.
    contiguous: bool,
    /// No pixel's result is read as another's auxiliary codes: pixels may be computed twice.
    twice: bool,
}

type Offsets = [isize; MOST_STEPS];

/// Offsets of steps, where kernel rows and pixels are so far from each other.
fn offsets(job: &Job<'_>, row: isize, pixel: isize) -> Offsets {
    let w = &job.window;
    let taps = (0..w.kernel_h).flat_map(|ky| (0..w.kernel_w).map(move |kx| (ky, kx)));
    let steps = taps.flat_map(|tap| (0..job.steps).map(move |step| (tap, step)));
    let mut offsets = [0; MOST_STEPS];
    for (offset, ((ky, kx), step)) in offsets.iter_mut().zip(steps) {
        let down = isize_of(ky).wrapping_mul(row);
        let right = isize_of(kx * w.dilation_w).wrapping_mul(pixel);
        *offset = down.wrapping_add(right).wrapping_add(isize_of(4 * step));
    }
    offsets
}

type Kernel = unsafe fn(&Stage, &Strip<'_>, &Panel);

impl<'a> Strips<'a> {
    /// # Safety
    /// As of [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn new(job: &'a Job<'a>, channels: Channels) -> Self {
        let w = &job.window;
        let stage = Stage::new(&job.problem.stage, channels);
        let window_row = match job.padding.is_empty() {
            true => 0,
            false => isize_of(window_row(job).expect("`takes` has asked")),
        };
        let input_row = isize_of(w.dilation_h).wrapping_mul(job.ifm.row);
        let kernels = match stage.kind() {
            Kind::Bare => kernels::<BARE>(),
            Kind::Plain if channels.small => kernels::<SMALL>(),
            Kind::Plain => kernels::<PLAIN>(),
            Kind::Sum => kernels::<SUM>(),
            Kind::SumAuxFirst => kernels::<SUM_AUX_FIRST>(),
            Kind::Table if channels.small => kernels::<SMALL_TABLE>(),
            Kind::Table | Kind::TableSum | Kind::Tables => kernels::<TABLES>(),
        };
        Self {
            job,
            stage,
            kernels,
            steps: usize_of((job.problem.taps() * job.steps).unsigned_abs()),
            offsets: offsets(job, input_row, job.ifm.pixel),
            // In a copy, the rows between those of a dilated kernel are left out.
            window_offsets: offsets(job, window_row, isize_of(4 * job.steps)),
            window_row: window_row.unsigned_abs(),
            lanes: job.problem.ofm.lanes,
        }
    }

    /// Pixels `first .. first + count` of `row`, counted through images; `window` is for their windows.
    ///
    /// # Safety
    /// As of [`run`]; they exist, and are [`MOST_PIXELS`] at most.
    unsafe fn strip<'s>(
        &'s self,
        row: i64,
        first: i64,
        count: i64,
        window: &'s mut [u8],
    ) -> Strip<'s> {
        let (job, w) = (self.job, &self.job.window);
        let (n, oy) = (row / job.ofm_h, row % job.ofm_h);
        let (y, x) = (w.row(oy, 0), w.column(first, 0));
        let last_y = y + (w.kernel_h - 1) * w.dilation_h;
        let last_x = x + (count - 1) * w.stride_w + (w.kernel_w - 1) * w.dilation_w;
        let inside = y >= 0 && last_y < job.ifm_h && x >= 0 && last_x < job.ifm_w;
        let (offsets, input, pixel) = if inside {
            (&self.offsets, job.ifm.at(n, y, x).cast_const(), job.ifm.pixel)
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.copy(n, (y, x), last_x - x + 1, window) };
            (&self.window_offsets, window.as_ptr(), isize_of(4 * job.steps))
        };
        Strip {
            count: usize_of(count.unsigned_abs()),
            offsets: &offsets[..self.steps],
            input,
            input_step: isize_of(w.stride_w).wrapping_mul(pixel),
            out: job.ofm.at(n, oy, first),
            out_step: job.ofm.pixel,
            aux: job.aux.map_or(std::ptr::null(), |aux| aux.at(n, oy, first).cast_const()),
            aux_step: job.aux.map_or(0, |aux| aux.pixel),
        }
    }

    /// Passes a strip by panel number `panel`.
    ///
    /// # Safety
    /// As of [`run`]; the panel exists.
    unsafe fn pass(&self, strip: &Strip<'_>, panel: i64) {
        let job = self.job;
        let block = PANEL * panel;
        let blocks = (job.blocks - block).min(PANEL);
        let panel = Panel {
            at: isize_of(16 * block),
            weights: job.weights.wrapping_offset(isize_of(block * job.block_bytes)),
            block_bytes: isize_of(job.block_bytes),
            records: job.records.wrapping_offset(isize_of(256 * block)),
            outputs: job.problem.group_outputs - 16 * block,
            lanes: self.lanes - 16 * block,
            contiguous: job.ofm.pixel == isize_of(16 * blocks) && self.lanes == 16 * blocks,
            twice: job.aux.is_none(),
        };
        let kernel = self.kernels[usize_of(blocks.unsigned_abs()) - 1];
        // SAFETY: the caller's promise; so many blocks are left.
        unsafe { kernel(&self.stage, strip, &panel) };
    }

    /// Copies what windows cover, from `(y, x)` on in `columns` columns, with zero points for the padding.
    ///
    /// # Safety
    /// As of [`run`]; the windows are those of pixels that exist.
    unsafe fn copy(&self, n: i64, (y, x): (i64, i64), columns: i64, window: &mut [u8]) {
        let (job, w) = (self.job, &self.job.window);
        let pixel = 4 * job.steps;
        let zero_point = job.problem.input_zero_point;
        let (left, right) = ((-x).clamp(0, columns), (job.ifm_w - x).clamp(0, columns));
        for ky in 0..w.kernel_h {
            let y = y + ky * w.dilation_h;
            let start = usize_of(ky.unsigned_abs()) * self.window_row;
            let to = &mut window[start..][..usize_of((columns * pixel).unsigned_abs())];
            if !(0..job.ifm_h).contains(&y) || left >= right {
                to.fill(zero_point);
                continue;
            }
            let (left_bytes, right_bytes) =
                (usize_of((left * pixel).unsigned_abs()), usize_of((right * pixel).unsigned_abs()));
            to[..left_bytes].fill(zero_point);
            to[right_bytes..].fill(zero_point);
            let to = &mut to[left_bytes..right_bytes];
            if job.ifm.pixel == isize_of(pixel) {
                let from = job.ifm.at(n, y, x + left).cast_const();
                // SAFETY: whole pixels of a row of the input.
                unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
            } else {
                for (x, to) in (x + left..).zip(to.chunks_exact_mut(usize_of(pixel.unsigned_abs())))
                {
                    let from = job.ifm.at(n, y, x).cast_const();
                    // SAFETY: the lanes of a pixel of the input.
                    unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
                }
            }
        }
    }
}

/// The kinds of stages, as parameters; the small ones are of small multipliers.
const PLAIN: u8 = 0;
const SUM: u8 = 1;
const SUM_AUX_FIRST: u8 = 2;
const TABLES: u8 = 3;
const SMALL: u8 = 4;
const SMALL_TABLE: u8 = 5;
const BARE: u8 = 6;

/// By blocks less one.
const fn kernels<const KIND: u8>() -> [Kernel; 4] {
    [strip::<8, 1, KIND>, strip::<8, 2, KIND>, strip::<4, 3, KIND>, strip::<4, 4, KIND>]
}

/// One strip of pixels by `BLOCKS` blocks of outputs, `PIXELS` at a time; the last ones twice or, where
/// that is not the same, one by one.
///
/// # Safety
/// As of [`run`]; strip and panel lie in the problem.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn strip<const PIXELS: usize, const BLOCKS: usize, const KIND: u8>(
    stage: &Stage,
    strip: &Strip<'_>,
    panel: &Panel,
) {
    let mut bias = [_mm512_setzero_si512(); BLOCKS];
    let mut multipliers = [_mm512_setzero_ps(); BLOCKS];
    for v in 0..BLOCKS {
        // SAFETY: the records of a block are sixteen.
        let (b, m) = unsafe { load_records(panel.records.wrapping_add(256 * v)) };
        (bias[v], multipliers[v]) = (b, m);
    }
    let mut done = 0;
    while done + PIXELS <= strip.count {
        let at = done.cast_signed();
        // SAFETY: the caller's promise.
        unsafe { group::<PIXELS, BLOCKS, KIND>(stage, strip, panel, (&bias, &multipliers), at) };
        done += PIXELS;
        if panel.twice && strip.count >= PIXELS && done < strip.count {
            done = done.min(strip.count - PIXELS);
        }
    }
    for done in done..strip.count {
        let at = done.cast_signed();
        // SAFETY: the caller's promise.
        unsafe { group::<1, BLOCKS, KIND>(stage, strip, panel, (&bias, &multipliers), at) };
    }
}

/// `PIXELS` pixels from the one numbered `first` on.
///
/// # Safety
/// As of [`strip`]; the pixels are in the strip.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn group<const PIXELS: usize, const BLOCKS: usize, const KIND: u8>(
    stage: &Stage,
    strip: &Strip<'_>,
    panel: &Panel,
    (bias, multipliers): (&[__m512i; BLOCKS], &[__m512; BLOCKS]),
    first: isize,
) {
    let input = strip.input.wrapping_offset(first.wrapping_mul(strip.input_step));
    let at: [*const u8; PIXELS] = std::array::from_fn(|r| at(input, strip.input_step, r));
    let mut acc = [*bias; PIXELS];
    let mut weights = panel.weights;
    for offset in strip.offsets {
        let mut w = [_mm512_setzero_si512(); BLOCKS];
        for (v, w) in (0..).zip(&mut w) {
            // SAFETY: the weights of this step of each block, within `weight_bytes`.
            *w = unsafe { load_64(weights.wrapping_offset(v * panel.block_bytes)) };
        }
        for r in 0..PIXELS {
            // SAFETY: four channels of a pixel of the input or of its copy, pad lanes included.
            let x = unsafe { broadcast_4(at[r].wrapping_offset(*offset)) };
            for v in 0..BLOCKS {
                acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], x, w[v]);
            }
        }
        weights = weights.wrapping_add(64);
    }

    // By name, not in a loop: accumulators that are indexed in one live in memory from the start.
    let finish = [
        four::<PIXELS, BLOCKS, KIND, 0>,
        four::<PIXELS, BLOCKS, KIND, 1>,
        four::<PIXELS, BLOCKS, KIND, 2>,
        four::<PIXELS, BLOCKS, KIND, 3>,
    ];
    let fours = (PIXELS * BLOCKS).div_ceil(4);
    // SAFETY: the caller's promise; so for the others.
    unsafe { finish[0](stage, strip, panel, &acc, multipliers, first) };
    if fours > 1 {
        // SAFETY: as above.
        unsafe { finish[1](stage, strip, panel, &acc, multipliers, first) };
    }
    if fours > 2 {
        // SAFETY: as above.
        unsafe { finish[2](stage, strip, panel, &acc, multipliers, first) };
    }
    if fours > 3 {
        // SAFETY: as above.
        unsafe { finish[3](stage, strip, panel, &acc, multipliers, first) };
    }
}

/// Passes vectors `4 * FOUR ..` of a group's sums through the output stage.
///
/// # Safety
/// As of [`group`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn four<const PIXELS: usize, const BLOCKS: usize, const KIND: u8, const FOUR: usize>(
    stage: &Stage,
    strip: &Strip<'_>,
    panel: &Panel,
    acc: &[[__m512i; BLOCKS]; PIXELS],
    multipliers: &[__m512; BLOCKS],
    first: isize,
) {
    let start = panel.at.wrapping_add(first.wrapping_mul(strip.out_step));
    let out = strip.out.wrapping_offset(start);
    let start = panel.at.wrapping_add(first.wrapping_mul(strip.aux_step));
    let aux = strip.aux.wrapping_offset(start);
    // Any vector fills the last four.
    let vector: [usize; 4] = std::array::from_fn(|i| (4 * FOUR + i).min(PIXELS * BLOCKS - 1));
    let pixel = vector.map(|i| i / BLOCKS);
    let block = vector.map(|i| i % BLOCKS);
    let sums = std::array::from_fn(|i| acc[pixel[i]][block[i]]);
    let multipliers = block.map(|v| multipliers[v]);
    let from: [*const u8; 4] =
        std::array::from_fn(|i| at(aux, strip.aux_step, pixel[i]).wrapping_add(16 * block[i]));
    let masks = block.map(|v| mask_16(panel.outputs - [0, 16, 32, 48][v]));
    let bytes = match KIND {
        PLAIN => stage.plain_64(sums, multipliers),
        BARE => Stage::bare_64(sums, multipliers),
        SMALL => stage.small_64(sums, multipliers),
        SMALL_TABLE => stage.small_table_64(sums, multipliers),
        // SAFETY: the caller's promise.
        SUM => unsafe { stage.sum_64::<false>(sums, multipliers, masks, from) },
        // SAFETY: the caller's promise.
        SUM_AUX_FIRST => unsafe { stage.sum_64::<true>(sums, multipliers, masks, from) },
        // SAFETY: the caller's promise.
        _ => unsafe { stage.any_64(sums, multipliers, masks, from) },
    };
    let to: [*mut u8; 4] = std::array::from_fn(|i| {
        at(out, strip.out_step, pixel[i]).cast_mut().wrapping_add(16 * block[i])
    });
    let vectors = (PIXELS * BLOCKS - 4 * FOUR).min(4);
    if BLOCKS == 4 {
        // SAFETY: the caller's promise.
        unsafe { store_64(to[0], mask_64(panel.lanes), bytes) };
    } else if panel.contiguous && vectors == 4 {
        // SAFETY: the caller's promise, for pixels without a gap.
        unsafe { store_64(to[0], u64::MAX, bytes) };
    } else {
        let masks = block.map(|v| mask_16(panel.lanes - [0, 16, 32, 48][v]));
        // SAFETY: the caller's promise.
        unsafe { scatter::<BLOCKS>(vectors, masks, bytes, to) };
    }
}

/// The address of pixel `r` from the one at `first` on.
fn at(first: *const u8, step: isize, r: usize) -> *const u8 {
    first.wrapping_offset(step.wrapping_mul(r.cast_signed()))
}

/// Stores the 16 bytes of each vector of a four that is of a pixel.
///
/// # Safety
/// The lanes of `masks` must be writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn scatter<const BLOCKS: usize>(
    vectors: usize,
    masks: [u16; 4],
    bytes: __m512i,
    to: [*mut u8; 4],
) {
    if BLOCKS == 2 {
        let low = _mm512_castsi512_si256(bytes);
        // SAFETY: the caller's promise.
        unsafe { store_32(to[0], masks, low) };
        if vectors > 2 {
            let high = _mm512_extracti64x4_epi64::<1>(bytes);
            // SAFETY: as above.
            unsafe { store_32(to[2], masks, high) };
        }
        return;
    }
    let parts = [
        _mm512_castsi512_si128(bytes),
        _mm512_extracti32x4_epi32::<1>(bytes),
        _mm512_extracti32x4_epi32::<2>(bytes),
        _mm512_extracti32x4_epi32::<3>(bytes),
    ];
    for i in 0..vectors {
        // SAFETY: the caller's promise.
        unsafe { store_16(to[i], masks[i], parts[i]) };
    }
}
