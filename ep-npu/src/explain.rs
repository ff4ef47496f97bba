//! Why each node runs where it does: the plan, for people and for scripts.

use crate::graph::{Dim, Graph, Node, Tensor, ValueId};
use crate::partition::{Plan, Verdict};
use crate::quantize::{self, Kind, Unit};
use crate::refusal::rule;
use crate::shape::{self, Assignment, Shapes};
use std::collections::{BTreeMap, btree_map::Entry};

/// What became of each node of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// One line.
    pub summary: String,
    /// One for each node, in node order.
    pub nodes: Vec<NodeReport>,
    /// Number of programs.
    pub groups: usize,
    /// Multiplications of all nodes whose shapes are known, for a batch of 1.
    pub macs: u64,
    /// Of those, what the NPU does.
    pub macs_taken: u64,
    /// Nodes that multiply, of unknown shapes.
    pub macs_unknown: usize,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    /// Name in the model; may be empty.
    pub name: String,
    /// Operator.
    pub op: String,
    /// The program that it is part of, when it is taken.
    pub group: Option<usize>,
    /// The [`rule`] by which it is not; empty when taken.
    pub rule: &'static str,
    /// What was found; empty when taken.
    pub reason: String,
    /// The attribute that is to blame, when it is one.
    pub attribute: Option<String>,
    /// The smallest change that would have the node taken, where it is known.
    pub change: Option<String>,
    /// Multiplications for a batch of 1; `None` when its shapes are unknown.
    pub macs: Option<u64>,
}

/// Explains `plan`, which is of `graph`.
pub fn explain(graph: &Graph, plan: &Plan) -> Explanation {
    let counts = macs(graph);
    let mut explained = Explanation {
        summary: plan.summary(graph),
        nodes: Vec::with_capacity(plan.verdicts.len()),
        groups: plan.groups.len(),
        macs: 0,
        macs_taken: 0,
        macs_unknown: 0,
    };
    for (verdict, macs) in plan.verdicts.iter().zip(counts) {
        let count = macs.unwrap_or(0);
        explained.macs_unknown += usize::from(macs.is_none());
        explained.macs = explained.macs.saturating_add(count);
        if verdict.taken.is_some() {
            explained.macs_taken = explained.macs_taken.saturating_add(count);
        }
        explained.nodes.push(report(graph, verdict, macs));
    }
    explained
}

impl Explanation {
    /// Share of the multiplications that the NPU does; `None` when there are none, or some are not known.
    pub fn share(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a share, to be read by people")]
        let share = self.macs_taken as f64 / self.macs as f64;
        (self.macs > 0 && self.macs_unknown == 0).then_some(share)
    }
}

fn report(graph: &Graph, verdict: &Verdict, macs: Option<u64>) -> NodeReport {
    let node = graph.node(verdict.node);
    NodeReport {
        name: node.name.clone(),
        op: node.op.clone(),
        group: verdict.taken,
        rule: verdict.rule,
        reason: verdict.reason.clone(),
        attribute: attribute(node, verdict),
        change: change(verdict),
        macs,
    }
}

/// The attribute that a reason names.
fn attribute(node: &Node, verdict: &Verdict) -> Option<String> {
    if verdict.rule != rule::ATTRIBUTE {
        return None;
    }
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = verdict.reason.split(|c| !is_letter(c));
    words.find(|word| node.attributes.contains_key(*word)).map(str::to_owned)
}

/// What a reason says behind its last semicolon, which is what would be accepted; for the rules
/// whose sentence has none, what holds for all of them.
fn change(verdict: &Verdict) -> Option<String> {
    if verdict.taken.is_some() {
        return None;
    }
    let advice = verdict.reason.rsplit_once("; ").map(|(_, advice)| advice.to_owned());
    advice.or_else(|| {
        let known = match verdict.rule {
            rule::S8_ACTIVATIONS => "quantise activations to uint8",
            rule::UNIT => "put DequantizeLinear before and QuantizeLinear behind the operator",
            rule::FLOAT_NEIGHBOUR => "quantise the operator that it belongs to",
            rule::ACCUMULATOR => "quantise the weights to 7 bits (reduce_range)",
            rule::SHAPE => "fix the shapes and run ONNX shape inference",
            _ => return None,
        };
        Some(known.to_owned())
    })
}

/// Multiplications of each node, for a batch of 1.
fn macs(graph: &Graph) -> Vec<Option<u64>> {
    let mut macs: Vec<Option<u64>> =
        graph.nodes().map(|(_, node)| declared_macs(graph, node)).collect();
    let units = quantize::units(graph);
    let mut shapes = Shapes::new();
    let mut assignment = Assignment::ones();
    for unit in &units.units {
        if let Some(output) = unit_shape(graph, unit, &mut shapes, &mut assignment) {
            macs[unit.target.0 as usize] = Some(unit_macs(unit, &output));
            shapes.insert(unit.output, output);
        }
    }
    macs
}

fn unit_shape(
    graph: &Graph,
    unit: &Unit,
    shapes: &mut Shapes,
    assignment: &mut Assignment,
) -> Option<Vec<usize>> {
    for &value in &unit.inputs {
        if let Entry::Vacant(unknown) = shapes.entry(value) {
            unknown.insert(assignment.shape(graph, value).ok()?);
        }
    }
    let inputs: Vec<&[usize]> = unit.inputs.iter().map(|value| shapes[value].as_slice()).collect();
    shape::output(graph, unit, &inputs).ok()
}

fn unit_macs(unit: &Unit, output: &[usize]) -> u64 {
    let products = match &unit.kind {
        Kind::Conv { products, .. } | Kind::Product(products) => products,
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

/// Refused nodes by rule, most frequent first.
pub fn by_rule(explained: &Explanation) -> Vec<(&'static str, usize)> {
    let mut rules: BTreeMap<&'static str, usize> = BTreeMap::new();
    for node in explained.nodes.iter().filter(|node| node.group.is_none()) {
        *rules.entry(node.rule).or_default() += 1;
    }
    let mut rules: Vec<_> = rules.into_iter().collect();
    rules.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    rules
}
