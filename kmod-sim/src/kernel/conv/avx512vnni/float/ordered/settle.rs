//! Codes that integer sums leave open, summed in floats: sixteen channels of a pixel at a time.
//!
//! One step waits for the one before it, in its block of terms alone. So pixels are summed side by side for which
//! the same weights become floats, and where a block of channels is open in one pixel only, blocks of terms,
//! of one sum or of several; they are added up in order when all are there.

use super::Ordered;
use super::block::Block;
use crate::kernel::conv::avx512vnni::float::Unsettled;
use crate::kernel::conv::avx512vnni::float::store;
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

/// Most pixels that weights become floats for at a time: as many steps a cycle as two units do in the time
/// that one step takes.
const TOGETHER: usize = 8;

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
        unsettled: &mut [Unsettled],
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        unsettled.sort_unstable();
        let blocks = self.steps.div_ceil(self.block_steps);
        let (mut sums, mut inputs, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let mut alone = Vec::new();
        for of_block in unsettled.chunk_by(|a, b| a.block == b.block) {
            let mut left = of_block;
            while left.len() > 1 {
                budget.spend(2 * 16 * self.terms)?;
                let some;
                (some, left) = left.split_at(left.len().min(TOGETHER));
                // SAFETY: the caller's promise.
                unsafe { self.prepare(some, &mut sums, &mut inputs) };
                parts.clear();
                parts.resize(sums.len() * blocks, _mm512_setzero_ps());
                let kernel = match sums.len() {
                    ..=2 => Self::together::<2, 2>,
                    3..=4 => Self::together::<4, 1>,
                    _ => Self::together::<TOGETHER, 1>,
                };
                // SAFETY: the caller's promise; the inputs are of these sums.
                unsafe { kernel(self, &sums, &inputs, &mut parts) };
                for (sum, parts) in sums.iter().zip(parts.chunks_exact(blocks)) {
                    // SAFETY: the lanes exist.
                    unsafe { self.store(stage, sum, parts) };
                }
            }
            alone.extend_from_slice(left);
        }
        for some in alone.chunks(ABREAST) {
            budget.spend(4 * 16 * self.terms)?;
            // SAFETY: the caller's promise.
            unsafe { self.prepare(some, &mut sums, &mut inputs) };
            let mut streams = Vec::new();
            for (sum, inputs) in sums.iter().zip(inputs.chunks_exact(self.room())) {
                // SAFETY: sixteen floats.
                let scales = unsafe { _mm512_loadu_ps(sum.block.weight_scale.as_ptr()) };
                streams.extend((0..blocks).map(|block| Stream {
                    inputs: inputs[4 * block * self.block_steps..].as_ptr(),
                    weights: sum.weights.wrapping_add(64 * block * self.block_steps),
                    scales,
                }));
            }
            // SAFETY: the streams are of the sums.
            let parts = unsafe { self.parts(&streams, blocks) };
            for (sum, parts) in sums.iter().zip(parts.chunks_exact(blocks)) {
                // SAFETY: the lanes exist.
                unsafe { self.store(stage, sum, parts) };
            }
        }
        Ok(())
    }

    /// Floats of a pixel's terms, whole vectors.
    fn room(&self) -> usize {
        4 * self.steps.next_multiple_of(4)
    }

    /// What is to be summed of `some`, and their terms as floats.
    ///
    /// # Safety
    /// As of [`Self::settle`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn prepare<'s>(
        &'s self,
        some: &[Unsettled],
        sums: &mut Vec<Sum<'s>>,
        inputs: &mut Vec<f32>,
    ) {
        let (job, p) = (self.job, self.job.problem);
        inputs.resize(self.room() * some.len(), 0f32);
        sums.clear();
        for (one, inputs) in some.iter().zip(inputs.chunks_exact_mut(self.room())) {
            let index = usize_of(one.block.unsigned_abs());
            let Some(block) = self.blocks[index].get() else { continue };
            let (group, within) = (one.block / job.blocks, one.block % job.blocks);
            let (row, ox) = (one.pixel / job.ofm_w, one.pixel % job.ofm_w);
            let (n, oy) = (row / job.ofm_h, row % job.ofm_h);
            let (y, x) = (job.window.row(oy, 0), job.window.column(ox, 0));
            let inside = (0..job.ifm_h).contains(&y) && (0..job.ifm_w).contains(&x);
            let from = if inside { job.ifm.at(n, y, x) } else { job.padding.as_ptr().cast_mut() };
            let from = from.wrapping_offset(isize_of(group * p.group_inputs));
            // SAFETY: as many bytes as the sum has terms, of its one tap.
            unsafe { self.dequantise(from, inputs) };
            let to = isize_of(group * p.group_outputs + within * 16);
            let aux = job.aux.map_or(std::ptr::null_mut(), |aux| aux.at(n, oy, ox));
            sums.push(Sum {
                block,
                lanes: one.lanes,
                weights: self.weights(one.block),
                out: job.ofm.at(n, oy, ox).wrapping_offset(to),
                aux: aux.wrapping_offset(to),
            });
        }
    }

    /// The blocks of terms of `sums`, at most `PIXELS` of one block of channels, sum by sum to `parts`;
    /// `ABREAST` blocks of terms side by side.
    ///
    /// # Safety
    /// Vector instructions present; `inputs` are the terms of the sums.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn together<const PIXELS: usize, const ABREAST: usize>(
        &self,
        sums: &[Sum<'_>],
        inputs: &[f32],
        parts: &mut [__m512],
    ) {
        let Some(first) = sums.first() else { return };
        // SAFETY: sixteen floats.
        let scales = unsafe { _mm512_loadu_ps(first.block.weight_scale.as_ptr()) };
        let each: [*const f32; PIXELS] =
            std::array::from_fn(|pixel| inputs[pixel.min(sums.len() - 1) * self.room()..].as_ptr());
        let all = usize_of(self.terms.unsigned_abs());
        let whole = 4 * self.block_steps;
        let blocks = parts.len() / sums.len();
        let mut block = 0;
        while block < blocks {
            let inputs = each.map(|inputs| inputs.wrapping_add(whole * block));
            let weights = first.weights.wrapping_add(16 * whole * block);
            let are_whole = whole * (block + ABREAST) <= all;
            let found = if are_whole {
                // SAFETY: so many whole blocks of terms are left.
                unsafe { shared::<PIXELS, ABREAST>(inputs, weights, scales, whole, whole) }
            } else {
                let terms = whole.min(all - whole * block);
                // SAFETY: so many terms are left.
                let [found] = unsafe { shared::<PIXELS, 1>(inputs, weights, scales, terms, whole) };
                [found; ABREAST]
            };
            let abreast = if are_whole { ABREAST } else { 1 };
            for (block, found) in (block..).zip(&found[..abreast]) {
                for (parts, part) in parts.chunks_exact_mut(blocks).zip(found) {
                    parts[block] = *part;
                }
            }
            block += abreast;
        }
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

/// The sums of `terms` terms of several pixels by the same weights, step by step from zero: of `ABREAST`
/// blocks of terms, `whole` terms from each other.
///
/// # Safety
/// Vector instructions present; so many terms at each of `inputs`, and their weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn shared<const PIXELS: usize, const ABREAST: usize>(
    inputs: [*const f32; PIXELS],
    weights: *const u8,
    scales: __m512,
    terms: usize,
    whole: usize,
) -> [[__m512; PIXELS]; ABREAST] {
    let mut sums = [[_mm512_setzero_ps(); PIXELS]; ABREAST];
    macro_rules! steps {
        ($first:expr, $count:expr) => {
            for (block, sums) in sums.iter_mut().enumerate() {
                let at = block * whole + $first;
                // SAFETY: four terms, or the last ones, in a vector of their own.
                let four = unsafe { load_64(weights.wrapping_add(16 * at)) };
                for (term, byte) in (at..at + $count).zip(bytes(four)) {
                    let weights = _mm512_mul_ps(_mm512_cvtepi32_ps(byte), scales);
                    for (sum, inputs) in sums.iter_mut().zip(&inputs) {
                        // SAFETY: a term of the pixel.
                        let input = _mm512_set1_ps(unsafe { *inputs.wrapping_add(term) });
                        *sum = _mm512_fmadd_ps(input, weights, *sum);
                    }
                }
            }
        };
    }
    let fours = terms / 4 * 4;
    for first in (0..fours).step_by(4) {
        steps!(first, 4);
    }
    if fours < terms {
        steps!(fours, terms - fours);
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
