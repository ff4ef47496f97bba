//! Graph to units: which nodes the CPU provider turns into one 8-bit operator together.
//!
//! ```text
//! DequantizeLinear -> Conv -> (Relu that changes nothing) -> QuantizeLinear     one unit
//! QuantizeLinear of a float graph input, DequantizeLinear to a float graph output     a unit each
//! ```
//!
//! The rules are those of ONNX Runtime's QDQ fusion, so that what is taken here is what would have
//! been fused there: whoever runs a unit, the bits are the same. Shapes are the next stage's matter.

mod arithmetic;
mod attention;
mod carry;
mod codes;
mod elements;
mod expression;
mod form;
mod functions;
mod left;
mod linear;
mod norms;
mod pad;
mod pair_table;
mod pairs;
mod pairwise;
mod pick;
mod pools;
mod products;
mod rearrange;
mod reduce;
mod resize;
mod same;
mod signed;
mod split;
mod sums;
mod terms;
mod transposed;
mod unit;
mod vectors;
mod window;

pub use arithmetic::{Arithmetic, Floats};
pub use attention::{Parts, is_in_range, multiplier, parts, whole};
pub use carry::Carry;
#[cfg(test)]
pub(crate) use codes::SIGN;
pub(crate) use codes::change_of_sign;
pub use codes::{Codes, Table};
pub(crate) use linear::keeps_rows_only;
pub use linear::{Between, Linear};
pub use norms::{How, Norm};
pub use pad::{Border, Pads};
pub use pair_table::{Arithmetic2, Function2, Table2};
pub use pairs::Operand;
pub use pairwise::Pairwise;
pub use pick::{Run, runs};
pub(crate) use products::is_turned;
pub(crate) use rearrange::axis_of;
pub use rearrange::{Rearrange, Step};
pub use resize::{Coordinates, Factors, Nearest, Rounding, Scaling};
pub(crate) use signed::{becomes_unsigned, is_signed, readers, way, writer};
pub use split::{Lengths, Share, Split};
pub use sums::Sum;
pub(crate) use sums::{comes_from_one, leads_to_one, stops_transpositions};
pub(crate) use transposed::weight;
pub use transposed::{Blocks, Spread, TransposedSpec};
pub use unit::{Kind, Products, ShapeChange, Unit, Weights};
pub use window::{Placed, WindowSpec};

use crate::graph::{ElementType, Graph, Node, NodeId, ValueId};
use crate::refusal::{Refusal, refuse};
use crate::trace::{self, Stage};
use form::{Former, closed, is_dequantize, is_quantize};

/// Units of a graph, and for each node the unit it belongs to or why it belongs to none.
#[derive(Clone, Debug)]
pub struct Units {
    /// The units, in topological order.
    pub units: Vec<Unit>,
    /// For each node, in order.
    pub of_node: Vec<Result<usize, Refusal>>,
}

impl Units {
    /// The unit around the operator `target`, whether it is taken or not.
    pub(crate) fn around(&self, target: NodeId) -> Option<&Unit> {
        let at = self.units.binary_search_by_key(&target, |unit| unit.target).ok()?;
        self.units.get(at)
    }
}

/// Finds the units of `graph`. Any graph is fine; what fits no unit is refused with a reason.
pub fn units(graph: &Graph) -> Units {
    trace::ran(Stage::Quantize);
    let mut search = Search { graph, units: Vec::new(), of_node: vec![None; graph.node_count()] };
    search.operators();
    search.conversions();
    search.finish()
}

struct Search<'g> {
    graph: &'g Graph,
    units: Vec<Unit>,
    of_node: Vec<Option<Result<usize, Refusal>>>,
}

impl Search<'_> {
    /// Units around operators; a refused operator refuses the conversions that are its own.
    fn operators(&mut self) {
        for (id, node) in self.graph.nodes() {
            if is_quantize(node) || is_dequantize(node) || self.is_settled(id) {
                continue;
            }
            let unit = match self.expression(id, node) {
                Some(unit) => unit,
                None => operator(self.graph, id, node),
            };
            match unit.and_then(|unit| closed(self.graph, unit)) {
                Ok(unit) => self.take(unit),
                Err(refusal) => self.refuse(id, &refusal),
            }
        }
    }

    /// The unit of `node` as a function of one tensor; `None` where it is no such thing.
    fn expression(&self, id: NodeId, node: &Node) -> Option<Result<Unit, Refusal>> {
        let writer = |value: ValueId| {
            let node = self.graph.value(value).producer?;
            let &Some(Ok(unit)) = &self.of_node[node.0 as usize] else { return None };
            let unit = &self.units[unit];
            matches!(unit.kind, Kind::Elementwise(_)).then_some(unit)
        };
        if node.is("Div")
            && let Some(unit) = norms::staged(self.graph, id, &writer)
            && let Ok(unit) = closed(self.graph, unit)
        {
            return Some(Ok(unit));
        }
        if node.is("MaxPool") {
            return expression::pooled(self.graph, id, &writer).transpose();
        }
        let unit = terms::is_operation(node).then(|| expression::form(self.graph, id, &writer));
        unit.and_then(Result::transpose)
    }

    /// Units of conversions that belong to no operator; a QuantizeLinear may claim the
    /// DequantizeLinear before it.
    fn conversions(&mut self) {
        self.sweep(is_quantize, quantize);
        self.sweep(is_dequantize, dequantize);
    }

    fn sweep(
        &mut self,
        is_mine: fn(&Node) -> bool,
        form: fn(&Graph, NodeId, &Node) -> Result<Unit, Refusal>,
    ) {
        for (id, node) in self.graph.nodes() {
            if !is_mine(node) || self.is_settled(id) {
                continue;
            }
            let unit = form(self.graph, id, node);
            match unit.and_then(|unit| closed(self.graph, unit)) {
                Ok(unit) => self.take(unit),
                Err(refusal) => self.settle(id, Err(refusal)),
            }
        }
    }

    fn finish(self) -> Units {
        // Some units have become part of a later one.
        let is_whole = |&unit: &usize| {
            let target: &Unit = &self.units[unit];
            matches!(&self.of_node[target.target.0 as usize], Some(Ok(of)) if *of == unit)
        };
        // Units were found in two sweeps; the order of their operators is topological.
        let mut order: Vec<usize> = (0..self.units.len()).filter(is_whole).collect();
        order.sort_by_key(|&unit| self.units[unit].target);
        let mut position = vec![0; self.units.len()];
        for (new, &old) in order.iter().enumerate() {
            position[old] = new;
        }
        let units = order.iter().map(|&unit| self.units[unit].clone()).collect();
        let of_node = self
            .of_node
            .into_iter()
            .map(|verdict| match verdict {
                Some(verdict) => verdict.map(|unit| position[unit]),
                None => refuse!(UNIT, "the node stands between units"),
            })
            .collect();
        Units { units, of_node }
    }

    fn is_settled(&self, id: NodeId) -> bool {
        self.of_node[id.0 as usize].is_some()
    }

    fn settle(&mut self, id: NodeId, verdict: Result<usize, Refusal>) {
        self.of_node[id.0 as usize].get_or_insert(verdict);
    }

    /// Whatever was said of the unit's nodes before: what it holds is its own, as `closed` has seen.
    fn take(&mut self, unit: Unit) {
        for &node in &unit.nodes {
            self.of_node[node.0 as usize] = Some(Ok(self.units.len()));
        }
        self.units.push(unit);
    }

    fn refuse(&mut self, target: NodeId, refusal: &Refusal) {
        self.settle(target, Err(refusal.clone()));
        let node = self.graph.node(target);
        let before = node.inputs.iter().flatten().filter_map(|&v| self.graph.value(v).producer);
        let after = node.outputs.iter().flatten().flat_map(|&v| &self.graph.value(v).consumers);
        let before = before.filter(|&id| is_dequantize(self.graph.node(id)));
        let after = after.copied().filter(|&id| is_quantize(self.graph.node(id)));
        for id in before.chain(after).collect::<Vec<_>>() {
            let reason = format!("belongs to {node}: {}", refusal.reason);
            self.settle(id, Err(Refusal::new(refusal.rule, reason)));
        }
    }
}

/// The unit around an operator.
fn operator(graph: &Graph, id: NodeId, node: &Node) -> Result<Unit, Refusal> {
    let unit = Former::new(graph, id);
    let form = match node.op.as_str() {
        "Conv" => products::conv,
        "ConvTranspose" => transposed::conv_transpose,
        "Gemm" => products::gemm,
        "MatMul" => products::matmul,
        "Softmax" => attention::softmax,
        "Add" => pairs::add,
        "Mul" => pairs::mul,
        "MaxPool" => pools::max_pool,
        "AveragePool" => pools::average_pool,
        "GlobalAveragePool" => pools::global_average_pool,
        "GlobalMaxPool" => reduce::global_max_pool,
        "ReduceMax" | "ReduceMin" => reduce::extreme,
        "ReduceMean" | "ReduceSum" => sums::sum,
        "LayerNormalization" => norms::layer,
        "InstanceNormalization" => norms::instance,
        "Concat" => rearrange::concat,
        "Pad" => pad::pad,
        "Split" => split::split,
        "Slice" => rearrange::slice_unit,
        "Gather" => rearrange::gather,
        "Transpose" => rearrange::transpose,
        "Resize" => rearrange::resize,
        "Expand" => rearrange::expand_unit,
        "Tile" => rearrange::tile,
        "DepthToSpace" | "SpaceToDepth" => rearrange::blocks,
        "Flatten" => elements::flatten,
        "Reshape" => elements::reshape,
        "Squeeze" => elements::squeeze,
        "Unsqueeze" => elements::unsqueeze,
        op if terms::is_operation(node) => {
            return refuse!(
                OPERATOR,
                "{node}: no exact form of {op} of more than two tensors, or of one and a tensor of constants"
            );
        }
        _ => return refuse!(OPERATOR, "{node}: {}", left::why(node)),
    };
    if !node.is(&node.op) {
        return refuse!(
            OPERATOR,
            "{node} is of domain `{}`; only ONNX's own is taken",
            node.domain
        );
    }
    form(unit)
}

/// The unit of one conversion.
fn alone(node: NodeId, input: ValueId, output: ValueId, kind: Kind) -> Unit {
    Unit { target: node, nodes: vec![node], inputs: vec![input], output, others: Vec::new(), kind }
}

/// A QuantizeLinear that ends no operator's unit: of floats from a graph input, or behind a
/// DequantizeLinear.
fn quantize(graph: &Graph, id: NodeId, node: &Node) -> Result<Unit, Refusal> {
    let (Some(input), Some(output)) = (node.input(0), node.output(0)) else {
        return refuse!(UNIT, "{node} lacks its input or output");
    };
    let value = graph.value(input);
    if value.constant.is_some() {
        return refuse!(UNIT, "{node} reads a constant; fold it");
    }
    let Some(producer) = value.producer else {
        if value.ty.as_ref().is_some_and(|ty| ty.element != ElementType::F32) {
            return refuse!(ELEMENT_TYPE, "{node} reads `{}`, which is not float32", value.name);
        }
        let kind = Kind::Quantize(Codes::read(graph, node)?);
        return Ok(alone(id, input, output, kind));
    };
    let before = graph.node(producer);
    if carry::from_an_input(graph, before) {
        let kind = Kind::Quantize(Codes::read(graph, node)?);
        return Ok(alone(id, input, output, kind));
    }
    if !is_dequantize(before) {
        return refuse!(
            FLOAT_NEIGHBOUR,
            "{node} reads the float of {before}, which stays on the CPU"
        );
    }
    let mut unit = Former::new(graph, id);
    let from = unit.activation(0)?;
    let to = Codes::read(graph, node)?;
    Ok(unit.finish(output, Kind::Elementwise(from.table(to, |value| value))))
}

/// A DequantizeLinear that begins no operator's unit: to a graph output.
fn dequantize(graph: &Graph, id: NodeId, node: &Node) -> Result<Unit, Refusal> {
    let (Some(input), Some(output)) = (node.input(0), node.output(0)) else {
        return refuse!(UNIT, "{node} lacks its input or output");
    };
    if let Some(&reader) = graph.value(output).consumers.first() {
        let reader = graph.node(reader);
        return refuse!(FLOAT_NEIGHBOUR, "{node} feeds {reader}, which stays on the CPU");
    }
    if graph.value(input).constant.is_some() || !graph.is_output(output) {
        return refuse!(UNIT, "{node} feeds no unit and no graph output");
    }
    let kind = Kind::Dequantize(signed::codes(graph, node, input)?);
    Ok(alone(id, input, output, kind))
}
