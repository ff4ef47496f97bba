//! Shapes of the tensors between units, once the shapes of the inputs are numbers.
//!
//! A program is compiled for numbers; a model may leave its batch open. Whether a graph stands for
//! every batch is tried with two assignments that give each open dimension another number.

use crate::graph::{Dim, Graph, Node, ValueId};
use crate::quantize::{Kind, ShapeChange, Unit};
use crate::refusal::{Refusal, refuse};
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
    let node = graph.node(unit.target);
    for shape in inputs {
        check_size(node, shape)?;
    }
    let output = output_unchecked(node, unit, inputs)?;
    check_size(node, &output)?;
    Ok(output)
}

/// Refuses a tensor that is empty, or too long for the device's strides.
fn check_size(node: &Node, shape: &[usize]) -> Result<(), Refusal> {
    let count = shape.iter().try_fold(1_u64, |n, &len| n.checked_mul(len.try_into().ok()?));
    let channels = if shape.len() < 2 { 1 } else { shape[1] };
    let columns = if shape.len() < 3 { 1 } else { shape[shape.len() - 1] };
    let row = channels.checked_next_multiple_of(16).and_then(|lanes| lanes.checked_mul(columns));
    match (count, row.map(i32::try_from)) {
        (Some(0), _) => refuse!(SHAPE, "{node} has an empty tensor of shape {shape:?}"),
        (Some(count), Some(Ok(_))) if count < 1 << 36 => Ok(()),
        _ => refuse!(SIZE, "{node} has a tensor of shape {shape:?}, too large for the device"),
    }
}

fn output_unchecked(node: &Node, unit: &Unit, inputs: &[&[usize]]) -> Result<Vec<usize>, Refusal> {
    let input = inputs[0];
    match &unit.kind {
        Kind::Quantize(_) | Kind::Dequantize(_) | Kind::Elementwise(_) => Ok(input.to_vec()),
        Kind::Conv { products, groups, window } => {
            let [n, c, h, w] = image(node, input)?;
            let want = products.weights.inputs * groups;
            if c != want {
                return refuse!(
                    SHAPE,
                    "{node} reads {c} channels; its weights and groups ask for {want}"
                );
            }
            let placed = window.place(node, [h, w])?;
            Ok(vec![n, products.weights.outputs, placed.out_h, placed.out_w])
        }
        Kind::Product(products) => match *input {
            [n, k] if k == products.weights.inputs => Ok(vec![n, products.weights.outputs]),
            _ => {
                let want = products.weights.inputs;
                refuse!(SHAPE, "{node} reads {input:?}; rows of {want} are taken")
            }
        },
        Kind::Add { .. } => {
            if inputs[0] != inputs[1] {
                return refuse!(
                    SHAPE,
                    "{node} adds {:?} and {:?}; equal shapes are taken",
                    inputs[0],
                    inputs[1]
                );
            }
            Ok(input.to_vec())
        }
        Kind::MaxPool { window, .. } | Kind::AveragePool { window, .. } => {
            let [n, c, h, w] = image(node, input)?;
            let placed = window.place(node, [h, w])?;
            if placed.has_empty_window([h, w]) {
                return refuse!(SHAPE, "{node} has a window that lies wholly in the padding");
            }
            Ok(vec![n, c, placed.out_h, placed.out_w])
        }
        Kind::GlobalAveragePool { input: from, output: to } => {
            let [n, c, h, w] = image(node, input)?;
            let count = u32::try_from(h.saturating_mul(w)).unwrap_or(u32::MAX);
            if count > 1 << 22 {
                return refuse!(ACCUMULATOR, "{node} averages {count} elements; 2^22 are taken");
            }
            let multiplier =
                npu_uapi::requantise::global_average_multiplier(from.scale, to.scale, count);
            if !(2_f32.powi(-32)..256.0).contains(&multiplier) {
                return refuse!(
                    SCALE,
                    "{node} has scales that come to a multiplier of {multiplier:e}, outside 2^-32 to 256"
                );
            }
            Ok(vec![n, c, 1, 1])
        }
        Kind::Reshape { shape, .. } => reshaped(node, shape, input),
    }
}

fn image(node: &Node, shape: &[usize]) -> Result<[usize; 4], Refusal> {
    match shape.try_into() {
        Ok(image) => Ok(image),
        Err(_) => {
            refuse!(SHAPE, "{node} reads a tensor of shape {shape:?}; four dimensions are taken")
        }
    }
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
