//! ONNX in, tensors out: compiles quantised graphs for the NPU and runs them.
//!
//! ```text
//! OrtGraph --import--> Graph --quantize--> Units --partition--> Groups --lower--> Ops
//!     --schedule--> order --allocate--> Memory --emit--> Image, constants --run--> tensors
//! ```
//!
//! Knows the device by its `Limits` only, until `run`.

pub mod allocate;
pub mod dump;
pub mod emit;
pub mod graph;
pub mod lower;
pub mod ort;
pub mod partition;
pub mod program;
pub mod quantize;
pub mod reference;
pub mod refusal;
pub mod run;
pub mod schedule;
pub mod shape;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
