//! Runs on a batch of none: outputs of the right shapes, nothing in them, no job.
//!
//! The device takes no empty tensor. What the shapes would be follows from the batches 1 and 2: a length
//! that doubles belongs to the batch, one that stays does not.
//!
//! Of an empty tensor, the CPU provider's reductions leave out dimensions that are counted from the end.

use super::{Edge, Executable, Outputs, RunError, RunReport, TensorRef, check_element};
use crate::program;
use crate::quantize::{Kind, Sum};

impl Executable {
    /// The run, if a batch of the inputs is 0 and all outputs are therefore empty.
    ///
    /// # Errors
    /// As for [`Executable::run`]; also when an input has another element type.
    pub(super) fn run_empty(
        &self,
        inputs: &[TensorRef<'_>],
        shapes: &[Vec<usize>],
        outputs: &mut dyn Outputs,
    ) -> Option<Result<RunReport, RunError>> {
        let [one, two] = [Self::with_batch(shapes, 1)?, Self::with_batch(shapes, 2)?];
        let (edges, outputs_of_one) = self.edges(&one).ok()?;
        let (_, outputs_of_two) = self.edges(&two).ok()?;
        let of = |edges: Vec<Edge>| edges.into_iter().map(|edge| edge.shape).collect::<Vec<_>>();
        let shapes = match self.without_the_last([&one, &two])? {
            Some(shapes) => shapes,
            None => [of(outputs_of_one.clone()), of(outputs_of_two)],
        };
        let one = outputs_of_one;
        let mut empty = Vec::with_capacity(one.len());
        for (one, two) in shapes[0].iter().zip(&shapes[1]) {
            let lengths = one.iter().zip(two);
            let shape: Option<Vec<usize>> = lengths.map(|(&one, &two)| at_none(one, two)).collect();
            empty.push(shape.filter(|shape| shape.contains(&0))?);
        }
        let mut given = || {
            for (tensor, edge) in inputs.iter().zip(&edges) {
                check_element(tensor, edge)?;
            }
            for (index, (edge, shape)) in one.iter().zip(&empty).enumerate() {
                outputs
                    .output(index, edge.element, shape)
                    .map_err(|why| RunError::Output { output: edge.name.clone(), why })?;
            }
            Ok(RunReport::default())
        };
        Some(given())
    }

    /// The shapes of outputs for each of these shapes of inputs, where reductions leave out dimensions
    /// that are counted from the end; the inner `None` where there are no such reductions.
    fn without_the_last(&self, inputs: [&[Vec<usize>]; 2]) -> Option<Option<[Vec<Vec<usize>>; 2]>> {
        let Ok(whole) = self.whole() else { return Some(None) };
        let mut units = whole.units.units.clone();
        let mut is_any = false;
        for unit in &mut units {
            let (Kind::Sum(Sum { axes: Some(axes), .. }) | Kind::Extreme { axes: Some(axes), .. }) =
                &mut unit.kind
            else {
                continue;
            };
            let count = axes.len();
            axes.retain(|&axis| axis >= 0);
            is_any |= axes.len() != count;
        }
        if !is_any {
            return Some(None);
        }
        let units: Vec<_> = units.iter().collect();
        let of = |shapes: &[Vec<usize>]| -> Option<Vec<Vec<usize>>> {
            let given = whole.graph.inputs().iter().copied().zip(shapes.iter().cloned());
            let all = program::infer(&whole.graph, &units, given.collect()).ok()?;
            whole.graph.outputs().iter().map(|output| all.get(output).cloned()).collect()
        };
        Some(Some([of(inputs[0])?, of(inputs[1])?]))
    }

    /// The shapes with `batch` in place of each batch of 0; `None` when another dimension is empty.
    fn with_batch(shapes: &[Vec<usize>], batch: usize) -> Option<Vec<Vec<usize>>> {
        let mut made = shapes.to_vec();
        for first in made.iter_mut().filter_map(|shape| shape.first_mut()) {
            *first = if *first == 0 { batch } else { *first };
        }
        made.iter().flatten().all(|&length| length > 0).then_some(made)
    }
}

/// The length for a batch of 0 of what has these lengths for 1 and 2; `None` when it is neither fixed
/// nor a multiple of the batch.
fn at_none(one: usize, two: usize) -> Option<usize> {
    if two == one { Some(one) } else { (one.checked_mul(2) == Some(two)).then_some(0) }
}

#[cfg(test)]
mod tests {
    use super::at_none;

    #[test]
    fn lengths_that_double_are_the_batchs_and_others_are_not_guessed() {
        assert_eq!(at_none(3, 6), Some(0));
        assert_eq!(at_none(5, 5), Some(5));
        assert_eq!(at_none(3, 4), None);
    }
}
