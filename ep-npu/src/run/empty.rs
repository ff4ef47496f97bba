//! Runs on a batch of none: outputs of the right shapes, nothing in them, no job.
//!
//! The device takes no empty tensor. What the shapes would be follows from the batches 1 and 2: a length
//! that doubles belongs to the batch, one that stays does not.

use super::{Executable, Outputs, RunError, RunReport, TensorRef, check_element};

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
        let (edges, one) = self.edges(&one).ok()?;
        let (_, two) = self.edges(&two).ok()?;
        let mut empty = Vec::with_capacity(one.len());
        for (one, two) in one.iter().zip(&two) {
            let lengths = one.shape.iter().zip(&two.shape);
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
