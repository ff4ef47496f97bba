//! What sums of sixteen output channels need, and what those of a pixel do: beside the terms, what bounds are
//! made of.

use super::{Norms, Ordered, STEPS};
use crate::kernel::conv::avx512vnni::float::{FLOOR, SLACK, narrow, sane};
use crate::kernel::conv::avx512vnni::pixels::Pixels;
use crate::kernel::conv::avx512vnni::{MOST_PIXELS, ROOM};
use crate::kernel::conv::float as definition;
use crate::kernel::split::{Aborted, Budget};
use crate::kernel::vector::turn::turned_words;
use crate::kernel::vector::{load_64, load_masked_64, mask_64};
use crate::memory::usize_of;
use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_abs_epi8, _mm512_add_epi32, _mm512_add_ps,
    _mm512_avg_epu8, _mm512_cvtepi32_ps, _mm512_cvtepu32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_mask_blend_epi8, _mm512_min_epu8, _mm512_mullo_epi32, _mm512_or_si512, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32,
    _mm512_sqrt_ps, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_subs_epu8,
};
use std::sync::OnceLock;

/// How many bytes ahead weights are asked for: they come from memory here, and to the tiles from a cache.
const AHEAD: usize = 2 << 10;

/// No sum is larger: 2^15 terms of 255 and 128.
const LARGEST_SUM: f64 = 1_073_741_824.0;

/// Of each step of a segment, the square of what its terms count in the bound: the most of four.
const SQUARES: [f32; STEPS] = {
    let mut squares = [0.0; STEPS];
    let mut step = 0;
    while step < STEPS {
        let (first, middle) = (4 * step, 2 * STEPS);
        let sums = if first < middle { middle - first } else { first + 3 - middle };
        #[expect(clippy::cast_precision_loss, reason = "some hundred")]
        let square = ((sums + 2) * (sums + 2)) as f32;
        squares[step] = square;
        step += 1;
    }
    squares
};

/// Sixteen output channels.
pub(super) struct Block {
    /// With an input's zero point, what to add before each segment.
    pub(super) shifts: Vec<[i32; 16]>,
    /// As the record has them.
    pub(super) weight_scale: [f32; 16],
    pub(super) record_bias: [f32; 16],
    /// In codes.
    pub(super) multiplier: [f32; 16],
    pub(super) bias: [f32; 16],
    pub(super) by_sizes: [f32; 16],
    pub(super) by_norm: [f32; 16],
    pub(super) by_bias: [f32; 16],
}

/// Where the terms of a tile lie.
pub(super) struct Terms {
    pub(super) rows: [*const u8; MOST_PIXELS],
    pub(super) norms: [f32; ROOM],
}

impl Ordered<'_> {
    /// `count` blocks from `first` of all groups on.
    ///
    /// # Safety
    /// As of [`super::run`]; the blocks exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn made(
        &self,
        first: i64,
        count: usize,
        budget: &mut Budget<'_>,
    ) -> Result<[Option<&Block>; 4], Aborted> {
        let mut made = [None; 4];
        let first = usize_of(first.unsigned_abs());
        for (made, index) in made.iter_mut().zip(first..first + count) {
            if self.blocks[index].get().is_none() {
                budget.spend(16 * self.terms)?;
                // SAFETY: the caller's promise. Another worker may have been faster.
                let _ = self.blocks[index].set(unsafe { self.block(index) });
            }
            *made = self.blocks[index].get();
        }
        Ok(made)
    }

    /// Sixteen channels: block `index` of all groups.
    ///
    /// # Safety
    /// As of [`super::run`]; the block exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn block(&self, index: usize) -> Block {
        let (job, p) = (self.job, self.job.problem);
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        let mut at = self.weights(index);
        let mut shifts = Vec::new();
        // Two by turns, as each step would wait for the one before.
        let (mut norm, mut other) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        let (one, most) = (_mm512_set1_epi8(1), _mm512_set1_epi8(127));
        let less = _mm512_set1_epi32(-i32::from(p.input_zero_point));
        if p.input_zero_point != 0 {
            shifts.resize(self.steps.div_ceil(STEPS), [0; 16]);
        }
        for first in (0..self.steps).step_by(STEPS) {
            let mut sum = _mm512_setzero_si512();
            for square in &SQUARES[..STEPS.min(self.steps - first)] {
                // SAFETY: as many fours of weights as the block has.
                let four = unsafe { load_64(at) };
                at = at.wrapping_add(64);
                // A hint, which reads nothing: any address will do.
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                let size = _mm512_min_epu8(_mm512_abs_epi8(four), most);
                if !shifts.is_empty() {
                    sum = _mm512_dpbusd_epi32(sum, one, four);
                }
                let squares = _mm512_dpbusd_epi32(_mm512_setzero_si512(), size, size);
                let squares = _mm512_cvtepi32_ps(squares);
                (norm, other) = (other, _mm512_fmadd_ps(squares, _mm512_set1_ps(*square), norm));
            }
            if let Some(shift) = shifts.get_mut(first / STEPS) {
                *shift = lanes_of(_mm512_mullo_epi32(sum, less));
            }
        }
        let norm = _mm512_add_ps(norm, other);
        let mut norms = [0.0; 16];
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(norms.as_mut_ptr(), norm) };
        let mut block = Block {
            shifts,
            weight_scale: [0.0; 16],
            record_bias: [0.0; 16],
            multiplier: [0.0; 16],
            bias: [0.0; 16],
            by_sizes: [0.0; 16],
            by_norm: [0.0; 16],
            by_bias: [0.0; 16],
        };
        let u = 2f64.powi(-24) * SLACK;
        let first = index / job.blocks * p.group_outputs + index % job.blocks * 16;
        let count = (p.group_outputs - index % job.blocks * 16).min(16);
        for (lane, oc) in (first..first + count).enumerate() {
            let record = definition::record(p, oc);
            let [sx, sw, sy] =
                [self.float.input_scale, record.weight_scale, self.float.output_scale]
                    .map(f64::from);
            let (multiplier, bias) = (sx * sw / sy, f64::from(record.bias) / sy);
            block.weight_scale[lane] = record.weight_scale;
            block.record_bias[lane] = record.bias;
            block.multiplier[lane] = narrow(multiplier);
            block.bias[lane] = narrow(bias);
            block.by_sizes[lane] = narrow(multiplier * self.by_sizes * u);
            block.by_norm[lane] = narrow(multiplier * f64::from(norms[lane]).sqrt() * u);
            let by_bias = (bias.abs() * self.by_bias + self.always) * u + FLOOR;
            // Sums in codes become integers before they are clamped.
            let fits = multiplier * LARGEST_SUM + bias.abs() < LARGEST_SUM;
            let bounded = fits && sane(self.float, record);
            block.by_bias[lane] = if bounded { narrow(by_bias) } else { f32::INFINITY };
        }
        block
    }

    /// Where the terms of `pixels` lie, of one group, and what bounds need of them; `tile` is theirs.
    ///
    /// # Safety
    /// As of [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) unsafe fn terms(
        &self,
        pixels: &Pixels,
        tile: i64,
        group: i64,
        kept: &Norms,
    ) -> Terms {
        let rows = self.rows(pixels, group);
        let place = tile.checked_mul(self.job.problem.groups).map(|first| first + group);
        let kept = place.and_then(|place| kept.get(usize_of(place.unsigned_abs())));
        if let Some(&norms) = kept.and_then(OnceLock::get) {
            return Terms { rows, norms };
        }
        // SAFETY: as many bytes as the sum has terms.
        let norms = unsafe { self.norms(&rows[..pixels.count]) };
        if let Some(kept) = kept {
            // Another worker may have been faster.
            let _ = kept.set(norms);
        }
        Terms { rows, norms }
    }

    /// The norms of the terms of pixels.
    ///
    /// # Safety
    /// As many bytes at each of `rows` as a sum has terms; vector instructions present.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn norms(&self, rows: &[*const u8]) -> [f32; ROOM] {
        let zero = _mm512_set1_epi8(self.job.problem.input_zero_point.cast_signed());
        let is_shifted = self.job.problem.input_zero_point != 0;
        let (none, most) = (_mm512_setzero_si512(), _mm512_set1_epi8(127));
        let (whole, mask) = (self.terms / 64, mask_64(self.terms % 64));
        let mut sums = [none; ROOM];
        for (sum, &row) in sums.iter_mut().zip(rows) {
            let mut at = row;
            for part in 0..whole + i64::from(mask != 0) {
                let codes = if part < whole {
                    // SAFETY: the caller's promise.
                    unsafe { load_64(at) }
                } else {
                    // SAFETY: the caller's promise.
                    let codes = unsafe { load_masked_64(mask, at) };
                    _mm512_mask_blend_epi8(mask, zero, codes)
                };
                at = at.wrapping_add(64);
                let mut size = codes;
                if is_shifted {
                    let (above, below) =
                        (_mm512_subs_epu8(codes, zero), _mm512_subs_epu8(zero, codes));
                    size = _mm512_or_si512(above, below);
                }
                // Half of it, rounded up, fits the signed factor, but for that of 255: the slack has it.
                let half = _mm512_min_epu8(_mm512_avg_epu8(size, none), most);
                *sum = _mm512_dpbusd_epi32(*sum, size, half);
            }
        }
        let mut totals = none;
        for lanes in turned_words(sums) {
            totals = _mm512_add_epi32(totals, lanes);
        }
        let mut norms = [0.0; ROOM];
        let found = _mm512_sqrt_ps(_mm512_cvtepu32_ps(_mm512_slli_epi32::<1>(totals)));
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(norms.as_mut_ptr(), found) };
        norms
    }
}

/// Sixteen lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn lanes_of(vector: __m512i) -> [i32; 16] {
    let mut lanes = [0; 16];
    // SAFETY: sixteen integers.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), vector) };
    lanes
}
