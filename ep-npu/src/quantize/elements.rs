//! Units that only change a shape.

use super::carry::{self, Carry};
use super::form::Former;
use super::unit::{Kind, ShapeChange, Unit};
use crate::graph::Tensor;
use crate::refusal::{Refusal, refuse};

/// Flatten.
pub(super) fn flatten(unit: Former<'_>) -> Result<Unit, Refusal> {
    let axis = unit.node().int("axis").unwrap_or(1);
    reshaped(unit, ShapeChange::Flatten(axis))
}

/// Reshape to a constant shape.
pub(super) fn reshape(unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let Some(shape) = unit.graph.constant(node, 1).and_then(Tensor::as_i64) else {
        return refuse!(SHAPE, "{node} has a shape that is not constant int64");
    };
    let zero_copies = node.int("allowzero").unwrap_or(0) == 0;
    reshaped(unit, ShapeChange::To { shape, zero_copies })
}

/// Squeeze.
pub(super) fn squeeze(unit: Former<'_>) -> Result<Unit, Refusal> {
    let axes = axes(&unit)?;
    reshaped(unit, ShapeChange::Squeeze(axes))
}

/// Unsqueeze.
pub(super) fn unsqueeze(unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    match axes(&unit)? {
        Some(axes) => reshaped(unit, ShapeChange::Unsqueeze(axes)),
        None => refuse!(ATTRIBUTE, "{node} has no axes"),
    }
}

fn axes(unit: &Former<'_>) -> Result<Option<Vec<i64>>, Refusal> {
    let node = unit.node();
    if node.input(1).is_none() {
        return Ok(node.ints("axes").map(<[i64]>::to_vec));
    }
    match unit.graph.constant(node, 1).and_then(Tensor::as_i64) {
        Some(axes) => Ok(Some(axes)),
        None => refuse!(SHAPE, "{node} has axes that are not constant int64"),
    }
}

fn reshaped(mut unit: Former<'_>, shape: ShapeChange) -> Result<Unit, Refusal> {
    if let Some((input, output)) = carry::ends(unit.graph, unit.node()) {
        unit.reads(input);
        return Ok(unit.finish(output, Kind::Carry(Carry::Reshape(shape))));
    }
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    Ok(unit.finish(value, Kind::Reshape { shape, table: input.requantise(output) }))
}
