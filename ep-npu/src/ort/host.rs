//! ONNX Runtime the other way round: loaded by us, to run what the NPU does not take.
//!
//! ```text
//! library: libonnxruntime, found and opened when first asked for; its tables
//!     -> session: a model on the CPU provider: loaded, asked for types, written out, run
//!         -> part: a program of ours as an operator of such a model
//!         -> deadline: ends a run that takes too long
//! ```

mod deadline;
mod library;
mod part;
mod session;

pub(crate) use library::Library;
pub use library::LibraryError;
pub(crate) use part::{Part, Recorder};
pub(crate) use session::{HostSession, Level, Model, Options, Ran};
