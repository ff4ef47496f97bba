//! The order in which operations run.
//!
//! Models list their operators in an order that works, and lowering keeps it; this stage holds it to
//! that. What it chooses is how a batch passes: where the feature maps of all images do not fit a core's
//! cache, image by image through several operations, so that what one writes is still there when the next
//! reads it. Layers whose weights fill that cache by themselves take the whole batch.
//!
//! ```text
//! whole batch:     a a a a  b b b b  c c c c      a run of a, b:  a b  a b  a b  a b  c c c c
//! ```
//!
//! What only a run's operations touch is then a tensor of one image.

use crate::lower::{Form, Home, Op, OpKind, Ops, TensorId};
use std::collections::BTreeSet;
use std::ops::Range;

/// Bytes of feature maps that stay in a core's cache from one operation to the next, about.
const CACHED: u64 = if cfg!(test) {
    // Random models are small, and should have both.
    1 << 10
} else {
    1 << 20
};

/// Bytes of weights that are worth reading once for every image. With more, all images share them.
const LIGHT: u64 = CACHED / 4 * 3;

/// Bytes of feature maps of one image that are worth a command of their own. A matrix of many rows has no
/// images in this sense.
const WORTH_A_COMMAND: u64 = CACHED / 64;

/// How many commands the runs of a program may have together: a part of what a device takes.
const MOST_COMMANDS: u64 = 1 << 14;

/// What runs when.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Schedule {
    /// Indices of operations, in the order in which they run.
    pub order: Vec<usize>,
    /// Operations that a batch passes image by image; in order, apart from each other.
    pub runs: Vec<Run>,
}

/// Some of the steps of an order, which each image passes before the next one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Run {
    /// The steps.
    pub steps: Range<usize>,
    /// How many images there are.
    pub images: u32,
}

impl Schedule {
    /// The order of `ops`, whose tensors that only a run touches become those of one image.
    ///
    /// # Panics
    ///
    /// When an operation reads what none before it writes: the compiler would be wrong.
    pub fn new(ops: &mut Ops) -> Self {
        let order = order(ops);
        let runs = runs(ops, &order);
        let schedule = Self { order, runs };
        for tensor in schedule.within_runs(ops) {
            let tensor = &mut ops.tensors[tensor.0];
            tensor.form = tensor.form.of_one_image();
        }
        schedule
    }

    /// The steps in the order in which they run: for each its place in the order, and which image of how many
    /// it is for where it is not for all of them.
    pub fn steps(&self) -> impl Iterator<Item = (usize, Option<(u32, &Run)>)> {
        let (mut at, mut pieces) = (0, Vec::new());
        for run in &self.runs {
            pieces.push((at..run.steps.start, None));
            pieces.extend((0..run.images).map(|image| (run.steps.clone(), Some((image, run)))));
            at = run.steps.end;
        }
        pieces.push((at..self.order.len(), None));
        pieces.into_iter().flat_map(|(steps, image)| steps.map(move |step| (step, image)))
    }

    /// For how long `tensor` must keep its bytes when `step` touches it: for all steps of a run when it has
    /// those of all images.
    pub fn around(&self, ops: &Ops, tensor: TensorId, step: usize) -> Range<usize> {
        match self.run_of(step) {
            Some(run) if ops.tensor(tensor).form.dims().n == run.images => run.steps.clone(),
            _ => step..step + 1,
        }
    }

    /// The run that `step` is in.
    fn run_of(&self, step: usize) -> Option<&Run> {
        let next = self.runs.partition_point(|run| run.steps.end <= step);
        self.runs.get(next).filter(|run| run.steps.contains(&step))
    }

    /// Tensors that are written in a run and read nowhere else.
    fn within_runs(&self, ops: &Ops) -> Vec<TensorId> {
        let mut crosses = BTreeSet::new();
        let mut writer = vec![None; ops.tensors.len()];
        for (step, &index) in self.order.iter().enumerate() {
            writer[ops.ops[index].writes.0] = Some(step);
        }
        for (step, &index) in self.order.iter().enumerate() {
            for read in &ops.ops[index].reads {
                let run = writer[read.0].and_then(|step| self.run_of(step));
                if run.is_none() || run != self.run_of(step) {
                    crosses.insert(*read);
                }
            }
        }
        let written = self.runs.iter().flat_map(|run| run.steps.clone());
        let written = written.map(|step| ops.ops[self.order[step]].writes);
        written
            .filter(|tensor| ops.tensor(*tensor).home == Home::Scratch && !crosses.contains(tensor))
            .collect()
    }
}

/// Indices of operations, in the order in which they run.
fn order(ops: &Ops) -> Vec<usize> {
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

/// Runs of at least two operations that are worth it.
fn runs(ops: &Ops, order: &[usize]) -> Vec<Run> {
    // Ends are where it pays. Between them are also operations whose feature maps would fit the cache: those of
    // their neighbours would not, and what they read and write is as well of one image.
    let mut runs: Vec<Run> = Vec::new();
    let mut reach = 0;
    for (step, &index) in order.iter().enumerate() {
        let Some(Passes { images, pays }) = passes(ops, &ops.ops[index]) else { continue };
        let last = runs.last_mut().filter(|run| reach == step && run.images == images);
        reach = step + 1;
        match last {
            Some(run) if pays => run.steps.end = step + 1,
            Some(_) => {}
            None if pays => runs.push(Run { steps: step..step + 1, images }),
            None => reach = 0,
        }
    }
    let mut commands = 0;
    runs.retain(|run| {
        let more = run.steps.len() as u64 * u64::from(run.images);
        let fits = run.steps.len() > 1 && commands + more <= MOST_COMMANDS;
        commands += if fits { more } else { 0 };
        fits
    });
    runs
}

/// How an operation may pass image by image.
struct Passes {
    images: u32,
    /// Whether the feature maps of all images do not fit the cache.
    pays: bool,
}

/// How `op` may pass image by image; `None` when it should not, or works on no images.
fn passes(ops: &Ops, op: &Op) -> Option<Passes> {
    let images = ops.tensor(op.writes).form.dims().n;
    let mut tensors = op.reads.iter().chain([&op.writes]).map(|tensor| ops.tensor(*tensor).form);
    let weights = match &op.kind {
        OpKind::Conv(conv) if conv.strips.is_none() => {
            let [rows, columns] = conv.weights.kernel;
            conv.weights.outputs * conv.weights.inputs * rows * columns
        }
        OpKind::Pool { .. } | OpKind::Table(_) | OpKind::Layout { .. } => 0,
        // Neither operand repeated.
        OpKind::Pair { strides, constant: None, .. } => {
            let own = op.reads.iter().map(|read| ops.tensor(*read).form);
            let plain = own.zip(strides).all(|(form, strides)| match form {
                Form::Map { .. } => form.strides() == *strides,
                Form::Host { .. } => false,
            });
            if !plain {
                return None;
            }
            0
        }
        _ => return None,
    };
    let all_have = images > 1 && tensors.clone().all(|form| form.dims().n == images);
    let bytes: u64 = tensors.by_ref().map(|form| form.len_bytes()).sum();
    let of_one_image = bytes / u64::from(images.max(1));
    let may = all_have && of_one_image >= WORTH_A_COMMAND && weights as u64 <= LIGHT;
    may.then_some(Passes { images, pays: bytes > CACHED })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::NodeId;
    use crate::lower::Tensor;
    use npu_uapi::command::Dims;
    use std::sync::Arc;

    fn schedule(len: usize, runs: &[(Range<usize>, u32)]) -> Schedule {
        let run =
            |(steps, images): &(Range<usize>, u32)| Run { steps: steps.clone(), images: *images };
        Schedule { order: (0..len).collect(), runs: runs.iter().map(run).collect() }
    }

    /// Tables over feature maps of these sizes, one behind the other.
    fn tables(dims: Dims, steps: usize) -> Ops {
        let tensor = |home| Tensor { name: "t".to_owned(), home, form: Form::map(dims) };
        let tensors = std::iter::once(tensor(Home::Input(0)));
        let tensors = tensors.chain((0..steps).map(|_| tensor(Home::Scratch))).collect();
        let op = |step| Op {
            node: NodeId(0),
            reads: vec![TensorId(step)],
            writes: TensorId(step + 1),
            kind: OpKind::Table(Arc::new([0; 256])),
        };
        Ops { ops: (0..steps).map(op).collect(), tensors }
    }

    #[test]
    fn neither_tiny_images_nor_very_many_pass_one_by_one() {
        let runs = |dims, steps| Schedule::new(&mut tables(dims, steps)).runs;
        let four = Dims { n: 4, h: 16, w: 16, c: 16 };
        assert_eq!(runs(four, 3), [Run { steps: 0..3, images: 4 }]);
        // Rows of a matrix.
        let row = Dims { n: 65536, h: 1, w: 1, c: 4 };
        assert_eq!(runs(row, 3), []);
        let many = Dims { n: 8192, h: 1, w: 8, c: 16 };
        assert_eq!(runs(many, 2), [Run { steps: 0..2, images: 8192 }]);
        assert_eq!(runs(many, 3), []);
    }

    #[test]
    fn maps_that_would_fit_pass_one_by_one_between_those_that_would_not() {
        // Large to large, small twice, large again, then small ones to the end.
        let mut ops = tables(Dims { n: 4, h: 16, w: 16, c: 16 }, 6);
        let small = Form::map(Dims { n: 4, h: 2, w: 2, c: 16 });
        for tensor in [2, 3, 5, 6] {
            ops.tensors[tensor].form = small;
        }
        let schedule = Schedule::new(&mut ops);
        assert_eq!(schedule.runs, [Run { steps: 0..5, images: 4 }]);
        let images = |tensor: usize| ops.tensors[tensor].form.dims().n;
        assert_eq!([1, 2, 3, 4, 5].map(images), [1, 1, 1, 1, 4]);
    }

    #[test]
    fn each_image_passes_all_steps_of_a_run_before_the_next() {
        let schedule = schedule(6, &[(1..3, 2), (3..5, 3)]);
        let steps: Vec<_> =
            schedule.steps().map(|(step, image)| (step, image.map(|(image, _)| image))).collect();
        let images = |image: u32, steps: [usize; 2]| steps.map(|step| (step, Some(image)));
        let want: Vec<_> = [(0, None)]
            .into_iter()
            .chain(images(0, [1, 2]))
            .chain(images(1, [1, 2]))
            .chain(images(0, [3, 4]))
            .chain(images(1, [3, 4]))
            .chain(images(2, [3, 4]))
            .chain([(5, None)])
            .collect();
        assert_eq!(steps, want);
        let of = |step| schedule.run_of(step).map(|run| run.images);
        assert_eq!(
            (0..6).map(of).collect::<Vec<_>>(),
            [None, Some(2), Some(2), Some(3), Some(3), None]
        );
    }
}
