//! Why a session cannot be made, or a run fails.

use super::host::{Fallback, HostError, LibraryError};
use crate::graph::{Graph, GraphError};
use crate::import::ImportError;
use crate::partition::Plan;
use crate::program::CompileError;
use crate::run::RunError;
use std::time::Duration;

/// Most refused nodes that one message lists; the error has all.
const MOST_SHOWN: usize = 16;

/// An error of a session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The file is no model.
    #[error(transparent)]
    Import(Box<ImportError>),
    /// The NPU does not take all of the model, and nobody else is to run the rest.
    #[error("the NPU does not take {} of {all} nodes and there is no host engine: {}", .nodes.len(), shown(.nodes))]
    Refused {
        /// The nodes.
        nodes: Vec<RefusedNode>,
        /// Nodes of the model.
        all: usize,
    },
    /// A part does not compile.
    #[error("part {part} of the model: {source}")]
    Compile {
        /// Which part.
        part: usize,
        /// Why.
        source: Box<CompileError>,
    },
    /// The model does not compile for these shapes.
    #[error(transparent)]
    Shapes(#[from] CompileError),
    /// A part could not be cut out; a fault of the planner.
    #[error("part {part} of the model cannot be cut out: {source}")]
    Part {
        /// Which part.
        part: usize,
        /// Why.
        source: GraphError,
    },
    /// A part reads a tensor whose shape the model does not give.
    #[error(
        "part {part} of the model reads `{value}`, whose shape is unknown; run ONNX shape inference"
    )]
    UnknownShape {
        /// Which part.
        part: usize,
        /// The tensor.
        value: String,
    },
    /// ONNX Runtime is not there, or not as asked for.
    #[error(transparent)]
    Library(Box<LibraryError>),
    /// ONNX Runtime does not load the model, or fails in its part of it.
    #[error(transparent)]
    Host(Box<HostError>),
    /// Another host engine does not load the model, or fails in its part of it.
    #[error("{engine}: {message}")]
    Engine {
        /// Its name and version.
        engine: &'static str,
        /// What it says.
        message: String,
    },
    /// A host engine runs a part of the model, on tensors of its own.
    #[error(
        "the host engine runs a part of the model, on tensors of its own; use `run_into` in place of `bind`"
    )]
    Unbound,
    /// The run took too long, and was ended.
    #[error(
        "the run was not done within {timeout:?} and was ended behind the node of the host's that it was in (ONNX Runtime or another engine); \
         allow it more, or look at what stays on the host"
    )]
    Late {
        /// How long it was allowed to take.
        timeout: Duration,
    },
    /// The run failed.
    #[error(transparent)]
    Run(Box<RunError>),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] libnpu::Error),
    /// Too few or too many outputs.
    #[error("{found} outputs are given, the model has {want}")]
    Outputs {
        /// Outputs given.
        found: usize,
        /// Outputs of the model.
        want: usize,
    },
    /// A name that is not there, or not once.
    #[error("{what} `{name}` is not given once, or not one of the model's: {known}")]
    Name {
        /// Input or output.
        what: &'static str,
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
}

impl From<ImportError> for SessionError {
    fn from(error: ImportError) -> Self {
        Self::Import(Box::new(error))
    }
}

impl From<LibraryError> for SessionError {
    fn from(error: LibraryError) -> Self {
        Self::Library(Box::new(error))
    }
}

impl From<HostError> for SessionError {
    fn from(error: HostError) -> Self {
        Self::Host(Box::new(error))
    }
}

impl From<RunError> for SessionError {
    fn from(error: RunError) -> Self {
        Self::Run(Box::new(error))
    }
}

/// A node that the NPU does not take.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RefusedNode {
    /// Name in the model; may be empty.
    pub name: String,
    /// Operator.
    pub op: String,
    /// One of [`crate::refusal::rule`].
    pub rule: &'static str,
    /// What was found, and what would be taken.
    pub reason: String,
}

/// Refuses a plan that leaves nodes to nobody.
pub(super) fn check_refused(
    graph: &Graph,
    plan: &Plan,
    fallback: &Fallback,
) -> Result<(), SessionError> {
    if matches!(fallback, Fallback::Host(_)) {
        return Ok(());
    }
    let refused = plan.verdicts.iter().filter(|verdict| verdict.taken.is_none());
    let nodes: Vec<RefusedNode> = refused
        .map(|verdict| {
            let node = graph.node(verdict.node);
            let (name, op) = (node.name.clone(), node.op.clone());
            RefusedNode { name, op, rule: verdict.rule, reason: verdict.reason.clone() }
        })
        .collect();
    match nodes.is_empty() {
        true => Ok(()),
        false => Err(SessionError::Refused { nodes, all: graph.node_count() }),
    }
}

fn shown(nodes: &[RefusedNode]) -> String {
    // Conversions follow their operators; they are news only where no operator is left.
    let is_operator =
        |node: &&RefusedNode| !matches!(node.op.as_str(), "QuantizeLinear" | "DequantizeLinear");
    let operators: Vec<&RefusedNode> = nodes.iter().filter(is_operator).collect();
    let news: Vec<&RefusedNode> =
        if operators.is_empty() { nodes.iter().collect() } else { operators };
    let line = |node: &&RefusedNode| format!("{} [{}]", node.reason, node.rule);
    let lines: Vec<String> = news.iter().take(MOST_SHOWN).map(line).collect();
    let more = match news.len().saturating_sub(MOST_SHOWN) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    lines.join("; ") + &more
}
