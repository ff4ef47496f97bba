//! Tests that pass through more than one stage.

mod exact;
mod golden;
mod refused;
