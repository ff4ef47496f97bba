//! Moves of a few bytes each time on AVX-512, near each other on both sides: as many times as a register
//! of either side holds go at once, in one permutation.
//!
//! ```text
//! runs of 2, steps of 4 and 2:   a b . . c d . . e f ..   ->  a b c d e f ..
//! runs of 3, steps of 1 and 4:   a b c d e ..             ->  a b c . b c d . c d e . ..
//! ```

use crate::kernel::vector::{Lookup, load_masked_64, mask_64, store_64};
use crate::memory::isize_of;
use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_permutexvar_epi8};

/// Longest step on either side.
pub(super) const MOST: i64 = 16;

/// Runs of bytes, how far apart they are, and what goes at once.
pub(super) struct Picks {
    run: i64,
    src: i64,
    dst: i64,
    /// Runs in a register.
    at_once: i64,
    /// For each byte of the result its place in the source.
    places: __m512i,
    /// Bytes of the result that are of a run.
    written: u64,
}

impl Picks {
    /// Runs of `run` bytes, at `steps` of `1..=MOST`; that of the result is not below `run`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn new(run: i64, [src, dst]: [i64; 2]) -> Self {
        let (mut places, mut written) = ([0_u8; 64], 0);
        let at_once = (64 - run) / src.max(dst) + 1;
        for turn in 0..at_once {
            for byte in 0..run {
                let [from, to] = [src, dst].map(|step| (turn * step + byte).clamp(0, 63));
                let place = places.get_mut(usize::try_from(to).unwrap_or(0));
                if let (Some(place), Ok(from)) = (place, u8::try_from(from)) {
                    *place = from;
                }
                written |= 1_u64 << to;
            }
        }
        // SAFETY: 64 bytes.
        let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
        Self { run, src, dst, at_once, places, written }
    }

    /// `count` runs.
    ///
    /// # Safety
    /// On a processor with the vector instructions; every run is readable, and writable where it goes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn run(
        &self,
        src: *const u8,
        dst: *mut u8,
        count: i64,
        table: Option<Lookup>,
    ) {
        let reach = |turns: i64, step: i64| mask_64((turns - 1) * step + self.run);
        let [read, written] = [self.src, self.dst].map(|step| reach(self.at_once, step));
        let (mut from, mut to) = (src, dst);
        let [source_step, result_step] = [self.src, self.dst].map(|step| self.at_once * step);
        for _ in 0..count / self.at_once {
            // SAFETY: from the first byte of a run to the last of another, and bytes of these runs alone.
            unsafe { self.pick(from, to, [read, self.written & written], table) };
            from = from.wrapping_offset(isize_of(source_step));
            to = to.wrapping_offset(isize_of(result_step));
        }
        let left = count % self.at_once;
        if left > 0 {
            let masks = [reach(left, self.src), self.written & reach(left, self.dst)];
            // SAFETY: as above.
            unsafe { self.pick(from, to, masks, table) };
        }
    }

    /// As many runs as the masks, of what is read and of what is written, have bytes of.
    ///
    /// # Safety
    /// As of [`Self::run`], for these bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn pick(
        &self,
        from: *const u8,
        to: *mut u8,
        [read, written]: [u64; 2],
        table: Option<Lookup>,
    ) {
        // SAFETY: the caller's promise.
        let mut codes = unsafe { load_masked_64(read, from) };
        codes = _mm512_permutexvar_epi8(self.places, codes);
        if let Some(table) = table {
            codes = table.bytes(codes);
        }
        // SAFETY: as above.
        unsafe { store_64(to, written, codes) };
    }
}
