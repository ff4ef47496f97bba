//! What the 36 products read of the weights: of each input and output, the 3x3 weights, mapped.

use super::{Grid, Line, Panel, first, room};
use crate::kernel::conv::avx512vnni::Job;
use crate::kernel::room::Room;
use crate::kernel::vector::{load_64, load_records};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm_setr_epi8, _mm256_loadu_si256,
    _mm512_add_epi16, _mm512_add_epi32, _mm512_broadcast_i32x4, _mm512_broadcast_i64x4,
    _mm512_dpwssd_epi32, _mm512_set1_epi16, _mm512_setzero_si512, _mm512_shuffle_epi8,
    _mm512_shuffle_i64x2, _mm512_slli_epi16, _mm512_srai_epi16, _mm512_store_si512,
    _mm512_sub_epi16,
};

/// Weights of some parts of panels: `[part][value][two inputs][blocks][16 outputs][2]`, of 16 bits, and behind
/// each part what its sums lack, `[blocks][16]`, of 32. Half a block is there twice.
pub(super) struct Weights {
    value_bytes: i64,
    part_bytes: i64,
    values: Room<Line>,
}

impl Weights {
    /// Places for `parts` of panels.
    pub(super) fn new(grid: &Grid, parts: i64) -> Self {
        let blocks = grid.most_blocks();
        // A line more: powers of two would all be in the same places of the level-1 cache.
        let value_bytes = grid.inputs_a_part * 32 * blocks + 64;
        let part_bytes = 36 * value_bytes + 64 * blocks;
        let values = room(usize_of((parts * part_bytes).unsigned_abs()));
        Self { value_bytes, part_bytes, values }
    }

    /// Offset of the matrix of `value` of the part at place `at`.
    fn offset(&self, at: i64, value: i64) -> isize {
        isize_of(at * self.part_bytes + value * self.value_bytes)
    }

    pub(super) fn matrix(&self, at: i64, value: usize) -> *const u8 {
        let first = first(&self.values).cast_const().wrapping_offset(self.offset(at, 0));
        first.wrapping_offset(value.cast_signed().wrapping_mul(isize_of(self.value_bytes)))
    }

    /// What the sums of a part lack.
    pub(super) fn offsets(&self, at: i64) -> *const u8 {
        first(&self.values).cast_const().wrapping_offset(self.offset(at, 36))
    }

    /// Puts the weights of `part` of `panel` at place `at`.
    ///
    /// # Safety
    /// As of [`super::run`]; panel, part and place exist, and nobody else has to do with the place now.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn fill(
        &self,
        job: &Job<'_>,
        grid: &Grid,
        (panel, part): (&Panel, i64),
        at: i64,
    ) {
        let tap_bytes = isize_of(64 * job.steps);
        let value_bytes = isize_of(self.value_bytes);
        let row_bytes = isize_of(64 * panel.blocks);
        let to = first(&self.values).wrapping_offset(self.offset(at, 0));
        let first_step = part * grid.inputs_a_part / 4;
        for block in 0..panel.blocks {
            let number = panel.first_block + block;
            let to = to.wrapping_offset(isize_of(64 * block));
            let map = if panel.is_half(block) { map::<true> } else { map::<false> };
            let from = isize_of(number * job.block_bytes + 64 * first_step);
            let from = job.weights.wrapping_offset(from);
            let mut sums = _mm512_setzero_si512();
            for step in 0..isize_of(grid.inputs(job, part) / 4) {
                let from = from.wrapping_offset(64 * step);
                let places = (to.wrapping_offset(2 * row_bytes * step), value_bytes, row_bytes);
                // SAFETY: the weights of a step of each tap, and two steps' places.
                unsafe { map((from, tap_bytes), places, &mut sums) };
            }
            if part == 0 {
                let records = job.records.wrapping_offset(isize_of(number * 256));
                // SAFETY: the records of each block are sixteen.
                let (mut bias, _) = unsafe { load_records(records) };
                if panel.is_half(block) {
                    bias = low_twice(bias);
                }
                sums = _mm512_add_epi32(sums, bias);
            }
            let to = to.wrapping_offset(isize_of(36 * self.value_bytes));
            // SAFETY: the place behind the part's values.
            unsafe { _mm512_store_si512(to.cast(), sums) };
        }
    }
}

/// The lower half of a vector, twice.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
pub(super) fn low_twice(vector: __m512i) -> __m512i {
    _mm512_shuffle_i64x2::<0b01_00_01_00>(vector, vector)
}

/// Maps the weights of four inputs for 16 outputs, so many bytes from one tap to the next, and adds 128 times
/// them to `sums`: inputs come less 128. They go to `to`, so many bytes from one value to the next, and from
/// one two inputs to the next. With `HALF`, 8 outputs twice.
///
/// # Safety
/// Vector instructions present; 64 bytes are readable at each tap, 32 with `HALF`, and 64 writable in both
/// steps of each value, aligned.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn map<const HALF: bool>(
    (from, tap_bytes): (*const u8, isize),
    (to, value_bytes, row_bytes): (*mut u8, isize, isize),
    sums: &mut __m512i,
) {
    let mut taps = [_mm512_setzero_si512(); 9];
    for (tap, at) in taps.iter_mut().zip(0..) {
        let from = from.wrapping_offset(tap_bytes.wrapping_mul(at));
        *tap = if HALF {
            // SAFETY: the caller's promise.
            _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(from.cast()) })
        } else {
            // SAFETY: as above.
            unsafe { load_64(from) }
        };
        // A hint, which reads nothing: taps are too many rows of memory to come by themselves.
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(256).cast());
        // The same of the next block's, which may come from memory.
        _mm_prefetch::<_MM_HINT_T1>(from.wrapping_offset(tap_bytes.wrapping_mul(9)).cast());
    }
    // Of an output's four inputs, the first two or the last, each in the upper half of 16 bits.
    let pairs = [
        _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13),
        _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15),
    ];
    for (pair, at) in pairs.into_iter().zip(0..) {
        let pair = _mm512_broadcast_i32x4(pair);
        let wide = |tap: usize| _mm512_srai_epi16::<8>(_mm512_shuffle_epi8(taps[tap], pair));
        let row = |row: usize| six([wide(3 * row), wide(3 * row + 1), wide(3 * row + 2)]);
        let rows = [row(0), row(1), row(2)];
        let to = to.wrapping_offset(row_bytes * at);
        // One by one: in a loop, all rows live in memory, and are moved there from column to column.
        macro_rules! column {
            ($column:literal) => {
                let values = six(rows.map(|row| row[$column]));
                if $column == 1 {
                    // In this place, the plain sum of all nine.
                    *sums = _mm512_dpwssd_epi32(*sums, values[1], _mm512_set1_epi16(128));
                }
                for (row, value) in values.into_iter().enumerate() {
                    let place = value_bytes.wrapping_mul((6 * row + $column).cast_signed());
                    let to = to.wrapping_offset(place);
                    // SAFETY: the caller's promise.
                    unsafe { _mm512_store_si512(to.cast(), value) };
                }
            };
        }
        column!(0);
        column!(1);
        column!(2);
        column!(3);
        column!(4);
        column!(5);
    }
}

/// The map of three weights.
///
/// ```text
/// 6  0  0
/// 1  1  1
/// 1 -1  1
/// 1  2  4
/// 1 -2  4
/// 0  0  6
/// ```
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn six([a, b, c]: [__m512i; 3]) -> [__m512i; 6] {
    let (add, sub) = (_mm512_add_epi16, _mm512_sub_epi16);
    let twice = |x| _mm512_slli_epi16::<1>(x);
    let of_six = |x| add(twice(x), _mm512_slli_epi16::<2>(x));
    let outer = add(a, c);
    let wide = add(a, _mm512_slli_epi16::<2>(c));
    [of_six(a), add(outer, b), sub(outer, b), add(wide, twice(b)), sub(wide, twice(b)), of_six(c)]
}
