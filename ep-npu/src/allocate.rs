//! Scratch memory: tensors that do not live at the same time share bytes.

mod check;
mod live;
mod place;

pub use check::Overlap;

use crate::lower::Ops;

/// Where every tensor lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Memory {
    /// For each tensor its byte offset in the scratch slot; zero for tensors with another home.
    pub offsets: Vec<u64>,
    /// Bytes of the scratch slot.
    pub scratch_bytes: u64,
}

/// Places the tensors of `ops`, run in `order`, and has the result checked.
pub fn memory(ops: &Ops, order: &[usize]) -> Result<Memory, Overlap> {
    let blocks = live::blocks(ops, order);
    let memory = place::best_fit(ops, &blocks);
    check::check(ops, order, &memory)?;
    Ok(memory)
}
