//! Checks a placement by running it: each tensor's bytes must still be its own when they are read.
//!
//! It knows nothing of live ranges or of how places were found.

use super::{Memory, Space};
use crate::lower::{OpKind, Ops, TensorId};
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

/// Runs the placement; the memories hold names instead of bytes.
pub(super) fn check(ops: &Ops, order: &[usize], memory: &Memory) -> Result<(), Overlap> {
    let mut holds: Vec<(Bytes, TensorId)> = Vec::new();
    for (step, &index) in order.iter().enumerate() {
        let op = &ops.ops[index];
        let lost = |tensor: TensorId| {
            let tensor = ops.tensor(tensor).name.clone();
            Err(Overlap { tensor, step })
        };
        for &read in &op.reads {
            if let Some(bytes) = memory.range(ops, read)
                && !holds.contains(&(bytes, read))
            {
                return lost(read);
            }
        }
        let Some(written) = memory.range(ops, op.writes) else { continue };
        let size = match written.0 {
            Space::Sram => memory.sram_bytes,
            Space::Scratch => memory.scratch_bytes,
        };
        if written.1.end > size || written.1.start % 64 != 0 {
            return lost(op.writes);
        }
        for &read in &op.reads {
            let Some(bytes) = memory.range(ops, read) else { continue };
            let over = matches!(
                op.kind,
                OpKind::Pair { .. }
                    | OpKind::Softmax { .. }
                    | OpKind::Norm { .. }
                    | OpKind::Table(_)
                    | OpKind::Channels(_)
            ) && ops.tensor(read).form == ops.tensor(op.writes).form
                && bytes == written;
            if !are_apart(&bytes, &written) && !over {
                return lost(read);
            }
        }
        holds.retain(|(bytes, _)| are_apart(bytes, &written));
        holds.push((written, op.writes));
    }
    Ok(())
}

type Bytes = (Space, Range<u64>);

fn are_apart(a: &Bytes, b: &Bytes) -> bool {
    a.0 != b.0 || a.1.end <= b.1.start || b.1.end <= a.1.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::{Place, memory};
    use crate::graph::NodeId;
    use crate::lower::{Form, Home, Op, Tensor};
    use npu_uapi::command::Dims;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// Tables and layouts between feature maps of these sizes; each reads an earlier one.
    fn chain(steps: &[(u32, usize, bool)]) -> Ops {
        let form = |rows| Form::map(Dims { n: 1, h: rows, w: 3, c: 20 });
        let tensor = |rows| Tensor { name: "t".to_owned(), home: Home::Scratch, form: form(rows) };
        let mut ops = Ops { ops: Vec::new(), tensors: vec![tensor(1)] };
        ops.tensors[0].home = Home::Input(0);
        for &(rows, back, same) in steps {
            let read = TensorId((ops.tensors.len() - 1).saturating_sub(back));
            ops.tensors.push(tensor(rows));
            let writes = TensorId(ops.tensors.len() - 1);
            let kind = OpKind::Layout { scale: 0.0, zero_point: 0 };
            let kind = if same { OpKind::Table(Arc::new([0; 256])) } else { kind };
            ops.ops.push(Op { node: NodeId(0), reads: vec![read], writes, kind });
        }
        ops
    }

    proptest! {
        #[test]
        fn placements_pass_and_a_moved_tensor_does_not(
            steps in proptest::collection::vec((1_u32..6, 0_usize..4, any::<bool>()), 2..20),
            sram in 0_u64..4000,
        ) {
            let ops = chain(&steps);
            let order: Vec<usize> = (0..ops.ops.len()).collect();
            let good = memory(&ops, &order, sram).unwrap();
            prop_assert!(good.sram_bytes <= sram);
            // Whatever is read and written in one step must not come to lie in one place.
            let Some(op) = ops.ops.iter().find(|op| op.reads[0].0 > 0) else { return Ok(()) };
            let mut bad = good.clone();
            let from = bad.places[op.reads[0].0].unwrap();
            bad.places[op.writes.0] = Some(Place { offset: from.offset + 64, ..from });
            bad.sram_bytes += 64;
            bad.scratch_bytes += 64;
            prop_assert!(check(&ops, &order, &bad).is_err());
        }
    }

    #[test]
    fn a_tensor_overwritten_before_its_last_reader_is_found() {
        // The second and third both read the first; the second lies on the first.
        let ops = chain(&[(2, 0, false), (2, 0, false), (2, 1, false)]);
        let order = [0, 1, 2];
        let mut memory = memory(&ops, &order, 0).unwrap();
        assert_eq!(check(&ops, &order, &memory), Ok(()));
        memory.places[2] = Some(Place { space: Space::Scratch, offset: 0 });
        memory.places[1] = Some(Place { space: Space::Scratch, offset: 0 });
        let lost = check(&ops, &order, &memory).unwrap_err();
        assert_eq!(lost.step, 1);
    }
}
