//! Groups of units: convex, connected, worth the way, and within what one program may hold.

use super::bounds::Assigned;
use super::price::{PROGRAM_NS, Work};
use super::{PlanOptions, cut, no_work, refuse_unit};
use crate::graph::{Graph, NodeId, ValueId};
use crate::lower::{Flow, Part};
use crate::program::{self, CompileError};
use crate::quantize::{Blocks, Kind, Unit, Units};
use crate::refusal::{Refusal, refuse, rule};
use crate::shape::{Assignment, Shapes};
use npu_uapi::limits::Limits;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Some units that become one program.
pub(super) struct Group {
    /// Indices of the units.
    pub(super) units: BTreeSet<usize>,
    /// Their nodes, in topological order.
    pub(super) nodes: Vec<NodeId>,
}

/// For each of `count` units, the place of its group among `groups`.
pub(super) fn of_units(groups: &[Group], count: usize) -> Vec<Option<usize>> {
    let mut group_of = vec![None; count];
    for (at, group) in groups.iter().enumerate() {
        group.units.iter().for_each(|&unit| group_of[unit] = Some(at));
    }
    group_of
}

/// Groups the units that are left; groups that are not worth it are refused, and the rest regrouped.
pub(super) fn groups(
    graph: &Graph,
    units: &mut Units,
    shapes: Assigned<'_>,
    limits: &Limits,
    options: PlanOptions,
) -> Vec<Group> {
    loop {
        let mut settled = !refuse_carries(graph, units);
        let groups = connected(graph, units);
        if cut::refuse(graph, units, &groups, shapes) || refuse_open_edges(graph, units, &groups) {
            continue;
        }
        for group in &groups {
            if let Err(refusal) = check(graph, units, group, shapes.one, limits, options) {
                settled = false;
                for &unit in &group.units {
                    refuse_unit(units, unit, &refusal);
                }
            }
        }
        if settled {
            return groups;
        }
    }
}

/// Refuses units that carry floats to a node which is not taken: floats do not leave a group. Gives
/// whether there were any.
fn refuse_carries(graph: &Graph, units: &mut Units) -> bool {
    let leaks = |unit: &Unit| {
        let is_left = |&node: &NodeId| units.of_node[node.0 as usize].is_err();
        units.of_node[unit.target.0 as usize].is_ok()
            && matches!(unit.kind, Kind::Carry(_))
            && unit.outputs().any(|value| graph.value(value).consumers.iter().any(is_left))
    };
    let found: Vec<usize> =
        (0..units.units.len()).filter(|&unit| leaks(&units.units[unit])).collect();
    for &unit in &found {
        let node = graph.node(units.units[unit].target);
        let refusal = Refusal::new(
            rule::FLOAT_NEIGHBOUR,
            format!("{node} writes floats for a node that stays on the CPU"),
        );
        refuse_unit(units, unit, &refusal);
    }
    !found.is_empty()
}

/// Refuses units at the edge of their group that read a value whose declared shape a program cannot
/// stand for, such as one with the batch in another place than the first: inside a group the shapes are
/// computed, at its edge they are what the model says. Gives whether there were any.
fn refuse_open_edges(graph: &Graph, units: &mut Units, groups: &[Group]) -> bool {
    let mut found = false;
    for group in groups {
        let written: BTreeSet<ValueId> =
            group.units.iter().flat_map(|&unit| units.units[unit].outputs()).collect();
        for &unit in &group.units {
            let mut edges =
                units.units[unit].inputs.iter().filter(|input| !written.contains(input));
            let refusal = edges.find_map(|&input| Assignment::ones().shape(graph, input).err());
            if let Some(refusal) = refusal {
                found = true;
                refuse_unit(units, unit, &refusal);
            }
        }
    }
    found
}

/// Refuses a unit whose work exceeds what one command may do.
pub(super) fn check_work(
    graph: &Graph,
    unit: &Unit,
    inputs: &[&[usize]],
    output: &[usize],
    limits: &Limits,
) -> Result<(), Refusal> {
    let count = |shape: &[usize]| shape.iter().map(|&len| len as u128).product::<u128>();
    let macs = match &unit.kind {
        Kind::Conv { products, .. } => {
            let [rows, columns] = products.weights.kernel;
            let inputs = products.weights.inputs.next_multiple_of(4);
            count(output) * (inputs * rows * columns) as u128
        }
        Kind::Product(products) => count(output) * products.weights.inputs as u128,
        Kind::ConvTranspose { products, spec } => {
            let &[images, _, .., columns] = inputs[0] else { return Ok(()) };
            let rows = if spec.is_row() { 1 } else { inputs[0][2] };
            let blocks =
                Blocks::new(graph.node(unit.target), products, spec, [images, rows, columns])?;
            let [_, out] = blocks.shapes();
            count(&out) * blocks.terms().next_multiple_of(4) as u128
        }
        Kind::MaxPool { window, .. } | Kind::AveragePool { window, .. } => {
            count(output) * window.taps() as u128
        }
        _ => count(inputs[0]),
    };
    if macs <= u128::from(limits.command_macs) {
        return Ok(());
    }
    let node = graph.node(unit.target);
    let most = limits.command_macs;
    refuse!(SIZE, "{node} does {macs} multiplications; the device takes {most} in one command")
}

/// Connected components of units of equal level, where a step between taken and not taken raises
/// the level: no path leaves a component and comes back.
///
/// Levels are of whole units. A unit is entered through its DequantizeLinear nodes and left through
/// its last node only, so seeing it as one node makes no cycle.
fn connected(graph: &Graph, units: &Units) -> Vec<Group> {
    let mut written: BTreeMap<ValueId, Source> = BTreeMap::new();
    let mut root: Vec<usize> = (0..units.units.len()).collect();
    // A unit's target stands behind all that the unit reads and before all that it feeds, so
    // visiting units at their targets is topological.
    for (id, node) in graph.nodes() {
        let unit = units.of_node[id.0 as usize].as_ref().ok().copied();
        if unit.is_some_and(|unit| units.units[unit].target != id) {
            continue;
        }
        let reads: Vec<ValueId> = match unit {
            Some(unit) => units.units[unit].inputs.clone(),
            None => node.inputs.iter().copied().flatten().collect(),
        };
        let sources: Vec<Source> =
            reads.iter().filter_map(|value| written.get(value).copied()).collect();
        let raised =
            |source: &Source| source.level + usize::from(source.unit.is_some() != unit.is_some());
        let level = sources.iter().map(raised).max().unwrap_or(0);
        let source = Source { level, unit };
        let Some(unit) = unit else {
            written.extend(node.outputs.iter().flatten().map(|&value| (value, source)));
            continue;
        };
        for before in sources.iter().filter(|before| before.level == level) {
            if let Some(before) = before.unit {
                let (a, b) = (find(&mut root, before), find(&mut root, unit));
                root[a.max(b)] = a.min(b);
            }
        }
        written.extend(units.units[unit].outputs().map(|value| (value, source)));
    }
    collect(units, &mut root)
}

/// What writes a value.
#[derive(Clone, Copy)]
struct Source {
    level: usize,
    unit: Option<usize>,
}

fn collect(units: &Units, root: &mut [usize]) -> Vec<Group> {
    let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
    for (index, unit) in units.units.iter().enumerate() {
        if units.of_node[unit.target.0 as usize].is_ok() {
            let group = groups
                .entry(find(root, index))
                .or_insert_with(|| Group { units: BTreeSet::new(), nodes: Vec::new() });
            group.units.insert(index);
            group.nodes.extend(&unit.nodes);
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.nodes.sort_unstable();
    }
    groups
}

fn find(root: &mut [usize], mut unit: usize) -> usize {
    while root[unit] != unit {
        root[unit] = root[root[unit]];
        unit = root[unit];
    }
    unit
}

/// Whether the group is an operator or two without weights, and all that it reads and writes is the CPU's.
fn is_island(graph: &Graph, members: &[&Unit]) -> bool {
    let has_weights = |unit: &&Unit| {
        matches!(unit.kind, Kind::Conv { .. } | Kind::ConvTranspose { .. } | Kind::Product(_))
    };
    let is_edge = |unit: &&Unit| {
        let is_fed = unit.inputs.iter().any(|&input| graph.value(input).producer.is_none());
        is_fed || unit.outputs().any(|output| graph.is_output(output))
    };
    let work = members.iter().filter(|unit| unit.kind.is_work()).count();
    work <= 2 && !members.iter().any(has_weights) && !members.iter().any(is_edge)
}

/// Refuses a group that saves less time than `wanted`.
fn check_gain(
    graph: &Graph,
    members: &[&Unit],
    shapes: &Shapes,
    limits: &Limits,
    wanted: Duration,
) -> Result<(), Refusal> {
    let count = |shape: &[usize]| shape.iter().fold(1_u64, |n, &len| n.saturating_mul(len as u64));
    let mut work = Work::default();
    for unit in members {
        let elements = unit.outputs().filter_map(|output| shapes.get(&output));
        let elements = elements.fold(0_u64, |n, shape| n.saturating_add(count(shape)));
        let depth = match &unit.kind {
            Kind::Conv { products, .. } | Kind::Product(products) => {
                let [rows, columns] = products.weights.kernel;
                count(&[products.weights.inputs, rows, columns])
            }
            // Each output pixel sees its share of the kernel.
            Kind::ConvTranspose { products, spec } => {
                count(&[products.weights.inputs / spec.groups, spec.taps_a_pixel()])
            }
            _ => 0,
        };
        work.add(Work { nodes: 1, macs: elements.saturating_mul(depth), elements });
    }
    let (host, npu) = (work.host_ns(), work.npu_ns(limits).saturating_add(PROGRAM_NS));
    let wanted = u64::try_from(wanted.as_nanos()).unwrap_or(u64::MAX);
    if npu.saturating_add(wanted) <= host {
        return Ok(());
    }
    let (first, nodes) = (graph.node(members[0].target), members.len());
    let [host, npu, wanted] = [host, npu, wanted].map(|ns| ns / 1000);
    refuse!(
        MIN_GAIN,
        "{nodes} operators from {first} on would take an estimated {host} us on the CPU and {npu} us on the NPU with \
         the way there; `min_gain` asks for {wanted} us less"
    )
}

/// Compiles the group for a batch of 1, to find what no batch could change.
fn check(
    graph: &Graph,
    units: &Units,
    group: &Group,
    shapes: &Shapes,
    limits: &Limits,
    options: PlanOptions,
) -> Result<(), Refusal> {
    let members: Vec<&Unit> = group.units.iter().map(|&unit| &units.units[unit]).collect();
    if !members.iter().any(|unit| unit.kind.is_work()) {
        return Err(no_work());
    }
    if is_island(graph, &members) {
        return refuse!(
            ISLAND,
            "{} and what moves its tensors would be alone on the NPU between nodes on the CPU; they stay together",
            graph.node(members[0].target)
        );
    }
    if let Some(wanted) = options.min_gain {
        check_gain(graph, &members, shapes, limits, wanted)?;
    }
    let inside: BTreeSet<NodeId> = group.nodes.iter().copied().collect();
    let leaves = |value: &ValueId| {
        let outside = |node: &NodeId| !inside.contains(node);
        graph.is_output(*value) || graph.value(*value).consumers.iter().any(outside)
    };
    let written: BTreeSet<ValueId> = members.iter().flat_map(|unit| unit.outputs()).collect();
    let read: BTreeSet<ValueId> = members.iter().flat_map(|unit| unit.inputs.clone()).collect();
    let inputs: Vec<ValueId> = read.difference(&written).copied().collect();
    let outputs: Vec<ValueId> = written.iter().copied().filter(leaves).collect();
    let slots = limits.slots as usize;
    let edges = inputs.len() + outputs.len();
    if crate::emit::EDGE_SLOTS_FROM + edges > slots.min(256) {
        return refuse!(
            SIZE,
            "the group has {edges} inputs and outputs; the device has {slots} slots"
        );
    }
    let flow = Flow::of(&members);
    let (inputs, outputs) = (&inputs, &outputs);
    let part = Part { graph, units: &members, flow, inputs, outputs, shapes };
    match program::compile_part(&part, limits) {
        Ok(_) => Ok(()),
        Err(CompileError::Refused(refusal)) => Err(refusal),
        Err(other) => refuse!(SIZE, "{other}"),
    }
}
