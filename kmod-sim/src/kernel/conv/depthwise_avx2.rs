//! Depthwise CONV on AVX2, 16 channels at a time; AVX-VNNI has no better one.
//!
//! ```text
//!   rows 2q and 2q + 1 of one input column, 16 channels each, widened to 16 bits
//!     -> unpack -> 2 vectors of 8 channels x 2 rows
//!     -> vpmaddwd into every output pixel whose window has the column
//! ```
//!
//! As in [`super::depthwise_avx512vnni`], the reduction runs down kernel columns, and a column that is
//! unpacked once serves all the outputs it lies under. |x w| <= 255 * 128, so two products and their sum
//! are exact. Unpacking leaves channels 0-3 and 8-11 in one vector, the others in the other; weights and
//! biases follow it.
//!
//! Takes kernels of up to [`MOST_VECTORS`] columns times row pairs, with weight zero points of zero; the
//! scalar kernel takes the rest. 3x3 and 5x5 windows at strides 1 and 2 stream, others go pixel by pixel.

use super::avx2::zero_points;
use crate::kernel::Stop;
use crate::kernel::conv::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector_avx2::stage::{Kind, PLAIN, SUM, Stage, TABLES};
use crate::kernel::vector_avx2::{Records, load_some, store_some, upper};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m256, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_castsi256_si128,
    _mm256_cvtepu8_epi16, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_permute2x128_si256,
    _mm256_set1_epi16, _mm256_setzero_si256, _mm256_unpackhi_epi16, _mm256_unpacklo_epi16,
};

/// Output pixels between sums and the stage behind them.
const SEGMENT: usize = 32;

/// Multiply-accumulates of a segment and a tap.
const SEGMENT_MACS: i64 = 32 * CHANNELS;

/// Most kernel columns times pairs of kernel rows.
const MOST_VECTORS: usize = 64;

/// Channels of a step.
const CHANNELS: i64 = 16;

/// Steps that a chunk goes through row by row, so that the lines of a pixel are read while they are near.
const STEPS: i64 = 4;

fn pairs(p: &Problem) -> i64 {
    (p.window.kernel_h + 1) / 2
}

/// Whether this kernel takes `problem`.
pub(crate) fn takes(p: &Problem) -> bool {
    let vectors = p.window.kernel_w * pairs(p);
    p.depthwise && p.stage.float.is_none() && usize_of(vectors.unsigned_abs()) <= MOST_VECTORS
}

/// Runs `problem`; `None` when its weights have zero points.
///
/// # Safety
/// `takes(problem)`, on a processor with AVX2 and FMA.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Option<Result<(), Stop>> {
    // SAFETY: the caller's promise.
    match unsafe { zero_points::are_zero(p, split) } {
        Ok(true) => {}
        Ok(false) => return None,
        Err(stop) => return Some(Err(stop)),
    }
    let rows = p.images * p.ofm_h;
    let wide = STEPS * CHANNELS;
    let groups = (p.outputs + wide - 1) / wide;
    // Few rows a chunk would prepare the weights too often: count a row as more than it multiplies.
    let rows_a_chunk = split.units_a_chunk(rows * groups, p.ofm_w * wide * p.taps()).min(rows);
    let bands = (rows + rows_a_chunk - 1) / rows_a_chunk;
    Some(split.chunks(bands * groups, &|chunk, budget| {
        let (first, group) = (chunk / groups * rows_a_chunk, chunk % groups);
        // SAFETY: the caller's promise.
        let stage = unsafe { Stage::new(&p.stage) };
        let channels = (group * wide..p.outputs.min((group + 1) * wide)).step_by(16);
        // SAFETY: the caller's promise.
        let steps: Vec<_> = channels.map(|channel| unsafe { Columns::new(p, channel) }).collect();
        for row in first..(first + rows_a_chunk).min(rows) {
            for columns in &steps {
                let at = [row / p.ofm_h, row % p.ofm_h];
                // SAFETY: the caller's promise; the row exists.
                unsafe { columns.row(p, &stage, at, budget)? };
            }
        }
        Ok(())
    }))
}

/// An input row: the address of its first pixel, and from one pixel to the next.
type Row = (*const u8, isize);

/// The sums of 16 channels, in the order of [`turned`].
type Sums = [__m256i; 2];

type Segment = unsafe fn(&Columns, &Problem, &[Row], i64, &mut [Sums]);

/// What 16 channels need, whatever the pixel.
struct Columns {
    first_channel: i64,
    /// Lanes of a pixel that lie in it, of input, output and auxiliary tensor.
    lens: [usize; 3],
    /// By kernel column and pair of kernel rows.
    weights: Vec<[__m256i; 2]>,
    bias: Sums,
    multipliers: [__m256; 2],
    pairs: usize,
    padding: [u8; 16],
}

/// Channels 0-7 and 8-15 to channels 0-3, 8-11 and 4-7, 12-15; and back.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn turned([a, b]: Sums) -> Sums {
    [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)]
}

impl Columns {
    /// # Safety
    /// As of [`run`]; `first_channel` exists and is a multiple of 16.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn new(p: &Problem, first_channel: i64) -> Self {
        let w = &p.window;
        let (kernel_h, kernel_w) =
            (usize_of(w.kernel_h.unsigned_abs()), usize_of(w.kernel_w.unsigned_abs()));
        let pairs = kernel_h.div_ceil(2);
        let block_bytes = (kernel_h * kernel_w).div_ceil(4) * 64;
        let block = usize_of(first_channel.unsigned_abs()) / 16;
        let packed = p.weights.memory.pointer(p.weights.start, 1).wrapping_add(block * block_bytes);
        let mut words = vec![[[0_i16; 16]; 2]; kernel_w * pairs];
        for tap in 0..kernel_h * kernel_w {
            let (ky, kx) = (tap / kernel_w, tap % kernel_w);
            let four = packed.wrapping_add(tap / 4 * 64 + tap % 4);
            let vectors = &mut words[kx * pairs + ky / 2];
            for channel in 0..16 {
                // SAFETY: a weight of a block that exists.
                let weight = unsafe { four.wrapping_add(4 * channel).cast::<i8>().read() };
                // Fours of channels go to the two vectors in turns.
                let (vector, lane) = (channel / 4 % 2, channel / 8 * 4 + channel % 4);
                vectors[vector][2 * lane + ky % 2] = weight.into();
            }
        }
        let load = |words: &[i16; 16]| {
            // SAFETY: 16 words.
            unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
        };
        let weights = words.iter().map(|[a, b]| [load(a), load(b)]).collect();
        let records = p.records.memory.pointer(p.records.start, 1).wrapping_add(block * 256);
        // SAFETY: the records of a block that has a channel are sixteen.
        let records = unsafe { Records::load_16(records) };
        let lens = [Some(&p.ifm), Some(&p.ofm), p.aux.as_ref()].map(|map| {
            map.map_or(0, |map| usize_of((map.lanes - first_channel).clamp(0, 16).unsigned_abs()))
        });
        Self {
            first_channel,
            lens,
            weights,
            bias: turned(records.map(|eight| eight.bias)),
            multipliers: records.map(|eight| eight.multiplier),
            pairs,
            padding: [p.input_zero_point; 16],
        }
    }

    /// One row of output pixels.
    ///
    /// # Safety
    /// As of [`run`]; the row exists.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn row(
        &self,
        p: &Problem,
        stage: &Stage,
        [n, oy]: [i64; 2],
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let w = &p.window;
        // Kernel rows in the padding, and one behind the last, read zero points, at no stride.
        let mut rows = [(self.padding.as_ptr(), 0); 2 * MOST_VECTORS];
        for (ky, row) in (0..w.kernel_h).zip(&mut rows) {
            let y = w.row(oy, ky);
            if (0..p.ifm_h).contains(&y) {
                let first = p.ifm.pointer(p.ifm.at(n, y, 0) + self.first_channel);
                *row = (first.cast_const(), isize_of(p.ifm.pixel));
            }
        }
        let rows = &rows[..2 * self.pairs];
        let segment: Segment = match (w.kernel_w, w.stride_w, self.pairs) {
            _ if w.dilation_w != 1 => Self::pixel_by_pixel,
            (3, 1, 2) => Self::stream::<3, 1, 3, 2>,
            (3, 2, 2) => Self::stream::<3, 2, 2, 2>,
            (5, 1, 3) => Self::stream::<5, 1, 5, 3>,
            (5, 2, 3) => Self::stream::<5, 2, 3, 3>,
            _ => Self::pixel_by_pixel,
        };
        let finish = match stage.kind() {
            Kind::Plain => Self::finish::<PLAIN>,
            Kind::Sum => Self::finish::<SUM>,
            Kind::Tables => Self::finish::<TABLES>,
        };
        let mut sums = [[_mm256_setzero_si256(); 2]; SEGMENT];
        for first in (0..p.ofm_w).step_by(SEGMENT) {
            let count = usize_of((p.ofm_w - first).unsigned_abs()).min(SEGMENT);
            budget.spend(SEGMENT_MACS * p.taps())?;
            // SAFETY: the caller's promise; the pixels lie in the row.
            unsafe { segment(self, p, rows, first, &mut sums[..count]) };
            // SAFETY: as above.
            unsafe { finish(self, p, stage, [n, oy, first], &sums[..count]) };
        }
        Ok(())
    }

    /// Passes sums of the output pixels from `[n, oy, first]` on through the output stage, by twos.
    ///
    /// # Safety
    /// As of [`run`]; the pixels exist.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn finish<const KIND: u8>(
        &self,
        p: &Problem,
        stage: &Stage,
        at: [i64; 3],
        sums: &[Sums],
    ) {
        let [n, oy, first] = at;
        let [low, high] = self.multipliers;
        let [_, out_len, aux_len] = self.lens;
        for (ox, two) in (first..).step_by(2).zip(sums.chunks(2)) {
            let last = ox + i64::from(two.len() == 2);
            let ([a, b], [c, d]) = (turned(two[0]), turned(two[two.len() - 1]));
            let aux = [ox, last].map(|ox| {
                p.aux.map_or(std::ptr::null(), |aux| {
                    aux.pointer(aux.at(n, oy, ox) + self.first_channel).cast_const()
                })
            });
            let multipliers: [__m256; 4] = [low, high, low, high];
            // SAFETY: so many lanes of two pixels of the auxiliary tensor.
            let bytes =
                unsafe { stage.codes::<KIND>([a, b, c, d], multipliers, aux, [aux_len; 2]) };
            let to = p.ofm.pointer(p.ofm.at(n, oy, ox) + self.first_channel);
            // SAFETY: so many lanes of a pixel of the output.
            unsafe { store_some(to, out_len, bytes) };
            if last != ox {
                let to = p.ofm.pointer(p.ofm.at(n, oy, last) + self.first_channel);
                let bytes = upper(bytes);
                // SAFETY: as above.
                unsafe { store_some(to, out_len, bytes) };
            }
        }
    }

    /// Sums of the output pixels from `ox` on, dilation 1.
    ///
    /// Input columns pass by once. `LIVE` outputs have begun and not ended at a time,
    /// `KERNEL_W / STRIDE_W` rounded up; a column goes into each, under the kernel column it is for it.
    ///
    /// # Safety
    /// As of [`run`]; `rows` has two addresses a pair, of input rows or of zero points.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn stream<
        const KERNEL_W: usize,
        const STRIDE_W: usize,
        const LIVE: usize,
        const PAIRS: usize,
    >(
        &self,
        p: &Problem,
        rows: &[Row],
        ox: i64,
        sums: &mut [Sums],
    ) {
        let weights = &self.weights[..KERNEL_W * PAIRS];
        let mut x = p.window.column(ox, 0);
        let mut live = [self.bias; LIVE]; // the oldest first
        for step in 0..sums.len() + LIVE - 1 {
            for column in 0..STRIDE_W {
                for pair in 0..PAIRS {
                    // SAFETY: the caller's promise.
                    let words = unsafe { self.column(p, [rows[2 * pair], rows[2 * pair + 1]], x) };
                    for age in 0..LIVE {
                        let kx = age * STRIDE_W + column;
                        if kx < KERNEL_W {
                            accumulate(
                                &mut live[LIVE - 1 - age],
                                words,
                                &weights[kx * PAIRS + pair],
                            );
                        }
                    }
                }
                x += 1;
            }
            if let Some(sum) = step.checked_sub(LIVE - 1).and_then(|done| sums.get_mut(done)) {
                *sum = live[0];
            }
            for age in 1..LIVE {
                live[age - 1] = live[age];
            }
            live[LIVE - 1] = self.bias;
        }
    }

    /// The same for any window, each output pixel for itself.
    ///
    /// # Safety
    /// As of [`run`]; `rows` has two addresses a pair, of input rows or of zero points.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn pixel_by_pixel(&self, p: &Problem, rows: &[Row], first: i64, sums: &mut [Sums]) {
        for (ox, sum) in (first..).zip(sums) {
            *sum = self.bias;
            let mut vectors = self.weights.iter();
            for kx in 0..p.window.kernel_w {
                for (rows, weights) in rows.chunks_exact(2).zip(&mut vectors) {
                    // SAFETY: the caller's promise.
                    let words =
                        unsafe { self.column(p, [rows[0], rows[1]], p.window.column(ox, kx)) };
                    accumulate(sum, words, weights);
                }
            }
        }
    }

    /// Two rows of input column `x`, side by side; zero points outside the input.
    ///
    /// # Safety
    /// As of [`run`]; the rows are input rows or zero points.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn column(&self, p: &Problem, rows: [Row; 2], x: i64) -> [__m256i; 2] {
        let mut words = [_mm256_set1_epi16(p.input_zero_point.into()); 2];
        if (0..p.ifm_w).contains(&x) {
            for (words, (row, pixel)) in words.iter_mut().zip(rows) {
                let at = row.wrapping_offset(isize_of(x).wrapping_mul(pixel));
                let bytes = if self.lens[0] == 16 {
                    // SAFETY: 16 lanes of a pixel of the input, or zero points.
                    unsafe { _mm_loadu_si128(at.cast()) }
                } else {
                    // SAFETY: as many lanes as there are, likewise.
                    _mm256_castsi256_si128(unsafe { load_some(at, self.lens[0]) })
                };
                *words = _mm256_cvtepu8_epi16(bytes);
            }
        }
        let [a, b] = words;
        [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)]
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn accumulate(acc: &mut Sums, words: [__m256i; 2], weights: &[__m256i; 2]) {
    for j in 0..2 {
        acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(words[j], weights[j]));
    }
}
