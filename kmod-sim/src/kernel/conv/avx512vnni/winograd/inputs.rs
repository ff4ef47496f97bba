//! What the 36 products read of the inputs: of each tile, the 6x6 pixels that its windows cover, mapped.

use super::{COVERED, Grid, HALF, LANES, Line, TILE, first, room};
use crate::kernel::conv::avx512vnni::Job;
use crate::kernel::room::Room;
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512i, _mm_loadu_si128, _mm256_castsi128_si256, _mm256_inserti128_si256, _mm256_loadu_si256,
    _mm256_store_si256, _mm512_add_epi16, _mm512_castsi512_si256, _mm512_cvtepu8_epi16,
    _mm512_extracti64x4_epi64, _mm512_set1_epi16, _mm512_slli_epi16, _mm512_store_si512,
    _mm512_sub_epi16,
};

/// The place of the value that depends on what is added to all pixels: all other rows of the map sum to 0.
const CONSTANT: usize = 7;

/// What 128 more in each pixel adds to that value.
const OF_128: i16 = 128 * 36;

/// Values of some tiles: `[part][value][tile][input]`, of 16 bits.
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
    /// Room for `tiles`.
    pub(super) fn new(grid: &Grid, tiles: i64) -> Self {
        let tile_bytes = (2 * grid.inputs_a_part + 63) / 64 * 64;
        // Pairs are whole. A line more: powers of two would all be in the same places of the level-1 cache.
        let value_bytes = (tiles + tiles % 2) * tile_bytes + 64;
        Self {
            first: 0,
            count: 0,
            tile_bytes: isize_of(tile_bytes),
            value_bytes: isize_of(value_bytes),
            values: room(usize_of((grid.parts * 36 * value_bytes).unsigned_abs())),
        }
    }

    /// Puts tiles `first .. first + count` here; the last one twice where they are odd.
    ///
    /// # Safety
    /// As of [`super::run`]; the tiles exist, and there is room for them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn fill(&mut self, job: &Job<'_>, grid: &Grid, first: i64, count: i64) {
        self.be_for(first, count);
        for pair in 0..self.pairs() {
            // SAFETY: the caller's promise; it has them for itself.
            unsafe { self.fill_pair(job, grid, pair) };
        }
    }

    /// Tiles `first .. first + count` will be put here.
    pub(super) fn be_for(&mut self, first: i64, count: i64) {
        (self.first, self.count) = (first, count);
    }

    /// Pairs of the tiles; in the last one a tile may be there twice.
    pub(super) fn pairs(&self) -> i64 {
        (self.count + 1) / 2
    }

    /// Puts two of the tiles here.
    ///
    /// # Safety
    /// As of [`super::run`]; the tiles and the pair exist, there is room for them, and nobody else has to do with
    /// this pair now.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn fill_pair(&self, job: &Job<'_>, grid: &Grid, pair: i64) {
        let lanes = job.problem.group_inputs;
        let mut pixels = [[[std::ptr::null(); 6]; 6]; 2];
        let tiles = [2 * pair, 2 * pair + 1];
        for (pixels, tile) in pixels.iter_mut().zip(tiles) {
            cover(job, grid, self.first + tile.min(self.count - 1), pixels);
        }
        let mut lane = 0;
        while lanes - lane > HALF {
            for (pixels, tile) in pixels.iter().zip(tiles) {
                let to = self.place(grid, lane, tile);
                // SAFETY: `LANES` inputs of pixels, and room for their values.
                unsafe { map(pixels, isize_of(lane), to, self.value_bytes) };
            }
            lane += LANES;
        }
        if lane < lanes {
            let to = tiles.map(|tile| self.place(grid, lane, tile));
            // SAFETY: half as many inputs, and room for the values of them.
            unsafe { map_halves(&pixels, isize_of(lane), to, self.value_bytes) };
        }
    }

    /// Where the first value of input `lane` of a tile goes.
    fn place(&self, grid: &Grid, lane: i64, tile: i64) -> *mut u8 {
        let (part, lane) = (lane / grid.inputs_a_part, lane % grid.inputs_a_part);
        let to = self.offset(part, 0, tile).wrapping_add(2 * isize_of(lane));
        first(&self.values).wrapping_offset(to)
    }

    fn offset(&self, part: i64, value: usize, tile: i64) -> isize {
        let value = isize_of(36 * part).wrapping_add(value.cast_signed());
        value
            .wrapping_mul(self.value_bytes)
            .wrapping_add(isize_of(tile).wrapping_mul(self.tile_bytes))
    }

    /// Value number `value` of the inputs of `part`, of a tile counted from the first one here.
    pub(super) fn at(&self, part: i64, value: usize, tile: i64) -> *const u8 {
        first(&self.values).cast_const().wrapping_offset(self.offset(part, value, tile))
    }
}

/// Puts the pixels that the windows of a tile cover into `pixels`, by rows; zero points in the padding.
fn cover(job: &Job<'_>, grid: &Grid, tile: i64, pixels: &mut [[*const u8; 6]; 6]) {
    let (row, column) = (tile / grid.columns, tile % grid.columns);
    let (n, row) = (row / grid.rows, row % grid.rows);
    let (y, x) = (job.window.row(row * TILE, 0), job.window.column(column * TILE, 0));
    let mut at = job.ifm.at(n, y, x).cast_const();
    let inside = y >= 0 && x >= 0 && y + COVERED <= job.ifm_h && x + COVERED <= job.ifm_w;
    for (row, y) in pixels.iter_mut().zip(y..) {
        let mut pixel = at;
        for (address, x) in row.iter_mut().zip(x..) {
            let exists = inside || (0..job.ifm_h).contains(&y) && (0..job.ifm_w).contains(&x);
            *address = if exists { pixel } else { job.padding.as_ptr() };
            pixel = pixel.wrapping_offset(job.ifm.pixel);
        }
        at = at.wrapping_offset(job.ifm.row);
    }
}

/// The map of a square of pixels that `$load` loads; `$store` has each of the 36 values, and its number.
macro_rules! square {
    ($load:expr, $store:expr) => {{
        let (load, store) = ($load, $store);
        // One by one: in a loop, all rows live in memory, and are moved there from column to column.
        let rows = [
            six(load(0)),
            six(load(1)),
            six(load(2)),
            six(load(3)),
            six(load(4)),
            six(load(5)),
        ];
        macro_rules! column {
            ($column:literal) => {
                let mut values = six(rows.map(|row| row[$column]));
                if $column == CONSTANT % 6 {
                    let value = &mut values[CONSTANT / 6];
                    *value = _mm512_sub_epi16(*value, _mm512_set1_epi16(OF_128));
                }
                for (row, value) in values.into_iter().enumerate() {
                    store((6 * row + $column).cast_signed(), value);
                }
            };
        }
        column!(0);
        column!(1);
        column!(2);
        column!(3);
        column!(4);
        column!(5);
    }};
}

/// Maps 32 inputs of a square of pixels; each of the 36 values goes `value_bytes` behind the one before.
///
/// # Safety
/// Vector instructions present; 32 bytes are readable `from` bytes behind each address, and 64 writable at
/// each place of a value, aligned.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn map(pixels: &[[*const u8; 6]; 6], from: isize, to: *mut u8, value_bytes: isize) {
    square!(
        |row: usize| pixels[row].map(|at| {
            // SAFETY: the caller's promise.
            let codes = unsafe { _mm256_loadu_si256(at.wrapping_offset(from).cast()) };
            _mm512_cvtepu8_epi16(codes)
        }),
        |place: isize, value| {
            let to = to.wrapping_offset(value_bytes.wrapping_mul(place));
            // SAFETY: the caller's promise.
            unsafe { _mm512_store_si512(to.cast(), value) };
        }
    );
}

/// The same of 16 inputs of two squares.
///
/// # Safety
/// As of [`map`], for half as many bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn map_halves(
    pixels: &[[[*const u8; 6]; 6]; 2],
    from: isize,
    to: [*mut u8; 2],
    value_bytes: isize,
) {
    square!(
        |row: usize| std::array::from_fn(|column| {
            let [low, high] = [pixels[0][row][column], pixels[1][row][column]];
            // SAFETY: the caller's promise.
            let low = unsafe { _mm_loadu_si128(low.wrapping_offset(from).cast()) };
            // SAFETY: as above.
            let high = unsafe { _mm_loadu_si128(high.wrapping_offset(from).cast()) };
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
            _mm512_cvtepu8_epi16(both)
        }),
        |place: isize, value| {
            let [low, high] = to.map(|to| to.wrapping_offset(value_bytes.wrapping_mul(place)));
            let of_low = _mm512_castsi512_si256(value);
            let of_high = _mm512_extracti64x4_epi64::<1>(value);
            // SAFETY: the caller's promise.
            unsafe { _mm256_store_si256(low.cast(), of_low) };
            // SAFETY: as above.
            unsafe { _mm256_store_si256(high.cast(), of_high) };
        }
    );
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
    let (c_e, b_d) = (sub(four(c), e), sub(four(b), d));
    let (e_c, d_b) = (sub(e, c), sub(d, b));
    let twice = add(d_b, d_b);
    [
        sub(sub(four(a), c), c_e),
        add(c_e, b_d),
        sub(c_e, b_d),
        add(e_c, twice),
        sub(e_c, twice),
        sub(sub(f, d), add(twice, twice)),
    ]
}
