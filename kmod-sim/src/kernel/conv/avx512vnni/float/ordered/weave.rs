//! Kernels of several taps in the order of the floats: all taps of an input channel behind one another.
//!
//! ```text
//! input    tap 0: c0 c1 c2 ..   tap 1: c0 c1 c2 ..   ..   ->   c0: tap 0, tap 1, ..   c1: tap 0, tap 1, ..
//! ```
//!
//! Sixteen channels at a time: those of four taps fill a vector, and each vector of the result takes its bytes
//! from each of these by one permutation.

use crate::kernel::conv::Problem;
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{Job, MOST_PIXELS, usize_of};
use crate::kernel::vector::{load_64, mask_16};
use std::arch::x86_64::{
    __m128i, __m512i, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm_setzero_si128,
    _mm512_castsi128_si512, _mm512_inserti32x4, _mm512_mask_mov_epi8, _mm512_mask_permutexvar_epi8,
    _mm512_rolv_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};

/// Channels that are put in order together.
const CHANNELS: usize = 16;

/// Vectors that the channels of all taps fill.
const SOURCES: usize = 31;

/// How the bytes under a kernel are put in order.
pub(super) struct Weaver {
    taps: usize,
    inputs: usize,
    /// By vector of the result: which byte of a source each takes, and which take one, by source.
    picks: Vec<([u8; 64], Vec<u64>)>,
}

impl Weaver {
    /// Most taps: kernels of up to 11x11.
    pub(super) const MOST_TAPS: i64 = 121;

    pub(super) fn new(p: &Problem) -> Self {
        let [taps, inputs] = [p.taps(), p.group_inputs].map(|count| usize_of(count.unsigned_abs()));
        let bytes = taps * CHANNELS;
        let pick = |first: usize| {
            let (mut from, mut of_source) = ([0; 64], vec![0; taps.div_ceil(4)]);
            for (at, from) in from.iter_mut().enumerate().take(bytes - first) {
                let (channel, tap) = ((first + at) / taps, (first + at) % taps);
                *from = u8::try_from(tap % 4 * CHANNELS + channel).unwrap_or(0);
                of_source[tap / 4] |= 1 << at;
            }
            (from, of_source)
        };
        Self { taps, inputs, picks: (0..bytes).step_by(64).map(pick).collect() }
    }

    /// The addresses of the terms of `pixels`, of the group that begins at `first_input`, put in order in
    /// `window`. Behind a sum's terms lie others, which no weight meets.
    ///
    /// # Safety
    /// Vector instructions present; the pixels and the group are of the problem of `job`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn rows(
        &self,
        job: &Job<'_>,
        pixels: &Pixels,
        first_input: isize,
        window: &mut Vec<u8>,
    ) -> [*const u8; MOST_PIXELS] {
        // The last vector may reach beyond the last channels.
        let room = self.inputs.next_multiple_of(CHANNELS) * self.taps + 64;
        window.resize(room * pixels.count, 0);
        let w = &job.window;
        let taps: Vec<_> = (0..w.kernel_h)
            .flat_map(|ky| (0..w.kernel_w).map(move |kx| (ky, kx)))
            .map(|(ky, kx)| pixels.tap(job, ky, kx))
            .collect();
        let mut sources = [_mm512_setzero_si512(); SOURCES];
        let mut rows = [std::ptr::null(); MOST_PIXELS];
        for (r, to) in window.chunks_exact_mut(room).enumerate() {
            rows[r] = to.as_ptr();
            let at = |tap: usize| taps[tap][r].wrapping_offset(first_input);
            for first in (0..self.inputs).step_by(CHANNELS) {
                let mask = mask_16(i64::try_from(self.inputs - first).unwrap_or(16));
                let load = |tap: usize| {
                    if tap >= self.taps {
                        return _mm_setzero_si128();
                    }
                    let from = at(tap).wrapping_add(first).cast();
                    if mask == u16::MAX {
                        // SAFETY: channels of a pixel of the input, or of the padding.
                        unsafe { _mm_loadu_si128(from) }
                    } else {
                        // SAFETY: as above; masked-out lanes are not accessed.
                        unsafe { _mm_maskz_loadu_epi8(mask, from.cast()) }
                    }
                };
                for (tap, source) in (0..self.taps).step_by(4).zip(&mut sources) {
                    *source = joined(load(tap), load(tap + 1), load(tap + 2), load(tap + 3));
                }
                let to = &mut to[first * self.taps..];
                for ((from, of_source), to) in self.picks.iter().zip(to.chunks_exact_mut(64)) {
                    // SAFETY: 64 bytes.
                    let from = unsafe { load_64(from.as_ptr()) };
                    let mut bytes = _mm512_setzero_si512();
                    for (&mask, &source) in of_source.iter().zip(&sources) {
                        bytes = _mm512_mask_permutexvar_epi8(bytes, mask, from, source);
                    }
                    // SAFETY: 64 bytes.
                    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) };
                }
            }
        }
        rows
    }
}

/// Four vectors as one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn joined(a: __m128i, b: __m128i, c: __m128i, d: __m128i) -> __m512i {
    let joined = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
    _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(joined, c), d)
}

/// The weights of a block, those at `from`, in the order of the floats, as `steps` vectors; zeros behind.
///
/// # Safety
/// Vector instructions present; `from` are the weights of a block of the problem of `job`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) unsafe fn weights(job: &Job<'_>, from: *const u8, steps: usize) -> Vec<u8> {
    let mut to = vec![0u8; steps * 64];
    let [taps, inputs, tap_steps] = [job.problem.taps(), job.problem.group_inputs, job.steps]
        .map(|count| usize_of(count.unsigned_abs()));
    let turns = [0, 8, 16, 24].map(|bits| _mm512_set1_epi32(bits));
    let (mut four, mut filled) = (_mm512_setzero_si512(), 0);
    let mut places = to.chunks_exact_mut(64);
    for input in 0..inputs {
        let mut at = from.wrapping_add(input / 4 * 64);
        for _ in 0..taps {
            // SAFETY: a vector of the block's weights.
            let found = unsafe { load_64(at) };
            at = at.wrapping_add(tap_steps * 64);
            // The byte of this input, where that of the term belongs.
            let turned = _mm512_rolv_epi32(found, turns[(filled + 4 - input % 4) % 4]);
            four = _mm512_mask_mov_epi8(four, 0x1111_1111_1111_1111 << filled, turned);
            filled += 1;
            if filled == 4 {
                put(&mut places, four);
                (four, filled) = (_mm512_setzero_si512(), 0);
            }
        }
    }
    if filled > 0 {
        put(&mut places, four);
    }
    to
}

/// Stores `four` in the next place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn put(places: &mut std::slice::ChunksExactMut<'_, u8>, four: __m512i) {
    if let Some(to) = places.next() {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), four) };
    }
}
