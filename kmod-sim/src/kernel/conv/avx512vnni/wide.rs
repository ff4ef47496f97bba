//! Problems whose weights of two or four blocks stay in the level-1 cache: those where the output stage is a
//! large part of the work. Sums pass through it without leaving the registers: on Zen 5 a store of 64 bytes
//! takes a cycle of both multipliers.
//!
//! ```text
//! 3 pixels of a row x 4 blocks, 4 x 3 or 6 x 2, and the stage of the pixels before them meanwhile
//! ```
//!
//! Of 24 outputs, eight would be half a block: [`pairs`] makes one of those of two pixels.
//!
//! Products, conversions and packing have units of their own in a processor, but none looks far enough
//! ahead to fill them from products and a stage that come one behind the other.
//!
//! Pixels pass by in strips of a row, a panel of blocks after the other. In a strip every address is a
//! multiple of the same distances away from the first, so that a tile has none to compute.

mod asks;
mod pairs;
mod strip;
mod threes;

use super::Job;
use crate::kernel::Stop;
use crate::kernel::order::Order;
use crate::kernel::room::Room;
use crate::kernel::split::{POLL_MACS, Split};
use crate::kernel::vector::stage::{Kind, Stage};
use crate::kernel::vector::{Channels, broadcast_4, is_bounded, load_64, load_records, store_64};
use crate::memory::{isize_of, usize_of};
use asks::Asks;
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm_storeu_si128, _mm256_storeu_si256,
    _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_dpbusd_epi32, _mm512_extracti32x4_epi32,
    _mm512_extracti64x4_epi64, _mm512_setzero_si512,
};
use strip::{Input, Segment, Strip, Windows};

/// Fewest steps of a sum: one in each third; and of sums of one or two blocks, which need no panels.
const FEWEST_STEPS: i64 = 3;
const FEWEST_OF_FEW: i64 = 16;

/// Most bytes of the weights of a panel of four blocks, of two, and of one and a half in pairs.
const MOST_OF_FOUR: i64 = 32 << 10;
const MOST_OF_TWO: i64 = 20 << 10;
const MOST_OF_PAIRS: i64 = 28 << 10;

/// Fewest pixels of a row whose weights come in panels of two blocks: of fewer, too many are left over.
const FEWEST_PIXELS: i64 = 48;

/// Multiples of pixels in which strips are cut: of those of every kernel, and of pairs.
const GRAIN: i64 = 12;
const GRAIN_OF_PAIRS: i64 = 8;

/// Most panels of a chunk.
const MOST_PANELS: usize = 8;

/// Pixels that a chunk should have at least, so that a panel's weights serve many.
const PIXELS_A_CHUNK: i64 = 96;

/// Whether this kernel takes `job`.
pub(super) fn takes(job: &Job<'_>, channels: Channels) -> bool {
    let p = job.problem;
    let stage = &p.stage;
    let in_order = stage.table_0.is_none() || !stage.aux_first;
    let staged =
        stage.add.is_none_or(|terms| stage.table_1.is_none() && in_order && is_bounded(terms));
    staged
        && channels.small
        && channels.symmetric
        && job.floats.is_none()
        && (pairs::takes(job) || takes_blocks(job))
        && strip::takes(job, grain(job))
}

/// Whether all outputs are in whole blocks that are worth a panel.
fn takes_blocks(job: &Job<'_>) -> bool {
    job.problem.group_outputs % 16 == 0
        && job.block_bytes >= 64 * if job.blocks < 3 { FEWEST_OF_FEW } else { FEWEST_STEPS }
        && (4 * job.block_bytes <= MOST_OF_FOUR
            || 2 * job.block_bytes <= MOST_OF_TWO && job.ofm_w >= FEWEST_PIXELS)
}

/// Blocks of a panel; the last one of a group may have fewer.
fn blocks_a_panel(job: &Job<'_>) -> i64 {
    if 4 * job.block_bytes <= MOST_OF_FOUR && !pairs::takes(job) { 4 } else { 2 }
}

fn grain(job: &Job<'_>) -> i64 {
    if pairs::takes(job) { GRAIN_OF_PAIRS } else { GRAIN }
}

/// Runs `job`.
///
/// # Safety
/// As of [`super::run`]; `takes(job, channels)`.
pub(super) unsafe fn run(job: &Job<'_>, channels: Channels, split: &Split<'_>) -> Result<(), Stop> {
    // SAFETY: the caller's promise.
    let plan = unsafe { Plan::new(job, split) };
    split.chunks(plan.order().chunks(), &|chunk, _| {
        // SAFETY: the caller's promise.
        unsafe { plan.chunk(job, channels, chunk) };
        Ok(())
    })
}

/// How a job is cut: strips of rows, panels of blocks, chunks of both.
struct Plan {
    input: Input,
    blocks_a_panel: i64,
    strips: i64,
    strips_a_chunk: i64,
    panels_a_group: i64,
    panels: i64,
    panels_a_chunk: i64,
    in_halves: bool,
    asks: Asks,
}

impl Plan {
    /// # Safety
    /// As of [`run`].
    unsafe fn new(job: &Job<'_>, split: &Split<'_>) -> Self {
        let blocks_a_panel = blocks_a_panel(job);
        // Four blocks are few enough bytes, and worth many pixels.
        let panel_bytes = if blocks_a_panel == 2 { 2 * job.block_bytes } else { 0 };
        // SAFETY: the caller's promise.
        let input = unsafe { Input::new(job, grain(job), panel_bytes) };
        let strips = input.strips(job);
        let panels_a_group = (job.blocks + blocks_a_panel - 1) / blocks_a_panel;
        let panels = panels_a_group * job.problem.groups;
        let macs = input.pixels * blocks_a_panel * (job.block_bytes / 4);
        let units = split.units_a_chunk(strips * panels, macs).min(POLL_MACS / macs).max(1);
        let strips_of_pixels = (PIXELS_A_CHUNK / input.pixels).clamp(1, strips);
        let most = i64::try_from(MOST_PANELS).expect("8");
        let panels_a_chunk = (units / strips_of_pixels).clamp(1, panels.min(most));
        let strips_a_chunk = (units / panels_a_chunk).clamp(1, strips);
        Self {
            in_halves: job.in_halves(split),
            asks: Asks::new(job, blocks_a_panel, strips, panels),
            input,
            blocks_a_panel,
            strips,
            strips_a_chunk,
            panels_a_group,
            panels,
            panels_a_chunk,
        }
    }

    fn order(&self) -> Order {
        Order {
            weights: (self.panels + self.panels_a_chunk - 1) / self.panels_a_chunk,
            pixels: (self.strips + self.strips_a_chunk - 1) / self.strips_a_chunk,
            in_halves: self.in_halves,
        }
    }

    /// Computes one chunk.
    ///
    /// # Safety
    /// As of [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn chunk(&self, job: &Job<'_>, channels: Channels, chunk: i64) {
        // All strips, or those of a half, pass by before the next weights are fetched.
        let (panels, strips) = self.order().at(chunk);
        let first_panel = panels * self.panels_a_chunk;
        let end_panel = (first_panel + self.panels_a_chunk).min(self.panels);
        let first_strip = strips * self.strips_a_chunk;
        let end_strip = (first_strip + self.strips_a_chunk).min(self.strips);
        let stage = Stage::new(&job.problem.stage, channels);
        let kind = match stage.kind() {
            Kind::Bare => usize::from(BARE),
            Kind::Plain => usize::from(PLAIN),
            Kind::Sum => usize::from(SUM),
            Kind::SumAuxFirst => usize::from(SUM_AUX_FIRST),
            Kind::Table => usize::from(TABLE),
            Kind::TableSum | Kind::Tables => usize::from(TABLE_SUM),
        };
        let in_pairs = pairs::takes(job);
        let kernels = &KERNELS[usize::from(job.problem.taps() > 1)][kind];
        let mut panels = [Panel::NONE; MOST_PANELS];
        let count = usize_of((end_panel - first_panel).unsigned_abs());
        for (at, panel) in (first_panel..end_panel).zip(&mut panels) {
            let (group, block) = (at / self.panels_a_group, at % self.panels_a_group);
            // SAFETY: the block exists.
            unsafe { panel.fill(job, self, group, block * self.blocks_a_panel) };
            if in_pairs {
                pairs::double(panel);
            }
        }
        let mut windows = Windows::default();
        let (mut segments, mut left) = (Room::new(), Room::new());
        let mut at = first_strip;
        while at < end_strip {
            let together = self.input.together.min(end_strip - at);
            // SAFETY: the strips exist.
            let steps =
                unsafe { self.input.segments(job, (at, together), &mut windows, &mut segments) };
            for (number, panel) in (first_panel..).zip(&mut panels[..count]) {
                if let Some(asks) = self.asks.of(panel, at * self.panels + number, self) {
                    panel.next = asks;
                }
                left.clear();
                let of_group = |segment: &Segment| segment.of_group(panel.first_input, panel.lane);
                left.extend(segments.iter().map(of_group));
                let kernels =
                    if in_pairs { &pairs::KERNELS[kind] } else { &kernels[panel.blocks - 1] };
                for (kernel, pixels) in kernels {
                    if left.iter().all(|segment| segment.count < *pixels) {
                        continue;
                    }
                    let strip = Strip {
                        segments: &left,
                        steps,
                        out_pixel: job.ofm.pixel,
                        aux_pixel: job.aux.map_or(0, |aux| aux.pixel),
                    };
                    // SAFETY: the pixels exist, and the panel's blocks are the kernel's.
                    unsafe { kernel(&stage, panel, &strip) };
                    let step = (strip.out_pixel, strip.aux_pixel);
                    left.iter_mut().for_each(|segment| *segment = segment.rest(*pixels, step));
                }
            }
            at += together;
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
    unsafe fn fill(&mut self, job: &Job<'_>, plan: &Plan, group: i64, block: i64) {
        let p = job.problem;
        let first_output = group * p.group_outputs + block * 16;
        let records = job.records.wrapping_offset(isize_of(first_output * 16));
        let blocks = usize_of((job.blocks - block).min(plan.blocks_a_panel).unsigned_abs());
        for i in 0..4 {
            let records = records.wrapping_add(256 * (i % blocks));
            // SAFETY: blocks are whole, so the records of each are sixteen.
            (self.bias[i], self.multipliers[i]) = unsafe { load_records(records) };
        }
        let (weights, block_bytes) = plan.input.weights(job);
        self.weights = weights.wrapping_offset(isize_of(group * job.blocks + block) * block_bytes);
        self.block_bytes = block_bytes;
        let next = isize_of(plan.blocks_a_panel) * block_bytes;
        let last = block + plan.blocks_a_panel >= job.blocks;
        self.next = if last { self.weights } else { self.weights.wrapping_offset(next) };
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
const TABLE_SUM: u8 = 4;
const BARE: u8 = 5;

type Kernel = unsafe fn(&Stage, &Panel, &Strip<'_>);

/// Kernels, each with its pixels, for what is left, fewer.
type Pixels = [(Kernel, usize); 3];

/// Kernels for one kind of stages, by blocks less one.
const fn kernels<const KIND: u8, const TAPS: bool>() -> [Pixels; 4] {
    [
        [
            (pass::<12, 1, KIND, TAPS>, 12),
            (pass::<4, 1, KIND, TAPS>, 4),
            (pass::<1, 1, KIND, TAPS>, 1),
        ],
        [
            (pass::<6, 2, KIND, TAPS>, 6),
            (pass::<2, 2, KIND, TAPS>, 2),
            (pass::<1, 2, KIND, TAPS>, 1),
        ],
        [
            (pass::<4, 3, KIND, TAPS>, 4),
            (pass::<2, 3, KIND, TAPS>, 2),
            (pass::<1, 3, KIND, TAPS>, 1),
        ],
        [
            (pass::<3, 4, KIND, TAPS>, 3),
            (pass::<2, 4, KIND, TAPS>, 2),
            (pass::<1, 4, KIND, TAPS>, 1),
        ],
    ]
}

/// By kind, for windows of one tap, and of several.
const KERNELS: [[[Pixels; 4]; 6]; 2] = [
    [
        kernels::<PLAIN, false>(),
        kernels::<SUM, false>(),
        kernels::<SUM_AUX_FIRST, false>(),
        kernels::<TABLE, false>(),
        kernels::<TABLE_SUM, false>(),
        kernels::<BARE, false>(),
    ],
    [
        kernels::<PLAIN, true>(),
        kernels::<SUM, true>(),
        kernels::<SUM_AUX_FIRST, true>(),
        kernels::<TABLE, true>(),
        kernels::<TABLE_SUM, true>(),
        kernels::<BARE, true>(),
    ],
];

/// All that the segments of `strip` have of `PIXELS` pixels, at least once, by all of `panel`. Of a tile's products, a third follows each
/// four of the stage of the tile before it.
///
/// # Safety
/// As of [`run`]; the pixels exist, `BLOCKS` are those of the panel, and without `TAPS` a window is one pixel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn pass<const PIXELS: usize, const BLOCKS: usize, const KIND: u8, const TAPS: bool>(
    stage: &Stage,
    panel: &Panel,
    strip: &Strip<'_>,
) {
    // Those of the tile before.
    let (mut out, mut aux) = (std::ptr::null_mut::<u8>(), std::ptr::null::<u8>());
    let mut before = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
    let mut next = panel.next;

    // Macros, as what is called with so many vectors is not inlined.
    macro_rules! finish {
        ($four:literal) => {
            let first = 4 * $four;
            if first < PIXELS * BLOCKS {
                // Any vector fills a four, of a pixel that exists.
                let vector = |i: usize| (first + i).min(PIXELS * BLOCKS - 1);
                let sums = std::array::from_fn(|i| before[vector(i) / BLOCKS][vector(i) % BLOCKS]);
                let multipliers = std::array::from_fn(|i| panel.multipliers[vector(i) % BLOCKS]);
                let aux = std::array::from_fn(|i| {
                    let pixel = (vector(i) / BLOCKS).cast_signed();
                    aux.wrapping_offset(strip.aux_pixel.wrapping_mul(pixel))
                        .wrapping_add(vector(i) % BLOCKS * 16)
                });
                let bytes = match KIND {
                    BARE => Stage::bare_64(sums, multipliers),
                    PLAIN => stage.small_64(sums, multipliers),
                    // SAFETY: the lanes of pixels of the auxiliary tensor, which blocks fill.
                    SUM => unsafe { stage.sum_within::<false>(sums, multipliers, aux) },
                    // SAFETY: as above.
                    SUM_AUX_FIRST => unsafe { stage.sum_within::<true>(sums, multipliers, aux) },
                    TABLE => stage.small_table_64(sums, multipliers),
                    // SAFETY: as above.
                    _ => unsafe { stage.table_sum_within(sums, multipliers, aux) },
                };
                let to = std::array::from_fn(|i| {
                    let pixel = (vector(i) / BLOCKS).cast_signed();
                    out.wrapping_offset(strip.out_pixel.wrapping_mul(pixel))
                        .wrapping_add(vector(i) % BLOCKS * 16)
                });
                // SAFETY: the lanes of pixels of the output, which blocks fill.
                unsafe { store::<BLOCKS>(bytes, to, (PIXELS * BLOCKS - first).min(4)) };
            }
        };
    }
    let mut done = 0;
    let pixels = PIXELS.cast_signed();
    for segment in strip.segments {
        let mut input = segment.input;
        let (mut own_out, mut own_aux) = (segment.out, segment.aux);
        let steps = &strip.steps[segment.steps];
        for _ in 0..segment.count / PIXELS {
            let mut acc = [[_mm512_setzero_si512(); BLOCKS]; PIXELS];
            for row in &mut acc {
                row.copy_from_slice(&panel.bias[..BLOCKS]);
            }
            // The first four tiles have as many steps as there are lines of weights in a panel of four.
            let asks = done < 4;
            let mut weights = panel.weights;
            macro_rules! products {
                ($four:literal, $asks:literal) => {
                    let steps = steps[$four];
                    let mut along =
                        steps.first().map_or(input, |step| input.wrapping_offset(*step));
                    for step in steps {
                        let at = if TAPS { input.wrapping_offset(*step) } else { along };
                        let mut w = [_mm512_setzero_si512(); BLOCKS];
                        for (v, w) in (0..).zip(&mut w) {
                            let weights = weights.wrapping_offset(v * panel.block_bytes);
                            // SAFETY: the weights of a step, within `weight_bytes`.
                            *w = unsafe { load_64(weights) };
                        }
                        for (r, acc) in (0..).zip(&mut acc) {
                            let pixel = at.wrapping_offset(segment.input_pixel.wrapping_mul(r));
                            // SAFETY: four channels of a pixel of the input, pad lanes included, or
                            // of its copy.
                            let x = unsafe { broadcast_4(pixel) };
                            for v in 0..BLOCKS {
                                acc[v] = _mm512_dpbusd_epi32(acc[v], x, w[v]);
                            }
                        }
                        weights = weights.wrapping_add(64);
                        along = along.wrapping_add(4);
                        if $asks {
                            // A hint, which reads nothing: any address will do.
                            _mm_prefetch::<_MM_HINT_T1>(next.cast());
                            next = next.wrapping_add(64);
                        }
                    }
                };
            }
            macro_rules! third {
                ($four:literal) => {
                    if done > 0 {
                        finish!($four);
                    }
                    // A loop of its own for either: its branches are as many as its products allow.
                    if asks {
                        products!($four, true);
                    } else {
                        products!($four, false);
                    }
                };
            }
            third!(0);
            third!(1);
            third!(2);
            input = input.wrapping_offset(segment.input_pixel.wrapping_mul(pixels));
            (out, aux) = (own_out, own_aux);
            own_out = own_out.wrapping_offset(strip.out_pixel.wrapping_mul(pixels));
            own_aux = own_aux.wrapping_offset(strip.aux_pixel.wrapping_mul(pixels));
            before = acc;
            done += 1;
        }
    }
    finish!(0);
    finish!(1);
    finish!(2);
}

/// Stores `count` vectors of 16 lanes, `BLOCKS` of which are a pixel's.
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
        2 => {
            for (to, half) in to.into_iter().step_by(2).zip(half).take(count / 2) {
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
