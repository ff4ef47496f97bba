//! Problems of many outputs whose weights of four blocks stay in the level-1 cache: those where the output
//! stage is a large part of the work. Sums pass through it without leaving the registers: on Zen 5 a store
//! of 64 bytes takes a cycle of both multipliers.
//!
//! ```text
//! 3 pixels of a row x 4 blocks, and the stage of the 3 pixels before them meanwhile
//! ```
//!
//! Products, conversions and packing have units of their own in a processor, but none looks far enough
//! ahead to fill them from products and a stage that come one behind the other.
//!
//! Pixels pass by in strips of a row, a panel of blocks after the other. In a strip every address is a
//! multiple of the same distances away from the first, so that a tile has none to compute.

mod strip;

use super::Job;
use crate::kernel::Stop;
use crate::kernel::split::{POLL_MACS, Split};
use crate::kernel::vector::stage::{Kind, Stage};
use crate::kernel::vector::{Channels, broadcast_4, is_bounded, load_64, load_records, store_64};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm_storeu_si128, _mm256_storeu_si256,
    _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_dpbusd_epi32, _mm512_extracti32x4_epi32,
    _mm512_extracti64x4_epi64, _mm512_setzero_si512,
};
use strip::{Input, Strip, Windows};

/// Blocks of a panel; the last one may have fewer.
const BLOCKS: i64 = 4;

/// Fewest steps of a sum: with fewer, the weights are not worth a pass of their own.
const FEWEST_STEPS: i64 = 16;

/// Most bytes of a panel's weights.
const MOST_WEIGHTS: i64 = 32 << 10;

/// Most panels of a chunk.
const MOST_PANELS: usize = 8;

/// Pixels that a chunk should have at least, so that a panel's weights serve many.
const PIXELS_A_CHUNK: i64 = 96;

/// Whether this kernel takes `job`.
pub(super) fn takes(job: &Job<'_>, channels: Channels) -> bool {
    let p = job.problem;
    let (stage, plain) = (&p.stage, p.stage.table_0.is_none() && p.stage.table_1.is_none());
    let staged = stage.add.is_none_or(|terms| plain && is_bounded(terms));
    staged
        && channels.small
        && channels.symmetric
        && job.floats.is_none()
        && p.group_outputs % 16 == 0
        && job.blocks >= 3
        && job.block_bytes >= 64 * FEWEST_STEPS
        && BLOCKS * job.block_bytes <= MOST_WEIGHTS
        && strip::takes(job)
}

/// Runs `job`.
///
/// # Safety
/// As of [`super::run`]; `takes(job, channels)`.
pub(super) unsafe fn run(job: &Job<'_>, channels: Channels, split: &Split<'_>) -> Result<(), Stop> {
    // SAFETY: the caller's promise.
    let plan = unsafe { Plan::new(job, split) };
    split.chunks(plan.chunks(), &|chunk, _| {
        // SAFETY: the caller's promise.
        unsafe { plan.chunk(job, channels, chunk) };
        Ok(())
    })
}

/// How a job is cut: strips of rows, panels of blocks, chunks of both.
struct Plan {
    input: Input,
    strips: i64,
    strips_a_chunk: i64,
    panels_a_group: i64,
    panels: i64,
    panels_a_chunk: i64,
}

impl Plan {
    /// # Safety
    /// As of [`run`].
    unsafe fn new(job: &Job<'_>, split: &Split<'_>) -> Self {
        // SAFETY: the caller's promise.
        let input = unsafe { Input::new(job) };
        let strips = input.strips(job);
        let panels_a_group = (job.blocks + BLOCKS - 1) / BLOCKS;
        let panels = panels_a_group * job.problem.groups;
        let macs = input.pixels * BLOCKS * (job.block_bytes / 4);
        let units = split.units_a_chunk(strips * panels, macs).min(POLL_MACS / macs).max(1);
        let strips_of_pixels = (PIXELS_A_CHUNK / input.pixels).clamp(1, strips);
        let most = i64::try_from(MOST_PANELS).expect("8");
        let panels_a_chunk = (units / strips_of_pixels).clamp(1, panels.min(most));
        let strips_a_chunk = (units / panels_a_chunk).clamp(1, strips);
        Self { input, strips, strips_a_chunk, panels_a_group, panels, panels_a_chunk }
    }

    fn chunks_of_strips(&self) -> i64 {
        (self.strips + self.strips_a_chunk - 1) / self.strips_a_chunk
    }

    fn chunks(&self) -> i64 {
        (self.panels + self.panels_a_chunk - 1) / self.panels_a_chunk * self.chunks_of_strips()
    }

    /// Computes one chunk.
    ///
    /// # Safety
    /// As of [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn chunk(&self, job: &Job<'_>, channels: Channels, chunk: i64) {
        // All strips pass by before the next weights are fetched.
        let first_panel = chunk / self.chunks_of_strips() * self.panels_a_chunk;
        let end_panel = (first_panel + self.panels_a_chunk).min(self.panels);
        let first_strip = chunk % self.chunks_of_strips() * self.strips_a_chunk;
        let end_strip = (first_strip + self.strips_a_chunk).min(self.strips);
        let stage = Stage::new(&job.problem.stage, channels);
        let runs = usize::from(job.window.kernel_h > 1);
        let kernels = &KERNELS[runs][match stage.kind() {
            Kind::Plain => usize::from(PLAIN),
            Kind::Sum => usize::from(SUM),
            Kind::SumAuxFirst => usize::from(SUM_AUX_FIRST),
            Kind::Table | Kind::Tables => usize::from(TABLE),
        }];
        let mut panels = [Panel::NONE; MOST_PANELS];
        let count = usize_of((end_panel - first_panel).unsigned_abs());
        for (at, panel) in (first_panel..end_panel).zip(&mut panels) {
            let (group, block) = (at / self.panels_a_group, at % self.panels_a_group * BLOCKS);
            // SAFETY: the block exists.
            unsafe { panel.fill(job, &self.input, group, block) };
        }
        let mut windows = Windows::default();
        for at in first_strip..end_strip {
            // SAFETY: the strip exists.
            let strip = unsafe { self.input.strip(job, at, &mut windows) };
            for panel in &panels[..count] {
                let mut strip = strip.of_group(panel.first_input, panel.lane);
                let kernels = &kernels[panel.blocks - 1];
                for (kernel, pixels) in kernels {
                    let tiles = strip.count / pixels;
                    if tiles > 0 {
                        // SAFETY: the pixels of so many tiles exist.
                        unsafe { kernel(&stage, panel, &strip, tiles) };
                        strip = strip.behind(tiles * pixels);
                    }
                }
            }
        }
    }
}

/// Up to four blocks of outputs: their weights, and what the output stage needs of their channels, by
/// vector of a four.
struct Panel {
    blocks: usize,
    weights: *const u8,
    block_bytes: isize,
    /// Weights to be asked for meanwhile: those of the next panel, or of this one where it is the last.
    next: *const u8,
    first_input: isize,
    /// First channel in an output pixel.
    lane: isize,
    bias: [__m512i; 4],
    multipliers: [__m512; 4],
}

impl Panel {
    const NONE: Self = Self {
        blocks: 0,
        weights: std::ptr::null(),
        block_bytes: 0,
        next: std::ptr::null(),
        first_input: 0,
        lane: 0,
        // SAFETY: sixteen zeros are such a vector.
        bias: unsafe { std::mem::zeroed() },
        // SAFETY: as above.
        multipliers: unsafe { std::mem::zeroed() },
    };

    /// # Safety
    /// As of [`run`]; `block` of `group` exists.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn fill(&mut self, job: &Job<'_>, input: &Input, group: i64, block: i64) {
        let p = job.problem;
        let first_output = group * p.group_outputs + block * 16;
        let records = job.records.wrapping_offset(isize_of(first_output * 16));
        let blocks = usize_of((job.blocks - block).min(BLOCKS).unsigned_abs());
        for i in 0..4 {
            let records = records.wrapping_add(256 * (i % blocks));
            // SAFETY: blocks are whole, so the records of each are sixteen.
            (self.bias[i], self.multipliers[i]) = unsafe { load_records(records) };
        }
        let (weights, block_bytes) = input.weights(job);
        self.weights = weights.wrapping_offset(isize_of(group * job.blocks + block) * block_bytes);
        self.block_bytes = block_bytes;
        let last = block + BLOCKS >= job.blocks;
        self.next = if last { self.weights } else { self.weights.wrapping_offset(4 * block_bytes) };
        self.blocks = blocks;
        self.first_input = isize_of(group * p.group_inputs);
        self.lane = isize_of(first_output);
    }
}

/// The kinds of stages, as parameters.
const PLAIN: u8 = 0;
const SUM: u8 = 1;
const SUM_AUX_FIRST: u8 = 2;
const TABLE: u8 = 3;

type Kernel = unsafe fn(&Stage, &Panel, &Strip, usize);

/// Kernels by blocks less one, and each with its pixels, for what is left, fewer.
type Kernels = [[(Kernel, usize); 3]; 4];

/// Kernels for one kind of stages.
const fn kernels<const KIND: u8, const RUNS: bool>() -> Kernels {
    [
        [
            (pass::<12, 1, KIND, RUNS>, 12),
            (pass::<4, 1, KIND, RUNS>, 4),
            (pass::<1, 1, KIND, RUNS>, 1),
        ],
        [
            (pass::<6, 2, KIND, RUNS>, 6),
            (pass::<2, 2, KIND, RUNS>, 2),
            (pass::<1, 2, KIND, RUNS>, 1),
        ],
        [
            (pass::<3, 3, KIND, RUNS>, 3),
            (pass::<2, 3, KIND, RUNS>, 2),
            (pass::<1, 3, KIND, RUNS>, 1),
        ],
        [
            (pass::<3, 4, KIND, RUNS>, 3),
            (pass::<2, 4, KIND, RUNS>, 2),
            (pass::<1, 4, KIND, RUNS>, 1),
        ],
    ]
}

/// For windows of one run, and of several.
const KERNELS: [[Kernels; 4]; 2] = [
    [
        kernels::<PLAIN, false>(),
        kernels::<SUM, false>(),
        kernels::<SUM_AUX_FIRST, false>(),
        kernels::<TABLE, false>(),
    ],
    [
        kernels::<PLAIN, true>(),
        kernels::<SUM, true>(),
        kernels::<SUM_AUX_FIRST, true>(),
        kernels::<TABLE, true>(),
    ],
];

/// `PIXELS` pixels of `strip` by all of `panel`, `tiles` times. Of a tile's products, a third follows each
/// four of the stage of the tile before it.
///
/// # Safety
/// As of [`run`]; the pixels exist, `BLOCKS` are those of the panel, and without `RUNS` a window is one run.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn pass<const PIXELS: usize, const BLOCKS: usize, const KIND: u8, const RUNS: bool>(
    stage: &Stage,
    panel: &Panel,
    strip: &Strip,
    tiles: usize,
) {
    let (mut input, mut out, mut aux) = (strip.input, strip.out, strip.aux);
    let mut before = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
    let mut next = panel.next;

    // Macros, as what is called with so many vectors is not inlined.
    macro_rules! finish {
        ($four:literal) => {
            let each = 4 / BLOCKS;
            let first = $four * each;
            if first < PIXELS {
                // Any vector fills a four, of a pixel that exists.
                let pixel = |i: usize| (first + i.min(each - 1)).min(PIXELS - 1);
                let sums = std::array::from_fn(|i| before[pixel(i / BLOCKS)][i % BLOCKS]);
                let aux = std::array::from_fn(|i| {
                    let pixel = pixel(i / BLOCKS).cast_signed();
                    aux.wrapping_offset(strip.aux_pixel.wrapping_mul(pixel))
                        .wrapping_add(i % BLOCKS * 16)
                });
                let bytes = match KIND {
                    PLAIN => stage.small_64(sums, panel.multipliers),
                    // SAFETY: the lanes of pixels of the auxiliary tensor, which blocks fill.
                    SUM => unsafe { stage.sum_within::<false>(sums, panel.multipliers, aux) },
                    SUM_AUX_FIRST => {
                        // SAFETY: as above.
                        unsafe { stage.sum_within::<true>(sums, panel.multipliers, aux) }
                    }
                    _ => stage.one_table(stage.small_64(sums, panel.multipliers)),
                };
                let to = std::array::from_fn(|i| {
                    out.wrapping_offset(strip.out_pixel.wrapping_mul(pixel(i).cast_signed()))
                });
                // SAFETY: the lanes of pixels of the output, which blocks fill.
                unsafe { store::<BLOCKS>(bytes, to, (PIXELS - first).min(each)) };
            }
        };
    }
    for tile in 0..tiles {
        let mut acc = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
        for row in &mut acc {
            row.copy_from_slice(&panel.bias[..BLOCKS]);
        }
        // The first four tiles have as many steps as there are lines of weights in a panel.
        let asks = tile < 4;
        let (mut weights, mut run) = (panel.weights, input);
        macro_rules! third {
            ($four:literal) => {
                if tile > 0 {
                    finish!($four);
                }
                let (runs, steps) = strip.thirds[$four];
                for _ in 0..if RUNS { runs } else { 1 } {
                    let mut at = run;
                    for _ in 0..steps {
                        let mut w = [_mm512_setzero_si512(); BLOCKS];
                        for (v, w) in (0..).zip(&mut w) {
                            let weights = weights.wrapping_offset(v * panel.block_bytes);
                            // SAFETY: the weights of a step, within `weight_bytes`.
                            *w = unsafe { load_64(weights) };
                        }
                        for (r, acc) in (0..).zip(&mut acc) {
                            let pixel = at.wrapping_offset(strip.input_pixel.wrapping_mul(r));
                            // SAFETY: four channels of a pixel of the input, pad lanes included, or
                            // of its copy.
                            let x = unsafe { broadcast_4(pixel) };
                            for v in 0..BLOCKS {
                                acc[v] = _mm512_dpbusd_epi32(acc[v], x, w[v]);
                            }
                        }
                        weights = weights.wrapping_add(64);
                        at = at.wrapping_add(4);
                        if asks {
                            // A hint, which reads nothing: any address will do.
                            _mm_prefetch::<_MM_HINT_T1>(next.cast());
                            next = next.wrapping_add(64);
                        }
                    }
                    run = if RUNS { run.wrapping_offset(strip.run) } else { at };
                }
            };
        }
        third!(0);
        third!(1);
        third!(2);
        let pixels = PIXELS.cast_signed();
        input = input.wrapping_offset(strip.input_pixel.wrapping_mul(pixels));
        if tile > 0 {
            out = out.wrapping_offset(strip.out_pixel.wrapping_mul(pixels));
            aux = aux.wrapping_offset(strip.aux_pixel.wrapping_mul(pixels));
        }
        before = acc;
    }
    finish!(0);
    finish!(1);
    finish!(2);
}

/// Stores the blocks of `count` pixels.
///
/// # Safety
/// Vector instructions present; so many bytes are writable at each of the addresses.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn store<const BLOCKS: usize>(bytes: __m512i, to: [*mut u8; 4], count: usize) {
    let half = [_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes)];
    let quarter = [
        _mm512_castsi512_si128(bytes),
        _mm512_extracti32x4_epi32::<1>(bytes),
        _mm512_extracti32x4_epi32::<2>(bytes),
        _mm512_extracti32x4_epi32::<3>(bytes),
    ];
    match BLOCKS {
        // SAFETY: the caller's promise; so for the others.
        4 => unsafe { store_64(to[0], u64::MAX, bytes) },
        3 => {
            // SAFETY: as above.
            unsafe { _mm256_storeu_si256(to[0].cast(), half[0]) };
            // SAFETY: as above.
            unsafe { _mm_storeu_si128(to[0].wrapping_add(32).cast(), quarter[2]) };
        }
        2 => {
            for (to, half) in to.into_iter().zip(half).take(count) {
                // SAFETY: as above.
                unsafe { _mm256_storeu_si256(to.cast(), half) };
            }
        }
        _ => {
            for (to, quarter) in to.into_iter().zip(quarter).take(count) {
                // SAFETY: as above.
                unsafe { _mm_storeu_si128(to.cast(), quarter) };
            }
        }
    }
}
