//! ADD and MUL on AVX-512 where one operand is a pixel that is repeated and the others lie without gaps:
//! the pixel is written side by side first, as often as makes whole registers, and runs are long then.

use super::avx512vnni::Codes;
use crate::kernel::Stop;
use crate::kernel::binary::Problem;
use crate::kernel::operand::Map;
use crate::kernel::split::Split;
use crate::kernel::vector::{
    Lookup, load_64, load_masked_64, mask_64, pack_64, store_64, unpack_64,
};
use crate::memory::{isize_of, usize_of};

/// Most bytes of the repeated pixel side by side.
const ROOM: usize = 4096;

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
    Some(split.chunks((units + units_a_chunk - 1) / units_a_chunk, &|chunk, budget| {
        let first = chunk * units_a_chunk;
        for unit in first..(first + units_a_chunk).min(units) {
            let (row, start) = (unit / pieces, unit % pieces * piece);
            let len = (plan.run - start).min(piece);
            budget.spend(4 * len)?;
            let at = [row / plan.rows, row % plan.rows];
            // SAFETY: the processor is the caller's promise, the run lies in all three operands.
            unsafe { plan.piece(p, at, start, len) };
        }
        Ok(())
    }))
}

impl Plan<'_> {
    /// `len` bytes of a row from `start` on, which is a multiple of the period.
    ///
    /// # Safety
    /// As of [`run`]; the bytes lie in the row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn piece(&self, p: &Problem, [n, y]: [i64; 2], start: i64, len: i64) {
        let mut pattern = [0_u8; ROOM];
        let from = self.repeated.pointer(self.repeated.at(n, y, 0));
        for done in (0..p.dims[3]).step_by(64) {
            let mask = mask_64(p.dims[3] - done);
            // SAFETY: the channels of the mask.
            let codes = unsafe { load_masked_64(mask, from.wrapping_offset(isize_of(done))) };
            for pixel in (0..self.period).step_by(usize_of(self.pixel.unsigned_abs())) {
                let to = pattern.as_mut_ptr().wrapping_offset(isize_of(pixel + done));
                // SAFETY: the channels of a pixel of the pattern.
                unsafe { store_64(to, mask, codes) };
            }
        }
        let function = Codes::new(p);
        let table = p.table.as_ref().map(|table| Lookup::new(table));
        let dense = self.dense.pointer(self.dense.at(n, y, 0) + start);
        let out = p.out.pointer(p.out.at(n, y, 0) + start);
        let mut place = 0;
        for done in (0..len).step_by(64) {
            let (mask, at) = (mask_64(len - done), isize_of(done));
            // SAFETY: the period is a multiple of 64 bytes, and `place` less.
            let own = unpack_64(unsafe { load_64(pattern.as_ptr().wrapping_offset(place)) });
            // SAFETY: the bytes of `mask` lie in the run.
            let other = unpack_64(unsafe { load_masked_64(mask, dense.wrapping_offset(at)) });
            let mut codes = own;
            for j in 0..4 {
                let (first, second) =
                    if self.is_first { (own[j], other[j]) } else { (other[j], own[j]) };
                codes[j] = function.codes(first, second);
            }
            let mut bytes = pack_64(codes);
            if let Some(table) = &table {
                bytes = table.bytes(bytes);
            }
            // SAFETY: as above, of the result.
            unsafe { store_64(out.wrapping_offset(at), mask, bytes) };
            place += 64;
            if place == isize_of(self.period) {
                place = 0;
            }
        }
    }
}
