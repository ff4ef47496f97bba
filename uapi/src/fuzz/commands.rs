//! A plausible command of each kind.

use super::Builder;
use crate::addr::Operand;
use crate::command::{
    Add, ChannelTable, Command, Conv, Copy, Dims, Fill, Flags, Layout, MatMul, Mul, Norm,
    PAIR_TABLE_BYTES, PairTable, Pool, Product, Reduce, Resize, Softmax, Strides, Strides4, Table,
    Window, element, norm_kind, opcode, pool_kind, record_bytes,
};
use crate::extent;
use arbitrary::Result;

impl Builder<'_, '_> {
    pub(super) fn conv(&mut self) -> Result<Conv> {
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

    pub(super) fn matmul(&mut self) -> Result<MatMul> {
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

    pub(super) fn add(&mut self) -> Result<Add> {
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

    pub(super) fn mul(&mut self) -> Result<Mul> {
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

    pub(super) fn product(&mut self) -> Result<Product> {
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

    pub(super) fn softmax(&mut self) -> Result<Softmax> {
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

    pub(super) fn reduce(&mut self) -> Result<Reduce> {
        let dims = self.dims()?;
        let header = self.header(opcode::REDUCE, 2, Flags::empty());
        let (src, src_strides) = self.map(dims, false, false)?;
        let (dst, dst_strides) = self.map(Dims { c: 1, ..dims }, false, true)?;
        let (input_zero_point, zero_point) = self.u.arbitrary()?;
        Ok(Reduce {
            header,
            src,
            dst,
            dims,
            src_strides,
            dst_strides,
            input_scale: self.scale()?,
            output_scale: self.scale()?,
            input_zero_point,
            zero_point,
            order: self.u.int_in_range(1..=3)?,
            mean: self.u.int_in_range(0..=1)?,
            ..Reduce::default()
        })
    }

    pub(super) fn norm(&mut self) -> Result<Norm> {
        let kind = self.u.int_in_range(norm_kind::LAYER..=norm_kind::STAGED)?;
        let mut dims = self.dims()?;
        if kind == norm_kind::LAYER {
            dims.c = dims.c.max(8);
        }
        let (input_zero_point, zero_point) = self.u.arbitrary()?;
        let mut norm = Norm {
            header: self.header(opcode::NORM, 3, Flags::empty()),
            dims,
            input_scale: self.scale()?,
            output_scale: self.scale()?,
            input_zero_point,
            zero_point,
            kind,
            ..Norm::default()
        };
        match kind {
            norm_kind::LAYER => norm.epsilon = self.scale()?,
            norm_kind::INSTANCE => {
                norm.epsilon = self.scale()?;
                norm.period = self.size(1, 9)?;
            }
            _ => {
                norm.variance_scale = self.scale()?;
                norm.variance_zero_point = self.u.arbitrary()?;
                norm.order = self.u.int_in_range(1..=3)?;
                norm.square_order = self.u.int_in_range(1..=3)?;
            }
        }
        norm.terms = self.flat(Some(norm.terms_bytes()))?;
        (norm.dst, norm.dst_strides) = self.map(dims, false, true)?;
        (norm.src, norm.src_strides) = match self.u.ratio(1, 4)? {
            true => (norm.dst, norm.dst_strides),
            false => self.map(dims, false, false)?,
        };
        Ok(norm)
    }

    /// An operand that may repeat over pixels, rows or images.
    pub(super) fn repeated(&mut self, dims: Dims) -> Result<(Operand, Strides)> {
        let (operand, mut strides) = self.map(dims, false, false)?;
        if self.u.ratio(1, 4)? {
            strides.pixel = 0;
        }
        if strides.pixel == 0 || self.u.ratio(1, 8)? {
            (strides.row, strides.image) = (0, if self.u.arbitrary()? { 0 } else { strides.image });
        }
        Ok((operand, strides))
    }

    pub(super) fn pool(&mut self) -> Result<Pool> {
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

    pub(super) fn table(&mut self) -> Result<Table> {
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

    pub(super) fn pair_table(&mut self) -> Result<PairTable> {
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

    pub(super) fn channel_table(&mut self) -> Result<ChannelTable> {
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

    pub(super) fn resize(&mut self) -> Result<Resize> {
        let mut resize = Resize {
            header: self.header(opcode::RESIZE, 3, Flags::empty()),
            ifm_dims: self.dims()?,
            ofm_h: self.size(1, 12)?,
            ofm_w: self.size(1, 12)?,
            input_scale: self.scale()?,
            output_scale: self.scale()?,
            input_zero_point: self.u.arbitrary()?,
            zero_point: self.u.arbitrary()?,
            ..Resize::default()
        };
        resize.taps = self.flat(Some(resize.tap_bytes()))?;
        (resize.ifm, resize.ifm_strides) = self.map(resize.ifm_dims, false, false)?;
        (resize.ofm, resize.ofm_strides) = self.map(resize.ofm_dims(), false, true)?;
        Ok(resize)
    }

    pub(super) fn layout(&mut self) -> Result<Layout> {
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
    pub(super) fn tensor(
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

    pub(super) fn bytes(&mut self) -> Result<Command> {
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
