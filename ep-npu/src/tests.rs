//! Tests that pass through more than one stage.

mod any;
mod bundled;
mod exact;
mod golden;
mod moves;
mod pairs;
mod refused;
mod signed;
