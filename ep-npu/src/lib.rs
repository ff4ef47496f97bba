//! ONNX in, tensors out: compiles quantised graphs for the NPU and runs them.
//!
//! ```text
//! OrtGraph --import--> Graph --quantize--> Units --partition--> Groups --lower--> Ops
//!     --allocate--> Layout --emit--> Program --run--> tensors
//! ```
//!
//! Knows the device by its `Limits` only, until `run`.

pub mod graph;
