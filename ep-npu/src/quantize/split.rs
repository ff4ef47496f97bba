//! Units of Split: one tensor in several parts, each with a QuantizeLinear of its own.

use super::carry::{self, Carry};
use super::codes::Table;
use super::form::Former;
use super::rearrange::{Step, axis_of};
use super::unit::{Kind, Unit};
use crate::graph::{Node, Tensor};
use crate::refusal::{Refusal, refuse};

/// Most parts. Where each one is, is found from the lengths of all.
const MOST_PARTS: usize = 1024;

/// How a dimension is parted.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// The dimension.
    pub axis: i64,
    /// How long the parts are.
    pub lengths: Lengths,
}

/// How long the parts of a dimension are.
#[derive(Clone, Debug, PartialEq)]
pub enum Lengths {
    /// As the model says.
    Given(Vec<i64>),
    /// This many of equal length.
    Equal(usize),
    /// This many of equal length, rounded up; the last one is what remains.
    Chunks(usize),
}

/// A part that is read.
#[derive(Clone, Debug)]
pub struct Share {
    /// Which one.
    pub index: usize,
    /// From the input's codes to the part's, where they differ.
    pub table: Option<Table>,
}

impl Split {
    /// Where part `index` of a tensor of shape `input` is.
    pub fn step(&self, node: &Node, input: &[usize], index: usize) -> Result<Step, Refusal> {
        let wrong = || refuse!(SHAPE, "{node} parts dimension {} of {input:?}", self.axis);
        let Some(axis) = axis_of(self.axis, input.len()) else { return wrong() };
        let lengths = match &self.lengths {
            Lengths::Given(lengths) => {
                lengths.iter().map(|&len| usize::try_from(len).ok()).collect::<Option<Vec<_>>>()
            }
            Lengths::Equal(count) => input[axis]
                .is_multiple_of(*count)
                .then(|| vec![input[axis].checked_div(*count).unwrap_or(0); *count]),
            Lengths::Chunks(count) => {
                let each = input[axis].div_ceil((*count).max(1));
                let before = each.checked_mul(count.saturating_sub(1));
                let last = before.and_then(|before| input[axis].checked_sub(before));
                last.map(|last| {
                    let mut lengths = vec![each; *count];
                    lengths.iter_mut().rev().take(1).for_each(|len| *len = last);
                    lengths
                })
            }
        };
        let sum =
            |lengths: &[usize]| lengths.iter().try_fold(0_usize, |n, &len| n.checked_add(len));
        match lengths.filter(|lengths| index < lengths.len() && sum(lengths) == Some(input[axis])) {
            Some(lengths) if lengths[index] > 0 => {
                let start = lengths[..index].iter().sum();
                Ok(Step::Slice { axis, start, step: 1, len: lengths[index] })
            }
            Some(_) => {
                refuse!(SHAPE, "{node} makes an empty part of dimension {axis} of {input:?}")
            }
            None => refuse!(
                SHAPE,
                "{node} parts dimension {axis} of {input:?} into {:?}, which is not its length",
                self.lengths
            ),
        }
    }
}

/// Split.
pub(super) fn split(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let count = node.outputs.len();
    if count > MOST_PARTS {
        return refuse!(SIZE, "{node} has {count} outputs; {MOST_PARTS} are taken");
    }
    let given = match node.input(1) {
        Some(_) => match unit.graph.constant(node, 1).and_then(Tensor::as_i64) {
            Some(lengths) => Some(lengths),
            None => return refuse!(SHAPE, "{node} has lengths that are not constant int64"),
        },
        None => node.ints("split").map(<[i64]>::to_vec),
    };
    let lengths = match (given, node.int("num_outputs")) {
        (Some(lengths), None) => Lengths::Given(lengths),
        (None, Some(_)) => Lengths::Chunks(count),
        (None, None) => Lengths::Equal(count),
        (Some(_), Some(_)) => {
            return refuse!(ATTRIBUTE, "{node} has lengths and num_outputs; give one of them");
        }
    };
    let said = match &lengths {
        Lengths::Given(lengths) => i64::try_from(lengths.len()).ok(),
        _ => node.int("num_outputs").or(i64::try_from(count).ok()),
    };
    if said != i64::try_from(count).ok() || count == 0 {
        return refuse!(
            ATTRIBUTE,
            "{node} has {count} outputs, and says {said:?}; the same is taken"
        );
    }
    let how = Split { axis: node.int("axis").unwrap_or(0), lengths };
    if let Some((input, outputs)) = carry::parts(unit.graph, node) {
        unit.reads(input);
        let (indices, values): (Vec<usize>, Vec<_>) = outputs.into_iter().unzip();
        return unit.finish_all(&values, Kind::Carry(Carry::Split { how, indices }));
    }
    let input = unit.activation(0)?;
    let (mut shares, mut values) = (Vec::new(), Vec::new());
    for index in 0..count {
        if !unit.is_read(index) {
            continue;
        }
        let (value, output) = unit.result_at(index)?;
        values.push(value);
        shares.push(Share { index, table: input.requantise(output) });
    }
    unit.finish_all(&values, Kind::Split { how, shares })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn parts(lengths: Lengths, len: usize, count: usize) -> Option<Vec<(usize, usize)>> {
        let node = Node {
            name: "n".into(),
            op: "Split".into(),
            domain: String::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            attributes: BTreeMap::new(),
        };
        let split = Split { axis: -1, lengths };
        let part = |index| match split.step(&node, &[2, len], index).ok()? {
            Step::Slice { axis: 1, start, step: 1, len } => Some((start, len)),
            other => panic!("{other:?}"),
        };
        (0..count).map(part).collect()
    }

    #[test]
    fn parts_lie_side_by_side_and_are_the_whole() {
        assert_eq!(parts(Lengths::Given(vec![1, 3, 2]), 6, 3), Some(vec![(0, 1), (1, 3), (4, 2)]));
        assert_eq!(parts(Lengths::Equal(3), 6, 3), Some(vec![(0, 2), (2, 2), (4, 2)]));
        assert_eq!(parts(Lengths::Chunks(4), 7, 4), Some(vec![(0, 2), (2, 2), (4, 2), (6, 1)]));
    }

    #[test]
    fn lengths_that_are_not_the_dimensions_are_refused() {
        assert_eq!(parts(Lengths::Given(vec![1, 3]), 6, 2), None);
        assert_eq!(parts(Lengths::Given(vec![7, -1]), 6, 2), None);
        assert_eq!(parts(Lengths::Given(vec![i64::MAX, i64::MAX, 8]), 6, 3), None);
        assert_eq!(parts(Lengths::Equal(4), 6, 4), None);
        // The last of four chunks of two would begin behind the end.
        assert_eq!(parts(Lengths::Chunks(4), 5, 4), None);
    }
}
