//! int8 tensors at the border of a group: parted, they stay int8, which may change what the CPU provider
//! computes around them, and with it what is to be equalled.

use super::bounds::{Assigned, Parted};
use super::group::{self, Group};
use super::refuse_unit;
use crate::exactness::Exactness;
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::quantize::{self, Units};
use crate::refusal::{Refusal, rule};
use std::collections::BTreeSet;

/// The int8 tensors at borders of groups that would have become uint8, and what they change.
pub(super) struct Borders {
    /// The tensors.
    pub(super) values: BTreeSet<ValueId>,
    /// Operators that are computed otherwise beside them, each within one code.
    pub(super) bounded: BTreeSet<NodeId>,
    /// Units that would have to go for others.
    refused: Vec<(usize, Refusal)>,
}

/// Refuses units that stand at such a border, where the arithmetic of an operator on either side would
/// be another. Gives whether there were any.
pub(super) fn refuse(
    graph: &Graph,
    units: &mut Units,
    groups: &[Group],
    shapes: Assigned<'_>,
) -> bool {
    let refused = borders(graph, units, groups, shapes).refused;
    for (unit, refusal) in &refused {
        refuse_unit(units, *unit, refusal);
    }
    !refused.is_empty()
}

/// Looks at the borders of `groups`.
///
/// This is the CPU provider's own rule, of the whole graph and of what it would be left with.
pub(super) fn borders(
    graph: &Graph,
    units: &Units,
    groups: &[Group],
    shapes: Assigned<'_>,
) -> Borders {
    let group_of = group::of_units(groups, units.units.len());
    let owner = |node: NodeId| {
        let unit = units.of_node[node.0 as usize].as_ref().ok()?;
        group_of[*unit]
    };
    let mut cuts: Vec<(ValueId, NodeId, NodeId)> = Vec::new();
    for (writer, node) in graph.nodes() {
        let Some(value) = node.output(0).filter(|&v| quantize::becomes_unsigned(graph, v)) else {
            continue;
        };
        let reader = graph.value(value).consumers[0];
        if owner(writer) != owner(reader) {
            cuts.push((value, writer, reader));
        }
    }
    let values: BTreeSet<ValueId> = cuts.iter().map(|&(value, ..)| value).collect();
    let (mut bounded, mut refused) = (BTreeSet::new(), Vec::new());
    let mut parted = None;
    for &(value, writer, reader) in &cuts {
        let changes = |&operator: &NodeId| {
            let whole = quantize::way(graph, operator, &|_| false);
            whole != quantize::way(graph, operator, &|value| values.contains(&value))
        };
        let mut is_borne = |operator: &NodeId| {
            if graph.exactness() == Exactness::Require {
                return false;
            }
            let whole = units.around(*operator);
            let parted = parted.get_or_insert_with(|| Parted::new(graph, &values));
            whole.is_some_and(|whole| parted.is_within_a_code(whole, shapes))
        };
        let first = quantize::writer(graph, value).unwrap_or(writer);
        let last = quantize::readers(graph, value).first().copied().unwrap_or(reader);
        let changed: Vec<NodeId> = beside(graph, first, last).into_iter().filter(changes).collect();
        let Some(&operator) = changed.iter().find(|operator| !is_borne(operator)) else {
            bounded.extend(changed);
            continue;
        };
        let taken = [reader, writer].into_iter().find(|&node| owner(node).is_some());
        let taken = taken.expect("a cut has a group on one side at least");
        let unit = units.of_node[taken.0 as usize].as_ref().copied();
        refused.extend(unit.map(|unit| (unit, reason(graph, value, operator))));
    }
    Borders { values, bounded, refused }
}

/// The operators on either side of `writer`, a QuantizeLinear, and `reader`, a DequantizeLinear.
fn beside(graph: &Graph, writer: NodeId, reader: NodeId) -> Vec<NodeId> {
    let before = |node: &Node| graph.value(node.input(0)?).producer;
    let mut operators = Vec::new();
    let mut operator = before(graph.node(writer));
    while let Some(id) = operator {
        operators.push(id);
        let node = graph.node(id);
        operator = (node.is("Relu") || node.is("Clip")).then(|| before(node)).flatten();
    }
    let floats = graph.node(reader).output(0);
    operators.extend(floats.iter().flat_map(|&value| &graph.value(value).consumers));
    operators
}

fn reason(graph: &Graph, value: ValueId, operator: NodeId) -> Refusal {
    let (name, node) = (&graph.value(value).name, graph.node(operator));
    Refusal::new(
        rule::S8_ACTIVATIONS,
        format!(
            "`{name}` is int8, and its ends are not both taken; the CPU turns it into uint8 only when it has both, \
             and computes {node} otherwise if not; quantise activations as uint8, or set `exactness=bounded`, which bears \
             what stays within one code"
        ),
    )
}
