//! Cuts: neighbours that stay on the host together, and the price of it.

use super::sizes::Sizes;
use crate::graph::{Graph, NodeId, ValueId};
use crate::partition::Plan;
use crate::partition::price::{PROGRAM_NS, Work, crossing_ns};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes that stay on the host and hang together, and what that costs. For a batch of 1.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Cut {
    /// Places of the nodes in node order.
    pub nodes: Vec<usize>,
    /// Those of them that are no conversions: what the others follow. All, where there are only conversions.
    pub causes: Vec<usize>,
    /// Bytes that come from the NPU.
    pub bytes_in: u64,
    /// Bytes that go back to it.
    pub bytes_out: u64,
    /// Programs that touch it: those the NPU's work is parted into here.
    pub programs: usize,
    /// Multiplications that the NPU does not do.
    pub macs: u64,
    /// Estimated nanoseconds of the host's work.
    pub host_ns: u64,
    /// The whole price in estimated nanoseconds: the host's work, the way there and back, and a job for
    /// each program more.
    pub price_ns: u64,
}

/// The cuts of `plan`, dearest first, and for each node the cut that it is in.
pub(super) fn cuts(graph: &Graph, plan: &Plan, sizes: &Sizes) -> (Vec<Cut>, Vec<Option<usize>>) {
    let is_left = |node: NodeId| plan.verdicts[node.0 as usize].taken.is_none();
    let mut root: Vec<usize> = (0..graph.node_count()).collect();
    for (id, node) in graph.nodes().filter(|&(id, _)| is_left(id)) {
        let producers = node.inputs.iter().flatten().filter_map(|&v| graph.value(v).producer);
        for producer in producers.filter(|&producer| is_left(producer)) {
            let (a, b) = (find(&mut root, producer.0 as usize), find(&mut root, id.0 as usize));
            root[a.max(b)] = a.min(b);
        }
    }
    let mut members: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
    for (id, _) in graph.nodes().filter(|&(id, _)| is_left(id)) {
        members.entry(find(&mut root, id.0 as usize)).or_default().push(id);
    }
    let mut cuts: Vec<Cut> =
        members.into_values().map(|nodes| price(graph, plan, sizes, &nodes)).collect();
    cuts.sort_by_key(|cut| std::cmp::Reverse(cut.price_ns));
    let mut of_node = vec![None; graph.node_count()];
    for (index, cut) in cuts.iter().enumerate() {
        for &node in &cut.nodes {
            of_node[node] = Some(index);
        }
    }
    (cuts, of_node)
}

fn price(graph: &Graph, plan: &Plan, sizes: &Sizes, members: &[NodeId]) -> Cut {
    let group = |node: NodeId| plan.verdicts[node.0 as usize].taken;
    let (mut reads, mut writes) = (BTreeSet::new(), BTreeSet::new());
    let mut programs = BTreeSet::new();
    let mut work = Work::default();
    let mut causes = Vec::new();
    for &id in members {
        let node = graph.node(id);
        for &value in node.inputs.iter().flatten() {
            if let Some(from) = graph.value(value).producer.and_then(group) {
                reads.insert(value);
                programs.insert(from);
            }
        }
        for &value in node.outputs.iter().flatten() {
            for to in graph.value(value).consumers.iter().filter_map(|&reader| group(reader)) {
                writes.insert(value);
                programs.insert(to);
            }
        }
        let is_conversion = matches!(node.op.as_str(), "QuantizeLinear" | "DequantizeLinear");
        if !is_conversion {
            causes.push(id.0 as usize);
        }
        work.add(sizes.work(graph, id));
    }
    let nodes: Vec<usize> = members.iter().map(|id| id.0 as usize).collect();
    if causes.is_empty() {
        causes.clone_from(&nodes);
    }
    let bytes = |values: &BTreeSet<ValueId>| {
        values.iter().fold(0_u64, |sum, &value| sum.saturating_add(sizes.bytes(graph, value)))
    };
    let (bytes_in, bytes_out) = (bytes(&reads), bytes(&writes));
    let host_ns = work.host_ns();
    let more = programs.len().saturating_sub(1) as u64;
    let way = crossing_ns(bytes_in.saturating_add(bytes_out));
    let price_ns = host_ns.saturating_add(way).saturating_add(more.saturating_mul(PROGRAM_NS));
    let (programs, macs) = (programs.len(), work.macs);
    Cut { nodes, causes, bytes_in, bytes_out, programs, macs, host_ns, price_ns }
}

fn find(root: &mut [usize], mut node: usize) -> usize {
    while root[node] != node {
        root[node] = root[root[node]];
        node = root[node];
    }
    node
}
