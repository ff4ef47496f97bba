//! Columns of a right matrix as the vector kernel reads them. Unsafe: the matrix lies in a slot.
//!
//! ```text
//! [block of 16 columns][k / 4][16][4], signed: code - 128; zero behind the last row
//! ```

use crate::kernel::vector::turn::turned_words;
use crate::memory::isize_of;
use std::arch::x86_64::{
    __m512i, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm_unpackhi_epi8, _mm_unpackhi_epi16,
    _mm_unpacklo_epi8, _mm_unpacklo_epi16, _mm512_castsi128_si512, _mm512_castsi512_si128,
    _mm512_dpbusd_epi32, _mm512_inserti32x4, _mm512_loadu_si512, _mm512_mask_loadu_epi8,
    _mm512_set1_epi8, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_xor_si512,
};

/// A column of 16 of a right matrix: where it begins, and how it lies.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub(super) from: *const u8,
    /// Rows.
    pub(super) k: usize,
    /// At most 16.
    pub(super) columns: usize,
    pub(super) row: i64,
    pub(super) column: i64,
}

impl Columns {
    /// Bytes of them packed.
    pub(super) fn packed_bytes(&self) -> usize {
        self.k.div_ceil(4) * 64
    }

    /// Packs them to `to`.
    ///
    /// # Safety
    /// Vector instructions present; the elements are readable, `packed_bytes` writable at `to`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn pack(&self, to: *mut u8) {
        if self.column == 1 {
            // SAFETY: the caller's promise.
            unsafe { self.by_rows(to) };
        } else if self.row == 1 {
            // SAFETY: the caller's promise.
            unsafe { self.by_columns(to) };
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.by_elements(to) };
        }
    }

    /// The sum of each of the columns that were packed to `to`.
    ///
    /// # Safety
    /// As of [`Self::pack`], which was called.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn sums(&self, to: *const u8) -> __m512i {
        let ones = _mm512_set1_epi8(1);
        let mut sums = _mm512_setzero_si512();
        for at in (0..self.packed_bytes()).step_by(64) {
            // SAFETY: these bytes were written above.
            let packed = unsafe { _mm512_loadu_si512(to.wrapping_add(at).cast()) };
            sums = _mm512_dpbusd_epi32(sums, ones, packed);
        }
        sums
    }

    /// Where columns follow each other: four rows of sixteen bytes at a time.
    ///
    /// # Safety
    /// As of [`Self::pack`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn by_rows(&self, to: *mut u8) {
        let flip = _mm512_set1_epi8(i8::MIN);
        let mask = u16::MAX >> (16 - self.columns);
        // What stands for nothing is 128, which is zero once it is signed.
        let nothing = _mm512_castsi512_si128(flip);
        let row = isize_of(self.row);
        let mut from = self.from;
        for step in 0..self.k.div_ceil(4) {
            let mut rows = [nothing; 4];
            for (index, bytes) in rows.iter_mut().enumerate() {
                if step * 4 + index >= self.k {
                    break;
                }
                *bytes = if self.columns == 16 {
                    // SAFETY: sixteen elements of a row.
                    unsafe { _mm_loadu_si128(from.cast()) }
                } else {
                    // SAFETY: as many elements as there are; others are not touched.
                    unsafe { _mm_maskz_loadu_epi8(mask, from.cast()) }
                };
                from = from.wrapping_offset(row);
            }
            let (low, high) =
                (_mm_unpacklo_epi8(rows[0], rows[1]), _mm_unpackhi_epi8(rows[0], rows[1]));
            let (low_2, high_2) =
                (_mm_unpacklo_epi8(rows[2], rows[3]), _mm_unpackhi_epi8(rows[2], rows[3]));
            let packed = _mm512_castsi128_si512(_mm_unpacklo_epi16(low, low_2));
            let packed = _mm512_inserti32x4::<1>(packed, _mm_unpackhi_epi16(low, low_2));
            let packed = _mm512_inserti32x4::<2>(packed, _mm_unpacklo_epi16(high, high_2));
            let packed = _mm512_inserti32x4::<3>(packed, _mm_unpackhi_epi16(high, high_2));
            let at = to.wrapping_add(step * 64).cast();
            let packed = _mm512_xor_si512(packed, flip);
            // SAFETY: a step of the packed columns.
            unsafe { _mm512_storeu_si512(at, packed) };
        }
    }

    /// Where rows follow each other: sixteen columns of up to 64 rows turned in registers.
    ///
    /// # Safety
    /// As of [`Self::pack`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn by_columns(&self, to: *mut u8) {
        // What stands for nothing is 128, which is zero once it is signed.
        let flip = _mm512_set1_epi8(i8::MIN);
        let column = isize_of(self.column);
        for first in (0..self.k).step_by(64) {
            let rows = (self.k - first).min(64);
            let mask = u64::MAX >> (64 - rows);
            let mut columns = [flip; 16];
            for (index, codes) in columns.iter_mut().enumerate().take(self.columns) {
                let from = self.from.wrapping_offset(column.wrapping_mul(index.cast_signed()));
                // SAFETY: the elements of the mask are the column's; others are not touched.
                let found =
                    unsafe { _mm512_mask_loadu_epi8(flip, mask, from.wrapping_add(first).cast()) };
                *codes = found;
            }
            for codes in &mut columns {
                *codes = _mm512_xor_si512(*codes, flip);
            }
            let steps = turned_words(columns);
            for (step, packed) in steps.into_iter().enumerate().take(rows.div_ceil(4)) {
                let at = to.wrapping_add((first / 4 + step) * 64).cast();
                // SAFETY: a step of the packed columns.
                unsafe { _mm512_storeu_si512(at, packed) };
            }
        }
    }

    /// Where neither do: element by element, four rows to a word.
    ///
    /// # Safety
    /// As of [`Self::pack`].
    unsafe fn by_elements(&self, to: *mut u8) {
        const NOTHING: u8 = 0x80;
        let (row, column) = (isize_of(self.row), isize_of(self.column));
        for index in 0..16_usize {
            let from = self.from.wrapping_offset(column.wrapping_mul(index.cast_signed()));
            for step in 0..self.k.div_ceil(4) {
                let word = std::array::from_fn(|l| {
                    let at = step * 4 + l;
                    if index >= self.columns || at >= self.k {
                        return 0;
                    }
                    let element = from.wrapping_offset(row.wrapping_mul(at.cast_signed()));
                    // SAFETY: an element of a column.
                    unsafe { element.read() ^ NOTHING }
                });
                let to = to.wrapping_add(step * 64 + index * 4).cast::<u32>();
                // SAFETY: a word of a step.
                unsafe { to.write_unaligned(u32::from_le_bytes(word)) };
            }
        }
    }
}
