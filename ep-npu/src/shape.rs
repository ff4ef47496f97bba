//! Shapes of the tensors between units, once the shapes of the inputs are numbers.
//!
//! A program is compiled for numbers; a model may leave its batch open. Whether a graph stands for
//! every batch is tried with two assignments that give each open dimension another number.

pub(crate) mod bounded;
pub(crate) mod order;
pub(crate) mod rows;
pub(crate) mod threads;

use crate::exactness::Exactness;
use crate::graph::{Dim, Graph, Node, ValueId};
use crate::quantize::{
    Blocks, Carry, Codes, Kind, Operand, Placed, Products, ShapeChange, Split, Unit, WindowSpec,
    axis_of, is_in_range, is_turned,
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
        Kind::Add { constant: Some(constant), first, second, result } => {
            let shape = with_constant(node, input, constant)?;
            if constant.is_first && constant.tensor.shape != shape {
                check_order(graph, node, [*first, *second, *result])?;
            }
            Ok(shape)
        }
        Kind::Mul { constant: Some(constant), .. }
        | Kind::Pair { constant: Some(constant), .. } => with_constant(node, input, constant),
        Kind::Add { first, second, result, .. } => {
            let shape = repeated(node, inputs[0], inputs[1])?;
            if first_is_innermost_repeated(inputs[0], inputs[1]) {
                check_order(graph, node, [*first, *second, *result])?;
            }
            Ok(shape)
        }
        Kind::Mul { .. } | Kind::Pair { .. } => repeated(node, inputs[0], inputs[1]),
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

/// Refuses a shape whose rows, dimensions before the last, are too many or too long for the device.
fn rows_fit(node: &Node, shape: &[usize]) -> Result<(), Refusal> {
    let (&len, rows) = shape.split_last().unwrap_or((&1, &[]));
    let rows = rows.iter().try_fold(1_usize, |n, &len| n.checked_mul(len));
    let bytes = rows.and_then(|n| n.checked_mul(len.checked_next_multiple_of(16)?));
    match bytes.map(i32::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => refuse!(SIZE, "{node} has a tensor of shape {shape:?}, too large for the device"),
    }
}

/// The shape of the products of two tensors' matrices.
fn matrices(node: &Node, first: &[usize], second: &[usize]) -> Result<Vec<usize>, Refusal> {
    let (&[ref a @ .., m, k], &[ref b @ .., rows, n]) = (first, second) else {
        return refuse!(
            SHAPE,
            "{node} reads {first:?} and {second:?}; two dimensions at least are taken of each"
        );
    };
    if k != rows {
        return refuse!(SHAPE, "{node} reads {first:?} and {second:?}, whose matrices do not fit");
    }
    // Products of codes lie within 255 squared.
    if k > 33_025 {
        return refuse!(ACCUMULATOR, "{node} sums {k} products; 33025 fit 32 bits");
    }
    let mut shape = repeated(node, a, b)?;
    if a != b && shape.len() > 2 {
        return refuse!(
            SHAPE,
            "{node} repeats matrices of {first:?} or {second:?}; two dimensions around them are taken then"
        );
    }
    shape.extend([m, n]);
    for shape in [first, second, &shape] {
        rows_fit(node, shape)?;
    }
    match shape.len() {
        0..=8 => Ok(shape),
        rank => refuse!(SHAPE, "{node} makes {rank} dimensions; 8 are taken"),
    }
}

/// Refuses the mean of whole images of `size` where integers do not hold it.
fn check_mean(node: &Node, from: Codes, to: Codes, [h, w]: [usize; 2]) -> Result<(), Refusal> {
    let count = u32::try_from(h.saturating_mul(w)).unwrap_or(u32::MAX);
    if count > 1 << 22 {
        return refuse!(ACCUMULATOR, "{node} averages {count} elements; 2^22 are taken");
    }
    let multiplier = npu_uapi::requantise::global_average_multiplier(from.scale, to.scale, count);
    if !(2_f32.powi(-32)..256.0).contains(&multiplier) {
        return refuse!(
            SCALE,
            "{node} has scales that come to a multiplier of {multiplier:e}, outside 2^-32 to 256"
        );
    }
    Ok(())
}

/// The dimensions that a reduction takes away; together, or as rows and columns, they fit a window.
pub fn reduced_axes(
    node: &Node,
    axes: Option<&[i64]>,
    input: &[usize],
) -> Result<Vec<usize>, Refusal> {
    let all: Vec<i64> = (0..).take(input.len()).collect();
    let wrapped = axes.unwrap_or(&all).iter().map(|&axis| axis_of(axis, input.len()));
    let Some(mut reduced) = wrapped.collect::<Option<Vec<usize>>>() else {
        return refuse!(SHAPE, "{node} reduces {axes:?} of {input:?}");
    };
    reduced.sort_unstable();
    reduced.dedup();
    let count: usize = reduced.iter().map(|&axis| input[axis]).product();
    if count > usize::from(u16::MAX) && reduced != [2, 3] {
        return refuse!(SIZE, "{node} reduces {count} elements; 65535 are taken");
    }
    if reduced.iter().any(|&axis| input[axis] > usize::from(u16::MAX)) {
        return refuse!(SIZE, "{node} reduces {input:?}; 65535 elements of a dimension are taken");
    }
    Ok(reduced)
}

/// The shape of two tensors element by element, where dimensions of length 1 are repeated.
fn repeated(node: &Node, first: &[usize], second: &[usize]) -> Result<Vec<usize>, Refusal> {
    let rank = first.len().max(second.len());
    let padded = |shape: &[usize], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at])
    };
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        match (padded(first, axis), padded(second, axis)) {
            (a, b) if a == b || b == 1 => shape.push(a),
            (1, b) => shape.push(b),
            _ => return refuse!(SHAPE, "{node} reads {first:?} and {second:?}"),
        }
    }
    match rank {
        0..=8 => Ok(shape),
        _ => refuse!(SHAPE, "{node} has {rank} dimensions; 8 are taken"),
    }
}

/// The shape of a tensor with a constant that is repeated to it, for every image alike.
fn with_constant(node: &Node, input: &[usize], constant: &Operand) -> Result<Vec<usize>, Refusal> {
    let own = &constant.tensor.shape;
    let shape = repeated(node, input, own)?;
    if shape != input || (own.len() == shape.len() && own.len() > 1 && own[0] != 1) {
        return refuse!(
            SHAPE,
            "{node} reads {input:?} and a constant of shape {own:?}; one that is repeated to the other input, and the same for every image, is taken"
        );
    }
    Ok(shape)
}

/// Whether the first of two tensors is the one repeated along the innermost dimension that counts.
fn first_is_innermost_repeated(first: &[usize], second: &[usize]) -> bool {
    let ones = || std::iter::repeat(&1);
    let pairs = first.iter().rev().chain(ones()).zip(second.iter().rev().chain(ones()));
    let mut pairs = pairs.take(first.len().max(second.len()));
    pairs.find(|pair| *pair != (&1, &1)).is_some_and(|(&a, &b)| a == 1 && b > 1)
}

/// Refuses a sum whose first operand is repeated, where its order matters: by more than a code, where a
/// code is borne.
fn check_order(graph: &Graph, node: &Node, codes: [Codes; 3]) -> Result<(), Refusal> {
    let borne = u8::from(graph.exactness() == Exactness::Bounded);
    if codes_between_orders(codes) <= borne {
        return Ok(());
    }
    refuse!(
        SCALE,
        "{node} repeats its first operand, and the CPU adds in an order that depends on what surrounds it; exchange the operands"
    )
}

/// By how many codes the CPU provider's sum can differ from the given order's.
fn codes_of_add(unit: &Unit, inputs: &[&[usize]]) -> u8 {
    let Kind::Add { first, second, result, constant } = &unit.kind else { return 0 };
    let is_repeated = match (constant, inputs) {
        (Some(constant), [input, ..]) => constant.is_first && constant.tensor.shape != *input,
        (None, [a, b, ..]) => first_is_innermost_repeated(a, b),
        _ => false,
    };
    if is_repeated { codes_between_orders([*first, *second, *result]) } else { 0 }
}

/// By how many codes the sums of two codes differ at most with the operands exchanged.
///
/// The CPU provider exchanges them when the first is a single number for a whole run, and which runs
/// there are depends on the layout that it chose for the operators around.
fn codes_between_orders(codes: [Codes; 3]) -> u8 {
    use npu_uapi::requantise::{AddTerms, add};
    let [first, second, result] = codes.map(|codes| (codes.scale, codes.zero_point));
    let (given, exchanged) =
        (AddTerms::new(first, second, result), AddTerms::new(second, first, result));
    let apart = |a: u8, b: u8| add(a, b, given).abs_diff(add(b, a, exchanged));
    let pairs = (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b)));
    pairs.map(|(a, b)| apart(a, b)).max().unwrap_or(0)
}

fn joined(node: &Node, inputs: &[&[usize]], axis: i64) -> Result<Vec<usize>, Refusal> {
    let Some(axis) = axis_of(axis, inputs[0].len()) else {
        return refuse!(SHAPE, "{node} joins {inputs:?} along dimension {axis}");
    };
    let mut shape = inputs[0].to_vec();
    for input in &inputs[1..] {
        let fits = input.len() == shape.len()
            && (0..shape.len()).all(|at| at == axis || input[at] == shape[at]);
        let sum = input.get(axis).and_then(|&len| shape[axis].checked_add(len));
        match sum.filter(|_| fits) {
            Some(sum) => shape[axis] = sum,
            None => return refuse!(SHAPE, "{node} joins {inputs:?} along dimension {axis}"),
        }
    }
    Ok(shape)
}

fn image(node: &Node, shape: &[usize], is_row: bool) -> Result<[usize; 4], Refusal> {
    match *shape {
        [n, c, w] if is_row => Ok([n, c, 1, w]),
        [n, c, h, w] if !is_row => Ok([n, c, h, w]),
        _ => {
            let count = if is_row { "three" } else { "four" };
            refuse!(SHAPE, "{node} reads a tensor of shape {shape:?}; {count} dimensions are taken")
        }
    }
}

/// The shape that a window makes of images.
fn over(window: &WindowSpec, [n, c]: [usize; 2], placed: &Placed) -> Vec<usize> {
    let rows = (!window.is_row()).then_some(placed.out_h);
    [n, c].into_iter().chain(rows).chain([placed.out_w]).collect()
}

fn reshaped(node: &Node, change: &ShapeChange, input: &[usize]) -> Result<Vec<usize>, Refusal> {
    let count: usize = input.iter().product();
    let rank = input.len();
    let wrong = || refuse!(SHAPE, "{node} makes {change:?} of a tensor of shape {input:?}");
    let axis_of = |axis: i64, rank: usize| {
        let wrapped = if axis < 0 { axis.checked_add(i64::try_from(rank).ok()?)? } else { axis };
        usize::try_from(wrapped).ok().filter(|&axis| axis <= rank)
    };
    let shape = match change {
        ShapeChange::Flatten(axis) => {
            let Some(axis) = axis_of(*axis, rank) else { return wrong() };
            vec![input[..axis].iter().product(), input[axis..].iter().product()]
        }
        ShapeChange::To { shape, zero_copies } => {
            let mut lengths = Vec::with_capacity(shape.len());
            for (axis, &length) in shape.iter().enumerate() {
                lengths.push(match length {
                    -1 => None,
                    0 if *zero_copies => match input.get(axis) {
                        Some(&length) => Some(length),
                        None => return wrong(),
                    },
                    length => match usize::try_from(length) {
                        Ok(length) => Some(length),
                        Err(_) => return wrong(),
                    },
                });
            }
            let known = lengths.iter().flatten().try_fold(1_usize, |n, &len| n.checked_mul(len));
            let Some(known) = known.filter(|&known| known > 0) else { return wrong() };
            let rest = count / known;
            if lengths.iter().filter(|length| length.is_none()).count() > 1 {
                return wrong();
            }
            lengths.into_iter().map(|length| length.unwrap_or(rest)).collect()
        }
        ShapeChange::Squeeze(None) => input.iter().copied().filter(|&len| len != 1).collect(),
        ShapeChange::Squeeze(Some(axes)) => {
            let mut shape: Vec<Option<usize>> = input.iter().copied().map(Some).collect();
            for &axis in axes {
                match axis_of(axis, rank).and_then(|axis| shape.get_mut(axis)) {
                    Some(length) if *length == Some(1) => *length = None,
                    _ => return wrong(),
                }
            }
            shape.into_iter().flatten().collect()
        }
        ShapeChange::Unsqueeze(axes) => {
            let total = rank + axes.len();
            let mut at: Vec<usize> = axes.iter().filter_map(|&axis| axis_of(axis, total)).collect();
            at.sort_unstable();
            at.dedup();
            if at.len() != axes.len() || at.last().is_some_and(|&axis| axis >= total) {
                return wrong();
            }
            let mut kept = input.iter().copied();
            (0..total)
                .map(|axis| if at.contains(&axis) { 1 } else { kept.next().unwrap_or(1) })
                .collect()
        }
    };
    let found = shape.iter().try_fold(1_usize, |n: usize, &len| n.checked_mul(len));
    if found != Some(count) || shape.len() > 8 {
        return wrong();
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(change: ShapeChange, input: &[usize]) -> Option<Vec<usize>> {
        let node = Node {
            name: "n".to_owned(),
            op: "Reshape".to_owned(),
            domain: String::new(),
            inputs: vec![],
            outputs: vec![],
            attributes: BTreeMap::new(),
        };
        reshaped(&node, &change, input).ok()
    }

    #[test]
    fn shapes_change_as_onnx_says() {
        let input = [3, 4, 1, 5];
        assert_eq!(change(ShapeChange::Flatten(1), &input), Some(vec![3, 20]));
        assert_eq!(change(ShapeChange::Flatten(-1), &input), Some(vec![12, 5]));
        assert_eq!(change(ShapeChange::Flatten(0), &input), Some(vec![1, 60]));
        assert_eq!(change(ShapeChange::Squeeze(None), &input), Some(vec![3, 4, 5]));
        assert_eq!(change(ShapeChange::Squeeze(Some(vec![1])), &input), None);
        assert_eq!(change(ShapeChange::Unsqueeze(vec![0, -1]), &[2, 3]), Some(vec![1, 2, 3, 1]));
        let to = |shape: &[i64]| ShapeChange::To { shape: shape.to_vec(), zero_copies: true };
        assert_eq!(change(to(&[0, -1]), &input), Some(vec![3, 20]));
        assert_eq!(change(to(&[1, 20]), &input), None);
        assert_eq!(change(to(&[-1, -1]), &input), None);
        assert_eq!(change(to(&[i64::MIN]), &input), None);
    }
}
