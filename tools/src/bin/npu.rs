//! npu.
fn main() {}
