//! Units that are taken for some lengths of an open batch, and not for others: a program is compiled when a
//! run comes, and then it is too late to leave the unit to the CPU.

use super::refuse_unit;
use crate::graph::{Graph, Node};
use crate::quantize::{Kind, Products, Unit, Units};
use crate::refusal::{Refusal, rule};
use crate::shape::{self, Shapes, bounded};

/// Refuses them. `one` and `other` are the shapes for two assignments of the open dimensions.
pub(super) fn refuse(graph: &Graph, units: &mut Units, one: &Shapes, other: &Shapes) {
    for index in 0..units.units.len() {
        let unit = &units.units[index];
        let node = graph.node(unit.target);
        let is_open = unit.inputs.iter().any(|value| one.get(value) != other.get(value));
        if !is_open || units.of_node[unit.target.0 as usize].is_err() {
            continue;
        }
        let checked = match &unit.kind {
            Kind::Product(products) if products.arithmetic.floats().is_some() => {
                check_rows(graph, node, unit, products, one, other)
            }
            _ if is_of_lengths(unit, one, other) => check_lengths(graph, node, unit, one, other),
            _ => Ok(()),
        };
        if let Err(refusal) = checked {
            refuse_unit(units, index, &refusal);
        }
    }
}

/// Holds a product in floats, whose order of sums follows from its rows, to all that it may have.
fn check_rows(
    graph: &Graph,
    node: &Node,
    unit: &Unit,
    products: &Products,
    one: &Shapes,
    other: &Shapes,
) -> Result<(), Refusal> {
    let rows = |shapes: &Shapes| {
        let shape = shapes.get(&unit.inputs[0])?;
        Some(shape.iter().rev().skip(1).product::<usize>())
    };
    let step = match (rows(one), rows(other)) {
        (Some(one), Some(other)) if one > 0 && other % one == 0 => one,
        _ => 1,
    };
    bounded::product_of_any_rows(graph, node, products, step)
}

/// Whether what can be refused of `unit` follows from a length that is open.
fn is_of_lengths(unit: &Unit, one: &Shapes, other: &Shapes) -> bool {
    let differ = |skipped: usize| {
        unit.inputs.iter().any(|value| {
            let behind = |shapes: &Shapes| {
                shapes.get(value).and_then(|s| s.get(skipped..).map(<[_]>::to_vec))
            };
            behind(one) != behind(other)
        })
    };
    match &unit.kind {
        // What a sum is over may be the batch itself.
        Kind::Sum(_) | Kind::Softmax { .. } => true,
        Kind::Conv { .. }
        | Kind::ConvTranspose { .. }
        | Kind::AveragePool { .. }
        | Kind::MaxPool { .. }
        | Kind::GlobalAveragePool { .. }
        | Kind::GlobalMean { .. }
        | Kind::Norm(_) => differ(1),
        _ => false,
    }
}

/// Tries lengths of an open dimension. Those that are too large for the device are left to the run that
/// has them.
fn check_lengths(
    graph: &Graph,
    node: &Node,
    unit: &Unit,
    one: &Shapes,
    other: &Shapes,
) -> Result<(), Refusal> {
    for times in (3..=64).chain((7..=12).map(|bits| 1 << bits)) {
        let longer = |value| {
            let lengths = one.get(value)?.iter().zip(other.get(value)?);
            Some(
                lengths
                    .map(|(&one, &other)| if one == other { one } else { one * times })
                    .collect(),
            )
        };
        let inputs: Option<Vec<Vec<usize>>> = unit.inputs.iter().map(longer).collect();
        let inputs = inputs.unwrap_or_default();
        let inputs: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
        match shape::outputs(graph, unit, &inputs) {
            Err(refusal) if refusal.rule != rule::SIZE => {
                let reason = format!(
                    "{}; that is so of a batch of {times}, and the batch of {node} is open; or give it a length",
                    refusal.reason
                );
                return Err(Refusal { reason, ..refusal });
            }
            _ => {}
        }
    }
    Ok(())
}
