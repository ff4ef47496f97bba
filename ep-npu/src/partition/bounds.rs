//! By how many codes each node's results can differ from those of the whole model on the CPU provider:
//! none, unless `exactness=bounded` lets them.
//!
//! Two things come together: what a taken unit is bound to, and what a cut does to the operators beside it,
//! on either side: with int8 at a border of a group, the CPU provider, or the group's own program, computes in
//! floats what the whole model has in integers.

use crate::exactness::Exactness;
use crate::graph::{Graph, NodeId, ValueId};
use crate::quantize::{self, Kind, Unit, Units};
use crate::shape::{self, Shapes, bounded};
use npu_uapi::requantise::{AddTerms, MulTerms, add, multiply};
use std::collections::BTreeSet;

/// Shapes of a graph's tensors, for a batch of 1 and for other ones.
#[derive(Clone, Copy)]
pub(super) struct Assigned<'a> {
    pub(super) one: &'a Shapes,
    pub(super) other: &'a Shapes,
}

/// The units as they are when int8 tensors are borders of a group, which keeps them int8.
pub(super) struct Parted {
    graph: Graph,
    units: Units,
}

impl Parted {
    /// Of `graph`, with borders at `values`.
    pub(super) fn new(graph: &Graph, values: &BTreeSet<ValueId>) -> Self {
        let mut graph = graph.clone();
        graph.expose(values.iter().copied());
        let units = quantize::units(&graph);
        Self { graph, units }
    }

    fn unit(&self, target: NodeId) -> Option<&Unit> {
        let index = *self.units.of_node[target.0 as usize].as_ref().ok()?;
        Some(&self.units.units[index]).filter(|unit| unit.target == target)
    }

    /// Whether what `whole` computes lies within a code of what its operator does when it is parted, and
    /// can be compiled so.
    pub(super) fn is_within_a_code(&self, whole: &Unit, shapes: Assigned<'_>) -> bool {
        let Some(parted) = self.unit(whole.target) else { return false };
        [shapes.one, shapes.other].into_iter().all(|shapes| {
            let inputs = parted.inputs.iter().map(|value| shapes.get(value).map(Vec::as_slice));
            inputs.collect::<Option<Vec<_>>>().is_some_and(|inputs| {
                shape::outputs(&self.graph, parted, &inputs).is_ok()
                    && codes_apart(&self.graph, whole, parted, &inputs) < 1.0
            })
        })
    }
}

/// By less than how many codes two forms of an operator differ on the same codes, or infinite. Of tables,
/// half of what they do at most, so that it is below 1 where they differ by one.
fn codes_apart(graph: &Graph, whole: &Unit, parted: &Unit, inputs: &[&[usize]]) -> f64 {
    match (&whole.kind, &parted.kind) {
        (
            Kind::Conv { products: of_codes, .. } | Kind::Product(of_codes),
            Kind::Conv { products: of_floats, .. } | Kind::Product(of_floats),
        ) => match (of_codes.arithmetic.floats(), of_floats.arithmetic.floats()) {
            (None, Some(_)) => {
                let roundings = bounded::roundings_of(graph, parted, inputs);
                bounded::codes_from_integers(of_codes, of_floats, roundings)
            }
            (None, None) | (Some(_), Some(_)) => 0.0,
            (Some(_), None) => f64::INFINITY,
        },
        (Kind::GlobalAveragePool { input, output }, Kind::GlobalMean { .. }) => {
            let count = inputs[0].iter().skip(2).product();
            bounded::means_apart(*input, *output, count)
        }
        (a, b) => match (code_of_two(a), code_of_two(b)) {
            (Some(a), Some(b)) => {
                let pairs = (0..=255_u8).flat_map(|x| (0..=255_u8).map(move |y| (x, y)));
                let most = pairs.map(|(x, y)| a(x, y).abs_diff(b(x, y))).max().unwrap_or(0);
                f64::from(most) / 2.0
            }
            _ => f64::INFINITY,
        },
    }
}

type OfTwo<'a> = Box<dyn Fn(u8, u8) -> u8 + 'a>;

/// The function of two codes that a unit is.
fn code_of_two(kind: &Kind) -> Option<OfTwo<'_>> {
    let pair = |codes: &quantize::Codes| (codes.scale, codes.zero_point);
    match kind {
        Kind::Add { first, second, result, .. } => {
            let terms = AddTerms::new(pair(first), pair(second), pair(result));
            Some(Box::new(move |a, b| add(a, b, terms)))
        }
        Kind::Mul { first, second, result, .. } => {
            let terms = MulTerms::new(pair(first), pair(second), pair(result));
            Some(Box::new(move |a, b| multiply(a, b, terms)))
        }
        Kind::Pair { function, .. } => Some(Box::new(|a, b| function.code(a, b))),
        _ => None,
    }
}

/// The bound of each node, in codes: of taken units, and of the operators `beside` a cut.
pub(super) fn of_nodes(
    graph: &Graph,
    units: &Units,
    values: &BTreeSet<ValueId>,
    beside: &BTreeSet<NodeId>,
    shapes: Assigned<'_>,
) -> Vec<u8> {
    let mut bounds = vec![0; graph.node_count()];
    if graph.exactness() == Exactness::Require {
        return bounds;
    }
    let parted = Parted::new(graph, values);
    for unit in &units.units {
        let is_taken = units.of_node[unit.target.0 as usize].is_ok();
        let own = if is_taken { bound(&parted, unit, shapes) } else { 0 };
        let bound = own.saturating_add(u8::from(beside.contains(&unit.target)));
        for node in &unit.nodes {
            let of_node = &mut bounds[node.0 as usize];
            *of_node = bound.max(*of_node);
        }
    }
    bounds
}

fn bound(parted: &Parted, unit: &Unit, Assigned { one, other }: Assigned<'_>) -> u8 {
    let unit = parted.unit(unit.target).unwrap_or(unit);
    let of = |shapes: &Shapes| {
        let inputs = unit.inputs.iter().map(|value| shapes.get(value).map(Vec::as_slice));
        let inputs = inputs.collect::<Option<Vec<_>>>().unwrap_or_default();
        bounded::bound(&parted.graph, unit, &inputs)
    };
    // The order of a product hangs on its rows, and a later batch may have any number of them.
    let is_open = unit.inputs.iter().any(|value| one.get(value) != other.get(value));
    let may_turn =
        matches!(&unit.kind, Kind::Product(products) if products.arithmetic.floats().is_some());
    of(one).max(of(other)).max(u8::from(is_open && may_turn))
}
