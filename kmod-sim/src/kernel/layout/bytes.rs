//! LAYOUT of bytes to bytes on AVX-512, through a table where there is one; takes every such problem.
//!
//! The five dimensions become as few loops as say the same, the one with the smallest steps in the
//! result innermost. With the loop next to it, it is walked in pieces:
//!
//! - contiguous on both sides: runs, as wide as registers;
//! - a few bytes each time, not far from each other: picked out of a register of the source;
//! - contiguous in the result, another loop contiguous in the source: tiles of 16 by 16, turned in
//!   registers;
//! - anything else: byte by byte.

use super::picks_avx512vnni as picks;
use crate::kernel::Stop;
use crate::kernel::layout::Problem;
use crate::kernel::split::Split;
use crate::kernel::vector::turn::turned;
use crate::kernel::vector::{Lookup, load_masked_64, mask_16, mask_64, store_16, store_64};
use crate::memory::isize_of;
use std::arch::x86_64::{
    _mm_maskz_loadu_epi8, _mm_setzero_si128, _mm512_castsi512_si128, _mm512_zextsi128_si512,
};

/// Bytes of a piece, about.
const PIECE: i64 = 16 << 10;

/// A loop: how often, and how far each time on both sides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Loop {
    count: i64,
    src: i64,
    dst: i64,
}

const ONCE: Loop = Loop { count: 1, src: 0, dst: 0 };

/// How the two inner loops are walked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Walk {
    Runs,
    Picks,
    Turn,
    Bytes,
}

/// Loops from the outermost; the last three are `around`, `along` and `inner`.
struct Plan {
    outer: [Loop; 5],
    /// Of runs and picks; else it is one of the outer ones.
    around: Loop,
    along: Loop,
    inner: Loop,
    walk: Walk,
}

impl Plan {
    fn of(p: &Problem) -> Self {
        let mut loops = canonical(p);
        let inner = loops[4];
        let contiguous = loops[..4].iter().rposition(|l| l.count > 1 && l.src == 1);
        let near = |l: Loop, run: i64| {
            (1..=picks::MOST).contains(&l.src)
                && (run..=picks::MOST).contains(&l.dst)
                && l.count > 1
        };
        let (walk, along) = match contiguous {
            _ if (inner.src, inner.dst) == (1, 1) => {
                let is_short = inner.count <= picks::MOST / 2 && near(loops[3], inner.count);
                (if is_short { Walk::Picks } else { Walk::Runs }, 3)
            }
            Some(along) if inner.dst == 1 => (Walk::Turn, along),
            _ if near(inner, 1) => {
                let one = Loop { count: 1, src: 1, dst: 1 };
                let around = std::mem::replace(&mut loops[3], ONCE);
                loops[4] = ONCE;
                return Self { outer: loops, around, along: inner, inner: one, walk: Walk::Picks };
            }
            _ => (Walk::Bytes, 3),
        };
        let along = std::mem::replace(&mut loops[along], ONCE);
        let around = match walk {
            Walk::Runs | Walk::Picks => std::mem::replace(&mut loops[2], ONCE),
            Walk::Turn | Walk::Bytes => ONCE,
        };
        loops[4] = ONCE;
        Self { outer: loops, around, along, inner, walk }
    }

    /// Where the outer loops stand on both sides after `turns` turns.
    fn offsets(&self, mut turns: i64) -> (i64, i64) {
        let (mut src, mut dst) = (0, 0);
        for l in self.outer.iter().rev() {
            let step = turns % l.count;
            turns /= l.count;
            src += step * l.src;
            dst += step * l.dst;
        }
        (src, dst)
    }
}

/// The dimensions of `p` as few loops, the smallest step in the result last; unused ones in front.
fn canonical(p: &Problem) -> [Loop; 5] {
    let mut given = [ONCE; 5];
    for (axis, place) in given.iter_mut().enumerate() {
        let count = p.dims[axis];
        *place = Loop { count, src: p.src_strides[axis], dst: p.dst_strides[axis] };
    }
    given.sort_by_key(|l| {
        std::cmp::Reverse(if l.count == 1 { u64::MAX } else { l.dst.unsigned_abs() })
    });
    let mut loops = [ONCE; 5];
    let mut at = 4;
    loops[at] = if given[4].count == 1 { Loop { count: 1, src: 1, dst: 1 } } else { given[4] };
    for l in given[..4].iter().rev().filter(|l| l.count > 1) {
        let inner = &mut loops[at];
        if l.src == inner.count * inner.src && l.dst == inner.count * inner.dst {
            inner.count *= l.count;
        } else {
            at -= 1;
            loops[at] = *l;
        }
    }
    loops
}

/// Runs `p`, a move of bytes.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let plan = Plan::of(p);
    let picks = (plan.walk == Walk::Picks).then(|| {
        // SAFETY: the processor is the caller's promise.
        unsafe { picks::Picks::new(plan.inner.count, [plan.along.src, plan.along.dst]) }
    });
    let inner = plan.inner.count.min(if plan.walk == Walk::Turn { 128 } else { PIECE });
    let along = plan.along.count.min(PIECE / inner);
    let around = plan.around.count.min(PIECE / (inner * along));
    let pieces = |count: i64, piece: i64| (count + piece - 1) / piece;
    let (inners, alongs) = (pieces(plan.inner.count, inner), pieces(plan.along.count, along));
    let arounds = pieces(plan.around.count, around);
    let units = plan.outer.iter().map(|l| l.count).product::<i64>() * arounds * alongs * inners;
    let units_a_chunk = split.units_a_chunk(units, 4 * inner * along * around);
    split.chunks(pieces(units, units_a_chunk), &|chunk, budget| {
        let first = chunk * units_a_chunk;
        for unit in first..(first + units_a_chunk).min(units) {
            budget.spend(4 * inner * along * around)?;
            let (turns, piece) = (unit / (alongs * inners), unit % (alongs * inners));
            let (j, i) = (piece / inners * along, piece % inners * inner);
            let (turns, k) = (turns / arounds, turns % arounds * around);
            let (src, dst) = plan.offsets(turns);
            let at = |step: fn(&Loop) -> i64| {
                k * step(&plan.around) + j * step(&plan.along) + i * step(&plan.inner)
            };
            let src = p.src.start + src + at(|l| l.src);
            let dst = p.dst.start + dst + at(|l| l.dst);
            let piece = Piece {
                src: p.src.memory.pointer(src, 1),
                dst: p.dst.memory.pointer(dst, 1),
                around: Loop { count: around.min(plan.around.count - k), ..plan.around },
                along: Loop { count: along.min(plan.along.count - j), ..plan.along },
                inner: Loop { count: inner.min(plan.inner.count - i), ..plan.inner },
                picks: picks.as_ref(),
                table: p.table.as_ref(),
            };
            // SAFETY: the processor is the caller's promise; the operands were checked to hold all
            // elements, of which the piece has some.
            unsafe { piece.run(plan.walk) };
        }
        Ok(())
    })
}

/// Some turns of the two inner loops.
struct Piece<'a> {
    src: *const u8,
    dst: *mut u8,
    around: Loop,
    along: Loop,
    inner: Loop,
    /// Of that walk.
    picks: Option<&'a picks::Picks>,
    table: Option<&'a [u8; 256]>,
}

impl Piece<'_> {
    /// # Safety
    /// On a processor with the vector instructions; every element lies in its operand, and `walk` fits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn run(&self, walk: Walk) {
        let table = self.table.map(|table| Lookup::new(table));
        match walk {
            Walk::Runs => {
                for k in 0..self.around.count {
                    let src = self.src.wrapping_offset(isize_of(k * self.around.src));
                    let dst = self.dst.wrapping_offset(isize_of(k * self.around.dst));
                    for j in 0..self.along.count {
                        let src = src.wrapping_offset(isize_of(j * self.along.src));
                        let dst = dst.wrapping_offset(isize_of(j * self.along.dst));
                        // SAFETY: the caller's promise.
                        unsafe { copy(src, dst, self.inner.count, table) };
                    }
                }
            }
            Walk::Picks => {
                let Some(picks) = self.picks else { return };
                for k in 0..self.around.count {
                    let src = self.src.wrapping_offset(isize_of(k * self.around.src));
                    let dst = self.dst.wrapping_offset(isize_of(k * self.around.dst));
                    // SAFETY: the caller's promise; the loops are near enough.
                    unsafe { picks.run(src, dst, self.along.count, table) };
                }
            }
            Walk::Turn => {
                for j in (0..self.along.count).step_by(16) {
                    for i in (0..self.inner.count).step_by(16) {
                        // SAFETY: the caller's promise; turn `(j, i)` exists.
                        unsafe { self.turn(j, i, table) };
                    }
                }
            }
            Walk::Bytes => {
                for j in 0..self.along.count {
                    for i in 0..self.inner.count {
                        let (from, to) = self.at(j, i);
                        // SAFETY: the caller's promise; others may write the byte meanwhile.
                        let code = unsafe { from.read_volatile() };
                        let code = self.table.map_or(code, |table| table[usize::from(code)]);
                        // SAFETY: as above, of the result.
                        unsafe { to.write_volatile(code) };
                    }
                }
            }
        }
    }

    #[inline]
    fn at(&self, j: i64, i: i64) -> (*const u8, *mut u8) {
        let src = isize_of(j * self.along.src + i * self.inner.src);
        let dst = isize_of(j * self.along.dst + i * self.inner.dst);
        (self.src.wrapping_offset(src), self.dst.wrapping_offset(dst))
    }

    /// A tile of up to 16 by 16 from `(j, i)` on.
    ///
    /// # Safety
    /// As of [`Self::run`], for [`Walk::Turn`]; turn `(j, i)` exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn turn(&self, j: i64, i: i64, table: Option<Lookup>) {
        let (alongs, inners) = (self.along.count - j, self.inner.count - i);
        let mut tile = [_mm_setzero_si128(); 16];
        let loads = mask_16(alongs);
        for (row, turn) in tile.iter_mut().zip(i..self.inner.count) {
            // SAFETY: the bytes of the mask are turns of `along`, contiguous in the source.
            let codes = unsafe { _mm_maskz_loadu_epi8(loads, self.at(j, turn).0.cast()) };
            *row = match table {
                Some(table) => _mm512_castsi512_si128(table.bytes(_mm512_zextsi128_si512(codes))),
                None => codes,
            };
        }
        let stores = mask_16(inners);
        for (column, turn) in turned(tile).into_iter().zip(j..self.along.count) {
            // SAFETY: the bytes of the mask are turns of `inner`, contiguous in the result.
            unsafe { store_16(self.at(turn, i).1, stores, column) };
        }
    }
}

/// A run of `len` bytes. What is shorter than a register goes as two halves that may overlap.
///
/// # Safety
/// On a processor with the vector instructions; the bytes are readable and writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn copy(src: *const u8, dst: *mut u8, len: i64, table: Option<Lookup>) {
    let through = |codes| table.map_or(codes, |table| table.bytes(codes));
    // SAFETY: the caller's promise, of `width` bytes from `at` on.
    let load = |at: i64, width| unsafe {
        load_masked_64(mask_64(width), src.wrapping_offset(isize_of(at)))
    };
    let store = |at: i64, width, codes| {
        // SAFETY: as above.
        unsafe { store_64(dst.wrapping_offset(isize_of(at)), mask_64(width), codes) };
    };
    match len {
        ..16 => store(0, len, through(load(0, len))),
        16..32 => {
            let (low, high) = (load(0, 16), load(len - 16, 16));
            store(0, 16, through(low));
            store(len - 16, 16, through(high));
        }
        32..64 => {
            let (low, high) = (load(0, 32), load(len - 32, 32));
            store(0, 32, through(low));
            store(len - 32, 32, through(high));
        }
        _ => {
            for at in (0..len - 63).step_by(64) {
                store(at, 64, through(load(at, 64)));
            }
            if len % 64 != 0 {
                store(len - 64, 64, through(load(len - 64, 64)));
            }
        }
    }
}
