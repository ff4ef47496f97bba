//! PRODUCT on AVX-512 VNNI.
//!
//! ```text
//!   sum (a - za)(b - zb) = sum a (b - 128)  +  (128 - zb) sum a  -  za (sum (b - 128) + k (128 - zb))
//!                          vpdpbusd            of each row          of each column
//! ```
//!
//! A panel of up to 64 columns of the right matrix is packed once for all rows of a chunk; tiles of rows
//! pass by it in registers and through the output stage. Whatever the order of `b` is, only packing
//! sees it.

use super::Problem;
use super::pack::Columns;
use crate::kernel::Stop;
use crate::kernel::room::Room;
use crate::kernel::split::{Aborted, Budget, POLL_MACS, Split};
use crate::kernel::vector::{
    Channels, Lookup, Requantise, broadcast_4, in_order, load_64, load_masked_64, mask_64, store_64,
};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_epi32, _mm512_add_epi64, _mm512_dpbusd_epi32, _mm512_mullo_epi32,
    _mm512_reduce_add_epi64, _mm512_sad_epu8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_si512, _mm512_storeu_si512,
};
use std::ops::Range;

/// Blocks of 16 columns in a panel.
const MOST_BLOCKS: usize = 4;

/// Most rows of a tile: of one block, two and four.
const ROWS: [usize; 3] = [14, 12, 6];

/// Bytes of a packed panel, about, so that it stays in the level-2 cache.
const PANEL_BYTES: i64 = 256 << 10;

/// Whether this kernel takes `problem`: a tile must not pass what may go without a look.
pub(crate) fn takes(p: &Problem) -> bool {
    p.k <= POLL_MACS / (16 * 16)
}

/// Runs `problem`.
///
/// # Safety
/// `takes(problem)`, on a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let plan = Plan::new(p);
    let units = p.turns[0] * p.turns[1] * plan.panels * plan.tiles;
    let each = split.units_a_chunk(units, plan.rows * plan.columns * p.k);
    split.chunks((units + each - 1) / each, &|chunk, budget| {
        let units = chunk * each..((chunk + 1) * each).min(units);
        // SAFETY: the caller's promise; the problem has these units.
        unsafe { some(p, &plan, units, budget) }
    })
}

/// Some tiles of some panels.
///
/// # Safety
/// As of [`run`], and `plan` has these units.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn some(
    p: &Problem,
    plan: &Plan,
    units: Range<i64>,
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let (mut panel, mut rest) = (Panel::default(), Room::new());
    let (stage, first) = (Stage::new(p), units.start);
    for unit in units {
        let (of, tile) = (unit / plan.tiles, unit % plan.tiles);
        budget.spend(plan.rows * plan.columns * p.k)?;
        if unit == first || tile == 0 {
            // SAFETY: the caller's promise.
            unsafe { panel.pack(p, plan, of) };
        }
        // SAFETY: the caller's promise; the panel is that of the unit.
        unsafe { panel.tile((p, &stage), plan, of / plan.panels, tile, &mut rest) };
    }
    Ok(())
}

/// What sums go through.
struct Stage {
    requantise: Requantise,
    multipliers: [__m512; 4],
    table: Option<Lookup>,
}

impl Stage {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new(p: &Problem) -> Self {
        let channels = Channels { symmetric: true, small: p.multiplier.abs() < 1.0 };
        let requantise = Requantise::new(p.zero_point, p.low, p.high).with_multipliers(channels);
        Self {
            requantise,
            multipliers: [_mm512_set1_ps(p.multiplier); 4],
            table: p.table.as_ref().map(|table| Lookup::new(table)),
        }
    }

    /// The codes of four vectors of sums.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn codes(&self, sums: [__m512i; 4]) -> __m512i {
        let codes = in_order(self.requantise.lanes(sums, self.multipliers));
        match &self.table {
            Some(table) => table.bytes(codes),
            None => codes,
        }
    }
}

/// How a problem is cut.
struct Plan {
    /// Log2 of the blocks of a panel.
    width: usize,
    columns: i64,
    panels: i64,
    rows: i64,
    tiles: i64,
}

impl Plan {
    fn new(p: &Problem) -> Self {
        let block_bytes = (p.k + 3) / 4 * 64;
        let fit = PANEL_BYTES / block_bytes;
        let width = match p.n {
            ..=16 => 0,
            17..=32 => 1,
            _ if fit >= 4 => 2,
            _ => 0,
        };
        let columns = 16 << width;
        let rows = i64::try_from(ROWS[width]).expect("14");
        Self {
            width,
            columns,
            panels: (p.n + columns - 1) / columns,
            rows,
            tiles: (p.m + rows - 1) / rows,
        }
    }
}

/// Some columns of a right matrix.
#[derive(Default)]
struct Panel {
    packed: Room<u8>,
    /// Start of each column's sums.
    starts: [[i32; 16]; MOST_BLOCKS],
    first: i64,
}

impl Panel {
    /// Packs panel `of` of all matrices.
    ///
    /// # Safety
    /// As of [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn pack(&mut self, p: &Problem, plan: &Plan, of: i64) {
        let [_, b, _] = p.matrices(of / plan.panels);
        self.first = of % plan.panels * plan.columns;
        let k = usize_of(p.k.unsigned_abs());
        let block_bytes = k.div_ceil(4) * 64;
        self.packed.resize(block_bytes << plan.width, 0);
        let left = i32::from(p.a_zero_point);
        let lift = 128 - i32::from(p.b_zero_point);
        let whole = i32::try_from(p.k).unwrap_or(0).wrapping_mul(lift);
        let columns: [Option<Columns>; MOST_BLOCKS] = std::array::from_fn(|block| {
            let first = self.first + 16 * i64::try_from(block).expect("at most 4");
            let columns = (p.n - first).min(16);
            (block < 1 << plan.width && columns > 0).then(|| Columns {
                from: p.b.memory.pointer(b + first * p.b_column, 1),
                k,
                columns: usize_of(columns.unsigned_abs()),
                row: p.b_row,
                column: p.b_column,
            })
        });
        let to = self.packed.as_mut_ptr();
        let blocks = || columns.iter().enumerate();
        for (block, columns) in blocks() {
            if let Some(columns) = columns {
                // SAFETY: the caller's promise, and room for each block.
                unsafe { columns.pack(to.wrapping_add(block * block_bytes)) };
            }
        }
        // Behind all of them: what was just written can be read by and by.
        for (block, columns) in blocks() {
            self.starts[block] = [0; 16];
            if let Some(columns) = columns {
                // SAFETY: it was packed there.
                let sums = unsafe { columns.sums(to.wrapping_add(block * block_bytes)) };
                let sums = _mm512_add_epi32(sums, _mm512_set1_epi32(whole));
                let starts = _mm512_mullo_epi32(sums, _mm512_set1_epi32(-left));
                // SAFETY: sixteen integers.
                unsafe { _mm512_storeu_si512(self.starts[block].as_mut_ptr().cast(), starts) };
            }
        }
    }

    /// Tile `tile` of the rows of `matrix`.
    ///
    /// # Safety
    /// As of [`run`], and the panel is one of the matrix.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn tile(
        &self,
        (p, stage): (&Problem, &Stage),
        plan: &Plan,
        matrix: i64,
        tile: i64,
        rest: &mut Vec<u8>,
    ) {
        let first = tile * plan.rows;
        let rows = (p.m - first).min(plan.rows);
        let [a, _, out] = p.matrices(matrix);
        let at = a + first * p.a_row;
        let k = usize_of(p.k.unsigned_abs());
        let mut from = [std::ptr::null::<u8>(); ROWS[0]];
        let read = usize_of(plan.rows.unsigned_abs());
        for (row, from) in (0..).zip(&mut from[..read]) {
            // Rows behind the last are the last once more.
            *from = p.a.memory.pointer(at + row.min(rows - 1) * p.a_row, k as u64);
        }
        let mut lifts = [0_i32; ROWS[0]];
        let lift = 128 - i32::from(p.b_zero_point);
        if lift != 0 {
            for (lift_of, &from) in lifts.iter_mut().zip(&from[..read]) {
                // SAFETY: a row of the left matrix.
                *lift_of = unsafe { sum(from, k) }.wrapping_mul(lift);
            }
        }
        if !k.is_multiple_of(4) {
            // The last step reads four bytes: of a copy, which has them.
            let padded = k.next_multiple_of(4);
            rest.clear();
            rest.resize(padded * read, 0);
            for (row, from) in from[..read].iter_mut().enumerate() {
                let to = rest.as_mut_ptr().wrapping_add(row * padded);
                // SAFETY: a row of the left matrix to its place in the copy.
                unsafe { from.copy_to_nonoverlapping(to, k) };
                *from = to;
            }
        }
        let rows = usize_of(rows.unsigned_abs());
        let to = Results {
            out: p.out.memory.pointer(out + first * p.out_row + self.first, 1),
            row: isize_of(p.out_row),
            rows,
            columns: (p.n - self.first).min(plan.columns),
        };
        let sums = match plan.width {
            0 => Self::sums::<14, 1>,
            1 => Self::sums::<12, 2>,
            _ => Self::sums::<6, 4>,
        };
        // SAFETY: rows and columns lie in the problem, and so do the results.
        unsafe { sums(self, stage, k, &from, &lifts, &to) };
    }

    /// The sums of a tile, through the output stage.
    ///
    /// # Safety
    /// As of [`run`]; `k` bytes up to a multiple of four are readable at each of `from`, and the
    /// results writable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn sums<const ROWS: usize, const BLOCKS: usize>(
        &self,
        stage: &Stage,
        k: usize,
        from: &[*const u8; 14],
        lifts: &[i32; 14],
        to: &Results,
    ) {
        let block_bytes = k.div_ceil(4) * 64;
        let mut acc = [[_mm512_setzero_si512(); BLOCKS]; ROWS];
        let at: [*const u8; ROWS] = std::array::from_fn(|r| from[r]);
        let mut packed = self.packed.as_ptr();
        for step in 0..k.div_ceil(4) {
            let mut columns = [_mm512_setzero_si512(); BLOCKS];
            for (block, columns) in columns.iter_mut().enumerate() {
                // SAFETY: a step of each packed block.
                *columns = unsafe { load_64(packed.wrapping_add(block * block_bytes)) };
            }
            for r in 0..ROWS {
                // SAFETY: the caller's promise.
                let x = unsafe { broadcast_4(at[r].wrapping_add(4 * step)) };
                for v in 0..BLOCKS {
                    acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], x, columns[v]);
                }
            }
            packed = packed.wrapping_add(64);
        }
        let mut starts = [_mm512_setzero_si512(); BLOCKS];
        for (block, start) in starts.iter_mut().enumerate() {
            // SAFETY: sixteen integers.
            *start = unsafe { load_64(self.starts[block].as_ptr().cast()) };
        }
        for (row, lift) in acc.iter_mut().zip(lifts) {
            let lift = _mm512_set1_epi32(*lift);
            for (sum, start) in row.iter_mut().zip(starts) {
                *sum = _mm512_add_epi32(*sum, _mm512_add_epi32(start, lift));
            }
        }
        // SAFETY: the caller's promise.
        unsafe { to.store(stage, acc.as_flattened(), BLOCKS) };
    }
}

/// The sum of `len` bytes, modulo 2^32.
///
/// # Safety
/// They are readable; vector instructions are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn sum(from: *const u8, len: usize) -> i32 {
    let mut sums = _mm512_setzero_si512();
    for at in (0..len).step_by(64) {
        let mask = mask_64(i64::try_from(len - at).unwrap_or(64));
        // SAFETY: the bytes of the mask are among them.
        let bytes = unsafe { load_masked_64(mask, from.wrapping_add(at)) };
        sums = _mm512_add_epi64(sums, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
    }
    // `takes` bounds the row, so the sum is small.
    i32::try_from(_mm512_reduce_add_epi64(sums)).unwrap_or(0)
}

/// Where the results of a tile go.
struct Results {
    out: *mut u8,
    row: isize,
    rows: usize,
    columns: i64,
}

impl Results {
    /// Passes `sums`, rows of `blocks` vectors, through the output stage.
    ///
    /// # Safety
    /// Vector instructions present; the results are writable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn store(&self, stage: &Stage, sums: &[__m512i], blocks: usize) {
        let rows_a_vector = 4 / blocks;
        // Twice a vector, so that the bytes of any row can be loaded as 64.
        let mut bytes = [0_u8; 128];
        let mask = mask_64(self.columns);
        let row_of =
            |row: usize| self.out.wrapping_offset(self.row.wrapping_mul(row.cast_signed()));
        for (group, four) in sums.chunks(4).enumerate() {
            let first = group * rows_a_vector;
            if first >= self.rows {
                return;
            }
            let four = std::array::from_fn(|i| *four.get(i).unwrap_or(&four[0]));
            let codes = stage.codes(four);
            if rows_a_vector == 1 {
                // SAFETY: the caller's promise: these columns of a row.
                unsafe { store_64(row_of(first), mask, codes) };
                continue;
            }
            // SAFETY: the first half of the local array.
            unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), codes) };
            for row in first..(first + rows_a_vector).min(self.rows) {
                let at = (row - first) * 16 * blocks;
                // SAFETY: 64 bytes of the local array.
                let codes = unsafe { load_64(bytes.as_ptr().wrapping_add(at)) };
                // SAFETY: the caller's promise: these columns of a row.
                unsafe { store_64(row_of(row), mask, codes) };
            }
        }
    }
}
