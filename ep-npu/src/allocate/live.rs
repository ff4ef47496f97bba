//! When each tensor is needed, and which tensors can lie on one another.

use crate::lower::{Home, OpKind, Ops, TensorId};

/// Tensors that share one place, from the step that writes the first to the step that reads the last.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) tensors: Vec<TensorId>,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) len_bytes: u64,
}

/// Blocks of the scratch tensors that some operation writes, in the order of writing.
pub(super) fn blocks(ops: &Ops, order: &[usize]) -> Vec<Block> {
    let last_read =
        |tensor: TensorId| order.iter().rposition(|&index| ops.ops[index].reads.contains(&tensor));
    let mut blocks: Vec<Block> = Vec::new();
    for (step, &index) in order.iter().enumerate() {
        let op = &ops.ops[index];
        let written = ops.tensor(op.writes);
        if written.home != Home::Scratch {
            continue;
        }
        let last = last_read(op.writes).unwrap_or(step);
        // ADD, MUL and TABLE may write over an operand that lies the same way and ends here.
        let in_place = matches!(
            op.kind,
            OpKind::Pair { .. }
                | OpKind::Softmax { .. }
                | OpKind::Norm { .. }
                | OpKind::Table(_)
                | OpKind::Channels(_)
        );
        let over = blocks.iter_mut().find(|block| {
            let end = block.tensors.last().copied();
            in_place
                && block.last == step
                && end.is_some_and(|end| op.reads.contains(&end))
                && end.is_some_and(|end| ops.tensor(end).form == written.form)
        });
        match over {
            Some(block) => {
                block.tensors.push(op.writes);
                block.last = last;
            }
            None => blocks.push(Block {
                tensors: vec![op.writes],
                first: step,
                last,
                len_bytes: written.form.len_bytes(),
            }),
        }
    }
    blocks
}
