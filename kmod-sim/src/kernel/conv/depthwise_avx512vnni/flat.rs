//! Depthwise 3x3 and 5x5 windows at strides 1 and 2: how they are cut, and 3x3 windows over fewer channels
//! than a vector has, from rows that are copied flat.
//!
//! ```text
//!   row of the input, 16 or 32 channels of each pixel -> pixels without a gap, zero points around them,
//!                                                        at stride 2 even and odd columns apart
//!   4 rows x 64 bytes -> interleaved once -> vpdpbusd for 3 kernel columns and 2 rows of outputs
//! ```
//!
//! In a flat row a kernel column is a distance of `LANES` bytes, the same for all, so that 64 bytes are
//! two or four pixels, and no lane is idle. As the distance is less than a vector, interleaved vectors are
//! shifted by whole 128-bit lanes instead of being interleaved anew. Two rows of outputs are computed at
//! once as in [`super::direct`], which has the groups of 64 channels and 5x5 windows.

use super::direct::Direct;
use super::{
    ANY, BARE, CHANNELS, Finish, SMALL, SMALL_TABLE, accumulate, interleave, kind, turned,
};
use crate::kernel::Stop;
use crate::kernel::conv::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{Channels, load_64, load_masked_64, mask_64, store_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512i, _mm512_alignr_epi64, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_si512,
};
use std::mem::MaybeUninit;

/// Most bytes of a row of inputs under a segment of outputs, about: four rows and two of results lie in
/// the level-1 cache.
const SEGMENT_BYTES: i64 = 7 << 10;

/// Bytes of all of them, each with vectors behind the last that are read as well.
const SCRATCH: usize = 48 << 10;

/// Rows of inputs that are kept.
const ROWS: u8 = 4;

/// Whether this kernel takes `problem`.
pub(super) fn takes(p: &Problem) -> bool {
    let w = &p.window;
    let square = w.kernel_h == w.kernel_w && matches!(w.kernel_h, 3 | 5);
    // What is added may lie where results go, which are stored before the stage has ended.
    square
        && p.aux.is_none()
        && (w.dilation_h, w.dilation_w) == (1, 1)
        && w.stride_h == w.stride_w
        && w.stride_w <= 2
}

/// Runs `problem`.
///
/// # Safety
/// As of [`super::run`]; `takes(problem)`, and weights without zero points.
pub(super) unsafe fn run(p: &Problem, channels: Channels, split: &Split<'_>) -> Result<(), Stop> {
    let groups = (p.outputs + CHANNELS - 1) / CHANNELS;
    // 5x5 windows are whole vectors only.
    let narrow = p.window.kernel_h == 3;
    let lanes = |channels| match channels {
        ..=16 if narrow => 16,
        ..=32 if narrow => 32,
        _ => CHANNELS,
    };
    let widest = lanes(p.outputs);
    let most = SEGMENT_BYTES / (widest * p.window.stride_w);
    let segments = (p.ofm_w + most - 1) / most;
    let width = (p.ofm_w + segments - 1) / segments;
    let segments = (p.ofm_w + width - 1) / width;
    // Weights are turned and two rows copied more than once for each chunk: few rows do not pay.
    let row_macs = width * widest * p.taps();
    let units = p.images * segments * groups;
    let rows = split.units_a_chunk(p.ofm_h * units, row_macs).clamp(1, p.ofm_h);
    let bands = (p.ofm_h + rows - 1) / rows;
    let rows = (p.ofm_h + bands - 1) / bands;
    let rows = rows + rows % 2;
    let bands = (p.ofm_h + rows - 1) / rows;
    // SAFETY: the processor is the caller's promise.
    let stage = unsafe { Stage::new(&p.stage, channels) };
    let stage = (&stage, kind(&stage, channels));
    split.chunks(units * bands, &|chunk, budget| {
        let (rest, group) = (chunk / groups, chunk % groups);
        let (rest, segment) = (rest / segments, rest % segments);
        let (n, band) = (rest / bands, rest % bands);
        let (first_row, first) = (band * rows, segment * width);
        let area = Area {
            n,
            rows: (first_row, (first_row + rows).min(p.ofm_h)),
            columns: (first, (first + width).min(p.ofm_w)),
        };
        let channel = group * CHANNELS;
        match (p.window.stride_w, lanes(p.outputs - channel)) {
            // SAFETY: the caller's promise; the area lies in the output, the channels exist.
            (1, 16) => unsafe { Flat::<16, 1>::chunk(p, stage, channel, area, budget) },
            // SAFETY: as above, and so below.
            (1, 32) => unsafe { Flat::<32, 1>::chunk(p, stage, channel, area, budget) },
            // SAFETY: as above.
            (1, _) => unsafe { Direct::<1>::chunk(p, stage, channel, area, budget) },
            // SAFETY: as above.
            (_, 16) => unsafe { Flat::<16, 2>::chunk(p, stage, channel, area, budget) },
            // SAFETY: as above.
            (_, 32) => unsafe { Flat::<32, 2>::chunk(p, stage, channel, area, budget) },
            // SAFETY: as above.
            (_, _) => unsafe { Direct::<2>::chunk(p, stage, channel, area, budget) },
        }
    })
}

/// Outputs of a chunk: rows and columns from the first to behind the last.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub(super) n: i64,
    pub(super) rows: (i64, i64),
    pub(super) columns: (i64, i64),
}

#[repr(align(64))]
struct Scratch(MaybeUninit<[u8; SCRATCH]>);

/// `LANES` channels, 16 or 32, at stride `STRIDE`.
struct Flat<'a, const LANES: usize, const STRIDE: usize> {
    p: &'a Problem,
    finish: Finish<'a>,
    kind: u8,
    first_channel: i64,
    /// By kernel column; those of the second of two rows of outputs.
    weights: [[__m512i; 4]; 3],
    second: [[__m512i; 4]; 3],
    bias: [__m512i; 4],
    /// Bytes of a pixel that are read.
    read: u64,
}

/// Where the flat rows of an area lie.
struct Rows {
    /// Vectors of a row of results.
    vectors: usize,
    /// Bytes of a row of even (or all) columns, and of a row.
    plane: usize,
    row: usize,
    base: *mut u8,
    /// The first input row that has not been copied.
    next: i64,
}

impl<'a, const LANES: usize, const STRIDE: usize> Flat<'a, LANES, STRIDE> {
    /// # Safety
    /// As of [`run`]; `channel` exists and is a multiple of 64.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn new(p: &'a Problem, stage: (&'a Stage, u8), channel: i64) -> Self {
        let mut weights = [[_mm512_setzero_si512(); 4]; 3];
        // SAFETY: the caller's promise.
        let (bias, multiplier) = unsafe { turned(p, channel, LANES / 16, &mut weights) };
        let second = weights.map(|lanes| lanes.map(|lanes| _mm512_slli_epi32::<8>(lanes)));
        let (stage, kind) = stage;
        let finish = Finish::new(stage, multiplier);
        let read = mask_64(p.ifm.lanes - channel) & all::<LANES>();
        Self { p, finish, kind, first_channel: channel, weights, second, bias, read }
    }

    /// Computes `area` of the channels from `channel` on.
    ///
    /// # Safety
    /// As of [`run`]; the area lies in the output, `channel` exists and is a multiple of 64.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn chunk(
        p: &'a Problem,
        stage: (&'a Stage, u8),
        channel: i64,
        area: Area,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        // SAFETY: the caller's promise.
        let flat = unsafe { Self::new(p, stage, channel) };
        // SAFETY: the caller's promise.
        unsafe { flat.area(area, budget) }
    }

    /// Computes `area`.
    ///
    /// # Safety
    /// As of [`run`]; the area lies in the output.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn area(&self, area: Area, budget: &mut Budget<'_>) -> Result<(), Aborted> {
        let p = self.p;
        let mut scratch = Scratch(MaybeUninit::uninit());
        let width = usize_of((area.columns.1 - area.columns.0).unsigned_abs());
        let vectors = (width * LANES).div_ceil(64);
        // Behind the last vector of results, the columns of a window and the rest of a vector.
        let plane = (vectors + 3) * 64;
        let mut rows = Rows {
            vectors,
            plane,
            row: plane * STRIDE,
            base: scratch.0.as_mut_ptr().cast(),
            next: i64::MIN,
        };
        assert!(
            usize::from(ROWS) * rows.row + 2 * vectors * 64 <= SCRATCH,
            "`run` makes segments that fit"
        );
        let scratch_codes = rows.base.wrapping_add(usize::from(ROWS) * rows.row);
        // Where pixels follow without a gap, codes go where they belong.
        let direct = isize_of(p.ofm.pixel) == LANES.cast_signed()
            && self.written() == all::<LANES>()
            && (width * LANES).is_multiple_of(64);
        // SAFETY: the bytes are in the scratch.
        unsafe { rows.base.write_bytes(p.input_zero_point, usize::from(ROWS) * rows.row) };
        let macs = (area.columns.1 - area.columns.0) * CHANNELS * p.taps();
        let [one_row, two_rows] = match self.kind {
            BARE => [Self::pass::<1, BARE>, Self::pass::<2, BARE>],
            SMALL => [Self::pass::<1, SMALL>, Self::pass::<2, SMALL>],
            SMALL_TABLE => [Self::pass::<1, SMALL_TABLE>, Self::pass::<2, SMALL_TABLE>],
            _ => [Self::pass::<1, ANY>, Self::pass::<2, ANY>],
        };
        let mut oy = area.rows.0;
        while oy < area.rows.1 {
            let two = STRIDE == 1 && oy + 1 < area.rows.1;
            budget.spend(macs)?;
            let y = p.window.row(oy, 0);
            // SAFETY: the caller's promise.
            let at = unsafe { self.rows(&mut rows, area, y, if two { 4 } else { 3 }) };
            let place =
                |oy: i64| p.ofm.pointer(p.ofm.at(area.n, oy, area.columns.0) + self.first_channel);
            let codes = if direct {
                [place(oy), place(oy + i64::from(two))]
            } else {
                [scratch_codes, scratch_codes.wrapping_add(64 * vectors)]
            };
            if two {
                // SAFETY: the rows of the windows are in the scratch, and so is place for the codes.
                unsafe { two_rows(self, at, &rows, codes) };
                // SAFETY: the caller's promise; the codes are there.
                unsafe { self.store(area, oy, codes[0]) };
                // SAFETY: as above.
                unsafe { self.store(area, oy + 1, codes[1]) };
                oy += 2;
            } else {
                // SAFETY: as above.
                unsafe { one_row(self, at, &rows, codes) };
                // SAFETY: as above.
                unsafe { self.store(area, oy, codes[0]) };
                oy += 1;
            }
        }
        Ok(())
    }

    /// Sees to it that input rows `y .. y + count` are copied; addresses of four from `y` on.
    ///
    /// # Safety
    /// As of [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn rows(&self, rows: &mut Rows, area: Area, y: i64, count: i64) -> [*const u8; 4] {
        let place = |y: i64| {
            let slot = usize_of(y.rem_euclid(ROWS.into()).unsigned_abs());
            rows.base.wrapping_add(slot * rows.row)
        };
        for y in rows.next.max(y)..y + count {
            // SAFETY: the caller's promise; the place is that of a row.
            unsafe { self.copy(rows, area, y, place(y)) };
        }
        let at = [0, 1, 2, 3].map(|ky| place(y + ky).cast_const());
        rows.next = y + count;
        at
    }

    /// Copies what windows cover of input row `y`, around which zero points lie already.
    ///
    /// # Safety
    /// As of [`run`]; `to` is the place of a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn copy(&self, rows: &Rows, area: Area, y: i64, to: *mut u8) {
        let p = self.p;
        if !(0..p.ifm_h).contains(&y) {
            // SAFETY: the bytes of a row.
            unsafe { to.write_bytes(p.input_zero_point, rows.row) };
            return;
        }
        let first = p.window.column(area.columns.0, 0);
        let end = p.window.column(area.columns.1 - 1, 2) + 1;
        let (from, end) = (first.max(0), end.min(p.ifm_w));
        if from >= end {
            return;
        }
        let pixel = p.ifm.pointer(p.ifm.at(area.n, y, from) + self.first_channel).cast_const();
        let step = isize_of(p.ifm.pixel);
        let (count, column) =
            (usize_of((end - from).unsigned_abs()), usize_of((from - first).unsigned_abs()));
        for start in 0..STRIDE.min(count) {
            let column = column + start;
            let run = Run {
                from: pixel.wrapping_offset(step.wrapping_mul(start.cast_signed())),
                from_step: step.wrapping_mul(STRIDE.cast_signed()),
                to: to.wrapping_add(column % STRIDE * rows.plane + column / STRIDE * LANES),
                to_step: LANES.cast_signed(),
                count: (count - start).div_ceil(STRIDE),
            };
            // SAFETY: pixels of the input, of which the lanes of `read` exist, to their places.
            unsafe { run.copy::<LANES>(self.read) };
        }
    }

    /// Codes of `OUTPUTS` rows, flat, to `codes`, from the rows of inputs under them.
    ///
    /// # Safety
    /// As of [`run`]; the rows were copied, `codes` has place, and the stage is of `KIND`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn pass<const OUTPUTS: usize, const KIND: u8>(
        &self,
        at: [*const u8; 4],
        rows: &Rows,
        codes: [*mut u8; 2],
    ) {
        let read = |offset: usize| {
            at.map(|row| {
                // SAFETY: a vector of a row, or behind its last as far as there is place.
                unsafe { load_64(row.wrapping_add(offset)) }
            })
        };
        let mut first = interleave(read(0));
        for vector in 0..rows.vectors {
            let offset = 64 * vector;
            let next = interleave(read(offset + 64));
            let under = match (STRIDE, LANES) {
                (1, 32) => [first, shifted::<4>(first, next), next],
                (1, _) => [first, shifted::<2>(first, next), shifted::<4>(first, next)],
                (_, 32) => {
                    [first, interleave(read(rows.plane + offset)), shifted::<4>(first, next)]
                }
                (_, _) => [first, interleave(read(rows.plane + offset)), shifted::<2>(first, next)],
            };
            let mut sums = [self.bias; OUTPUTS];
            for (sums, weights) in sums.iter_mut().zip([&self.weights, &self.second]) {
                for (under, weights) in under.iter().zip(weights) {
                    accumulate(sums, under, weights);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let to = codes[row].wrapping_add(offset);
                let bytes = self.finish.codes::<KIND>(*sums);
                // SAFETY: a vector of the row of codes.
                unsafe { _mm512_storeu_si512(to.cast(), bytes) };
            }
            first = next;
        }
    }

    /// Bytes of a pixel that are written: lanes of padding are the command's own.
    fn written(&self) -> u64 {
        mask_64(self.p.ofm.lanes - self.first_channel) & all::<LANES>()
    }

    /// Moves a row of codes to row `oy` of the output.
    ///
    /// # Safety
    /// As of [`run`]; the row exists, and `codes` has its codes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn store(&self, area: Area, oy: i64, codes: *const u8) {
        let p = self.p;
        let place = |map: &crate::kernel::operand::Map| {
            map.pointer(map.at(area.n, oy, area.columns.0) + self.first_channel)
        };
        let (to, step) = (place(&p.ofm), isize_of(p.ofm.pixel));
        let written = self.written();
        if std::ptr::eq(codes, to) {
            return;
        }
        let count = usize_of((area.columns.1 - area.columns.0).unsigned_abs());
        let run = Run { from: codes, from_step: LANES.cast_signed(), to, to_step: step, count };
        // SAFETY: codes of pixels of the output, whose lanes of `written` exist.
        unsafe { run.copy::<LANES>(written) };
    }
}

/// Pixels at one distance that are copied to others.
struct Run {
    from: *const u8,
    from_step: isize,
    to: *mut u8,
    to_step: isize,
    count: usize,
}

impl Run {
    /// Copies the lanes of `mask`, which are `LANES` at most.
    ///
    /// # Safety
    /// They must be readable there and writable here.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn copy<const LANES: usize>(self, mask: u64) {
        let (mut from, mut to) = (self.from.cast::<[u8; LANES]>(), self.to.cast::<[u8; LANES]>());
        if mask != all::<LANES>() {
            for _ in 0..self.count {
                // SAFETY: the caller's promise.
                let bytes = unsafe { load_masked_64(mask, from.cast()) };
                // SAFETY: the caller's promise.
                unsafe { store_64(to.cast(), mask, bytes) };
                from = from.wrapping_byte_offset(self.from_step);
                to = to.wrapping_byte_offset(self.to_step);
            }
            return;
        }
        let whole = LANES.cast_signed();
        if self.from_step == whole && self.to_step == whole {
            // SAFETY: the caller's promise, for pixels without a gap.
            unsafe { from.copy_to_nonoverlapping(to, self.count) };
            return;
        }
        for _ in 0..self.count {
            // SAFETY: the caller's promise.
            let bytes = unsafe { from.read_unaligned() };
            // SAFETY: the caller's promise.
            unsafe { to.write_unaligned(bytes) };
            from = from.wrapping_byte_offset(self.from_step);
            to = to.wrapping_byte_offset(self.to_step);
        }
    }
}

/// The bytes of a pixel.
const fn all<const LANES: usize>() -> u64 {
    u64::MAX >> (64 - LANES)
}

/// What lies so many quadwords, of whole 128-bit lanes, behind `first`, which `next` follows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn shifted<const QUADWORDS: i32>(first: [__m512i; 4], next: [__m512i; 4]) -> [__m512i; 4] {
    let mut out = first;
    for j in 0..4 {
        out[j] = _mm512_alignr_epi64::<QUADWORDS>(next[j], first[j]);
    }
    out
}
