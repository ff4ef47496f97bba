//! The parts that every unit has: what stands before its operator and what stands behind it.

use super::codes::{Codes, SIGN, check_scale};
use super::signed::{self, Edge, Edges};
use super::unit::{Kind, Unit};
use crate::graph::{ElementType, Graph, Node, NodeId, Tensor, ValueId};
use crate::refusal::{Refusal, refuse};

/// Collects one unit around its operator.
#[derive(Clone)]
pub(super) struct Former<'g> {
    pub(super) graph: &'g Graph,
    target: NodeId,
    nodes: Vec<NodeId>,
    inputs: Vec<ValueId>,
    /// What the CPU provider makes of the 8-bit tensors around the operator.
    edges: Vec<Edge>,
}

/// Constant codes with the scale of each output channel (one for all, or one each).
pub(super) struct Constant {
    /// int8 where int8 was asked for, whatever the model has.
    pub(super) tensor: Tensor,
    pub(super) scales: Vec<f32>,
    /// Zero points of `tensor`, one for all or one each; empty where all are zero.
    pub(super) zero_points: Vec<i8>,
}

/// What an operator's result becomes.
pub(super) struct CutResult<'g> {
    /// The tensor of codes.
    pub(super) output: ValueId,
    /// The codes.
    pub(super) codes: Codes,
    /// A Relu or Clip that changes values, and the lowest and highest code that it leaves.
    pub(super) cut: Option<(&'g Node, [u8; 2])>,
}

impl<'g> Former<'g> {
    pub(super) fn new(graph: &'g Graph, target: NodeId) -> Self {
        Self { graph, target, nodes: vec![target], inputs: Vec::new(), edges: Vec::new() }
    }

    /// Makes `node` part of the unit.
    pub(super) fn include(&mut self, node: NodeId) {
        self.nodes.push(node);
    }

    /// Makes `value` the next tensor that the unit reads.
    pub(super) fn reads(&mut self, value: ValueId) {
        self.inputs.push(value);
    }

    /// The first tensor that the unit reads.
    pub(super) fn input(&self) -> Option<ValueId> {
        self.inputs.first().copied()
    }

    /// The operator.
    pub(super) fn node(&self) -> &'g Node {
        self.graph.node(self.target)
    }

    /// Input `index` of the operator, which flows as codes: they are returned.
    pub(super) fn activation(&mut self, index: usize) -> Result<Codes, Refusal> {
        let (dequantize, source) = self.dequantize(index)?;
        if self.graph.value(source).constant.is_some() {
            let node = self.node();
            return refuse!(
                UNIT,
                "{node} reads a constant as input {index}; it is taken between two tensors that flow"
            );
        }
        let codes = self.codes(dequantize, source)?;
        self.inputs.push(source);
        Ok(codes)
    }

    /// Whether input `index` of the operator is dequantised from a constant.
    pub(super) fn is_constant(&self, index: usize) -> bool {
        let before = |value: ValueId| {
            let node = self.graph.node(self.graph.value(value).producer?);
            self.graph.constant(node, 0).filter(|_| is_dequantize(node))
        };
        self.node().input(index).and_then(before).is_some()
    }

    /// The codes of `source`, an 8-bit tensor, as `dequantize` reads them.
    fn codes(&mut self, dequantize: &Node, source: ValueId) -> Result<Codes, Refusal> {
        let codes = signed::codes(self.graph, dequantize, source)?;
        self.edges.push(signed::edge(self.graph, source));
        Ok(codes)
    }

    /// Input `index` of the operator, which is a constant tensor of codes like one that flows.
    pub(super) fn constant_codes(&mut self, index: usize) -> Result<Codes, Refusal> {
        let (dequantize, source) = self.dequantize(index)?;
        self.codes(dequantize, source)
    }

    /// What the CPU provider computes the operator on. Ask behind [`Former::result`].
    pub(super) fn edges(&self) -> Edges {
        Edges::of(&self.edges)
    }

    /// The same of an operator that is chosen by its first input and its result. Ask when
    /// [`Former::activation`] was first asked for input 0, and behind [`Former::result`].
    pub(super) fn outer_edges(&self) -> Edges {
        let ends = self.edges.first().into_iter().chain(self.edges.last());
        Edges::of(&ends.copied().collect::<Vec<_>>())
    }

    /// Input `index` of the operator, which is constant codes of type `element` with zero point 0;
    /// where their scales are many, they follow dimension `axis`, `channels` long.
    pub(super) fn constant(
        &mut self,
        index: usize,
        element: ElementType,
        axis: usize,
    ) -> Result<Constant, Refusal> {
        let (node, source) = self.dequantize(index)?;
        let Some(tensor) = &self.graph.value(source).constant else {
            return refuse!(WEIGHTS, "{node} reads weights or bias that are not constant");
        };
        let may_move = element == ElementType::I8 && tensor.element == ElementType::U8;
        if tensor.element != element && !may_move {
            let found = tensor.element;
            return refuse!(ELEMENT_TYPE, "{node} reads {found}; {element} is taken here");
        }
        if let Some(size) = node.int("block_size").filter(|&size| size != 0) {
            return refuse!(ATTRIBUTE, "{node} has block_size {size}; only 0 is taken");
        }
        let first = self.inputs.first().filter(|&&value| signed::is_signed(self.graph, value));
        if may_move && first.is_some() {
            return refuse!(
                ELEMENT_TYPE,
                "{node} reads uint8 weights beside an int8 activation; quantise weights as int8"
            );
        }
        let Some(scales) = self.graph.constant(node, 1).and_then(Tensor::as_f32) else {
            return refuse!(SCALE, "{node} has no constant float32 scale");
        };
        for &scale in &scales {
            check_scale(node, scale)?;
        }
        let Some(&channels) = tensor.shape.get(axis) else {
            return refuse!(WEIGHTS, "{node} reads {tensor:?}, which has no dimension {axis}");
        };
        if scales.len() != 1 {
            let found = scales.len();
            if found != channels {
                return refuse!(WEIGHTS, "{node} has {found} scales for {channels} channels");
            }
            let rank = i64::try_from(tensor.shape.len()).unwrap_or(i64::MAX);
            let given = node.int("axis").unwrap_or(1);
            let wrapped = if given < 0 { given.saturating_add(rank) } else { given };
            if usize::try_from(wrapped) != Ok(axis) {
                return refuse!(
                    ATTRIBUTE,
                    "{node} has axis {given}; scales for each output channel follow axis {axis}"
                );
            }
        }
        let zero_points = match (node.input(2), self.graph.constant(node, 2)) {
            (None, _) => Vec::new(),
            (Some(_), Some(zero)) if zero.element == tensor.element => zero.bytes.to_vec(),
            (Some(_), Some(zero)) => {
                return refuse!(
                    WEIGHTS,
                    "{node} has zero point {zero:?} of another type than its weights"
                );
            }
            (Some(_), None) => {
                return refuse!(WEIGHTS, "{node} has a zero point that is not constant");
            }
        };
        let are_zero = zero_points.iter().all(|&byte| byte == 0);
        if element != ElementType::I8 && !are_zero {
            return refuse!(WEIGHTS, "{node} has zero points other than zero");
        }
        if are_zero && !may_move {
            return Ok(Constant { tensor: tensor.clone(), scales, zero_points: Vec::new() });
        }
        let (tensor, zero_points) = signed_weights(node, tensor, &zero_points, axis)?;
        Ok(Constant { tensor, scales, zero_points })
    }

    /// The codes that the operator's result becomes. A Relu or Clip in between joins the unit when
    /// the codes leave it nothing to do, as the CPU provider has it.
    pub(super) fn result(&mut self) -> Result<(ValueId, Codes), Refusal> {
        let result = self.cut_result()?;
        self.uncut(result)
    }

    /// The same of output `index`, of an operator that may have several.
    pub(super) fn result_at(&mut self, index: usize) -> Result<(ValueId, Codes), Refusal> {
        let result = self.cut_result_at(index)?;
        self.uncut(result)
    }

    fn uncut(&self, result: CutResult<'g>) -> Result<(ValueId, Codes), Refusal> {
        let CutResult { output: value, codes, cut } = result;
        if let Some((activation, _)) = cut {
            let (node, quantize) = (self.node(), self.graph.value(value).producer);
            let quantize = quantize.map_or("it".into(), |id| self.graph.node(id).to_string());
            let Codes { scale, zero_point } = codes;
            return refuse!(
                ACTIVATION_RANGE,
                "{activation} changes values that scale {scale} and zero point {zero_point} of {quantize} can hold, \
                 so the CPU runs {node} in float; calibrate behind the activation"
            );
        }
        Ok((value, codes))
    }

    /// The same, where a Relu or Clip may cut codes off: with it, the range of codes that it leaves.
    pub(super) fn cut_result(&mut self) -> Result<CutResult<'g>, Refusal> {
        let node = self.node();
        if node.outputs.iter().skip(1).any(Option::is_some) {
            return refuse!(UNIT, "{node} has more than one output; only the first is taken");
        }
        self.cut_result_at(0)
    }

    /// Whether somebody reads output `index`.
    pub(super) fn is_read(&self, index: usize) -> bool {
        let graph = self.graph;
        self.node()
            .output(index)
            .is_some_and(|value| graph.is_output(value) || !graph.value(value).consumers.is_empty())
    }

    fn cut_result_at(&mut self, index: usize) -> Result<CutResult<'g>, Refusal> {
        let graph = self.graph;
        let node = self.node();
        let Some(mut value) = node.output(index) else {
            return refuse!(UNIT, "{node} has no output");
        };
        let mut next = self.only_consumer(value)?;
        let mut activation = None;
        let after = graph.node(next);
        if after.is("Relu") || after.is("Clip") {
            let Some(output) = after.output(0) else {
                return refuse!(UNIT, "{after} has no output");
            };
            (activation, value) = (Some(after), output);
            self.nodes.push(next);
            next = self.only_consumer(value)?;
        }
        let quantize = graph.node(next);
        if !is_quantize(quantize) {
            return refuse!(UNIT, "{node} is read by {quantize}; a unit ends in QuantizeLinear");
        }
        let codes = Codes::read(graph, quantize)?;
        let cut = match activation.filter(|after| !is_redundant(graph, after, quantize, codes)) {
            Some(activation) => Some((activation, range(graph, activation, codes)?)),
            None => None,
        };
        let Some(output) = quantize.output(0) else {
            return refuse!(UNIT, "{quantize} has no output");
        };
        self.nodes.push(next);
        self.edges.push(signed::edge(graph, output));
        Ok(CutResult { output, codes, cut })
    }

    /// The unit.
    pub(super) fn finish(mut self, output: ValueId, kind: Kind) -> Unit {
        self.nodes.sort_unstable();
        self.nodes.dedup();
        let (target, nodes, inputs, others) = (self.target, self.nodes, self.inputs, Vec::new());
        Unit { target, nodes, inputs, output, others, kind }
    }

    /// The unit, which writes all of these.
    pub(super) fn finish_all(self, outputs: &[ValueId], kind: Kind) -> Result<Unit, Refusal> {
        let Some((&output, others)) = outputs.split_first() else {
            return refuse!(UNIT, "nobody reads what {} writes", self.node());
        };
        Ok(Unit { others: others.to_vec(), ..self.finish(output, kind) })
    }

    /// The DequantizeLinear that input `index` comes from, and what that reads.
    fn dequantize(&mut self, index: usize) -> Result<(&'g Node, ValueId), Refusal> {
        let (graph, node) = (self.graph, self.node());
        let Some(value) = node.input(index) else {
            return refuse!(UNIT, "{node} has no input {index}");
        };
        let producer = graph.value(value).producer.map(|id| (id, graph.node(id)));
        let Some((id, dequantize)) = producer.filter(|(_, node)| is_dequantize(node)) else {
            let name = &graph.value(value).name;
            return refuse!(UNIT, "{node} reads `{name}` as float; quantise it");
        };
        let shared = graph.value(value).consumers.iter().any(|&reader| reader != self.target);
        if shared || graph.is_output(value) {
            return refuse!(UNIT, "{dequantize} serves more than {node}; give each reader its own");
        }
        let Some(source) = dequantize.input(0) else {
            return refuse!(UNIT, "{dequantize} has no input");
        };
        self.nodes.push(id);
        Ok((dequantize, source))
    }

    fn only_consumer(&self, value: ValueId) -> Result<NodeId, Refusal> {
        let (graph, node) = (self.graph, self.node());
        let found = graph.value(value);
        if graph.is_output(value) {
            return refuse!(UNIT, "{node} writes the graph output `{}` as float", found.name);
        }
        match found.consumers.as_slice() {
            &[consumer] => Ok(consumer),
            others => refuse!(
                UNIT,
                "{node} writes `{}`, which {} nodes read; one QuantizeLinear is taken",
                found.name,
                others.len()
            ),
        }
    }
}

/// 8-bit weights with one zero point for all, or one for each element of dimension `axis`, as int8.
///
/// Sums of products are made of the differences of the two. Where all of them fit, they are the weights;
/// else uint8 weights and zero points both lose 128.
fn signed_weights(
    node: &Node,
    tensor: &Tensor,
    zero_points: &[u8],
    axis: usize,
) -> Result<(Tensor, Vec<i8>), Refusal> {
    let channels = tensor.shape.get(axis).copied().unwrap_or(1);
    let zero_points = if zero_points.is_empty() { &[0] } else { zero_points };
    if ![1, channels].contains(&zero_points.len()) {
        let found = zero_points.len();
        return refuse!(WEIGHTS, "{node} has {found} zero points for {channels} channels");
    }
    let inner: usize = tensor.shape.iter().skip(axis + 1).product();
    let sign = if tensor.element == ElementType::U8 { SIGN } else { 0 };
    let number = |byte: u8| (byte ^ sign).cast_signed();
    let difference = |(index, &byte): (usize, &u8)| {
        let channel = if zero_points.len() == 1 { 0 } else { index / inner.max(1) % channels };
        number(byte).checked_sub(number(zero_points[channel])).map(i8::cast_unsigned)
    };
    let weights = || tensor.bytes.iter().enumerate();
    let (bytes, zero_points) = match weights().map(difference).collect::<Option<Vec<u8>>>() {
        Some(differences) => (differences, Vec::new()),
        None => {
            let moved = tensor.bytes.iter().map(|byte| byte ^ sign).collect();
            (moved, zero_points.iter().map(|&byte| number(byte)).collect())
        }
    };
    let (element, shape) = (ElementType::I8, tensor.shape.clone());
    Ok((Tensor { element, shape, bytes: bytes.into() }, zero_points))
}

/// Refuses a unit that reads or gives more than it says: nodes with inputs or outputs that their
/// operator has no use for.
pub(super) fn closed(graph: &Graph, unit: Unit) -> Result<Unit, Refusal> {
    let inside = |node: &NodeId| unit.nodes.contains(node);
    for &id in &unit.nodes {
        let node = graph.node(id);
        for &input in node.inputs.iter().flatten() {
            let value = graph.value(input);
            let is_known = value.constant.is_some()
                || unit.inputs.contains(&input)
                || value.producer.as_ref().is_some_and(inside);
            if !is_known {
                return refuse!(UNIT, "{node} reads `{}`, which it has no use for", value.name);
            }
        }
        for &output in node.outputs.iter().flatten().filter(|&&value| !unit.writes(value)) {
            let value = graph.value(output);
            if graph.is_output(output) || !value.consumers.iter().all(inside) {
                return refuse!(UNIT, "{node} writes `{}`, which others read", value.name);
            }
        }
    }
    Ok(unit)
}

/// Whether `node` is a QuantizeLinear.
pub(super) fn is_quantize(node: &Node) -> bool {
    node.op == "QuantizeLinear" && matches!(node.domain.as_str(), "" | "ai.onnx" | "com.microsoft")
}

/// Whether `node` is a DequantizeLinear.
pub(super) fn is_dequantize(node: &Node) -> bool {
    node.op == "DequantizeLinear"
        && matches!(node.domain.as_str(), "" | "ai.onnx" | "com.microsoft")
}

/// Whether the CPU provider takes `activation`, a Relu or Clip, away: every value that the codes of
/// `quantize` behind it can hold passes it unchanged, or nearly so.
fn is_redundant(graph: &Graph, activation: &Node, quantize: &Node, codes: Codes) -> bool {
    if activation.is("Relu") {
        return codes.zero_point == 0;
    }
    // Not where scale and zero point are lists of one.
    let is_scalar =
        |index| graph.constant(quantize, index).is_some_and(|tensor| tensor.shape.is_empty());
    if !is_scalar(1) || !is_scalar(2) {
        return false;
    }
    let held = |code| npu_uapi::requantise::dequantise(code, codes.scale, codes.zero_point);
    // So much is borne on either side, be the scale however small.
    let is_inside = |by: f32| by <= f32::EPSILON;
    clip_range(graph, activation)
        .is_some_and(|(low, high)| is_inside(low - held(0)) && is_inside(held(255) - high))
}

/// Whether the CPU provider takes `activation`, a Relu or Clip, away before the QuantizeLinear behind it.
pub(super) fn is_taken_away(graph: &Graph, activation: &Node) -> bool {
    let Some(value) = activation.output(0).filter(|&value| !graph.is_output(value)) else {
        return false;
    };
    let &[reader] = graph.value(value).consumers.as_slice() else { return false };
    let quantize = graph.node(reader);
    is_quantize(quantize)
        && Codes::read(graph, quantize)
            .is_ok_and(|codes| is_redundant(graph, activation, quantize, codes))
}

/// The lowest and highest code behind `activation`, a Relu or Clip. Quantisation is monotonic, so cutting
/// values off before it is cutting codes off behind it.
fn range(graph: &Graph, activation: &Node, codes: Codes) -> Result<[u8; 2], Refusal> {
    let (low, high) = match activation.is("Relu") {
        true => (0.0, f32::MAX),
        false => match clip_range(graph, activation) {
            Some(range) => range,
            None => return refuse!(UNIT, "{activation} has bounds that are not constant"),
        },
    };
    if low.is_nan() || high.is_nan() || low > high {
        return refuse!(ACTIVATION_RANGE, "{activation} has bounds {low} and {high}");
    }
    let code = |value| npu_uapi::requantise::quantise(value, codes.scale, codes.zero_point);
    Ok([code(low), code(high)])
}

/// The bounds of a Clip, by attribute or by constant input; `None` when they are not constant.
pub(super) fn clip_range(graph: &Graph, clip: &Node) -> Option<(f32, f32)> {
    let bound = |index, name, otherwise| match clip.input(index) {
        Some(_) => match graph.constant(clip, index)?.as_f32()?.as_slice() {
            &[bound] => Some(bound),
            _ => None,
        },
        None => Some(clip.float(name).unwrap_or(otherwise)),
    };
    Some((bound(1, "min", f32::MIN)?, bound(2, "max", f32::MAX)?))
}
