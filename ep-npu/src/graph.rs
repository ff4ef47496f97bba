//! The graph that every importer ends in and every stage reads.
//!
//! Nodes are kept in a topological order; a value knows its producer and its consumers. A graph is
//! built through [`GraphBuilder`], which is the one place where it is validated; afterwards it is read.

mod apart;
mod builder;
mod tensor;

pub use self::builder::{GraphBuilder, GraphError};
pub use self::tensor::{Dim, ElementType, Tensor, TensorType, shape_text};

use crate::exactness::Exactness;
use std::collections::BTreeMap;
use std::fmt;

/// Index of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u32);

/// Index of a value; see [`Graph::value`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ValueId(pub u32);

/// An edge: a graph input, a constant, or the output of one node.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name in the model.
    pub name: String,
    /// Type, when the importer was told.
    pub ty: Option<TensorType>,
    /// The constant it holds, if it is one.
    pub constant: Option<Tensor>,
    /// The node that writes it; `None` for graph inputs and constants.
    pub producer: Option<NodeId>,
    /// The nodes that read it, each once per use.
    pub consumers: Vec<NodeId>,
    /// Whether it is an input of the graph.
    is_input: bool,
    /// Whether it is an output of the graph.
    is_output: bool,
}

/// Value of a node's attribute.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Attribute {
    /// `INT`
    Int(i64),
    /// `INTS`
    Ints(Vec<i64>),
    /// `FLOAT`
    Float(f32),
    /// `FLOATS`
    Floats(Vec<f32>),
    /// `STRING`, lossy when not UTF-8
    String(String),
    /// Any other kind: kept by name, read by no one.
    Other,
}

/// One operator.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name in the model; may be empty.
    pub name: String,
    /// Operator, as ONNX spells it.
    pub op: String,
    /// Domain; empty for ONNX.
    pub domain: String,
    /// Inputs; `None` for an absent optional one.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs; `None` for an absent optional one.
    pub outputs: Vec<Option<ValueId>>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// A graph; see the module.
#[derive(Clone, Debug)]
pub struct Graph {
    name: String,
    nodes: Vec<Node>,
    values: Vec<Value>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    exactness: Exactness,
}

impl Graph {
    /// Name of the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls it `name`.
    pub(crate) fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    /// Every node with its id, in topological order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        (0..).map(NodeId).zip(&self.nodes)
    }

    /// How near to the CPU provider's its results must be: what every stage goes by.
    pub fn exactness(&self) -> Exactness {
        self.exactness
    }

    /// Asks for results so near.
    pub fn set_exactness(&mut self, exactness: Exactness) {
        self.exactness = exactness;
    }

    /// Declares `values` graph outputs, too.
    pub(crate) fn expose(&mut self, values: impl IntoIterator<Item = ValueId>) {
        for value in values {
            self.values[value.0 as usize].is_output = true;
            self.outputs.push(value);
        }
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Number of values.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The value `id`.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// Graph inputs that are not constants, in order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Graph outputs, in order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Whether `value` is a graph output.
    pub fn is_output(&self, value: ValueId) -> bool {
        self.value(value).is_output
    }

    /// The constant that input `index` of `node` is, if it is one.
    pub fn constant(&self, node: &Node, index: usize) -> Option<&Tensor> {
        self.value(node.input(index)?).constant.as_ref()
    }
}

impl Node {
    /// Attribute `name`, when it is an integer.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// Attribute `name`, when it is a list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    /// Attribute `name`, when it is a float.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attributes.get(name) {
            Some(Attribute::Float(value)) => Some(*value),
            _ => None,
        }
    }

    /// Attribute `name`, when it is a string.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Attribute::String(value)) => Some(value),
            _ => None,
        }
    }

    /// Input `index`, when it is given.
    pub fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// Output `index`, when it is wanted.
    pub fn output(&self, index: usize) -> Option<ValueId> {
        self.outputs.get(index).copied().flatten()
    }

    /// Whether the operator is `op` of the ONNX domain.
    pub fn is(&self, op: &str) -> bool {
        self.op == op && matches!(self.domain.as_str(), "" | "ai.onnx")
    }
}

impl fmt::Display for Node {
    /// `Conv `conv1``: what messages call a node.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = || self.outputs.iter().flatten().next().map_or(u32::MAX, |value| value.0);
        match self.name.as_str() {
            "" => write!(f, "{} (unnamed, writes value {})", self.op, output()),
            name => write!(f, "{} `{name}`", self.op),
        }
    }
}
