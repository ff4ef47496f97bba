//! Runs on a batch of none: outputs of the right shapes, nothing in them, no job.
//!
//! The device takes no empty tensor. What the shapes would be follows, operator by operator, from the batches
//! 1 and 2: a length that doubles belongs to the batch, one that stays does not. A slice of none is none.
//!
//! Of an empty tensor, the CPU provider's reductions leave out dimensions that are counted from the end.

use super::{Executable, Outputs, RunError, RunReport, TensorRef, Whole, check_element};
use crate::graph::Graph;
use crate::quantize::{Carry, Kind, Rearrange, Sum, Unit};
use crate::shape::{self, Shapes};

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
        let one = Self::with_batch(shapes, 1)?;
        let (edges, outputs_of_one) = self.edges(&one).ok()?;
        let empty = match self.whole() {
            Ok(whole) => shapes_of_none(whole, shapes)?,
            // Without the graph, only all operators together can be asked.
            Err(_) => {
                let (_, outputs_of_two) = self.edges(&Self::with_batch(shapes, 2)?).ok()?;
                let pairs = outputs_of_one.iter().zip(&outputs_of_two);
                pairs
                    .map(|(one, two)| all_at_none(&one.shape, &two.shape))
                    .collect::<Option<_>>()?
            }
        };
        if !empty.iter().all(|shape| shape.contains(&0)) {
            return None;
        }
        let mut given = || {
            for (tensor, edge) in inputs.iter().zip(&edges) {
                check_element(tensor, edge)?;
            }
            for (index, (edge, shape)) in outputs_of_one.iter().zip(&empty).enumerate() {
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

/// The shapes of the outputs for inputs of these shapes, of which some are empty.
fn shapes_of_none(whole: &Whole, shapes: &[Vec<usize>]) -> Option<Vec<Vec<usize>>> {
    let graph = &whole.graph;
    let mut known: Shapes = graph.inputs().iter().copied().zip(shapes.iter().cloned()).collect();
    for unit in &whole.units.units {
        let inputs: Vec<&[usize]> = unit
            .inputs
            .iter()
            .map(|value| known.get(value).map(Vec::as_slice))
            .collect::<Option<_>>()?;
        let outputs = if inputs.iter().any(|shape| shape.contains(&0)) {
            of_none(graph, unit, &inputs)?
        } else {
            shape::outputs(graph, unit, &inputs).ok()?
        };
        known.extend(unit.outputs().zip(outputs));
    }
    graph.outputs().iter().map(|output| known.get(output).cloned()).collect()
}

/// What `unit` makes of inputs of which some are empty.
fn of_none(graph: &Graph, unit: &Unit, inputs: &[&[usize]]) -> Option<Vec<Vec<usize>>> {
    let with = |unit: &Unit, batch: usize| {
        let filled = |shape: &&[usize]| -> Vec<usize> {
            shape.iter().map(|&length| if length == 0 { batch } else { length }).collect()
        };
        let inputs: Vec<Vec<usize>> = inputs.iter().map(filled).collect();
        let inputs: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
        shape::outputs(graph, unit, &inputs).ok()
    };
    if let Kind::Rearrange { how: Rearrange::Slice { .. }, .. }
    | Kind::Carry(Carry::Rearrange(Rearrange::Slice { .. })) = &unit.kind
    {
        let mut some = with(unit, 1).or_else(|| with(unit, 1 << 16))?;
        for (length, &from) in some.first_mut()?.iter_mut().zip(inputs[0]) {
            *length = if from == 0 { 0 } else { *length };
        }
        return Some(some);
    }
    // The numbers of a shape may divide nothing, and not one.
    if let Kind::Reshape { shape: change, .. } | Kind::Carry(Carry::Reshape(change)) = &unit.kind
        && let Ok(shape) = shape::reshaped(graph.node(unit.target), change, inputs[0])
    {
        return Some(vec![shape]);
    }
    let unit = without_the_last(unit);
    let pairs = with(&unit, 1)?.into_iter().zip(with(&unit, 2)?);
    pairs.map(|(one, two)| all_at_none(&one, &two)).collect()
}

/// The unit as the CPU provider has it for an empty tensor.
fn without_the_last(unit: &Unit) -> Unit {
    let mut unit = unit.clone();
    if let Kind::Sum(Sum { axes: Some(axes), .. }) | Kind::Extreme { axes: Some(axes), .. } =
        &mut unit.kind
    {
        axes.retain(|&axis| axis >= 0);
    }
    unit
}

fn all_at_none(one: &[usize], two: &[usize]) -> Option<Vec<usize>> {
    one.iter().zip(two).map(|(&one, &two)| at_none(one, two)).collect()
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
