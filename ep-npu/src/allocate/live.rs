//! When each tensor is needed, and which tensors can lie on one another.
//!
//! What a run of images shares with others is needed from its first step to its last: each of its steps
//! comes once for every image.

use crate::lower::{Home, OpKind, Ops, TensorId};
use crate::schedule::Schedule;

/// Tensors that share one place, from the step that writes the first to the step that reads the last.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) tensors: Vec<TensorId>,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) len_bytes: u64,
}

/// Blocks of the scratch tensors that some operation writes, in the order of writing.
pub(super) fn blocks(ops: &Ops, schedule: &Schedule) -> Vec<Block> {
    let order = &schedule.order;
    let mut last_read = vec![None; ops.tensors.len()];
    for (step, &index) in order.iter().enumerate() {
        for read in &ops.ops[index].reads {
            last_read[read.0] = Some(schedule.around(ops, *read, step).end - 1);
        }
    }
    let mut blocks: Vec<Block> = Vec::new();
    // By tensor, the block that it is the last of so far.
    let mut ends: Vec<Option<usize>> = vec![None; ops.tensors.len()];
    for (step, &index) in order.iter().enumerate() {
        let op = &ops.ops[index];
        let written = ops.tensor(op.writes);
        if written.home != Home::Scratch {
            continue;
        }
        let steps = schedule.around(ops, op.writes, step);
        let last = last_read[op.writes.0].unwrap_or(step).max(steps.end - 1);
        // ADD, MUL and TABLE may write over an operand that lies the same way and ends here.
        let in_place = matches!(
            op.kind,
            OpKind::Pair { .. }
                | OpKind::Softmax { .. }
                | OpKind::Norm { .. }
                | OpKind::Table(_)
                | OpKind::Channels(_)
        );
        let in_place = in_place && steps.len() == 1;
        let may_be_over = |read: &&TensorId| in_place && ops.tensor(**read).form == written.form;
        let over = op.reads.iter().filter(may_be_over).filter_map(|read| ends[read.0]);
        let over = over.filter(|&block| blocks[block].last == step).min();
        match over {
            Some(block) => {
                let block = &mut blocks[block];
                if let Some(end) = block.tensors.last() {
                    ends[end.0] = None;
                }
                block.tensors.push(op.writes);
                block.last = last;
            }
            None => blocks.push(Block {
                tensors: vec![op.writes],
                first: steps.start,
                last,
                len_bytes: written.form.len_bytes(),
            }),
        }
        ends[op.writes.0] = Some(over.unwrap_or(blocks.len() - 1));
    }
    blocks
}
