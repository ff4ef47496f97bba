//! libnpu (being built).
