//! Nodes that read constants only become constants: quantised weights and biases, and shapes.
//!
//! A DequantizeLinear stays, as in ONNX Runtime: it is half of a unit.

use super::draft::{Draft, Node};
use crate::graph::{Attribute, ElementType, Tensor};
use bytes::Bytes;
use npu_uapi::requantise::quantise;
use std::collections::HashSet;

/// Most bytes that folding one node may make; what makes more is left where it is.
const MOST_BYTES: usize = 1 << 30;

/// Folds what can be, in topological order as far as the file has it; whether anything was.
pub(super) fn fold(draft: &mut Draft) -> bool {
    let outputs: HashSet<&str> = draft.outputs.iter().map(String::as_str).collect();
    let (constants, before) = (&mut draft.constants, draft.nodes.len());
    draft.nodes.retain(|node| {
        let [output] = node.outputs.as_slice() else { return true };
        if output.is_empty() || outputs.contains(output.as_str()) {
            return true;
        }
        let inputs: Option<Vec<&Tensor>> =
            node.inputs.iter().map(|name| constants.get(name)).collect();
        match inputs.and_then(|inputs| value(node, &inputs)) {
            Some(tensor) => {
                constants.insert(output.clone(), tensor);
                false
            }
            None => true,
        }
    });
    draft.nodes.len() < before
}

/// What `node` makes of constants; `None` when it is not one of the operators that models have there.
fn value(node: &Node, inputs: &[&Tensor]) -> Option<Tensor> {
    let &first = inputs.first()?;
    if first.element.bytes().is_none() || first.bytes.len() > MOST_BYTES {
        return None;
    }
    match node.op.as_str() {
        "QuantizeLinear" if matches!(node.domain.as_str(), "" | "ai.onnx" | "com.microsoft") => {
            quantized(node, inputs)
        }
        _ if !matches!(node.domain.as_str(), "" | "ai.onnx") => None,
        "Identity" => Some(first.clone()),
        "Reshape" => reshaped(node, first, inputs.get(1)?),
        "Unsqueeze" => unsqueezed(first, &axes(node, inputs)?),
        "Squeeze" => squeezed(first, axes(node, inputs).as_deref()),
        "Transpose" => transposed(node, first),
        "Concat" => joined(node, inputs),
        _ => None,
    }
}

/// Codes with one scale, or one for each index along `axis`.
fn quantized(node: &Node, inputs: &[&Tensor]) -> Option<Tensor> {
    let &[values, scales, ..] = inputs else { return None };
    if matches!(node.attributes.get("block_size"), Some(&Attribute::Int(size)) if size != 0) {
        return None;
    }
    let floats = values.as_f32()?;
    let scale_values = scales.as_f32()?;
    let zero = inputs.get(2).copied();
    let element = zero.map_or(ElementType::U8, |zero| zero.element);
    let is_unsigned = match element {
        ElementType::U8 => true,
        ElementType::I8 => false,
        _ => return None,
    };
    let count = scale_values.len();
    if count == 0 || zero.is_some_and(|zero| zero.bytes.len() != count) {
        return None;
    }
    // Elements that share a scale follow each other; after `count` runs of them it is the first again.
    let run = match count {
        1 => 1,
        _ => {
            let axis = wrapped(int(node, "axis").unwrap_or(1), values.shape.len())?;
            if values.shape.get(axis) != Some(&count) {
                return None;
            }
            values.shape[axis + 1..].iter().product::<usize>().max(1)
        }
    };
    let codes = floats.iter().enumerate().map(|(index, &float)| {
        let at = index / run % count;
        let point = zero.map_or(0, |zero| zero.bytes[at]);
        // Signed codes are unsigned ones, moved by 128.
        let moved = if is_unsigned { point } else { point ^ 0x80 };
        let code = quantise(float, scale_values[at], moved);
        if is_unsigned { code } else { code ^ 0x80 }
    });
    let bytes: Vec<u8> = codes.collect();
    Some(Tensor { element, shape: values.shape.clone(), bytes: bytes.into() })
}

fn reshaped(node: &Node, tensor: &Tensor, shape: &Tensor) -> Option<Tensor> {
    let zero_copies = int(node, "allowzero").unwrap_or(0) == 0;
    let mut lengths = Vec::new();
    let mut open = None;
    for (axis, length) in shape.as_i64()?.into_iter().enumerate() {
        lengths.push(match length {
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            0 if zero_copies => *tensor.shape.get(axis)?,
            length => usize::try_from(length).ok()?,
        });
    }
    let known = lengths.iter().try_fold(1_usize, |n, &len| n.checked_mul(len))?;
    if let Some(axis) = open {
        lengths[axis] = tensor.len().checked_div(known)?;
    }
    with_shape(tensor, lengths)
}

fn unsqueezed(tensor: &Tensor, axes: &[i64]) -> Option<Tensor> {
    let rank = tensor.shape.len() + axes.len();
    let at: HashSet<usize> = axes.iter().map(|&axis| wrapped(axis, rank)).collect::<Option<_>>()?;
    if at.len() != axes.len() {
        return None;
    }
    let mut kept = tensor.shape.iter().copied();
    let shape = (0..rank).map(|axis| if at.contains(&axis) { Some(1) } else { kept.next() });
    with_shape(tensor, shape.collect::<Option<_>>()?)
}

fn squeezed(tensor: &Tensor, axes: Option<&[i64]>) -> Option<Tensor> {
    let rank = tensor.shape.len();
    let at: HashSet<usize> = match axes {
        Some(axes) => axes.iter().map(|&axis| wrapped(axis, rank)).collect::<Option<_>>()?,
        None => (0..rank).filter(|&axis| tensor.shape[axis] == 1).collect(),
    };
    let lengths = tensor.shape.iter().copied().enumerate();
    with_shape(tensor, lengths.filter(|(axis, _)| !at.contains(axis)).map(|(_, len)| len).collect())
}

fn transposed(node: &Node, tensor: &Tensor) -> Option<Tensor> {
    let rank = tensor.shape.len();
    let order: Vec<usize> = match node.attributes.get("perm") {
        Some(Attribute::Ints(order)) => {
            order.iter().map(|&axis| usize::try_from(axis).ok()).collect::<Option<_>>()?
        }
        _ => (0..rank).rev().collect(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return None;
    }
    let size = tensor.element.bytes()?;
    let mut strides = vec![size; rank];
    for axis in (1..rank).rev() {
        strides[axis - 1] = strides[axis] * tensor.shape[axis];
    }
    let shape: Vec<usize> = order.iter().map(|&axis| tensor.shape[axis]).collect();
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for index in 0..tensor.len() {
        let (mut rest, mut from) = (index, 0);
        for axis in (0..rank).rev() {
            from += rest % shape[axis] * strides[order[axis]];
            rest /= shape[axis];
        }
        bytes.extend_from_slice(&tensor.bytes[from..from + size]);
    }
    Some(Tensor { element: tensor.element, shape, bytes: bytes.into() })
}

/// Concat along the first dimension, as shapes are put together.
fn joined(node: &Node, inputs: &[&Tensor]) -> Option<Tensor> {
    let first = inputs.first()?;
    let inner = first.shape.get(1..)?;
    let fits =
        |tensor: &&Tensor| tensor.element == first.element && tensor.shape.get(1..) == Some(inner);
    if wrapped(int(node, "axis")?, first.shape.len())? != 0 || !inputs.iter().all(fits) {
        return None;
    }
    let total: usize = inputs.iter().map(|tensor| tensor.bytes.len()).sum();
    if total > MOST_BYTES {
        return None;
    }
    let length = inputs.iter().map(|tensor| tensor.shape[0]).sum();
    let shape = std::iter::once(length).chain(inner.iter().copied()).collect();
    let bytes: Vec<u8> = inputs.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect();
    Some(Tensor { element: first.element, shape, bytes: bytes.into() })
}

/// The same elements in another shape, when they fill it.
fn with_shape(tensor: &Tensor, shape: Vec<usize>) -> Option<Tensor> {
    let count = shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len))?;
    let bytes: Bytes = tensor.bytes.clone();
    (count == tensor.len()).then_some(Tensor { element: tensor.element, shape, bytes })
}

fn axes(node: &Node, inputs: &[&Tensor]) -> Option<Vec<i64>> {
    match (inputs.get(1), node.attributes.get("axes")) {
        (Some(axes), _) => axes.as_i64(),
        (None, Some(Attribute::Ints(axes))) => Some(axes.clone()),
        _ => None,
    }
}

fn int(node: &Node, name: &str) -> Option<i64> {
    match node.attributes.get(name) {
        Some(&Attribute::Int(value)) => Some(value),
        _ => None,
    }
}

/// An axis from the front, of `rank` of them.
fn wrapped(axis: i64, rank: usize) -> Option<usize> {
    let rank_signed = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank_signed)? } else { axis };
    usize::try_from(axis).ok().filter(|&axis| axis < rank)
}
