//! Nodes in the order in which ONNX Runtime shows them: depth first from the results, so that a node
//! stands close behind what it reads. Programs follow it; both importers therefore make the same ones.

use super::draft::{Draft, Node};
use super::error::Fault;
use crate::graph::GraphError;
use std::collections::{HashMap, HashSet};

/// Refuses a graph in which a node reads what nothing writes, a value is written twice, or a node
/// waits for itself.
pub(super) fn check(draft: &Draft) -> Result<(), Fault> {
    let writers = writers(draft)?;
    let given: HashSet<&str> =
        draft.inputs.iter().chain(draft.constants.keys()).map(String::as_str).collect();
    for node in &draft.nodes {
        let mut named = node.inputs.iter().filter(|name| !name.is_empty());
        let unknown = named
            .find(|name| !writers.contains_key(name.as_str()) && !given.contains(name.as_str()));
        if let Some(value) = unknown {
            let (value, node) = (value.clone(), node.what());
            return Err(GraphError::ReadBeforeWritten { value, node }.into());
        }
    }
    // Nodes whose inputs are all there are taken away until none is left, or a circle.
    let mut waits: Vec<usize> = vec![0; draft.nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); draft.nodes.len()];
    for (index, node) in draft.nodes.iter().enumerate() {
        for writer in producers(node, &writers) {
            waits[index] += 1;
            readers[writer].push(index);
        }
    }
    let mut ready: Vec<usize> = (0..waits.len()).filter(|&node| waits[node] == 0).collect();
    while let Some(node) = ready.pop() {
        for &reader in &readers[node] {
            waits[reader] -= 1;
            if waits[reader] == 0 {
                ready.push(reader);
            }
        }
    }
    match waits.iter().position(|&waiting| waiting > 0) {
        None => Ok(()),
        Some(node) => {
            let node = &draft.nodes[node];
            let value = node.outputs.first().cloned().unwrap_or_default();
            Err(Fault::Cycle { node: node.what(), value })
        }
    }
}

/// Puts the nodes in order; the graph has no cycle.
pub(super) fn sort(draft: &mut Draft) -> Result<(), Fault> {
    let writers = writers(draft)?;
    let inputs: Vec<Vec<usize>> = draft
        .nodes
        .iter()
        .map(|node| {
            let mut producers: Vec<usize> = producers(node, &writers).collect();
            producers.sort_unstable_by_key(|&producer| draft.nodes[producer].position);
            producers
        })
        .collect();
    let mut is_read = vec![false; inputs.len()];
    for &producer in inputs.iter().flatten() {
        is_read[producer] = true;
    }
    let mut order = Vec::with_capacity(inputs.len());
    let mut seen = vec![false; inputs.len()];
    // A node is left when all that it reads has been.
    let mut ends: Vec<usize> = (0..inputs.len()).filter(|&node| !is_read[node]).collect();
    ends.sort_unstable_by_key(|&node| draft.nodes[node].position);
    let mut stack: Vec<(usize, bool)> = ends.into_iter().map(|node| (node, false)).collect();
    while let Some((node, is_left)) = stack.pop() {
        if is_left {
            order.push(node);
            continue;
        }
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        stack.push((node, true));
        stack.extend(inputs[node].iter().filter(|&&producer| !seen[producer]).map(|&p| (p, false)));
    }
    let mut nodes: Vec<Option<Node>> = draft.nodes.drain(..).map(Some).collect();
    draft.nodes = order.into_iter().filter_map(|node| nodes[node].take()).collect();
    Ok(())
}

/// Who writes each value.
fn writers(draft: &Draft) -> Result<HashMap<&str, usize>, Fault> {
    let given: HashSet<&str> =
        draft.inputs.iter().chain(draft.constants.keys()).map(String::as_str).collect();
    let mut writers = HashMap::new();
    for (index, node) in draft.nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|name| !name.is_empty()) {
            if given.contains(output.as_str()) || writers.insert(output.as_str(), index).is_some() {
                let (value, node) = (output.clone(), node.what());
                return Err(GraphError::WrittenTwice { value, node }.into());
            }
        }
    }
    Ok(writers)
}

fn producers<'a>(
    node: &'a Node,
    writers: &'a HashMap<&str, usize>,
) -> impl Iterator<Item = usize> + 'a {
    node.inputs.iter().filter_map(|name| writers.get(name.as_str()).copied())
}
