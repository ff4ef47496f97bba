//! The graph that every importer ends in and every stage reads.
//!
//! Nodes are kept in a topological order; a value knows its producer and its consumers. A graph is
//! built through [`GraphBuilder`], which is the one place where it is validated; afterwards it is read.

mod apart;

use crate::exactness::Exactness;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;

/// Index of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u32);

/// Index of a value; see [`Graph::value`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ValueId(pub u32);

/// Element types that the importers know; numbers are ONNX's `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ElementType {
    /// `float`
    F32,
    /// `uint8`
    U8,
    /// `int8`
    I8,
    /// `int32`
    I32,
    /// `int64`
    I64,
    /// Any other, by its ONNX number: imported, never taken.
    Other(u32),
}

/// One dimension of a shape.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Dim {
    /// A length.
    Known(usize),
    /// Known only when the model runs; the name is empty when the model gives none.
    Symbol(String),
}

/// A constant: shape and bytes, row-major, little-endian.
#[derive(Clone, Eq, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub element: ElementType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// `shape.product()` elements; a view of the model's file where that is mapped.
    pub bytes: Bytes,
}

/// What is known of a tensor that flows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TensorType {
    /// Element type.
    pub element: ElementType,
    /// Shape; `None` when the rank is unknown.
    pub shape: Option<Vec<Dim>>,
}

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
        self.outputs.extend(values);
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
        self.outputs.contains(&value)
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

    fn graph(&mut self) -> &mut Graph {
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
        self.graph().inputs.push(value);
    }

    /// Declares `value` a graph output.
    pub fn add_output(&mut self, value: ValueId) {
        self.graph().outputs.push(value);
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
            let given = graph.inputs.contains(&input);
            let value = &mut graph.values[input.0 as usize];
            if value.producer.is_none() && value.constant.is_none() && !given {
                let (value, node) = (value.name.clone(), node.name.clone());
                return Err(GraphError::ReadBeforeWritten { value, node });
            }
            value.consumers.push(id);
        }
        for &output in node.outputs.iter().flatten() {
            let given = graph.inputs.contains(&output);
            let value = &mut graph.values[output.0 as usize];
            if value.producer.is_some() || value.constant.is_some() || given {
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
            let given = graph.inputs.contains(&output) || value.constant.is_some();
            if value.producer.is_none() && !given {
                return Err(GraphError::NoSuchOutput { value: value.name.clone() });
            }
        }
        Ok(graph)
    }
}

impl ElementType {
    /// From ONNX's number.
    pub fn from_onnx(code: u32) -> Self {
        match code {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            6 => Self::I32,
            7 => Self::I64,
            other => Self::Other(other),
        }
    }

    /// ONNX's number.
    pub fn onnx(self) -> u32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Other(code) => code,
        }
    }

    /// Bytes of an element; `None` for a type that is not read.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Self::F32 | Self::I32 => Some(4),
            Self::U8 | Self::I8 => Some(1),
            Self::I64 => Some(8),
            Self::Other(_) => None,
        }
    }
}

/// `[batch, 3, 224, 224]`: a shape as messages write it; `?` is an open dimension without a name.
pub fn shape_text(shape: &[Dim]) -> String {
    let dims = shape.iter().map(|dim| match dim {
        Dim::Known(length) => length.to_string(),
        Dim::Symbol(symbol) if symbol.is_empty() => "?".to_owned(),
        Dim::Symbol(symbol) => symbol.clone(),
    });
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("float32"),
            Self::U8 => f.write_str("uint8"),
            Self::I8 => f.write_str("int8"),
            Self::I32 => f.write_str("int32"),
            Self::I64 => f.write_str("int64"),
            Self::Other(code) => write!(f, "onnx type {code}"),
        }
    }
}

impl Tensor {
    /// Bytes of its shape; `None` for a type that is not read, or a shape that overflows.
    pub(crate) fn expected_bytes(&self) -> Option<usize> {
        let count = self.shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len))?;
        count.checked_mul(self.element.bytes()?)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, when it holds `float32`.
    pub fn as_f32(&self) -> Option<Vec<f32>> {
        (self.element == ElementType::F32)
            .then(|| self.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    /// The elements, when it holds `int32`.
    pub fn as_i32(&self) -> Option<Vec<i32>> {
        (self.element == ElementType::I32)
            .then(|| self.bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect())
    }

    /// The elements, when it holds `int64`.
    pub fn as_i64(&self) -> Option<Vec<i64>> {
        (self.element == ElementType::I64)
            .then(|| self.bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.element, self.shape)
    }
}
