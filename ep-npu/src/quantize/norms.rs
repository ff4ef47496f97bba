//! Units of LayerNormalization and InstanceNormalization, and of the single operators that a quantiser
//! leaves of a layer normalisation.
//!
//! ```text
//! x -+-> ReduceMean -> Sub (from x) -+-> Pow 2 -> ReduceMean -> Q -> DQ -> Add -> Q -> DQ -> Sqrt -> Div -> Q
//!    '-----------------------^       '----------------------------------------------------------^
//! ```

use super::codes::Codes;
use super::form::{Former, is_dequantize, is_quantize};
use super::reduce::axes_of;
use super::signed;
use super::sums::{is_exposed, leads_to_one};
use super::unit::{Kind, Unit};
use crate::graph::{ElementType, Graph, Node, NodeId, Tensor, ValueId};
use crate::refusal::{Refusal, refuse};
use npu_uapi::requantise::dequantise;
use npu_uapi::rows::Affine;
use std::sync::Arc;

/// Rows less their mean, over their deviation.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Codes of the input.
    pub input: Codes,
    /// Codes of the output.
    pub output: Codes,
    /// What a row is, and what follows.
    pub how: How,
}

/// Kinds of normalisation.
#[derive(Clone, Debug)]
pub enum How {
    /// Of the dimensions from `axis` on.
    Layer {
        /// The first of them.
        axis: i64,
        /// What is added to the variance.
        epsilon: f32,
        /// For each element of a row.
        terms: Arc<[Affine]>,
    },
    /// Of each image's channel.
    Instance {
        /// What is added to the variance.
        epsilon: f32,
        /// For each channel.
        terms: Arc<[Affine]>,
    },
    /// Of the dimension that both means are of, through codes of the variance.
    Staged {
        /// What the mean is of.
        axes: Option<Vec<i64>>,
        /// The order in which the result has the dimensions of the input; the same where `None`.
        order: Option<Vec<i64>>,
        /// What the variance is of, a dimension of the result.
        variance_axes: Option<Vec<i64>>,
        /// Codes of the variance.
        variance: Codes,
        /// What each of them divides by.
        divisors: Arc<[f32]>,
    },
}

/// LayerNormalization.
pub(super) fn layer(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    if let Some(found) = node.int("stash_type").filter(|&found| found != 1) {
        return refuse!(ATTRIBUTE, "{node} has stash_type {found}; 1, float32, is taken");
    }
    let axis = node.int("axis").unwrap_or(-1);
    let epsilon = node.float("epsilon").unwrap_or(1e-5);
    let input = unit.activation(0)?;
    let gains = floats(&mut unit, 1)?;
    let biases = match node.input(2) {
        Some(_) => floats(&mut unit, 2)?,
        None => vec![0.0; gains.len()],
    };
    let terms = terms(node, &gains, &biases)?;
    let (value, output) = unit.result()?;
    let how = How::Layer { axis, epsilon, terms };
    Ok(unit.finish(value, Kind::Norm(Norm { input, output, how })))
}

/// InstanceNormalization.
pub(super) fn instance(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let epsilon = node.float("epsilon").unwrap_or(1e-5);
    let input = unit.activation(0)?;
    let (gains, biases) = (floats(&mut unit, 1)?, floats(&mut unit, 2)?);
    let terms = terms(node, &gains, &biases)?;
    let (value, output) = unit.result()?;
    let how = How::Instance { epsilon, terms };
    Ok(unit.finish(value, Kind::Norm(Norm { input, output, how })))
}

fn terms(node: &Node, gains: &[f32], biases: &[f32]) -> Result<Arc<[Affine]>, Refusal> {
    if gains.len() != biases.len() {
        let (gains, biases) = (gains.len(), biases.len());
        return refuse!(SHAPE, "{node} has {gains} scales and {biases} biases; as many are taken");
    }
    let epsilon = node.float("epsilon").unwrap_or(0.0);
    if !(epsilon >= 0.0 && epsilon.is_finite()) {
        return refuse!(ATTRIBUTE, "{node} has epsilon {epsilon}; 0 and more are taken");
    }
    Ok(gains.iter().zip(biases).map(|(&gain, &bias)| Affine { gain, bias }).collect())
}

/// The numbers of input `index`, a constant, dequantised or as it is.
fn floats(unit: &mut Former<'_>, index: usize) -> Result<Vec<f32>, Refusal> {
    let (graph, node) = (unit.graph, unit.node());
    let Some(value) = node.input(index) else {
        return refuse!(UNIT, "{node} has no input {index}");
    };
    let not_constant = || {
        let name = &graph.value(value).name;
        refuse!(
            WEIGHTS,
            "{node} reads `{name}`, which is no constant of finite float32, nor codes of such"
        )
    };
    let found = match &graph.value(value).constant {
        Some(constant) => constant.as_f32(),
        None => {
            let producer = graph.value(value).producer;
            let Some(id) = producer.filter(|&id| is_dequantize(graph.node(id))) else {
                return not_constant();
            };
            unit.include(id);
            dequantised(graph, graph.node(id))
        }
    };
    match found.filter(|found| found.iter().all(|value| value.is_finite())) {
        Some(found) => Ok(found),
        None => not_constant(),
    }
}

/// The numbers of a DequantizeLinear of a constant with one scale.
fn dequantised(graph: &Graph, node: &Node) -> Option<Vec<f32>> {
    let tensor = graph.constant(node, 0)?;
    let &[scale] = graph.constant(node, 1)?.as_f32()?.as_slice() else { return None };
    let zero = graph.constant(node, 2);
    if node.int("block_size").is_some_and(|size| size != 0)
        || zero.is_some_and(|zero| zero.element != tensor.element || zero.len() != 1)
    {
        return None;
    }
    let number = |byte: u8| match tensor.element {
        ElementType::U8 => i16::from(byte),
        _ => i16::from(byte.cast_signed()),
    };
    match tensor.element {
        ElementType::U8 | ElementType::I8 => {
            let zero = zero.map_or(0, |zero| number(zero.bytes[0]));
            let value = |&byte: &u8| f32::from(number(byte) - zero) * scale;
            Some(tensor.bytes.iter().map(value).collect())
        }
        _ => {
            if zero.is_some_and(|zero| zero.bytes.iter().any(|&byte| byte != 0)) {
                return None;
            }
            #[expect(clippy::cast_precision_loss, reason = "as DequantizeLinear rounds int32")]
            let value = |&code: &i32| code as f32 * scale;
            Some(tensor.as_i32()?.iter().map(value).collect())
        }
    }
}

/// The unit that ends in the Div `id`, where it and what is before it are a layer normalisation of single
/// operators; `None` where they are not. `before` gives the units that are tables.
pub(super) fn staged<'a>(
    graph: &Graph,
    id: NodeId,
    before: &dyn Fn(ValueId) -> Option<&'a Unit>,
) -> Option<Unit> {
    let mut unit = Former::new(graph, id);
    let div = unit.node();
    let producer = |value: ValueId| {
        let id = graph.value(value).producer?;
        Some((id, graph.node(id)))
    };
    // From the divisor back to the variance.
    let centred = div.input(0)?;
    let (sqrt_id, sqrt) = producer(div.input(1)?).filter(|(_, node)| node.is("Sqrt"))?;
    let (root_id, root) = producer(sqrt.input(0)?).filter(|(_, node)| is_dequantize(node))?;
    unit.include(sqrt_id);
    unit.include(root_id);
    let mut code = root.input(0)?;
    let root = signed::codes(graph, root, code).ok()?;
    let mut divisors: Vec<u8> = (0..=255).collect();
    while let Some(step) = before(code) {
        let Kind::Elementwise(table) = &step.kind else { return None };
        // What this step gives goes through those behind it.
        let behind = divisors;
        divisors = table.iter().map(|&code| behind[usize::from(code)]).collect();
        step.nodes.iter().for_each(|&node| unit.include(node));
        code = *step.inputs.first()?;
    }
    let divisors =
        divisors.iter().map(|&code| dequantise(code, root.scale, root.zero_point).sqrt());
    let divisors: Arc<[f32]> = divisors.collect();
    if divisors.iter().any(|divisor| divisor.is_nan()) {
        return None;
    }
    let (quantize_id, quantize) = producer(code).filter(|(_, node)| is_quantize(node))?;
    let variance = Codes::read(graph, quantize).ok()?;
    let (second_id, second) = producer(quantize.input(0)?).filter(|(_, n)| n.is("ReduceMean"))?;
    let (square_id, square) = producer(second.input(0)?)?;
    if !is_square(graph, square, centred) {
        return None;
    }
    [quantize_id, second_id, square_id].into_iter().for_each(|node| unit.include(node));
    // From there back to the input.
    let (mut sub_id, mut sub) = producer(centred)?;
    let order = sub.is("Transpose").then(|| sub.ints("perm").map(<[i64]>::to_vec));
    if let Some(order) = &order {
        order.as_ref()?;
        unit.include(sub_id);
        (sub_id, sub) = producer(sub.input(0)?)?;
    }
    if !sub.is("Sub") {
        return None;
    }
    let (first_id, first) = producer(sub.input(1)?).filter(|(_, node)| node.is("ReduceMean"))?;
    unit.include(sub_id);
    unit.include(first_id);
    let mut source = None;
    for value in [sub.input(0)?, first.input(0)?] {
        let (dequantize_id, dequantize) =
            producer(value).filter(|(_, node)| is_dequantize(node))?;
        unit.include(dequantize_id);
        let codes = signed::codes(graph, dequantize, dequantize.input(0)?).ok()?;
        let found = (dequantize.input(0)?, codes);
        if source.is_some_and(|source| source != found) {
            return None;
        }
        source = Some(found);
    }
    let (source, input) = source?;
    if graph.value(source).constant.is_some()
        || [first, second].iter().any(|node| node.int("keepdims").unwrap_or(1) == 0)
    {
        return None;
    }
    let [axes, variance_axes] = [first, second].map(|node| axes_of(graph, node).ok());
    unit.reads(source);
    let (value, output) = unit.result().ok()?;
    let order = order.flatten();
    // With a transposition inside, what comes behind decides alone.
    let is_exposed = match order {
        Some(_) => leads_to_one(graph, value),
        None => is_exposed(graph, source, value),
    };
    if is_exposed {
        return None;
    }
    let how = How::Staged { axes: axes?, order, variance_axes: variance_axes?, variance, divisors };
    Some(unit.finish(value, Kind::Norm(Norm { input, output, how })))
}

/// Whether `node` is the square of `value`.
fn is_square(graph: &Graph, node: &Node, value: ValueId) -> bool {
    let is_two = |tensor: &Tensor| tensor.len() == 1 && tensor.as_f32().as_deref() == Some(&[2.0]);
    let first = node.input(0) == Some(value);
    (node.is("Pow") && first && graph.constant(node, 1).is_some_and(is_two))
        || (node.is("Mul") && first && node.input(1) == Some(value))
}
