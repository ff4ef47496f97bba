//! Units that make a fixed shape of an open batch, such as a maximum over it, or nothing of some batches:
//! for a batch of none the CPU provider has a value of its own there, and no program would write it.

use super::refuse_unit;
use crate::graph::{Dim, Graph, Node, ValueId};
use crate::quantize::{Carry, Kind, Rearrange, Unit, Units, axis_of};
use crate::refusal::{Refusal, refuse, rule};
use crate::shape::{self, Shapes};

/// Refuses them. `one` and `other` are the shapes for two assignments of the open dimensions.
pub(super) fn refuse(graph: &Graph, units: &mut Units, one: &Shapes, other: &Shapes) {
    let has_batch = graph.inputs().iter().any(|&input| is_open_of(graph, input));
    for index in 0..units.units.len() {
        let unit = &units.units[index];
        let is_open = |value: &ValueId| one.get(value) != other.get(value);
        if units.of_node[unit.target.0 as usize].is_err() {
            continue;
        }
        let node = graph.node(unit.target);
        if has_batch && let Err(refusal) = adds_to_the_first(node, unit, one, other) {
            refuse_unit(units, index, &refusal);
            continue;
        }
        if !unit.inputs.iter().any(is_open) {
            continue;
        }
        let refusal = if unit.outputs().any(|output| !is_open(&output)) {
            let reason = format!(
                "{node} makes a fixed shape of an open batch; give the batch a length, or keep it a dimension"
            );
            Some(Refusal::new(rule::SHAPE, reason))
        } else {
            takes_always(node, unit, one, other).and(grows_alike(graph, unit, one, other)).err()
        };
        if let Some(refusal) = refusal {
            refuse_unit(units, index, &refusal);
        }
    }
}

/// Whether dimension 0 of `value` is known only when the model runs.
fn is_open_of(graph: &Graph, value: ValueId) -> bool {
    let shape = graph.value(value).ty.as_ref().and_then(|ty| ty.shape.as_deref());
    matches!(shape, Some([Dim::Symbol(_), ..]))
}

/// Refuses what adds elements to dimension 0, also where its length is declared: a part of an open batch
/// that is declared to be one image is none of a batch of none.
fn adds_to_the_first(
    node: &Node,
    unit: &Unit,
    one: &Shapes,
    other: &Shapes,
) -> Result<(), Refusal> {
    let is_fixed = |value: &ValueId| {
        let first = |shapes: &Shapes| shapes.get(value).and_then(|shape| shape.first().copied());
        first(one) == first(other)
    };
    let adds = match (&unit.kind, one.get(&unit.inputs[0])) {
        (
            Kind::Pad { pads, .. }
            | Kind::Rearrange { how: Rearrange::Pad { pads, .. }, .. }
            | Kind::Carry(Carry::Rearrange(Rearrange::Pad { pads, .. })),
            Some(input),
        ) => pads.touch_the_first(node, input),
        (Kind::Concat { axis, .. }, Some(input)) => {
            axis_of(*axis, input.len()) == Some(0) && unit.inputs.iter().any(is_fixed)
        }
        _ => false,
    };
    if adds {
        return refuse!(
            SHAPE,
            "{node} adds elements to dimension 0 in a model whose batch is open, and would have some of a batch of none; \
             give the batch a length"
        );
    }
    Ok(())
}

/// Refuses what adds elements to an open dimension, as a Pad of it does: a batch of none has those, too.
fn grows_alike(graph: &Graph, unit: &Unit, one: &Shapes, other: &Shapes) -> Result<(), Refusal> {
    if is_slice(unit) || matches!(unit.kind, Kind::Split { .. } | Kind::Carry(Carry::Split { .. }))
    {
        return Ok(());
    }
    let doubled = |value: &ValueId| -> Option<Vec<usize>> {
        let lengths = one.get(value)?.iter().zip(other.get(value)?);
        Some(lengths.map(|(&one, &other)| if one == other { one } else { 2 * one }).collect())
    };
    let inputs: Option<Vec<Vec<usize>>> = unit.inputs.iter().map(doubled).collect();
    let inputs = inputs.unwrap_or_default();
    let inputs: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
    // What no batch of two can have, others refuse.
    let Ok(twos) = shape::outputs(graph, unit, &inputs) else { return Ok(()) };
    for (output, two) in unit.outputs().zip(twos) {
        let lengths = one.get(&output).into_iter().flatten().zip(two);
        if let Some((one, two)) =
            lengths.into_iter().find(|&(&one, two)| two != one && two != 2 * one)
        {
            let node = graph.node(unit.target);
            return refuse!(
                SHAPE,
                "{node} makes {one} of an open dimension for a batch of 1, and {two} for 2: it would have elements for a \
                 batch of none; give the batch a length"
            );
        }
    }
    Ok(())
}

fn is_slice(unit: &Unit) -> bool {
    matches!(
        &unit.kind,
        Kind::Rearrange { how: Rearrange::Slice { .. }, .. }
            | Kind::Carry(Carry::Rearrange(Rearrange::Slice { .. }))
    )
}

/// Refuses a slice of an open dimension that is empty at some length of it. One end may be counted from
/// the front and one from the back, so that they meet only where the dimension is long.
fn takes_always(node: &Node, unit: &Unit, one: &Shapes, other: &Shapes) -> Result<(), Refusal> {
    let (Kind::Rearrange { how, .. } | Kind::Carry(Carry::Rearrange(how))) = &unit.kind else {
        return Ok(());
    };
    let input = unit.inputs[0];
    let (Rearrange::Slice { .. }, Some(one), Some(other)) =
        (how, one.get(&input), other.get(&input))
    else {
        return Ok(());
    };
    let open = (0..one.len()).filter(|&axis| one[axis] != other[axis]);
    for axis in open {
        for length in (1..64).chain((6..32).map(|bits| 1 << bits)) {
            let mut shape = one.clone();
            shape[axis] = length;
            if how.steps(node, &shape).is_err() {
                return refuse!(
                    SHAPE,
                    "{node} takes nothing of an open dimension {axis} of length {length}; give it a length, or both \
                     ends from one side"
                );
            }
        }
    }
    Ok(())
}
