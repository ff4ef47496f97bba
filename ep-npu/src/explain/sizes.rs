//! How much each node works on, for a batch of 1, as far as shapes are known.

use crate::graph::{Dim, Graph, Node, NodeId, Tensor, ValueId};
use crate::partition::price::Work;
use crate::quantize::{self, Kind, Unit};
use crate::shape::{self, Assignment, Shapes};
use std::collections::btree_map::Entry;

/// Multiplications and shapes.
#[derive(Debug)]
pub(super) struct Sizes {
    macs: Vec<Option<u64>>,
    shapes: Shapes,
}

impl Sizes {
    /// Of `graph`.
    pub(super) fn new(graph: &Graph) -> Self {
        let mut macs: Vec<Option<u64>> =
            graph.nodes().map(|(_, node)| declared_macs(graph, node)).collect();
        let units = quantize::units(graph);
        let mut shapes = Shapes::new();
        let mut assignment = Assignment::ones();
        for unit in &units.units {
            if let Some(outputs) = unit_shapes(graph, unit, &mut shapes, &mut assignment) {
                macs[unit.target.0 as usize] = Some(unit_macs(unit, &outputs[0], &shapes));
                shapes.extend(unit.outputs().zip(outputs));
            }
        }
        Self { macs, shapes }
    }

    /// Multiplications of a node; `None` when it multiplies and its shapes are unknown.
    pub(super) fn macs(&self, node: NodeId) -> Option<u64> {
        self.macs[node.0 as usize]
    }

    /// What `id` does; nothing, when it makes a constant.
    pub(super) fn work(&self, graph: &Graph, id: NodeId) -> Work {
        let node = graph.node(id);
        let is_constant = |&value: &ValueId| graph.value(value).constant.is_some();
        if node.inputs.iter().flatten().all(is_constant) {
            return Work::default();
        }
        let outputs = node.outputs.iter().flatten();
        let elements = outputs.fold(0_u64, |n, &v| n.saturating_add(self.elements(graph, v)));
        Work { nodes: 1, macs: self.macs(id).unwrap_or(0), elements }
    }

    /// Bytes of a tensor; 0 when its shape is unknown.
    pub(super) fn bytes(&self, graph: &Graph, value: ValueId) -> u64 {
        let ty = graph.value(value).ty.as_ref();
        let each = ty.and_then(|ty| ty.element.bytes()).unwrap_or(1) as u64;
        self.elements(graph, value).saturating_mul(each)
    }

    fn elements(&self, graph: &Graph, value: ValueId) -> u64 {
        match self.shapes.get(&value) {
            Some(shape) => count(shape),
            None => lengths(graph, value).map_or(0, |shape| count(&shape)),
        }
    }
}

fn unit_shapes(
    graph: &Graph,
    unit: &Unit,
    shapes: &mut Shapes,
    assignment: &mut Assignment,
) -> Option<Vec<Vec<usize>>> {
    for &value in &unit.inputs {
        if let Entry::Vacant(unknown) = shapes.entry(value) {
            unknown.insert(assignment.shape(graph, value).ok()?);
        }
    }
    let inputs: Vec<&[usize]> = unit.inputs.iter().map(|value| shapes[value].as_slice()).collect();
    shape::outputs(graph, unit, &inputs).ok()
}

fn unit_macs(unit: &Unit, output: &[usize], shapes: &Shapes) -> u64 {
    let products = match &unit.kind {
        Kind::MatMul { .. } => {
            let sums = shapes[&unit.inputs[0]].last().copied().unwrap_or(1);
            return count(output).saturating_mul(count(&[sums]));
        }
        Kind::Conv { products, .. } | Kind::Product(products) => products,
        // Every input element meets every weight of its group.
        Kind::ConvTranspose { products, .. } => {
            let [rows, columns] = products.weights.kernel;
            let each = count(&[products.weights.outputs, rows, columns]);
            return count(&shapes[&unit.inputs[0]]).saturating_mul(each);
        }
        _ => return 0,
    };
    let [rows, columns] = products.weights.kernel;
    count(output).saturating_mul(count(&[products.weights.inputs, rows, columns]))
}

/// Of a node in no unit: by its declared output and its weights.
fn declared_macs(graph: &Graph, node: &Node) -> Option<u64> {
    let is_products = ["Conv", "ConvTranspose", "Gemm", "MatMul"].iter().any(|op| node.is(op));
    if !is_products {
        return Some(0);
    }
    let output = lengths(graph, node.output(0)?)?;
    let weights = lengths(graph, node.input(1)?)?;
    let taps = match node.op.as_str() {
        "Conv" => count(weights.get(1..)?),
        // Every input element meets every weight of its group.
        "ConvTranspose" => {
            let input = lengths(graph, node.input(0)?)?;
            return Some(count(&input).saturating_mul(count(weights.get(1..)?)));
        }
        "Gemm" if node.int("transB").unwrap_or(0) != 0 => count(weights.get(1..)?),
        _ => count(&weights[weights.len().checked_sub(2)?..weights.len() - 1]),
    };
    Some(count(&output).saturating_mul(taps))
}

/// The shape of `value`, or of what it is dequantised from; open dimensions are 1.
fn lengths(graph: &Graph, value: ValueId) -> Option<Vec<usize>> {
    let found = graph.value(value);
    let constant = |tensor: &Tensor| tensor.shape.clone();
    if let Some(tensor) = &found.constant {
        return Some(constant(tensor));
    }
    let dims = found.ty.as_ref().and_then(|ty| ty.shape.as_ref());
    if let Some(dims) = dims {
        let length = |dim: &Dim| match dim {
            Dim::Known(length) => *length,
            Dim::Symbol(_) => 1,
        };
        return Some(dims.iter().map(length).collect());
    }
    let producer = graph.node(found.producer?);
    let source = graph.value(producer.input(0)?).constant.as_ref();
    source.filter(|_| producer.op == "DequantizeLinear").map(constant)
}

fn count(lengths: &[usize]) -> u64 {
    lengths.iter().fold(1_u64, |n, &len| n.saturating_mul(len as u64))
}
