//! Units to groups: which nodes run here, in convex groups, and for each of the others why not.
//!
//! A group is cut at 8-bit tensors only and holds whole units: the CPU provider fuses what is left
//! over by the same rules, so either side computes what the whole model on the CPU would.
//!
//! A plan depends on the graph and the device's limits alone. It tries everything that compiling a
//! group will do with shapes, so that compiling cannot refuse later for a reason known now.

mod group;
mod summary;

use crate::graph::{Graph, NodeId};
use crate::quantize::{self, Units};
use crate::refusal::{Refusal, rule};
use crate::shape::{self, Assignment, Shapes};
use npu_uapi::limits::Limits;

/// Which nodes run on the NPU.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Each group's nodes, in topological order. A group is convex and connected.
    pub groups: Vec<Vec<NodeId>>,
    /// One for each node, in node order.
    pub verdicts: Vec<Verdict>,
}

/// What becomes of a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// The node.
    pub node: NodeId,
    /// Its group, when it runs on the NPU.
    pub taken: Option<usize>,
    /// The [`rule`] by which it does not; empty when taken.
    pub rule: &'static str,
    /// What was found and what would be accepted; empty when taken.
    pub reason: String,
}

/// Plans `graph` for a device of these limits. Never fails: what cannot be taken has a verdict.
pub fn plan(graph: &Graph, limits: &Limits) -> Plan {
    let mut units = quantize::units(graph);
    for assignment in [Assignment::ones(), Assignment::distinct()] {
        refuse_shapes(graph, &mut units, assignment, limits);
    }
    let groups = group::groups(graph, &mut units, limits);
    let verdicts = graph
        .nodes()
        .zip(&units.of_node)
        .map(|((node, _), verdict)| match verdict {
            Ok(unit) => {
                let taken = groups.iter().position(|group| group.units.contains(unit));
                Verdict { node, taken, rule: "", reason: String::new() }
            }
            Err(Refusal { rule, reason }) => {
                Verdict { node, taken: None, rule, reason: reason.clone() }
            }
        })
        .collect();
    Plan { groups: groups.into_iter().map(|group| group.nodes).collect(), verdicts }
}

impl Plan {
    /// One line: how much is taken, and what is left for which reason.
    pub fn summary(&self, graph: &Graph) -> String {
        summary::line(self, graph)
    }
}

/// Refuses the units whose shapes do not work out under `assignment`.
fn refuse_shapes(graph: &Graph, units: &mut Units, mut assignment: Assignment, limits: &Limits) {
    let mut shapes = Shapes::new();
    for index in 0..units.units.len() {
        let unit = &units.units[index];
        if units.of_node[unit.target.0 as usize].is_err() {
            continue;
        }
        let mut shape_of = |value| match shapes.get(&value) {
            Some(shape) => Ok(Vec::clone(shape)),
            None => assignment.shape(graph, value),
        };
        let inputs: Result<Vec<_>, _> = unit.inputs.iter().map(|&value| shape_of(value)).collect();
        let output = inputs.and_then(|inputs| {
            let inputs: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
            let output = shape::output(graph, unit, &inputs)?;
            group::check_work(graph, unit, &inputs, &output, limits)?;
            Ok(output)
        });
        match output {
            Ok(shape) => {
                shapes.insert(unit.output, shape);
            }
            Err(refusal) => refuse_unit(units, index, &refusal),
        }
    }
}

/// Gives all nodes of a unit the verdict `refusal`.
fn refuse_unit(units: &mut Units, index: usize, refusal: &Refusal) {
    for node in &units.units[index].nodes {
        units.of_node[node.0 as usize] = Err(refusal.clone());
    }
}

/// The refusal of a group that does nothing but convert.
fn no_work() -> Refusal {
    Refusal::new(rule::NO_WORK, "the group would convert and reshape only; the CPU keeps it")
}
