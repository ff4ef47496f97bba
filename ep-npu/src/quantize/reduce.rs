//! Units of ReduceMax, ReduceMin and GlobalMaxPool.

use super::form::Former;
use super::unit::{Kind, Unit};
use crate::graph::{Graph, Node, Tensor};
use crate::refusal::{Refusal, refuse};

/// The dimensions that the operator reduces; all of them when `None`.
pub(super) fn axes(unit: &Former<'_>) -> Result<Option<Vec<i64>>, Refusal> {
    axes_of(unit.graph, unit.node())
}

/// The same of any `node`.
pub(super) fn axes_of(graph: &Graph, node: &Node) -> Result<Option<Vec<i64>>, Refusal> {
    let axes = match node.input(1) {
        None => node.ints("axes").map(<[i64]>::to_vec),
        Some(_) => match graph.constant(node, 1).and_then(Tensor::as_i64) {
            Some(axes) => Some(axes).filter(|axes| !axes.is_empty()),
            None => return refuse!(SHAPE, "{node} has axes that are not constant int64"),
        },
    };
    if axes.is_none() && node.int("noop_with_empty_axes").is_some_and(|noop| noop != 0) {
        return refuse!(ATTRIBUTE, "{node} reduces no axis; leave it out");
    }
    Ok(axes)
}

/// ReduceMax and ReduceMin. Codes keep the order of what they stand for, as in MaxPool.
pub(super) fn extreme(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let axes = axes(&unit)?;
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let least = node.op == "ReduceMin";
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    let table = input.requantise(output);
    Ok(unit.finish(value, Kind::Extreme { axes, keep, least, table }))
}

/// GlobalMaxPool.
pub(super) fn global_max_pool(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    // Those of an image; a tensor of another rank is refused with its shape.
    let (axes, table) = (Some(vec![2, 3]), input.requantise(output));
    Ok(unit.finish(value, Kind::Extreme { axes, keep: true, least: false, table }))
}
