//! The block walker: the traversal of [`crate::timing`], walked step by step, counting as it goes.
//!
//! Slow, and written from the table there rather than from the formula, so that the two check each
//! other: it shares only sizes of the hardware, and the rule that the slowest of three decides. Every
//! block, input row and pixel is visited; nothing is multiplied out.

use crate::timing::{
    Cost, INPUT_BUFFER, LAYOUT_LANES, LOOKUP_LANES, Moved, VECTOR_LANES, WEIGHT_BUFFER, array,
};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    Add, ChannelTable, Command, Conv, Dims, Flags, Header, Layout, MatMul, Mul, Norm, PairTable,
    Pool, Product, Reduce, Resize, Softmax, Table, Window, element, lanes, pool_kind, record_bytes,
};
use npu_uapi::limits::Limits;

/// The cost of `command`, by walking it. Takes time in proportion to the modelled cycles.
pub fn walk(command: &Command, limits: &Limits, is_sram: &dyn Fn(SlotId) -> bool) -> Cost {
    let mut walk = Walk { limits, is_sram, moved: Moved::default(), cycles: 0, macs: 0 };
    match command {
        Command::Conv(c) => walk.conv(c),
        Command::MatMul(c) => walk.matmul(c),
        Command::Pool(c) => walk.pool(c),
        Command::Product(c) => walk.product(c),
        Command::Softmax(c) => walk.softmax(c),
        Command::Reduce(c) => walk.reduce(c),
        Command::Norm(c) => walk.norm(c),
        Command::Resize(c) => walk.resize(c),
        Command::Add(c) => walk.add(c),
        Command::Mul(c) => walk.mul(c),
        Command::Table(c) => walk.table(c),
        Command::PairTable(c) => walk.pair_table(c),
        Command::ChannelTable(c) => walk.channel_table(c),
        Command::Layout(c) => walk.layout(c),
        Command::Copy(c) => {
            walk.read(c.src, c.len);
            walk.write(c.dst, c.len);
        }
        Command::Fill(c) => walk.write(c.dst, c.len),
        Command::End(_) => {}
    }
    walk.moved.cost(walk.cycles, walk.macs, limits)
}

struct Walk<'a> {
    limits: &'a Limits,
    is_sram: &'a dyn Fn(SlotId) -> bool,
    moved: Moved,
    cycles: u128,
    macs: u64,
}

/// What the array sums: a convolution, or a product as one.
struct Sum {
    images: u32,
    input: Operand,
    input_h: u32,
    input_row_bytes: u64,
    window: Window,
    output: Operand,
    output_h: u32,
    output_w: u32,
    output_lanes: u32,
    aux: Option<(Operand, u32)>,
    weights: Operand,
    /// Output channels of each group, and how many there are.
    groups: Vec<u32>,
    /// Input channels of a group; `None` when depthwise.
    inputs: Option<u32>,
}

impl Walk<'_> {
    fn read(&mut self, operand: Operand, bytes: u64) {
        self.moved.count((self.is_sram)(operand.slot), false, bytes.into());
    }

    fn write(&mut self, operand: Operand, bytes: u64) {
        self.moved.count((self.is_sram)(operand.slot), true, bytes.into());
    }

    fn once(&mut self, header: &Header, tables: Operand, quant: Operand) {
        for (flag, operand, bytes) in [
            (Flags::TABLE_0, tables, 256),
            (Flags::TABLE_1, tables, 256),
            (Flags::DYNAMIC, quant, 16),
        ] {
            if header.flags().contains(flag) {
                self.read(operand, bytes);
            }
        }
    }

    fn conv(&mut self, c: &Conv) {
        self.once(&c.header, c.tables, c.quant);
        self.read(c.channels, record_bytes(c.ofm_c));
        let depthwise = c.is_depthwise();
        let (groups, outputs) =
            if depthwise { (1, c.ofm_c) } else { (c.groups, c.ofm_c / c.groups) };
        let aux = c.header.flags().contains(Flags::ADD_AUX);
        let pixel_bytes = u64::from(lanes(c.ifm_dims.c, c.ifm_strides.pixel));
        self.sum(&Sum {
            images: c.ifm_dims.n,
            input: c.ifm,
            input_h: c.ifm_dims.h,
            input_row_bytes: u64::from(c.ifm_dims.w) * pixel_bytes,
            window: c.window,
            output: c.ofm,
            output_h: c.ofm_h,
            output_w: c.ofm_w,
            output_lanes: lanes(c.ofm_c, c.ofm_strides.pixel),
            aux: aux.then(|| (c.aux, lanes(c.ofm_c, c.aux_strides.pixel))),
            weights: c.weights,
            groups: (0..groups).map(|_| outputs).collect(),
            inputs: (!depthwise).then(|| c.ifm_dims.c / c.groups),
        });
        for _ in 0..u64::from(c.ifm_dims.n) * u64::from(c.ofm_h) * u64::from(c.ofm_w) {
            let taps = u64::from(c.window.kernel_h) * u64::from(c.window.kernel_w);
            self.macs += u64::from(c.ofm_c) * taps * u64::from(c.ifm_dims.c / c.groups);
        }
    }

    fn matmul(&mut self, c: &MatMul) {
        self.once(&c.header, c.tables, c.quant);
        self.read(c.channels, record_bytes(c.n));
        let aux = c.header.flags().contains(Flags::ADD_AUX);
        let window = Window {
            kernel_h: 1,
            kernel_w: 1,
            stride_h: 1,
            stride_w: 1,
            dilation_h: 1,
            dilation_w: 1,
            ..Window::default()
        };
        self.sum(&Sum {
            images: 1,
            input: c.a,
            input_h: c.m,
            input_row_bytes: lanes(c.k, c.a_row).into(),
            window,
            output: c.out,
            output_h: c.m,
            output_w: 1,
            output_lanes: lanes(c.n, c.out_row),
            aux: aux.then(|| (c.aux, lanes(c.n, c.aux_row))),
            weights: c.weights,
            groups: vec![c.n],
            inputs: Some(c.k),
        });
        for _ in 0..c.m {
            self.macs += u64::from(c.n) * u64::from(c.k);
        }
    }

    /// Images, bands, groups, blocks of channels, blocks of pixels, steps.
    fn sum(&mut self, s: &Sum) {
        let (block_pixels, step_cycles) = array(self.limits);
        let taps = u32::from(s.window.kernel_h) * u32::from(s.window.kernel_w);
        let mut steps = 0u64;
        match s.inputs {
            Some(inputs) => {
                for _ in 0..taps {
                    steps += u64::from(inputs.div_ceil(4));
                }
            }
            None => steps += u64::from(taps.div_ceil(4)),
        }
        let block_bytes = steps * 64;
        let all: u64 = s.groups.iter().flat_map(|&c| (0..c).step_by(16)).map(|_| block_bytes).sum();
        if all <= WEIGHT_BUFFER {
            self.read(s.weights, all);
        }
        for _image in 0..s.images {
            let bands = bands(s.output_h, s.input_h, s.input_row_bytes, &s.window);
            for band in bands {
                for _row in band.input_rows.clone() {
                    self.read(s.input, s.input_row_bytes);
                }
                for &outputs in &s.groups {
                    for _block in (0..outputs).step_by(16) {
                        if all > WEIGHT_BUFFER && block_bytes <= WEIGHT_BUFFER {
                            self.read(s.weights, block_bytes);
                        }
                        let mut left = u64::from(band.output_rows) * u64::from(s.output_w);
                        while left > 0 {
                            if block_bytes > WEIGHT_BUFFER {
                                self.read(s.weights, block_bytes);
                            }
                            let drain = (block_pixels * 16).div_ceil(VECTOR_LANES);
                            let busy = steps * u64::from(step_cycles);
                            self.cycles += u128::from(busy.max(drain.into()));
                            left = left.saturating_sub(block_pixels.into());
                        }
                    }
                }
                for _pixel in 0..u64::from(band.output_rows) * u64::from(s.output_w) {
                    self.write(s.output, s.output_lanes.into());
                    if let Some((aux, lanes)) = s.aux {
                        self.read(aux, lanes.into());
                    }
                }
            }
        }
    }

    fn pool(&mut self, c: &Pool) {
        self.once(&c.header, c.tables, c.quant);
        let mut window = c.window;
        let mut taps = u64::from(window.kernel_h) * u64::from(window.kernel_w);
        if pool_kind::is_global(c.kind) {
            taps = u64::from(c.ifm_dims.h) * u64::from(c.ifm_dims.w);
            (window.stride_h, window.dilation_h) = (1, 1);
            window.kernel_h = u16::try_from(c.ifm_dims.h).expect("walked images are small");
        }
        let row_bytes =
            u64::from(c.ifm_dims.w) * u64::from(lanes(c.ifm_dims.c, c.ifm_strides.pixel));
        for _image in 0..c.ifm_dims.n {
            for band in bands(c.ofm_h, c.ifm_dims.h, row_bytes, &window) {
                for _row in band.input_rows.clone() {
                    self.read(c.ifm, row_bytes);
                }
                for _pixel in 0..u64::from(band.output_rows) * u64::from(c.ofm_w) {
                    for _chunk in (0..c.ifm_dims.c).step_by(64) {
                        for _tap in 0..taps {
                            self.cycles += 1;
                        }
                    }
                    self.write(c.ofm, lanes(c.ifm_dims.c, c.ofm_strides.pixel).into());
                }
            }
        }
    }

    fn product(&mut self, c: &Product) {
        self.once(&c.header, c.tables, Operand::default());
        let (block_rows, step_cycles) = array(self.limits);
        let right = u64::from(c.k) * u64::from(c.n);
        for _matrix in 0..u64::from(c.outer) * u64::from(c.batch) {
            if right <= WEIGHT_BUFFER {
                self.read(c.b, right);
            }
            for _rows in (0..c.m).step_by(block_rows as usize) {
                if right > WEIGHT_BUFFER {
                    self.read(c.b, right);
                }
                for _columns in (0..c.n).step_by(16) {
                    let mut busy = 0;
                    for _step in (0..c.k).step_by(4) {
                        busy += step_cycles;
                    }
                    let drain = (block_rows * 16).div_ceil(VECTOR_LANES);
                    self.cycles += u128::from(busy.max(drain));
                }
            }
            for _row in 0..c.m {
                self.read(c.a, c.k.into());
                self.write(c.out, c.n.into());
                self.macs += u64::from(c.n) * u64::from(c.k);
            }
        }
    }

    fn softmax(&mut self, c: &Softmax) {
        self.read(c.table, 1024);
        for _pixel in 0..u64::from(c.dims.n) * u64::from(c.dims.h) * u64::from(c.dims.w) {
            for _pass in 0..3 {
                for _chunk in (0..c.dims.c).step_by(16) {
                    self.cycles += 1;
                }
            }
            self.read(c.src, lanes(c.dims.c, c.src_strides.pixel).into());
            self.write(c.dst, lanes(c.dims.c, c.dst_strides.pixel).into());
        }
    }

    fn reduce(&mut self, c: &Reduce) {
        for _pixel in 0..u64::from(c.dims.n) * u64::from(c.dims.h) * u64::from(c.dims.w) {
            for _chunk in (0..c.dims.c).step_by(16) {
                self.cycles += 1;
            }
            self.read(c.src, lanes(c.dims.c, c.src_strides.pixel).into());
            self.write(c.dst, lanes(1, c.dst_strides.pixel).into());
        }
    }

    fn norm(&mut self, c: &Norm) {
        self.read(c.terms, c.terms_bytes());
        for _pixel in 0..u64::from(c.dims.n) * u64::from(c.dims.h) * u64::from(c.dims.w) {
            for _pass in 0..3 {
                for _chunk in (0..c.dims.c).step_by(16) {
                    self.cycles += 1;
                }
            }
            self.read(c.src, lanes(c.dims.c, c.src_strides.pixel).into());
            self.write(c.dst, lanes(c.dims.c, c.dst_strides.pixel).into());
        }
    }

    fn resize(&mut self, c: &Resize) {
        for _tap in 0..u64::from(c.ofm_h) + u64::from(c.ofm_w) {
            self.read(c.taps, 16);
        }
        for _pixel in 0..u64::from(c.ifm_dims.n) * u64::from(c.ifm_dims.h) * u64::from(c.ifm_dims.w)
        {
            self.read(c.ifm, lanes(c.ifm_dims.c, c.ifm_strides.pixel).into());
        }
        self.each_pixel_of(&c.ofm_dims(), LAYOUT_LANES, |walk| {
            walk.write(c.ofm, lanes(c.ifm_dims.c, c.ofm_strides.pixel).into());
        });
    }

    fn add(&mut self, c: &Add) {
        self.once(&c.header, c.tables, c.quant);
        self.each_pixel(&c.dims, |walk| {
            walk.read(c.a, lanes(c.dims.c, c.a_strides.pixel).into());
            walk.read(c.b, lanes(c.dims.c, c.b_strides.pixel).into());
            walk.write(c.out, lanes(c.dims.c, c.out_strides.pixel).into());
        });
    }

    fn mul(&mut self, c: &Mul) {
        self.once(&c.header, c.tables, c.quant);
        self.each_pixel(&c.dims, |walk| {
            walk.read(c.a, lanes(c.dims.c, c.a_strides.pixel).into());
            walk.read(c.b, lanes(c.dims.c, c.b_strides.pixel).into());
            walk.write(c.out, lanes(c.dims.c, c.out_strides.pixel).into());
        });
    }

    fn table(&mut self, c: &Table) {
        self.read(c.table, 256);
        self.each_pixel(&c.dims, |walk| {
            walk.read(c.src, lanes(c.dims.c, c.src_strides.pixel).into());
            walk.write(c.dst, lanes(c.dims.c, c.dst_strides.pixel).into());
        });
    }

    fn pair_table(&mut self, c: &PairTable) {
        self.read(c.table, 256 * 256);
        self.each_pixel_of(&c.dims, LOOKUP_LANES, |walk| {
            walk.read(c.a, lanes(c.dims.c, c.a_strides.pixel).into());
            walk.read(c.b, lanes(c.dims.c, c.b_strides.pixel).into());
            walk.write(c.out, lanes(c.dims.c, c.out_strides.pixel).into());
        });
    }

    fn channel_table(&mut self, c: &ChannelTable) {
        for _channel in 0..c.dims.c {
            self.read(c.tables, 256);
        }
        self.each_pixel_of(&c.dims, LOOKUP_LANES, |walk| {
            walk.read(c.src, lanes(c.dims.c, c.src_strides.pixel).into());
            walk.write(c.dst, lanes(c.dims.c, c.dst_strides.pixel).into());
        });
    }

    fn each_pixel(&mut self, dims: &Dims, visit: impl FnMut(&mut Self)) {
        self.each_pixel_of(dims, VECTOR_LANES, visit);
    }

    fn each_pixel_of(&mut self, dims: &Dims, a_cycle: u32, mut visit: impl FnMut(&mut Self)) {
        for _pixel in 0..u64::from(dims.n) * u64::from(dims.h) * u64::from(dims.w) {
            for _chunk in (0..dims.c).step_by(a_cycle as usize) {
                self.cycles += 1;
            }
            visit(self);
        }
    }

    fn layout(&mut self, c: &Layout) {
        self.once(&c.header, c.tables, c.quant);
        let mut waiting = 0;
        let pixels = u64::from(c.dims.n) * u64::from(c.dims.h) * u64::from(c.dims.w);
        for _element in 0..u64::from(c.repeats()) * pixels * u64::from(c.dims.c) {
            self.read(c.src, element::bytes(c.src_element).unwrap_or(0));
            self.write(c.dst, element::bytes(c.dst_element).unwrap_or(0));
            waiting += 1;
            if waiting == LAYOUT_LANES {
                self.cycles += 1;
                waiting = 0;
            }
        }
        self.cycles += u128::from(waiting > 0);
    }
}

/// Output rows that are worked on with one filling of the input buffer.
struct Band {
    output_rows: u32,
    input_rows: std::ops::Range<i64>,
}

/// Cuts output rows into bands, each grown a row at a time while its input rows fit the buffer.
fn bands(output_h: u32, input_h: u32, row_bytes: u64, window: &Window) -> Vec<Band> {
    let reach = (i64::from(window.kernel_h) - 1) * i64::from(window.dilation_h) + 1;
    let begin = |oy: u32| i64::from(oy) * i64::from(window.stride_h) - i64::from(window.pad_top);
    let fits = |rows: u32| {
        let span = i64::from(rows - 1) * i64::from(window.stride_h) + reach;
        span.unsigned_abs() * row_bytes <= INPUT_BUFFER
    };
    let mut out = Vec::new();
    let mut oy = 0;
    while oy < output_h {
        let mut rows = 1;
        while rows < output_h - oy && fits(rows + 1) {
            rows += 1;
        }
        let top = i64::from(input_h);
        let input_rows = begin(oy).clamp(0, top)..(begin(oy + rows - 1) + reach).clamp(0, top);
        out.push(Band { output_rows: rows, input_rows });
        oy += rows;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::cycles;
    use npu_uapi::command::{Strides, Strides4};
    use proptest::prelude::*;

    prop_compose! {
        fn header()(flags in 0u16..32) -> Header {
            Header { flags, ..Header::default() }
        }
    }

    prop_compose! {
        fn operand()(slot in 0u16..4) -> Operand {
            Operand::new(SlotId(slot), 1 << 40)
        }
    }

    prop_compose! {
        /// A dimension: mostly small, at times beyond a block, a chunk or the input buffer.
        fn dim(large: u32)(small in 1u32..20, big in 1u32..=large, pick in 0u8..2) -> u32 {
            if pick == 0 { big } else { small }
        }
    }

    prop_compose! {
        fn window()(
            kernel in (1u16..6, 1u16..6), stride in (1u16..4, 1u16..4), dilation in (1u16..4, 1u16..4),
            pads in (0u16..16, 0u16..16),
        ) -> Window {
            Window {
                kernel_h: kernel.0,
                kernel_w: kernel.1,
                stride_h: stride.0,
                stride_w: stride.1,
                dilation_h: dilation.0,
                dilation_w: dilation.1,
                pad_top: pads.0.min((kernel.0 - 1) * dilation.0),
                pad_left: pads.1.min((kernel.1 - 1) * dilation.1),
            }
        }
    }

    prop_compose! {
        fn dims()(n in 1u32..3, h in dim(60), w in dim(40), c in dim(300)) -> Dims {
            Dims { n, h, w, c }
        }
    }

    prop_compose! {
        fn strides()(pixel in prop_oneof![Just(512), Just(304), Just(4096), Just(-640)]) -> Strides {
            Strides { image: 1 << 30, row: 1 << 24, pixel }
        }
    }

    prop_compose! {
        fn conv()(
            header in header(), slots in [operand(), operand(), operand(), operand()],
            more in [operand(), operand(), operand()], dims in dims(), out in (dim(60), dim(40)),
            channels in dim(100), groups in (1u32..5, 0u8..4), window in window(),
            strides in [strides(), strides(), strides()],
        ) -> Command {
            let depthwise = groups.1 == 0;
            let groups = if depthwise { dims.c } else { groups.0 };
            let inputs = if depthwise { dims.c } else { dims.c.div_ceil(groups) * groups };
            Command::Conv(Conv {
                header,
                ifm: slots[0],
                weights: slots[1],
                channels: slots[2],
                ofm: slots[3],
                aux: more[0],
                tables: more[1],
                quant: more[2],
                ifm_dims: Dims { c: inputs, ..dims },
                ofm_h: out.0,
                ofm_w: out.1,
                ofm_c: if depthwise { dims.c } else { channels * groups },
                groups,
                ifm_strides: strides[0],
                ofm_strides: strides[1],
                aux_strides: strides[2],
                window,
                ..Conv::default()
            })
        }
    }

    prop_compose! {
        fn matmul()(
            header in header(), a in operand(), weights in operand(), channels in operand(),
            out in operand(), more in [operand(), operand(), operand()],
            m in dim(500), n in dim(600), k in prop_oneof![dim(600), Just(20_000)],
        ) -> Command {
            Command::MatMul(MatMul {
                header, a, weights, channels, out, aux: more[0], tables: more[1], quant: more[2],
                m, n, k, a_row: 20_000, out_row: 608, aux_row: 640,
                ..MatMul::default()
            })
        }
    }

    prop_compose! {
        fn pool()(
            header in header(), slots in [operand(), operand(), operand(), operand()], dims in dims(),
            out in (dim(60), dim(40)), kind in 1u8..5, window in window(),
            strides in [strides(), strides()],
        ) -> Command {
            let global = pool_kind::is_global(kind);
            Command::Pool(Pool {
                header: Header { flags: header.flags & 17, ..header },
                ifm: slots[0], ofm: slots[1], tables: slots[2], quant: slots[3], kind,
                ifm_dims: dims,
                ofm_h: if global { 1 } else { out.0 },
                ofm_w: if global { 1 } else { out.1 },
                window: if global { Window::default() } else { window },
                ifm_strides: strides[0], ofm_strides: strides[1],
                ..Pool::default()
            })
        }
    }

    prop_compose! {
        fn element_wise()(
            header in header(), slots in [operand(), operand(), operand(), operand()], dims in dims(),
            strides in [strides(), strides(), strides()], kind in 0u8..14,
            types in (1u8..3, 1u8..3), len in 1u64..100_000, outer in 0u32..4,
        ) -> Command {
            let [a, b, out, tables] = slots;
            let [a_strides, b_strides, out_strides] = strides;
            match kind {
                0 => Command::Add(Add {
                    header: Header { flags: header.flags & 17, ..header },
                    a, b, out, tables, dims, a_strides, b_strides, out_strides,
                    ..Add::default()
                }),
                1 => Command::Table(Table {
                    src: a, dst: b, table: out, dims,
                    src_strides: a_strides, dst_strides: b_strides,
                    ..Table::default()
                }),
                2 => Command::Layout(Layout {
                    header: Header { flags: header.flags & 17, ..header },
                    src: a, dst: b, quant: out, tables, dims, outer,
                    src_strides: Strides4 { image: 9, row: 8, pixel: 7, channel: 6 },
                    src_element: types.0, dst_element: types.1,
                    ..Layout::default()
                }),
                3 => Command::Copy(npu_uapi::command::Copy {
                    src: a, dst: b, len, ..Default::default()
                }),
                4 => Command::Fill(npu_uapi::command::Fill { dst: b, len, ..Default::default() }),
                6 => Command::Product(Product {
                    header: Header { flags: header.flags & 1, ..header },
                    a, b, out, tables, outer: dims.n, batch: 1 + outer, m: dims.h, n: dims.c,
                    k: dims.w * types.0 as u32 * 40,
                    ..Product::default()
                }),
                11 => Command::Reduce(Reduce {
                    src: a, dst: b, dims, src_strides: a_strides, dst_strides: b_strides,
                    ..Reduce::default()
                }),
                12 => Command::Norm(Norm {
                    src: a, dst: b, terms: out, dims, src_strides: a_strides,
                    dst_strides: b_strides, kind: types.0, period: 1 + outer,
                    ..Norm::default()
                }),
                7 => Command::Softmax(Softmax {
                    src: a, dst: b, table: out, dims,
                    src_strides: a_strides, dst_strides: b_strides,
                    ..Softmax::default()
                }),
                5 => Command::Mul(Mul {
                    header: Header { flags: header.flags & 17, ..header },
                    a, b, out, tables, dims, a_strides, b_strides, out_strides,
                    ..Mul::default()
                }),
                8 => Command::PairTable(PairTable {
                    a, b, out, table: tables, dims, a_strides, b_strides, out_strides,
                    ..PairTable::default()
                }),
                9 => Command::ChannelTable(ChannelTable {
                    src: a, dst: b, tables, dims,
                    src_strides: a_strides, dst_strides: b_strides,
                    ..ChannelTable::default()
                }),
                10 => Command::Resize(Resize {
                    ifm: a, ofm: b, taps: tables, ifm_dims: dims,
                    ofm_h: 1 + outer * 3, ofm_w: dims.h + outer,
                    ifm_strides: a_strides, ofm_strides: b_strides,
                    ..Resize::default()
                }),
                _ => Command::End(npu_uapi::command::End::default()),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn the_formula_is_the_walk_on_random_commands(
            command in prop_oneof![conv(), matmul(), pool(), element_wise()],
            // Reference, small, odd and tiny arrays; memories that bound, and memories that do not.
            macs_per_cycle in prop_oneof![Just(1024u32), Just(256), Just(100), Just(16)],
            dram_bytes_per_cycle in prop_oneof![Just(7u32), Just(1 << 30)],
            sram_bytes_per_cycle in prop_oneof![Just(64u32), Just(1 << 30)],
            sram in 0u8..16,
        ) {
            let limits = Limits {
                macs_per_cycle,
                dram_bytes_per_cycle,
                sram_bytes_per_cycle,
                ..Limits::REFERENCE
            };
            let is_sram = |slot: SlotId| sram >> slot.0 & 1 == 1;
            prop_assert_eq!(cycles(&command, &limits, &is_sram), walk(&command, &limits, &is_sram));
        }
    }
}
