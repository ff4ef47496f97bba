//! What can happen before a result is stored does: tables and residual additions join the operation
//! whose result nobody else reads.

use super::{Addition, Function, Op, OpKind, Ops, TensorId};
use crate::quantize::Table;
use npu_uapi::command::Strides;
use npu_uapi::requantise;
use std::sync::Arc;

/// Moves tables and additions into the output stages before them.
pub(super) fn output_stages(ops: &mut Ops) {
    let mut fused = Fused::of(ops);
    for op in std::mem::take(&mut ops.ops) {
        let op = match &op.kind {
            OpKind::Table(table) if fused.is_alone(op.reads[0]) => {
                if absorb_table(&mut fused, op.reads[0], op.writes, table) {
                    continue;
                }
                op
            }
            OpKind::Pair { function: Function::Add(_), .. } if is_plain(ops, &op) => {
                absorb_addition(&mut fused, op)
            }
            OpKind::Pair { function: Function::Table(_), .. } => absorb_operands(&mut fused, op),
            OpKind::Channels(_) if fused.is_alone(op.reads[0]) => absorb_constant(&mut fused, op),
            _ => op,
        };
        fused.push(op);
    }
    ops.ops = fused.into_ops();
}

/// The operations so far, and where each tensor is written.
struct Fused {
    /// In order; `None` where one has moved into a later one.
    ops: Vec<Option<Op>>,
    /// By tensor, the place of the operation that writes it.
    writer: Vec<Option<usize>>,
    /// By tensor, how often it is read, before anything moved.
    reads: Vec<usize>,
}

impl Fused {
    /// Nothing yet of `ops`.
    fn of(ops: &Ops) -> Self {
        let mut reads = vec![0; ops.tensors.len()];
        ops.ops.iter().flat_map(|op| &op.reads).for_each(|read| reads[read.0] += 1);
        let (count, tensors) = (ops.ops.len(), ops.tensors.len());
        Self { ops: Vec::with_capacity(count), writer: vec![None; tensors], reads }
    }

    /// Whether `tensor` is read once.
    fn is_alone(&self, tensor: TensorId) -> bool {
        self.reads[tensor.0] == 1
    }

    fn push(&mut self, op: Op) {
        self.writer[op.writes.0] = Some(self.ops.len());
        self.ops.push(Some(op));
    }

    /// Place of the operation that writes `tensor`.
    fn place(&self, tensor: TensorId) -> Option<usize> {
        self.writer[tensor.0]
    }

    /// The operation at `place`.
    fn at(&self, place: usize) -> &Op {
        self.ops[place].as_ref().expect(HERE)
    }

    /// Takes the operation at `place` out.
    fn take(&mut self, place: usize) -> Op {
        let op = self.ops[place].take().expect(HERE);
        self.writer[op.writes.0] = None;
        op
    }

    /// Has the operation at `place` write `tensor` instead.
    fn rename(&mut self, place: usize, tensor: TensorId) {
        let op = self.ops[place].as_mut().expect(HERE);
        let before = std::mem::replace(&mut op.writes, tensor);
        self.writer[before.0] = None;
        self.writer[tensor.0] = Some(place);
    }

    fn into_ops(self) -> Vec<Op> {
        self.ops.into_iter().flatten().collect()
    }
}

const HERE: &str = "a tensor has a writer as long as that has not moved";

/// Whether two different tensors are read element by element, neither of them repeated.
fn is_plain(ops: &Ops, op: &Op) -> bool {
    let dims = |tensor: TensorId| ops.tensor(tensor).form.dims();
    op.reads.len() == 2
        && op.reads[0] != op.reads[1]
        && op.reads.iter().all(|&read| dims(read) == dims(op.writes))
}

/// Whether the operation that writes `source` took `table` into its output stage.
fn absorb_table(fused: &mut Fused, source: TensorId, result: TensorId, table: &Table) -> bool {
    let Some(place) = fused.place(source) else { return false };
    let taken = fused.ops[place].as_mut().is_some_and(|before| join(&mut before.kind, table));
    if taken {
        fused.rename(place, result);
    }
    taken
}

/// Whether `kind` took `table` behind all that it does.
fn join(kind: &mut OpKind, table: &Table) -> bool {
    let place = match kind {
        OpKind::Conv(conv) if conv.addition.is_none() => &mut conv.table_0,
        OpKind::Conv(conv) => &mut conv.table_1,
        OpKind::Pair { function: Function::Table(pairs), .. } => {
            *pairs = pairs.then(table);
            return true;
        }
        OpKind::Pair { table, .. } | OpKind::Pool { table, .. } | OpKind::Product { table, .. } => {
            table
        }
        OpKind::Channels(tables) => {
            *tables = tables.iter().map(|&code| table[usize::from(code)]).collect();
            return true;
        }
        OpKind::Table(first) => {
            *first = then(first, table);
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
    true
}

/// `op`, or the convolution before it with the addition in its output stage.
///
/// The convolution moves to where the addition was: there, whatever the other operand is, it exists.
fn absorb_addition(fused: &mut Fused, op: Op) -> Op {
    let OpKind::Pair { function: Function::Add(terms), .. } = op.kind else { return op };
    let takes = |place: &usize| match fused.at(*place) {
        // Strips have no auxiliary tensor of their own.
        Op { kind: OpKind::Conv(conv), writes, .. } => {
            conv.strips.is_none() && conv.addition.is_none() && fused.is_alone(*writes)
        }
        _ => false,
    };
    let places = op.reads.iter().filter_map(|&read| fused.place(read));
    let Some(last) = places.filter(takes).max() else { return op };
    let mut conv = fused.take(last);
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
fn absorb_operands(fused: &mut Fused, mut op: Op) -> Op {
    let OpKind::Pair { function: Function::Table(pairs), constant, .. } = &mut op.kind else {
        return op;
    };
    for (index, read) in op.reads.iter_mut().enumerate() {
        let place = fused.place(*read).filter(|_| fused.is_alone(*read));
        let Some(place) = place else { continue };
        let OpKind::Table(table) = &fused.at(place).kind else { continue };
        // Of one tensor and a constant, the tensor is the only one read.
        let is_first = constant.as_ref().map_or(index == 0, |constant| !constant.is_first);
        *pairs = pairs.after(if is_first { [Some(table), None] } else { [None, Some(table)] });
        *read = fused.take(place).reads[0];
    }
    op
}

/// `op`, a table for each channel, with what comes before it in it where that has a constant for each.
fn absorb_constant(fused: &mut Fused, mut op: Op) -> Op {
    let OpKind::Channels(tables) = &mut op.kind else { return op };
    let Some(place) = fused.place(op.reads[0]) else { return op };
    let code: &dyn Fn(usize, u8) -> u8 = match &fused.at(place).kind {
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
    op.reads = fused.take(place).reads;
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
