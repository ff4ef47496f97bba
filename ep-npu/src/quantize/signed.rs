//! int8 activations: which of them the CPU provider turns into uint8, and what the others do to the
//! arithmetic of the operators around them.
//!
//! ```text
//! Q -> DQ                  one reader, no graph output: both become uint8, zero point and codes 128 up
//! Q -> DQ, DQ              two readers: int8 stays
//! input -> DQ, Q -> output what the model shows stays
//! ```
//!
//! On x86-64 its Conv and MatMul take uint8 only, and no operator takes a mixture. Where the types do not
//! fit it runs DequantizeLinear, the float operator and QuantizeLinear one by one, and the roundings are
//! others. Since that hangs on who reads a tensor, it hangs on where a graph is cut: a tensor that
//! would have become uint8 stays int8 when one of its ends is taken away.

use super::codes::Codes;
use super::form::{Former, is_dequantize, is_quantize};
use super::same;
use crate::graph::{ElementType, Graph, Node, NodeId, ValueId};
use crate::refusal::{Refusal, refuse};

/// The type that the CPU provider gives an 8-bit tensor in the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Edge {
    /// uint8, or int8 that becomes it.
    Unsigned,
    /// int8.
    Signed,
}

/// What the CPU provider computes an operator on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Edges {
    /// uint8 codes.
    Unsigned,
    /// int8 codes, where it has such an operator.
    Signed,
    /// Both, so that no integer operator fits.
    Mixed,
}

impl Edges {
    /// Of an operator with these inputs and outputs.
    pub(super) fn of(edges: &[Edge]) -> Self {
        let has = |edge| edges.contains(&edge);
        match (has(Edge::Unsigned), has(Edge::Signed)) {
            (true, true) => Self::Mixed,
            (false, true) => Self::Signed,
            (_, false) => Self::Unsigned,
        }
    }
}

/// What the CPU provider computes an operator in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// Sums of products of codes, the same for either type.
    Integer,
    /// Floats, one operator at a time.
    Float,
    /// Formulas of codes, which have zero points in them.
    Codes(Edges),
}

impl Way {
    /// Of an operator whose input and output are these. Some take uint8 only.
    fn of(edges: &[Edge], takes_both: bool) -> Self {
        match Edges::of(edges) {
            Edges::Unsigned => Self::Integer,
            Edges::Signed if takes_both => Self::Integer,
            _ => Self::Float,
        }
    }
}

/// Whether the model has `value`, an 8-bit tensor, in int8.
pub(crate) fn is_signed(graph: &Graph, value: ValueId) -> bool {
    element(graph, value) == Some(ElementType::I8)
}

/// The element type that the model gives an 8-bit tensor.
pub(super) fn element(graph: &Graph, value: ValueId) -> Option<ElementType> {
    let found = graph.value(value);
    if let Some(constant) = &found.constant {
        return Some(constant.element);
    }
    let zero_point =
        |node: &NodeId| graph.constant(graph.node(*node), 2).map(|tensor| tensor.element);
    let writer = found.producer.as_ref().filter(|&&id| is_quantize(graph.node(id)));
    let reader = || found.consumers.iter().find(|&&id| is_dequantize(graph.node(id)));
    let declared = || found.ty.as_ref().map(|ty| ty.element);
    writer.and_then(zero_point).or_else(declared).or_else(|| reader().and_then(zero_point))
}

/// The codes of `source`, an 8-bit tensor, as `dequantize` reads them.
pub(super) fn codes(graph: &Graph, dequantize: &Node, source: ValueId) -> Result<Codes, Refusal> {
    let codes = Codes::read(graph, dequantize)?;
    let (read, written) = (graph.constant(dequantize, 2), element(graph, source));
    let read = read.map(|zero| zero.element);
    match (read, written) {
        (Some(read), Some(written)) if read != written => {
            refuse!(ELEMENT_TYPE, "{dequantize} reads {written} with a zero point of {read}")
        }
        _ => Ok(codes),
    }
}

/// The type in which the CPU provider runs `value`, an 8-bit tensor.
pub(super) fn edge(graph: &Graph, value: ValueId) -> Edge {
    match is_signed(graph, value) && !becomes_unsigned(graph, value) {
        true => Edge::Signed,
        false => Edge::Unsigned,
    }
}

/// Whether `value` is int8 in the model and uint8 where the CPU provider runs both ends of it, so that
/// it must not be parted.
pub(crate) fn becomes_unsigned(graph: &Graph, value: ValueId) -> bool {
    if !is_signed(graph, value) || graph.is_output(value) {
        return false;
    }
    let Some((first, readers)) = same::whole(graph, value) else { return false };
    let (Some(writer), &[reader]) = (graph.value(first).producer, readers.as_slice()) else {
        return false;
    };
    let (writer, reader) = (graph.node(writer), graph.node(reader));
    let [to, from] = [writer, reader].map(|node| graph.constant(node, 2));
    let Some((to, from)) = to.zip(from) else { return false };
    is_quantize(writer)
        && is_dequantize(reader)
        && [to.element, from.element] == [ElementType::I8; 2]
        && to.bytes.len() == 1
        && to.bytes == from.bytes
}

/// The DequantizeLinear nodes that read `value` where the CPU provider runs them.
pub(crate) fn readers(graph: &Graph, value: ValueId) -> Vec<NodeId> {
    same::whole(graph, value).map(|(_, readers)| readers).unwrap_or_default()
}

/// The QuantizeLinear that writes `value` where the CPU provider runs it.
pub(crate) fn writer(graph: &Graph, value: ValueId) -> Option<NodeId> {
    same::whole(graph, value).and_then(|(first, _)| graph.value(first).producer)
}

/// What the CPU provider computes the operator `id` on; `None` where its bits do not hang on that.
/// Tensors that `is_cut` stay int8.
pub(crate) fn way(graph: &Graph, id: NodeId, is_cut: &dyn Fn(ValueId) -> bool) -> Option<Way> {
    let node = graph.node(id);
    let is_one_of = |ops: &[&str]| ops.iter().any(|op| node.is(op));
    let of = |value: ValueId| if is_cut(value) { Edge::Signed } else { edge(graph, value) };
    let source = |value: ValueId| {
        let writer = graph.value(value).producer.map(|id| graph.node(id));
        writer.filter(|node| is_dequantize(node))?.input(0)
    };
    let result = match is_one_of(&["MatMul", "Gemm"]) {
        // Those two have an integer form that gives floats, where they do not become codes at once.
        true => Former::new(graph, id).result().ok().map(|(value, _)| value),
        false => result(graph, node),
    };
    let result = result.map(of);
    let first = || node.input(0).and_then(source).map(of);
    if is_one_of(&["Conv", "MatMul", "Gemm", "GlobalAveragePool"]) {
        let edges: Vec<Edge> = first().into_iter().chain(result).collect();
        // With uint8 weights, a Gemm takes uint8 only.
        let weights = node.input(1).and_then(source).and_then(|weights| element(graph, weights));
        let takes_both =
            is_one_of(&["Gemm", "GlobalAveragePool"]) && weights != Some(ElementType::U8);
        return Some(Way::of(&edges, takes_both));
    }
    if is_one_of(&["Add", "Mul", "AveragePool", "Softmax"]) {
        let inputs = node.inputs.iter().flatten().filter_map(|&value| source(value));
        let edges: Vec<Edge> = inputs.map(of).chain(result).collect();
        return Some(Way::Codes(Edges::of(&edges)));
    }
    None
}

/// The tensor of codes that `node`'s result becomes, behind a Relu or Clip.
fn result(graph: &Graph, node: &Node) -> Option<ValueId> {
    let only_reader = |value: ValueId| match graph.value(value).consumers.as_slice() {
        &[reader] => Some(graph.node(reader)),
        _ => None,
    };
    let reader = only_reader(node.output(0)?)?;
    let is_activation = reader.is("Relu") || reader.is("Clip");
    let reader = if is_activation { only_reader(reader.output(0)?)? } else { reader };
    is_quantize(reader).then(|| reader.output(0)).flatten()
}
