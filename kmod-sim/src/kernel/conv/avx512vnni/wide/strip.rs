//! Strips: pixels of a row of the output, at the same distance from each other in input and output.
//! Unsafe: windows that reach into the padding are copied from the input.
//!
//! Where only the first or last pixels of a row reach into the padding, only theirs are copied: a strip is
//! up to three segments. A kernel passes them as one, and those of several short strips.
//!
//! Of wide kernels over three channels, all windows are copied: [`Threes`].

use super::super::Job;
use super::threes::{self, Threes};
use crate::kernel::room::Room;
use crate::kernel::vector::{load_masked_64, mask_64, store_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{_mm256_maskz_loadu_epi8, _mm256_storeu_si256};

/// Fewest pixels of a row where rows are strips of their own: tiles of pixels of all rows are faster.
const FEWEST_PIXELS: i64 = 12;

/// Most pixels of a strip.
const MOST_PIXELS: i64 = 112;

/// Bytes that the pixels of a strip read, about: with a panel's weights they stay in the level-1 cache.
const READ: i64 = 12 << 10;

/// Most bytes that a strip and a panel's weights should take of the level-1 cache.
const CACHED: i64 = 40 << 10;

/// Most bytes of a copy.
const MOST_COPY: i64 = 16 << 10;

/// Room behind a copy, for what is read behind its last pixel, and for whole stores.
const BEHIND: usize = 128;

/// Most strips that a kernel passes as one, and their pixels, about.
const MOST_TOGETHER: i64 = 8;
const PIXELS_TOGETHER: i64 = 128;

/// Copies of what the windows of a strip cover, with zero points for the padding; nothing until there is one.
#[derive(Default)]
pub(super) struct Windows {
    /// Copies for first and last pixels, and the bytes that are in use.
    ends: Room<u8>,
    used: usize,
    threes: threes::Rows,
}

/// How the strips of a job are read.
pub(super) struct Input {
    /// Most pixels of a strip.
    pub(super) pixels: i64,
    /// All segments but the last are multiples of so many pixels.
    grain: i64,
    /// For pixels that lie as three bytes in copies.
    threes: Option<Threes>,
    /// Of each step from the first tap of a pixel: in the input, and in a copy.
    steps: Room<isize>,
    copied_steps: Room<isize>,
    /// Bytes of a row of a copy.
    row: i64,
    /// Strips that a kernel passes as one, at most.
    pub(super) together: i64,
}

/// Segments, and what all of them have in common.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a> {
    pub(super) segments: &'a [Segment],
    pub(super) steps: Steps<'a>,
    /// From each pixel's results, and its part of the auxiliary tensor, to the next.
    pub(super) out_pixel: isize,
    pub(super) aux_pixel: isize,
}

/// Of each step from the first tap of a pixel, in thirds: in the input, and in a copy.
pub(super) type Steps<'a> = [[&'a [isize]; 3]; 2];

/// Pixels of a row whose inputs lie alike.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) count: usize,
    /// First tap of the first pixel, and from each to the next.
    pub(super) input: *const u8,
    pub(super) input_pixel: isize,
    /// Which of [`Steps`] lead on from there.
    pub(super) steps: usize,
    /// The first pixel's results, and its part of the auxiliary tensor.
    pub(super) out: *mut u8,
    pub(super) aux: *const u8,
}

/// Whether a job can be cut in strips whose segments are multiples of `grain` pixels.
pub(super) fn takes(job: &Job<'_>, grain: i64) -> bool {
    let row = job.ofm_w.min(grain);
    let copies = job.problem.groups == 1 && copied(job, row, 4 * job.steps).is_some();
    job.padding.is_empty() || copies && job.ofm_w >= FEWEST_PIXELS
}

/// Whether no window reaches into the padding.
fn is_inside(job: &Job<'_>) -> bool {
    let w = &job.window;
    let y = w.row(job.ofm_h - 1, w.kernel_h - 1);
    let x = w.column(job.ofm_w - 1, w.kernel_w - 1);
    w.pad_top == 0 && w.pad_left == 0 && y < job.ifm_h && x < job.ifm_w
}

/// Columns that the windows of `pixels` pixels cover.
fn columns(job: &Job<'_>, pixels: i64) -> Option<i64> {
    let w = &job.window;
    let span = (w.kernel_w - 1).checked_mul(w.dilation_w)?.checked_add(1)?;
    (pixels - 1).checked_mul(w.stride_w)?.checked_add(span)
}

/// Bytes of a row in a copy of the windows of `pixels` pixels, of `pixel` bytes each, if they are few enough.
fn copied(job: &Job<'_>, pixels: i64, pixel: i64) -> Option<i64> {
    let row = columns(job, pixels)?.checked_mul(pixel)?;
    (row.checked_mul(job.window.kernel_h)? <= MOST_COPY).then_some(row)
}

/// Offsets of steps where rows and pixels are so far from each other.
fn steps(job: &Job<'_>, row: isize, pixel: isize) -> Room<isize> {
    let w = &job.window;
    let taps = (0..w.kernel_h).flat_map(|ky| (0..w.kernel_w).map(move |kx| (ky, kx)));
    taps.flat_map(|(ky, kx)| {
        let down = isize_of(ky).wrapping_mul(row);
        let tap = down.wrapping_add(isize_of(kx * w.dilation_w).wrapping_mul(pixel));
        (0..job.steps).map(move |step| tap.wrapping_add(isize_of(4 * step)))
    })
    .collect()
}

impl Input {
    /// # Safety
    /// As of [`super::run`].
    pub(super) unsafe fn new(job: &Job<'_>, grain: i64, panel_bytes: i64) -> Self {
        let w = &job.window;
        let as_threes = threes::takes(job);
        let pixel = if as_threes { 3 } else { 4 * job.steps };
        let mut pixels = MOST_PIXELS.min(job.ofm_w);
        let inside = is_inside(job);
        if inside {
            pixels = pixels.min((READ / (4 * job.steps) / grain * grain).clamp(grain, 96));
        }
        while copied(job, pixels, pixel).is_none() && pixels > grain {
            pixels = (pixels - 1) / grain * grain;
        }
        let read = |pixels| copied(job, pixels, 4 * job.steps).map(|row| row * w.kernel_h);
        while pixels > grain && read(pixels).is_some_and(|read| panel_bytes + read > CACHED) {
            pixels = (pixels - 1) / grain * grain;
        }
        // As many in each strip of a row, about.
        let strips = (job.ofm_w + pixels - 1) / pixels;
        let even = ((job.ofm_w + strips - 1) / strips + grain - 1) / grain * grain;
        let pixels = pixels.min(even);
        let row = if inside { 0 } else { copied(job, pixels, pixel).unwrap_or(0) };
        let input_row = isize_of(w.dilation_h).wrapping_mul(job.ifm.row);
        let threes = as_threes.then(|| {
            let columns = columns(job, pixels).expect("it was computed for more");
            // SAFETY: the caller's promise; it takes the job.
            unsafe { Threes::new(job, columns) }
        });
        let read = 4 * job.steps * job.problem.taps() * pixels;
        let together = (READ / read.max(1)).min(PIXELS_TOGETHER / pixels).clamp(1, MOST_TOGETHER);
        Self {
            // Rows of threes are kept for one strip's windows.
            together: if as_threes { 1 } else { together },
            pixels,
            grain,
            threes,
            steps: steps(job, input_row, job.ifm.pixel),
            copied_steps: steps(job, isize_of(row), isize_of(4 * job.steps)),
            row,
        }
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
        let own = (job.weights, isize_of(job.block_bytes));
        self.threes.as_ref().map_or(own, Threes::weights)
    }

    /// `count` strips from number `at` on, as `segments`; what they cover is copied where it has to be.
    ///
    /// # Safety
    /// As of [`super::run`]; the strips exist, and are [`Self::together`] at most.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn segments<'s>(
        &'s self,
        job: &Job<'_>,
        (at, count): (i64, i64),
        windows: &mut Windows,
        segments: &mut Room<Segment>,
    ) -> Steps<'s> {
        let strips_a_row = self.strips_a_row(job);
        segments.clear();
        windows.used = 0;
        let mut steps = [thirds(&self.steps), thirds(&self.copied_steps)];
        for at in at..at + count {
            let (row, first) = (at / strips_a_row, at % strips_a_row * self.pixels);
            // SAFETY: the caller's promise.
            let own = unsafe { self.strip(job, (row, first), windows, segments) };
            steps[1] = own.map_or(steps[1], thirds);
        }
        steps
    }

    /// The strip of row `row` of all images from pixel `first` on; where all of it lies in a copy of its own,
    /// the steps there.
    ///
    /// # Safety
    /// As of [`Self::segments`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn strip<'s>(
        &'s self,
        job: &Job<'_>,
        (row, first): (i64, i64),
        windows: &mut Windows,
        segments: &mut Room<Segment>,
    ) -> Option<&'s [isize]> {
        let w = &job.window;
        let (n, oy) = (row / job.ofm_h, row % job.ofm_h);
        let count = self.pixels.min(job.ofm_w - first);
        let (y, x) = (w.row(oy, 0), w.column(first, 0));
        let last_y = y + (w.kernel_h - 1) * w.dilation_h;
        let mut push = |start: i64, count: i64, input: *const u8, pixel: isize, steps: usize| {
            segments.push(Segment {
                count: usize_of(count.unsigned_abs()),
                input,
                input_pixel: isize_of(w.stride_w).wrapping_mul(pixel),
                steps,
                out: job.ofm.at(n, oy, first + start),
                aux: job
                    .aux
                    .map_or(std::ptr::null(), |aux| aux.at(n, oy, first + start).cast_const()),
            });
        };
        if let Some(threes) = &self.threes {
            // SAFETY: the caller's promise; a strip has `self.pixels` at most.
            let (input, steps) = unsafe { threes.copy(job, [n, y, x], count, &mut windows.threes) };
            push(0, count, input, 3, 1);
            return Some(steps);
        }
        let (left, middle) =
            if y < 0 || last_y >= job.ifm_h { (count, 0) } else { self.parts(job, x, count) };
        for (start, count) in [(0, left), (left + middle, count - left - middle)] {
            if count > 0 {
                let columns = columns(job, count).expect("it was computed for more");
                let to = windows.place(self, job);
                // SAFETY: the caller's promise.
                unsafe { self.copy(job, n, [y, x + start * w.stride_w], columns, to) };
                push(start, count, to.as_ptr(), isize_of(4 * job.steps), 1);
            }
        }
        if middle > 0 {
            let input = job.ifm.at(n, y, x + left * w.stride_w).cast_const();
            push(left, middle, input, job.ifm.pixel, 0);
        }
        None
    }

    /// How many of `count` pixels, the first of which has its first tap in column `x`, are copied at the
    /// beginning, and how many behind them are not.
    fn parts(&self, job: &Job<'_>, x: i64, count: i64) -> (i64, i64) {
        let w = &job.window;
        let left = if x < 0 { self.grain } else { 0 };
        // Pixels before the first whose window ends in the padding.
        let room = job.ifm_w - x - columns(job, 1).expect("it was computed for more");
        let before = if room < 0 { 0 } else { (room / w.stride_w + 1).min(count) };
        if left == 0 && before == count {
            return (0, count);
        }
        let middle = if before == count {
            count - left
        } else {
            (before - left).max(0) / self.grain * self.grain
        };
        let starts_inside = x + left * w.stride_w >= 0;
        if middle < self.grain || !starts_inside { (count, 0) } else { (left, middle) }
    }

    /// Copies what windows cover, from `(y, x)` on in `columns` columns, with zero points for the padding.
    ///
    /// # Safety
    /// As of [`super::run`]; the windows are those of pixels that exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn copy(&self, job: &Job<'_>, n: i64, [y, x]: [i64; 2], columns: i64, to: &mut [u8]) {
        let w = &job.window;
        let bytes = 4 * job.steps;
        let (left, right) = ((-x).clamp(0, columns), (job.ifm_w - x).clamp(0, columns));
        let of = |columns: i64| usize_of((columns * bytes).unsigned_abs());
        for ky in 0..w.kernel_h {
            let to = &mut to[usize_of((ky * self.row).unsigned_abs())..];
            let y = y + ky * w.dilation_h;
            let outside = !(0..job.ifm_h).contains(&y) || left >= right;
            let (left, right) = if outside { (columns, columns) } else { (left, right) };
            to[..of(left)].fill(job.problem.input_zero_point);
            let from = job.ifm.at(n, y, x + left).cast_const();
            if outside {
                continue;
            }
            let pixels = &mut to[of(left)..];
            if job.ifm.pixel == isize_of(bytes) {
                let pixels = &mut pixels[..of(right - left)];
                // SAFETY: whole pixels of a row of the input.
                unsafe { from.copy_to_nonoverlapping(pixels.as_mut_ptr(), pixels.len()) };
            } else {
                let to = pixels.as_mut_ptr();
                // SAFETY: as above, for pixels with gaps between them.
                unsafe { join_pixels(from, job.ifm.pixel, right - left, bytes, to) };
            }
            // Behind whole stores.
            to[of(right)..of(columns)].fill(job.problem.input_zero_point);
        }
    }
}

/// Steps in thirds.
fn thirds(steps: &[isize]) -> [&[isize]; 3] {
    let (first, rest) = steps.split_at(steps.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    [first, second, third]
}

impl Windows {
    /// A place for another copy; all of them have room from the first on, so that none moves.
    fn place(&mut self, input: &Input, job: &Job<'_>) -> &mut [u8] {
        let bytes = usize_of((input.row * job.window.kernel_h).unsigned_abs());
        let bytes = (bytes + BEHIND).next_multiple_of(64);
        self.ends.resize(2 * usize_of(input.together.unsigned_abs()) * bytes, 0);
        self.used += bytes;
        &mut self.ends[self.used - bytes..self.used]
    }
}

impl Segment {
    /// The same for a group, whose inputs and outputs begin there in a pixel.
    pub(super) fn of_group(self, first_input: isize, first_output: isize) -> Self {
        Self {
            input: self.input.wrapping_offset(first_input),
            out: self.out.wrapping_offset(first_output),
            aux: self.aux.wrapping_offset(first_output),
            ..self
        }
    }

    /// What a kernel of so many pixels at a time leaves of it.
    pub(super) fn rest(self, pixels: usize, (out_pixel, aux_pixel): (isize, isize)) -> Self {
        let passed = self.count / pixels * pixels;
        let each = |step: isize| step.wrapping_mul(passed.cast_signed());
        Self {
            count: self.count - passed,
            input: self.input.wrapping_offset(each(self.input_pixel)),
            out: self.out.wrapping_offset(each(out_pixel)),
            aux: self.aux.wrapping_offset(each(aux_pixel)),
            ..self
        }
    }
}

/// Copies `count` pixels of `bytes` bytes, which lie `step` apart, one behind the other.
///
/// # Safety
/// Vector instructions present, the bytes of the pixels readable, and 64 bytes behind the last writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn join_pixels(from: *const u8, step: isize, count: i64, bytes: i64, to: *mut u8) {
    let (mut pixel, mut to) = (from, to);
    if bytes <= 32 {
        let mask = u32::MAX >> (32 - bytes);
        for _ in 0..count {
            // SAFETY: the caller's promise; masked-out lanes are not accessed.
            let some = unsafe { _mm256_maskz_loadu_epi8(mask, pixel.cast()) };
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_si256(to.cast(), some) };
            (pixel, to) = (pixel.wrapping_offset(step), to.wrapping_offset(isize_of(bytes)));
        }
        return;
    }
    for _ in 0..count {
        let mut done = 0;
        while done < bytes {
            let at = isize_of(done);
            // SAFETY: the caller's promise; masked-out lanes are not accessed.
            let some = unsafe { load_masked_64(mask_64(bytes - done), pixel.wrapping_offset(at)) };
            // SAFETY: the caller's promise.
            unsafe { store_64(to.wrapping_offset(at), u64::MAX, some) };
            done += 64;
        }
        (pixel, to) = (pixel.wrapping_offset(step), to.wrapping_offset(isize_of(bytes)));
    }
}
