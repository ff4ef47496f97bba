//! Strips: pixels of a row of the output, at the same distance from each other in input and output.
//! Unsafe: windows that reach into the padding are copied from the input.
//!
//! Where only the first or last pixels of a row reach into the padding, only theirs are copied: a strip is
//! up to three segments, which a kernel passes as one.
//!
//! Of wide kernels over three channels, all windows are copied: [`Threes`].

use super::super::Job;
use super::threes::{self, Threes};
use crate::kernel::room::Room;
use crate::kernel::vector::{load_masked_64, mask_64, store_64};
use crate::memory::{isize_of, usize_of};

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

/// Where the copy for a strip's last pixels begins, behind that for its first.
const SECOND: usize = (16 << 10) + BEHIND;

/// Copies of what the windows of a strip cover, with zero points for the padding; nothing until there is one.
#[derive(Default)]
pub(super) struct Windows {
    ends: Room<u8>,
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
}

/// Pixels of a row: where the results of the first go, and the way from each to the next.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a> {
    pub(super) segments: [Segment<'a>; 3],
    pub(super) out: *mut u8,
    pub(super) out_pixel: isize,
    pub(super) aux: *const u8,
    pub(super) aux_pixel: isize,
}

/// Pixels of a strip whose inputs lie alike.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) count: usize,
    /// First tap of the first pixel.
    pub(super) input: *const u8,
    pub(super) input_pixel: isize,
    /// Of each step from the first tap, in thirds.
    pub(super) steps: [&'a [isize]; 3],
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
        Self {
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

    /// Strip number `at`; what it covers is copied where it has to be.
    ///
    /// # Safety
    /// As of [`super::run`]; the strip exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn strip<'s>(
        &'s self,
        job: &Job<'_>,
        at: i64,
        windows: &mut Windows,
    ) -> Strip<'s> {
        let w = &job.window;
        let strips_a_row = self.strips_a_row(job);
        let (row, first) = (at / strips_a_row, at % strips_a_row * self.pixels);
        let (n, oy) = (row / job.ofm_h, row % job.ofm_h);
        let count = self.pixels.min(job.ofm_w - first);
        let (y, x) = (w.row(oy, 0), w.column(first, 0));
        let last_y = y + (w.kernel_h - 1) * w.dilation_h;
        let step = |pixel: isize| isize_of(w.stride_w).wrapping_mul(pixel);
        let strip = |segments| Strip {
            segments,
            out: job.ofm.at(n, oy, first),
            out_pixel: job.ofm.pixel,
            aux: job.aux.map_or(std::ptr::null(), |aux| aux.at(n, oy, first).cast_const()),
            aux_pixel: job.aux.map_or(0, |aux| aux.pixel),
        };
        if let Some(threes) = &self.threes {
            // SAFETY: the caller's promise; a strip has `self.pixels` at most.
            let (input, steps) = unsafe { threes.copy(job, [n, y, x], count, &mut windows.threes) };
            let none = segment(0, input, 0, &[]);
            return strip([segment(count, input, step(3), steps), none, none]);
        }
        let (left, middle) =
            if y < 0 || last_y >= job.ifm_h { (count, 0) } else { self.segments(job, x, count) };
        let right = count - left - middle;
        if left + right > 0 {
            windows.ends.resize(2 * SECOND, 0);
        }
        let mut copy = |first: i64, count: i64, place: usize| {
            if count > 0 {
                let columns = columns(job, count).expect("it was computed for more");
                let to = &mut windows.ends[place..][..SECOND];
                // SAFETY: the caller's promise.
                unsafe { self.copy(job, n, [y, x + first * w.stride_w], columns, to) };
            }
            let input = windows.ends.as_ptr().wrapping_add(place);
            segment(count, input, step(isize_of(4 * job.steps)), &self.copied_steps)
        };
        strip([
            copy(0, left, 0),
            segment(
                middle,
                job.ifm.at(n, y, x + left * w.stride_w).cast_const(),
                step(job.ifm.pixel),
                &self.steps,
            ),
            copy(left + middle, right, SECOND),
        ])
    }

    /// How many of `count` pixels, the first of which has its first tap in column `x`, are copied at the
    /// beginning, and how many behind them are not.
    fn segments(&self, job: &Job<'_>, x: i64, count: i64) -> (i64, i64) {
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

/// A segment, its steps in thirds.
fn segment(count: i64, input: *const u8, input_pixel: isize, steps: &[isize]) -> Segment<'_> {
    let (first, rest) = steps.split_at(steps.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let steps = [first, second, third];
    Segment { count: usize_of(count.max(0).unsigned_abs()), input, input_pixel, steps }
}

impl Strip<'_> {
    /// Pixels that a kernel of so many at a time passes: all segments but the last are multiples.
    pub(super) fn whole(&self, pixels: usize) -> usize {
        self.segments.iter().map(|segment| segment.count / pixels * pixels).sum()
    }

    /// The same for a group, whose inputs and outputs begin there in a pixel.
    pub(super) fn of_group(mut self, first_input: isize, first_output: isize) -> Self {
        for segment in &mut self.segments {
            segment.input = segment.input.wrapping_offset(first_input);
        }
        Self {
            out: self.out.wrapping_offset(first_output),
            aux: self.aux.wrapping_offset(first_output),
            ..self
        }
    }

    /// The same without the first `pixels`.
    pub(super) fn behind(mut self, pixels: usize) -> Self {
        let mut left = pixels;
        for segment in &mut self.segments {
            let count = left.min(segment.count);
            segment.count -= count;
            let step = segment.input_pixel.wrapping_mul(count.cast_signed());
            segment.input = segment.input.wrapping_offset(step);
            left -= count;
        }
        let each = |step: isize| step.wrapping_mul(pixels.cast_signed());
        Self {
            out: self.out.wrapping_offset(each(self.out_pixel)),
            aux: self.aux.wrapping_offset(each(self.aux_pixel)),
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
