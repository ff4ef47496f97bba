//! 24 outputs: a block of 16, and half a one, of which two pixels make one.
//!
//! ```text
//! pixel a: outputs 0-15    pixel b: outputs 0-15    outputs 16-23 of a | of b
//! ```
//!
//! Three products for two pixels, not four. Of what a third one multiplies, the inputs are halves of those
//! that are in registers already, and the weights the lower half of a block's, read twice.
//! Unsafe: as [`super::pass`], whose scheme this is.

use super::super::Job;
use super::{
    BARE, MOST_OF_PAIRS, PLAIN, Panel, Pixels, SUM, SUM_AUX_FIRST, Segment, Strip, TABLE, TABLE_SUM,
};
use crate::kernel::vector::stage::Stage;
use crate::kernel::vector::{broadcast_4, load_64};
use std::arch::x86_64::{
    __m128i, __m512i, _mm_loadl_epi64, _mm_loadu_si128, _mm_storel_epi64, _mm_storeu_si128,
    _mm_unpackhi_epi64, _mm_unpacklo_epi64, _mm256_loadu_si256, _mm512_broadcast_i64x4,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_castsi512_si128, _mm512_dpbusd_epi32,
    _mm512_extracti32x4_epi32, _mm512_mask_blend_epi32, _mm512_setzero_si512, _mm512_shuffle_i64x2,
};

/// Fewest steps of a sum: one in each third.
const FEWEST_STEPS: i64 = 3;

/// Whether a job has outputs that are paired.
pub(super) fn takes(job: &Job<'_>) -> bool {
    let p = job.problem;
    p.groups == 1
        && p.group_outputs == 24
        && job.block_bytes >= 64 * FEWEST_STEPS
        && 2 * job.block_bytes <= MOST_OF_PAIRS
}

/// Makes the second of a panel's blocks one of pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn double(panel: &mut Panel) {
    const LOW_TWICE: i32 = 0b01_00_01_00;
    panel.bias[1] = _mm512_shuffle_i64x2::<LOW_TWICE>(panel.bias[1], panel.bias[1]);
    let multipliers = _mm512_castps_si512(panel.multipliers[1]);
    let twice = _mm512_shuffle_i64x2::<LOW_TWICE>(multipliers, multipliers);
    panel.multipliers[1] = _mm512_castsi512_ps(twice);
}

/// Kernels for one kind of stages.
const fn kernels<const KIND: u8>() -> Pixels {
    [(pass::<4, KIND>, 8), (pass::<1, KIND>, 2), (single::<KIND>, 1)]
}

pub(super) const KERNELS: [Pixels; 6] = [
    kernels::<PLAIN>(),
    kernels::<SUM>(),
    kernels::<SUM_AUX_FIRST>(),
    kernels::<TABLE>(),
    kernels::<TABLE_SUM>(),
    kernels::<BARE>(),
];

/// One pixel of each segment, as both of a pair.
///
/// # Safety
/// As of [`pass`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn single<const KIND: u8>(stage: &Stage, panel: &Panel, strip: &Strip<'_>) {
    for segment in strip.segments {
        let twice = Segment { count: 2 * segment.count.min(1), input_pixel: 0, ..*segment };
        if twice.count > 0 {
            let twice = Strip { segments: &[twice], out_pixel: 0, aux_pixel: 0, ..*strip };
            // SAFETY: the caller's promise, for the same pixel twice.
            unsafe { pass::<1, KIND>(stage, panel, &twice) };
        }
    }
}

/// All that the segments of `strip` have of `PAIRS` pairs of pixels, at least once. Of a tile's products, a third follows each four of the
/// stage of the tile before it.
///
/// # Safety
/// As of [`super::run`]; the pixels exist, and the panel's second block is [`double`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn pass<const PAIRS: usize, const KIND: u8>(
    stage: &Stage,
    panel: &Panel,
    strip: &Strip<'_>,
) {
    // Those of the tile before.
    let (mut out, mut aux) = (std::ptr::null_mut::<u8>(), std::ptr::null::<u8>());
    // Of each pair: the first block of one pixel, of the other, the second of both.
    let mut before = [[_mm512_setzero_si512(); 3]; PAIRS];

    // Macros, as what is called with so many vectors is not inlined.
    macro_rules! stage {
        ($sums:expr, $block:literal, $codes:expr) => {{
            let multipliers = [panel.multipliers[$block]; 4];
            match KIND {
                BARE => Stage::bare_64($sums, multipliers),
                PLAIN => stage.small_64($sums, multipliers),
                SUM => stage.sum_of_codes::<false>($sums, multipliers, $codes),
                SUM_AUX_FIRST => stage.sum_of_codes::<true>($sums, multipliers, $codes),
                TABLE => stage.small_table_64($sums, multipliers),
                _ => stage.table_sum_of_codes($sums, multipliers, $codes),
            }
        }};
    }
    let sums = KIND == SUM || KIND == SUM_AUX_FIRST || KIND == TABLE_SUM;
    let none = _mm512_castsi512_si128(_mm512_setzero_si512());
    let place = |i: usize, step: isize| step.wrapping_mul(i.min(2 * PAIRS - 1).cast_signed());
    // The first block of four pixels.
    macro_rules! first {
        ($four:literal) => {
            if 4 * $four < 2 * PAIRS {
                let pixel = |i: usize| (4 * $four + i).min(2 * PAIRS - 1);
                let sum = std::array::from_fn(|i| before[pixel(i) / 2][pixel(i) % 2]);
                let codes = std::array::from_fn(|i| {
                    let from = aux.wrapping_offset(place(4 * $four + i, strip.aux_pixel));
                    // SAFETY: 16 lanes of a pixel of the auxiliary tensor.
                    if sums { unsafe { _mm_loadu_si128(from.cast()) } } else { none }
                });
                let bytes = quarters(stage!(sum, 0, codes));
                for i in 0..4.min(2 * PAIRS - 4 * $four) {
                    let to = out.wrapping_offset(place(4 * $four + i, strip.out_pixel));
                    // SAFETY: 16 lanes of a pixel of the output.
                    unsafe { _mm_storeu_si128(to.cast(), bytes[i]) };
                }
            }
        };
    }
    // The other half block of all pixels.
    macro_rules! second {
        () => {
            let sum = std::array::from_fn(|i| before[i.min(PAIRS - 1)][2]);
            let codes = std::array::from_fn(|i| {
                let from = |i| aux.wrapping_offset(place(i, strip.aux_pixel)).wrapping_add(16);
                let eight = |i| {
                    // SAFETY: 8 lanes of a pixel of the auxiliary tensor.
                    if sums { unsafe { _mm_loadl_epi64(from(i).cast()) } } else { none }
                };
                _mm_unpacklo_epi64(eight(2 * i), eight(2 * i + 1))
            });
            let bytes = quarters(stage!(sum, 1, codes));
            for i in 0..PAIRS {
                let to = |i| out.wrapping_offset(place(i, strip.out_pixel)).wrapping_add(16);
                // SAFETY: 8 lanes of a pixel of the output.
                unsafe { _mm_storel_epi64(to(2 * i).cast(), bytes[i]) };
                let other = _mm_unpackhi_epi64(bytes[i], bytes[i]);
                // SAFETY: as above.
                unsafe { _mm_storel_epi64(to(2 * i + 1).cast(), other) };
            }
        };
    }

    // Where the compiler knows it, it makes a permutation of a blend, which waits longer for fewer units.
    let upper = std::hint::black_box(0xff00_u16);
    let mut passed = false;
    let pixels = (2 * PAIRS).cast_signed();
    for segment in strip.segments {
        let mut input = segment.input;
        let (mut own_out, mut own_aux) = (segment.out, segment.aux);
        let steps = &strip.steps[segment.steps];
        for _ in 0..segment.count / (2 * PAIRS) {
            let [one, half, ..] = panel.bias;
            let mut acc = [[one, one, half]; PAIRS];
            let mut weights = panel.weights;
            macro_rules! products {
                ($third:literal) => {
                    for step in steps[$third] {
                        let at = input.wrapping_offset(*step);
                        // SAFETY: the weights of a step of the first block, within `weight_bytes`.
                        let whole = unsafe { load_64(weights) };
                        let lower = weights.wrapping_offset(panel.block_bytes);
                        // SAFETY: half of those of the second, likewise.
                        let lower = unsafe { _mm256_loadu_si256(lower.cast()) };
                        let lower = _mm512_broadcast_i64x4(lower);
                        for (pair, acc) in (0..).zip(&mut acc) {
                            let place = segment.input_pixel.wrapping_mul(2 * pair);
                            let a = at.wrapping_offset(place);
                            let b = a.wrapping_offset(segment.input_pixel);
                            // SAFETY: four channels of a pixel of the input, pad lanes included, or
                            // of its copy.
                            let a = unsafe { broadcast_4(a) };
                            // SAFETY: as above.
                            let b = unsafe { broadcast_4(b) };
                            acc[0] = _mm512_dpbusd_epi32(acc[0], a, whole);
                            acc[1] = _mm512_dpbusd_epi32(acc[1], b, whole);
                            let both = _mm512_mask_blend_epi32(upper, a, b);
                            acc[2] = _mm512_dpbusd_epi32(acc[2], both, lower);
                        }
                        weights = weights.wrapping_add(64);
                    }
                };
            }
            if passed {
                first!(0);
            }
            products!(0);
            if passed {
                first!(1);
            }
            products!(1);
            if passed {
                second!();
            }
            products!(2);
            input = input.wrapping_offset(segment.input_pixel.wrapping_mul(pixels));
            (out, aux) = (own_out, own_aux);
            own_out = own_out.wrapping_offset(strip.out_pixel.wrapping_mul(pixels));
            own_aux = own_aux.wrapping_offset(strip.aux_pixel.wrapping_mul(pixels));
            before = acc;
            passed = true;
        }
    }
    first!(0);
    first!(1);
    second!();
}

/// The quarters of a vector.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
fn quarters(bytes: __m512i) -> [__m128i; 4] {
    [
        _mm512_castsi512_si128(bytes),
        _mm512_extracti32x4_epi32::<1>(bytes),
        _mm512_extracti32x4_epi32::<2>(bytes),
        _mm512_extracti32x4_epi32::<3>(bytes),
    ]
}
