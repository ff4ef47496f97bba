//! Bodies of the fuzz targets, and the generator of programs they and the device's tests share.
//!
//! `cargo test` runs the bodies for a moment each; a fuzzer calls the same functions for longer. The
//! generator builds plausible programs, most of which the verifier takes, since programs that are
//! refused at once test nothing behind it; [`mutated`] then breaks them.

use crate::addr::{Operand, SlotId};
use crate::command::{
    Add, ChannelTable, Command, Conv, Copy, Dims, End, Fill, Flags, Header, Layout, MatMul, Mul,
    PAIR_TABLE_BYTES, PairTable, Pool, Product, Softmax, Stage, Strides, Strides4, Table, Window,
    element, opcode, pool_kind, record_bytes,
};
use crate::container::Container;
use crate::extent::{self, FeatureMap};
use crate::image::{Image, SlotDecl, slot_kind};
use crate::limits::Limits;
use crate::text::{assemble, disassemble};
use crate::verify::{Verified, verify};
use crate::{decode, encode};
use alloc::vec::Vec;
use arbitrary::{Result, Unstructured};

/// Decoders take any bytes without panic, and what they take encodes to the same bytes.
pub fn check_decode(bytes: &[u8]) {
    if let Ok(commands) = decode::commands(bytes) {
        assert_eq!(encode::commands(&commands), bytes);
    }
    if let Ok(image) = Image::from_bytes(bytes) {
        assert_eq!(image.to_bytes(), bytes);
        check_round_trip(&image);
    }
    let _ = Container::from_bytes(bytes);
}

/// The assembler takes any text without panic, and what it takes survives disassembly.
pub fn check_text(text: &str) {
    if let Ok(image) = assemble(text) {
        check_round_trip(&image);
    }
}

/// A random, at times broken, program: the verifier answers without panic, and each access of what it
/// accepts lies in a slot that allows it. Gives the program when it was accepted.
pub fn check_verify(u: &mut Unstructured<'_>) -> Result<Option<Verified>> {
    let mut image = program(u)?;
    if u.ratio(1, 2)? {
        match mutated(u, &image)? {
            Some(broken) => image = broken,
            None => return Ok(None),
        }
    }
    check_round_trip(&image);
    let program = match verify(&image, &Limits::REFERENCE) {
        Ok(program) => program,
        Err(refusal) => {
            assert_eq!(refusal.fault().cause, refusal.rule.number());
            assert!(!alloc::format!("{refusal}").is_empty());
            return Ok(None);
        }
    };
    for command in program.commands() {
        let accesses = extent::accesses(command).expect("the verifier computed them too");
        for access in &accesses {
            let slot = program.slots()[access.slot.index()];
            assert!(access.len > 0 && access.start + access.len <= slot.len);
            assert!(!access.write || slot.access() & crate::queue::access::WRITE != 0);
        }
    }
    Ok(Some(program))
}

fn check_round_trip(image: &Image) {
    let text = disassemble(image);
    let again = assemble(&text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    // By bytes: a NaN does not equal itself.
    assert_eq!(again.to_bytes(), image.to_bytes(), "{text}");
}

/// `image` with a few words of its wire form changed, if that can still be decoded.
pub fn mutated(u: &mut Unstructured<'_>, image: &Image) -> Result<Option<Image>> {
    let mut bytes = image.to_bytes();
    for _ in 0..u.int_in_range(1..=3)? {
        let at = 64 + 4 * u.choose_index((bytes.len() - 64) / 4)?;
        let word = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let new = match u.int_in_range(0..=5)? {
            0 => u.arbitrary()?,
            1 => word ^ (1 << u.int_in_range(0..=31)?),
            2 => word.wrapping_add(1),
            3 => word.wrapping_sub(1),
            4 => word.wrapping_neg(),
            _ => *u.choose(&[0, 1, 4, 15, 16, 255, 256, 0x7fff_ffff, 0x8000_0000, u32::MAX])?,
        };
        bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
    }
    Ok(Image::from_bytes(&bytes).ok())
}

/// A plausible program over one slot of each kind, each as long as its commands need.
pub fn program(u: &mut Unstructured<'_>) -> Result<Image> {
    let mut builder = Builder { u, lens: [0; KINDS.len()], op_id: 0 };
    let mut commands = Vec::new();
    for _ in 0..builder.size(1, 5)? {
        commands.push(builder.command()?);
    }
    let header = builder.header(opcode::END, 1, Flags::empty());
    commands.push(Command::End(End { header, ..End::default() }));
    let slots = KINDS.iter().zip(builder.lens).map(|(&kind, len)| SlotDecl::new(kind, len));
    Ok(Image { features: 0, slots: slots.collect(), commands })
}

const KINDS: [u8; 5] =
    [slot_kind::SRAM, slot_kind::CONSTANT, slot_kind::SCRATCH, slot_kind::INPUT, slot_kind::OUTPUT];

/// Where extents are computed from before an operand has its place.
const FAR: u64 = 1 << 40;

struct Builder<'a, 'b> {
    u: &'a mut Unstructured<'b>,
    lens: [u64; KINDS.len()],
    op_id: u32,
}

impl Builder<'_, '_> {
    fn size(&mut self, low: u32, high: u32) -> Result<u32> {
        self.u.int_in_range(low..=high)
    }

    fn short(&mut self, low: u16, high: u16) -> Result<u16> {
        self.u.int_in_range(low..=high)
    }

    /// Channels: around the widths of kernels more often than elsewhere.
    fn channels(&mut self) -> Result<u32> {
        match self.size(0, 2)? {
            0 => Ok(*self.u.choose(&[1, 3, 4, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65])?),
            _ => self.size(1, 70),
        }
    }

    fn scale(&mut self) -> Result<f32> {
        Ok(match self.size(0, 7)? {
            0 => f32::from_bits(self.u.arbitrary()?),
            _ => f32::from(self.short(1, u16::MAX)?) / 65_536.0,
        })
    }

    fn header(&mut self, opcode: u8, units: u8, flags: Flags) -> Header {
        self.op_id += 1;
        Header::new(opcode, units, flags, self.op_id)
    }

    /// Room for `below` bytes before an operand's offset and `above` from there, in a slot that can be
    /// read or written. Mostly new room, at times room that earlier commands use.
    fn place(&mut self, below: u64, above: u64, write: bool) -> Result<Operand> {
        let slot = *self.u.choose(if write { &[0u16, 2, 4][..] } else { &[0, 1, 2, 3, 4][..] })?;
        let len = &mut self.lens[usize::from(slot)];
        let bytes = below + above;
        let start = if bytes <= *len && self.u.ratio(1, 4)? {
            self.u.int_in_range(0..=*len - bytes)?
        } else {
            let start = *len + self.u.int_in_range(0..=70)?;
            *len = start + bytes;
            start
        };
        Ok(Operand::new(SlotId(slot), start + below))
    }

    fn flat(&mut self, len: Option<u64>) -> Result<Operand> {
        self.place(0, len.unwrap_or(1), false)
    }

    /// A stride of at least `span` bytes, either way.
    fn stride(&mut self, span: u64) -> Result<i64> {
        let extra = if self.u.ratio(1, 2)? { 0 } else { self.u.int_in_range(0..=40)? };
        let stride = i64::try_from(span + extra).unwrap_or(i64::MAX);
        Ok(if self.u.ratio(1, 8)? { -stride } else { stride })
    }

    fn map(&mut self, dims: Dims, quads: bool, write: bool) -> Result<(Operand, Strides)> {
        let narrow = |stride: i64| i32::try_from(stride).unwrap_or(i32::MAX);
        let channels = u64::from(dims.c);
        let span = if self.u.ratio(1, 2)? { channels } else { channels.next_multiple_of(16) };
        let pixel = self.stride(span)?;
        let pixel = narrow(if quads { pixel / 4 * 4 + 4 * pixel.signum() } else { pixel });
        let map = FeatureMap { dims, strides: Strides { pixel, ..Strides::default() }, ..far() };
        let width =
            u64::from(dims.w - 1) * u64::from(pixel.unsigned_abs()) + u64::from(map.lanes());
        let overlapping = !write && self.u.ratio(1, 8)?;
        let row = self.stride(if overlapping { 0 } else { width })?;
        let height = u64::from(dims.h - 1) * row.unsigned_abs() + width;
        let image = self.stride(if overlapping { 0 } else { height })?;
        let strides = Strides { image, row: narrow(row), pixel };
        let operand = match (FeatureMap { dims, strides, ..far() }).access() {
            Ok(access) => self.place(FAR - access.start, access.end() - FAR, write)?,
            Err(_) => Operand::default(),
        };
        Ok((operand, strides))
    }

    /// A matrix: place, and stride from row to row.
    fn matrix(&mut self, m: u32, n: u32, quads: bool, write: bool) -> Result<(Operand, i32)> {
        let (operand, strides) = self.map(Dims { n: 1, h: 1, w: m, c: n }, quads, write)?;
        Ok((operand, strides.pixel))
    }

    fn tables(&mut self, flags: Flags) -> Result<Operand> {
        if !flags.intersects(Flags::TABLE_0 | Flags::TABLE_1) {
            return Ok(Operand::default());
        }
        self.flat(Some(512))
    }

    fn clamp(&mut self) -> Result<(u8, u8)> {
        let (a, b): (u8, u8) = self.u.arbitrary()?;
        Ok(if self.u.ratio(1, 2)? { (0, 255) } else { (a.min(b), a.max(b)) })
    }

    fn zero_point(&mut self) -> Result<i32> {
        self.u.int_in_range(0..=255)
    }

    fn stage_flags(&mut self) -> Result<Flags> {
        let flags = Flags::from_bits_truncate(self.short(0, 15)?);
        let flags = if self.u.ratio(1, 3)? { flags | Flags::FLOAT } else { flags };
        let lonely = flags.contains(Flags::AUX_FIRST) && !flags.contains(Flags::ADD_AUX);
        Ok(if lonely { flags - Flags::AUX_FIRST } else { flags })
    }

    fn stage(&mut self, flags: Flags) -> Result<Stage> {
        let (clamp_low, clamp_high) = self.clamp()?;
        let mut stage = Stage {
            input_zero_point: self.zero_point()?,
            zero_point: self.zero_point()?,
            clamp_low,
            clamp_high,
            ..Stage::default()
        };
        if flags.contains(Flags::ADD_AUX) {
            stage.add_first = self.scale()?;
            stage.add_second = self.scale()?;
            stage.add_offset = self.scale()? * 100.0;
        }
        if flags.contains(Flags::FLOAT) {
            let blocks = self.u.ratio(2, 3)?;
            stage.float_order =
                if blocks { self.u.int_in_range(1..=2)? } else { self.u.int_in_range(3..=5)? };
            stage.float_block_log2 = if blocks { self.u.int_in_range(0..=10)? } else { 0 };
            stage.input_scale = self.scale()?;
            stage.output_scale = self.scale()?;
        }
        Ok(stage)
    }

    /// A window, and the size of the output it makes of `h` by `w`.
    fn window(&mut self, h: u32, w: u32) -> Result<(Window, u32, u32)> {
        let (kernel_h, stride_h, dilation_h, pad_top, ofm_h) = self.axis(h)?;
        let (kernel_w, stride_w, dilation_w, pad_left, ofm_w) = self.axis(w)?;
        let window = Window {
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            dilation_h,
            dilation_w,
            pad_top,
            pad_left,
        };
        Ok((window, ofm_h, ofm_w))
    }

    fn axis(&mut self, input: u32) -> Result<(u16, u16, u16, u16, u32)> {
        let kernel = if self.u.ratio(1, 3)? { 1 } else { self.short(1, 5)? };
        let stride = self.short(1, 3)?;
        let dilation = if self.u.ratio(1, 4)? { self.short(2, 3)? } else { 1 };
        let pad = self.short(0, (kernel - 1) * dilation)?;
        let most = (input + u32::from(pad) - 1) / u32::from(stride) + 1;
        let output = if self.u.ratio(1, 4)? { self.size(1, most)? } else { most };
        Ok((kernel, stride, dilation, pad, output))
    }

    fn dims(&mut self) -> Result<Dims> {
        let n = if self.u.ratio(1, 4)? { 2 } else { 1 };
        Ok(Dims { n, h: self.size(1, 9)?, w: self.size(1, 12)?, c: self.channels()? })
    }

    fn command(&mut self) -> Result<Command> {
        Ok(match self.size(0, 16)? {
            0..=3 => Command::Conv(self.conv()?),
            4 | 5 => Command::MatMul(self.matmul()?),
            6 => Command::Add(self.add()?),
            7 | 8 => Command::Pool(self.pool()?),
            9 => Command::Table(self.table()?),
            10 => Command::Layout(self.layout()?),
            11 => Command::Mul(self.mul()?),
            12 => Command::Product(self.product()?),
            13 => Command::Softmax(self.softmax()?),
            14 => Command::PairTable(self.pair_table()?),
            15 => Command::ChannelTable(self.channel_table()?),
            _ => self.bytes()?,
        })
    }

    fn conv(&mut self) -> Result<Conv> {
        let flags = self.stage_flags()?;
        let mut ifm_dims = self.dims()?;
        let (groups, ofm_c) = match self.size(0, 3)? {
            0 => (ifm_dims.c, ifm_dims.c),
            1 => {
                let groups = self.size(2, 4)?;
                ifm_dims.c = groups * self.size(1, 20)?;
                (groups, groups * self.size(1, 20)?)
            }
            _ => (1, self.channels()?),
        };
        let (window, ofm_h, ofm_w) = self.window(ifm_dims.h, ifm_dims.w)?;
        let mut conv = Conv {
            header: self.header(opcode::CONV, 4, flags),
            ifm_dims,
            ofm_h,
            ofm_w,
            ofm_c,
            groups,
            window,
            stage: self.stage(flags)?,
            tables: self.tables(flags)?,
            ..Conv::default()
        };
        (conv.ifm, conv.ifm_strides) = self.map(ifm_dims, true, false)?;
        if flags.contains(Flags::ADD_AUX) {
            (conv.aux, conv.aux_strides) = self.map(conv.ofm_dims(), false, false)?;
        }
        conv.weights = self.flat(conv.weight_bytes())?;
        conv.channels = self.flat(Some(record_bytes(ofm_c)))?;
        (conv.ofm, conv.ofm_strides) = self.map(conv.ofm_dims(), false, true)?;
        Ok(conv)
    }

    fn matmul(&mut self) -> Result<MatMul> {
        let flags = self.stage_flags()?;
        let (m, n, k) = (self.size(1, 20)?, self.channels()?, self.size(1, 150)?);
        let mut product = MatMul {
            header: self.header(opcode::MATMUL, 3, flags),
            m,
            n,
            k,
            stage: self.stage(flags)?,
            tables: self.tables(flags)?,
            ..MatMul::default()
        };
        (product.a, product.a_row) = self.matrix(m, k, true, false)?;
        if flags.contains(Flags::ADD_AUX) {
            (product.aux, product.aux_row) = self.matrix(m, n, false, false)?;
        }
        product.weights = self.flat(product.weight_bytes())?;
        product.channels = self.flat(Some(record_bytes(n)))?;
        (product.out, product.out_row) = self.matrix(m, n, false, true)?;
        Ok(product)
    }

    fn add(&mut self) -> Result<Add> {
        let flags = if self.u.arbitrary()? { Flags::TABLE_0 } else { Flags::empty() };
        let (clamp_low, clamp_high) = self.clamp()?;
        let dims = self.dims()?;
        let mut add = Add {
            header: self.header(opcode::ADD, 3, flags),
            tables: self.tables(flags)?,
            dims,
            first: self.scale()?,
            second: self.scale()?,
            offset: self.scale()? * 100.0,
            clamp_low,
            clamp_high,
            ..Add::default()
        };
        (add.b, add.b_strides) = self.repeated(dims)?;
        (add.out, add.out_strides) = self.map(dims, false, true)?;
        (add.a, add.a_strides) = match self.u.ratio(1, 4)? {
            true => (add.out, add.out_strides),
            false => self.repeated(dims)?,
        };
        Ok(add)
    }

    fn mul(&mut self) -> Result<Mul> {
        let flags = if self.u.arbitrary()? { Flags::TABLE_0 } else { Flags::empty() };
        let (clamp_low, clamp_high) = self.clamp()?;
        let (first_zero_point, second_zero_point, zero_point) = self.u.arbitrary()?;
        let dims = self.dims()?;
        let mut mul = Mul {
            header: self.header(opcode::MUL, 3, flags),
            tables: self.tables(flags)?,
            dims,
            multiplier: self.scale()? / 64.0,
            first_zero_point,
            second_zero_point,
            zero_point,
            clamp_low,
            clamp_high,
            ..Mul::default()
        };
        (mul.b, mul.b_strides) = self.repeated(dims)?;
        (mul.out, mul.out_strides) = self.map(dims, false, true)?;
        (mul.a, mul.a_strides) = match self.u.ratio(1, 4)? {
            true => (mul.out, mul.out_strides),
            false => self.repeated(dims)?,
        };
        Ok(mul)
    }

    fn product(&mut self) -> Result<Product> {
        let flags = if self.u.arbitrary()? { Flags::TABLE_0 } else { Flags::empty() };
        let (clamp_low, clamp_high) = self.clamp()?;
        let (a_zero_point, b_zero_point, zero_point) = self.u.arbitrary()?;
        let mut product = Product {
            header: self.header(opcode::PRODUCT, 3, flags),
            tables: self.tables(flags)?,
            outer: self.size(1, 3)?,
            batch: self.size(1, 4)?,
            m: self.size(1, 20)?,
            n: self.size(1, 40)?,
            k: self.size(1, 70)?,
            multiplier: self.scale()? / 1024.0,
            a_zero_point,
            b_zero_point,
            zero_point,
            clamp_low,
            clamp_high,
            ..Product::default()
        };
        let (outer, batch) = (product.outer, product.batch);
        let matrix = |h, w, c| Dims { n: outer, h, w: w * batch, c };
        // The inner loop beside the rows, as heads lie in attention.
        let rows = |strides: Strides, c: u32| (strides.image, i64::from(c), strides.row);
        let (m, n, k) = (product.m, product.n, product.k);
        let (a, strides) = self.map(matrix(m, 1, k), false, false)?;
        product.a = a;
        (product.a_outer, product.a_batch, product.a_row) =
            (strides.image, strides.pixel.into(), strides.row);
        let (b, strides) = self.map(Dims { n: outer, h: k, w: 1, c: n * batch }, false, false)?;
        product.b = b;
        (product.b_outer, product.b_batch, product.b_row) = rows(strides, n);
        product.b_column = 1;
        let (out, strides) = self.map(Dims { n: outer, h: m, w: 1, c: n * batch }, false, true)?;
        product.out = out;
        (product.out_outer, product.out_batch, product.out_row) = rows(strides, n);
        Ok(product)
    }

    fn softmax(&mut self) -> Result<Softmax> {
        let dims = self.dims()?;
        let header = self.header(opcode::SOFTMAX, 2, Flags::empty());
        let table = self.flat(Some(extent::SHARES_BYTES))?;
        let (dst, dst_strides) = self.map(dims, false, true)?;
        let (src, src_strides) = match self.u.ratio(1, 4)? {
            true => (dst, dst_strides),
            false => self.map(dims, false, false)?,
        };
        let (scale, zero_point) = (self.scale()? * 255.0, self.u.arbitrary()?);
        let softmax = Softmax {
            header,
            src,
            dst,
            table,
            dims,
            src_strides,
            dst_strides,
            ..Softmax::default()
        };
        Ok(Softmax { scale, zero_point, ..softmax })
    }

    /// An operand that may repeat over pixels, rows or images.
    fn repeated(&mut self, dims: Dims) -> Result<(Operand, Strides)> {
        let (operand, mut strides) = self.map(dims, false, false)?;
        if self.u.ratio(1, 4)? {
            strides.pixel = 0;
        }
        if strides.pixel == 0 || self.u.ratio(1, 8)? {
            (strides.row, strides.image) = (0, if self.u.arbitrary()? { 0 } else { strides.image });
        }
        Ok((operand, strides))
    }

    fn pool(&mut self) -> Result<Pool> {
        let flags = if self.u.arbitrary()? { Flags::TABLE_0 } else { Flags::empty() };
        let ifm_dims = self.dims()?;
        let (clamp_low, clamp_high) = self.clamp()?;
        let (window, ofm_h, ofm_w) = self.window(ifm_dims.h, ifm_dims.w)?;
        let mut pool = Pool {
            header: self.header(opcode::POOL, 3, flags),
            tables: self.tables(flags)?,
            ifm_dims,
            ofm_h,
            ofm_w,
            kind: pool_kind::MAX,
            window,
            clamp_low,
            clamp_high,
            ..Pool::default()
        };
        match self.size(0, 3)? {
            0 => {}
            1 => {
                pool.kind = pool_kind::AVERAGE;
                pool.count_padding = self.u.int_in_range(0..=1)?;
                if pool.count_padding == 1 {
                    pool.pad_bottom = self.short(0, (window.kernel_h - 1) * window.dilation_h)?;
                    pool.pad_right = self.short(0, (window.kernel_w - 1) * window.dilation_w)?;
                }
                (pool.input_scale, pool.output_scale) = (self.scale()?, self.scale()?);
            }
            2 => {
                pool.kind = pool_kind::GLOBAL_AVERAGE;
                (pool.window, pool.ofm_h, pool.ofm_w) = (Window::default(), 1, 1);
                pool.multiplier = self.scale()?;
            }
            _ => {
                pool.kind = pool_kind::GLOBAL_MEAN;
                (pool.window, pool.ofm_h, pool.ofm_w) = (Window::default(), 1, 1);
                (pool.input_scale, pool.output_scale) = (self.scale()?, self.scale()?);
            }
        }
        if pool.kind != pool_kind::MAX {
            (pool.input_zero_point, pool.zero_point) = (self.zero_point()?, self.zero_point()?);
        }
        (pool.ifm, pool.ifm_strides) = self.map(ifm_dims, false, false)?;
        (pool.ofm, pool.ofm_strides) = self.map(pool.ofm_dims(), false, true)?;
        Ok(pool)
    }

    fn table(&mut self) -> Result<Table> {
        let dims = self.dims()?;
        let header = self.header(opcode::TABLE, 2, Flags::empty());
        let table = self.flat(Some(extent::TABLE_BYTES))?;
        let (dst, dst_strides) = self.map(dims, false, true)?;
        let (src, src_strides) = match self.u.ratio(1, 4)? {
            true => (dst, dst_strides),
            false => self.map(dims, false, false)?,
        };
        Ok(Table { header, src, dst, table, dims, src_strides, dst_strides, ..Table::default() })
    }

    fn pair_table(&mut self) -> Result<PairTable> {
        let dims = self.dims()?;
        let mut pairs = PairTable {
            header: self.header(opcode::PAIR_TABLE, 3, Flags::empty()),
            table: self.flat(Some(PAIR_TABLE_BYTES))?,
            dims,
            ..PairTable::default()
        };
        (pairs.b, pairs.b_strides) = self.repeated(dims)?;
        (pairs.out, pairs.out_strides) = self.map(dims, false, true)?;
        (pairs.a, pairs.a_strides) = match self.u.ratio(1, 4)? {
            true => (pairs.out, pairs.out_strides),
            false => self.repeated(dims)?,
        };
        Ok(pairs)
    }

    fn channel_table(&mut self) -> Result<ChannelTable> {
        let dims = self.dims()?;
        let mut tables = ChannelTable {
            header: self.header(opcode::CHANNEL_TABLE, 2, Flags::empty()),
            dims,
            ..ChannelTable::default()
        };
        tables.tables = self.flat(Some(tables.table_bytes()))?;
        (tables.dst, tables.dst_strides) = self.map(dims, false, true)?;
        (tables.src, tables.src_strides) = match self.u.ratio(1, 4)? {
            true => (tables.dst, tables.dst_strides),
            false => self.map(dims, false, false)?,
        };
        Ok(tables)
    }

    fn layout(&mut self) -> Result<Layout> {
        let mut dims = self.dims()?;
        if self.u.ratio(1, 2)? {
            dims.c = self.size(1, 5)?;
        }
        let types = [element::U8, element::F32];
        let (src_element, dst_element) = (*self.u.choose(&types)?, *self.u.choose(&types)?);
        let moves = (src_element, dst_element) == (element::U8, element::U8);
        let flags = if moves && self.u.arbitrary()? { Flags::TABLE_0 } else { Flags::empty() };
        let mut layout = Layout {
            header: self.header(opcode::LAYOUT, 3, flags),
            tables: self.tables(flags)?,
            outer: if self.u.ratio(1, 3)? { self.size(1, 4)? } else { 0 },
            dims,
            src_element,
            dst_element,
            ..Layout::default()
        };
        if src_element != dst_element {
            (layout.zero_point, layout.scale) = (self.zero_point()?, self.scale()?);
        }
        let outer = layout.outer;
        (layout.src, layout.src_strides, layout.src_outer) =
            self.tensor(dims, outer, src_element, false)?;
        (layout.dst, layout.dst_strides, layout.dst_outer) =
            self.tensor(dims, outer, dst_element, true)?;
        Ok(layout)
    }

    /// A tensor of any dimension order: channels first, last, or strides in a random order.
    fn tensor(
        &mut self,
        dims: Dims,
        outer: u32,
        code: u8,
        write: bool,
    ) -> Result<(Operand, Strides4, i64)> {
        let counts = [dims.n, dims.h, dims.w, dims.c, outer.max(1)];
        let orders =
            [[3, 2, 1, 0, 4], [2, 1, 3, 0, 4], [0, 1, 2, 3, 4], [4, 1, 3, 0, 2], [3, 4, 2, 1, 0]];
        let mut strides = [0i64; 5];
        let mut span = element::bytes(code).unwrap_or(1);
        let (mut below, mut above) = (0, span);
        for axis in *self.u.choose(&orders)? {
            if (axis == 4 && outer == 0) || (!write && self.u.ratio(1, 8)?) {
                continue;
            }
            strides[axis] = self.stride(span)?;
            let reach = u64::from(counts[axis] - 1) * strides[axis].unsigned_abs();
            span += reach;
            if strides[axis] < 0 {
                below += reach;
            } else {
                above += reach;
            }
        }
        let [image, row, pixel, channel, outer] = strides;
        let strides = Strides4 { image, row, pixel, channel };
        Ok((self.place(below, above, write)?, strides, outer))
    }

    fn bytes(&mut self) -> Result<Command> {
        let len = self.u.int_in_range(1..=3000)?;
        let dst = self.place(0, len, true)?;
        if self.u.arbitrary()? {
            let header = self.header(opcode::FILL, 1, Flags::empty());
            let value = self.u.arbitrary()?;
            return Ok(Command::Fill(Fill { header, dst, len, value, ..Fill::default() }));
        }
        let header = self.header(opcode::COPY, 1, Flags::empty());
        let src = self.place(0, len, false)?;
        Ok(Command::Copy(Copy { header, src, dst, len, ..Copy::default() }))
    }
}

fn far() -> FeatureMap {
    FeatureMap { operand: Operand::new(SlotId(0), FAR), ..FeatureMap::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use arbtest::arbtest;

    #[test]
    fn decoders_never_panic_on_bytes() {
        arbtest(|u| {
            let bytes: Vec<u8> = u.arbitrary()?;
            check_decode(&bytes);
            Ok(())
        })
        .budget_ms(200)
        .size_min(2000);
    }

    #[test]
    fn decoders_never_panic_on_broken_programs() {
        arbtest(|u| {
            let mut bytes = program(u)?.to_bytes();
            for _ in 0..u.int_in_range(0..=3)? {
                let at = u.choose_index(bytes.len())?;
                bytes[at] = u.arbitrary()?;
            }
            let keep = if u.ratio(1, 8)? { u.choose_index(bytes.len())? } else { bytes.len() };
            check_decode(&bytes[..keep]);
            Ok(())
        })
        .budget_ms(300)
        .size_min(2000);
    }

    #[test]
    fn the_assembler_never_panics() {
        arbtest(|u| {
            let mut text = disassemble(&program(u)?);
            for _ in 0..u.int_in_range(0..=3)? {
                let at = u.choose_index(text.len())?;
                let printable: u8 = u.int_in_range(9..=126)?;
                text.replace_range(at..=at, &String::from(char::from(printable)));
            }
            check_text(&text);
            Ok(())
        })
        .budget_ms(300)
        .size_min(2000);
    }

    #[test]
    fn the_verifier_never_panics_and_accepts_only_bounded_accesses() {
        arbtest(|u| check_verify(u).map(|_| ())).budget_ms(400).size_min(2000);
    }

    #[test]
    fn most_generated_programs_are_accepted_and_of_every_kind() {
        let (mut accepted, mut all, mut kinds) = (0u32, 0u32, alloc::collections::BTreeSet::new());
        let mut state = 1u64;
        while all < 500 {
            // A fixed stream of bytes: this test counts, so it must not depend on how fast it runs.
            let bytes: Vec<u8> = core::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                state.to_be_bytes()[0]
            })
            .take(3000)
            .collect();
            let image = program(&mut Unstructured::new(&bytes)).unwrap();
            all += 1;
            if let Ok(program) = verify(&image, &Limits::REFERENCE) {
                accepted += 1;
                kinds.extend(program.commands().iter().map(Command::name));
            }
        }
        assert!(accepted * 2 > all, "{accepted} of {all} accepted");
        assert_eq!(kinds.len(), 14, "{kinds:?}");
    }
}
