//! Why a file is no model that can be read.

use crate::graph::GraphError;
use std::path::PathBuf;

/// An error of the importer; names the file where there is one, else the bytes.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", .file.as_ref().map_or("model".into(), |file| format!("model `{}`", file.display())))]
pub struct ImportError {
    /// The model's file; `None` when bytes were given.
    pub file: Option<PathBuf>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[source] std::io::Error),
    /// More bytes than a model may have.
    #[error("{found} bytes; a model may have {most}, save its weights as external data")]
    TooLarge {
        /// Bytes of the file.
        found: u64,
        /// Bytes that are read at most.
        most: u64,
    },
    /// No protobuf message of a model: cut off, altered, or another kind of file.
    #[error("not an ONNX model, or damaged: {0}; export or download it again")]
    Format(#[source] prost::DecodeError),
    /// A field that a model must have.
    #[error("{field} is missing; export the model again")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field whose value no model may have.
    #[error("{whose}: {field} is {found}; {want}")]
    Field {
        /// Node or tensor.
        whose: String,
        /// The field.
        field: String,
        /// What it holds.
        found: String,
        /// What it may hold.
        want: String,
    },
    /// Two things have one name.
    #[error("{what} `{name}` is there twice; names are unique in a graph")]
    Twice {
        /// Input, initializer or output.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Nodes that read each other's results in a circle.
    #[error("node `{node}` waits for its own result `{value}`: the graph has a cycle")]
    Cycle {
        /// One of the nodes.
        node: String,
        /// A value that it writes.
        value: String,
    },
    /// External data that cannot be used.
    #[error("initializer `{tensor}`: external data `{location}`: {why}")]
    External {
        /// The constant.
        tensor: String,
        /// The file, as the model names it.
        location: String,
        /// What is wrong.
        why: String,
    },
    /// A graph that is none.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Fault {
    /// A wrong field.
    pub(super) fn field(
        whose: impl Into<String>,
        field: impl Into<String>,
        found: impl ToString,
        want: impl Into<String>,
    ) -> Self {
        Self::Field {
            whose: whose.into(),
            field: field.into(),
            found: found.to_string(),
            want: want.into(),
        }
    }
}
