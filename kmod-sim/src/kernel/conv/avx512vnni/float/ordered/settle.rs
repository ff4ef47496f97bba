//! Codes that integer sums leave open, summed in floats: sixteen channels of a pixel at a time.
//!
//! One step waits for the one before it, in its block of terms alone. So blocks of terms are summed side by
//! side, of one sum or of several, and added up in order when all are there.

use super::{Block, Ordered, Unsettled};
use crate::kernel::conv::avx512vnni::float::store;
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{isize_of, usize_of};
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{load_64, load_codes, mask_16};
use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_roundscale_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_srai_epi32,
    _mm512_storeu_ps, _mm512_sub_epi32,
};

/// Blocks of terms side by side.
const ABREAST: usize = 4;

/// A block of terms of sixteen sums: one input a term, and four terms a vector of weights.
#[derive(Clone, Copy)]
struct Stream {
    inputs: *const f32,
    weights: *const u8,
    scales: __m512,
}

/// What is to be summed.
struct Sum<'a> {
    block: &'a Block,
    lanes: u16,
    weights: *const u8,
    out: *mut u8,
    aux: *const u8,
}

impl Ordered<'_> {
    /// Sums all of `unsettled` in floats, and stores their codes.
    ///
    /// # Safety
    /// Vector instructions present; blocks and pixels exist, and the blocks are made.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn settle(
        &self,
        stage: &Stage,
        unsettled: &[Unsettled],
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        let (job, p) = (self.job, self.job.problem);
        let room = 4 * self.steps.next_multiple_of(4);
        let blocks = self.steps.div_ceil(self.block_steps);
        let mut sums = Vec::new();
        let (mut inputs, mut parts) = (Vec::new(), Vec::new());
        for some in unsettled.chunks(ABREAST) {
            budget.spend(4 * 16 * self.terms)?;
            inputs.resize(room * some.len(), 0f32);
            sums.clear();
            for (one, inputs) in some.iter().zip(inputs.chunks_exact_mut(room)) {
                let index = usize_of(one.block.unsigned_abs());
                let Some(block) = self.blocks[index].get() else { continue };
                let (group, within) = (one.block / job.blocks, one.block % job.blocks);
                let pixels = Pixels::new(job, one.pixel, 1);
                let row = self.rows(&pixels, group)[0];
                // SAFETY: as many bytes as the sum has terms.
                unsafe { self.dequantise(row, inputs) };
                let to = isize_of(group * p.group_outputs + within * 16);
                sums.push(Sum {
                    block,
                    lanes: one.lanes,
                    weights: self.weights(one.block),
                    out: pixels.out[0].wrapping_offset(to),
                    aux: pixels.aux[0].wrapping_offset(to),
                });
            }
            parts.clear();
            for (sum, inputs) in sums.iter().zip(inputs.chunks_exact(room)) {
                // SAFETY: sixteen floats.
                let scales = unsafe { _mm512_loadu_ps(sum.block.weight_scale.as_ptr()) };
                parts.extend((0..blocks).map(|block| Stream {
                    inputs: inputs[4 * block * self.block_steps..].as_ptr(),
                    weights: sum.weights.wrapping_add(64 * block * self.block_steps),
                    scales,
                }));
            }
            // SAFETY: the streams are of the sums.
            let parts = unsafe { self.parts(&parts, blocks) };
            for (sum, parts) in sums.iter().zip(parts.chunks_exact(blocks)) {
                // SAFETY: the lanes exist.
                unsafe { self.store(stage, sum, parts) };
            }
        }
        Ok(())
    }

    /// The terms of a pixel at `row` as floats.
    ///
    /// # Safety
    /// As many bytes at `row` as a sum has terms; vector instructions present.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn dequantise(&self, row: *const u8, inputs: &mut [f32]) {
        let scale = _mm512_set1_ps(self.float.input_scale);
        let zero = _mm512_set1_epi32(self.job.problem.input_zero_point.into());
        let mut left = self.terms;
        let (sixteens, _) = inputs.as_chunks_mut::<16>();
        for (index, to) in sixteens.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let codes = unsafe { load_codes(mask_16(left), row.wrapping_add(16 * index)) };
            let floats = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero)), scale);
            // SAFETY: sixteen floats.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), floats) };
            left -= 16;
        }
    }

    /// The sums of `streams`, `blocks` for each output: all but the last of `blocks` are whole.
    ///
    /// # Safety
    /// Vector instructions present; the streams are of sums of the problem.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn parts(&self, streams: &[Stream], blocks: usize) -> Vec<__m512> {
        let whole = 4 * self.block_steps;
        let last = usize_of(self.terms.unsigned_abs()) - (blocks - 1) * whole;
        let mut parts = vec![_mm512_setzero_ps(); streams.len()];
        let is_last = |index: usize| index % blocks == blocks - 1;
        for (terms, of_last) in [(whole, false), (last, true)] {
            let mut waiting = [0; ABREAST];
            let mut count = 0;
            for index in (0..streams.len()).filter(|&index| is_last(index) == of_last) {
                waiting[count] = index;
                count += 1;
                if count == ABREAST {
                    // SAFETY: so many terms in each.
                    let sums =
                        unsafe { side_by_side::<ABREAST>(waiting.map(|i| streams[i]), terms) };
                    waiting.iter().zip(sums).for_each(|(&index, sum)| parts[index] = sum);
                    count = 0;
                }
            }
            for &index in &waiting[..count] {
                // SAFETY: so many terms.
                [parts[index]] = unsafe { side_by_side([streams[index]], terms) };
            }
        }
        parts
    }

    /// Adds up the blocks of a sum, and stores the codes.
    ///
    /// # Safety
    /// Vector instructions present; the lanes lie in the output, and with an addition in the auxiliary
    /// tensor.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn store(&self, stage: &Stage, sum: &Sum<'_>, parts: &[__m512]) {
        // SAFETY: sixteen floats.
        let bias = unsafe { _mm512_loadu_ps(sum.block.record_bias.as_ptr()) };
        let bias_first = self.float.order.bias_first;
        let start = if bias_first { bias } else { _mm512_setzero_ps() };
        let total = parts.iter().fold(start, |total, &part| _mm512_add_ps(total, part));
        let total = if bias_first { total } else { _mm512_add_ps(total, bias) };
        let value = _mm512_div_ps(total, _mm512_set1_ps(self.float.output_scale));
        let (low, high) = (_mm512_set1_ps(self.codes.low), _mm512_set1_ps(self.codes.high));
        // In this order a NaN becomes the lowest code.
        let clamped = _mm512_min_ps(_mm512_max_ps(value, low), high);
        let rounded = _mm512_roundscale_ps::<8>(clamped);
        // SAFETY: the caller's promise.
        unsafe { store(self.codes, stage, rounded, sum.lanes, (sum.out, sum.aux)) };
    }
}

/// The sums of `terms` terms of each stream, step by step from zero.
///
/// # Safety
/// Vector instructions present; the streams have as many terms.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn side_by_side<const COUNT: usize>(
    streams: [Stream; COUNT],
    terms: usize,
) -> [__m512; COUNT] {
    let mut sums = [_mm512_setzero_ps(); COUNT];
    for step in 0..terms / 4 {
        for (sum, stream) in sums.iter_mut().zip(&streams) {
            // SAFETY: four terms of the stream.
            let four = unsafe { load_64(stream.weights.wrapping_add(64 * step)) };
            for (k, byte) in bytes(four).into_iter().enumerate() {
                // SAFETY: as above.
                *sum = unsafe { stream.add(*sum, byte, 4 * step + k) };
            }
        }
    }
    let first = terms / 4 * 4;
    for (sum, stream) in sums.iter_mut().zip(&streams) {
        if first < terms {
            // SAFETY: the last terms of the stream, in a vector of their own.
            let four = unsafe { load_64(stream.weights.wrapping_add(16 * first)) };
            for (term, byte) in (first..terms).zip(bytes(four)) {
                // SAFETY: as above.
                *sum = unsafe { stream.add(*sum, byte, term) };
            }
        }
    }
    sums
}

/// The signed bytes of each lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn bytes(four: __m512i) -> [__m512i; 4] {
    [
        _mm512_slli_epi32::<24>(four),
        _mm512_slli_epi32::<16>(four),
        _mm512_slli_epi32::<8>(four),
        four,
    ]
    .map(|up| _mm512_srai_epi32::<24>(up))
}

impl Stream {
    /// `sum` and term `term`, of these weights.
    ///
    /// # Safety
    /// The stream has this term; vector instructions present.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn add(&self, sum: __m512, weights: __m512i, term: usize) -> __m512 {
        let weights = _mm512_mul_ps(_mm512_cvtepi32_ps(weights), self.scales);
        // SAFETY: the caller's promise.
        let input = _mm512_set1_ps(unsafe { *self.inputs.wrapping_add(term) });
        _mm512_fmadd_ps(input, weights, sum)
    }
}
