//! Codes that integer sums leave open, summed in floats: sixteen at a time, of whatever pixels and channels.
//!
//! ```text
//! lane i  =  one open code: a pixel and a channel
//! inputs   rows of the sixteen pixels, turned: a vector is one step, four terms a lane
//! weights  a step of each block of channels, of which every lane takes its channel's four
//! ```
//!
//! The terms of a lane are added one by one in the order of the floats, as the definition does. Few channels of a
//! block are open in one pixel, so summing whole blocks would spend most of each vector on settled codes.

use super::Ordered;
use super::block::Block;
use crate::kernel::conv::avx512vnni::usize_of;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::turn::turned_words;
use crate::kernel::vector::{load_64, load_masked_64};
use std::arch::x86_64::{
    __m512, __m512i, _mm_loadu_si128, _mm_storeu_si128, _mm512_add_epi32, _mm512_add_ps,
    _mm512_castsi512_si128, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtps_epi32,
    _mm512_div_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_permutexvar_epi32, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srai_epi32,
    _mm512_zextsi128_si512,
};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Codes that are summed side by side.
const LANES: usize = 16;

/// Channels of a block that are open in a pixel.
pub(super) struct Open {
    /// Of all groups.
    pub(super) block: i64,
    pub(super) lanes: u16,
    /// The pixel's terms.
    pub(super) row: *const u8,
    /// Of the block's first channel.
    pub(super) out: *mut u8,
    pub(super) aux: *const u8,
}

/// Open codes to be summed side by side.
struct Lanes {
    count: usize,
    rows: [*const u8; LANES],
    out: [*mut u8; LANES],
    aux: [*const u8; LANES],
    weight_scale: [f32; LANES],
    bias: [f32; LANES],
    sources: Vec<Source>,
}

/// The lanes of one block of channels, and which of its channels each is.
struct Source {
    block: i64,
    weights: *const u8,
    lanes: u16,
    channels: [i32; LANES],
}

impl Lanes {
    fn none() -> Self {
        Self {
            count: 0,
            rows: [std::ptr::null(); LANES],
            out: [std::ptr::null_mut(); LANES],
            aux: [std::ptr::null(); LANES],
            weight_scale: [0.0; LANES],
            bias: [0.0; LANES],
            sources: Vec::new(),
        }
    }

    /// Adds `channel` of what is `open`, whose block has these weights. At most [`LANES`] are there.
    fn push(&mut self, open: &Open, channel: usize, block: &Block, weights: *const u8) {
        let lane = self.count;
        self.count += 1;
        // What lies behind the last is a row that exists, and counts for nothing.
        self.rows[lane..].fill(open.row);
        self.out[lane] = open.out.wrapping_add(channel);
        self.aux[lane] = open.aux.wrapping_add(channel);
        self.weight_scale[lane] = block.weight_scale[channel];
        self.bias[lane] = block.record_bias[channel];
        if self.sources.last().is_none_or(|last| last.block != open.block) {
            let channels = [0; LANES];
            self.sources.push(Source { block: open.block, weights, lanes: 0, channels });
        }
        if let Some(source) = self.sources.last_mut() {
            source.lanes |= 1 << lane;
            source.channels[lane] = i32::try_from(channel).unwrap_or(0);
        }
    }

    fn clear(&mut self) {
        self.count = 0;
        self.sources.clear();
    }
}

impl Ordered<'_> {
    /// Sums all that is `open` in floats, and stores the codes.
    ///
    /// # Safety
    /// Vector instructions present; rows have as many terms as a sum, and blocks exist and are made. The open
    /// channels lie in the output, and with an addition in the auxiliary tensor.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn settle(
        &self,
        stage: &Stage,
        open: &mut [Open],
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        // Each block of channels among the lanes is one step more for all terms.
        open.sort_unstable_by_key(|open| open.block);
        let mut lanes = Lanes::none();
        for open in open.iter() {
            let Some(block) = self.blocks[usize_of(open.block.unsigned_abs())].get() else {
                continue;
            };
            for channel in (0..LANES).filter(|channel| open.lanes >> channel & 1 != 0) {
                lanes.push(open, channel, block, self.weights(open.block));
                if lanes.count == LANES {
                    // SAFETY: the caller's promise.
                    unsafe { self.settle_lanes(stage, &lanes, budget)? };
                    lanes.clear();
                }
            }
        }
        if lanes.count > 0 {
            // SAFETY: the caller's promise.
            unsafe { self.settle_lanes(stage, &lanes, budget)? };
        }
        Ok(())
    }

    /// # Safety
    /// As of [`Self::settle`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn settle_lanes(
        &self,
        stage: &Stage,
        lanes: &Lanes,
        budget: &mut Budget<'_>,
    ) -> Result<(), Aborted> {
        budget.spend(16 * self.terms)?;
        // SAFETY: the caller's promise.
        let sum = unsafe { self.sum(lanes) };
        // SAFETY: the caller's promise.
        unsafe { self.store(stage, lanes, sum) };
        Ok(())
    }

    /// The sums of `lanes`, bias included.
    ///
    /// # Safety
    /// As of [`Self::settle`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn sum(&self, lanes: &Lanes) -> __m512 {
        const STEPS: usize = 16;
        let zero_point = i32::from(self.job.problem.input_zero_point);
        // SAFETY: sixteen floats.
        let scales = unsafe { _mm512_loadu_ps(lanes.weight_scale.as_ptr()) };
        // SAFETY: sixteen floats.
        let bias = unsafe { _mm512_loadu_ps(lanes.bias.as_ptr()) };
        let terms = Terms {
            less: _mm512_set1_epi32(-zero_point),
            input_scale: _mm512_set1_ps(self.float.input_scale),
            weight_scales: scales,
        };
        let bias_first = self.float.order.bias_first;
        let mut total = if bias_first { bias } else { _mm512_setzero_ps() };
        let mut step = 0;
        while step < self.steps {
            let block_end = (step + self.block_steps).min(self.steps);
            let mut part = _mm512_setzero_ps();
            while step < block_end {
                let count = (block_end - step).min(STEPS);
                let mask = u64::MAX >> (64 - 4 * count);
                let mut rows = [_mm512_setzero_si512(); LANES];
                for (row, at) in rows.iter_mut().zip(lanes.rows) {
                    // SAFETY: the bytes of so many steps of the row, pad lanes included.
                    *row = unsafe { load_masked_64(mask, at.wrapping_add(4 * step)) };
                }
                for inputs in &turned_words(rows)[..count] {
                    // SAFETY: a step of the blocks.
                    let weights = unsafe { lanes.weights(step) };
                    let left = usize_of(self.terms.unsigned_abs()) - 4 * step;
                    part = terms.add(part, *inputs, weights, left);
                    step += 1;
                }
            }
            total = _mm512_add_ps(total, part);
        }
        if bias_first { total } else { _mm512_add_ps(total, bias) }
    }

    /// Stores the codes of `lanes`, whose sums are `total`.
    ///
    /// # Safety
    /// As of [`Self::settle`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn store(&self, stage: &Stage, lanes: &Lanes, total: __m512) {
        let value = _mm512_div_ps(total, _mm512_set1_ps(self.float.output_scale));
        let (low, high) = (_mm512_set1_ps(self.codes.low), _mm512_set1_ps(self.codes.high));
        // In this order a NaN becomes the lowest code.
        let clamped = _mm512_min_ps(_mm512_max_ps(value, low), high);
        let zero_point = _mm512_set1_epi32(self.codes.zero_point.into());
        let codes = _mm512_add_epi32(_mm512_cvtps_epi32(clamped), zero_point);
        let mut bytes = _mm512_cvtepi32_epi8(codes);
        if !stage.plain {
            let mut aux = [0u8; LANES];
            if self.job.problem.aux.is_some() {
                for (aux, &at) in aux.iter_mut().zip(&lanes.aux[..lanes.count]) {
                    // SAFETY: the caller's promise; a byte is aligned, and only ever read.
                    *aux = unsafe { AtomicU8::from_ptr(at.cast_mut()) }.load(Relaxed);
                }
            }
            // SAFETY: sixteen bytes.
            let aux = unsafe { _mm_loadu_si128(aux.as_ptr().cast()) };
            let [wide, aux] = [_mm512_zextsi128_si512(bytes), _mm512_zextsi128_si512(aux)];
            bytes = _mm512_castsi512_si128(stage.rest_of_codes(wide, aux));
        }
        let mut codes = [0u8; LANES];
        // SAFETY: sixteen bytes.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), bytes) };
        for (&to, code) in lanes.out[..lanes.count].iter().zip(codes) {
            // SAFETY: the caller's promise; a byte is aligned.
            unsafe { AtomicU8::from_ptr(to) }.store(code, Relaxed);
        }
    }
}

impl Lanes {
    /// Four weights of each lane's channel, from step `step` on; zero where there is no lane.
    ///
    /// # Safety
    /// Vector instructions present; the blocks of channels have this step.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn weights(&self, step: usize) -> __m512i {
        let mut weights = _mm512_setzero_si512();
        for source in &self.sources {
            // SAFETY: sixteen integers.
            let channels = unsafe { _mm512_loadu_si512(source.channels.as_ptr().cast()) };
            // SAFETY: a step of the block.
            let four = unsafe { load_64(source.weights.wrapping_add(64 * step)) };
            weights = _mm512_mask_permutexvar_epi32(weights, source.lanes, channels, four);
        }
        weights
    }
}

/// How codes become floats.
#[derive(Clone, Copy)]
struct Terms {
    /// The input's zero point, negated.
    less: __m512i,
    input_scale: __m512,
    weight_scales: __m512,
}

impl Terms {
    /// `sum` and the terms of a step in order, at most `left` of four.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn add(self, sum: __m512, inputs: __m512i, weights: __m512i, left: usize) -> __m512 {
        // A product with one byte that is 1 takes out that byte.
        let byte = |k: u32| _mm512_dpbusd_epi32(self.less, inputs, _mm512_set1_epi32(1 << (8 * k)));
        let mut sum = self.add_one(sum, byte(0), _mm512_slli_epi32::<24>(weights));
        if left > 1 {
            sum = self.add_one(sum, byte(1), _mm512_slli_epi32::<16>(weights));
        }
        if left > 2 {
            sum = self.add_one(sum, byte(2), _mm512_slli_epi32::<8>(weights));
        }
        if left > 3 {
            sum = self.add_one(sum, byte(3), weights);
        }
        sum
    }

    /// `sum` and one term, of which the weight is in the highest byte.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn add_one(self, sum: __m512, input: __m512i, weight: __m512i) -> __m512 {
        let input = _mm512_mul_ps(_mm512_cvtepi32_ps(input), self.input_scale);
        let weight = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(weight));
        _mm512_fmadd_ps(input, _mm512_mul_ps(weight, self.weight_scales), sum)
    }
}
