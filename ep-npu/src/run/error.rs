//! Why a part does not load or run.

use crate::bundle::BundleError;
use crate::graph::ElementType;
use crate::program::CompileError;
use npu_uapi::status::Status;
use std::fmt;

/// Which side of a run a tensor is on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The run reads it.
    Input,
    /// The run writes it.
    Output,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
        })
    }
}

/// Why a device cannot use a tensor where it lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyCause {
    /// It is memory of this process alone.
    #[error("it lies in memory of this process, which the device does not reach")]
    NotReachable,
    /// As above, and nothing could be done about it: no memory could be shared from there on.
    #[error(
        "it lies in memory of this process, which the device does not reach, and unaligned: \
         {past} bytes past a multiple of {align}"
    )]
    Unaligned {
        /// How far it is off.
        past: usize,
        /// Where device memory begins at multiples of.
        align: usize,
    },
    /// Only a part of it is device memory.
    #[error("it begins in device memory, but runs over the end of what was allocated there")]
    Straddles,
}

/// Why a run fails. The executable stays usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Too few or too many inputs.
    #[error("{found} inputs are given, the model takes {want}")]
    Inputs {
        /// Inputs given.
        found: usize,
        /// Inputs of the part.
        want: usize,
    },
    /// An input of another element type.
    #[error("input `{input}` is {found}, the model takes {want}")]
    Element {
        /// The input.
        input: String,
        /// Its element type.
        found: ElementType,
        /// The element type wanted.
        want: ElementType,
    },
    /// An input of another shape.
    #[error("input `{input}` has shape {found:?}, the model takes {want}")]
    Shape {
        /// The input.
        input: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape wanted, open dimensions by name.
        want: String,
    },
    /// An input whose bytes do not fill its shape.
    #[error("input `{input}` has {found} bytes, its shape and type ask for {want}")]
    Bytes {
        /// The input.
        input: String,
        /// Bytes given.
        found: usize,
        /// Bytes of the shape.
        want: u64,
    },
    /// No program for these shapes.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// No program for these shapes is held, and [`super::RunOptions::compile_missing`] forbids to make one.
    #[error(
        "there is no program for inputs of {found}, and `compile_missing=0` forbids to compile one; \
         there are programs for {held}"
    )]
    Missing {
        /// Shapes of the inputs.
        found: String,
        /// Shapes that there are programs for.
        held: String,
    },
    /// The caller has no memory for an output.
    #[error("output `{output}`: {why}")]
    Output {
        /// The output.
        output: String,
        /// What the caller said.
        why: String,
    },
    /// A tensor that would have to be copied, where [`super::RunOptions::deny_copy`] is set.
    #[error(
        "{role} `{tensor}` would be copied ({bytes} bytes), which `deny_copy` forbids: {cause}; \
         give a tensor that the device's allocator made, or unset `deny_copy`"
    )]
    Copy {
        /// Which side of the run it is on.
        role: Role,
        /// The tensor.
        tensor: String,
        /// Its size.
        bytes: u64,
        /// Why the device cannot use it where it lies.
        cause: CopyCause,
    },
    /// The caller asked for its end.
    #[error("the run was ended, as its caller asked")]
    Stopped,
    /// The device failed in a command that a node was compiled to.
    #[error("the device failed the run at node `{node}` ({op}): {source}")]
    Node {
        /// Name of the ONNX node.
        node: String,
        /// Its operator.
        op: String,
        /// What the device says.
        source: Box<libnpu::Error>,
    },
    /// The device failed.
    #[error("the device failed the run: {0}")]
    Device(#[from] libnpu::Error),
}

impl RunError {
    /// Whether the device ended the job because it was told to.
    pub(super) fn is_abort(&self) -> bool {
        let source = match self {
            Self::Device(source) => source,
            Self::Node { source, .. } => source,
            _ => return false,
        };
        source.fault().is_some_and(|fault| fault.status == Status::ABORTED)
    }
}

/// Why a bundle does not load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleLoadError {
    /// It is damaged, or for another device.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The device does not take a program of it.
    #[error(transparent)]
    Program(#[from] CompileError),
}
