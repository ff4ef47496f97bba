//! Strips: pixels of a row of the output, at the same distance from each other in input and output.
//! Unsafe: windows that reach into the padding are copied from the input.
//!
//! Pixels of three channels lie as four. Where a kernel is wide, their copies lie as three, and a row of the
//! kernel takes fewer steps: 6 instead of 7 for a kernel of 7 columns.

use super::super::Job;
use crate::kernel::room::Room;
use crate::kernel::vector::{load_64, load_masked_64, mask_64, store_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{_mm512_maskz_permutex2var_epi8, _mm512_permutexvar_epi8};

/// Most pixels of a strip.
const MOST_PIXELS: i64 = 112;

/// Pixels that a strip should have at least, where the row has them.
const GRAIN: i64 = 12;

/// Bytes that the pixels of a strip read, about: with a panel's weights they stay in the level-1 cache.
const READ: i64 = 12 << 10;

/// Most bytes of a copy.
const MOST_COPY: i64 = 16 << 10;

/// Room for a copy, for what is read behind its last pixel, and for whole stores.
const ROOM: usize = (16 << 10) + 128;

/// A copy of what the windows of a strip cover, with zero points for the padding; nothing until there is one.
#[derive(Default)]
pub(super) struct Windows(Room<u8>);

/// How the strips of a job are read.
pub(super) struct Input {
    /// Most pixels of a strip.
    pub(super) pixels: i64,
    /// Weights for pixels that lie as three bytes in copies.
    packed: Option<Room<u8>>,
}

/// Pixels of a row: addresses of the first one's, and the way from each to the next.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub(super) count: usize,
    pub(super) input: *const u8,
    pub(super) input_pixel: isize,
    /// From each run of a window to the next.
    pub(super) run: isize,
    /// Runs and their steps in each third of a window.
    pub(super) thirds: [(usize, usize); 3],
    pub(super) out: *mut u8,
    pub(super) out_pixel: isize,
    pub(super) aux: *const u8,
    pub(super) aux_pixel: isize,
}

/// Whether a job can be cut in strips.
pub(super) fn takes(job: &Job<'_>) -> bool {
    let row = job.ofm_w.min(GRAIN);
    let linear = job.padding.is_empty();
    linear
        || job.contiguous_rows
            && job.window.kernel_h > 1
            && copied(job, row, 4 * job.steps).is_some()
}

/// Whether no window reaches into the padding.
fn is_inside(job: &Job<'_>) -> bool {
    let w = &job.window;
    let y = w.row(job.ofm_h - 1, w.kernel_h - 1);
    let x = w.column(job.ofm_w - 1, w.kernel_w - 1);
    w.pad_top == 0 && w.pad_left == 0 && y < job.ifm_h && x < job.ifm_w
}

/// Bytes of a row in a copy of the windows of `pixels` pixels, of `pixel` bytes each, if they are few enough.
fn copied(job: &Job<'_>, pixels: i64, pixel: i64) -> Option<i64> {
    let w = &job.window;
    let columns = (pixels - 1).checked_mul(w.stride_w)?.checked_add(w.kernel_w)?;
    let row = columns.checked_mul(pixel)?;
    (row.checked_mul(w.kernel_h)? <= MOST_COPY).then_some(row)
}

/// Steps of a row of a kernel over pixels of three bytes.
fn packed_steps(job: &Job<'_>) -> i64 {
    (3 * job.window.kernel_w + 3) / 4
}

impl Input {
    /// # Safety
    /// As of [`super::run`].
    pub(super) unsafe fn new(job: &Job<'_>) -> Self {
        let w = &job.window;
        let packs = job.contiguous_rows && job.problem.group_inputs == 3;
        let packs = packs && w.kernel_h > 1 && packed_steps(job) < w.kernel_w;
        let pixel = if packs { 3 } else { 4 * job.steps };
        let mut pixels = MOST_PIXELS.min(job.ofm_w);
        if is_inside(job) {
            pixels = pixels.min((READ / (4 * job.steps) / GRAIN * GRAIN).clamp(GRAIN, 96));
        }
        while copied(job, pixels, pixel).is_none() && pixels > GRAIN {
            pixels = (pixels - 1) / GRAIN * GRAIN;
        }
        // SAFETY: the caller's promise.
        Self { pixels, packed: packs.then(|| unsafe { pack(job) }) }
    }

    fn strips_a_row(&self, job: &Job<'_>) -> i64 {
        (job.ofm_w + self.pixels - 1) / self.pixels
    }

    /// All strips of the job.
    pub(super) fn strips(&self, job: &Job<'_>) -> i64 {
        // Where all pixels are one row, images are part of it.
        job.pixels / job.ofm_w * self.strips_a_row(job)
    }

    /// The weights, and the bytes of a block of them.
    pub(super) fn weights(&self, job: &Job<'_>) -> (*const u8, isize) {
        match &self.packed {
            Some(packed) => {
                (packed.as_ptr(), isize_of(job.window.kernel_h * packed_steps(job) * 64))
            }
            None => (job.weights, isize_of(job.block_bytes)),
        }
    }

    /// Strip number `at`; what it covers is copied where it has to be.
    ///
    /// # Safety
    /// As of [`super::run`]; the strip exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn strip(&self, job: &Job<'_>, at: i64, windows: &mut Windows) -> Strip {
        let w = &job.window;
        let strips_a_row = self.strips_a_row(job);
        let (row, first) = (at / strips_a_row, at % strips_a_row * self.pixels);
        let (n, oy) = (row / job.ofm_h, row % job.ofm_h);
        let count = self.pixels.min(job.ofm_w - first);
        let (y, x) = (w.row(oy, 0), w.column(first, 0));
        let last_y = y + (w.kernel_h - 1) * w.dilation_h;
        let columns = (count - 1) * w.stride_w + w.kernel_w;
        let inside = y >= 0 && last_y < job.ifm_h && x >= 0 && x + columns <= job.ifm_w;
        let (mut steps, runs) = (w.kernel_w * job.steps, w.kernel_h);
        let mut input = job.ifm.at(n, y, x).cast_const();
        let mut pixel = job.ifm.pixel;
        let mut run = isize_of(w.dilation_h).wrapping_mul(job.ifm.row);
        if self.packed.is_some() || !inside {
            let bytes = if self.packed.is_some() { 3 } else { 4 * job.steps };
            // SAFETY: the caller's promise.
            unsafe { self.copy(job, n, [y, x], columns, windows) };
            (input, pixel) = (windows.0.as_ptr(), isize_of(bytes));
            run = isize_of(columns * bytes);
        }
        if self.packed.is_some() {
            steps = packed_steps(job);
        }
        let (runs, steps) = (usize_of(runs.unsigned_abs()), usize_of(steps.unsigned_abs()));
        let (part, of) = if runs == 1 { (steps / 3, steps) } else { ((runs + 1) / 3, runs) };
        let parts = [part, part.min(of - part), of - part - part.min(of - part)];
        Strip {
            count: usize_of(count.unsigned_abs()),
            input,
            input_pixel: isize_of(w.stride_w).wrapping_mul(pixel),
            run,
            thirds: parts.map(|part| if runs == 1 { (1, part) } else { (part, steps) }),
            out: job.ofm.at(n, oy, first),
            out_pixel: job.ofm.pixel,
            aux: job.aux.map_or(std::ptr::null(), |aux| aux.at(n, oy, first).cast_const()),
            aux_pixel: job.aux.map_or(0, |aux| aux.pixel),
        }
    }

    /// Copies what windows cover, from `(y, x)` on in `columns` columns, with zero points for the padding.
    ///
    /// # Safety
    /// As of [`super::run`]; the windows are those of pixels that exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn copy(
        &self,
        job: &Job<'_>,
        n: i64,
        [y, x]: [i64; 2],
        columns: i64,
        windows: &mut Windows,
    ) {
        let w = &job.window;
        let bytes = if self.packed.is_some() { 3 } else { 4 * job.steps };
        let (left, right) = ((-x).clamp(0, columns), (job.ifm_w - x).clamp(0, columns));
        let of = |columns: i64| usize_of((columns * bytes).unsigned_abs());
        windows.0.resize(ROOM, 0);
        let mut rest = &mut windows.0[..];
        for ky in 0..w.kernel_h {
            let y = y + ky * w.dilation_h;
            let outside = !(0..job.ifm_h).contains(&y) || left >= right;
            let (left, right) = if outside { (columns, columns) } else { (left, right) };
            rest[..of(left)].fill(job.problem.input_zero_point);
            let from = job.ifm.at(n, y, x + left).cast_const();
            if !outside && self.packed.is_some() {
                // SAFETY: pixels of a row of the input; `ROOM` counts what is written behind them.
                unsafe { pack_pixels(from, right - left, rest[of(left)..].as_mut_ptr()) };
            } else if !outside {
                let to = &mut rest[of(left)..of(right)];
                // SAFETY: whole pixels of a row of the input.
                unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
            }
            // Behind whole stores.
            rest[of(right)..of(columns)].fill(job.problem.input_zero_point);
            rest = &mut rest[of(columns)..];
        }
    }
}

impl Strip {
    /// The same for a group, whose inputs and outputs begin there in a pixel.
    pub(super) fn of_group(self, first_input: isize, first_output: isize) -> Self {
        Self {
            input: self.input.wrapping_offset(first_input),
            out: self.out.wrapping_offset(first_output),
            aux: self.aux.wrapping_offset(first_output),
            ..self
        }
    }

    /// The same without the first `pixels`.
    pub(super) fn behind(self, pixels: usize) -> Self {
        let each = |step: isize| step.wrapping_mul(pixels.cast_signed());
        Self {
            count: self.count - pixels,
            input: self.input.wrapping_offset(each(self.input_pixel)),
            out: self.out.wrapping_offset(each(self.out_pixel)),
            aux: self.aux.wrapping_offset(each(self.aux_pixel)),
            ..self
        }
    }
}

/// Copies `count` pixels of four bytes as three of each.
///
/// # Safety
/// Vector instructions present, the pixels readable, and 64 bytes behind the last three writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn pack_pixels(from: *const u8, count: i64, to: *mut u8) {
    let order: [u8; 64] = std::array::from_fn(|at| low_byte(at / 3 * 4 + at % 3));
    // SAFETY: 64 bytes of an array.
    let order = unsafe { load_64(order.as_ptr()) };
    let (mut first, mut to) = (0, to);
    while first < count {
        let mask = mask_64(4 * (count - first));
        // SAFETY: pixels that exist.
        let pixels = unsafe { load_masked_64(mask, from.wrapping_offset(isize_of(4 * first))) };
        let packed = _mm512_permutexvar_epi8(order, pixels);
        // SAFETY: the caller's promise.
        unsafe { store_64(to, u64::MAX, packed) };
        (first, to) = (first + 16, to.wrapping_add(48));
    }
}

/// The weights of a job of three channels, for pixels of three bytes: `[block][row][step][16][4]`.
///
/// # Safety
/// As of [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn pack(job: &Job<'_>) -> Room<u8> {
    let kernel_w = usize_of(job.window.kernel_w.unsigned_abs());
    let kernel_h = usize_of(job.window.kernel_h.unsigned_abs());
    let steps = usize_of(packed_steps(job).unsigned_abs());
    // Byte `j` of a row of the kernel is of column `j / 3`: four are of two columns.
    let columns = |step: usize| (4 * step / 3, (4 * step / 3 + 1).min(kernel_w - 1));
    let order = |step: usize| -> [u8; 64] {
        std::array::from_fn(|at| {
            let byte = 4 * step + at % 4;
            low_byte((byte / 3 - 4 * step / 3) * 64 + at / 4 * 4 + byte % 3)
        })
    };
    let exists = |step: usize| {
        (0..64).filter(|at| 4 * step + at % 4 < 3 * kernel_w).fold(0, |mask, at| mask | 1u64 << at)
    };
    let orders: Room<_> =
        (0..steps).map(|step| (order(step), exists(step), columns(step))).collect();
    let rows = usize_of(job.blocks.unsigned_abs()) * kernel_h;
    let mut packed = Room::of(0, rows * steps * 64);
    for (row, to) in packed.chunks_exact_mut(steps * 64).enumerate() {
        let tap = |column: usize| job.weights.wrapping_add((row * kernel_w + column) * 64);
        for (to, (order, exists, (one, other))) in to.chunks_exact_mut(64).zip(&orders) {
            // SAFETY: 64 bytes of an array.
            let order = unsafe { load_64(order.as_ptr()) };
            // SAFETY: the weights of a tap, which is one step.
            let one = unsafe { load_64(tap(*one)) };
            // SAFETY: as above.
            let other = unsafe { load_64(tap(*other)) };
            let four = _mm512_maskz_permutex2var_epi8(*exists, one, order, other);
            // SAFETY: 64 bytes of a slice.
            unsafe { store_64(to.as_mut_ptr(), u64::MAX, four) };
        }
    }
    packed
}

/// An index of bytes, which is below 256.
fn low_byte(index: usize) -> u8 {
    u8::try_from(index % 256).unwrap_or(0)
}
