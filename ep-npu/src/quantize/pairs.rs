//! Units of two tensors, element by element; one of them may be constant.

use super::codes::{Codes, SIGN};
use super::form::Former;
use super::pair_table::Table2;
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
pub(super) fn add(unit: Former<'_>) -> Result<Unit, Refusal> {
    of_two(unit, Operator::Add)
}

/// Mul.
pub(super) fn mul(unit: Former<'_>) -> Result<Unit, Refusal> {
    of_two(unit, Operator::Mul)
}

/// The CPU provider's formula of uint8 is also the device's; of other types it is taken pair by pair.
fn of_two(mut unit: Former<'_>, operator: Operator) -> Result<Unit, Refusal> {
    let node = unit.node();
    let (constant, first, second) = operands(&mut unit)?;
    let (value, result) = unit.result()?;
    let edges = unit.edges();
    let pairwise = match Pairwise::new(operator, edges, [first, second, result]) {
        Ok(pairwise) => pairwise,
        Err(found) => return refuse!(SCALE, "{node} has scales that come to a term of {found}"),
    };
    let kind = match operator {
        _ if edges != Edges::Unsigned => {
            let table = Table2::new(|a, b| pairwise.code(a, b));
            let sum = (operator == Operator::Add && edges == Edges::Signed).then_some(pairwise);
            Kind::Pair { function: table.function(&[pairwise.arithmetic()]), constant, sum }
        }
        Operator::Add => Kind::Add { first, second, result, constant },
        Operator::Mul => Kind::Mul { first, second, result, constant },
    };
    Ok(unit.finish(value, kind))
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
