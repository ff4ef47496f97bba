//! Resize by linear interpolation: which four elements each one of the result comes from.
//!
//! The CPU provider runs it in floats between DequantizeLinear and QuantizeLinear, whatever stands around:
//! rows and columns have two neighbours each, with weights that do not depend on the channel.

use super::codes::Codes;
use super::form::Former;
use super::resize::Scaling;
use super::sums::{comes_from_one, leads_to_one};
use super::unit::{Kind, Unit};
use crate::graph::{Dim, Graph, Node, Tensor};
use crate::refusal::{Refusal, refuse};
use npu_uapi::command::MOST_TAPS;

/// Most rows or columns of a result.
const LONGEST: usize = MOST_TAPS as usize;

/// Where a row or column of the result lies between two of the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Between {
    /// The two.
    pub at: [usize; 2],
    /// Their weights.
    pub weights: [f32; 2],
}

/// A Resize by linear interpolation of rows and columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Factors and coordinates.
    pub scaling: Scaling,
    /// Codes of the input.
    pub input: Codes,
    /// Codes of the output.
    pub output: Codes,
}

impl Linear {
    /// For each row of the result of an input of this shape, and for each column, where it lies.
    pub fn places(&self, node: &Node, input: &[usize]) -> Result<[Vec<Between>; 2], Refusal> {
        let wrong = || {
            refuse!(
                SHAPE,
                "{node} resizes {input:?} by {:?} linearly; images are taken, with factors of 1 for their first two dimensions",
                self.scaling.factors
            )
        };
        let &[_, _, h, w] = input else { return wrong() };
        if self.scaling.given() != input.len() {
            return wrong();
        }
        let scale = |axis: usize| self.scaling.scale(axis, input[axis]);
        let is_one = |axis: usize| scale(axis).is_some_and(|(scale, _)| is_one(scale));
        let ends = scale(2).zip(scale(3)).filter(|_| is_one(0) && is_one(1));
        let Some(((y, rows), (x, columns))) = ends else { return wrong() };
        if rows.max(columns) > LONGEST {
            return refuse!(SIZE, "{node} makes {rows} by {columns} pixels; {LONGEST} are taken");
        }
        // What has its size already is copied, whatever the coordinates say.
        let is_same = (rows, columns) == (h, w);
        let axis = |scale: f32, len: usize, result: usize| {
            let scale = if is_same { 1.0 } else { scale };
            let place = |at: usize| match is_same {
                true => Between { at: [at, at], weights: [1.0, 0.0] },
                false => self.between(scale, len, result, at),
            };
            (0..result).map(place).collect()
        };
        Ok([axis(y, h, rows), axis(x, w, columns)])
    }

    /// Where element `at` of `result` lies in `len`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "positions below 2^24, at least 0"
    )]
    fn between(&self, scale: f32, len: usize, result: usize, at: usize) -> Between {
        let last = len - 1;
        let position = match is_one(scale) {
            true => at as f32,
            false => self.scaling.coordinates.position(at as f32, scale, len, result),
        };
        let position = position.min(last as f32).max(0.0);
        let first = (position as usize).min(last);
        let second = (first + 1).min(last);
        let weights = match first == second {
            // At the end both are the last one.
            true => [0.5, 0.5],
            false => [(position - second as f32).abs(), (position - first as f32).abs()],
        };
        Between { at: [first, second], weights }
    }
}

fn is_one(scale: f32) -> bool {
    scale.to_bits() == 1.0_f32.to_bits()
}

/// Whether `node` is a Resize by linear interpolation of columns only, or may be.
///
/// Where it has channels last, the CPU provider finds factors of 1 for the first two dimensions, and takes
/// columns for rows and channels for columns: the last channel has the weights of an end then, and not the
/// last row.
pub(crate) fn keeps_rows_only(graph: &Graph, node: &Node) -> bool {
    if !node.is("Resize") || node.string("mode") != Some("linear") {
        return false;
    }
    if let Some(sizes) = graph.constant(node, 3).and_then(Tensor::as_i64) {
        let ty = node.input(0).and_then(|input| graph.value(input).ty.as_ref());
        let shape = ty.and_then(|ty| ty.shape.as_deref()).unwrap_or_default();
        let keeps = |axis: usize| match shape.get(axis) {
            Some(Dim::Known(len)) => Some(i64::try_from(*len) == Ok(*sizes.get(axis)?)),
            _ => None,
        };
        return keeps(2) != Some(false) && keeps(3) != Some(true);
    }
    let scales = graph.constant(node, 2).and_then(Tensor::as_f32);
    scales.is_some_and(|scales| match scales.as_slice() {
        &[_, _, y, x] => is_one(y) && !is_one(x),
        _ => false,
    })
}

/// The unit of a Resize by linear interpolation.
pub(super) fn linear(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let scaling = Scaling::read(&unit)?;
    let node = unit.node();
    let ends = node.input(0).zip(node.output(0));
    let may_be_turned =
        |(source, result)| comes_from_one(unit.graph, source) && leads_to_one(unit.graph, result);
    if keeps_rows_only(unit.graph, node) && ends.is_some_and(may_be_turned) {
        return refuse!(
            FLOAT_ORDER,
            "{node} makes more or fewer columns of as many rows between operators whose transpositions the CPU provider \
             may move through it, which changes its values; resize rows as well, or make it nearest"
        );
    }
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    Ok(unit.finish(value, Kind::Linear(Linear { scaling, input, output })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Coordinates, Factors};
    use std::collections::BTreeMap;

    fn places(coordinates: Coordinates, scale: f32, input: [usize; 4]) -> [Vec<Between>; 2] {
        let factors = Factors::Scales(vec![1.0, 1.0, scale, 1.0]);
        let codes = Codes { scale: 0.1, zero_point: 3 };
        let scaling = Scaling { factors, coordinates };
        let node = Node {
            name: "n".into(),
            op: "Resize".into(),
            domain: String::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            attributes: BTreeMap::new(),
        };
        Linear { scaling, input: codes, output: codes }.places(&node, &input).unwrap()
    }

    #[test]
    fn rows_lie_between_their_neighbours() {
        let [rows, columns] = places(Coordinates::HalfPixel, 2.0, [1, 1, 2, 3]);
        let found: Vec<_> = rows.iter().map(|row| (row.at, row.weights)).collect();
        let want = [
            ([0, 1], [1.0, 0.0]),
            ([0, 1], [0.75, 0.25]),
            ([0, 1], [0.25, 0.75]),
            ([1, 1], [0.5, 0.5]),
        ];
        assert_eq!(found, want);
        assert_eq!(columns[1].weights, [1.0, 0.0]);
        assert_eq!((columns[2].at, columns[2].weights), ([2, 2], [0.5, 0.5]));
    }

    #[test]
    fn what_keeps_its_size_is_copied() {
        // 1.2 times 3 is 3 again.
        let [rows, _] = places(Coordinates::HalfPixel, 1.2, [1, 1, 3, 3]);
        assert!(
            rows.iter().enumerate().all(|(y, row)| row.at[0] == y && row.weights == [1.0, 0.0])
        );
    }
}
