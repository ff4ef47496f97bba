//! Why bytes are no bundle, or none for this device.

use super::{MAGIC, VERSION};
use crate::graph::GraphError;
use npu_uapi::container::ContainerError;

/// Why a bundle cannot be used. Nothing of it has reached a device then.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Not a bundle at all.
    #[error("not a compiled part: it begins with {found:#010x}, not with {MAGIC:#010x}")]
    Magic {
        /// First word found.
        found: u32,
    },
    /// Of another version.
    #[error(
        "compiled part of version {found}, this library reads {VERSION}: {}",
        if *found > VERSION { "update the library" } else { "compile the model again" }
    )]
    Version {
        /// Version found.
        found: u16,
    },
    /// Cut off, or with bytes behind its end.
    #[error(
        "the compiled part has {found} bytes, it should have {want}: fetch it or compile the model again"
    )]
    Length {
        /// Bytes given.
        found: u64,
        /// Bytes that it should have.
        want: u64,
    },
    /// The hash does not match.
    #[error(
        "the compiled part is damaged: its hash does not match; fetch it or compile the model again"
    )]
    Hash,
    /// The hash matches, but the content contradicts itself.
    #[error("the compiled part is malformed: {what}; compile the model again")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// The graph in it is none.
    #[error("the graph in the compiled part: {0}; compile the model again")]
    Graph(#[from] GraphError),
    /// A program in it cannot be read.
    #[error("a program in the compiled part: {0}")]
    Program(#[from] ContainerError),
    /// The device is another than it was compiled for, and does not run it.
    #[error(
        "the part was compiled for another device: {why}; compile the model again for this one"
    )]
    Device {
        /// Which limit does not fit.
        why: String,
    },
}

pub(super) const fn malformed(what: &'static str) -> BundleError {
    BundleError::Malformed { what }
}
