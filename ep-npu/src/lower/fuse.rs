//! What can happen before a result is stored does: tables and residual additions join the operation
//! whose result nobody else reads.

use super::{Addition, Function, Op, OpKind, Ops, TensorId};
use crate::quantize::Table;
use npu_uapi::command::Strides;
use npu_uapi::requantise;
use std::sync::Arc;

/// Moves tables and additions into the output stages before them.
pub(super) fn output_stages(ops: &mut Ops) {
    let mut fused: Vec<Op> = Vec::with_capacity(ops.ops.len());
    for op in ops.ops.clone() {
        let alone = |tensor: TensorId| ops.readers(tensor) == 1;
        let op = match &op.kind {
            OpKind::Table(table) if alone(op.reads[0]) => {
                if absorb_table(&mut fused, op.reads[0], op.writes, table) {
                    continue;
                }
                op
            }
            OpKind::Pair { function: Function::Add(_), .. } if is_plain(ops, &op) => {
                absorb_addition(&mut fused, op, alone)
            }
            OpKind::Pair { function: Function::Table(_), .. } => {
                absorb_operands(&mut fused, op, alone)
            }
            OpKind::Channels(_) if alone(op.reads[0]) => absorb_constant(&mut fused, op),
            _ => op,
        };
        fused.push(op);
    }
    ops.ops = fused;
}

/// Whether two different tensors are read element by element, neither of them repeated.
fn is_plain(ops: &Ops, op: &Op) -> bool {
    let dims = |tensor: TensorId| ops.tensor(tensor).form.dims();
    op.reads.len() == 2
        && op.reads[0] != op.reads[1]
        && op.reads.iter().all(|&read| dims(read) == dims(op.writes))
}

/// Whether the operation that writes `source` took `table` into its output stage.
fn absorb_table(ops: &mut [Op], source: TensorId, result: TensorId, table: &Table) -> bool {
    let Some(before) = ops.iter_mut().find(|op| op.writes == source) else { return false };
    let place = match &mut before.kind {
        OpKind::Conv(conv) if conv.addition.is_none() => &mut conv.table_0,
        OpKind::Conv(conv) => &mut conv.table_1,
        OpKind::Pair { function: Function::Table(pairs), .. } => {
            *pairs = pairs.then(table);
            before.writes = result;
            return true;
        }
        OpKind::Pair { table, .. } | OpKind::Pool { table, .. } | OpKind::Product { table, .. } => {
            table
        }
        OpKind::Channels(tables) => {
            *tables = tables.iter().map(|&code| table[usize::from(code)]).collect();
            before.writes = result;
            return true;
        }
        OpKind::Table(first) => {
            *first = then(first, table);
            before.writes = result;
            return true;
        }
        OpKind::Layout { .. }
        | OpKind::Move { .. }
        | OpKind::Resize { .. }
        | OpKind::Softmax { .. }
        | OpKind::Reduce { .. }
        | OpKind::Norm { .. } => return false,
    };
    *place = Some(match place.take() {
        Some(first) => then(&first, table),
        None => table.clone(),
    });
    before.writes = result;
    true
}

/// `op`, or the convolution before it with the addition in its output stage.
///
/// The convolution moves to where the addition was: there, whatever the other operand is, it exists.
fn absorb_addition(ops: &mut Vec<Op>, op: Op, alone: impl Fn(TensorId) -> bool) -> Op {
    let OpKind::Pair { function: Function::Add(terms), .. } = op.kind else { return op };
    let takes = |before: &Op| match &before.kind {
        OpKind::Conv(conv) => {
            // Strips have no auxiliary tensor of their own.
            conv.strips.is_none()
                && conv.addition.is_none()
                && op.reads.contains(&before.writes)
                && alone(before.writes)
        }
        _ => false,
    };
    let Some(at) = ops.iter().rposition(takes) else { return op };
    let mut conv = ops.remove(at);
    let aux_first = op.reads[1] == conv.writes;
    let aux = op.reads[usize::from(!aux_first)];
    if let OpKind::Conv(stage) = &mut conv.kind {
        stage.addition = Some(Addition { terms, aux_first });
    }
    conv.reads.push(aux);
    conv.writes = op.writes;
    conv
}

/// `op`, a lookup of pairs, with the tables that its operands come from in its own.
fn absorb_operands(ops: &mut Vec<Op>, mut op: Op, alone: impl Fn(TensorId) -> bool) -> Op {
    let OpKind::Pair { function: Function::Table(pairs), constant, .. } = &mut op.kind else {
        return op;
    };
    for (index, read) in op.reads.iter_mut().enumerate() {
        let at = ops.iter().position(|before| before.writes == *read && alone(*read));
        let Some((at, OpKind::Table(table))) = at.map(|at| (at, &ops[at].kind)) else { continue };
        // Of one tensor and a constant, the tensor is the only one read.
        let is_first = constant.as_ref().map_or(index == 0, |constant| !constant.is_first);
        *pairs = pairs.after(if is_first { [Some(table), None] } else { [None, Some(table)] });
        *read = ops.remove(at).reads[0];
    }
    op
}

/// `op`, a table for each channel, with what comes before it in it where that has a constant for each.
fn absorb_constant(ops: &mut Vec<Op>, mut op: Op) -> Op {
    let OpKind::Channels(tables) = &mut op.kind else { return op };
    let Some(at) = ops.iter().position(|before| before.writes == op.reads[0]) else { return op };
    let code: &dyn Fn(usize, u8) -> u8 = match &ops[at].kind {
        OpKind::Channels(first) => &|channel, code| first[256 * channel + usize::from(code)],
        OpKind::Pair { function, strides, constant: Some(constant), table } => {
            if strides[usize::from(!constant.is_first)] != Strides::default() {
                return op;
            }
            &move |channel, code| {
                let own = constant.bytes[channel];
                let [a, b] = if constant.is_first { [own, code] } else { [code, own] };
                let code = match function {
                    Function::Add(terms) => requantise::add(a, b, *terms),
                    Function::Multiply(terms) => requantise::multiply(a, b, *terms),
                    Function::Table(pairs) => pairs.code(a, b),
                };
                table.as_ref().map_or(code, |table| table[usize::from(code)])
            }
        }
        _ => return op,
    };
    let both = tables.chunks_exact(256).enumerate().flat_map(|(channel, table)| {
        (0..=255).map(move |from| table[usize::from(code(channel, from))])
    });
    *tables = both.collect();
    op.reads = ops.remove(at).reads;
    op
}

/// The table of one table behind the other.
pub(super) fn then(first: &Table, second: &Table) -> Table {
    let mut both = [0; 256];
    for (to, &from) in both.iter_mut().zip(first.iter()) {
        *to = second[usize::from(from)];
    }
    Arc::new(both)
}
