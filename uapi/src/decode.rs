//! Bytes to commands; never panics. What comes out has known opcodes, flags and enumerations, and zero
//! reserved fields.

use crate::command::{
    Add, ChannelTable, Command, Conv, Copy, End, Fill, Flags, Header, Layout, MOST_TAPS, MatMul,
    Mul, Norm, PairTable, Pool, Product, Reduce, Resize, Softmax, Table, UNIT_BYTES, element,
    norm_kind, opcode, pool_kind,
};
use crate::float_order::Order;
use crate::rows::{self, MOST_ELEMENTS};
use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Why bytes are not a command.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end inside a command.
    #[error("command at byte {at} is cut off: {left} bytes are left, {want} are needed")]
    Truncated {
        /// Byte offset of the command.
        at: usize,
        /// Bytes from there to the end.
        left: usize,
        /// Bytes of the command.
        want: usize,
    },
    /// No such command in this version.
    #[error("unknown opcode {opcode:#04x} at byte {at}")]
    Opcode {
        /// Byte offset of the command.
        at: usize,
        /// What was found.
        opcode: u8,
    },
    /// The length field contradicts the opcode.
    #[error("opcode {opcode:#04x} at byte {at} has {want} units, not {found}")]
    Units {
        /// Byte offset of the command.
        at: usize,
        /// The command.
        opcode: u8,
        /// What was found.
        found: u8,
        /// What it must be.
        want: usize,
    },
    /// A flag that this command does not take.
    #[error("opcode {opcode:#04x} at byte {at} does not take flags {flags:#06x}")]
    Flags {
        /// Byte offset of the command.
        at: usize,
        /// The command.
        opcode: u8,
        /// The flags it does not take.
        flags: u16,
    },
    /// A reserved or unused field is not zero.
    #[error("reserved or unused field `{field}` of opcode {opcode:#04x} at byte {at} is not zero")]
    Reserved {
        /// Byte offset of the command.
        at: usize,
        /// The command.
        opcode: u8,
        /// The field.
        field: &'static str,
    },
    /// An enumerated field has an unknown value, or a bounded one is out of its range.
    #[error("field `{field}` of opcode {opcode:#04x} at byte {at} cannot be {found}")]
    Value {
        /// Byte offset of the command.
        at: usize,
        /// The command.
        opcode: u8,
        /// The field.
        field: &'static str,
        /// What was found.
        found: i64,
    },
}

/// Every command of `bytes`, in order.
pub fn commands(bytes: &[u8]) -> Result<Vec<Command>, DecodeError> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (command, len) = command(bytes, at)?;
        out.push(command);
        at += len;
    }
    Ok(out)
}

/// The command that starts at byte `at` of `bytes`, and its length in bytes.
pub fn command(bytes: &[u8], at: usize) -> Result<(Command, usize), DecodeError> {
    let rest = bytes.get(at..).unwrap_or_default();
    let truncated = |want| DecodeError::Truncated { at, left: rest.len(), want };
    let (header, _) = Header::read_from_prefix(rest).map_err(|_| truncated(UNIT_BYTES))?;
    let check = Check { at, header };
    let command = match header.opcode {
        opcode::CONV => Command::Conv(check.conv(check.read(rest)?)?),
        opcode::MATMUL => Command::MatMul(check.matmul(check.read(rest)?)?),
        opcode::PRODUCT => Command::Product(check.product(check.read(rest)?)?),
        opcode::SOFTMAX => Command::Softmax(check.softmax(check.read(rest)?)?),
        opcode::REDUCE => Command::Reduce(check.reduce(check.read(rest)?)?),
        opcode::NORM => Command::Norm(check.norm(check.read(rest)?)?),
        opcode::RESIZE => Command::Resize(check.resize(check.read(rest)?)?),
        opcode::ADD => Command::Add(check.add(check.read(rest)?)?),
        opcode::MUL => Command::Mul(check.mul(check.read(rest)?)?),
        opcode::POOL => Command::Pool(check.pool(check.read(rest)?)?),
        opcode::TABLE => Command::Table(check.table(check.read(rest)?)?),
        opcode::PAIR_TABLE => Command::PairTable(check.pair_table(check.read(rest)?)?),
        opcode::CHANNEL_TABLE => Command::ChannelTable(check.channel_table(check.read(rest)?)?),
        opcode::LAYOUT => Command::Layout(check.layout(check.read(rest)?)?),
        opcode::COPY => Command::Copy(check.copy(check.read(rest)?)?),
        opcode::FILL => Command::Fill(check.fill(check.read(rest)?)?),
        opcode::END => Command::End(check.end(check.read(rest)?)?),
        opcode => return Err(DecodeError::Opcode { at, opcode }),
    };
    Ok((command, usize::from(header.units) * UNIT_BYTES))
}

/// The checks of one command: where it lies, and its head.
struct Check {
    at: usize,
    header: Header,
}

impl Check {
    fn read<T: FromBytes + KnownLayout + Immutable>(&self, rest: &[u8]) -> Result<T, DecodeError> {
        let (at, opcode, found) = (self.at, self.header.opcode, self.header.units);
        let want = size_of::<T>() / UNIT_BYTES;
        if usize::from(found) != want {
            return Err(DecodeError::Units { at, opcode, found, want });
        }
        let (left, want) = (rest.len(), size_of::<T>());
        T::read_from_prefix(rest).map(|(command, _)| command).map_err(|_| DecodeError::Truncated {
            at,
            left,
            want,
        })
    }

    fn zero(&self, field: &'static str, is_zero: bool) -> Result<(), DecodeError> {
        let (at, opcode) = (self.at, self.header.opcode);
        if is_zero { Ok(()) } else { Err(DecodeError::Reserved { at, opcode, field }) }
    }

    fn value(&self, field: &'static str, found: i64, valid: bool) -> Result<(), DecodeError> {
        let (at, opcode) = (self.at, self.header.opcode);
        if valid { Ok(()) } else { Err(DecodeError::Value { at, opcode, field, found }) }
    }

    fn zero_point(&self, field: &'static str, found: i32) -> Result<(), DecodeError> {
        self.value(field, found.into(), (0..=255).contains(&found))
    }

    fn clamp(&self, low: u8, high: u8) -> Result<(), DecodeError> {
        self.value("clamp_low", low.into(), low <= high)
    }

    fn flags(&self, taken: Flags) -> Result<Flags, DecodeError> {
        self.zero("header.reserved", self.header.reserved == 0)?;
        let flags = self.header.flags();
        let refused = flags.difference(taken);
        if refused.is_empty() {
            return Ok(flags);
        }
        let (at, opcode) = (self.at, self.header.opcode);
        Err(DecodeError::Flags { at, opcode, flags: refused.bits() })
    }

    fn operand(
        &self,
        field: &'static str,
        operand: crate::addr::Operand,
        used: bool,
    ) -> Result<(), DecodeError> {
        self.zero(field, operand.reserved == [0; 3] && (used || operand.is_unused()))
    }

    fn stage(&self, stage: &crate::command::Stage, flags: Flags) -> Result<(), DecodeError> {
        let (order, block) = (stage.float_order, stage.float_block_log2);
        if flags.contains(Flags::FLOAT) {
            let known = Order::decode(order, block).is_some();
            self.value("stage.float_order", i64::from(order) | i64::from(block) << 8, known)?;
            self.zero("DYNAMIC beside FLOAT", !flags.contains(Flags::DYNAMIC))?;
        } else {
            self.zero("stage.float_order", order == 0 && block == 0)?;
            let scales = [stage.input_scale, stage.output_scale];
            self.zero("stage scales without FLOAT", scales.iter().all(|s| s.to_bits() == 0))?;
        }
        self.zero_point("stage.input_zero_point", stage.input_zero_point)?;
        self.zero_point("stage.zero_point", stage.zero_point)?;
        self.clamp(stage.clamp_low, stage.clamp_high)?;
        let add = [stage.add_first, stage.add_second, stage.add_offset];
        let adds = flags.contains(Flags::ADD_AUX);
        self.zero("stage.add", adds || add.iter().all(|term| term.to_bits() == 0))?;
        self.zero("AUX_FIRST without ADD_AUX", adds || !flags.contains(Flags::AUX_FIRST))
    }

    fn conv(&self, c: Conv) -> Result<Conv, DecodeError> {
        let flags = self.flags(Flags::all())?;
        let adds = flags.contains(Flags::ADD_AUX);
        for (field, operand) in
            [("ifm", c.ifm), ("weights", c.weights), ("channels", c.channels), ("ofm", c.ofm)]
        {
            self.operand(field, operand, true)?;
        }
        self.operand("aux", c.aux, adds)?;
        self.operand("tables", c.tables, flags.intersects(Flags::TABLE_0 | Flags::TABLE_1))?;
        self.operand("quant", c.quant, flags.contains(Flags::DYNAMIC))?;
        self.zero("aux_strides", adds || c.aux_strides == Default::default())?;
        self.stage(&c.stage, flags)?;
        Ok(c)
    }

    fn matmul(&self, c: MatMul) -> Result<MatMul, DecodeError> {
        let flags = self.flags(Flags::all())?;
        let adds = flags.contains(Flags::ADD_AUX);
        for (field, operand) in
            [("a", c.a), ("weights", c.weights), ("channels", c.channels), ("out", c.out)]
        {
            self.operand(field, operand, true)?;
        }
        self.operand("aux", c.aux, adds)?;
        self.operand("tables", c.tables, flags.intersects(Flags::TABLE_0 | Flags::TABLE_1))?;
        self.operand("quant", c.quant, flags.contains(Flags::DYNAMIC))?;
        self.zero("aux_row", adds || c.aux_row == 0)?;
        self.zero("reserved", c.reserved == 0 && c.reserved2 == 0)?;
        self.stage(&c.stage, flags)?;
        Ok(c)
    }

    fn product(&self, c: Product) -> Result<Product, DecodeError> {
        let flags = self.flags(Flags::TABLE_0)?;
        for (field, operand) in [("a", c.a), ("b", c.b), ("out", c.out)] {
            self.operand(field, operand, true)?;
        }
        self.operand("tables", c.tables, flags.contains(Flags::TABLE_0))?;
        self.zero("reserved", c.reserved == [0; 3] && c.reserved2 == [0; 2])?;
        self.clamp(c.clamp_low, c.clamp_high)?;
        Ok(c)
    }

    fn softmax(&self, c: Softmax) -> Result<Softmax, DecodeError> {
        self.flags(Flags::empty())?;
        for (field, operand) in [("src", c.src), ("dst", c.dst), ("table", c.table)] {
            self.operand(field, operand, true)?;
        }
        self.zero("reserved", c.reserved == [0; 3] && c.reserved2 == 0)?;
        Ok(c)
    }

    fn reduce(&self, c: Reduce) -> Result<Reduce, DecodeError> {
        self.flags(Flags::empty())?;
        self.operand("src", c.src, true)?;
        self.operand("dst", c.dst, true)?;
        self.zero("reserved", c.reserved == 0 && c.reserved2 == [0; 2])?;
        self.value("mean", c.mean.into(), c.mean <= 1)?;
        self.value("order", c.order.into(), rows::Order::decode(c.order).is_some())?;
        self.value("dims.c", c.dims.c.into(), c.dims.c <= MOST_ELEMENTS)?;
        Ok(c)
    }

    fn norm(&self, c: Norm) -> Result<Norm, DecodeError> {
        self.flags(Flags::empty())?;
        for (field, operand) in [("src", c.src), ("dst", c.dst), ("terms", c.terms)] {
            self.operand(field, operand, true)?;
        }
        self.zero("reserved", c.reserved == [0; 6] && c.reserved2 == [0; 6])?;
        self.value("dims.c", c.dims.c.into(), c.dims.c <= MOST_ELEMENTS)?;
        let no_variance = c.variance_scale.to_bits() == 0 && c.variance_zero_point == 0;
        let no_order = c.order == 0 && c.square_order == 0;
        match c.kind {
            norm_kind::LAYER => {
                self.zero("variance and order of LAYER", no_variance && no_order)?;
                self.zero("period of LAYER", c.period == 0)?;
                self.value("dims.c", c.dims.c.into(), c.dims.c >= 8)?;
            }
            norm_kind::INSTANCE => {
                self.zero("variance and order of INSTANCE", no_variance && no_order)?;
                self.value("period", c.period.into(), c.period > 0)?;
            }
            norm_kind::STAGED => {
                self.zero(
                    "epsilon and period of STAGED",
                    c.epsilon.to_bits() == 0 && c.period == 0,
                )?;
                for (field, order) in [("order", c.order), ("square_order", c.square_order)] {
                    self.value(field, order.into(), rows::Order::decode(order).is_some())?;
                }
            }
            kind => self.value("kind", kind.into(), false)?,
        }
        Ok(c)
    }

    fn resize(&self, c: Resize) -> Result<Resize, DecodeError> {
        self.flags(Flags::empty())?;
        for (field, operand) in [("ifm", c.ifm), ("ofm", c.ofm), ("taps", c.taps)] {
            self.operand(field, operand, true)?;
        }
        self.value("ofm_h", c.ofm_h.into(), c.ofm_h <= MOST_TAPS)?;
        self.value("ofm_w", c.ofm_w.into(), c.ofm_w <= MOST_TAPS)?;
        self.zero("reserved", c.reserved == [0; 6] && c.reserved2 == [0; 7])?;
        Ok(c)
    }

    fn add(&self, c: Add) -> Result<Add, DecodeError> {
        let flags = self.flags(Flags::TABLE_0 | Flags::DYNAMIC)?;
        for (field, operand) in [("a", c.a), ("b", c.b), ("out", c.out)] {
            self.operand(field, operand, true)?;
        }
        self.operand("tables", c.tables, flags.contains(Flags::TABLE_0))?;
        self.operand("quant", c.quant, flags.contains(Flags::DYNAMIC))?;
        self.zero("reserved", c.reserved == 0 && c.reserved2 == [0; 2])?;
        self.clamp(c.clamp_low, c.clamp_high)?;
        Ok(c)
    }

    fn mul(&self, c: Mul) -> Result<Mul, DecodeError> {
        let flags = self.flags(Flags::TABLE_0 | Flags::DYNAMIC)?;
        for (field, operand) in [("a", c.a), ("b", c.b), ("out", c.out)] {
            self.operand(field, operand, true)?;
        }
        self.operand("tables", c.tables, flags.contains(Flags::TABLE_0))?;
        self.operand("quant", c.quant, flags.contains(Flags::DYNAMIC))?;
        self.zero("reserved", c.reserved == [0; 7] && c.reserved2 == [0; 2])?;
        self.clamp(c.clamp_low, c.clamp_high)?;
        Ok(c)
    }

    fn pool(&self, c: Pool) -> Result<Pool, DecodeError> {
        let flags = self.flags(Flags::TABLE_0 | Flags::DYNAMIC)?;
        self.operand("ifm", c.ifm, true)?;
        self.operand("ofm", c.ofm, true)?;
        self.operand("tables", c.tables, flags.contains(Flags::TABLE_0))?;
        self.operand("quant", c.quant, flags.contains(Flags::DYNAMIC))?;
        let reserved = c.reserved == 0 && c.reserved2 == 0 && c.reserved3 == 0 && c.reserved4 == 0;
        self.zero("reserved", reserved)?;
        self.value("count_padding", c.count_padding.into(), c.count_padding <= 1)?;
        self.zero_point("input_zero_point", c.input_zero_point)?;
        self.zero_point("zero_point", c.zero_point)?;
        self.clamp(c.clamp_low, c.clamp_high)?;
        let scales = c.input_scale.to_bits() == 0 && c.output_scale.to_bits() == 0;
        let no_multiplier = c.multiplier.to_bits() == 0;
        let no_zero_points = c.input_zero_point == 0 && c.zero_point == 0;
        let no_pads = c.pad_bottom == 0 && c.pad_right == 0;
        match c.kind {
            pool_kind::MAX => {
                self.zero("scales of MAX", scales && no_multiplier && no_zero_points)?;
                self.zero("count_padding of MAX", c.count_padding == 0 && no_pads)?;
            }
            pool_kind::AVERAGE => {
                self.zero("multiplier of AVERAGE", no_multiplier)?;
                self.zero("pads without count_padding", c.count_padding == 1 || no_pads)?;
            }
            pool_kind::GLOBAL_AVERAGE => {
                self.zero("scales of GLOBAL_AVERAGE", scales)?;
                self.zero("window of GLOBAL_AVERAGE", c.window == Default::default())?;
                self.zero("count_padding of GLOBAL_AVERAGE", c.count_padding == 0 && no_pads)?;
            }
            pool_kind::GLOBAL_MEAN => {
                self.zero("multiplier of GLOBAL_MEAN", no_multiplier)?;
                self.zero("window of GLOBAL_MEAN", c.window == Default::default())?;
                self.zero("count_padding of GLOBAL_MEAN", c.count_padding == 0 && no_pads)?;
            }
            kind => self.value("kind", kind.into(), false)?,
        }
        Ok(c)
    }

    fn table(&self, c: Table) -> Result<Table, DecodeError> {
        self.flags(Flags::empty())?;
        for (field, operand) in [("src", c.src), ("dst", c.dst), ("table", c.table)] {
            self.operand(field, operand, true)?;
        }
        self.zero("reserved", c.reserved == [0; 2])?;
        Ok(c)
    }

    fn pair_table(&self, c: PairTable) -> Result<PairTable, DecodeError> {
        self.flags(Flags::empty())?;
        for (field, operand) in [("a", c.a), ("b", c.b), ("out", c.out), ("table", c.table)] {
            self.operand(field, operand, true)?;
        }
        self.zero("reserved", c.reserved == [0; 6])?;
        Ok(c)
    }

    fn channel_table(&self, c: ChannelTable) -> Result<ChannelTable, DecodeError> {
        self.flags(Flags::empty())?;
        for (field, operand) in [("src", c.src), ("dst", c.dst), ("tables", c.tables)] {
            self.operand(field, operand, true)?;
        }
        self.zero("reserved", c.reserved == [0; 2])?;
        Ok(c)
    }

    fn layout(&self, c: Layout) -> Result<Layout, DecodeError> {
        let flags = self.flags(Flags::DYNAMIC | Flags::TABLE_0)?;
        self.operand("src", c.src, true)?;
        self.operand("dst", c.dst, true)?;
        self.operand("quant", c.quant, flags.contains(Flags::DYNAMIC))?;
        self.operand("tables", c.tables, flags.contains(Flags::TABLE_0))?;
        self.zero("reserved", c.reserved == 0)?;
        let no_outer = c.outer == 0 && (c.src_outer != 0 || c.dst_outer != 0);
        self.zero("outer strides without outer", !no_outer)?;
        let known = |code| element::bytes(code).is_some();
        self.value("src_element", c.src_element.into(), known(c.src_element))?;
        self.value("dst_element", c.dst_element.into(), known(c.dst_element))?;
        self.zero_point("zero_point", c.zero_point)?;
        let moves = c.src_element == c.dst_element;
        self.zero(
            "scale of a plain move",
            !moves || (c.scale.to_bits() == 0 && c.zero_point == 0),
        )?;
        let bytes = moves && c.src_element == element::U8;
        self.zero("TABLE_0 but of u8 to u8", bytes || !flags.contains(Flags::TABLE_0))?;
        Ok(c)
    }

    fn copy(&self, c: Copy) -> Result<Copy, DecodeError> {
        self.flags(Flags::empty())?;
        self.operand("src", c.src, true)?;
        self.operand("dst", c.dst, true)?;
        self.zero("reserved", c.reserved == 0)?;
        Ok(c)
    }

    fn fill(&self, c: Fill) -> Result<Fill, DecodeError> {
        self.flags(Flags::empty())?;
        self.operand("dst", c.dst, true)?;
        self.zero("reserved", c.reserved == [0; 7] && c.reserved2 == [0; 2])?;
        Ok(c)
    }

    fn end(&self, c: End) -> Result<End, DecodeError> {
        self.flags(Flags::empty())?;
        self.zero("reserved", c.reserved == [0; 6])?;
        Ok(c)
    }
}
