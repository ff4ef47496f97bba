//! The modelled clock: what a command costs on the device that is modelled, never what it took here.
//!
//! The traversal, fixed so that cycles are a function of the command and the [`Limits`] alone:
//!
//! | step | what happens | why |
//! |---|---|---|
//! | image, then band | a band is as many output rows as have their input rows in the input buffer (256 KiB), at least one | each input row is fetched once a band, kernel overlap included, whole pixels with their pad lanes |
//! | group, then block of 16 output channels | its weights come to the weight buffer (256 KiB): once a command if all of them fit, else once a band if the block fits, else once a block of pixels | a block's weights are one run of memory |
//! | block of `P` output pixels of the band | 16 x `P` accumulators stay in the array for their whole sum (output stationary) | each output is stored once; `P` is `macs_per_cycle / 64`, at least 1 |
//! | 4 steps of the reduction | one cycle, `64 * P` multiply-accumulates; an array of fewer than 64 takes `64 / macs_per_cycle` | weights lie in blocks of 16 x 4 |
//! | drain | the output stage takes 64 elements a cycle while the next block sums | a short reduction is bound by the stage |
//!
//! MATMUL is a 1x1 convolution of `m` rows of one pixel. `FLOAT` costs what the same command without it
//! does: the modelled array is taken to multiply either at one rate, from codes. POOL walks the same bands, 64 channels and one
//! tap a cycle. PRODUCT is a MATMUL for each of its matrices: the left one comes once, the right one once
//! if it fits the weight buffer, else once a block of rows. SOFTMAX passes three times over 16 channels a
//! cycle, NORM too, REDUCE once; RESIZE blends 16 channels a cycle. ADD, MUL and TABLE take 64 channels a cycle, LAYOUT 16 elements; PAIR_TABLE and
//! CHANNEL_TABLE look 16 channels up a cycle, each at its own place; COPY and FILL only move bytes. Records and tables are read once a command. A command takes
//! `128 + max(compute, DRAM bytes / DRAM rate, SRAM bytes / SRAM rate)` cycles: fetch and pipeline fill,
//! then the slowest of three that run side by side.
//!
//! [`cycles`] is a closed formula, so a command of 2^40 operations is priced at once; [`crate::walker`]
//! walks the table above step by step, and a test holds them equal.

use npu_uapi::addr::SlotId;
use npu_uapi::command::{
    Command, Conv, Dims, Layout, MatMul, Pool, Product, element, lanes, pool_kind,
};
use npu_uapi::extent::{self, FeatureMap};
use npu_uapi::limits::Limits;

/// Bytes of the buffer that holds a band's input rows.
pub const INPUT_BUFFER: u64 = 256 << 10;

/// Bytes of the buffer that holds weights.
pub const WEIGHT_BUFFER: u64 = 256 << 10;

/// Cycles of a command besides its work: fetch, decode, filling the pipeline.
pub const OVERHEAD: u64 = 128;

/// Elements a cycle of the output stage and the vector unit.
pub const VECTOR_LANES: u32 = 64;

/// Channels a cycle of lookups in large tables: as many banks of memory.
pub const LOOKUP_LANES: u32 = 16;

/// Elements a cycle of LAYOUT, which may touch each at its own place.
pub const LAYOUT_LANES: u32 = 16;

/// What a command costs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cost {
    /// Cycles of the modelled clock.
    pub cycles: u64,
    /// Multiply-accumulates that the program asked for, padding included.
    pub macs: u64,
    /// Bytes read from DRAM.
    pub dram_read: u64,
    /// Bytes written to DRAM.
    pub dram_written: u64,
    /// Bytes read from SRAM.
    pub sram_read: u64,
    /// Bytes written to SRAM.
    pub sram_written: u64,
    /// Cycles of these in which the MAC array or the vector unit has work.
    pub compute: u64,
    /// Cycles in which the DMA has work.
    pub dma: u64,
}

/// The cost of `command`, whose slots are SRAM where `is_sram` says so. Saturates instead of wrapping.
pub fn cycles(command: &Command, limits: &Limits, is_sram: &dyn Fn(SlotId) -> bool) -> Cost {
    let mut moved = Moved::default();
    let maps = extent::feature_maps(command);
    for access in extent::accesses(command).iter().flat_map(|all| all.iter()) {
        let windowed = matches!(command, Command::Conv(_) | Command::MatMul(_) | Command::Pool(_));
        let times_bytes = match (access.field, maps.iter().find(|map| map.field == access.field)) {
            ("ifm" | "a", Some(map)) if windowed => input_bytes(command, map),
            ("weights", _) => weight_traffic(command, limits),
            (_, Some(map)) => product(&[pixels(&map.dims), map.lanes().into()]),
            (field, None) => match command {
                Command::Layout(c) if matches!(field, "src" | "dst") => {
                    layout_bytes(c, access.write)
                }
                Command::Product(c) => product_bytes(c, field, limits).unwrap_or(access.len.into()),
                _ => access.len.into(),
            },
        };
        moved.count(is_sram(access.slot), access.write, times_bytes);
    }
    let macs = match command {
        Command::Conv(_) | Command::MatMul(_) | Command::Product(_) => {
            command.operations().unwrap_or(u64::MAX)
        }
        _ => 0,
    };
    moved.cost(compute(command, limits), macs, limits)
}

/// Bytes by memory and direction: `[DRAM, SRAM]`, each `[read, written]`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved([[u128; 2]; 2]);

impl Moved {
    pub(crate) fn count(&mut self, is_sram: bool, write: bool, bytes: u128) {
        let sum = &mut self.0[usize::from(is_sram)][usize::from(write)];
        *sum = sum.saturating_add(bytes);
    }

    pub(crate) fn cost(&self, compute: u128, macs: u64, limits: &Limits) -> Cost {
        let [dram, sram] = self.0;
        let time = |bytes: [u128; 2], rate: u32| {
            bytes[0].saturating_add(bytes[1]).div_ceil(rate.max(1).into())
        };
        let dram_time = time(dram, limits.dram_bytes_per_cycle);
        let sram_time = time(sram, limits.sram_bytes_per_cycle);
        Cost {
            cycles: narrow(compute.max(dram_time).max(sram_time)).saturating_add(OVERHEAD),
            macs,
            dram_read: narrow(dram[0]),
            dram_written: narrow(dram[1]),
            sram_read: narrow(sram[0]),
            sram_written: narrow(sram[1]),
            compute: narrow(compute),
            dma: narrow(dram_time),
        }
    }
}

fn narrow(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Output pixels of a block, and the cycles that 4 steps of its reduction take.
pub(crate) fn array(limits: &Limits) -> (u32, u32) {
    let macs = limits.macs_per_cycle.max(1);
    let pixels = (macs / 64).max(1);
    (pixels, (64 * pixels).div_ceil(macs))
}

/// Rows of a windowed command: what bands are cut from.
struct Rows {
    images: u32,
    input_h: u32,
    input_row_bytes: u64,
    output_h: u32,
    output_w: u32,
    reach: u64,
    stride: u64,
    pad: u64,
}

impl Rows {
    fn of(command: &Command) -> Option<Self> {
        match command {
            Command::Conv(c) => Some(Self::conv(c)),
            Command::MatMul(c) => Some(Self::matmul(c)),
            Command::Pool(c) => Some(Self::pool(c)),
            _ => None,
        }
    }

    fn conv(c: &Conv) -> Self {
        let w = &c.window;
        Self {
            images: c.ifm_dims.n,
            input_h: c.ifm_dims.h,
            input_row_bytes: row_bytes(&c.ifm_dims, c.ifm_strides.pixel),
            output_h: c.ofm_h,
            output_w: c.ofm_w,
            reach: (u64::from(w.kernel_h).max(1) - 1) * u64::from(w.dilation_h) + 1,
            stride: w.stride_h.into(),
            pad: w.pad_top.into(),
        }
    }

    fn matmul(c: &MatMul) -> Self {
        Self {
            images: 1,
            input_h: c.m,
            input_row_bytes: lanes(c.k, c.a_row).into(),
            output_h: c.m,
            output_w: 1,
            reach: 1,
            stride: 1,
            pad: 0,
        }
    }

    fn pool(c: &Pool) -> Self {
        let w = &c.window;
        let whole = pool_kind::is_global(c.kind);
        let reach = (u64::from(w.kernel_h).max(1) - 1) * u64::from(w.dilation_h) + 1;
        Self {
            images: c.ifm_dims.n,
            input_h: c.ifm_dims.h,
            input_row_bytes: row_bytes(&c.ifm_dims, c.ifm_strides.pixel),
            output_h: c.ofm_h,
            output_w: c.ofm_w,
            reach: if whole { c.ifm_dims.h.into() } else { reach },
            stride: if whole { 1 } else { w.stride_h.into() },
            pad: w.pad_top.into(),
        }
    }

    /// Output rows of a band, bands of an image, output rows of the last band.
    fn bands(&self) -> (u64, u64, u64) {
        let fit = INPUT_BUFFER / self.input_row_bytes.max(1);
        let more = fit.saturating_sub(self.reach) / self.stride.max(1);
        let rows = (1 + more).min(self.output_h.into()).max(1);
        let count = u64::from(self.output_h).div_ceil(rows);
        (rows, count, u64::from(self.output_h) - count.saturating_sub(1) * rows)
    }

    /// Blocks of `block` output pixels of an image.
    fn pixel_blocks(&self, block: u32) -> u128 {
        let (rows, count, last) = self.bands();
        let blocks =
            |rows: u64| (u128::from(rows) * u128::from(self.output_w)).div_ceil(block.into());
        u128::from(count.saturating_sub(1)) * blocks(rows) + blocks(last)
    }

    /// Input rows that all bands of an image fetch, each clipped to the input.
    fn fetched_rows(&self) -> u128 {
        let (rows, count, _) = self.bands();
        let (stride, pad, reach) =
            (i128::from(self.stride), i128::from(self.pad), i128::from(self.reach));
        let (count, step) = (i128::from(count), i128::from(rows) * stride);
        let height = i128::from(self.input_h);
        let low = clamped_sum(-pad, step, count, height);
        let first_high = (i128::from(rows) - 1) * stride - pad + reach;
        let last_high = (i128::from(self.output_h) - 1) * stride - pad + reach;
        let high = clamped_sum(first_high, step, count - 1, height) + last_high.clamp(0, height);
        (high - low).unsigned_abs()
    }
}

/// The sum of `clamp(first + i * step, 0, top)` over `i` in `0..count`; `step` is positive.
fn clamped_sum(first: i128, step: i128, count: i128, top: i128) -> i128 {
    if count <= 0 {
        return 0;
    }
    let step = step.max(1);
    let zeros = if first > 0 { 0 } else { (-first / step + 1).min(count) };
    let below_top = (top - first + step - 1).div_euclid(step).clamp(zeros, count);
    let linear = below_top - zeros;
    linear * first + step * linear * (zeros + below_top - 1) / 2 + (count - below_top) * top
}

/// The product, at most `u128::MAX`.
fn product(factors: &[u128]) -> u128 {
    factors.iter().fold(1, |product, &factor| product.saturating_mul(factor))
}

fn row_bytes(dims: &Dims, pixel: i32) -> u64 {
    u64::from(dims.w) * u64::from(lanes(dims.c, pixel))
}

fn pixels(dims: &Dims) -> u128 {
    u128::from(dims.n) * u128::from(dims.h) * u128::from(dims.w)
}

fn input_bytes(command: &Command, map: &FeatureMap) -> u128 {
    Rows::of(command).map_or(0, |rows| {
        let width = if matches!(command, Command::MatMul(_)) { 1 } else { map.dims.w };
        let row = u128::from(width) * u128::from(map.lanes());
        product(&[rows.images.into(), rows.fetched_rows(), row])
    })
}

fn layout_bytes(c: &Layout, write: bool) -> u128 {
    let code = if write { c.dst_element } else { c.src_element };
    let element = element::bytes(code).unwrap_or(0).into();
    product(&[c.repeats().into(), pixels(&c.dims), c.dims.c.into(), element])
}

/// Bytes that a PRODUCT moves of its matrices.
fn product_bytes(c: &Product, field: &str, limits: &Limits) -> Option<u128> {
    let matrices = u128::from(c.outer) * u128::from(c.batch);
    let bytes = |rows: u32, columns: u32| product(&[matrices, rows.into(), columns.into()]);
    match field {
        "a" => Some(bytes(c.m, c.k)),
        "b" => {
            let fits = u64::from(c.k) * u64::from(c.n) <= WEIGHT_BUFFER;
            let times = if fits { 1 } else { c.m.div_ceil(array(limits).0) };
            Some(product(&[bytes(c.k, c.n), times.into()]))
        }
        "out" => Some(bytes(c.m, c.n)),
        _ => None,
    }
}

/// Blocks of 16 output channels, and groups of 4 steps of the reduction, of CONV and MATMUL.
fn blocks(command: &Command) -> Option<(u128, u128)> {
    match command {
        Command::Conv(c) => {
            let taps = u128::from(c.window.kernel_h) * u128::from(c.window.kernel_w);
            if c.is_depthwise() {
                return Some((c.ofm_c.div_ceil(16).into(), taps.div_ceil(4)));
            }
            let (inputs, outputs) = (c.ifm_dims.c.checked_div(c.groups)?, c.ofm_c / c.groups);
            let steps = taps * u128::from(inputs.div_ceil(4));
            Some((u128::from(c.groups) * u128::from(outputs.div_ceil(16)), steps))
        }
        Command::MatMul(c) => Some((c.n.div_ceil(16).into(), c.k.div_ceil(4).into())),
        _ => None,
    }
}

fn weight_traffic(command: &Command, limits: &Limits) -> u128 {
    let Some(((blocks, steps), rows)) = blocks(command).zip(Rows::of(command)) else { return 0 };
    let (block_bytes, buffer) = (steps * 64, u128::from(WEIGHT_BUFFER));
    let (images, all_bytes) = (u128::from(rows.images), product(&[blocks, block_bytes]));
    let times = if all_bytes <= buffer {
        1
    } else if block_bytes <= buffer {
        images * u128::from(rows.bands().1)
    } else {
        product(&[images, rows.pixel_blocks(array(limits).0)])
    };
    product(&[all_bytes, times])
}

/// Cycles of the array or the vector unit.
fn compute(command: &Command, limits: &Limits) -> u128 {
    let chunks = |c: u32| u128::from(c.div_ceil(VECTOR_LANES));
    match command {
        Command::Conv(_) | Command::MatMul(_) => {
            let Some(((blocks, steps), rows)) = blocks(command).zip(Rows::of(command)) else {
                return 0;
            };
            let (block_pixels, step_cycles) = array(limits);
            let drain = u128::from((16 * block_pixels).div_ceil(VECTOR_LANES));
            let pixel_blocks = rows.pixel_blocks(block_pixels);
            let block_cycles = drain.max(steps * u128::from(step_cycles));
            product(&[rows.images.into(), pixel_blocks, blocks, block_cycles])
        }
        Command::Pool(c) => {
            let taps = match pool_kind::is_global(c.kind) {
                true => u128::from(c.ifm_dims.h) * u128::from(c.ifm_dims.w),
                false => u128::from(c.window.kernel_h) * u128::from(c.window.kernel_w),
            };
            product(&[pixels(&c.ofm_dims()), chunks(c.ifm_dims.c), taps])
        }
        Command::Product(c) => {
            let (block_rows, step_cycles) = array(limits);
            let drain = u128::from((16 * block_rows).div_ceil(VECTOR_LANES));
            let steps = u128::from(c.k.div_ceil(4)) * u128::from(step_cycles);
            let blocks = [c.m.div_ceil(block_rows), c.n.div_ceil(16)].map(u128::from);
            let matrices = u128::from(c.outer) * u128::from(c.batch);
            product(&[matrices, blocks[0], blocks[1], drain.max(steps)])
        }
        Command::Softmax(c) => {
            product(&[pixels(&c.dims), c.dims.c.div_ceil(LAYOUT_LANES).into(), 3])
        }
        Command::Reduce(c) => product(&[pixels(&c.dims), c.dims.c.div_ceil(LAYOUT_LANES).into()]),
        Command::Norm(c) => product(&[pixels(&c.dims), c.dims.c.div_ceil(LAYOUT_LANES).into(), 3]),
        Command::Resize(c) => {
            product(&[pixels(&c.ofm_dims()), c.ifm_dims.c.div_ceil(LAYOUT_LANES).into()])
        }
        Command::Add(c) => product(&[pixels(&c.dims), chunks(c.dims.c)]),
        Command::Mul(c) => product(&[pixels(&c.dims), chunks(c.dims.c)]),
        Command::Table(c) => product(&[pixels(&c.dims), chunks(c.dims.c)]),
        Command::PairTable(c) => {
            product(&[pixels(&c.dims), c.dims.c.div_ceil(LOOKUP_LANES).into()])
        }
        Command::ChannelTable(c) => {
            product(&[pixels(&c.dims), c.dims.c.div_ceil(LOOKUP_LANES).into()])
        }
        Command::Layout(c) => {
            let elements = product(&[c.repeats().into(), pixels(&c.dims), c.dims.c.into()]);
            elements.div_ceil(LAYOUT_LANES.into())
        }
        Command::Copy(_) | Command::Fill(_) | Command::End(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::addr::Operand;
    use npu_uapi::command::{Flags, Header, Strides, Window, opcode};
    use proptest::prelude::*;

    fn conv() -> Conv {
        Conv {
            header: Header::new(opcode::CONV, 4, Flags::empty(), 0),
            weights: Operand::new(SlotId(1), 0),
            channels: Operand::new(SlotId(1), 0),
            ofm: Operand::new(SlotId(2), 0),
            ifm_dims: Dims { n: 1, h: 56, w: 56, c: 64 },
            ofm_h: 56,
            ofm_w: 56,
            ofm_c: 64,
            groups: 1,
            ifm_strides: Strides { image: 0, row: 56 * 64, pixel: 64 },
            ofm_strides: Strides { image: 0, row: 56 * 64, pixel: 64 },
            window: Window {
                kernel_h: 3,
                kernel_w: 3,
                stride_h: 1,
                stride_w: 1,
                dilation_h: 1,
                dilation_w: 1,
                pad_top: 1,
                pad_left: 1,
            },
            ..Conv::default()
        }
    }

    #[test]
    fn a_layer_that_fills_the_array_costs_its_macs() {
        // 56 x 56 pixels are 196 blocks of 16, 64 outputs are 4 blocks: nothing is wasted.
        let cost = cycles(&Command::Conv(conv()), &Limits::REFERENCE, &|_| true);
        assert_eq!(cost.macs, 56 * 56 * 64 * 64 * 9);
        assert_eq!(cost.cycles, cost.macs / 1024 + OVERHEAD);
        assert_eq!((cost.dram_read, cost.dram_written), (0, 0));
        assert_eq!(cost.sram_written, 56 * 56 * 64);
    }

    #[test]
    fn dram_bounds_a_product_of_one_row() {
        let product = MatMul {
            header: Header::new(opcode::MATMUL, 3, Flags::empty(), 0),
            m: 1,
            n: 1000,
            k: 2048,
            a_row: 2048,
            out_row: 1008,
            ..MatMul::default()
        };
        let cost = cycles(&Command::MatMul(product), &Limits::REFERENCE, &|_| false);
        let read = 1008 * 2048 + 1008 * 16 + 2048;
        assert_eq!((cost.dram_read, cost.dram_written), (read, 1008));
        assert_eq!(cost.cycles, (read + 1008).div_ceil(16) + OVERHEAD);
    }

    #[test]
    fn the_largest_command_saturates() {
        let max = u32::MAX;
        let huge = Conv {
            ifm_dims: Dims { n: max, h: max, w: max, c: max },
            ofm_h: max,
            ofm_w: max,
            ofm_c: max,
            ..conv()
        };
        let cost = cycles(&Command::Conv(huge), &Limits::REFERENCE, &|_| false);
        assert!(cost.cycles >= OVERHEAD);
    }

    proptest! {
        #[test]
        fn a_clamped_sum_is_the_sum_of_its_terms(
            first in -200i128..200, step in 1i128..40, count in 0i128..40, top in 1i128..200,
        ) {
            let sum: i128 = (0..count).map(|i| (first + i * step).clamp(0, top)).sum();
            prop_assert_eq!(clamped_sum(first, step, count, top), sum);
        }
    }
}
