//! Operations on device tensors: what the command set can say, before memory has places.

use super::matrix::Matrices;
use crate::graph::NodeId;
use crate::quantize::{Arithmetic2, Function2, Parts, Table, Table2, Weights};
use npu_uapi::command::{Dims, Strides, Strides4, Tap, Window};
use npu_uapi::float_order::Order;
use npu_uapi::requantise::{AddTerms, MulTerms, ShareTerms};
use npu_uapi::rows::{self, Affine, Reduction};
use std::sync::Arc;

/// Index of a tensor in [`Ops::tensors`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TensorId(pub usize);

/// A group's operations, in an order that works, and the tensors they read and write.
#[derive(Clone, Debug, Default)]
pub struct Ops {
    /// The operations.
    pub ops: Vec<Op>,
    /// The tensors. Each is written by at most one operation.
    pub tensors: Vec<Tensor>,
}

/// A tensor of the device.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name of the value it holds.
    pub name: String,
    /// Who brings its memory.
    pub home: Home,
    /// How its elements lie.
    pub form: Form,
}

/// Who brings a tensor's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Home {
    /// The job's scratch memory.
    Scratch,
    /// Input of this index.
    Input(usize),
    /// Output of this index.
    Output(usize),
}

/// How elements lie in memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// A feature map of bytes, channel-last, with this many bytes a pixel.
    Map {
        /// Dimensions.
        dims: Dims,
        /// Bytes from a pixel to the next.
        pixel: u32,
    },
    /// As the host has it: channel-first, dense, this many bytes an element.
    Host {
        /// Dimensions.
        dims: Dims,
        /// 1 for codes, 4 for floats.
        element_bytes: u32,
    },
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Op {
    /// The node that it is named for.
    pub node: NodeId,
    /// What it reads.
    pub reads: Vec<TensorId>,
    /// What it writes.
    pub writes: TensorId,
    /// What it does.
    pub kind: OpKind,
}

/// What an operation does.
#[derive(Clone, Debug)]
pub enum OpKind {
    /// Convolution or matrix product of the first tensor read, with its output stage.
    Conv(Box<Conv>),
    /// A function of the two tensors read, or of one and a constant, element by element.
    Pair {
        /// Which, with its immediates.
        function: Function,
        /// How each of them is walked: zero where it is repeated.
        strides: [Strides; 2],
        /// The operand that is constant, and of which nothing is read.
        constant: Option<Fixed>,
        /// What follows.
        table: Option<Table>,
    },
    /// Bytes of the tensors read to their places in the one written, which they fill.
    Move {
        /// What the tensor holds before.
        fill: Option<u8>,
        /// The moves.
        parts: Vec<Move>,
    },
    /// Maximum or mean.
    Pool {
        /// Which.
        kind: Pool,
        /// What follows.
        table: Option<Table>,
    },
    /// Products of the two tensors read.
    Product {
        /// How.
        matrices: Box<Matrices>,
        /// What follows.
        table: Option<Table>,
    },
    /// Rows and columns between those of the tensor read.
    Resize {
        /// For each row, then for each column, where it lies.
        taps: Vec<Tap>,
        /// Scale and zero point of the input.
        input: (f32, u8),
        /// Scale and zero point of the output.
        output: (f32, u8),
    },
    /// The channels of each pixel as shares of their sum.
    Softmax {
        /// What each code counts.
        parts: Parts,
        /// How shares become codes.
        terms: ShareTerms,
    },
    /// The sum or mean of the channels of each pixel.
    Reduce {
        /// How, and between which codes.
        reduction: Reduction,
        /// Dimensions of the tensor read, as its pixels are walked.
        dims: Dims,
        /// Where their results go.
        strides: Strides,
    },
    /// The channels of each pixel, less their mean, over their deviation.
    Norm {
        /// How.
        kind: Normalise,
        /// Codes of the input.
        input: rows::Codes,
        /// Codes of the result.
        output: rows::Codes,
    },
    /// Every code through a table.
    Table(Table),
    /// Every code through the table of its channel: 256 entries each.
    Channels(Arc<[u8]>),
    /// From one form to another, with conversion where one side is float.
    Layout {
        /// Scale and zero point of the 8-bit side; zero when both are.
        scale: f32,
        /// As above.
        zero_point: u8,
    },
}

/// How a row is normalised.
#[derive(Clone, Debug)]
pub enum Normalise {
    /// By terms of each channel.
    Layer {
        /// What is added to the variance.
        epsilon: f32,
        /// The terms.
        terms: Arc<[Affine]>,
    },
    /// By terms of each pixel, in turn.
    Instance {
        /// What is added to the variance.
        epsilon: f32,
        /// The terms.
        terms: Arc<[Affine]>,
    },
    /// Through a code of the variance.
    Staged {
        /// Orders of both sums.
        orders: [rows::Order; 2],
        /// Codes of the variance.
        variance: rows::Codes,
        /// What each of them divides by.
        divisors: Arc<[f32]>,
    },
}

/// A constant operand.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// Its bytes as they are walked.
    pub bytes: Arc<[u8]>,
    /// Whether it is the first operand.
    pub is_first: bool,
}

/// A function of two codes.
#[derive(Clone, Debug)]
pub enum Function {
    /// Sum.
    Add(AddTerms),
    /// Product.
    Multiply(MulTerms),
    /// Any, looked up. What follows is in it.
    Table(Table2),
}

impl From<&Function2> for Function {
    fn from(function: &Function2) -> Self {
        match function {
            Function2::Arithmetic(Arithmetic2::Add(terms)) => Self::Add(*terms),
            Function2::Arithmetic(Arithmetic2::Multiply(terms)) => Self::Multiply(*terms),
            Function2::Table(table) => Self::Table(table.clone()),
        }
    }
}

/// Some bytes from here to there.
#[derive(Clone, Debug)]
pub struct Move {
    /// Index in [`Op::reads`].
    pub read: usize,
    /// At most five loops.
    pub loops: Vec<Loop>,
    /// The first byte in the tensor read.
    pub src: i64,
    /// The first byte in the tensor written.
    pub dst: i64,
    /// What each byte goes through.
    pub table: Option<Table>,
}

/// A loop of a move.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Loop {
    /// How often.
    pub count: usize,
    /// From one byte to the next in the tensor read.
    pub src: i64,
    /// From one byte to the next in the tensor written.
    pub dst: i64,
}

/// A convolution.
#[derive(Clone, Debug)]
pub struct Conv {
    /// The weights.
    pub weights: Weights,
    /// Start of each output channel's sum, without the zero-point term.
    pub bias: Vec<i32>,
    /// Multiplier of each output channel.
    pub multipliers: Vec<f32>,
    /// Groups of channels.
    pub groups: usize,
    /// Present where the output channels are pixels of a block: so many rows of them, in their order.
    pub strips: Option<u32>,
    /// The window.
    pub window: Window,
    /// Zero point of the input.
    pub input_zero_point: u8,
    /// Zero point of the requantised code.
    pub zero_point: u8,
    /// Lowest and highest code of the sums.
    pub range: [u8; 2],
    /// Present when sums are of floats; then there are neither bias nor multipliers beside.
    pub floats: Option<FloatStage>,
    /// What follows requantisation.
    pub table_0: Option<Table>,
    /// The tensor added behind it, the second one read.
    pub addition: Option<Addition>,
    /// What follows the addition.
    pub table_1: Option<Table>,
}

/// Sums of dequantised operands.
#[derive(Clone, Debug)]
pub struct FloatStage {
    /// Their order.
    pub order: Order,
    /// Scale of the input.
    pub input_scale: f32,
    /// Scale of the output.
    pub output_scale: f32,
    /// Scale of each output channel's weights.
    pub weight_scales: Vec<f32>,
    /// Bias of each output channel.
    pub bias: Vec<f32>,
}

/// An addition in the output stage.
#[derive(Clone, Copy, Debug)]
pub struct Addition {
    /// Immediates.
    pub terms: AddTerms,
    /// Whether the auxiliary tensor is the first operand.
    pub aux_first: bool,
}

/// Kinds of pooling.
#[derive(Clone, Copy, Debug)]
pub enum Pool {
    /// Maximum.
    Max(Window),
    /// Mean over windows, in float.
    Average {
        /// The window.
        window: Window,
        /// Padding below and right, when padding counts.
        counted: Option<[u16; 2]>,
        /// Scale and zero point of the input.
        input: (f32, u8),
        /// Scale and zero point of the output.
        output: (f32, u8),
    },
    /// Mean over whole images, in float.
    GlobalMean {
        /// Scale and zero point of the input.
        input: (f32, u8),
        /// Scale and zero point of the output.
        output: (f32, u8),
    },
    /// Mean over whole images, in integers.
    Global {
        /// See [`npu_uapi::requantise::global_average_multiplier`].
        multiplier: f32,
        /// Zero point of the input.
        input_zero_point: u8,
        /// Zero point of the output.
        zero_point: u8,
    },
}

impl Ops {
    /// The tensor `id`.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0]
    }
}

impl Form {
    /// A feature map whose pixels are multiples of 16 bytes.
    pub fn map(dims: Dims) -> Self {
        Self::Map { dims, pixel: dims.c.next_multiple_of(16) }
    }

    /// Dimensions.
    pub fn dims(&self) -> Dims {
        match *self {
            Self::Map { dims, .. } | Self::Host { dims, .. } => dims,
        }
    }

    /// The same for one image instead of all of them.
    #[must_use]
    pub fn of_one_image(mut self) -> Self {
        match &mut self {
            Self::Map { dims, .. } | Self::Host { dims, .. } => dims.n = 1,
        }
        self
    }

    /// Bytes of an element.
    pub fn element_bytes(&self) -> u32 {
        match *self {
            Self::Map { .. } => 1,
            Self::Host { element_bytes, .. } => element_bytes,
        }
    }

    /// Bytes of the whole tensor.
    pub fn len_bytes(&self) -> u64 {
        let Dims { n, h, w, c } = self.dims();
        let lanes = match *self {
            Self::Map { pixel, .. } => pixel,
            Self::Host { element_bytes, .. } => c * element_bytes,
        };
        u64::from(n) * u64::from(h) * u64::from(w) * u64::from(lanes)
    }

    /// Strides of a feature map.
    ///
    /// # Panics
    ///
    /// On the host's form, which no operation but LAYOUT reads.
    pub fn strides(&self) -> Strides {
        let Self::Map { dims, pixel } = *self else {
            panic!("only LAYOUT touches tensors of the host's form");
        };
        let pixel = i32::try_from(pixel).expect("`shape` bounds rows to 31 bits");
        let columns = i32::try_from(dims.w).expect("`shape` bounds rows to 31 bits");
        let row = pixel.checked_mul(columns).expect("`shape` bounds rows to 31 bits");
        Strides { image: i64::from(row) * i64::from(dims.h), row, pixel }
    }

    /// Strides of either form.
    pub fn strides4(&self) -> Strides4 {
        match *self {
            Self::Map { .. } => {
                let Strides { image, row, pixel } = self.strides();
                Strides4 { image, row: row.into(), pixel: pixel.into(), channel: 1 }
            }
            Self::Host { dims, element_bytes } => {
                let pixel = i64::from(element_bytes);
                let row = pixel * i64::from(dims.w);
                let channel = row * i64::from(dims.h);
                Strides4 { image: channel * i64::from(dims.c), row, pixel, channel }
            }
        }
    }
}
