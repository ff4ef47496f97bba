//! Memory of a job: tensors that do not live at the same time share bytes, on chip as far as it goes.

mod check;
mod live;
mod place;

pub use check::Overlap;

use crate::lower::{Home, Ops, TensorId};
use crate::schedule::Schedule;
use std::ops::Range;

/// Where every tensor lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Memory {
    /// For each tensor of the job its place; `None` for inputs, outputs, and tensors that fusion
    /// left without an operation.
    pub places: Vec<Option<Place>>,
    /// Bytes of the SRAM slot.
    pub sram_bytes: u64,
    /// Bytes of the scratch slot.
    pub scratch_bytes: u64,
}

/// A place in a job's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// Which memory.
    pub space: Space,
    /// Byte offset in its slot.
    pub offset: u64,
}

/// Memories of a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Space {
    /// On chip.
    Sram,
    /// Scratch memory in DRAM.
    Scratch,
}

impl Memory {
    /// The bytes of a tensor of the job.
    pub fn range(&self, ops: &Ops, tensor: TensorId) -> Option<(Space, Range<u64>)> {
        let Place { space, offset } = self.places[tensor.0]?;
        Some((space, offset..offset + ops.tensor(tensor).form.len_bytes()))
    }
}

/// Places the tensors of `ops`, run as `schedule` says, with at most `sram_bytes` on chip, and has the result
/// checked.
pub fn memory(ops: &Ops, schedule: &Schedule, sram_bytes: u64) -> Result<Memory, Overlap> {
    let blocks = live::blocks(ops, schedule);
    let memory = place::best_fit(ops, &blocks, sram_bytes);
    let is_placed = |tensor: TensorId| {
        (ops.tensor(tensor).home == Home::Scratch) == memory.places[tensor.0].is_some()
    };
    debug_assert!(ops.ops.iter().all(|op| is_placed(op.writes)), "live ranges miss a tensor");
    check::check(ops, schedule, &memory)?;
    Ok(memory)
}
