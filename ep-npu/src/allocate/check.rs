//! Checks a placement by running it: each tensor's bytes must still be its own when they are read.
//!
//! It knows nothing of live ranges or of how places were found.

use super::{Memory, Space};
use crate::lower::{OpKind, Ops, TensorId};
use crate::schedule::Schedule;
use std::collections::BTreeMap;
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

/// Runs the placement; the memories hold names instead of bytes: of each tensor, or of each image of those
/// that images pass one by one.
pub(super) fn check(ops: &Ops, schedule: &Schedule, memory: &Memory) -> Result<(), Overlap> {
    let pieces = Pieces::new(ops, schedule);
    let mut holds = Holds::default();
    for (step, image) in schedule.steps() {
        let image = image.map(|(image, _)| image);
        let op = &ops.ops[schedule.order[step]];
        let lost = |tensor: TensorId| {
            let tensor = ops.tensor(tensor).name.clone();
            Err(Overlap { tensor, step })
        };
        for &read in &op.reads {
            let mut read_pieces = pieces.of(memory.range(ops, read), read, image);
            if !read_pieces.all(|piece| holds.has(&piece)) {
                return lost(read);
            }
        }
        let Some(whole) = memory.range(ops, op.writes) else { continue };
        let size = match whole.0 {
            Space::Sram => memory.sram_bytes,
            Space::Scratch => memory.scratch_bytes,
        };
        if whole.1.end > size || whole.1.start % 64 != 0 {
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
                && bytes == whole;
            if !are_apart(&bytes, &whole) && !over {
                return lost(read);
            }
        }
        for written in pieces.of(Some(whole), op.writes, image) {
            holds.put(written);
        }
    }
    Ok(())
}

/// What bytes hold: a tensor, or the part of it that is of one image.
type Held = (TensorId, Option<u32>);

/// What the memories hold, none of it over another: by where each piece begins, where it ends.
#[derive(Default)]
struct Holds([BTreeMap<u64, (u64, Held)>; 2]);

impl Holds {
    fn has(&self, ((space, bytes), held): &(Bytes, Held)) -> bool {
        self.0[*space as usize].get(&bytes.start) == Some(&(bytes.end, *held))
    }

    /// In place of whatever was there.
    fn put(&mut self, ((space, bytes), held): (Bytes, Held)) {
        let holds = &mut self.0[space as usize];
        let before = holds.range(..bytes.start).next_back();
        let cut = before.filter(|(_, (end, _))| *end > bytes.start).map(|(&start, _)| start);
        let within = holds.range(bytes.clone()).map(|(&start, _)| start);
        let lost: Vec<u64> = within.chain(cut).collect();
        for start in lost {
            holds.remove(&start);
        }
        holds.insert(bytes.start, (bytes.end, held));
    }
}

/// Which tensors are touched image by image.
struct Pieces(Vec<Touched>);

#[derive(Clone, Copy)]
enum Touched {
    /// By all images at once.
    Whole,
    /// By each of so many images, which it has.
    Shared(u32),
    /// By each image, for which alone it has room.
    InTurn,
}

impl Pieces {
    fn new(ops: &Ops, schedule: &Schedule) -> Self {
        let mut pieces = vec![Touched::Whole; ops.tensors.len()];
        for run in &schedule.runs {
            for &index in &schedule.order[run.steps.clone()] {
                let op = &ops.ops[index];
                for tensor in op.reads.iter().chain([&op.writes]) {
                    let all = ops.tensor(*tensor).form.dims().n == run.images;
                    pieces[tensor.0] =
                        if all { Touched::Shared(run.images) } else { Touched::InTurn };
                }
            }
        }
        Self(pieces)
    }

    /// The parts of `tensor`, which lies at `whole`, that are touched for `image`, or for all of them.
    fn of(
        &self,
        whole: Option<Bytes>,
        tensor: TensorId,
        image: Option<u32>,
    ) -> impl Iterator<Item = (Bytes, Held)> {
        let (count, touched) = match (self.0[tensor.0], image) {
            (Touched::Whole, _) => (1, vec![(0, None)]),
            (Touched::InTurn, image) => (1, vec![(0, image)]),
            (Touched::Shared(images), Some(image)) => (images, vec![(image, Some(image))]),
            (Touched::Shared(images), None) => {
                (images, (0..images).map(|image| (image, Some(image))).collect())
            }
        };
        whole.into_iter().flat_map(move |(space, bytes)| {
            let len = (bytes.end - bytes.start) / u64::from(count);
            let piece = move |(index, image): (u32, Option<u32>)| {
                let start = bytes.start + u64::from(index) * len;
                ((space, start..start + len), (tensor, image))
            };
            touched.clone().into_iter().map(piece)
        })
    }
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
    use crate::schedule::Run;
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

    fn all_at_once(ops: &Ops) -> Schedule {
        Schedule { order: (0..ops.ops.len()).collect(), runs: Vec::new() }
    }

    proptest! {
        #[test]
        fn placements_pass_and_a_moved_tensor_does_not(
            steps in proptest::collection::vec((1_u32..6, 0_usize..4, any::<bool>()), 2..20),
            sram in 0_u64..4000,
        ) {
            let ops = chain(&steps);
            let schedule = all_at_once(&ops);
            let good = memory(&ops, &schedule, sram).unwrap();
            prop_assert!(good.sram_bytes <= sram);
            // Whatever is read and written in one step must not come to lie in one place.
            let Some(op) = ops.ops.iter().find(|op| op.reads[0].0 > 0) else { return Ok(()) };
            let mut bad = good.clone();
            let from = bad.places[op.reads[0].0].unwrap();
            bad.places[op.writes.0] = Some(Place { offset: from.offset + 64, ..from });
            bad.sram_bytes += 64;
            bad.scratch_bytes += 64;
            prop_assert!(check(&ops, &schedule, &bad).is_err());
        }
    }

    #[test]
    fn a_tensor_overwritten_before_its_last_reader_is_found() {
        // The second and third both read the first; the second lies on the first.
        let ops = chain(&[(2, 0, false), (2, 0, false), (2, 1, false)]);
        let schedule = all_at_once(&ops);
        let mut memory = memory(&ops, &schedule, 0).unwrap();
        assert_eq!(check(&ops, &schedule, &memory), Ok(()));
        memory.places[2] = Some(Place { space: Space::Scratch, offset: 0 });
        memory.places[1] = Some(Place { space: Space::Scratch, offset: 0 });
        let lost = check(&ops, &schedule, &memory).unwrap_err();
        assert_eq!(lost.step, 1);
    }

    #[test]
    fn what_images_pass_one_by_one_must_keep_all_of_what_comes_from_outside() {
        // The first tensor has three images, the second one; the third has three again.
        let mut ops = chain(&[(2, 0, false), (2, 0, false), (2, 0, false), (2, 0, false)]);
        let three = Form::map(Dims { n: 3, h: 2, w: 3, c: 20 });
        for tensor in [0, 1, 3, 4] {
            ops.tensors[tensor].form = three;
        }
        let runs = vec![Run { steps: 1..3, images: 3 }];
        let schedule = Schedule { order: (0..4).collect(), runs };
        let good = memory(&ops, &schedule, 0).unwrap();
        assert_eq!(good.scratch_bytes, 2 * three.len_bytes() + three.len_bytes() / 3);
        // Written for the first image where the first tensor still has the second.
        let mut bad = good.clone();
        bad.places[3] = good.places[1];
        assert!(check(&ops, &schedule, &bad).is_err());
        bad.places[3] = Some(Place { space: Space::Scratch, offset: 64 * 64 });
        bad.scratch_bytes = 1 << 20;
        assert_eq!(check(&ops, &schedule, &bad), Ok(()));
    }
}
