//! Wide kernels over three channels: copies in which pixels lie as three bytes, and weights for them.
//! Unsafe: rows are copied from the input.
//!
//! ```text
//! 7 columns x 3 channels = 21 bytes a kernel row = 5 steps of four, and a byte that is left
//! 7 rows x 5 steps, and the bytes left of rows 0 to 3 and 4 to 6: 37 steps, where pixels of four are 49
//! ```
//!
//! Bytes that are left are laid beside those of the rows below, as far from pixel to pixel as pixels are
//! from each other: a step of them is a distance from a pixel's first tap like any other.
//!
//! Rows stay where they were copied for the windows further down, which cover most of them as well: each
//! has a place by its number, so that the steps of a window depend on the place of its first row.

use super::super::Job;
use crate::kernel::room::Room;
use crate::kernel::vector::{load_64, load_masked_64, mask_64, store_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    _mm_storeu_si128, _mm256_storeu_si256, _mm512_castsi512_si256, _mm512_extracti32x4_epi32,
    _mm512_mask_loadu_epi8, _mm512_maskz_permutex2var_epi8, _mm512_maskz_permutexvar_epi8,
    _mm512_or_si512, _mm512_permutexvar_epi8, _mm512_setzero_si512,
};

/// Most rows of a kernel.
const MOST_ROWS: i64 = 16;

/// Strides at which bytes that are left are joined: four lie between pixels, and several pixels in a vector.
const JOINED_STRIDES: std::ops::RangeInclusive<i64> = 2..=8;

/// Bytes behind the last pixel of a row, for whole stores and loads.
const BEHIND: usize = 64;

/// A step's weights of a block. On two lines of the cache each would cost two loads.
#[derive(Clone)]
#[repr(align(64))]
struct Line([u8; 64]);

/// How a kernel over three channels is read.
pub(super) struct Threes {
    /// `[block][step][16][4]`.
    weights: Room<Line>,
    /// Of each step of a window from its first tap, by the place of its first row.
    steps: Room<isize>,
    shape: Shape,
    /// Bytes of the place of a row, and of bytes that are left.
    row: usize,
}

/// The steps of a kernel.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    /// Steps of a row.
    of_row: usize,
    /// Steps of bytes that are left.
    joined: usize,
}

/// Rows that were copied, and which.
#[derive(Default)]
pub(super) struct Rows {
    bytes: Room<u8>,
    /// Image, first column and number of columns, and the first row.
    held: Option<([i64; 3], i64)>,
}

impl Shape {
    fn new(job: &Job<'_>) -> Self {
        let w = &job.window;
        let (rows, bytes) = (usize_of(w.kernel_h.unsigned_abs()), 3 * w.kernel_w.unsigned_abs());
        let joins = bytes % 4 == 1 && JOINED_STRIDES.contains(&w.stride_w);
        Self {
            rows,
            of_row: usize_of(if joins { bytes / 4 } else { bytes.div_ceil(4) }),
            joined: if joins { rows.div_ceil(4) } else { 0 },
        }
    }

    fn steps(self) -> usize {
        self.rows * self.of_row + self.joined
    }
}

/// Whether copies of three bytes a pixel are fewer steps than pixels of four.
pub(super) fn takes(job: &Job<'_>) -> bool {
    let w = &job.window;
    let three = job.contiguous_rows && job.problem.group_inputs == 3;
    three
        && (2..=MOST_ROWS).contains(&w.kernel_h)
        && Shape::new(job).steps() < usize_of((w.kernel_h * w.kernel_w).unsigned_abs())
}

impl Threes {
    /// For windows that cover so many columns at most.
    ///
    /// # Safety
    /// As of [`super::run`]; [`takes`] the job.
    pub(super) unsafe fn new(job: &Job<'_>, columns: i64) -> Self {
        let shape = Shape::new(job);
        let row = (3 * usize_of(columns.unsigned_abs()) + BEHIND).next_multiple_of(64);
        let place = |ky: usize, first: usize| (first + ky) % shape.rows * row;
        let of_first = |first: usize| {
            let rows = (0..shape.rows)
                .flat_map(move |ky| (0..shape.of_row).map(move |step| place(ky, first) + 4 * step));
            rows.chain((0..shape.joined).map(move |joined| (shape.rows + joined) * row))
        };
        Self {
            // SAFETY: the caller's promise.
            weights: unsafe { weights(job, shape) },
            steps: (0..shape.rows).flat_map(of_first).map(usize::cast_signed).collect(),
            shape,
            row,
        }
    }

    /// The weights, and the bytes of a block of them.
    pub(super) fn weights(&self) -> (*const u8, isize) {
        (self.weights.as_ptr().cast(), (64 * self.shape.steps()).cast_signed())
    }

    /// Copies what `count` windows of image `n` cover, of which the first begins at `(y, x)`: the first tap
    /// of the first window, and the steps from there.
    ///
    /// # Safety
    /// As of [`super::run`]; the windows are those of pixels that exist, and cover as many columns as this was
    /// made for at most.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn copy(
        &self,
        job: &Job<'_>,
        [n, y, x]: [i64; 3],
        count: i64,
        rows: &mut Rows,
    ) -> (*const u8, &[isize]) {
        let w = &job.window;
        rows.bytes.resize((self.shape.rows + self.shape.joined + 1) * self.row, 0);
        let columns = (count - 1) * w.stride_w + w.kernel_w;
        // In a dilated kernel, rows between others are left out.
        let kept = w.dilation_h == 1;
        let first = usize_of(if kept { y.rem_euclid(w.kernel_h) } else { 0 }.unsigned_abs());
        let held = rows.held.filter(|(of, _)| kept && *of == [n, x, columns]);
        rows.held = Some(([n, x, columns], y));
        for ky in 0..w.kernel_h {
            let place = (first + usize_of(ky.unsigned_abs())) % self.shape.rows;
            if held.is_some_and(|(_, held)| (held..held + w.kernel_h).contains(&(y + ky))) {
                continue;
            }
            let to = &mut rows.bytes[place * self.row..][..self.row];
            // SAFETY: the caller's promise; a place has room for the columns, and `BEHIND` them.
            unsafe { copy_row(job, [n, y + ky * w.dilation_h, x], columns, to) };
        }
        if self.shape.joined > 0 {
            // SAFETY: the caller's promise; the rows are there.
            unsafe { self.join(job, first, count, &mut rows.bytes) };
        }
        let steps = self.shape.steps();
        (rows.bytes.as_ptr(), &self.steps[first * steps..][..steps])
    }

    /// Lays the bytes that are left of `count` windows, whose first row is at place `first`, beside those of
    /// the rows below.
    ///
    /// # Safety
    /// As of [`Self::copy`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn join(&self, job: &Job<'_>, first: usize, count: i64, bytes: &mut [u8]) {
        let pixel = usize_of((3 * job.window.stride_w).unsigned_abs());
        let left = usize_of((3 * job.window.kernel_w - 1).unsigned_abs());
        let all = pixel * usize_of(count.unsigned_abs());
        // Whole pixels of a vector, of which the first of each four bytes lie there.
        let some = 60 / pixel * pixel;
        let firsts = (0..64).step_by(pixel).fold(0, |mask, at| mask | 1u64 << at);
        for joined in 0..self.shape.joined {
            let rows = 4 * joined..(4 * joined + 4).min(self.shape.rows);
            let to = (self.shape.rows + joined) * self.row;
            for start in (0..all).step_by(some) {
                let mut four = _mm512_setzero_si512();
                for (byte, ky) in rows.clone().enumerate() {
                    let place = (first + ky) % self.shape.rows * self.row;
                    let from = &bytes[place + left + start - byte..][..64];
                    let from = from.as_ptr().cast();
                    // SAFETY: 64 bytes of a slice.
                    four = unsafe { _mm512_mask_loadu_epi8(four, firsts << byte, from) };
                }
                // SAFETY: 64 bytes of a slice.
                unsafe { store_64(bytes[to + start..][..64].as_mut_ptr(), u64::MAX, four) };
            }
        }
    }
}

/// Copies `columns` pixels from `(y, x)` of image `n` on, with zero points for the padding.
///
/// # Safety
/// As of [`Threes::copy`]; `to` has room for them and [`BEHIND`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn copy_row(job: &Job<'_>, [n, y, x]: [i64; 3], columns: i64, to: &mut [u8]) {
    let zero_point = job.problem.input_zero_point;
    let (left, right) = ((-x).clamp(0, columns), (job.ifm_w - x).clamp(0, columns));
    let of = |columns: i64| usize_of((3 * columns).unsigned_abs());
    if !(0..job.ifm_h).contains(&y) || left >= right {
        to[..of(columns)].fill(zero_point);
        return;
    }
    to[..of(left)].fill(zero_point);
    let from = job.ifm.at(n, y, x + left).cast_const();
    let pixels = &mut to[of(left)..of(right) + BEHIND];
    // SAFETY: pixels of a row of the input, and room for them.
    unsafe { copy_pixels(from, right - left, pixels.as_mut_ptr()) };
    to[of(right)..of(columns)].fill(zero_point);
}

/// Copies `count` pixels of four bytes as three of each.
///
/// # Safety
/// Vector instructions present, the pixels readable, and 48 bytes behind the last three writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn copy_pixels(from: *const u8, count: i64, to: *mut u8) {
    let order: [u8; 64] = std::array::from_fn(|at| low_byte(at / 3 * 4 + at % 3));
    // SAFETY: 64 bytes of an array.
    let order = unsafe { load_64(order.as_ptr()) };
    let (mut first, mut to) = (0, to);
    while first < count {
        let mask = mask_64(4 * (count - first));
        // SAFETY: pixels that exist.
        let pixels = unsafe { load_masked_64(mask, from.wrapping_offset(isize_of(4 * first))) };
        let packed = _mm512_permutexvar_epi8(order, pixels);
        let half = _mm512_castsi512_si256(packed);
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), half) };
        let third = _mm512_extracti32x4_epi32::<2>(packed);
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(to.wrapping_add(32).cast(), third) };
        (first, to) = (first + 16, to.wrapping_add(48));
    }
}

/// The weights of a job of three channels, for pixels of three bytes: `[block][step][16][4]`.
///
/// # Safety
/// As of [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn weights(job: &Job<'_>, shape: Shape) -> Room<Line> {
    let kernel_w = usize_of(job.window.kernel_w.unsigned_abs());
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
        (0..shape.of_row).map(|step| (order(step), exists(step), columns(step))).collect();
    // The last channel of a pixel, in all places.
    let last: [u8; 64] = std::array::from_fn(|at| low_byte(at / 4 * 4 + 2));
    // SAFETY: 64 bytes of an array.
    let last = unsafe { load_64(last.as_ptr()) };
    let blocks = usize_of(job.blocks.unsigned_abs());
    let mut packed = Room::of(Line([0; 64]), blocks * shape.steps());
    for (block, packed) in packed.chunks_exact_mut(shape.steps()).enumerate() {
        let row = |ky: usize| (block * shape.rows + ky) * kernel_w;
        let (of_rows, joined) = packed.split_at_mut(shape.rows * shape.of_row);
        for (ky, to) in of_rows.chunks_exact_mut(shape.of_row).enumerate() {
            let tap = |column: usize| job.weights.wrapping_add((row(ky) + column) * 64);
            for (to, (order, exists, (one, other))) in to.iter_mut().zip(&orders) {
                // SAFETY: 64 bytes of an array.
                let order = unsafe { load_64(order.as_ptr()) };
                // SAFETY: the weights of a tap, which is one step.
                let one = unsafe { load_64(tap(*one)) };
                // SAFETY: as above.
                let other = unsafe { load_64(tap(*other)) };
                let four = _mm512_maskz_permutex2var_epi8(*exists, one, order, other);
                // SAFETY: 64 bytes of an array.
                unsafe { store_64(to.0.as_mut_ptr(), u64::MAX, four) };
            }
        }
        for (joined, to) in joined.iter_mut().enumerate() {
            let mut four = _mm512_setzero_si512();
            for ky in 4 * joined..(4 * joined + 4).min(shape.rows) {
                let tap = job.weights.wrapping_add((row(ky) + kernel_w - 1) * 64);
                let place = 0x1111_1111_1111_1111 << (ky % 4);
                // SAFETY: the weights of a tap, as above.
                let tap = unsafe { load_64(tap) };
                let byte = _mm512_maskz_permutexvar_epi8(place, last, tap);
                four = _mm512_or_si512(four, byte);
            }
            // SAFETY: 64 bytes of an array.
            unsafe { store_64(to.0.as_mut_ptr(), u64::MAX, four) };
        }
    }
    packed
}

/// An index of bytes, which is below 256.
fn low_byte(index: usize) -> u8 {
    u8::try_from(index % 256).unwrap_or(0)
}
