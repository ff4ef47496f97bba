//! Units of Pad: a border of one code, or of elements of the tensor itself.

use super::form::Former;
use super::pick;
use super::rearrange::{Rearrange, Step, axis_of, constant_float, numbers, rearranged, required};
use super::unit::{Kind, Unit};
use crate::graph::Node;
use crate::refusal::{Refusal, refuse};
use npu_uapi::requantise::quantise;

/// What a border is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Border {
    /// The elements behind the edge, without it, mirrored.
    Reflect,
    /// The edge.
    Edge,
    /// The other end.
    Wrap,
}

/// How much stands before and behind each dimension. What is negative is cut off.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pads {
    /// Before, for each of the dimensions, then behind.
    pub pads: Vec<i64>,
    /// The dimensions; all of them when `None`.
    pub axes: Option<Vec<i64>>,
}

/// A dimension's part in a padding.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    before: i64,
    behind: i64,
}

impl Pads {
    /// Whether dimension 0 of `input` becomes longer or shorter.
    pub(crate) fn touch_the_first(&self, node: &Node, input: &[usize]) -> bool {
        let sides = self.sides(node, input).unwrap_or_default();
        sides.first().is_some_and(|side| side.before != 0 || side.behind != 0)
    }

    /// For each dimension of `input`, what stands before and behind.
    fn sides(&self, node: &Node, input: &[usize]) -> Result<Vec<Side>, Refusal> {
        let wrong = || {
            let Self { pads, axes } = self;
            refuse!(SHAPE, "{node} pads {input:?} by {pads:?} along {axes:?}")
        };
        let all: Vec<i64> = (0..).take(input.len()).collect();
        let axes = self.axes.as_deref().unwrap_or(&all);
        if self.pads.len() != 2 * axes.len() {
            return wrong();
        }
        let (before, behind) = self.pads.split_at(axes.len());
        let mut sides = vec![None; input.len()];
        for ((&axis, &before), &behind) in axes.iter().zip(before).zip(behind) {
            let Some(axis) = axis_of(axis, input.len()) else { return wrong() };
            if sides[axis].replace(Side { before, behind }).is_some() {
                return wrong();
            }
        }
        Ok(sides.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// What is cut off, and how much then stands before each dimension and behind: of both none is
    /// negative.
    pub fn cut(
        &self,
        node: &Node,
        input: &[usize],
    ) -> Result<(Vec<Step>, [Vec<usize>; 2]), Refusal> {
        let (mut steps, mut pads) = (Vec::new(), [Vec::new(), Vec::new()]);
        for (axis, (side, &len)) in self.sides(node, input)?.into_iter().zip(input).enumerate() {
            let [first, last] = [side.before, side.behind].map(cut_off);
            let left = first.zip(last).and_then(|(first, last)| {
                let left = len.checked_sub(first)?.checked_sub(last)?;
                (left > 0).then_some((first, left))
            });
            let Some((start, left)) = left else {
                return refuse!(SHAPE, "{node} cuts all of dimension {axis} of {input:?} off");
            };
            if left != len {
                steps.push(Step::Slice { axis, start, step: 1, len: left });
            }
            for (pads, side) in pads.iter_mut().zip([side.before, side.behind]) {
                let Ok(side) = usize::try_from(side.max(0)) else {
                    return refuse!(SIZE, "{node} pads dimension {axis} by {side}");
                };
                pads.push(side);
            }
        }
        Ok((steps, pads))
    }

    /// A border of elements of the tensor.
    pub(super) fn steps(
        &self,
        node: &Node,
        border: Border,
        input: &[usize],
    ) -> Result<Vec<Step>, Refusal> {
        let (mut steps, [before, behind]) = self.cut(node, input)?;
        let shape = steps.iter().fold(input.to_vec(), |shape, step| step.shape(shape));
        for (axis, &len) in shape.iter().enumerate() {
            let (before, behind) = (before[axis], behind[axis]);
            if (before, behind) == (0, 0) {
                continue;
            }
            if border == Border::Reflect && before.max(behind) >= len {
                return refuse!(
                    SHAPE,
                    "{node} reflects {before} and {behind} elements of {len}; fewer than there are is taken"
                );
            }
            let elements = elements(border, len, before, behind);
            match elements.and_then(|elements| pick::steps(axis, len, elements)) {
                Some(more) => steps.extend(more),
                None => {
                    return refuse!(
                        SIZE,
                        "{node} pads dimension {axis} of {input:?} by {before} and {behind}, which takes too many commands; pad less"
                    );
                }
            }
        }
        Ok(steps)
    }
}

/// How many elements a side of a padding cuts off.
fn cut_off(side: i64) -> Option<usize> {
    usize::try_from(side.min(0).checked_neg()?).ok()
}

/// The elements of a padded dimension of `len`; `None` where they are too many to look through.
fn elements(border: Border, len: usize, before: usize, behind: usize) -> Option<Vec<usize>> {
    let total = len.checked_add(before)?.checked_add(behind)?;
    if total > pick::LONGEST {
        return None;
    }
    let element = |place: usize| {
        let inside = place.checked_sub(before);
        match (border, inside) {
            (_, Some(at)) if at < len => at,
            (Border::Edge, Some(_)) => len - 1,
            (Border::Edge, None) => 0,
            (Border::Reflect, Some(at)) => 2 * (len - 1) - at,
            (Border::Reflect, None) => before - place,
            (Border::Wrap, Some(at)) => at % len,
            (Border::Wrap, None) => (len - (before - place) % len) % len,
        }
    };
    Some((0..total).map(element).collect())
}

/// Pad.
pub(super) fn pad(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let pads = Pads { pads: required(&unit, 1, "pads")?, axes: numbers(&unit, 3, "axes")? };
    let border = match node.string("mode").unwrap_or("constant") {
        "constant" => None,
        "reflect" => Some(Border::Reflect),
        "edge" => Some(Border::Edge),
        "wrap" => Some(Border::Wrap),
        other => return refuse!(ATTRIBUTE, "{node} has mode {other:?}, which is not ONNX"),
    };
    if let Some(border) = border {
        return rearranged(unit, Rearrange::Pad { pads, border });
    }
    let real = match node.input(2) {
        None => node.float("value").unwrap_or(0.0),
        Some(_) => match constant_float(&unit, 2) {
            Some(value) => value,
            None => return refuse!(ATTRIBUTE, "{node} has a value that is not constant"),
        },
    };
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    let code = quantise(real, output.scale, output.zero_point);
    Ok(unit.finish(value, Kind::Pad { pads, code, table: input.requantise(output) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_are_what_onnx_says() {
        let of = |border, before, behind| elements(border, 3, before, behind).unwrap();
        assert_eq!(of(Border::Reflect, 2, 1), [2, 1, 0, 1, 2, 1]);
        assert_eq!(of(Border::Edge, 2, 1), [0, 0, 0, 1, 2, 2]);
        assert_eq!(of(Border::Wrap, 4, 5), [2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]);
    }
}
