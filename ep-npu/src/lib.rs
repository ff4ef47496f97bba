//! ONNX in, tensors out: compiles quantised graphs for the NPU and runs them.
//!
//! ```text
//! ONNX file, OrtGraph --import--> Graph --quantize--> Units --partition--> Groups --lower--> Ops
//!     --schedule--> order --allocate--> Memory --emit--> Image, constants --run--> tensors
//! ```
//!
//! Knows the device by its `Limits` only, until `run`.
//!
//! | module | what it settles |
//! |---|---|
//! | [`graph`] | the model, as every importer leaves it |
//! | [`mod@exactness`] | how near to the CPU provider's its results must be |
//! | `import` | ONNX files to [`graph`] |
//! | [`quantize`] | which nodes are one 8-bit operator together, and with which arithmetic |
//! | [`shape`] | shapes between units, for one batch |
//! | [`partition`] | which units run here, in which groups; for the others, [`refusal`]s |
//! | [`bundle`] | a compiled part as one blob, and whether it fits a device |
//! | [`disk_cache`] | compiled parts on a disk, for the next session |
//! | [`lower`], [`schedule`], [`allocate`], [`emit`] | the stages of [`program::compile`] |
//! | [`run`] | programs on a device, one for each batch |
//! | `session` | a whole model, loaded and run: for programs without ONNX Runtime |
//! | [`explain`] | node by node: taken, or why not |
//! | [`mod@reference`] | what units mean: the oracle |
//! | [`dump`] | every stage as text |
//! | [`ort`] | ONNX Runtime's plugin interface |

pub mod allocate;
pub mod bundle;
pub mod disk_cache;
pub mod dump;
pub mod emit;
pub mod exactness;
pub mod explain;
pub mod graph;
#[cfg(feature = "onnx")]
pub mod import;
pub mod lower;
pub mod ort;
pub mod partition;
pub mod program;
pub mod quantize;
pub mod reference;
pub mod refusal;
pub mod run;
pub mod schedule;
#[cfg(feature = "onnx")]
pub mod session;
pub mod shape;
pub mod trace;

pub use exactness::Exactness;
pub use libnpu::Device;
pub use run::{OwnedTensor, RunReport, TensorMut, TensorRef};
#[cfg(feature = "onnx")]
pub use session::{Session, SessionError};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
