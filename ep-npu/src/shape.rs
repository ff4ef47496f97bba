//! Shapes of the tensors between units, once the shapes of the inputs are numbers.
//!
//! A program is compiled for numbers; a model may leave its batch open. Whether a graph stands for
//! every batch is tried with two assignments that give each open dimension another number.

pub(crate) mod bounded;
mod operands;
pub(crate) mod order;
pub(crate) mod rows;
pub(crate) mod threads;

pub use self::operands::reduced_axes;
pub(crate) use self::operands::reshaped;
use self::operands::{
    check_mean, check_order, codes_of_add, image, joined, matrices, over, repeated, rows_fit,
    sum_of_codes, with_constant,
};
use crate::graph::{Dim, Graph, Node, ValueId};
use crate::quantize::{
    Blocks, Carry, Kind, Placed, Products, Split, Unit, WindowSpec, axis_of, is_in_range, is_turned,
};
use crate::refusal::{Refusal, refuse};
use npu_uapi::float_order::{Order, Steps};
use std::collections::BTreeMap;

/// Shapes by value.
pub type Shapes = BTreeMap<ValueId, Vec<usize>>;

/// Numbers for the open dimensions of a graph, by name; dimensions without a name differ from all.
#[derive(Debug, Default)]
pub struct Assignment {
    numbers: BTreeMap<String, usize>,
    distinct: bool,
    used: usize,
}

impl Assignment {
    /// Every open dimension is 1.
    pub fn ones() -> Self {
        Self::default()
    }

    /// Open dimensions are 2, 3 and so on: equal only where the model says so.
    pub fn distinct() -> Self {
        Self { distinct: true, used: 1, ..Self::default() }
    }

    /// The shape of `value` by its declared type.
    pub fn shape(&mut self, graph: &Graph, value: ValueId) -> Result<Vec<usize>, Refusal> {
        let value = graph.value(value);
        let name = &value.name;
        let Some(shape) = value.ty.as_ref().and_then(|ty| ty.shape.as_ref()) else {
            return refuse!(SHAPE, "the shape of `{name}` is unknown; run shape inference");
        };
        let mut numbers = Vec::with_capacity(shape.len());
        for (axis, dim) in shape.iter().enumerate() {
            match dim {
                Dim::Known(length) => numbers.push(*length),
                Dim::Symbol(symbol) if axis == 0 => numbers.push(self.number(symbol)),
                Dim::Symbol(symbol) => {
                    return refuse!(
                        SHAPE,
                        "dimension {axis} of `{name}` is open (`{symbol}`); only dimension 0, the batch, may be"
                    );
                }
            }
        }
        Ok(numbers)
    }

    fn number(&mut self, symbol: &str) -> usize {
        if !self.distinct {
            return 1;
        }
        if let Some(&number) = self.numbers.get(symbol).filter(|_| !symbol.is_empty()) {
            return number;
        }
        self.used += 1;
        self.numbers.insert(symbol.to_owned(), self.used);
        self.used
    }
}

/// The shape that `unit` writes for inputs of these shapes.
pub fn output(graph: &Graph, unit: &Unit, inputs: &[&[usize]]) -> Result<Vec<usize>, Refusal> {
    let mut outputs = outputs(graph, unit, inputs)?;
    Ok(outputs.swap_remove(0))
}

/// The shapes of all tensors that `unit` writes for inputs of these shapes, in their order.
pub fn outputs(
    graph: &Graph,
    unit: &Unit,
    inputs: &[&[usize]],
) -> Result<Vec<Vec<usize>>, Refusal> {
    let node = graph.node(unit.target);
    for shape in inputs {
        check_size(node, shape)?;
    }
    let part = |how: &Split, index: usize| {
        let step = how.step(node, inputs[0], index)?;
        Ok(step.shape(inputs[0].to_vec()))
    };
    let outputs = match &unit.kind {
        Kind::Split { how, shares } => {
            shares.iter().map(|share| part(how, share.index)).collect::<Result<_, _>>()?
        }
        Kind::Carry(Carry::Split { how, indices }) => {
            indices.iter().map(|&index| part(how, index)).collect::<Result<_, _>>()?
        }
        _ => vec![output_unchecked(graph, unit, inputs)?],
    };
    for output in &outputs {
        check_size(node, output)?;
    }
    Ok(outputs)
}

/// Refuses a tensor that is empty, or too long for the device's strides and dimensions of 32 bits.
fn check_size(node: &Node, shape: &[usize]) -> Result<(), Refusal> {
    let count = shape.iter().try_fold(1_u64, |n, &len| n.checked_mul(len.try_into().ok()?));
    let channels = if shape.len() < 2 { 1 } else { shape[1] };
    let columns = if shape.len() < 3 { 1 } else { shape[shape.len() - 1] };
    let row = channels.checked_next_multiple_of(16).and_then(|lanes| lanes.checked_mul(columns));
    match (count, row.map(i32::try_from)) {
        (Some(0), _) => refuse!(SHAPE, "{node} has an empty tensor of shape {shape:?}"),
        (Some(count), Some(Ok(_))) if count < 1 << 32 => Ok(()),
        _ => refuse!(SIZE, "{node} has a tensor of shape {shape:?}, too large for the device"),
    }
}

/// What the order of a convolution's sums follows from, for an input of so many images, rows and columns.
fn convolution(
    products: &Products,
    groups: usize,
    placed: &Placed,
    [images, rows, columns]: [usize; 3],
) -> order::Convolution {
    let weights = &products.weights;
    let w = &placed.window;
    let pads = [w.pad_top, w.pad_left, placed.pad_bottom, placed.pad_right];
    order::Convolution {
        images,
        groups,
        inputs: weights.inputs,
        filters: weights.outputs / groups,
        size: [rows, columns],
        kernel: weights.kernel,
        pixels: placed.out_h * placed.out_w,
        plain: [w.stride_h, w.stride_w] == [1, 1] && pads == [0; 4],
        dense: [w.dilation_h, w.dilation_w] == [1, 1],
        halving: [w.stride_h, w.stride_w] == [2, 2] && pads == [3; 4],
    }
}

/// The order in which the CPU provider sums a transposed convolution: channel by channel for each tap,
/// and then tap by tap.
pub(crate) fn spread_order(node: &Node, blocks: &Blocks) -> Result<Order, Refusal> {
    let order = order::transposed(blocks.rows.len * blocks.columns.len, blocks.inputs);
    // The device's blocks are of sums, or of taps.
    if blocks.are_apart() || order.steps == Steps::Fused(blocks.channels() as u64) {
        return Ok(order);
    }
    refuse!(
        FLOAT_ORDER,
        "{node} runs in float on the CPU, which sums {} channels in parts before it adds what overlaps, \
         and the device does not; make kernel and strides alike",
        blocks.inputs
    )
}

/// How a convolution in floats is summed.
pub(crate) fn summed_over(
    graph: &Graph,
    node: &Node,
    products: &Products,
    groups: usize,
    window: &WindowSpec,
    placed: &Placed,
    input: [usize; 3],
) -> Result<bounded::Summed, Refusal> {
    let shape = convolution(products, groups, placed, input);
    // Of rows, the order is not known.
    bounded::convolution(graph, node, products, (!window.is_row()).then_some(&shape))
}

fn output_unchecked(
    graph: &Graph,
    unit: &Unit,
    inputs: &[&[usize]],
) -> Result<Vec<usize>, Refusal> {
    let node = graph.node(unit.target);
    let Some(&input) = inputs.first() else {
        return refuse!(SHAPE, "{node} has no input; at least one is needed");
    };
    match &unit.kind {
        Kind::Quantize(_) | Kind::Dequantize(_) | Kind::Elementwise(_) => Ok(input.to_vec()),
        Kind::Conv { products, groups, window } => {
            let [n, c, h, w] = image(node, input, window.is_row())?;
            let want = products.weights.inputs * groups;
            if c != want {
                return refuse!(
                    SHAPE,
                    "{node} reads {c} channels; its weights and groups ask for {want}"
                );
            }
            let placed = window.place(node, [h, w])?;
            if products.arithmetic.floats().is_some() {
                summed_over(graph, node, products, *groups, window, &placed, [n, h, w])?;
            }
            Ok(over(window, [n, products.weights.outputs], &placed))
        }
        Kind::ConvTranspose { products, spec } => {
            let [n, c, h, w] = image(node, input, spec.is_row())?;
            let want = products.weights.inputs;
            if c != want {
                return refuse!(SHAPE, "{node} reads {c} channels; its weights ask for {want}");
            }
            let blocks = Blocks::new(node, products, spec, [n, h, w])?;
            spread_order(node, &blocks)?;
            for shape in blocks.shapes() {
                check_size(node, &shape)?;
            }
            let rows = (!spec.is_row()).then_some(blocks.rows.out);
            let channels = blocks.groups * blocks.filters;
            Ok([n, channels].into_iter().chain(rows).chain([blocks.columns.out]).collect())
        }
        Kind::Product(products) if is_turned(node) => match *input {
            [k, m] if k == products.weights.inputs => {
                if products.arithmetic.floats().is_some() {
                    bounded::product(graph, node, products, m)?;
                }
                let shape = vec![m, products.weights.outputs];
                rows_fit(node, &[m, k])?;
                rows_fit(node, &shape)?;
                Ok(shape)
            }
            _ => {
                let want = products.weights.inputs;
                refuse!(
                    SHAPE,
                    "{node} reads {input:?}; two dimensions, of which the first is {want}, are taken"
                )
            }
        },
        Kind::Product(products) => match *input {
            [ref rows @ .., k] if k == products.weights.inputs && !rows.is_empty() => {
                if products.arithmetic.floats().is_some() {
                    // The CPU sees all rows as one matrix.
                    let count = rows.iter().try_fold(1_usize, |n, &len| n.checked_mul(len));
                    let Some(count) = count else {
                        return refuse!(SIZE, "{node} reads {input:?}, too large for the device");
                    };
                    bounded::product(graph, node, products, count)?;
                }
                let mut shape = rows.to_vec();
                shape.push(products.weights.outputs);
                rows_fit(node, input)?;
                rows_fit(node, &shape)?;
                Ok(shape)
            }
            _ => {
                let want = products.weights.inputs;
                refuse!(SHAPE, "{node} reads {input:?}; rows of {want} are taken")
            }
        },
        Kind::MatMul { .. } => matrices(node, inputs[0], inputs[1]),
        Kind::Softmax { axis, input: from, output: to } => {
            // Before version 13 of the operator set, all dimensions from that one on are summed as one:
            // where those behind it are 1, that is the same.
            let at = axis_of(*axis, input.len());
            let is_last = |&at: &usize| at + 1 == input.len();
            let is_channels = |&at: &usize| at == 1 && input[2..].iter().all(|&len| len == 1);
            let Some(at) = at.filter(|at| is_last(at) || is_channels(at)) else {
                return refuse!(
                    ATTRIBUTE,
                    "{node} sums dimension {axis} of {input:?}; the last one is taken, and dimension 1 where those behind it are 1"
                );
            };
            let count = input[at];
            if !is_in_range(*from, *to, count) {
                let (from, to) = (from.scale, to.scale);
                return refuse!(
                    SCALE,
                    "{node} has {count} elements to a sum and scales {from:e} and {to:e}, which the CPU cannot round"
                );
            }
            rows_fit(node, input)?;
            Ok(input.to_vec())
        }
        Kind::Add { constant, .. } | Kind::Mul { constant, .. } | Kind::Pair { constant, .. } => {
            let shape = match constant {
                Some(constant) => with_constant(node, input, constant)?,
                None => repeated(node, inputs[0], inputs[1])?,
            };
            if let Some(sum) = sum_of_codes(&unit.kind, inputs) {
                check_order(graph, node, sum)?;
            }
            Ok(shape)
        }
        Kind::Rearrange { how, .. } | Kind::Carry(Carry::Rearrange(how)) => {
            let mut shape = input.to_vec();
            for step in how.steps(node, input)? {
                shape = step.shape(shape);
                if shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len)).is_none() {
                    return refuse!(SIZE, "{node} makes a tensor of shape {shape:?}");
                }
            }
            match shape.len() {
                0..=8 => Ok(shape),
                rank => refuse!(SHAPE, "{node} makes {rank} dimensions; 8 are taken"),
            }
        }
        Kind::Linear(linear) => {
            let [rows, columns] = linear.places(node, input)?;
            Ok(vec![input[0], input[1], rows.len(), columns.len()])
        }
        Kind::Concat { axis, .. } => joined(node, inputs, *axis),
        Kind::Pad { pads, .. } => {
            let (cut, [before, after]) = pads.cut(node, input)?;
            let input = cut.iter().fold(input.to_vec(), |shape, step| step.shape(shape));
            let sum = |((&len, &a), &b): ((&usize, &usize), &usize)| {
                len.checked_add(a).and_then(|len| len.checked_add(b))
            };
            match input.iter().zip(&before).zip(&after).map(sum).collect() {
                Some(shape) => Ok(shape),
                None => refuse!(SIZE, "{node} pads {input:?} by {pads:?}"),
            }
        }
        Kind::Extreme { axes, keep, .. } => {
            if node.is("GlobalMaxPool") {
                image(node, input, input.len() == 3)?;
            }
            let reduced = reduced_axes(node, axes.as_deref(), input)?;
            let kept = input.iter().enumerate().filter_map(|(axis, &len)| {
                if !reduced.contains(&axis) { Some(len) } else { keep.then_some(1) }
            });
            Ok(kept.collect())
        }
        Kind::Sum(sum) => {
            let (rows, _) = rows::of_sum(node, sum, input)?;
            rows_fit(node, &rows.shape())?;
            rows_fit(node, &[rows.lengths.as_slice(), &[1]].concat())?;
            Ok(rows.result(input, sum.keep))
        }
        Kind::Norm(norm) => {
            let of = rows::of_norm(node, norm, input)?;
            rows_fit(node, &of.rows)?;
            Ok(of.shape)
        }
        Kind::MaxPool { window, .. } | Kind::AveragePool { window, .. } => {
            let [n, c, h, w] = image(node, input, window.is_row())?;
            let placed = window.place(node, [h, w])?;
            if placed.has_empty_window([h, w]) {
                return refuse!(SHAPE, "{node} has a window that lies wholly in the padding");
            }
            if let Kind::AveragePool { input: from, output: to, .. } = &unit.kind
                && placed.is_whole([h, w])
            {
                check_mean(node, *from, *to, [h, w])?;
            }
            Ok(over(window, [n, c], &placed))
        }
        Kind::GlobalMean { .. } => {
            let [n, c, h, w] = image(node, input, input.len() == 3)?;
            let count = h.saturating_mul(w);
            if count > 1 << 22 {
                return refuse!(SIZE, "{node} averages {count} elements; 2^22 are taken");
            }
            Ok([n, c].into_iter().chain(input[2..].iter().map(|_| 1)).collect())
        }
        Kind::GlobalAveragePool { input: from, output: to } => {
            let [n, c, h, w] = image(node, input, input.len() == 3)?;
            check_mean(node, *from, *to, [h, w])?;
            Ok([n, c].into_iter().chain(input[2..].iter().map(|_| 1)).collect())
        }
        Kind::Reshape { shape, .. } | Kind::Carry(Carry::Reshape(shape)) => {
            reshaped(node, shape, input)
        }
        Kind::Split { .. } | Kind::Carry(Carry::Split { .. }) => {
            unreachable!("`outputs` has the shapes of what is parted")
        }
    }
}
