//! A unit: one operator with the DequantizeLinear nodes before it and the QuantizeLinear after it.
//!
//! It is what ONNX Runtime's CPU provider turns into one 8-bit operator, so it is taken whole or not
//! at all, and computed with that operator's arithmetic.

use super::arithmetic::Arithmetic;
use super::carry::Carry;
use super::codes::{Codes, Table};
use super::linear::Linear;
use super::norms::Norm;
use super::pad::Pads;
use super::pair_table::Function2;
use super::pairs::Operand;
use super::pairwise::Pairwise;
use super::rearrange::Rearrange;
use super::split::{Share, Split};
use super::sums::Sum;
use super::transposed::TransposedSpec;
use super::window::WindowSpec;
use crate::graph::{NodeId, ValueId};
use bytes::Bytes;

/// One operator between 8-bit tensors, or a conversion at the edge of the model.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The operator; it gives the unit its name.
    pub target: NodeId,
    /// All nodes, in topological order.
    pub nodes: Vec<NodeId>,
    /// The tensors it reads, without constants: 8-bit, but for
    /// [`Kind::Quantize`] and [`Kind::Carry`].
    pub inputs: Vec<ValueId>,
    /// The tensor it writes: 8-bit, but for [`Kind::Dequantize`] and [`Kind::Carry`].
    pub output: ValueId,
    /// More of them, for an operator with several results.
    pub others: Vec<ValueId>,
    /// What it computes.
    pub kind: Kind,
}

/// What a unit computes. Formulas: [`npu_uapi::requantise`].
#[derive(Clone, Debug)]
pub enum Kind {
    /// Floats of a graph input elsewhere, on their way to a [`Kind::Quantize`].
    Carry(Carry),
    /// Floats that come from a graph input to codes.
    Quantize(Codes),
    /// Codes to a float graph output.
    Dequantize(Codes),
    /// Convolution.
    Conv {
        /// Weights, bias and scales.
        products: Products,
        /// Groups of channels.
        groups: usize,
        /// The window.
        window: WindowSpec,
    },
    /// Convolution from the output's side: each input pixel spread over several of the output.
    ConvTranspose {
        /// Weights, of all input channels and the output channels of one group, and scales. Always in
        /// floats.
        products: Products,
        /// Groups of channels, the kernel and its steps.
        spec: TransposedSpec,
    },
    /// Product with a constant matrix: Gemm or MatMul. Weights have one tap.
    Product(Products),
    /// Product of two tensors: matrices of their last two dimensions, the others repeated.
    MatMul {
        /// Codes of the first.
        first: Codes,
        /// Codes of the second.
        second: Codes,
        /// Codes of the result.
        result: Codes,
    },
    /// Shares of a dimension's sum, of powers of e.
    Softmax {
        /// The dimension.
        axis: i64,
        /// Codes of the input.
        input: Codes,
        /// Codes of the output.
        output: Codes,
    },
    /// Sum of two tensors, the smaller one repeated; one of them may be constant.
    Add {
        /// Codes of the first operand.
        first: Codes,
        /// Codes of the second operand.
        second: Codes,
        /// Codes of the result.
        result: Codes,
        /// The constant operand.
        constant: Option<Operand>,
    },
    /// Product of two tensors, the smaller one repeated; one of them may be constant.
    Mul {
        /// Codes of the first operand.
        first: Codes,
        /// Codes of the second operand.
        second: Codes,
        /// Codes of the result.
        result: Codes,
        /// The constant operand.
        constant: Option<Operand>,
    },
    /// Any function of two tensors' codes, the smaller one repeated; one of them may be constant.
    Pair {
        /// The function.
        function: Function2,
        /// The constant operand.
        constant: Option<Operand>,
        /// What it is when that is a sum of codes, whose order may matter.
        sum: Option<Pairwise>,
    },
    /// Maximum or minimum over whole dimensions, then a table.
    Extreme {
        /// The dimensions; all of them when `None`.
        axes: Option<Vec<i64>>,
        /// Whether they stay, with length 1.
        keep: bool,
        /// The minimum.
        least: bool,
        /// From the input's codes to the output's, where they differ.
        table: Option<Table>,
    },
    /// Sum or mean over whole dimensions, in float.
    Sum(Sum),
    /// Rows less their mean, over their deviation, in float.
    Norm(Norm),
    /// The elements of one tensor elsewhere, through a table where the codes differ.
    Rearrange {
        /// How.
        how: Rearrange,
        /// From the input's codes to the output's, where they differ.
        table: Option<Table>,
    },
    /// Rows and columns between those of the input.
    Linear(Linear),
    /// One tensor behind the other along a dimension.
    Concat {
        /// The dimension.
        axis: i64,
        /// For each input, from its codes to the output's, where they differ.
        tables: Vec<Option<Table>>,
    },
    /// A tensor in several parts, each through a table where its codes differ: a part for each tensor
    /// that the unit writes.
    Split {
        /// How it is parted.
        how: Split,
        /// The parts.
        shares: Vec<Share>,
    },
    /// A tensor with a border of one code.
    Pad {
        /// How wide.
        pads: Pads,
        /// The code, one of the output's.
        code: u8,
        /// From the input's codes to the output's, where they differ.
        table: Option<Table>,
    },
    /// Maximum over windows, then a table.
    MaxPool {
        /// What each code becomes before.
        before: Option<Table>,
        /// The window.
        window: WindowSpec,
        /// From the input's codes to the output's, where they differ.
        table: Option<Table>,
    },
    /// Mean over windows.
    AveragePool {
        /// The window.
        window: WindowSpec,
        /// Whether padding counts.
        count_padding: bool,
        /// Codes of the input.
        input: Codes,
        /// Codes of the output.
        output: Codes,
    },
    /// Mean over whole images in float, as the CPU provider has it where types are mixed.
    GlobalMean {
        /// Codes of the input.
        input: Codes,
        /// Codes of the output.
        output: Codes,
    },
    /// Mean over whole images.
    GlobalAveragePool {
        /// Codes of the input.
        input: Codes,
        /// Codes of the output.
        output: Codes,
    },
    /// The same elements in another shape, through a table where the codes differ.
    Reshape {
        /// The shape.
        shape: ShapeChange,
        /// From the input's codes to the output's, where they differ.
        table: Option<Table>,
    },
    /// A function of each element.
    Elementwise(Table),
}

/// A new shape for the same elements.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ShapeChange {
    /// Flatten: two dimensions, parted at the axis.
    Flatten(i64),
    /// Reshape to the given numbers; 0 copies a dimension where `zero_copies`, -1 is what remains.
    To {
        /// The numbers.
        shape: Vec<i64>,
        /// Whether 0 stands for the input's dimension.
        zero_copies: bool,
    },
    /// Squeeze: drops these dimensions of length 1; all of them when `None`.
    Squeeze(Option<Vec<i64>>),
    /// Unsqueeze: inserts dimensions of length 1 so that they have these positions.
    Unsqueeze(Vec<i64>),
}

/// Sums of products with constant weights, and how they become codes.
#[derive(Clone, Debug)]
pub struct Products {
    /// Codes of the input.
    pub input: Codes,
    /// Codes of the output.
    pub output: Codes,
    /// The weights.
    pub weights: Weights,
    /// Start of each output channel's sum.
    pub bias: Vec<i32>,
    /// What each output channel's sum is multiplied by.
    pub multipliers: Vec<f32>,
    /// How the sums are computed. In floats, `bias` and `multipliers` are not used.
    pub arithmetic: Arithmetic,
}

/// Signed 8-bit weights, wherever the model keeps them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The bytes.
    pub bytes: Bytes,
    /// Output channels.
    pub outputs: usize,
    /// Input channels of one group.
    pub inputs: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// From an output channel, input channel, kernel row and kernel column to the next, in bytes.
    pub strides: [usize; 4],
    /// What is taken from each weight: one number for all, one for each output channel, or nothing.
    pub zero_points: Vec<i8>,
}

impl Unit {
    /// All tensors that it writes.
    pub fn outputs(&self) -> impl Iterator<Item = ValueId> + '_ {
        std::iter::once(self.output).chain(self.others.iter().copied())
    }

    /// Whether `value` is one of them.
    pub fn writes(&self, value: ValueId) -> bool {
        self.outputs().any(|output| output == value)
    }
}

impl Weights {
    /// The weight of an output channel, input channel of its group, kernel row and kernel column.
    pub fn at(&self, output: usize, input: usize, row: usize, column: usize) -> i8 {
        let index = [output, input, row, column];
        let at: usize = index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
        i8::from_le_bytes([self.bytes[at]])
    }

    /// Products in the sum of one output.
    pub fn terms(&self) -> usize {
        self.inputs * self.kernel[0] * self.kernel[1]
    }

    /// What is taken from each weight of an output channel.
    pub fn zero_point(&self, output: usize) -> i8 {
        let each = self.zero_points.get(output).or_else(|| self.zero_points.first());
        each.copied().unwrap_or(0)
    }

    /// [`Weights::at`] less the zero point: what inputs are multiplied by.
    pub fn difference(&self, output: usize, input: usize, row: usize, column: usize) -> i16 {
        i16::from(self.at(output, input, row, column)) - i16::from(self.zero_point(output))
    }

    /// Every weight of an output channel, less the zero point.
    pub fn differences(&self, output: usize) -> impl Iterator<Item = i16> + '_ {
        let [rows, columns] = self.kernel;
        (0..self.inputs).flat_map(move |input| {
            (0..rows).flat_map(move |row| {
                (0..columns).map(move |column| self.difference(output, input, row, column))
            })
        })
    }

    /// The sum of an output channel's weights, less the zero point each.
    pub fn sum(&self, output: usize) -> i64 {
        let [positive, negative] = self.sums(output);
        positive + negative
    }

    /// The sums of what is positive and of what is negative of an output channel's weights, less the
    /// zero point each.
    pub fn sums(&self, output: usize) -> [i64; 2] {
        let add = |[positive, negative]: [i64; 2], [more, less]: [i32; 2]| {
            [positive + i64::from(more), negative + i64::from(less)]
        };
        let split = |weight: i32| [weight.max(0), weight.min(0)];
        let Some(row) = self.row(output) else {
            return self.differences(output).map(i32::from).map(split).fold([0; 2], add);
        };
        // In 32 bits as far as they hold: a model has millions of weights, and a compiler meets each.
        let zero_point = i32::from(self.zero_point(output));
        let of_chunk = |chunk: &[u8]| {
            let weight = |&byte: &u8| split(i32::from(byte.cast_signed()) - zero_point);
            let weights = chunk.iter().map(weight);
            weights.fold([0; 2], |[p, n], [more, less]| [p + more, n + less])
        };
        row.chunks(1 << 16).map(of_chunk).fold([0; 2], add)
    }

    /// The bytes of an output channel, where they lie side by side.
    fn row(&self, output: usize) -> Option<&[u8]> {
        let [rows, columns] = self.kernel;
        let [output_stride, strides @ ..] = self.strides;
        let dense = [rows * columns, columns, 1];
        let side_by_side =
            |((len, stride), dense): ((usize, usize), usize)| len == 1 || stride == dense;
        let lengths = [self.inputs, rows, columns];
        if !lengths.into_iter().zip(strides).zip(dense).all(side_by_side) {
            return None;
        }
        let start = output * output_stride;
        self.bytes.get(start..start + self.inputs * rows * columns)
    }

    /// What the weights of an output channel, as they are held, sum to where [`Weights::sum`] is `sum`.
    pub fn sum_as_held(&self, output: usize, sum: i64) -> i64 {
        let count = self.inputs * self.kernel[0] * self.kernel[1];
        let count = i64::try_from(count).expect("so many bytes are in memory");
        sum + count * i64::from(self.zero_point(output))
    }

    /// A matrix of one tap as the convolution of a whole `rows` by `columns` image, for an input
    /// that was flattened from channels, rows and columns.
    pub fn over_image(&self, rows: usize, columns: usize) -> Self {
        assert_eq!(self.kernel, [1, 1], "only a matrix is spread over an image");
        let [output, input, ..] = self.strides;
        Self {
            bytes: self.bytes.clone(),
            outputs: self.outputs,
            inputs: self.inputs / (rows * columns),
            kernel: [rows, columns],
            strides: [output, input * rows * columns, input * columns, input],
            zero_points: self.zero_points.clone(),
        }
    }
}

impl Kind {
    /// Whether it is more than a conversion or a change of shape.
    pub fn is_work(&self) -> bool {
        !matches!(
            self,
            Self::Carry(_)
                | Self::Quantize(_)
                | Self::Dequantize(_)
                | Self::Reshape { .. }
                | Self::Rearrange { .. }
                | Self::Concat { .. }
                | Self::Split { .. }
                | Self::Pad { .. }
        )
    }

    /// The name that dumps use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Carry(_) => "carry",
            Self::Quantize(_) => "quantize",
            Self::Dequantize(_) => "dequantize",
            Self::Conv { .. } => "conv",
            Self::ConvTranspose { .. } => "conv-transpose",
            Self::Product(_) => "product",
            Self::MatMul { .. } => "matmul",
            Self::Softmax { .. } => "softmax",
            Self::Add { .. } => "add",
            Self::Mul { .. } => "mul",
            Self::Pair { .. } => "pair",
            Self::Extreme { least: false, .. } => "reduce-max",
            Self::Extreme { least: true, .. } => "reduce-min",
            Self::Sum(Sum { is_mean: true, .. }) => "reduce-mean",
            Self::Sum(_) => "reduce-sum",
            Self::Norm(_) => "norm",
            Self::Rearrange { .. } => "rearrange",
            Self::Linear(_) => "linear",
            Self::Concat { .. } => "concat",
            Self::Split { .. } => "split",
            Self::Pad { .. } => "pad",
            Self::MaxPool { .. } => "max-pool",
            Self::AveragePool { .. } => "average-pool",
            Self::GlobalMean { .. } => "global-mean",
            Self::GlobalAveragePool { .. } => "global-average-pool",
            Self::Reshape { .. } => "reshape",
            Self::Elementwise(_) => "elementwise",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_the_same_wherever_the_weights_lie() {
        // More than one chunk of a row, with both ends of the range.
        let (outputs, inputs) = (2, 70_000);
        let codes = std::iter::successors(Some(0_u8), |code| Some(code.wrapping_add(7)));
        let rows: Vec<u8> = codes.take(outputs * inputs).collect();
        let columns: Vec<u8> =
            (0..outputs * inputs).map(|at| rows[at % outputs * inputs + at / outputs]).collect();
        let weights = |bytes: &[u8], strides| Weights {
            bytes: Bytes::copy_from_slice(bytes),
            outputs,
            inputs,
            kernel: [1, 1],
            strides,
            zero_points: vec![-128, 100],
        };
        let by_row = weights(&rows, [inputs, 1, 0, 0]);
        let by_column = weights(&columns, [1, outputs, 0, 0]);
        assert!(by_row.row(1).is_some() && by_column.row(1).is_none());
        for output in 0..outputs {
            let zero_point = i64::from(by_row.zero_points[output]);
            let row = &rows[output * inputs..][..inputs];
            let all = || row.iter().map(|&byte| i64::from(byte.cast_signed()) - zero_point);
            let want = [all().filter(|w| *w > 0).sum::<i64>(), all().filter(|w| *w < 0).sum()];
            assert_eq!(by_row.sums(output), want);
            assert_eq!(by_column.sums(output), want);
            let held = row.iter().map(|&byte| i64::from(byte.cast_signed())).sum::<i64>();
            assert_eq!(by_row.sum_as_held(output, by_row.sum(output)), held);
        }
    }
}
