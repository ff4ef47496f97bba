//! Units to groups: which nodes run here, in convex groups, and for each of the others why not.
//!
//! A group is cut at 8-bit tensors only and holds whole units: the CPU provider fuses what is left
//! over by the same rules, so either side computes what the whole model on the CPU would.
//!
//! A plan depends on the graph and the device's limits alone. It tries everything that compiling a
//! group will do with shapes, so that compiling cannot refuse later for a reason known now.

mod bounds;
mod cut;
mod group;
mod layout;
mod open;
mod pools;
pub mod price;
mod summary;
mod vanish;

use crate::graph::{Graph, NodeId};
use crate::quantize::{self, Unit, Units};
use crate::refusal::{Refusal, rule};
use crate::shape::{self, Assignment, Shapes};
use bounds::Assigned;
use npu_uapi::limits::Limits;
use std::collections::btree_map::Entry;
use std::time::Duration;

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
    /// By how many codes its results can differ from the CPU provider's on the same inputs. Not 0 only
    /// with [`crate::Exactness::Bounded`]; of a node that is not taken, because a cut beside it has the CPU
    /// provider compute it otherwise.
    pub bound_codes: u8,
}

/// What a plan shall look at beside what is exact.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct PlanOptions {
    /// A group is taken only when that is estimated to save as much time over leaving it to the CPU; see
    /// [`price`]. Not looked at when `None`: then only lone operators without weights stay with their
    /// neighbours.
    pub min_gain: Option<Duration>,
}

/// Plans `graph` for a device of these limits. Never fails: what cannot be taken has a verdict.
pub fn plan(graph: &Graph, limits: &Limits) -> Plan {
    plan_with(graph, limits, PlanOptions::default())
}

/// As [`plan`], with options.
pub fn plan_with(graph: &Graph, limits: &Limits, options: PlanOptions) -> Plan {
    let mut units = quantize::units(graph);
    let (mut shapes, mut distinct) = settle_shapes(graph, &mut units, limits);
    let mut settled = count_taken(&units);
    layout::refuse(graph, &mut units, &shapes);
    let groups = loop {
        let assigned = Assigned { one: &shapes, other: &distinct };
        let groups = group::groups(graph, &mut units, assigned, limits, options);
        if layout::refuse(graph, &mut units, &shapes) || pools::refuse(graph, &mut units, &groups) {
            continue;
        }
        if count_taken(&units) == settled {
            break groups;
        }
        // What was refused since writes the shape that the model says, and what reads it is looked at again.
        (shapes, distinct) = settle_shapes(graph, &mut units, limits);
        settled = count_taken(&units);
    };
    let assigned = Assigned { one: &shapes, other: &distinct };
    let borders = cut::borders(graph, &units, &groups, assigned);
    let bounds = bounds::of_nodes(graph, &units, &borders.values, &borders.bounded, assigned);
    let group_of = group::of_units(&groups, units.units.len());
    let verdicts = graph
        .nodes()
        .zip(&units.of_node)
        .zip(bounds)
        .map(|(((node, _), verdict), bound_codes)| match verdict {
            Ok(unit) => {
                let taken = group_of[*unit];
                Verdict { node, taken, rule: "", reason: String::new(), bound_codes }
            }
            Err(Refusal { rule, reason }) => {
                Verdict { node, taken: None, rule, reason: reason.clone(), bound_codes }
            }
        })
        .collect();
    Plan { groups: groups.into_iter().map(|group| group.nodes).collect(), verdicts }
}

impl Plan {
    /// Whether every node gives what the CPU provider gives for the whole model, bit for bit.
    pub fn is_exact(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.bound_codes == 0)
    }

    /// One line: how much is taken, and what is left for which reason.
    pub fn summary(&self, graph: &Graph) -> String {
        summary::line(self, graph)
    }
}

fn count_taken(units: &Units) -> usize {
    units.of_node.iter().filter(|verdict| verdict.is_ok()).count()
}

/// Refuses the units whose shapes do not work out, of one sample and of more; gives the shapes of the rest
/// with dimensions of one and with others.
///
/// What a refused unit writes has the shape that the model says, and not the one that was found: whatever
/// is refused, the rest is looked at again.
fn settle_shapes(graph: &Graph, units: &mut Units, limits: &Limits) -> (Shapes, Shapes) {
    loop {
        let taken = count_taken(units);
        let distinct = check_shapes(graph, units, Assignment::distinct(), limits);
        let shapes = check_shapes(graph, units, Assignment::ones(), limits);
        vanish::refuse(graph, units, &shapes, &distinct);
        open::refuse(graph, units, &shapes, &distinct);
        if count_taken(units) == taken {
            return (shapes, distinct);
        }
    }
}

/// Refuses the units whose shapes do not work out under `assignment`; gives the shapes of the rest.
fn check_shapes(
    graph: &Graph,
    units: &mut Units,
    mut assignment: Assignment,
    limits: &Limits,
) -> Shapes {
    let mut shapes = Shapes::new();
    for index in 0..units.units.len() {
        let unit = &units.units[index];
        if units.of_node[unit.target.0 as usize].is_err() {
            continue;
        }
        match check_unit(graph, unit, &mut shapes, &mut assignment, limits) {
            Ok(()) => {}
            Err(refusal) => refuse_unit(units, index, &refusal),
        }
    }
    shapes
}

fn check_unit(
    graph: &Graph,
    unit: &Unit,
    shapes: &mut Shapes,
    assignment: &mut Assignment,
    limits: &Limits,
) -> Result<(), Refusal> {
    for &value in &unit.inputs {
        if let Entry::Vacant(unknown) = shapes.entry(value) {
            unknown.insert(assignment.shape(graph, value)?);
        }
    }
    let inputs: Vec<&[usize]> = unit.inputs.iter().map(|value| shapes[value].as_slice()).collect();
    let outputs = shape::outputs(graph, unit, &inputs)?;
    group::check_work(graph, unit, &inputs, &outputs[0], limits)?;
    shapes.extend(unit.outputs().zip(outputs));
    Ok(())
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
