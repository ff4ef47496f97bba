//! A model as its file has it, checked: what the canonical form is made from.
//!
//! Names still are strings here, nodes are in the file's order, and nothing has been folded.

use super::defaults;
use super::error::Fault;
use super::external::Beside;
use super::proto::{self, attribute_type as kind};
use super::tensor;
use crate::graph::{Attribute, Dim, ElementType, Tensor, TensorType};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Nodes that a model may have; no real one has a tenth of it.
const MOST_NODES: usize = 1 << 20;
/// The first version of the format whose initializers need not be graph inputs too.
const INPUTS_APART: i64 = 4;

/// A model under import.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) name: String,
    /// Inputs, in order, without those that are constants.
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    pub(super) types: HashMap<String, TensorType>,
    pub(super) constants: HashMap<String, Tensor>,
    pub(super) nodes: Vec<Node>,
}

/// A node under import.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Place in the file; nodes that the importer makes come behind.
    pub(super) position: usize,
    pub(super) name: String,
    pub(super) op: String,
    pub(super) domain: String,
    /// Names; empty for an absent one. Those that bodies of the node read come last.
    pub(super) inputs: Vec<String>,
    /// Names; empty for an absent one.
    pub(super) outputs: Vec<String>,
    pub(super) attributes: BTreeMap<String, Attribute>,
    /// The tensor of a Constant.
    pub(super) constant: Option<Tensor>,
}

impl Node {
    /// Whether the operator is `op` of the ONNX domain.
    pub(super) fn is(&self, op: &str) -> bool {
        self.op == op && matches!(self.domain.as_str(), "" | "ai.onnx")
    }

    /// `Conv `conv1``, as messages name it.
    pub(super) fn what(&self) -> String {
        if self.name.is_empty() {
            let output = self.outputs.first().map_or("nothing", String::as_str);
            return format!("node {} that writes `{output}`", self.op);
        }
        format!("node `{}` ({})", self.name, self.op)
    }
}

/// Reads `model`.
pub(super) fn read(model: &proto::Model, beside: &mut Beside) -> Result<Draft, Fault> {
    let Some(graph) = &model.graph else {
        return Err(Fault::Missing { field: "ModelProto.graph" });
    };
    let is_onnx = |set: &&proto::OperatorSet| matches!(set.domain(), "" | "ai.onnx");
    let version = model.opset_import.iter().find(is_onnx).and_then(|set| set.version);
    let Some(opset) = version else {
        return Err(Fault::Missing { field: "ModelProto.opset_import of the ONNX domain" });
    };
    if graph.node.len() > MOST_NODES {
        let want = format!("at most {MOST_NODES} are read");
        return Err(Fault::field("graph", "node", graph.node.len(), want));
    }
    let mut draft = Draft {
        name: graph.name().to_owned(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        types: HashMap::new(),
        constants: HashMap::new(),
        nodes: Vec::new(),
    };
    draft.constants(graph, beside)?;
    draft.ends(graph, model.ir_version() < INPUTS_APART)?;
    for (position, node) in graph.node.iter().enumerate() {
        let node = read_node(node, position, opset, beside)?;
        draft.nodes.push(node);
    }
    Ok(draft)
}

impl Draft {
    fn constants(&mut self, graph: &proto::Graph, beside: &mut Beside) -> Result<(), Fault> {
        for found in &graph.initializer {
            let name = found.name();
            let constant = tensor::tensor(name, found, beside)?;
            if self.constants.insert(name.to_owned(), constant).is_some() {
                return Err(Fault::Twice { what: "initializer", name: name.to_owned() });
            }
        }
        for sparse in &graph.sparse_initializer {
            let name = sparse.values.as_ref().map(proto::Tensor::name).unwrap_or_default();
            let whose = || format!("sparse initializer `{name}`");
            let shape = tensor::shape(&sparse.dims, whose)?;
            // Kept by name and shape: no rule reads one.
            let element = ElementType::Other(0);
            let constant = Tensor { element, shape, bytes: bytes::Bytes::new() };
            if self.constants.insert(name.to_owned(), constant).is_some() {
                return Err(Fault::Twice { what: "initializer", name: name.to_owned() });
            }
        }
        Ok(())
    }

    /// Inputs, outputs and the types that are declared.
    fn ends(&mut self, graph: &proto::Graph, inputs_have_constants: bool) -> Result<(), Fault> {
        for info in graph.value_info.iter().chain(&graph.output).chain(&graph.input) {
            if let Some(ty) = declared(info)? {
                self.types.insert(info.name().to_owned(), ty);
            }
        }
        let mut seen = HashSet::new();
        for info in &graph.input {
            let name = info.name();
            if name.is_empty() {
                return Err(Fault::Missing { field: "the name of a graph input" });
            }
            if !seen.insert(name) {
                return Err(Fault::Twice { what: "graph input", name: name.to_owned() });
            }
            // Newer formats list an initializer among the inputs to let a caller override it.
            match self.constants.contains_key(name) {
                true if inputs_have_constants => {}
                is_default => {
                    if is_default {
                        self.constants.remove(name);
                    }
                    self.inputs.push(name.to_owned());
                }
            }
        }
        let mut seen = HashSet::new();
        for info in &graph.output {
            let name = info.name();
            if name.is_empty() {
                return Err(Fault::Missing { field: "the name of a graph output" });
            }
            if !seen.insert(name) {
                return Err(Fault::Twice { what: "graph output", name: name.to_owned() });
            }
            self.outputs.push(name.to_owned());
        }
        Ok(())
    }
}

/// The type that `info` declares; `None` when it declares none, or no tensor's.
fn declared(info: &proto::ValueInfo) -> Result<Option<TensorType>, Fault> {
    let Some(ty) = info.r#type.as_ref().and_then(|ty| ty.tensor_type.as_ref()) else {
        return Ok(None);
    };
    let element = tensor::element(ty.elem_type(), || format!("tensor `{}`", info.name()))?;
    let dim = |dim: &proto::Dimension| match dim.dim_value.map(usize::try_from) {
        Some(Ok(length)) => Dim::Known(length),
        Some(Err(_)) => Dim::Symbol(String::new()),
        None => Dim::Symbol(dim.dim_param().to_owned()),
    };
    let shape = ty.shape.as_ref().map(|shape| shape.dim.iter().map(dim).collect());
    Ok(Some(TensorType { element, shape }))
}

fn read_node(
    node: &proto::Node,
    position: usize,
    opset: i64,
    beside: &mut Beside,
) -> Result<Node, Fault> {
    let mut read = Node {
        position,
        name: node.name().to_owned(),
        op: node.op_type().to_owned(),
        domain: node.domain().to_owned(),
        inputs: node.input.clone(),
        outputs: node.output.clone(),
        attributes: BTreeMap::new(),
        constant: None,
    };
    if read.op.is_empty() {
        return Err(Fault::field(read.what(), "op_type", "empty", "an operator is wanted"));
    }
    let is_constant = read.is("Constant");
    let mut outer = Vec::new();
    for attribute in &node.attribute {
        let name = attribute.name();
        let value = value(attribute);
        if is_constant {
            read.constant = constant(&read, attribute, beside)?.or(read.constant);
        }
        for body in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
            outer_names(body, &mut outer);
        }
        if read.attributes.insert(name.to_owned(), value).is_some() {
            let what = read.what();
            return Err(Fault::field(
                what,
                format!("attribute `{name}`"),
                "there twice",
                "give it once",
            ));
        }
    }
    read.inputs.extend(outer);
    if matches!(read.domain.as_str(), "" | "ai.onnx") {
        defaults::fill(&read.op, opset, &mut read.attributes);
    }
    Ok(read)
}

fn value(attribute: &proto::Attribute) -> Attribute {
    match attribute.r#type() {
        kind::INT => Attribute::Int(attribute.i()),
        kind::INTS => Attribute::Ints(attribute.ints.clone()),
        kind::FLOAT => Attribute::Float(attribute.f()),
        kind::FLOATS => Attribute::Floats(attribute.floats.clone()),
        kind::STRING => Attribute::String(String::from_utf8_lossy(attribute.s()).into_owned()),
        _ => Attribute::Other,
    }
}

/// What a Constant holds by `attribute`; `None` for a kind that nothing reads.
fn constant(
    node: &Node,
    attribute: &proto::Attribute,
    beside: &mut Beside,
) -> Result<Option<Tensor>, Fault> {
    let tensor = |element, shape: &[usize], bytes: Vec<u8>| {
        Some(Tensor { element, shape: shape.to_vec(), bytes: bytes.into() })
    };
    let name = node.outputs.first().map_or("", String::as_str);
    Ok(match (attribute.name(), attribute.r#type()) {
        ("value", kind::TENSOR) => match &attribute.t {
            Some(value) => Some(tensor::tensor(name, value, beside)?),
            None => None,
        },
        ("value_float", kind::FLOAT) => {
            tensor(ElementType::F32, &[], attribute.f().to_le_bytes().to_vec())
        }
        ("value_int", kind::INT) => {
            tensor(ElementType::I64, &[], attribute.i().to_le_bytes().to_vec())
        }
        ("value_floats", kind::FLOATS) => {
            let bytes = attribute.floats.iter().flat_map(|f| f.to_le_bytes()).collect();
            tensor(ElementType::F32, &[attribute.floats.len()], bytes)
        }
        ("value_ints", kind::INTS) => {
            let bytes = attribute.ints.iter().flat_map(|i| i.to_le_bytes()).collect();
            tensor(ElementType::I64, &[attribute.ints.len()], bytes)
        }
        _ => None,
    })
}

/// Names that `body` reads and does not write: those of the graph around it. The decoder has bounded
/// how deep bodies nest.
fn outer_names(body: &proto::Graph, outer: &mut Vec<String>) {
    let mut inner: HashSet<&str> = body.input.iter().map(proto::ValueInfo::name).collect();
    inner.extend(body.initializer.iter().map(proto::Tensor::name));
    inner.extend(body.node.iter().flat_map(|node| &node.output).map(String::as_str));
    let mut read: Vec<String> = Vec::new();
    for node in &body.node {
        read.extend(node.input.iter().cloned());
        for attribute in &node.attribute {
            for nested in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
                outer_names(nested, &mut read);
            }
        }
    }
    read.extend(body.output.iter().map(|output| output.name().to_owned()));
    let known: HashSet<String> = outer.iter().cloned().collect();
    let mut added = HashSet::new();
    for name in read {
        let is_outer = !name.is_empty() && !inner.contains(name.as_str()) && !known.contains(&name);
        if is_outer && added.insert(name.clone()) {
            outer.push(name);
        }
    }
}
