//! kmod-sim (being built).
