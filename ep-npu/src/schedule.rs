//! The order in which operations run.
//!
//! Models list their operators in an order that works, and lowering keeps it; this stage holds it to
//! that. It is the place for orders that keep more of the tensors on chip.

use crate::lower::{Home, Ops, TensorId};
use std::collections::BTreeSet;

/// Indices of operations, in the order in which they run.
///
/// # Panics
///
/// When an operation reads what none before it writes: the compiler would be wrong.
pub fn order(ops: &Ops) -> Vec<usize> {
    let inputs = ops.tensors.iter().enumerate();
    let inputs = inputs.filter(|(_, tensor)| matches!(tensor.home, Home::Input(_)));
    let mut written: BTreeSet<TensorId> = inputs.map(|(index, _)| TensorId(index)).collect();
    for op in &ops.ops {
        for read in &op.reads {
            assert!(written.contains(read), "`{}` is read first", ops.tensor(*read).name);
        }
        assert!(written.insert(op.writes), "`{}` is written twice", ops.tensor(op.writes).name);
    }
    (0..ops.ops.len()).collect()
}
