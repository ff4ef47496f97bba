//! Units that put elements elsewhere: Slice, Transpose, Gather, Resize to the nearest, Expand,
//! Tile, DepthToSpace, SpaceToDepth; Concat.
//!
//! What an operator's attributes come to depends on the shape it reads; [`Rearrange::steps`] says it in
//! six kinds of steps, which every stage below knows.

use super::carry::{self, Carry};
use super::form::Former;
use super::pad::{Border, Pads};
use super::pick;
use super::resize::Nearest;
use super::unit::{Kind, Unit};
use crate::graph::{Node, Tensor};
use crate::refusal::{Refusal, refuse};

/// An operator that rearranges one tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Rearrange {
    /// Part of a tensor: starts, ends, axes and steps as the model gives them.
    Slice {
        /// First elements.
        starts: Vec<i64>,
        /// Elements to stop before.
        ends: Vec<i64>,
        /// Dimensions; the first ones when `None`.
        axes: Option<Vec<i64>>,
        /// Steps; 1 when `None`.
        steps: Option<Vec<i64>>,
    },
    /// Dimensions in another order; reversed when `None`.
    Transpose(Option<Vec<i64>>),
    /// Resize to the nearest.
    Nearest(Nearest),
    /// Some elements of a dimension, in a shape of their own.
    Gather {
        /// The dimension.
        axis: i64,
        /// Which elements.
        indices: Vec<i64>,
        /// The shape of the indices, which takes the dimension's place.
        shape: Vec<usize>,
    },
    /// A border of elements of the tensor.
    Pad {
        /// How wide.
        pads: Pads,
        /// Which elements.
        border: Border,
    },
    /// Dimensions of length 1 repeated.
    Expand(Vec<i64>),
    /// The whole repeated, dimension by dimension.
    Tile(Vec<i64>),
    /// Channels to blocks of pixels.
    DepthToSpace {
        /// Rows and columns of a block.
        block: usize,
        /// Whether channels lie before blocks (`CRD`).
        channels_first: bool,
    },
    /// Blocks of this many rows and columns to channels.
    SpaceToDepth(usize),
}

/// One step of a rearrangement.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// The same elements in another shape.
    Reshape(Vec<usize>),
    /// Dimension `i` of the result is this one of the input.
    Permute(Vec<usize>),
    /// Some elements of a dimension.
    Slice {
        /// The dimension.
        axis: usize,
        /// The first element.
        start: usize,
        /// From an element to the next.
        step: isize,
        /// How many.
        len: usize,
    },
    /// Each element of a dimension several times: `a a b b`.
    RepeatEach {
        /// The dimension.
        axis: usize,
        /// How often.
        times: usize,
    },
    /// A dimension several times: `a b a b`.
    RepeatAll {
        /// The dimension.
        axis: usize,
        /// How often.
        times: usize,
    },
    /// Any elements of a dimension.
    Pick {
        /// The dimension.
        axis: usize,
        /// Which, in order.
        elements: Vec<usize>,
    },
}

impl Step {
    /// The shape that the step makes of `shape`.
    pub fn shape(&self, mut shape: Vec<usize>) -> Vec<usize> {
        match self {
            Self::Reshape(shape) => return shape.clone(),
            Self::Permute(order) => return order.iter().map(|&axis| shape[axis]).collect(),
            Self::Slice { axis, len, .. } => shape[*axis] = *len,
            Self::Pick { axis, elements } => shape[*axis] = elements.len(),
            Self::RepeatEach { axis, times } | Self::RepeatAll { axis, times } => {
                shape[*axis] *= times;
            }
        }
        shape
    }
}

impl Rearrange {
    /// What `node` does to a tensor of shape `input`, step by step.
    pub fn steps(&self, node: &Node, input: &[usize]) -> Result<Vec<Step>, Refusal> {
        let rank = input.len();
        match self {
            Self::Slice { starts, ends, axes, steps } => {
                slice(node, input, [starts, ends], [axes.as_deref(), steps.as_deref()])
            }
            Self::Transpose(None) => Ok(vec![Step::Permute((0..rank).rev().collect())]),
            Self::Transpose(Some(order)) => {
                let order: Vec<usize> =
                    order.iter().filter_map(|&axis| usize::try_from(axis).ok()).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                if !sorted.into_iter().eq(0..rank) {
                    return refuse!(SHAPE, "{node} reads {input:?} in the order {order:?}");
                }
                Ok(vec![Step::Permute(order)])
            }
            Self::Nearest(nearest) => nearest.steps(node, input),
            Self::Gather { axis, indices, shape } => gathered(node, input, (*axis, indices), shape),
            Self::Pad { pads, border } => pads.steps(node, *border, input),
            Self::Expand(shape) => expand(node, input, shape),
            Self::Tile(times) => {
                if times.len() != rank {
                    return refuse!(SHAPE, "{node} repeats {input:?} by {times:?}");
                }
                let steps = times.iter().enumerate().filter(|(_, times)| **times != 1);
                let steps = steps.map(|(axis, &times)| match usize::try_from(times) {
                    Ok(times) if (1..1 << 31).contains(&times) => {
                        Ok(Step::RepeatAll { axis, times })
                    }
                    _ => refuse!(SHAPE, "{node} repeats dimension {axis} {times} times"),
                });
                steps.collect()
            }
            Self::DepthToSpace { block, channels_first } => {
                let &[n, c, h, w] = input else {
                    return refuse!(SHAPE, "{node} reads {input:?}; four dimensions are taken");
                };
                let b = *block;
                let square = b.checked_mul(b).filter(|square| c % square == 0);
                let Some(square) = square else {
                    return refuse!(SHAPE, "{node} makes blocks of {b} of {c} channels");
                };
                let channels = c / square;
                let (split, order) = match channels_first {
                    true => (vec![n, channels, b, b, h, w], vec![0, 1, 4, 2, 5, 3]),
                    false => (vec![n, b, b, channels, h, w], vec![0, 3, 4, 1, 5, 2]),
                };
                let joined = vec![n, channels, h * b, w * b];
                Ok(vec![Step::Reshape(split), Step::Permute(order), Step::Reshape(joined)])
            }
            Self::SpaceToDepth(b) => {
                let &[n, c, h, w] = input else {
                    return refuse!(SHAPE, "{node} reads {input:?}; four dimensions are taken");
                };
                if h % b != 0 || w % b != 0 {
                    return refuse!(SHAPE, "{node} makes blocks of {b} of {h} by {w} pixels");
                }
                let split = vec![n, c, h / b, *b, w / b, *b];
                let joined = vec![n, c * b * b, h / b, w / b];
                let order = vec![0, 3, 5, 1, 2, 4];
                Ok(vec![Step::Reshape(split), Step::Permute(order), Step::Reshape(joined)])
            }
        }
    }
}

/// `axis` of a tensor of `rank` dimensions, from the end when negative.
pub(crate) fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let wrapped = if axis < 0 { axis.checked_add(i64::try_from(rank).ok()?)? } else { axis };
    usize::try_from(wrapped).ok().filter(|&axis| axis < rank)
}

fn slice(
    node: &Node,
    input: &[usize],
    [starts, ends]: [&[i64]; 2],
    [axes, steps]: [Option<&[i64]>; 2],
) -> Result<Vec<Step>, Refusal> {
    let first: Vec<i64> = (0..).take(starts.len()).collect();
    let axes = axes.unwrap_or(&first);
    let ones = vec![1; starts.len()];
    let steps = steps.unwrap_or(&ones);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return refuse!(SHAPE, "{node} has {} starts, but not as many of the rest", starts.len());
    }
    let mut out = Vec::new();
    for (((&start, &end), &axis), &step) in starts.iter().zip(ends).zip(axes).zip(steps) {
        let Some(axis) = axis_of(axis, input.len()) else {
            return refuse!(SHAPE, "{node} slices dimension {axis} of {input:?}");
        };
        let Ok(len) = i64::try_from(input[axis]) else {
            return refuse!(SIZE, "{node} slices a dimension of {}", input[axis]);
        };
        let from_end = |at: i64| if at < 0 { at.saturating_add(len) } else { at };
        let (start, end) = (from_end(start), from_end(end));
        let (start, count) = match step {
            1.. => {
                let (start, end) = (start.clamp(0, len), end.clamp(0, len));
                (start, count(end - start, step))
            }
            i64::MIN..=-1 => {
                let (start, end) = (start.clamp(-1, len - 1), end.clamp(-1, len - 1));
                (start, count(start - end, step.saturating_neg()))
            }
            0 => return refuse!(ATTRIBUTE, "{node} has a step of 0"),
        };
        let (Ok(start), Ok(step), Ok(len)) =
            (usize::try_from(start), isize::try_from(step), usize::try_from(count))
        else {
            return refuse!(SHAPE, "{node} takes nothing of dimension {axis} of {input:?}");
        };
        if len == 0 {
            return refuse!(SHAPE, "{node} takes nothing of dimension {axis} of {input:?}");
        }
        // The step of a single element reaches nowhere; it may be as large as a number can be.
        out.push(Step::Slice { axis, start, step: if len == 1 { 1 } else { step }, len });
    }
    Ok(out)
}

/// How many steps of `step` begin within `span`.
fn count(span: i64, step: i64) -> i64 {
    if span <= 0 { 0 } else { (span - 1) / step + 1 }
}

fn gathered(
    node: &Node,
    input: &[usize],
    (axis, indices): (i64, &[i64]),
    shape: &[usize],
) -> Result<Vec<Step>, Refusal> {
    let Some(axis) = axis_of(axis, input.len()) else {
        return refuse!(SHAPE, "{node} gathers from dimension {axis} of {input:?}");
    };
    let found = indices.iter().map(|&index| axis_of(index, input[axis]));
    let Some(found) = found.collect::<Option<Vec<usize>>>() else {
        return refuse!(SHAPE, "{node} gathers {indices:?} from dimension {axis} of {input:?}");
    };
    if found.is_empty() {
        return refuse!(SHAPE, "{node} takes nothing of dimension {axis} of {input:?}");
    }
    let Some(mut steps) = pick::steps(axis, input[axis], found) else {
        return refuse!(
            SIZE,
            "{node} gathers {} elements without a pattern, which takes too many commands; split it into several, and join them by Concat",
            indices.len()
        );
    };
    let joined = [&input[..axis], shape, &input[axis + 1..]].concat();
    steps.push(Step::Reshape(joined));
    Ok(steps)
}

fn expand(node: &Node, input: &[usize], shape: &[i64]) -> Result<Vec<Step>, Refusal> {
    let wrong = || refuse!(SHAPE, "{node} expands {input:?} to {shape:?}");
    let rank = input.len().max(shape.len());
    if rank > 8 {
        return wrong();
    }
    let mut padded = vec![1; rank - input.len()];
    padded.extend(input);
    let mut steps = vec![Step::Reshape(padded.clone())];
    for (axis, &want) in (rank - shape.len()..).zip(shape) {
        match (padded[axis], usize::try_from(want)) {
            (_, Ok(1)) => {}
            (len, Ok(want)) if len == want => {}
            (1, Ok(times)) if times > 0 => steps.push(Step::RepeatEach { axis, times }),
            _ => return wrong(),
        }
    }
    Ok(steps)
}

/// The unit of a node with one input that flows.
pub(super) fn rearranged(mut unit: Former<'_>, how: Rearrange) -> Result<Unit, Refusal> {
    if let Some((input, output)) = carry::ends(unit.graph, unit.node()) {
        unit.reads(input);
        return Ok(unit.finish(output, Kind::Carry(Carry::Rearrange(how))));
    }
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    Ok(unit.finish(value, Kind::Rearrange { how, table: input.requantise(output) }))
}

/// Constant int64 input `index`, or attribute `name` where the operator has it so.
pub(super) fn numbers(
    unit: &Former<'_>,
    index: usize,
    name: &str,
) -> Result<Option<Vec<i64>>, Refusal> {
    let node = unit.node();
    if node.input(index).is_none() {
        return Ok(node.ints(name).map(<[i64]>::to_vec));
    }
    match unit.graph.constant(node, index).and_then(Tensor::as_i64) {
        Some(numbers) => Ok(Some(numbers)),
        None => refuse!(SHAPE, "{node} has {name} that are not constant int64"),
    }
}

pub(super) fn required(unit: &Former<'_>, index: usize, name: &str) -> Result<Vec<i64>, Refusal> {
    match numbers(unit, index, name)? {
        Some(numbers) => Ok(numbers),
        None => refuse!(ATTRIBUTE, "{} has no {name}", unit.node()),
    }
}

/// Slice.
pub(super) fn slice_unit(unit: Former<'_>) -> Result<Unit, Refusal> {
    let how = Rearrange::Slice {
        starts: required(&unit, 1, "starts")?,
        ends: required(&unit, 2, "ends")?,
        axes: numbers(&unit, 3, "axes")?,
        steps: numbers(&unit, 4, "steps")?,
    };
    rearranged(unit, how)
}

/// Transpose.
pub(super) fn transpose(unit: Former<'_>) -> Result<Unit, Refusal> {
    let order = unit.node().ints("perm").map(<[i64]>::to_vec);
    rearranged(unit, Rearrange::Transpose(order))
}

/// Resize.
pub(super) fn resize(unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    match node.string("mode").unwrap_or("nearest") {
        "nearest" => {
            let nearest = Nearest::read(&unit)?;
            rearranged(unit, Rearrange::Nearest(nearest))
        }
        "linear" => super::linear::linear(unit),
        mode => refuse!(
            ATTRIBUTE,
            "{node} has mode {mode:?}, for which the device has no command; nearest and linear are taken"
        ),
    }
}

/// Gather of constant elements.
pub(super) fn gather(unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    if node.input(0).is_some_and(|value| unit.graph.value(value).constant.is_some()) {
        return refuse!(
            OPERATOR,
            "{node} looks up a constant by indices that are computed; no command of the device has indices as data"
        );
    }
    let indices = unit.graph.constant(node, 1);
    let numbers = indices.and_then(|tensor| {
        tensor.as_i64().or_else(|| Some(tensor.as_i32()?.into_iter().map(i64::from).collect()))
    });
    let (Some(indices), Some(numbers)) = (indices, numbers) else {
        return refuse!(
            OPERATOR,
            "{node} has indices that are not constant int64 or int32; no command of the device has indices as data"
        );
    };
    let (axis, shape) = (node.int("axis").unwrap_or(0), indices.shape.clone());
    rearranged(unit, Rearrange::Gather { axis, indices: numbers, shape })
}

/// Expand.
pub(super) fn expand_unit(unit: Former<'_>) -> Result<Unit, Refusal> {
    let shape = required(&unit, 1, "shape")?;
    rearranged(unit, Rearrange::Expand(shape))
}

/// Tile.
pub(super) fn tile(unit: Former<'_>) -> Result<Unit, Refusal> {
    let times = required(&unit, 1, "repeats")?;
    rearranged(unit, Rearrange::Tile(times))
}

/// DepthToSpace and SpaceToDepth.
pub(super) fn blocks(unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let block = node.int("blocksize").and_then(|block| usize::try_from(block).ok());
    let Some(block) = block.filter(|block| (1..1 << 16).contains(block)) else {
        return refuse!(ATTRIBUTE, "{node} has blocksize {:?}", node.int("blocksize"));
    };
    if node.op == "SpaceToDepth" {
        return rearranged(unit, Rearrange::SpaceToDepth(block));
    }
    let channels_first = match node.string("mode").unwrap_or("DCR") {
        "DCR" => false,
        "CRD" => true,
        other => return refuse!(ATTRIBUTE, "{node} has mode {other:?}, which is not ONNX"),
    };
    rearranged(unit, Rearrange::DepthToSpace { block, channels_first })
}

/// Concat of tensors that flow.
pub(super) fn concat(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let Some(axis) = node.int("axis") else {
        return refuse!(ATTRIBUTE, "{node} has no axis");
    };
    let inputs = (0..node.inputs.len()).map(|index| unit.activation(index));
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    let (value, output) = unit.result()?;
    let tables = inputs.into_iter().map(|input| input.requantise(output)).collect();
    Ok(unit.finish(value, Kind::Concat { axis, tables }))
}

/// The one number of constant input `index`.
pub(super) fn constant_float(unit: &Former<'_>, index: usize) -> Option<f32> {
    match unit.graph.constant(unit.node(), index)?.as_f32()?.as_slice() {
        &[value] => Some(value),
        _ => None,
    }
}
