//! Any of the commands, and what can be asked of each.

use super::{
    Add, ChannelTable, Conv, Copy, End, Fill, Flags, Header, Layout, MatMul, Mul, Norm, PairTable,
    Pool, Product, Reduce, Resize, Softmax, Strides, Table,
};

/// Any command, decoded: opcode, units, reserved bits, flags and enumerated fields are right; extents
/// and work are for [`crate::verify`] to judge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Command {
    /// See [`Conv`].
    Conv(Conv),
    /// See [`MatMul`].
    MatMul(MatMul),
    /// See [`Product`].
    Product(Product),
    /// See [`Softmax`].
    Softmax(Softmax),
    /// See [`Reduce`].
    Reduce(Reduce),
    /// See [`Norm`].
    Norm(Norm),
    /// See [`Resize`].
    Resize(Resize),
    /// See [`Add`].
    Add(Add),
    /// See [`Mul`].
    Mul(Mul),
    /// See [`Pool`].
    Pool(Pool),
    /// See [`Table`].
    Table(Table),
    /// See [`PairTable`].
    PairTable(PairTable),
    /// See [`ChannelTable`].
    ChannelTable(ChannelTable),
    /// See [`Layout`].
    Layout(Layout),
    /// See [`struct@Copy`].
    Copy(Copy),
    /// See [`Fill`].
    Fill(Fill),
    /// See [`End`].
    End(End),
}

impl Command {
    /// The command's head.
    pub fn header(&self) -> &Header {
        match self {
            Self::Conv(command) => &command.header,
            Self::MatMul(command) => &command.header,
            Self::Product(command) => &command.header,
            Self::Softmax(command) => &command.header,
            Self::Reduce(command) => &command.header,
            Self::Norm(command) => &command.header,
            Self::Resize(command) => &command.header,
            Self::Add(command) => &command.header,
            Self::Mul(command) => &command.header,
            Self::Pool(command) => &command.header,
            Self::Table(command) => &command.header,
            Self::PairTable(command) => &command.header,
            Self::ChannelTable(command) => &command.header,
            Self::Layout(command) => &command.header,
            Self::Copy(command) => &command.header,
            Self::Fill(command) => &command.header,
            Self::End(command) => &command.header,
        }
    }

    /// The name of the command, as the text form writes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Conv(_) => "conv",
            Self::MatMul(_) => "matmul",
            Self::Product(_) => "product",
            Self::Softmax(_) => "softmax",
            Self::Reduce(_) => "reduce",
            Self::Norm(_) => "norm",
            Self::Resize(_) => "resize",
            Self::Add(_) => "add",
            Self::Mul(_) => "mul",
            Self::Pool(_) => "pool",
            Self::Table(_) => "table",
            Self::PairTable(_) => "pair_table",
            Self::ChannelTable(_) => "channel_table",
            Self::Layout(_) => "layout",
            Self::Copy(_) => "copy",
            Self::Fill(_) => "fill",
            Self::End(_) => "end",
        }
    }
}

impl Command {
    /// The name of the commands of `opcode`; `None` where there is none.
    pub const fn name_of(opcode: u8) -> Option<&'static str> {
        use super::opcode;
        Some(match opcode {
            opcode::CONV => "conv",
            opcode::MATMUL => "matmul",
            opcode::PRODUCT => "product",
            opcode::SOFTMAX => "softmax",
            opcode::REDUCE => "reduce",
            opcode::NORM => "norm",
            opcode::RESIZE => "resize",
            opcode::ADD => "add",
            opcode::MUL => "mul",
            opcode::POOL => "pool",
            opcode::TABLE => "table",
            opcode::PAIR_TABLE => "pair_table",
            opcode::CHANNEL_TABLE => "channel_table",
            opcode::LAYOUT => "layout",
            opcode::COPY => "copy",
            opcode::FILL => "fill",
            opcode::END => "end",
            _ => return None,
        })
    }

    /// The version of the command set that brought what this command makes use of.
    pub fn since(&self) -> u32 {
        let repeats = |strides: [Strides; 2]| strides.iter().any(|strides| strides.pixel == 0);
        let minor = match self {
            Self::Conv(_) | Self::MatMul(_) if self.header().flags().contains(Flags::FLOAT) => 2,
            Self::Reduce(_) | Self::Norm(_) => 3,
            Self::Product(_) | Self::Softmax(_) => 2,
            Self::PairTable(_) | Self::ChannelTable(_) => 2,
            Self::Resize(_) => 3,
            Self::Mul(_) => 1,
            Self::Add(add) => u32::from(repeats([add.a_strides, add.b_strides])),
            Self::Layout(layout) => {
                let table = layout.header.flags().contains(Flags::TABLE_0);
                u32::from(layout.outer != 0 || table)
            }
            _ => 0,
        };
        1 << 16 | minor
    }
}
