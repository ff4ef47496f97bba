//! What becomes of the 36 products of a tile: 4x4 sums, and through the output stage codes.

use super::{Grid, Line, PANEL, TILE, VALUES, room};
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{Job, ROOM, finish};
use crate::kernel::room::Room;
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{load_64, load_records};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_mullo_epi32, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_srai_epi32, _mm512_store_si512, _mm512_sub_epi32,
};

/// The inverse of 9 modulo 2^32.
const NINTH: u32 = 0x38e3_8e39;
const _: () = assert!(NINTH.wrapping_mul(9) == 1);

/// Bytes of a tile's sums: 16 pixels of two vectors.
const SUMS: i64 = 16 * 128;

/// Bytes from one tile's products to the next's. A line more than they are: powers of two would all be in the
/// same places of the level-1 cache.
pub(super) const TILE_PRODUCTS: usize = VALUES * 128 + 64;

/// Products and sums of a panel, of some tiles.
pub(super) struct Outputs {
    /// `[tile][value][two blocks][16]`.
    products: Room<Line>,
    /// `[tile][pixel][two blocks][16]`.
    sums: Room<Line>,
}

impl Outputs {
    /// Room for `tiles`.
    pub(super) fn new(tiles: i64) -> Self {
        let tile_products = i64::try_from(TILE_PRODUCTS).expect("some KiB");
        Self { products: room(tile_products * tiles), sums: room(SUMS * tiles) }
    }

    /// Where product number `value` of `tile` goes.
    pub(super) fn products(&mut self, value: usize, tile: i64) -> *mut u8 {
        let at =
            TILE_PRODUCTS.wrapping_mul(usize_of(tile.unsigned_abs())).wrapping_add(128 * value);
        self.products.as_mut_ptr().cast::<u8>().wrapping_add(at)
    }

    fn sums_of(&mut self, tile: i64) -> *mut u8 {
        self.sums.as_mut_ptr().cast::<u8>().wrapping_offset(isize_of(SUMS * tile))
    }

    /// Makes sums of a tile's products and `offsets`, and adds those that are there unless it `is_first`.
    ///
    /// # Safety
    /// Vector instructions present; the tile has its products, and sums unless it `is_first`, and two vectors
    /// are readable at `offsets`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn sums(&mut self, offsets: *const u8, tile: i64, is_first: bool) {
        let ninth = _mm512_set1_epi32(NINTH.cast_signed());
        for block in [0, 64] {
            let from = self.products(0, tile).wrapping_add(block);
            let to = self.sums_of(tile).wrapping_add(block);
            // SAFETY: the caller's promise.
            let offset = unsafe { load_64(offsets.wrapping_add(block)) };
            let mut rows = [[_mm512_setzero_si512(); 4]; 6];
            for (row, at) in rows.iter_mut().zip(0..) {
                let mut values = [_mm512_setzero_si512(); 6];
                for (value, column) in values.iter_mut().zip(0..) {
                    // SAFETY: a product of the tile.
                    *value = unsafe { load_64(from.wrapping_add(128 * (6 * at + column))) };
                }
                *row = four(values);
            }
            for column in 0..4 {
                let sums = four(rows.map(|row| row[column]));
                for (row, sum) in sums.into_iter().enumerate() {
                    let sum = shifted(_mm512_mullo_epi32(sum, ninth), SHIFTS[row] + SHIFTS[column]);
                    let to = to.wrapping_add(128 * (4 * row + column));
                    let mut sum = _mm512_add_epi32(sum, offset);
                    if !is_first {
                        // SAFETY: a sum of the tile.
                        sum = _mm512_add_epi32(sum, unsafe { load_64(to) });
                    }
                    // SAFETY: its place, aligned.
                    unsafe { _mm512_store_si512(to.cast(), sum) };
                }
            }
        }
    }

    /// Passes the sums of a tile through the output stage: tile `at` here, which is number `number` of
    /// the problem.
    ///
    /// # Safety
    /// As of [`super::run`]; the tile exists and has its sums.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn finish(
        &mut self,
        job: &Job<'_>,
        grid: &Grid,
        stage: &Stage,
        pixels: &mut Pixels,
        [number, at, panel]: [i64; 3],
    ) {
        let (row, column) = (number / grid.columns, number % grid.columns);
        let (n, row) = (row / grid.rows, row % grid.rows);
        let (y, x) = (row * TILE, column * TILE);
        let (height, width) = ((job.ofm_h - y).min(TILE), (job.ofm_w - x).min(TILE));
        let sums = self.sums_of(at);
        let mut count = 0;
        for i in 0..height {
            let mut out = job.ofm.at(n, y + i, x);
            let (mut aux, aux_pixel) = match &job.aux {
                Some(aux) => (aux.at(n, y + i, x), aux.pixel),
                None => (std::ptr::null_mut(), 0),
            };
            for j in 0..width {
                (pixels.out[count], pixels.aux[count]) = (out, aux);
                out = out.wrapping_offset(job.ofm.pixel);
                aux = aux.wrapping_offset(aux_pixel);
                let place = usize_of((TILE * i + j).unsigned_abs());
                if place != count {
                    for block in [0, 64] {
                        // SAFETY: sums of the tile.
                        let sum = unsafe { load_64(sums.wrapping_add(128 * place + block)) };
                        let to = sums.wrapping_add(128 * count + block);
                        // SAFETY: the place of sums that were moved before.
                        unsafe { _mm512_store_si512(to.cast(), sum) };
                    }
                }
                count += 1;
            }
        }
        pixels.count = count;
        let last = pixels.aux[count - 1];
        pixels.aux[count..ROOM].fill(last);
        let records = job.records.wrapping_offset(isize_of(panel * PANEL * 16));
        // SAFETY: blocks are whole, so the records of each are sixteen.
        let multipliers =
            [0, 256].map(|block| unsafe { load_records(records.wrapping_add(block)) }.1);
        // SAFETY: two vectors a pixel.
        let sums = unsafe { std::slice::from_raw_parts(sums.cast(), count.div_ceil(2)) };
        let lanes = (panel * PANEL, job.problem.group_outputs - panel * PANEL);
        // SAFETY: the pixels lie in the problem, and so does the panel.
        unsafe { finish::finish(stage, sums, &multipliers, pixels, lanes) };
    }
}

/// Powers of two in what [`four`] makes, by row or column.
const SHIFTS: [u32; 4] = [3, 2, 1, 1];

/// `sum` without so many powers of two.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn shifted(sum: __m512i, shift: u32) -> __m512i {
    match shift {
        2 => _mm512_srai_epi32::<2>(sum),
        3 => _mm512_srai_epi32::<3>(sum),
        4 => _mm512_srai_epi32::<4>(sum),
        5 => _mm512_srai_epi32::<5>(sum),
        _ => _mm512_srai_epi32::<6>(sum),
    }
}

/// The map of six products: 24, 12, 6 and 6 times four sums.
///
/// ```text
/// 1  4  4  1  1  0
/// 0  2 -2  1 -1  0
/// 0  1  1  1  1  0
/// 0  1 -1  2 -2  1
/// ```
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn four([a, b, c, d, e, f]: [__m512i; 6]) -> [__m512i; 4] {
    let (add, sub) = (_mm512_add_epi32, _mm512_sub_epi32);
    let twice = |x| _mm512_slli_epi32::<1>(x);
    let (near, far) = (add(b, c), add(d, e));
    let (near_step, far_step) = (sub(b, c), sub(d, e));
    [
        add(add(a, far), _mm512_slli_epi32::<2>(near)),
        add(twice(near_step), far_step),
        add(near, far),
        add(add(near_step, f), twice(far_step)),
    ]
}
