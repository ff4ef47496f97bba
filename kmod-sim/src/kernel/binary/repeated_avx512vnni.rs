//! ADD and MUL on AVX-512 where one operand is a pixel that is repeated and the others lie without gaps:
//! the pixel is written side by side first, as often as makes whole registers, and runs are long then.

use super::avx512vnni::{Codes, PRODUCT, PRODUCT_WITHIN, SUM, SUM_WITHIN, kind};
use crate::kernel::Stop;
use crate::kernel::binary::Problem;
use crate::kernel::operand::Map;
use crate::kernel::split::Split;
use crate::kernel::vector::{load_64, load_masked_64, mask_64, store_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{__m512, _mm512_setzero_ps};

/// Most bytes of the repeated pixel side by side.
const ROOM: usize = 4096;

/// The repeated pixel side by side: as bytes, and as the function takes it.
struct Pattern {
    bytes: [u8; ROOM],
    floats: [[__m512; 4]; ROOM / 64],
}

/// Bytes of a piece of a run.
const PIECE: i64 = 16 << 10;

/// How a problem of this kind is walked.
struct Plan<'a> {
    repeated: &'a Map,
    is_first: bool,
    dense: &'a Map,
    /// Bytes of a pixel, and of as many as fill registers.
    pixel: i64,
    period: i64,
    images: i64,
    rows: i64,
    /// Bytes of a row.
    run: i64,
}

impl<'a> Plan<'a> {
    /// `None` where the problem is of another kind, or runs are too short to pay.
    fn of(p: &'a Problem) -> Option<Self> {
        let [n, h, w, _] = p.dims;
        let (repeated, dense, is_first) = match (p.a.pixel, p.b.pixel) {
            (0, 0) => return None,
            (0, _) => (&p.a, &p.b, true),
            (_, 0) => (&p.b, &p.a, false),
            _ => return None,
        };
        let pixel = p.out.pixel;
        let is_dense = |map: &Map| map.pixel == pixel && map.lanes == pixel;
        if pixel <= 0 || !is_dense(dense) || !is_dense(&p.out) {
            return None;
        }
        let period = pixel * (64 >> pixel.trailing_zeros().min(6));
        let (mut images, mut rows, mut run) = (n, h, w * pixel);
        let follow = |stride: fn(&Map) -> i64, len: i64| {
            stride(repeated) == 0 && stride(dense) == len && stride(&p.out) == len
        };
        if rows == 1 || follow(|map| map.row, run) {
            (run, rows) = (run * rows, 1);
            if images == 1 || follow(|map| map.image, run) {
                (run, images) = (run * images, 1);
            }
        }
        let pays = usize_of(period.unsigned_abs()) <= ROOM && run >= 2 * period;
        pays.then_some(Self { repeated, is_first, dense, pixel, period, images, rows, run })
    }
}

/// Runs `problem`; `None` when it is of another kind.
///
/// # Safety
/// On a processor with the vector instructions.
pub(super) unsafe fn run(p: &Problem, split: &Split<'_>) -> Option<Result<(), Stop>> {
    let plan = Plan::of(p)?;
    let piece = PIECE / plan.period * plan.period;
    let pieces = (plan.run + piece - 1) / piece;
    let units = plan.images * plan.rows * pieces;
    let units_a_chunk = split.units_a_chunk(units, 4 * plan.run.min(piece));
    let piece_of_kind = match kind(p.function) {
        SUM_WITHIN => Plan::piece::<SUM_WITHIN>,
        SUM => Plan::piece::<SUM>,
        PRODUCT_WITHIN => Plan::piece::<PRODUCT_WITHIN>,
        _ => Plan::piece::<PRODUCT>,
    };
    Some(split.chunks((units + units_a_chunk - 1) / units_a_chunk, &|chunk, budget| {
        let first = chunk * units_a_chunk;
        // SAFETY: the processor is the caller's promise.
        let mut pattern = unsafe { Pattern::new() };
        for unit in first..(first + units_a_chunk).min(units) {
            let (row, start) = (unit / pieces, unit % pieces * piece);
            let len = (plan.run - start).min(piece);
            budget.spend(4 * len)?;
            let at = [row / plan.rows, row % plan.rows];
            // SAFETY: the processor is the caller's promise, the run lies in all three operands.
            unsafe { piece_of_kind(&plan, p, &mut pattern, at, (start, len)) };
        }
        Ok(())
    }))
}

impl Pattern {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new() -> Self {
        Self { bytes: [0; ROOM], floats: [[_mm512_setzero_ps(); 4]; ROOM / 64] }
    }
}

impl Plan<'_> {
    /// `len` bytes of a row from `start` on, which is a multiple of the period.
    ///
    /// # Safety
    /// As of [`run`]; the bytes lie in the row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn piece<const KIND: u8>(
        &self,
        p: &Problem,
        pattern: &mut Pattern,
        [n, y]: [i64; 2],
        (start, len): (i64, i64),
    ) {
        let from = self.repeated.pointer(self.repeated.at(n, y, 0));
        for done in (0..p.dims[3]).step_by(64) {
            let mask = mask_64(p.dims[3] - done);
            // SAFETY: the channels of the mask.
            let codes = unsafe { load_masked_64(mask, from.wrapping_offset(isize_of(done))) };
            for pixel in (0..self.period).step_by(usize_of(self.pixel.unsigned_abs())) {
                let to = pattern.bytes.as_mut_ptr().wrapping_offset(isize_of(pixel + done));
                // SAFETY: the channels of a pixel of the pattern.
                unsafe { store_64(to, mask, codes) };
            }
        }
        let function = Codes::<KIND>::new(p);
        let vectors = usize_of((self.period / 64).unsigned_abs());
        let own = &mut pattern.floats[..vectors];
        for (floats, bytes) in own.iter_mut().zip(pattern.bytes.chunks_exact(64)) {
            // SAFETY: 64 bytes of the pattern.
            let codes = unsafe { load_64(bytes.as_ptr()) };
            *floats = match self.is_first {
                true => function.floats::<false>(codes),
                false => function.floats::<true>(codes),
            };
        }
        let dense = self.dense.pointer(self.dense.at(n, y, 0) + start);
        let out = p.out.pointer(p.out.at(n, y, 0) + start);
        for (done, own) in (0..len).step_by(64).zip(own.iter().cycle()) {
            let (mask, at) = (mask_64(len - done), isize_of(done));
            // SAFETY: the bytes of `mask` lie in the run.
            let other = unsafe { load_masked_64(mask, dense.wrapping_offset(at)) };
            let bytes = match self.is_first {
                true => function.bytes(*own, function.floats::<true>(other)),
                false => function.bytes(function.floats::<false>(other), *own),
            };
            // SAFETY: as above, of the result.
            unsafe { store_64(out.wrapping_offset(at), mask, bytes) };
        }
    }
}
