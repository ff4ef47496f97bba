//! Tests that pass through more than one stage.

mod any;
mod exact;
mod golden;
mod moves;
mod refused;
