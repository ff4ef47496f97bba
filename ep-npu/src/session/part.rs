//! One group of a plan as a graph of its own, as ONNX Runtime would cut it out.

use crate::graph::{Graph, GraphBuilder, GraphError, Node, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A graph of some nodes of another, and which of its values are its inputs and outputs.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) graph: Graph,
    /// Values of the whole graph that it reads, in the order in which its nodes do.
    pub(super) reads: Vec<ValueId>,
    /// Values of the whole graph that it writes and others read, in the order of its nodes.
    pub(super) writes: Vec<ValueId>,
}

impl Part {
    /// The part of `graph` that `nodes`, in topological order, are.
    pub(super) fn new(graph: &Graph, nodes: &[NodeId], name: &str) -> Result<Self, GraphError> {
        let inside: BTreeSet<NodeId> = nodes.iter().copied().collect();
        let (reads, writes) = ends(graph, nodes, &inside);
        let mut builder = GraphBuilder::new(name);
        let mut ids: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let mut id = |builder: &mut GraphBuilder, value: ValueId| {
            if let Some(&id) = ids.get(&value) {
                return Ok(id);
            }
            let whole = graph.value(value);
            let id = builder.value(&whole.name);
            if let Some(ty) = &whole.ty {
                builder.set_type(id, ty.clone());
            }
            if let Some(constant) = &whole.constant {
                builder.set_constant(id, constant.clone())?;
            }
            ids.insert(value, id);
            Ok::<_, GraphError>(id)
        };
        for &read in &reads {
            let id = id(&mut builder, read)?;
            builder.add_input(id);
        }
        for &node in nodes {
            let node = graph.node(node);
            let mut mapped = |values: &[Option<ValueId>]| {
                let values = values.iter().map(|value| match value {
                    Some(value) => id(&mut builder, *value).map(Some),
                    None => Ok(None),
                });
                values.collect::<Result<Vec<_>, _>>()
            };
            let (inputs, outputs) = (mapped(&node.inputs)?, mapped(&node.outputs)?);
            builder.add_node(Node { inputs, outputs, ..node.clone() })?;
        }
        for &write in &writes {
            let id = id(&mut builder, write)?;
            builder.add_output(id);
        }
        let mut part = builder.finish()?;
        part.set_exactness(graph.exactness());
        Ok(Self { graph: part, reads, writes })
    }
}

/// What crosses the border of `nodes`: in, and out.
fn ends(
    graph: &Graph,
    nodes: &[NodeId],
    inside: &BTreeSet<NodeId>,
) -> (Vec<ValueId>, Vec<ValueId>) {
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for &node in nodes {
        for &input in graph.node(node).inputs.iter().flatten() {
            let value = graph.value(input);
            let is_mine = value.producer.is_some_and(|producer| inside.contains(&producer));
            if value.constant.is_none() && !is_mine && seen.insert(input) {
                reads.push(input);
            }
        }
        for &output in graph.node(node).outputs.iter().flatten() {
            let mut readers = graph.value(output).consumers.iter();
            if graph.is_output(output) || readers.any(|reader| !inside.contains(reader)) {
                writes.push(output);
            }
        }
    }
    (reads, writes)
}
