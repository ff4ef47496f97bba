//! What becomes of the 36 products of a tile: 4x4 sums, and through the output stage codes.

use super::product::unit_bytes;
use super::weights::low_twice;
use super::{Grid, Line, MOST_TILES, Panel, TILE, room};
use crate::kernel::conv::avx512vnni::Job;
use crate::kernel::conv::avx512vnni::finish::{
    BARE, PLAIN, SUM, SUM_AUX_FIRST, TABLE, TABLES, bytes,
};
use crate::kernel::room::Room;
use crate::kernel::vector::stage::{Kind, Stage};
use crate::kernel::vector::{load_64, load_records};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_loadl_epi64, _mm_setzero_si128, _mm_storel_epi64,
    _mm_storeu_si128, _mm_unpackhi_epi64, _mm_unpacklo_epi64, _mm512_add_epi32,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_castsi512_si128, _mm512_extracti32x4_epi32,
    _mm512_mullo_epi32, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_srai_epi32,
    _mm512_store_si512, _mm512_sub_epi32,
};

/// The inverse of 9 modulo 2^32.
const NINTH: u32 = 0x38e3_8e39;
const _: () = assert!(NINTH.wrapping_mul(9) == 1);

/// Bytes of a vector's sums: of 16 pixels.
const SUMS: usize = 16 * 64;

/// Instead of a kind of stages: sums stay sums, as more inputs are to come.
const PARTIAL: u8 = u8::MAX;

/// Products and sums of a panel, of some units of tiles.
pub(super) struct Outputs {
    /// `[unit][value][vector][16]`.
    products: Room<Line>,
    /// `[unit][vector][pixel][16]`, where inputs have several parts.
    sums: Room<Line>,
}

impl Outputs {
    /// Room for so many tiles' sums, and for the products of at most [`MOST_TILES`] of them.
    pub(super) fn new(grid: &Grid, tiles: i64) -> Self {
        let vectors = grid.panel(0).vectors();
        let sums = if grid.parts > 1 { tiles } else { 0 };
        Self {
            products: room(usize_of(tiles.min(MOST_TILES).unsigned_abs()) * unit_bytes(vectors)),
            sums: room(usize_of(sums.unsigned_abs()) * vectors * SUMS),
        }
    }

    /// Where product number `value` of `unit` goes, of a panel's.
    pub(super) fn products(&mut self, panel: &Panel, value: usize, unit: i64) -> *mut u8 {
        let vectors = panel.vectors();
        let at = unit_bytes(vectors) * usize_of(unit.unsigned_abs()) + 64 * vectors * value;
        self.products.as_mut_ptr().cast::<u8>().wrapping_add(at)
    }

    /// Makes sums of the products of `count` tiles from `first` on, counted from tile `start` of the problem on, and
    /// of what they lack, and codes of those behind the last part.
    ///
    /// # Safety
    /// As of [`super::run`]; the tiles exist and have their products of `part`, and those before it their sums.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn finish(
        &mut self,
        job: &Job<'_>,
        (grid, stage, panel): (&Grid, &Stage, &Panel),
        (first, start, count): (i64, i64, i64),
        (part, offsets): (i64, *const u8),
    ) {
        let is_last = part + 1 == grid.parts;
        let kernels: [Kernel; 2] = match stage.kind() {
            _ if !is_last => [block::<PARTIAL, false>; 2],
            Kind::Bare => [block::<BARE, false>, block::<BARE, true>],
            Kind::Plain => [block::<PLAIN, false>, block::<PLAIN, true>],
            Kind::Sum => [block::<SUM, false>, block::<SUM, true>],
            Kind::SumAuxFirst => [block::<SUM_AUX_FIRST, false>, block::<SUM_AUX_FIRST, true>],
            Kind::Table => [block::<TABLE, false>, block::<TABLE, true>],
            Kind::TableSum | Kind::Tables => [block::<TABLES, false>, block::<TABLES, true>],
        };
        let vectors = panel.vectors();
        let mut multipliers = [_mm512_setzero_ps(); 3];
        for (vector, multipliers) in multipliers[..vectors].iter_mut().enumerate() {
            let (block, halves) = panel.block_of(vector);
            let records = job.records.wrapping_offset(isize_of(panel.first_block * 256));
            // SAFETY: the records of each block are sixteen.
            (_, *multipliers) = unsafe { load_records(records.wrapping_add(256 * block)) };
            if halves {
                let twice = low_twice(_mm512_castps_si512(*multipliers));
                *multipliers = _mm512_castsi512_ps(twice);
            }
        }
        for unit in 0..panel.units(count) {
            let tile = |at: i64| Tile::new(job, grid, start + first + at.min(count - 1));
            let one = tile(panel.tiles_a_unit() * unit);
            let mut other = None;
            if panel.in_pairs {
                let other = other.insert(tile(2 * unit + 1));
                if 2 * unit + 1 == count {
                    other.height = 0;
                }
            }
            let tiles = [&one, other.as_ref().unwrap_or(&one)];
            let products = self.products(panel, 0, unit).cast_const();
            for (vector, &multipliers) in multipliers[..vectors].iter().enumerate() {
                let (block, halves) = panel.block_of(vector);
                let at = usize_of((panel.units(first) + unit).unsigned_abs()) * vectors + vector;
                let work = Block {
                    products: products.wrapping_add(64 * vector),
                    row_bytes: 64 * vectors,
                    // SAFETY: what the sums of the block lack.
                    offset: unsafe { load_64(offsets.wrapping_add(64 * block)) },
                    multipliers,
                    sums: self.sums.as_mut_ptr().cast::<u8>().wrapping_add(SUMS * at),
                    adds: part > 0,
                    lane: isize_of(16 * panel.first_block) + 16 * block.cast_signed(),
                    tiles: if halves { tiles } else { [tiles[vector % 2]; 2] },
                };
                // SAFETY: the products were made, the sums, if any, too; the tile's pixels exist.
                unsafe { kernels[usize::from(halves)](stage, &work) };
            }
        }
    }
}

/// Where the outputs of a tile go: those rows and columns of the 4x4 that exist.
struct Tile {
    height: usize,
    width: usize,
    out: (*mut u8, isize, isize),
    aux: (*const u8, isize, isize),
}

impl Tile {
    /// Tile `number` of the problem.
    fn new(job: &Job<'_>, grid: &Grid, number: i64) -> Self {
        let (row, column) = (number / grid.columns, number % grid.columns);
        let (n, row) = (row / grid.rows, row % grid.rows);
        let (y, x) = (row * TILE, column * TILE);
        Self {
            height: usize_of((job.ofm_h - y).min(TILE).unsigned_abs()),
            width: usize_of((job.ofm_w - x).min(TILE).unsigned_abs()),
            out: (job.ofm.at(n, y, x), job.ofm.row, job.ofm.pixel),
            aux: match &job.aux {
                Some(aux) => (aux.at(n, y, x), aux.row, aux.pixel),
                None => (std::ptr::null(), 0, 0),
            },
        }
    }

    /// Address of an output, if it exists, at a lane of a pixel.
    #[inline]
    fn output(&self, row: usize, column: usize, lane: isize) -> Option<*mut u8> {
        let (base, row_bytes, pixel_bytes) = self.out;
        let at = base.wrapping_offset(row_bytes.wrapping_mul(row.cast_signed()));
        let at = at.wrapping_offset(pixel_bytes.wrapping_mul(column.cast_signed()));
        (row < self.height && column < self.width).then(|| at.wrapping_offset(lane))
    }

    /// Address in the auxiliary tensor, of a pixel that exists.
    #[inline]
    fn auxiliary(&self, row: usize, column: usize, lane: isize) -> *const u8 {
        let (base, row_bytes, pixel_bytes) = self.aux;
        let row = row.min(self.height.max(1) - 1).cast_signed();
        let column = column.min(self.width - 1).cast_signed();
        base.wrapping_offset(row_bytes.wrapping_mul(row))
            .wrapping_offset(pixel_bytes.wrapping_mul(column))
            .wrapping_offset(lane)
    }
}

type Kernel = unsafe fn(&Stage, &Block<'_>);

/// A vector of 16 outputs of a tile, or of 8 of each of two.
struct Block<'a> {
    /// The first product, and bytes from one to the next.
    products: *const u8,
    row_bytes: usize,
    /// What sums lack.
    offset: __m512i,
    multipliers: __m512,
    /// Sums of the parts before, if it `adds` them, and of this.
    sums: *mut u8,
    adds: bool,
    /// The first output in a pixel.
    lane: isize,
    tiles: [&'a Tile; 2],
}

/// # Safety
/// Vector instructions present; `work` has its products, sums if it adds them or is [`PARTIAL`], and the
/// output and auxiliary pixels of its tiles are there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn block<const KIND: u8, const HALVES: bool>(stage: &Stage, work: &Block<'_>) {
    let ninth = _mm512_set1_epi32(NINTH.cast_signed());
    let (from, row_bytes) = (work.products, work.row_bytes);
    let row = |row: usize| {
        four(std::array::from_fn(|column| {
            let from = from.wrapping_add(row_bytes * (6 * row + column));
            // SAFETY: a product of the tile.
            unsafe { load_64(from) }
        }))
    };
    // One by one: in a loop, all rows live in memory, and are moved there from column to column.
    let rows = [row(0), row(1), row(2), row(3), row(4), row(5)];
    let [first, second] = work.tiles;
    let width = first.width.max(second.width);
    let adds = matches!(KIND, SUM | SUM_AUX_FIRST | TABLES) && !first.aux.0.is_null();
    macro_rules! sum {
        ($column:literal, $row:literal, $sums:expr) => {{
            let sum = _mm512_mullo_epi32($sums[$row], ninth);
            let sum = _mm512_srai_epi32::<{ SHIFTS[$column] + SHIFTS[$row] }>(sum);
            _mm512_add_epi32(sum, work.offset)
        }};
    }
    // A macro, as what is called with so many vectors is not inlined.
    macro_rules! column {
        ($column:literal) => {
            if $column < width {
                let sums = four(rows.map(|row| row[$column]));
                let mut sums = [
                    sum!($column, 0, sums),
                    sum!($column, 1, sums),
                    sum!($column, 2, sums),
                    sum!($column, 3, sums),
                ];
                let kept = work.sums.wrapping_add(256 * $column);
                if work.adds {
                    for (sum, row) in sums.iter_mut().zip(0..) {
                        // SAFETY: a sum of the parts before.
                        let before = unsafe { load_64(kept.wrapping_add(64 * row)) };
                        *sum = _mm512_add_epi32(*sum, before);
                    }
                }
                if KIND == PARTIAL {
                    for (sum, row) in sums.into_iter().zip(0..) {
                        // SAFETY: the place of a sum.
                        unsafe { _mm512_store_si512(kept.wrapping_add(64 * row).cast(), sum) };
                    }
                } else {
                    let mut pairs = [_mm_setzero_si128(); 4];
                    let mut aux = [pairs.as_ptr().cast::<u8>(); 4];
                    if adds {
                        for (row, aux) in aux.iter_mut().enumerate() {
                            let [low, high] = [first, second]
                                .map(|tile| tile.auxiliary(row, $column, work.lane));
                            if HALVES {
                                // SAFETY: 8 lanes of a pixel of the auxiliary tensor.
                                let low = unsafe { _mm_loadl_epi64(low.cast()) };
                                // SAFETY: as above.
                                let high = unsafe { _mm_loadl_epi64(high.cast()) };
                                pairs[row] = _mm_unpacklo_epi64(low, high);
                                *aux = std::ptr::from_ref(&pairs[row]).cast();
                            } else {
                                *aux = low;
                            }
                        }
                    }
                    let (multipliers, masks) = ([work.multipliers; 4], [u16::MAX; 4]);
                    // SAFETY: 16 lanes of pixels of the auxiliary tensor, if there is one, or of the pairs.
                    let bytes = unsafe { bytes::<KIND>(stage, sums, multipliers, masks, aux) };
                    let codes: [__m128i; 4] = [
                        _mm512_castsi512_si128(bytes),
                        _mm512_extracti32x4_epi32::<1>(bytes),
                        _mm512_extracti32x4_epi32::<2>(bytes),
                        _mm512_extracti32x4_epi32::<3>(bytes),
                    ];
                    for (row, codes) in codes.into_iter().enumerate() {
                        match first.output(row, $column, work.lane) {
                            // SAFETY: 8 lanes of a pixel of the output.
                            Some(to) if HALVES => unsafe { _mm_storel_epi64(to.cast(), codes) },
                            // SAFETY: 16 lanes of it.
                            Some(to) => unsafe { _mm_storeu_si128(to.cast(), codes) },
                            None => {}
                        }
                        if HALVES && let Some(to) = second.output(row, $column, work.lane) {
                            // SAFETY: 8 lanes of a pixel of the output.
                            unsafe {
                                _mm_storel_epi64(to.cast(), _mm_unpackhi_epi64(codes, codes))
                            };
                        }
                    }
                }
            }
        };
    }
    column!(0);
    column!(1);
    column!(2);
    column!(3);
}

/// Powers of two in what [`four`] makes, by row or column.
const SHIFTS: [u32; 4] = [3, 2, 1, 1];

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
    let twice = |x| add(x, x);
    let (near, far) = (add(b, c), add(d, e));
    let (near_step, far_step) = (sub(b, c), sub(d, e));
    [
        add(add(a, far), _mm512_slli_epi32::<2>(near)),
        add(twice(near_step), far_step),
        add(near, far),
        add(add(near_step, f), twice(far_step)),
    ]
}
