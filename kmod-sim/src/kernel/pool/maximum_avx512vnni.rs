//! POOL's maximum over small windows on AVX-512, 64 channels at a time.
//!
//! Windows of two by two pixels that lie side by side, of 32 bytes each, come two pixels to a register.

use crate::kernel::pool::Problem;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::vector::{Lookup, load_64, load_masked_64, mask_64, store_64};
use crate::memory::isize_of;
use npu_uapi::command::pool_kind;
use std::arch::x86_64::{
    __m512i, _mm512_extracti64x4_epi64, _mm512_max_epu8, _mm512_min_epu8, _mm512_set1_epi8,
    _mm512_setzero_si512, _mm512_zextsi256_si512,
};
use std::ops::Range;

/// Most pixels of a window: larger ones are looked through with an eye on who waits.
const MOST: i64 = 64;

/// Whether this kernel takes `problem`.
pub(super) fn takes(p: &Problem) -> bool {
    p.kind == pool_kind::MAX && p.window.kernel_h * p.window.kernel_w <= MOST
}

/// 64 channels of a row of output pixels.
///
/// # Safety
/// `takes(p)`, on a processor with the vector instructions; row and first channel exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) unsafe fn output_row(
    p: &Problem,
    [n, oy, channel]: [i64; 3],
    budget: &mut Budget<'_>,
) -> Result<(), Aborted> {
    let mask = mask_64(p.dims[3] - channel);
    let (rows, _) = p.rows(oy);
    let w = &p.window;
    let row = Row {
        // Where no row lies in the input, none is read.
        from: p.ifm.pointer(p.ifm.at(n, w.row(oy, rows.start).clamp(0, p.dims[1] - 1), 0)),
        rows: rows.end - rows.start,
        row: isize_of(w.dilation_h * p.ifm.row),
        pixel: isize_of(w.dilation_w * p.ifm.pixel),
        channel: isize_of(channel),
        mask,
    };
    let is_paired = row.rows == 2
        && (w.kernel_w, w.stride_w, w.dilation_w) == (2, 2, 1)
        && (p.ifm.pixel, p.ifm.lanes) == (32, 32);
    let table = p.table.as_ref().map(|table| Lookup::new(table));
    let low = _mm512_set1_epi8(p.low.cast_signed());
    let high = _mm512_set1_epi8(p.high.cast_signed());
    for ox in 0..p.ofm_w {
        budget.spend(MOST)?;
        let start = w.column(ox, 0);
        let is_inside = start >= 0 && start + (w.kernel_w - 1) * w.dilation_w < p.dims[2];
        let columns = if is_inside { 0..w.kernel_w } else { p.columns(ox).0 };
        let first = isize_of((start + columns.start * w.dilation_w) * p.ifm.pixel);
        let found = if is_paired && is_inside {
            // SAFETY: both rows of both pixels, whose lanes are all of their bytes.
            unsafe { row.pairs(first) }
        } else {
            // SAFETY: rows and columns are those that lie in the input.
            unsafe { row.any(first, columns) }
        };
        let mut codes = _mm512_min_epu8(_mm512_max_epu8(found, low), high);
        if let Some(table) = &table {
            codes = table.bytes(codes);
        }
        let to = p.ofm.pointer(p.ofm.at(n, oy, ox) + channel);
        // SAFETY: the channels of `mask` of a pixel of the output.
        unsafe { store_64(to, mask, codes) };
    }
    Ok(())
}

/// The rows that windows of an output row cover.
struct Row {
    /// The first pixel of the first of them.
    from: *const u8,
    rows: i64,
    /// From a kernel row to the next, and from a kernel column.
    row: isize,
    pixel: isize,
    channel: isize,
    mask: u64,
}

impl Row {
    /// The maximum of two rows of two pixels of 32 bytes.
    ///
    /// # Safety
    /// They are readable from `first` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn pairs(&self, first: isize) -> __m512i {
        let at = self.from.wrapping_offset(first);
        // SAFETY: the caller's promise.
        let above = unsafe { load_64(at) };
        // SAFETY: the caller's promise.
        let below = unsafe { load_64(at.wrapping_offset(self.row)) };
        let both = _mm512_max_epu8(above, below);
        let right = _mm512_zextsi256_si512(_mm512_extracti64x4_epi64::<1>(both));
        _mm512_max_epu8(both, right)
    }

    /// The maximum over so many columns from `first` on.
    ///
    /// # Safety
    /// Their channels of the mask are readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn any(&self, first: isize, columns: Range<i64>) -> __m512i {
        let mut largest = _mm512_setzero_si512();
        let mut row = self.from.wrapping_offset(first + self.channel);
        for _ in 0..self.rows {
            let mut at = row;
            for _ in columns.clone() {
                // SAFETY: the caller's promise.
                let codes = unsafe { load_masked_64(self.mask, at) };
                largest = _mm512_max_epu8(largest, codes);
                at = at.wrapping_offset(self.pixel);
            }
            row = row.wrapping_offset(self.row);
        }
        largest
    }
}
