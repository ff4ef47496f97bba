//! Cubic Resize between convolutions: the CPU provider turns such a stretch to channels-last as a whole,
//! and its cubic Resize computes other values there. Taken apart, or run elsewhere, it would not.

use super::refuse_unit;
use crate::graph::{Graph, Node, NodeId};
use crate::quantize::Units;
use crate::refusal::{Refusal, rule};
use std::collections::BTreeSet;

/// Refuses all that is before or behind such a node, and the node.
pub(super) fn refuse(graph: &Graph, units: &mut Units) {
    for (id, node) in graph.nodes().filter(|(_, node)| is_cubic(node)) {
        let before = reached(graph, id, |node| {
            let values = node.inputs.iter().flatten();
            values.filter_map(|&value| graph.value(value).producer).collect()
        });
        let after = reached(graph, id, |node| {
            let values = node.outputs.iter().flatten();
            values.flat_map(|&value| graph.value(value).consumers.clone()).collect()
        });
        let turns = |nodes: &BTreeSet<NodeId>| nodes.iter().any(|&id| turns(graph.node(id)));
        if !turns(&before) || !turns(&after) {
            continue;
        }
        let reason = format!(
            "{node} is cubic and stands between convolutions, where the CPU computes it in an order of its own; use linear or nearest"
        );
        let refusal = Refusal::new(rule::FLOAT_ORDER, reason);
        for &near in before.iter().chain(&after).chain([&id]) {
            if let Ok(unit) = units.of_node[near.0 as usize].as_ref().copied() {
                refuse_unit(units, unit, &refusal);
            }
        }
    }
}

fn is_cubic(node: &Node) -> bool {
    node.is("Resize") && node.string("mode") == Some("cubic")
}

/// Whether the CPU provider has it channels-last.
fn turns(node: &Node) -> bool {
    ["Conv", "MaxPool", "AveragePool", "GlobalAveragePool"].iter().any(|op| node.is(op))
}

/// All nodes that some steps of `next` lead to.
fn reached(graph: &Graph, from: NodeId, next: impl Fn(&Node) -> Vec<NodeId>) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::new();
    let mut open = next(graph.node(from));
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(next(graph.node(id)));
        }
    }
    found
}
