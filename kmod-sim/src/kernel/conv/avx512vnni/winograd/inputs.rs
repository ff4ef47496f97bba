//! What the 36 products read of the inputs: of each tile, the 6x6 pixels that its windows cover, mapped.

use super::{COVERED, Grid, LANES, Line, TILE, VALUES, room};
use crate::kernel::conv::avx512vnni::Job;
use crate::kernel::room::Room;
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512i, _mm256_loadu_si256, _mm512_add_epi16, _mm512_cvtepu8_epi16, _mm512_set1_epi16,
    _mm512_setzero_si512, _mm512_slli_epi16, _mm512_store_si512, _mm512_sub_epi16,
};

/// The place of the value that depends on what is added to all pixels: all other rows of the map sum to 0.
const CONSTANT: usize = 7;

/// What 128 more in each pixel adds to that value.
const OF_128: i16 = 128 * 36;

/// Values of tiles `first .. first + count`: `[part][value][tile][input]`, of 16 bits.
pub(super) struct Inputs {
    pub(super) first: i64,
    pub(super) count: i64,
    /// From one tile to the next.
    pub(super) tile_bytes: isize,
    /// From one of the 36 to the next.
    value_bytes: isize,
    values: Room<Line>,
}

impl Inputs {
    /// # Safety
    /// As of [`super::run`]; the tiles exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn new(job: &Job<'_>, grid: &Grid, first: i64, count: i64) -> Self {
        let tile_bytes = 2 * grid.inputs_a_part;
        // A line more: powers of two would all be in the same places of the level-1 cache.
        let value_bytes = count * tile_bytes + 64;
        let mut values = room(grid.parts * 36 * value_bytes);
        let base = values.as_mut_ptr().cast::<u8>();
        let inputs = Self {
            first,
            count,
            tile_bytes: isize_of(tile_bytes),
            value_bytes: isize_of(value_bytes),
            values,
        };
        for tile in 0..count {
            let pixels = covered(job, grid, first + tile);
            for vector in 0..job.problem.group_inputs / LANES {
                let (part, lane) =
                    (vector * LANES / grid.inputs_a_part, vector * LANES % grid.inputs_a_part);
                let to = inputs.offset(part, 0, tile).wrapping_add(2 * isize_of(lane));
                let from = isize_of(vector * LANES);
                // SAFETY: `LANES` inputs of pixels, and room for their values.
                unsafe { map(&pixels, from, base.wrapping_offset(to), inputs.value_bytes) };
            }
        }
        inputs
    }

    fn offset(&self, part: i64, value: usize, tile: i64) -> isize {
        let value = isize_of(36 * part).wrapping_add(value.cast_signed());
        value
            .wrapping_mul(self.value_bytes)
            .wrapping_add(isize_of(tile).wrapping_mul(self.tile_bytes))
    }

    /// Value number `value` of the inputs of `part`, of a tile counted from the first one here.
    pub(super) fn at(&self, part: i64, value: usize, tile: i64) -> *const u8 {
        self.values.as_ptr().cast::<u8>().wrapping_offset(self.offset(part, value, tile))
    }
}

/// The pixels that the windows of a tile cover, by rows; zero points in the padding.
fn covered(job: &Job<'_>, grid: &Grid, tile: i64) -> [*const u8; VALUES] {
    let (row, column) = (tile / grid.columns, tile % grid.columns);
    let (n, row) = (row / grid.rows, row % grid.rows);
    let mut pixels = [job.padding.as_ptr(); VALUES];
    let (y, x) = (job.window.row(row * TILE, 0), job.window.column(column * TILE, 0));
    // Columns and rows of the square that are in the input.
    let (left, right) = ((-x).clamp(0, COVERED), (job.ifm_w - x).clamp(0, COVERED));
    let (top, bottom) = ((-y).clamp(0, COVERED), (job.ifm_h - y).clamp(0, COVERED));
    for i in top..bottom {
        for j in left..right {
            pixels[usize_of((i * COVERED + j).unsigned_abs())] = job.ifm.at(n, y + i, x + j);
        }
    }
    pixels
}

/// Maps 32 inputs of a square of pixels; each of the 36 values goes `value_bytes` behind the one before.
///
/// # Safety
/// Vector instructions present; 32 bytes are readable `from` bytes behind each address, and 64 writable at
/// each place of a value, aligned.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn map(pixels: &[*const u8; VALUES], from: isize, to: *mut u8, value_bytes: isize) {
    let mut rows = [[_mm512_setzero_si512(); 6]; 6];
    for (row, pixels) in rows.iter_mut().zip(pixels.as_chunks::<6>().0) {
        // SAFETY: the caller's promise.
        let load = |at: *const u8| unsafe { _mm256_loadu_si256(at.wrapping_offset(from).cast()) };
        *row = six(pixels.map(|at| _mm512_cvtepu8_epi16(load(at))));
    }
    for column in 0..6 {
        let mut values = six(rows.map(|row| row[column]));
        if column == CONSTANT % 6 {
            let row = CONSTANT / 6;
            values[row] = _mm512_sub_epi16(values[row], _mm512_set1_epi16(OF_128));
        }
        for (row, value) in values.into_iter().enumerate() {
            let place = value_bytes.wrapping_mul((6 * row + column).cast_signed());
            // SAFETY: the caller's promise.
            unsafe { _mm512_store_si512(to.wrapping_offset(place).cast(), value) };
        }
    }
}

/// The map of six pixels.
///
/// ```text
/// 4  0 -5  0  1  0
/// 0  4  4 -1 -1  0
/// 0 -4  4  1 -1  0
/// 0 -2 -1  2  1  0
/// 0  2 -1 -2  1  0
/// 0  4  0 -5  0  1
/// ```
/// Of codes in rows and columns, no value leaves 16 bits: the coefficients of one sign sum to 68 at most.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn six([a, b, c, d, e, f]: [__m512i; 6]) -> [__m512i; 6] {
    let (add, sub) = (_mm512_add_epi16, _mm512_sub_epi16);
    let four = |x| _mm512_slli_epi16::<2>(x);
    let (e_c, d_b) = (sub(e, c), sub(d, b));
    let twice = _mm512_slli_epi16::<1>(d_b);
    [
        add(four(sub(a, c)), e_c),
        sub(four(add(b, c)), add(d, e)),
        add(four(sub(c, b)), sub(d, e)),
        add(e_c, twice),
        sub(e_c, twice),
        sub(sub(f, d), four(d_b)),
    ]
}
