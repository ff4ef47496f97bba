//! Tensors of codes that are one to the CPU provider: it takes a DequantizeLinear and the QuantizeLinear of
//! the same scale and zero point behind it away, where nothing is left between them.
//!
//! ```text
//! x -> DQ -> Relu -> Q -> y     y is x, where y's codes hold nothing below zero
//! ```
//!
//! That counts for int8 tensors, whose type follows from who writes and who reads them. An output of the
//! graph is written by a QuantizeLinear of its own, so that y is not x where the graph shows y.

use super::codes::Codes;
use super::form::{is_dequantize, is_quantize, is_taken_away};
use crate::graph::{ElementType, Graph, NodeId, ValueId};

/// Most tensors that are looked through; a chain of more is none that a model has.
const MOST: usize = 64;

/// The tensor whose codes `value`, an int8 tensor, has without a change, if it is written from one.
fn source(graph: &Graph, value: ValueId) -> Option<ValueId> {
    if graph.is_output(value) {
        return None;
    }
    let writer = graph.node(graph.value(value).producer?);
    let mut floats = writer.input(0).filter(|_| is_quantize(writer))?;
    let mut before = graph.node(graph.value(floats).producer?);
    if (before.is("Relu") || before.is("Clip")) && is_taken_away(graph, before) {
        floats = before.input(0)?;
        before = graph.node(graph.value(floats).producer?);
    }
    let is_between = graph.value(floats).consumers.len() == 1 && !graph.is_output(floats);
    let is_same = is_between
        && is_dequantize(before)
        && [before, writer].iter().all(|node| {
            graph.constant(node, 2).is_some_and(|zero| zero.element == ElementType::I8)
        })
        && Codes::read(graph, before).ok()? == Codes::read(graph, writer).ok()?;
    before.input(0).filter(|_| is_same)
}

/// The tensor that `value` is to the CPU provider, and the DequantizeLinear nodes that read it there; `None`
/// where some of what it is stands for itself, as outputs do.
pub(super) fn whole(graph: &Graph, value: ValueId) -> Option<(ValueId, Vec<NodeId>)> {
    let mut first = value;
    for step in 0.. {
        match source(graph, first) {
            Some(_) if step == MOST => return None,
            Some(before) => first = before,
            None => break,
        }
    }
    let (mut open, mut readers) = (vec![first], Vec::new());
    for step in 0.. {
        let Some(value) = open.pop() else { break };
        if graph.is_output(value) || step == 2 * MOST {
            return None;
        }
        for &reader in &graph.value(value).consumers {
            match same_behind(graph, value, reader) {
                Some(next) => open.push(next),
                None => readers.push(reader),
            }
        }
    }
    Some((first, readers))
}

/// The tensor that `reader`, a DequantizeLinear of `value`, leads to without a change.
fn same_behind(graph: &Graph, value: ValueId, reader: NodeId) -> Option<ValueId> {
    let only = |value: ValueId| match graph.value(value).consumers.as_slice() {
        &[reader] => Some(graph.node(reader)),
        _ => None,
    };
    let mut node = only(graph.node(reader).output(0)?)?;
    if node.is("Relu") || node.is("Clip") {
        node = only(node.output(0)?)?;
    }
    let result = node.output(0).filter(|_| is_quantize(node))?;
    (source(graph, result) == Some(value)).then_some(result)
}
