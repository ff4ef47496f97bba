//! ep-npu (being built).
