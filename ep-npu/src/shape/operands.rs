//! What the shapes of an operator's operands must be, and what they come to.

use crate::exactness::Exactness;
use crate::graph::{Graph, Node};
use crate::quantize::{
    Codes, Kind, Operand, Pairwise, Placed, ShapeChange, Unit, WindowSpec, axis_of,
};
use crate::refusal::{Refusal, refuse};

/// Refuses a shape whose rows, dimensions before the last, are too many or too long for the device.
pub(super) fn rows_fit(node: &Node, shape: &[usize]) -> Result<(), Refusal> {
    let (&len, rows) = shape.split_last().unwrap_or((&1, &[]));
    let rows = rows.iter().try_fold(1_usize, |n, &len| n.checked_mul(len));
    let bytes = rows.and_then(|n| n.checked_mul(len.checked_next_multiple_of(16)?));
    match bytes.map(i32::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => refuse!(SIZE, "{node} has a tensor of shape {shape:?}, too large for the device"),
    }
}

/// The shape of the products of two tensors' matrices.
pub(super) fn matrices(
    node: &Node,
    first: &[usize],
    second: &[usize],
) -> Result<Vec<usize>, Refusal> {
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
pub(super) fn check_mean(
    node: &Node,
    from: Codes,
    to: Codes,
    [h, w]: [usize; 2],
) -> Result<(), Refusal> {
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
pub(super) fn repeated(
    node: &Node,
    first: &[usize],
    second: &[usize],
) -> Result<Vec<usize>, Refusal> {
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
pub(super) fn with_constant(
    node: &Node,
    input: &[usize],
    constant: &Operand,
) -> Result<Vec<usize>, Refusal> {
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

/// A sum of codes, which the CPU provider computes on codes.
#[derive(Clone, Copy)]
pub(super) enum SumOfCodes {
    /// As the device has it: of two operands and a result.
    Unsigned([Codes; 3]),
    /// Of another type.
    Other(Pairwise),
}

/// Refuses a sum whose first operand is repeated, where its order matters: by more than a code, where a
/// code is borne.
pub(super) fn check_order(graph: &Graph, node: &Node, sum: SumOfCodes) -> Result<(), Refusal> {
    let borne = u8::from(graph.exactness() == Exactness::Bounded);
    if sum.codes_between_orders() <= borne {
        return Ok(());
    }
    refuse!(
        SCALE,
        "{node} repeats its first operand, and the CPU adds in an order that depends on what surrounds it; exchange the operands"
    )
}

/// By how many codes the CPU provider's sum can differ from the given order's.
pub(super) fn codes_of_add(unit: &Unit, inputs: &[&[usize]]) -> u8 {
    match sum_of_codes(&unit.kind, inputs) {
        Some(sum) => sum.codes_between_orders(),
        None => 0,
    }
}

/// The sum of codes that `kind` is, where the CPU provider may exchange its operands.
pub(super) fn sum_of_codes(kind: &Kind, inputs: &[&[usize]]) -> Option<SumOfCodes> {
    let (sum, constant) = match kind {
        Kind::Add { first, second, result, constant } => {
            (SumOfCodes::Unsigned([*first, *second, *result]), constant)
        }
        Kind::Pair { constant, sum: Some(sum), .. } => (SumOfCodes::Other(*sum), constant),
        _ => return None,
    };
    let is_repeated = match (constant, inputs) {
        (Some(constant), [input, ..]) => constant.is_first && constant.tensor.shape != *input,
        (None, [a, b, ..]) => first_is_innermost_repeated(a, b),
        _ => false,
    };
    is_repeated.then_some(sum)
}

impl SumOfCodes {
    /// By how many codes the sums of two codes differ at most with the operands exchanged.
    ///
    /// The CPU provider exchanges them when the first is a single number for a whole run, and which runs
    /// there are depends on the layout that it chose for the operators around.
    fn codes_between_orders(self) -> u8 {
        use npu_uapi::requantise::{AddTerms, add};
        match self {
            Self::Unsigned(codes) => {
                let [first, second, result] = codes.map(|codes| (codes.scale, codes.zero_point));
                let given = AddTerms::new(first, second, result);
                let exchanged = AddTerms::new(second, first, result);
                most(|a, b| add(a, b, given).abs_diff(add(b, a, exchanged)))
            }
            Self::Other(given) => {
                let exchanged = given.exchanged();
                most(|a, b| given.code(a, b).abs_diff(exchanged.code(b, a)))
            }
        }
    }
}

/// The most that `apart` is of two codes.
fn most(apart: impl Fn(u8, u8) -> u8) -> u8 {
    let pairs = (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b)));
    pairs.map(|(a, b)| apart(a, b)).max().unwrap_or(0)
}

pub(super) fn joined(node: &Node, inputs: &[&[usize]], axis: i64) -> Result<Vec<usize>, Refusal> {
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

pub(super) fn image(node: &Node, shape: &[usize], is_row: bool) -> Result<[usize; 4], Refusal> {
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
pub(super) fn over(window: &WindowSpec, [n, c]: [usize; 2], placed: &Placed) -> Vec<usize> {
    let rows = (!window.is_row()).then_some(placed.out_h);
    [n, c].into_iter().chain(rows).chain([placed.out_w]).collect()
}

pub(crate) fn reshaped(
    node: &Node,
    change: &ShapeChange,
    input: &[usize],
) -> Result<Vec<usize>, Refusal> {
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
            let rest = match lengths.iter().filter(|length| length.is_none()).count() {
                0 => Some(0),
                1 => known.and_then(|known| count.checked_div(known)),
                _ => None,
            };
            let Some(rest) = rest else { return wrong() };
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
    use std::collections::BTreeMap;

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
        assert_eq!(change(to(&[0, 9, -1]), &[1, 0]), Some(vec![1, 9, 0]), "of nothing, nothing");
        assert_eq!(change(to(&[0, 5]), &[0, 5]), Some(vec![0, 5]));
        assert_eq!(change(to(&[0, -1]), &[0, 5]), None, "it may be anything");
        assert_eq!(change(to(&[-1, -1]), &input), None);
        assert_eq!(change(to(&[i64::MIN]), &input), None);
    }
}
