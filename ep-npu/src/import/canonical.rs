//! What ONNX Runtime does to a graph before it shows it to a provider, as far as our rules see it:
//! constants folded, nodes that do nothing removed, a DequantizeLinear for each reader.
//!
//! Without it the same file would give one program through the plugin and another through a session.

use super::draft::{Draft, Node};
use super::fold;
use crate::graph::{Attribute, Tensor};
use std::collections::{HashMap, HashSet};

/// Brings `draft`, whose nodes are in order, into that form; afterwards they may not be.
pub(super) fn canonicalise(draft: &mut Draft) {
    constants(draft);
    while remove_copies(draft) | fold::fold(draft) {}
    one_dequantize_for_each_reader(draft);
}

/// Constant nodes become constants.
pub(super) fn constants(draft: &mut Draft) {
    let Draft { nodes, constants, .. } = draft;
    nodes.retain_mut(|node| match (node.constant.take(), node.outputs.as_slice()) {
        (Some(tensor), [output]) if !output.is_empty() => {
            constants.insert(output.clone(), tensor);
            false
        }
        _ => true,
    });
}

/// Identity, and Dropout as it is when nobody trains: readers read what it reads. Whether one was there.
fn remove_copies(draft: &mut Draft) -> bool {
    let outputs: HashSet<&str> = draft.outputs.iter().map(String::as_str).collect();
    let mut readers: HashMap<&str, usize> = HashMap::new();
    for input in draft.nodes.iter().flat_map(|node| &node.inputs) {
        *readers.entry(input).or_default() += 1;
    }
    let written: HashSet<&str> =
        draft.nodes.iter().flat_map(|node| &node.outputs).map(String::as_str).collect();
    // Names of copies to what they copy; and values that take the name of the graph output behind them.
    let mut original: HashMap<&str, &str> = HashMap::new();
    let mut result: HashMap<&str, &str> = HashMap::new();
    let mut kept = Vec::with_capacity(draft.nodes.len());
    for (index, node) in draft.nodes.iter().enumerate() {
        let Some((from, to)) = copy(node, &readers, &draft.constants) else {
            kept.push(index);
            continue;
        };
        // The nodes are in order, so copies of copies are resolved already.
        let origin = original.get(from).copied().unwrap_or(from);
        let is_mine = readers[from] == 1 && readers.get(origin) == Some(&1);
        if !outputs.contains(to) {
            original.insert(to, origin);
        } else if written.contains(origin) && !outputs.contains(origin) && is_mine {
            result.insert(origin, to);
        } else {
            kept.push(index);
        }
    }
    if kept.len() == draft.nodes.len() {
        return false;
    }
    let renamed = |name: &str| {
        let origin = original.get(name).copied().unwrap_or(name);
        result.get(origin).copied().unwrap_or(origin).to_owned()
    };
    let nodes = kept.into_iter().map(|index| {
        let mut node = draft.nodes[index].clone();
        for name in node.inputs.iter_mut().chain(&mut node.outputs) {
            *name = renamed(name);
        }
        node
    });
    draft.nodes = nodes.collect();
    true
}

/// The names that `node` copies from and to, if copying is all it does.
fn copy<'n>(
    node: &'n Node,
    readers: &HashMap<&str, usize>,
    constants: &HashMap<String, Tensor>,
) -> Option<(&'n str, &'n str)> {
    let is_idle = node.is("Identity") && node.inputs.len() == 1 || is_idle_dropout(node, constants);
    let (from, to) = (node.inputs.first()?.as_str(), node.outputs.first()?.as_str());
    let others = node.outputs.iter().skip(1);
    let has_others = others.into_iter().any(|name| readers.contains_key(name.as_str()));
    (is_idle && !has_others && !from.is_empty() && !to.is_empty()).then_some((from, to))
}

fn is_idle_dropout(node: &Node, constants: &HashMap<String, Tensor>) -> bool {
    if !node.is("Dropout") {
        return false;
    }
    match node.inputs.get(2).map(String::as_str) {
        None | Some("") => !matches!(node.attributes.get("is_test"), Some(Attribute::Int(0))),
        Some(training) => constants.get(training).is_some_and(|flag| flag.bytes.as_ref() == [0]),
    }
}

/// A DequantizeLinear that several nodes read becomes one for each, so that each unit has its own.
fn one_dequantize_for_each_reader(draft: &mut Draft) {
    let outputs: HashSet<String> = draft.outputs.iter().cloned().collect();
    let mut taken: HashSet<String> = draft
        .nodes
        .iter()
        .flat_map(|node| node.inputs.iter().chain(&node.outputs))
        .cloned()
        .collect();
    taken.extend(draft.inputs.iter().chain(draft.constants.keys()).cloned());
    let mut readers: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
    for (index, node) in draft.nodes.iter().enumerate() {
        for (position, input) in node.inputs.iter().enumerate() {
            readers.entry(input).or_default().push((index, position));
        }
    }
    let mut added: Vec<Node> = Vec::new();
    let behind = draft.nodes.iter().map(|node| node.position + 1).max().unwrap_or(0);
    let mut renamed: Vec<(usize, usize, String)> = Vec::new();
    for node in &draft.nodes {
        let is_dequantize = node.op == "DequantizeLinear"
            && matches!(node.domain.as_str(), "" | "ai.onnx" | "com.microsoft");
        let [output] = node.outputs.as_slice() else { continue };
        let Some(of_output) = readers.get(output.as_str()).filter(|_| is_dequantize) else {
            continue;
        };
        let kept = usize::from(!outputs.contains(output));
        for &(index, position) in of_output.iter().skip(kept) {
            let mut name = format!("{output}/duplicated");
            for number in 1_usize.. {
                if taken.insert(name.clone()) {
                    break;
                }
                name = format!("{output}/duplicated_{number}");
            }
            let name_of_node = format!("{}/duplicated", node.name);
            let copy = Node {
                position: behind + added.len(),
                name: name_of_node,
                outputs: vec![name.clone()],
                ..node.clone()
            };
            added.push(copy);
            renamed.push((index, position, name));
        }
    }
    for (index, position, name) in renamed {
        let node = &mut draft.nodes[index];
        let ty = draft.types.get(&node.inputs[position]).cloned();
        if let Some(ty) = ty {
            draft.types.insert(name.clone(), ty);
        }
        node.inputs[position] = name;
    }
    draft.nodes.append(&mut added);
}
