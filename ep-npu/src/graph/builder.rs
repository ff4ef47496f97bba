//! Builds a graph from names, and refuses what is none.

use super::{Dim, Graph, Node, NodeId, Tensor, TensorType, Value, ValueId};
use crate::exactness::Exactness;
use std::collections::BTreeMap;

/// Why a description is not a graph.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Two nodes write one value, or a node writes an input or a constant.
    #[error("value `{value}` is written by node `{node}` and by something before it")]
    WrittenTwice {
        /// The value.
        value: String,
        /// The later writer.
        node: String,
    },
    /// A node reads what no earlier node writes.
    #[error("node `{node}` reads `{value}`, which nothing before it writes")]
    ReadBeforeWritten {
        /// The value.
        value: String,
        /// The reader.
        node: String,
    },
    /// A constant's bytes do not fill its shape.
    #[error("constant `{value}` has {found} bytes, its shape asks for {want}")]
    ConstantSize {
        /// The value.
        value: String,
        /// Bytes given.
        found: usize,
        /// Bytes of the shape.
        want: usize,
    },
    /// A graph output is neither written nor given.
    #[error("graph output `{value}` is written by no node")]
    NoSuchOutput {
        /// The value.
        value: String,
    },
}

/// Builds a [`Graph`], nodes in topological order.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    graph: Option<Graph>,
    by_name: BTreeMap<String, ValueId>,
}

impl GraphBuilder {
    /// An empty graph called `name`.
    pub fn new(name: &str) -> Self {
        let graph = Graph {
            name: name.to_owned(),
            nodes: Vec::new(),
            values: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            exactness: Exactness::default(),
        };
        Self { graph: Some(graph), by_name: BTreeMap::new() }
    }

    pub(super) fn graph(&mut self) -> &mut Graph {
        self.graph
            .as_mut()
            .expect("the graph is taken by `finish` only, which consumes the builder")
    }

    /// The value called `name`, made on first mention.
    pub fn value(&mut self, name: &str) -> ValueId {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let values = &mut self.graph().values;
        let id = ValueId(u32::try_from(values.len()).expect("a model has fewer than 2^32 values"));
        values.push(Value {
            name: name.to_owned(),
            ty: None,
            constant: None,
            producer: None,
            consumers: Vec::new(),
            is_input: false,
            is_output: false,
        });
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// Says what is known of `value`.
    pub fn set_type(&mut self, value: ValueId, ty: TensorType) {
        self.graph().values[value.0 as usize].ty = Some(ty);
    }

    /// Declares `value` a graph input.
    pub fn add_input(&mut self, value: ValueId) {
        let graph = self.graph();
        graph.values[value.0 as usize].is_input = true;
        graph.inputs.push(value);
    }

    /// Declares `value` a graph output.
    pub fn add_output(&mut self, value: ValueId) {
        self.graph().expose([value]);
    }

    /// Gives `value` a constant.
    pub fn set_constant(&mut self, value: ValueId, tensor: Tensor) -> Result<(), GraphError> {
        let want = tensor.expected_bytes();
        let found = tensor.bytes.len();
        let name = &self.graph().values[value.0 as usize].name;
        if want.is_some_and(|want| want != found) {
            let value = name.clone();
            return Err(GraphError::ConstantSize { value, found, want: want.unwrap_or_default() });
        }
        let ty = TensorType {
            element: tensor.element,
            shape: Some(tensor.shape.iter().map(|&len| Dim::Known(len)).collect()),
        };
        let slot = &mut self.graph().values[value.0 as usize];
        slot.ty = Some(ty);
        slot.constant = Some(tensor);
        Ok(())
    }

    /// Appends `node`, whose inputs are graph inputs, constants or outputs of nodes before it.
    pub fn add_node(&mut self, node: Node) -> Result<NodeId, GraphError> {
        let graph = self.graph();
        let id =
            NodeId(u32::try_from(graph.nodes.len()).expect("a model has fewer than 2^32 nodes"));
        for &input in node.inputs.iter().flatten() {
            let value = &mut graph.values[input.0 as usize];
            if value.producer.is_none() && value.constant.is_none() && !value.is_input {
                let (value, node) = (value.name.clone(), node.name.clone());
                return Err(GraphError::ReadBeforeWritten { value, node });
            }
            value.consumers.push(id);
        }
        for &output in node.outputs.iter().flatten() {
            let value = &mut graph.values[output.0 as usize];
            if value.producer.is_some() || value.constant.is_some() || value.is_input {
                let (value, node) = (value.name.clone(), node.name.clone());
                return Err(GraphError::WrittenTwice { value, node });
            }
            value.producer = Some(id);
        }
        graph.nodes.push(node);
        Ok(id)
    }

    /// The finished graph.
    pub fn finish(mut self) -> Result<Graph, GraphError> {
        let graph = self.graph.take().expect("`finish` consumes the builder");
        for &output in &graph.outputs {
            let value = graph.value(output);
            let given = value.is_input || value.constant.is_some();
            if value.producer.is_none() && !given {
                return Err(GraphError::NoSuchOutput { value: value.name.clone() });
            }
        }
        Ok(graph)
    }
}
