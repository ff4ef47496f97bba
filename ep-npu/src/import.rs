//! ONNX files to [`Graph`]: the second importer, for programs without ONNX Runtime.
//!
//! ```text
//! bytes (mapped) --prost--> messages --draft--> names, checked --order--> no cycle
//!     --canonical--> as ONNX Runtime would show it --order--> --infer--> Graph
//! ```
//!
//! Constants are views of the file, of this one or of those beside it that hold external data. A file
//! is not trusted: whatever its bytes, the answer is a graph or an [`ImportError`], in bounded time.

mod canonical;
mod defaults;
mod draft;
mod error;
mod external;
mod file;
mod fold;
mod infer;
mod order;
pub mod proto;
mod tensor;

pub use error::{Fault, ImportError};

use crate::graph::{Graph, GraphBuilder, Node};
use bytes::Bytes;
use draft::Draft;
use external::Beside;
use prost::Message;
use std::path::{Path, PathBuf};

/// Most bytes of a model's own file: what protobuf allows a message.
const MOST_BYTES: u64 = i32::MAX as u64;

/// Imports the model in the file at `path`.
///
/// The file, and those beside it that hold its external data, are mapped; constants of the graph are
/// views of them, so they must not be written or cut while the graph is in use.
pub fn file(path: &Path) -> Result<Graph, ImportError> {
    let read = || {
        let bytes = file::map(path).map_err(Fault::Read)?;
        import(bytes, Some(folder(path)))
    };
    read().map_err(|fault| ImportError { file: Some(path.to_owned()), fault })
}

/// The folder that the file at `path` is in, where its external data is.
pub(crate) fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Imports the model that `bytes` are; it has no external data.
pub fn bytes(bytes: impl Into<Bytes>) -> Result<Graph, ImportError> {
    import(bytes.into(), None).map_err(|fault| ImportError { file: None, fault })
}

/// The message that `bytes` are; nothing in it is checked.
pub(crate) fn decode(bytes: Bytes) -> Result<proto::Model, ImportError> {
    let decoded = proto::Model::decode(bytes).map_err(Fault::Format);
    decoded.map_err(|fault| ImportError { file: None, fault })
}

/// A model as ONNX Runtime shows it to providers: nothing is left to be brought into that form, and
/// what it does not know is not guessed. Its external data is in `folder`.
pub(crate) fn shown(model: &proto::Model, folder: Option<PathBuf>) -> Result<Graph, ImportError> {
    let read = || {
        let mut draft = draft::read(model, &mut Beside::new(folder))?;
        order::check(&draft)?;
        order::sort(&mut draft)?;
        canonical::constants(&mut draft);
        graph(draft)
    };
    read().map_err(|fault| ImportError { file: None, fault })
}

fn import(bytes: Bytes, folder: Option<PathBuf>) -> Result<Graph, Fault> {
    let found = bytes.len() as u64;
    if found > MOST_BYTES {
        return Err(Fault::TooLarge { found, most: MOST_BYTES });
    }
    let model = proto::Model::decode(bytes).map_err(Fault::Format)?;
    let mut draft = draft::read(&model, &mut Beside::new(folder))?;
    order::check(&draft)?;
    order::sort(&mut draft)?;
    canonical::canonicalise(&mut draft);
    order::sort(&mut draft)?;
    infer::infer(&mut draft);
    graph(draft)
}

/// The graph of a draft whose nodes are in order.
fn graph(draft: Draft) -> Result<Graph, Fault> {
    let mut builder = GraphBuilder::new(&draft.name);
    for name in &draft.inputs {
        let id = builder.value(name);
        builder.add_input(id);
    }
    let mut constants = draft.constants;
    let mut types = draft.types;
    for node in draft.nodes {
        let mut ids = |names: Vec<String>| -> Result<Vec<_>, Fault> {
            let mut ids = Vec::with_capacity(names.len());
            for name in names {
                if name.is_empty() {
                    ids.push(None);
                    continue;
                }
                let id = builder.value(&name);
                if let Some(ty) = types.remove(&name) {
                    builder.set_type(id, ty);
                }
                // Constants that no node reads are not brought along.
                if let Some(tensor) = constants.remove(&name) {
                    builder.set_constant(id, tensor)?;
                }
                ids.push(Some(id));
            }
            Ok(ids)
        };
        let (inputs, outputs) = (ids(node.inputs)?, ids(node.outputs)?);
        let (name, op, domain, attributes) = (node.name, node.op, node.domain, node.attributes);
        builder.add_node(Node { name, op, domain, inputs, outputs, attributes })?;
    }
    for name in draft.inputs.iter().chain(&draft.outputs) {
        let id = builder.value(name);
        if let Some(ty) = types.remove(name) {
            builder.set_type(id, ty);
        }
        if let Some(tensor) = constants.remove(name) {
            builder.set_constant(id, tensor)?;
        }
    }
    for name in &draft.outputs {
        let id = builder.value(name);
        builder.add_output(id);
    }
    Ok(builder.finish()?)
}

#[cfg(test)]
mod tests;
