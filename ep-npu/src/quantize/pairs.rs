//! Units of two tensors, element by element; one of them may be constant.

use super::codes::{Codes, SIGN};
use super::form::Former;
use super::pairwise::{Operator, Pairwise};
use super::signed::Edges;
use super::unit::{Kind, Unit};
use crate::graph::{ElementType, Graph, Node, Tensor};
use crate::refusal::{Refusal, refuse};

/// The constant operand of a sum or product: codes of several elements.
#[derive(Clone, Debug)]
pub struct Operand {
    /// The codes.
    pub tensor: Tensor,
    /// Whether it is the first operand.
    pub is_first: bool,
}

impl Operand {
    /// What comes first and what comes second of the constant's `own` and the tensor's `other`.
    pub fn order<T>(&self, own: T, other: T) -> [T; 2] {
        if self.is_first { [own, other] } else { [other, own] }
    }
}

/// Add.
pub(super) fn add(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let (constant, first, second) = operands(&mut unit)?;
    let (value, result) = unit.result()?;
    check(&unit, Operator::Add, [first, second, result])?;
    Ok(unit.finish(value, Kind::Add { first, second, result, constant }))
}

/// Mul.
pub(super) fn mul(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let (constant, first, second) = operands(&mut unit)?;
    let (value, result) = unit.result()?;
    check(&unit, Operator::Mul, [first, second, result])?;
    Ok(unit.finish(value, Kind::Mul { first, second, result, constant }))
}

/// Refuses what the device's formula, which is that of uint8, does not give for all pairs of codes.
fn check(unit: &Former<'_>, operator: Operator, codes: [Codes; 3]) -> Result<(), Refusal> {
    let node = unit.node();
    let pairwise = match Pairwise::new(operator, unit.edges(), codes) {
        Ok(pairwise) => pairwise,
        Err(found) => return refuse!(SCALE, "{node} has scales that come to a term of {found}"),
    };
    let mut pairs = (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b)));
    let differs = |&(a, b): &(u8, u8)| pairwise.code(a, b) != pairwise.unsigned(a, b);
    if unit.edges() != Edges::Unsigned && pairs.any(|pair| differs(&pair)) {
        return refuse!(
            S8_ACTIVATIONS,
            "{node} joins int8 tensors, which the CPU does in float; quantise activations as uint8"
        );
    }
    Ok(())
}

/// Whether `node` is an Add or Mul with a quantised constant of several elements, which no table can say.
pub(super) fn reads_a_tensor_of_constants(graph: &Graph, node: &Node) -> bool {
    let is_long = |index| constant(graph, node, index).is_some_and(|tensor| tensor.len() != 1);
    (node.is("Add") || node.is("Mul")) && (is_long(0) || is_long(1))
}

fn operands(unit: &mut Former<'_>) -> Result<(Option<Operand>, Codes, Codes), Refusal> {
    let (graph, node) = (unit.graph, unit.node());
    let found = [0, 1].map(|index| constant(graph, node, index));
    let (is_first, tensor) = match found {
        [Some(tensor), None] => (true, tensor),
        [None, Some(tensor)] => (false, tensor),
        _ => return Ok((None, unit.activation(0)?, unit.activation(1)?)),
    };
    let mut tensor = tensor.clone();
    if tensor.element == ElementType::I8 {
        tensor.bytes = tensor.bytes.iter().map(|byte| byte ^ SIGN).collect();
    }
    let codes = [0, 1].map(|index| {
        if is_first == (index == 0) { unit.constant_codes(index) } else { unit.activation(index) }
    });
    let [first, second] = codes;
    Ok((Some(Operand { tensor, is_first }), first?, second?))
}

/// The constant that input `index` of `node` is dequantised from.
fn constant<'g>(graph: &'g Graph, node: &Node, index: usize) -> Option<&'g Tensor> {
    let dequantize = graph.node(graph.value(node.input(index)?).producer?);
    let source = dequantize.input(0).filter(|_| super::is_dequantize(dequantize))?;
    graph.value(source).constant.as_ref()
}
