//! Operators that stay with the CPU and compute other values in another layout.
//!
//! The CPU provider turns its 8-bit convolutions to channels-last and then moves transpositions through the
//! graph, as far as they meet others: a cubic Resize computes other values there, and a linear one that keeps
//! rows; and a float sum adds in another order. It does so only when it has such a convolution, or what lets transpositions pass on the
//! CPU alone, and each node that is taken bars the way. So what may change such an operator stays beside it.

use super::refuse_unit;
use crate::graph::{ElementType, Graph, Node, NodeId, ValueId};
use crate::quantize::{self, Arithmetic, Kind, Sum, Units};
use crate::refusal::{Refusal, rule};
use crate::shape::{Shapes, rows};
use std::collections::BTreeSet;

/// Refuses all units that may change an operator which is left. Gives whether there were any.
pub(super) fn refuse(graph: &Graph, units: &mut Units, shapes: &Shapes) -> bool {
    let has_turned = graph.nodes().any(|(_, node)| is_turned(node));
    let is_left = |id: NodeId| units.of_node[id.0 as usize].is_err();
    let found: Vec<NodeId> = graph
        .nodes()
        .filter(|&(id, node)| is_left(id) && is_sensitive(graph, node))
        .filter(|&(id, node)| !adds_in_any_order(units, id, node, shapes))
        .map(|(id, _)| id)
        .collect();
    let mut any = false;
    let mut known: BTreeSet<NodeId> = BTreeSet::new();
    for id in found {
        // What is around one is around all that are around it.
        if known.contains(&id) {
            continue;
        }
        let near = around(graph, id);
        known.extend(&near);
        // Without any of these, nothing is moved behind the stage at which nodes are taken.
        if !has_turned && !near.iter().any(|&id| lets_transpositions_pass(graph.node(id))) {
            continue;
        }
        let keeps_turning = near.iter().any(|&id| is_surely_turned(units, id));
        let node = graph.node(id);
        let reason = format!(
            "{node} stays on the CPU and stands between operators whose transpositions the CPU provider may move \
             through it, which changes its values; what decides on that stays with it: {}",
            way_out(node)
        );
        let refusal = Refusal::new(rule::FLOAT_ORDER, reason);
        let turned = graph.nodes().filter(|(_, node)| !keeps_turning && is_turned(node));
        for other in turned.map(|(id, _)| id).chain(near) {
            if let &Ok(unit) = &units.of_node[other.0 as usize] {
                refuse_unit(units, unit, &refusal);
                any = true;
            }
        }
    }
    any
}

/// Whether the CPU provider's result of `node` depends on the order of its dimensions, and transpositions
/// may come through it.
fn is_sensitive(graph: &Graph, node: &Node) -> bool {
    const SUMS: [&str; 8] = [
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceProd",
    ];
    let (Some(source), Some(result)) = (node.input(0), node.output(0)) else { return false };
    if is_cubic(node) || quantize::keeps_rows_only(graph, node) {
        // A pool of codes has channels last, too, where it may.
        return quantize::comes_from_one(graph, source)
            && (quantize::leads_to_one(graph, result) || leads_to_a_pool(graph, result));
    }
    let is_float = |value: ValueId| {
        graph.value(value).ty.as_ref().is_none_or(|ty| ty.element == ElementType::F32)
    };
    SUMS.iter().any(|sum| node.is(sum))
        && is_float(source)
        && quantize::comes_from_one(graph, source)
        && quantize::leads_to_one(graph, result)
}

fn is_cubic(node: &Node) -> bool {
    node.is("Resize") && node.string("mode") == Some("cubic")
}

fn leads_to_a_pool(graph: &Graph, result: ValueId) -> bool {
    let pools = ["MaxPool", "AveragePool", "GlobalAveragePool"];
    let behind = |node: &Node| -> Vec<NodeId> {
        let values = node.outputs.iter().flatten();
        values.flat_map(|&value| graph.value(value).consumers.clone()).collect()
    };
    let first = graph.value(result).consumers.clone();
    reached(graph, first, behind).iter().any(|&id| pools.iter().any(|op| graph.node(id).is(op)))
}

/// Whether `id` is a sum that is left for another reason, and comes to the same codes in any order.
fn adds_in_any_order(units: &Units, id: NodeId, node: &Node, shapes: &Shapes) -> bool {
    units.around(id).is_some_and(|unit| match &unit.kind {
        Kind::Sum(sum) => {
            let exposed = Sum { is_exposed: true, ..sum.clone() };
            let shape = shapes.get(&unit.inputs[0]);
            shape.is_some_and(|shape| rows::of_sum(node, &exposed, shape).is_ok())
        }
        _ => false,
    })
}

/// Whether the CPU provider may have it channels-last.
fn is_turned(node: &Node) -> bool {
    node.is("Conv") || node.op == "QLinearConv"
}

/// Whether transpositions pass it only once it is the CPU provider's.
fn lets_transpositions_pass(node: &Node) -> bool {
    node.is("Resize") || node.is("MaxPool")
}

/// Whether `id` is of a convolution that the CPU provider computes on codes.
fn is_surely_turned(units: &Units, id: NodeId) -> bool {
    units.around(id).is_some_and(|unit| match &unit.kind {
        Kind::Conv { products, .. } => matches!(products.arithmetic, Arithmetic::Integer),
        _ => false,
    })
}

/// All that transpositions around `id` may come from, go to, or pass on their way, in whatever direction.
fn around(graph: &Graph, id: NodeId) -> BTreeSet<NodeId> {
    let both = |node: &Node| -> Vec<NodeId> {
        let read = node.inputs.iter().flatten().map(|&value| graph.value(value));
        let read = read.filter(|value| value.constant.is_none());
        let written = node.outputs.iter().flatten().map(|&value| graph.value(value));
        // Whoever else reads what `node` reads has its part in where that is turned.
        let beside =
            read.flat_map(|value| value.producer.into_iter().chain(value.consumers.clone()));
        beside.chain(written.flat_map(|value| value.consumers.clone())).collect()
    };
    reached(graph, vec![id], both)
}

/// `from` and all nodes that some steps of `next` lead to, but not through what no transposition passes.
fn reached(
    graph: &Graph,
    from: Vec<NodeId>,
    next: impl Fn(&Node) -> Vec<NodeId>,
) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::new();
    let mut open = from;
    while let Some(id) = open.pop() {
        if found.insert(id) && !quantize::stops_transpositions(graph.node(id)) {
            open.extend(next(graph.node(id)));
        }
    }
    found
}

/// What the model could have instead.
fn way_out(node: &Node) -> &'static str {
    if is_cubic(node) {
        "make it linear or nearest"
    } else if node.is("Resize") {
        "resize rows as well as columns, or make it nearest"
    } else {
        "quantise what it reads and what it writes, or use a GlobalAveragePool"
    }
}
