//! What is left of a model when groups of its nodes are taken out, as a model for ONNX Runtime: each
//! group is one operator there.

use crate::graph::{Dim, Graph, NodeId, TensorType};
use crate::import::proto;
use crate::ort::Failure;
use crate::ort::host::{HostSession, Level, Library, Model, Options};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::ffi::CStr;
use std::io::{Read as _, Seek as _};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// Domain of the operators that stand for groups.
pub(super) const DOMAIN: &CStr = c"ai.npu";

/// A group of nodes, by the names of tensors.
#[derive(Debug)]
pub(super) struct Group {
    /// The operator that stands for it.
    pub(super) operator: String,
    pub(super) reads: Vec<String>,
    pub(super) writes: Vec<String>,
    /// All that its nodes write.
    pub(super) inside: HashSet<String>,
}

/// Names of what `nodes` write.
pub(super) fn written(graph: &Graph, nodes: &[NodeId]) -> HashSet<String> {
    let outputs = nodes.iter().flat_map(|&node| graph.node(node).outputs.iter().flatten());
    outputs.map(|&value| graph.value(value).name.clone()).collect()
}

/// `model` after the optimisations that come before providers are asked, as bytes of a model.
pub(super) fn basic(library: &'static Library, model: Model<'_>) -> Result<Bytes, Failure> {
    let fails =
        |error: std::io::Error| Failure::provider(format!("no memory for a model: {error}"));
    // A file without a name in any folder; ONNX Runtime opens it by its number.
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let file = nix::sys::memfd::memfd_create(c"npu-model", flags).map_err(|e| fails(e.into()))?;
    let mut file = std::fs::File::from(file);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let options = Options {
        level: Level::Basic,
        threads: Some(NonZeroUsize::MIN),
        write: Some(&path),
        folder: None,
        parts: None,
    };
    drop(HostSession::new(library, model, options)?);
    let mut bytes = Vec::new();
    file.rewind().map_err(fails)?;
    file.read_to_end(&mut bytes).map_err(fails)?;
    Ok(bytes.into())
}

/// Fills in the types that the runtime infers and does not write: it is asked for each as if it were an
/// output.
pub(super) fn add_types(
    library: &'static Library,
    model: &mut proto::Model,
    folder: Option<&Path>,
) -> Result<(), Failure> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let infos = graph.value_info.iter().chain(&graph.output);
    let known: HashSet<&str> = infos.map(proto::ValueInfo::name).collect();
    let made = graph.node.iter().flat_map(|node| &node.output);
    let unknown: Vec<String> =
        made.filter(|name| !name.is_empty() && !known.contains(name.as_str())).cloned().collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let outputs = graph.output.len();
    let info = |name: String| proto::ValueInfo { name: Some(name), r#type: None };
    graph.output.extend(unknown.into_iter().map(info));
    let bytes = prost::Message::encode_to_vec(model);
    let options = Options {
        level: Level::None,
        threads: Some(NonZeroUsize::MIN),
        write: None,
        folder,
        parts: None,
    };
    let session = HostSession::new(library, Model::Bytes(&bytes), options)?;
    let Some(graph) = &mut model.graph else { return Ok(()) };
    graph.output.truncate(outputs);
    for (name, ty) in session.outputs()?.into_iter().skip(outputs) {
        if let Some(ty) = ty {
            graph.value_info.push(declared(name, &ty));
        }
    }
    Ok(())
}

fn declared(name: String, ty: &TensorType) -> proto::ValueInfo {
    let dim = |dim: &Dim| match dim {
        Dim::Known(length) => {
            proto::Dimension { dim_value: i64::try_from(*length).ok(), dim_param: None }
        }
        Dim::Symbol(symbol) => {
            let symbol = (!symbol.is_empty()).then(|| symbol.clone());
            proto::Dimension { dim_value: None, dim_param: symbol }
        }
    };
    let shape = ty.shape.as_ref().map(|dims| proto::Shape { dim: dims.iter().map(dim).collect() });
    let elem_type = i32::try_from(ty.element.onnx()).ok();
    let tensor_type = Some(proto::TensorType { elem_type, shape });
    proto::ValueInfo { name: Some(name), r#type: Some(proto::Type { tensor_type }) }
}

/// Puts one node in the place of each group, and drops what only they read.
pub(super) fn replace(model: &mut proto::Model, groups: &[Group]) {
    let domain = DOMAIN.to_string_lossy().into_owned();
    model.opset_import.push(proto::OperatorSet { domain: Some(domain.clone()), version: Some(1) });
    let Some(graph) = &mut model.graph else { return };
    let mut group_of: HashMap<&str, usize> = HashMap::new();
    for (index, group) in groups.iter().enumerate() {
        group_of.extend(group.inside.iter().map(|name| (name.as_str(), index)));
    }
    let is_taken = |node: &proto::Node| {
        node.output.iter().find_map(|name| group_of.get(name.as_str()).copied())
    };
    // A group stands where its first node stood, if that is behind all that it reads.
    let mut stands: BTreeMap<usize, proto::Node> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (place, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        match is_taken(&node) {
            None => {
                stands.insert(place, node);
            }
            Some(index) if seen.insert(index) => {
                let group = &groups[index];
                stands.insert(
                    place,
                    proto::Node {
                        input: group.reads.clone(),
                        output: group.writes.clone(),
                        name: Some(format!("npu/{}", group.operator)),
                        op_type: Some(group.operator.clone()),
                        domain: Some(domain.clone()),
                        ..proto::Node::default()
                    },
                );
            }
            Some(_) => {}
        }
    }
    graph.node = ordered(stands);
    let mut read: HashSet<String> = HashSet::new();
    for node in &graph.node {
        names(node, &mut read);
        read.extend(node.output.iter().cloned());
    }
    read.extend(graph.input.iter().chain(&graph.output).map(|info| info.name().to_owned()));
    graph.initializer.retain(|tensor| read.contains(tensor.name()));
    graph.value_info.retain(|info| read.contains(info.name()));
}

/// The nodes in an order in which each finds what it reads, as near to their places as can be.
fn ordered(stands: BTreeMap<usize, proto::Node>) -> Vec<proto::Node> {
    let mut writer: HashMap<&str, usize> = HashMap::new();
    for (&place, node) in &stands {
        writer.extend(node.output.iter().map(|name| (name.as_str(), place)));
    }
    let mut waits: BTreeMap<usize, usize> = BTreeMap::new();
    let mut readers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (&place, node) in &stands {
        let mut read = HashSet::new();
        names(node, &mut read);
        let sources: BTreeSet<usize> =
            read.iter().filter_map(|name| writer.get(name.as_str()).copied()).collect();
        waits.insert(place, sources.len());
        for source in sources {
            readers.entry(source).or_default().push(place);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> =
        waits.iter().filter(|(_, waits)| **waits == 0).map(|(&place, _)| Reverse(place)).collect();
    let mut order = Vec::with_capacity(stands.len());
    while let Some(Reverse(place)) = ready.pop() {
        order.push(place);
        for reader in readers.remove(&place).unwrap_or_default() {
            if let Some(waiting) = waits.get_mut(&reader) {
                *waiting -= 1;
                if *waiting == 0 {
                    ready.push(Reverse(reader));
                }
            }
        }
    }
    let mut stands = stands;
    let mut nodes: Vec<proto::Node> =
        order.iter().filter_map(|place| stands.remove(place)).collect();
    // Nothing is left unless groups waited for each other, which the planner rules out; ONNX Runtime
    // would say so.
    nodes.extend(stands.into_values());
    nodes
}

/// Adds the names that `node` and the bodies in it read.
fn names(node: &proto::Node, read: &mut HashSet<String>) {
    read.extend(node.input.iter().filter(|name| !name.is_empty()).cloned());
    for attribute in &node.attribute {
        for body in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
            for node in &body.node {
                names(node, read);
            }
            read.extend(body.output.iter().map(|info| info.name().to_owned()));
        }
    }
}
