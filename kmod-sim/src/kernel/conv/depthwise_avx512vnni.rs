//! Depthwise CONV on AVX-512 VNNI, 64 channels at a time.
//!
//! ```text
//!   rows 4q .. 4q+3 of one input column, 64 channels each
//!     -> two levels of unpack -> 4 vectors of 16 channels x 4 rows
//!     -> vpdpbusd into every output pixel whose window has the column
//! ```
//!
//! The reduction of a step runs down a kernel column, so that a column which is interleaved once serves
//! all the outputs it lies under. The weights, which are packed along rows, are turned once a chunk. The
//! unpacks leave channels in an order of their own; weights and records follow it, and packing the
//! results restores it.
//!
//! Takes kernels of up to [`MOST_VECTORS`] columns times row quads, with weight zero points of zero; the
//! scalar kernel takes the rest. 3x3 and 5x5 windows at strides 1 and 2 stream, others go pixel by pixel.

mod direct;
mod flat;

use crate::kernel::Stop;
use crate::kernel::conv::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::stage::{Kind, Stage};
use crate::kernel::vector::{
    Channels, Lookup, Requantise, channels, load_64, load_masked_64, load_records, mask_64,
    store_64,
};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512, __m512i, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_dpbusd_epi32,
    _mm512_maskz_mov_epi8, _mm512_or_si512, _mm512_rolv_epi32, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_unpackhi_epi8, _mm512_unpackhi_epi16,
    _mm512_unpacklo_epi8, _mm512_unpacklo_epi16,
};

/// Output pixels between requantisation and the rest of the stage.
const SEGMENT: usize = 32;

/// Multiply-accumulates of a segment and a tap.
const SEGMENT_MACS: i64 = 32 * CHANNELS;

/// Most kernel columns times quads of kernel rows.
const MOST_VECTORS: usize = 32;

/// Channels of a step.
const CHANNELS: i64 = 64;

fn quads(p: &Problem) -> i64 {
    (p.window.kernel_h + 3) / 4
}

/// Whether this kernel takes `problem`.
pub(crate) fn takes(p: &Problem) -> bool {
    let vectors = p.window.kernel_w * quads(p);
    p.depthwise && usize_of(vectors.unsigned_abs()) <= MOST_VECTORS
}

/// Runs `problem`; `None` when its weights have zero points.
///
/// # Safety
/// `takes(problem)`, on a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Option<Result<(), Stop>> {
    let records = p.records.memory.pointer(p.records.start, 1);
    // SAFETY: the processor is the caller's promise; the records were checked, in sixteens.
    let channels = unsafe { channels(records, usize_of(p.outputs.unsigned_abs()), split) };
    let channels = match channels {
        Ok(channels) => channels,
        Err(stop) => return Some(Err(stop)),
    };
    if !channels.symmetric {
        return None;
    }
    if flat::takes(p) {
        // SAFETY: the caller's promise; it takes the problem.
        return Some(unsafe { flat::run(p, channels, split) });
    }
    let rows = p.images * p.ofm_h;
    let groups = (p.outputs + CHANNELS - 1) / CHANNELS;
    // Few rows a chunk would turn the weights too often: count a row as more than it multiplies.
    let row_macs = p.ofm_w * CHANNELS * p.taps();
    let rows_a_chunk = split.units_a_chunk(rows * groups, row_macs).min(rows);
    let bands = (rows + rows_a_chunk - 1) / rows_a_chunk;
    Some(split.chunks(bands * groups, &|chunk, budget| {
        let (first, group) = (chunk / groups * rows_a_chunk, chunk % groups);
        // SAFETY: the caller's promise.
        let columns = unsafe { Columns::new(p, channels, group * CHANNELS) };
        for row in first..(first + rows_a_chunk).min(rows) {
            // SAFETY: the caller's promise.
            unsafe { columns.row(p, row / p.ofm_h, row % p.ofm_h, budget)? };
        }
        Ok(())
    }))
}

/// An input row: the address of its first pixel, and from one pixel to the next.
type Row = (*const u8, isize);

type Segment = unsafe fn(&Columns, &Problem, &[Row], i64, &mut [__m512i]);

/// What 64 channels need, whatever the pixel.
struct Columns {
    stage: Stage,
    first_channel: i64,
    /// The channels that exist.
    mask: u64,
    /// By kernel column and quad of kernel rows.
    weights: [[__m512i; 4]; MOST_VECTORS],
    bias: [__m512i; 4],
    multiplier: [__m512; 4],
    quads: usize,
    padding: [u8; 64],
}

/// `out[j]` has 128-bit lane `j` of each of `z`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) fn transpose_lanes(z: [__m512i; 4]) -> [__m512i; 4] {
    let low_01 = _mm512_shuffle_i32x4::<0x44>(z[0], z[1]);
    let high_01 = _mm512_shuffle_i32x4::<0xee>(z[0], z[1]);
    let low_23 = _mm512_shuffle_i32x4::<0x44>(z[2], z[3]);
    let high_23 = _mm512_shuffle_i32x4::<0xee>(z[2], z[3]);
    [
        _mm512_shuffle_i32x4::<0x88>(low_01, low_23),
        _mm512_shuffle_i32x4::<0xdd>(low_01, low_23),
        _mm512_shuffle_i32x4::<0x88>(high_01, high_23),
        _mm512_shuffle_i32x4::<0xdd>(high_01, high_23),
    ]
}

/// Weights of 64 channels from `first_channel` on, by kernel column and quad of kernel rows, into the
/// zeros of `weights`; their biases and multipliers. All in the order that [`interleave`] leaves.
///
/// Of the four blocks of 16 channels, those from number `different` on repeat the ones before.
///
/// # Safety
/// As of [`run`]; `first_channel` exists and is a multiple of 64.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn turned(
    p: &Problem,
    first_channel: i64,
    different: usize,
    weights: &mut [[__m512i; 4]],
) -> ([__m512i; 4], [__m512; 4]) {
    let w = &p.window;
    let (kernel_h, kernel_w) =
        (usize_of(w.kernel_h.unsigned_abs()), usize_of(w.kernel_w.unsigned_abs()));
    let quads = kernel_h.div_ceil(4);
    let block_bytes = (kernel_h * kernel_w).div_ceil(4) * 64;
    let zero = _mm512_setzero_si512();
    let (mut bias, mut multiplier) = ([zero; 4], [zero; 4]);
    let first_block = usize_of(first_channel.unsigned_abs()) / 16;
    let blocks = usize_of((p.outputs - first_channel).unsigned_abs()).div_ceil(16);
    for block in (0..4).filter(|block| block % different < blocks) {
        let at = first_block + block % different;
        let records = p.records.memory.pointer(p.records.start, 1).wrapping_add(at * 256);
        // SAFETY: the records of a block that has a channel are sixteen.
        let (b, m) = unsafe { load_records(records) };
        (bias[block], multiplier[block]) = (b, _mm512_castps_si512(m));
        let packed = p.weights.memory.pointer(p.weights.start, 1).wrapping_add(at * block_bytes);
        for tap in 0..kernel_h * kernel_w {
            let (ky, kx) = (tap / kernel_w, tap % kernel_w);
            // SAFETY: the four taps around this one, of a block that exists.
            let four = unsafe { load_64(packed.wrapping_add(tap / 4 * 64)) };
            let byte = _mm512_maskz_mov_epi8(0x1111_1111_1111_1111 << (tap % 4), four);
            // From byte `tap % 4` to byte `ky % 4` of each 32-bit lane.
            let turn = _mm512_set1_epi32([0, 8, 16, 24][(ky + 4 - tap % 4) % 4]);
            let byte = _mm512_rolv_epi32(byte, turn);
            let vector = &mut weights[kx * quads + ky / 4][block];
            *vector = _mm512_or_si512(*vector, byte);
        }
    }
    for vector in &mut weights[..kernel_w * quads] {
        *vector = transpose_lanes(*vector);
    }
    let multiplier = transpose_lanes(multiplier).map(|lanes| _mm512_castsi512_ps(lanes));
    (transpose_lanes(bias), multiplier)
}

impl Columns {
    /// # Safety
    /// As of [`run`]; `first_channel` exists and is a multiple of 64.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn new(p: &Problem, channels: Channels, first_channel: i64) -> Self {
        let quads = usize_of(quads(p).unsigned_abs());
        let mut weights = [[_mm512_setzero_si512(); 4]; MOST_VECTORS];
        // SAFETY: the caller's promise.
        let (bias, multiplier) = unsafe { turned(p, first_channel, 4, &mut weights) };
        Self {
            stage: Stage::new(&p.stage, channels),
            first_channel,
            mask: mask_64(p.outputs - first_channel),
            weights,
            bias,
            multiplier,
            quads,
            padding: [p.input_zero_point; 64],
        }
    }

    /// One row of output pixels.
    ///
    /// # Safety
    /// As of [`run`]; the row exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn row(
        &self,
        p: &Problem,
        n: i64,
        oy: i64,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let w = &p.window;
        // Kernel rows in the padding, and those behind the last, read zero points, at no stride.
        let mut rows = [(self.padding.as_ptr(), 0); 4 * MOST_VECTORS];
        for (ky, row) in (0..w.kernel_h).zip(&mut rows) {
            let y = w.row(oy, ky);
            if (0..p.ifm_h).contains(&y) {
                let first = p.ifm.pointer(p.ifm.at(n, y, 0) + self.first_channel);
                *row = (first.cast_const(), isize_of(p.ifm.pixel));
            }
        }
        let rows = &rows[..4 * self.quads];
        let segment: Segment = match (w.kernel_w, w.stride_w, self.quads) {
            _ if w.dilation_w != 1 => Self::pixel_by_pixel,
            (3, 1, 1) => Self::stream::<3, 1, 3, 1>,
            (3, 2, 1) => Self::stream::<3, 2, 2, 1>,
            (5, 1, 2) => Self::stream::<5, 1, 5, 2>,
            (5, 2, 2) => Self::stream::<5, 2, 3, 2>,
            _ => Self::pixel_by_pixel,
        };
        let mut codes = [_mm512_setzero_si512(); SEGMENT];
        for first in (0..p.ofm_w).step_by(SEGMENT) {
            let count = usize_of((p.ofm_w - first).unsigned_abs()).min(SEGMENT);
            budget.spend(SEGMENT_MACS * p.taps())?;
            // SAFETY: the caller's promise; the pixels lie in the row.
            unsafe { segment(self, p, rows, first, &mut codes[..count]) };
            for (ox, &codes) in (first..).zip(&codes[..count]) {
                let mut codes = codes;
                if !self.stage.plain {
                    let aux = p.aux.map_or(std::ptr::null_mut(), |aux| {
                        aux.pointer(aux.at(n, oy, ox) + self.first_channel)
                    });
                    // SAFETY: the channels of `mask` of a pixel of the auxiliary tensor.
                    codes = unsafe { self.stage.rest_64(codes, self.mask, aux) };
                }
                let to = p.ofm.pointer(p.ofm.at(n, oy, ox) + self.first_channel);
                // SAFETY: the channels of `mask` of a pixel of the output.
                unsafe { store_64(to, self.mask, codes) };
            }
        }
        Ok(())
    }

    /// Requantised codes of the output pixels from `ox` on, dilation 1.
    ///
    /// Input columns pass by once. `LIVE` outputs have begun and not ended at a time,
    /// `KERNEL_W / STRIDE_W` rounded up; a column goes into each, under the kernel column it is for it.
    ///
    /// # Safety
    /// As of [`run`]; `rows` has four addresses a quad, of input rows or of zero points.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn stream<
        const KERNEL_W: usize,
        const STRIDE_W: usize,
        const LIVE: usize,
        const QUADS: usize,
    >(
        &self,
        p: &Problem,
        rows: &[Row],
        ox: i64,
        codes: &mut [__m512i],
    ) {
        let mut x = p.window.column(ox, 0);
        let mut live = [self.bias; LIVE]; // the oldest first
        for step in 0..codes.len() + LIVE - 1 {
            for column in 0..STRIDE_W {
                for quad in 0..QUADS {
                    // SAFETY: the caller's promise.
                    let bytes = unsafe { self.column(p, &rows[4 * quad..4 * quad + 4], x) };
                    for age in 0..LIVE {
                        let kx = age * STRIDE_W + column;
                        if kx < KERNEL_W {
                            let weights = &self.weights[kx * QUADS + quad];
                            accumulate(&mut live[LIVE - 1 - age], &bytes, weights);
                        }
                    }
                }
                x += 1;
            }
            if let Some(code) = step.checked_sub(LIVE - 1).and_then(|done| codes.get_mut(done)) {
                *code = self.requantised(&live[0]);
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
    /// As of [`run`]; `rows` has four addresses a quad, of input rows or of zero points.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn pixel_by_pixel(&self, p: &Problem, rows: &[Row], first: i64, codes: &mut [__m512i]) {
        for (ox, code) in (first..).zip(codes) {
            let mut sum = self.bias;
            let mut vectors = self.weights.iter();
            for kx in 0..p.window.kernel_w {
                for (rows, weights) in rows.chunks_exact(4).zip(&mut vectors) {
                    // SAFETY: the caller's promise.
                    let bytes = unsafe { self.column(p, rows, p.window.column(ox, kx)) };
                    accumulate(&mut sum, &bytes, weights);
                }
            }
            *code = self.requantised(&sum);
        }
    }

    /// Codes of 64 channels, in order.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn requantised(&self, sum: &[__m512i; 4]) -> __m512i {
        self.stage.requantise.lanes(*sum, self.multiplier)
    }

    /// Four rows of input column `x`, interleaved; zero points outside the input.
    ///
    /// # Safety
    /// As of [`run`]; `rows` has four addresses, of input rows or of zero points.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn column(&self, p: &Problem, rows: &[Row], x: i64) -> [__m512i; 4] {
        let mut bytes = [_mm512_set1_epi8(p.input_zero_point.cast_signed()); 4];
        if (0..p.ifm_w).contains(&x) {
            for (bytes, (row, pixel)) in bytes.iter_mut().zip(rows) {
                let at = row.wrapping_offset(isize_of(x).wrapping_mul(*pixel));
                // SAFETY: the channels of `mask` of a pixel of the input, or zero points.
                *bytes = unsafe { load_masked_64(self.mask, at) };
            }
        }
        interleave(bytes)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn accumulate(acc: &mut [__m512i; 4], bytes: &[__m512i; 4], weights: &[__m512i; 4]) {
    for j in 0..4 {
        acc[j] = _mm512_dpbusd_epi32(acc[j], bytes[j], weights[j]);
    }
}

/// Kinds of stages that add nothing, as parameters: any, small multipliers with or without a table, and those
/// whose codes are bounded by saturation alone.
const ANY: u8 = 0;
const SMALL: u8 = 1;
const SMALL_TABLE: u8 = 2;
const BARE: u8 = 3;

/// What comes behind the sums of 64 channels where nothing is added.
struct Finish<'a> {
    stage: &'a Stage,
    multiplier: [__m512; 4],
    table: Lookup,
}

/// The kind of `stage`, which adds nothing.
fn kind(stage: &Stage, channels: Channels) -> u8 {
    match stage.kind() {
        Kind::Bare => BARE,
        Kind::Plain if channels.small => SMALL,
        Kind::Table if channels.small => SMALL_TABLE,
        _ => ANY,
    }
}

impl<'a> Finish<'a> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new(stage: &'a Stage, multiplier: [__m512; 4]) -> Self {
        Self { stage, multiplier, table: stage.table().unwrap_or_else(|| Lookup::zeros()) }
    }

    /// Codes of the sums, in order.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn codes<const KIND: u8>(&self, sums: [__m512i; 4]) -> __m512i {
        match KIND {
            BARE => Requantise::bare_lanes(sums, self.multiplier),
            SMALL => self.stage.requantise.small_lanes(sums, self.multiplier),
            SMALL_TABLE => {
                // The table has the bounds.
                self.table.bytes(self.stage.requantise.unbounded_lanes(sums, self.multiplier))
            }
            _ => self.stage.one_table(self.stage.requantise.lanes(sums, self.multiplier)),
        }
    }

    /// Codes of half the sums of 64 channels, as 16-bit integers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn half<const KIND: u8, const HIGH: bool>(&self, sums: [__m512i; 2]) -> __m512i {
        let multiplier = halves::<_, HIGH>(&self.multiplier);
        match KIND {
            BARE => Requantise::bare_half(sums, multiplier),
            ANY => self.stage.requantise.half::<false>(sums, multiplier),
            _ => self.stage.requantise.half::<true>(sums, multiplier),
        }
    }

    /// Codes of both halves through what comes behind, in order.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn joined<const KIND: u8>(&self, low: __m512i, high: __m512i) -> __m512i {
        match KIND {
            BARE => Requantise::unbounded(low, high),
            SMALL => self.stage.requantise.joined(low, high),
            SMALL_TABLE => self.table.bytes(Requantise::unbounded(low, high)),
            _ => self.stage.one_table(self.stage.requantise.joined(low, high)),
        }
    }
}

/// The first or the last two of four vectors.
#[inline]
fn halves<T: Copy, const HIGH: bool>(vectors: &[T; 4]) -> [T; 2] {
    if HIGH { [vectors[2], vectors[3]] } else { [vectors[0], vectors[1]] }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn accumulate_half(acc: &mut [__m512i; 2], bytes: &[__m512i; 2], weights: &[__m512i; 2]) {
    for j in 0..2 {
        acc[j] = _mm512_dpbusd_epi32(acc[j], bytes[j], weights[j]);
    }
}

/// The first or the last two vectors of [`interleave`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn interleave_half<const HIGH: bool>([a, b, c, d]: [__m512i; 4]) -> [__m512i; 2] {
    let (ab, cd) = if HIGH {
        (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d))
    } else {
        (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d))
    };
    [_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd)]
}

/// Four rows of 64 bytes as four vectors of 16 x 4: lane `j` of a row's 16 bytes goes to vector `j`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) fn interleave([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (low_ab, high_ab) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
    let (low_cd, high_cd) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_unpacklo_epi16(low_ab, low_cd),
        _mm512_unpackhi_epi16(low_ab, low_cd),
        _mm512_unpacklo_epi16(high_ab, high_cd),
        _mm512_unpackhi_epi16(high_ab, high_cd),
    ]
}
