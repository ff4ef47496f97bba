//! Tests that pass through more than one stage.

mod any;
mod attention;
mod bounded;
mod bundled;
pub(crate) mod exact;
mod fewer_passes;
mod golden;
mod layout;
mod moves;
mod pairs;
mod refused;
mod signed;
mod sums;
mod transposed;
mod weights;
