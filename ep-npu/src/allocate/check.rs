//! Checks a placement by running it: each tensor's bytes must still be its own when they are read.
//!
//! It knows nothing of live ranges or of how places were found.

use super::Memory;
use crate::lower::{Home, OpKind, Ops, TensorId};
use std::ops::Range;

/// A placement that would lose a tensor: a fault of the compiler.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the compiler placed `{tensor}` where step {step} finds other bytes; this is a bug, please report it"
)]
pub struct Overlap {
    /// The tensor that was lost.
    pub tensor: String,
    /// The step that found it so.
    pub step: usize,
}

/// Runs the placement; the scratch memory holds names instead of bytes.
pub(super) fn check(ops: &Ops, order: &[usize], memory: &Memory) -> Result<(), Overlap> {
    let mut holds: Vec<(Range<u64>, TensorId)> = Vec::new();
    for (step, &index) in order.iter().enumerate() {
        let op = &ops.ops[index];
        let lost =
            |tensor: TensorId| Err(Overlap { tensor: ops.tensor(tensor).name.clone(), step });
        for &read in &op.reads {
            if let Some(range) = range(ops, memory, read)
                && !holds.contains(&(range, read))
            {
                return lost(read);
            }
        }
        let Some(written) = range(ops, memory, op.writes) else { continue };
        if written.end > memory.scratch_bytes || written.start % 64 != 0 {
            return lost(op.writes);
        }
        for &read in &op.reads {
            let Some(read_range) = range(ops, memory, read) else { continue };
            let apart = read_range.end <= written.start || written.end <= read_range.start;
            let over = matches!(op.kind, OpKind::Add { .. } | OpKind::Table(_))
                && ops.tensor(read).form == ops.tensor(op.writes).form
                && read_range == written;
            if !apart && !over {
                return lost(read);
            }
        }
        holds.retain(|(range, _)| range.end <= written.start || written.end <= range.start);
        holds.push((written, op.writes));
    }
    Ok(())
}

fn range(ops: &Ops, memory: &Memory, tensor: TensorId) -> Option<Range<u64>> {
    let start = memory.offsets[tensor.0];
    let len_bytes = ops.tensor(tensor).form.len_bytes();
    (ops.tensor(tensor).home == Home::Scratch).then_some(start..start + len_bytes)
}
