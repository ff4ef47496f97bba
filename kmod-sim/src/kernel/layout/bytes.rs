//! LAYOUT of bytes to bytes on AVX-512, through a table where there is one; takes every such problem.
//!
//! The five dimensions become as few loops as say the same, the one with the smallest steps in the
//! result innermost. With the loop next to it, it is walked in pieces:
//!
//! - contiguous on both sides: runs of 64;
//! - contiguous in the result, another loop contiguous in the source: tiles of 16 by 16, turned in
//!   registers;
//! - anything else: byte by byte.

use crate::kernel::Stop;
use crate::kernel::layout::Problem;
use crate::kernel::split::Split;
use crate::kernel::vector::{Lookup, load_masked_64, mask_16, mask_64, store_16, store_64};
use crate::memory::isize_of;
use std::arch::x86_64::{
    __m128i, _mm_maskz_loadu_epi8, _mm_setzero_si128, _mm_unpackhi_epi8, _mm_unpacklo_epi8,
    _mm512_castsi512_si128, _mm512_zextsi128_si512,
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
    Turn,
    Bytes,
}

/// Loops from the outermost; the last two are `along` and `inner`.
struct Plan {
    outer: [Loop; 5],
    along: Loop,
    inner: Loop,
    walk: Walk,
}

impl Plan {
    fn of(p: &Problem) -> Self {
        let mut loops = canonical(p);
        let inner = loops[4];
        let contiguous = loops[..4].iter().rposition(|l| l.count > 1 && l.src == 1);
        let (walk, along) = match contiguous {
            _ if (inner.src, inner.dst) == (1, 1) => (Walk::Runs, 3),
            Some(along) if inner.dst == 1 => (Walk::Turn, along),
            _ => (Walk::Bytes, 3),
        };
        let along = std::mem::replace(&mut loops[along], ONCE);
        loops[4] = ONCE;
        Self { outer: loops, along, inner, walk }
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
    let inner = plan.inner.count.min(if plan.walk == Walk::Turn { 128 } else { PIECE });
    let along = plan.along.count.min(PIECE / inner);
    let pieces = |count: i64, piece: i64| (count + piece - 1) / piece;
    let (inners, alongs) = (pieces(plan.inner.count, inner), pieces(plan.along.count, along));
    let units = plan.outer.iter().map(|l| l.count).product::<i64>() * alongs * inners;
    let units_a_chunk = split.units_a_chunk(units, 4 * inner * along);
    split.chunks(pieces(units, units_a_chunk), &|chunk, budget| {
        let first = chunk * units_a_chunk;
        for unit in first..(first + units_a_chunk).min(units) {
            budget.spend(4 * inner * along)?;
            let (turns, piece) = (unit / (alongs * inners), unit % (alongs * inners));
            let (j, i) = (piece / inners * along, piece % inners * inner);
            let (src, dst) = plan.offsets(turns);
            let src = p.src.start + src + j * plan.along.src + i * plan.inner.src;
            let dst = p.dst.start + dst + j * plan.along.dst + i * plan.inner.dst;
            let piece = Piece {
                src: p.src.memory.pointer(src, 1),
                dst: p.dst.memory.pointer(dst, 1),
                along: Loop { count: along.min(plan.along.count - j), ..plan.along },
                inner: Loop { count: inner.min(plan.inner.count - i), ..plan.inner },
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
    along: Loop,
    inner: Loop,
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
                for j in 0..self.along.count {
                    // SAFETY: the caller's promise.
                    unsafe { self.copy(j, table) };
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

    /// A run.
    ///
    /// # Safety
    /// As of [`Self::run`], for [`Walk::Runs`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn copy(&self, j: i64, table: Option<Lookup>) {
        for i in (0..self.inner.count).step_by(64) {
            let (from, to) = self.at(j, i);
            let mask = mask_64(self.inner.count - i);
            // SAFETY: the bytes of `mask` lie in the run.
            let mut codes = unsafe { load_masked_64(mask, from) };
            if let Some(table) = table {
                codes = table.bytes(codes);
            }
            // SAFETY: as above, of the result.
            unsafe { store_64(to, mask, codes) };
        }
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
        for (column, turn) in transposed(tile).into_iter().zip(j..self.along.count) {
            // SAFETY: the bytes of the mask are turns of `inner`, contiguous in the result.
            unsafe { store_16(self.at(turn, i).1, stores, column) };
        }
    }
}

/// Byte `i` of row `j` to byte `j` of row `i`: each step turns the eight bits of the two by one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn transposed(mut rows: [__m128i; 16]) -> [__m128i; 16] {
    for _ in 0..4 {
        let before = rows;
        for i in 0..8 {
            rows[2 * i] = _mm_unpacklo_epi8(before[i], before[i + 8]);
            rows[2 * i + 1] = _mm_unpackhi_epi8(before[i], before[i + 8]);
        }
    }
    rows
}
