//! Rearrangements element by element.

use crate::graph::Node;
use crate::quantize::{Linear, Step, axis_of};
use ndarray::{Array4, ArrayD, Axis, IxDyn, Slice};
use npu_uapi::requantise::{dequantise, quantise};

/// What `step` makes of `elements`.
#[expect(clippy::needless_pass_by_value, reason = "a step of a fold")]
pub(super) fn step<T: Copy>(elements: ArrayD<T>, step: &Step) -> ArrayD<T> {
    let from = |shape: Vec<usize>, source: &dyn Fn(&IxDyn) -> IxDyn| {
        ArrayD::from_shape_fn(IxDyn(&shape), |at| elements[source(&at)])
    };
    let along = |at: &IxDyn, axis: usize, index: usize| {
        let mut at = at.clone();
        at[axis] = index;
        at
    };
    let shape = step.shape(elements.shape().to_vec());
    match step {
        Step::Reshape(_) => {
            let flat: Vec<T> = elements.iter().copied().collect();
            ArrayD::from_shape_vec(IxDyn(&shape), flat).expect("as many elements as before")
        }
        Step::Permute(order) => elements.clone().permuted_axes(IxDyn(order)),
        Step::Slice { axis, start, step, .. } => from(shape, &|at| {
            let index = start.checked_add_signed(step * at[*axis].cast_signed());
            along(at, *axis, index.expect("the slice lies in the tensor"))
        }),
        Step::Pick { axis, elements: picked } => {
            from(shape, &|at| along(at, *axis, picked[at[*axis]]))
        }
        Step::RepeatEach { axis, times } => from(shape, &|at| along(at, *axis, at[*axis] / times)),
        Step::RepeatAll { axis, .. } => {
            let len = elements.shape()[*axis];
            from(shape, &|at| along(at, *axis, at[*axis] % len))
        }
    }
}

/// Rows and columns between those of `codes`, as the CPU provider blends them.
pub(super) fn linear(node: &Node, linear: &Linear, codes: &Array4<u8>) -> Array4<u8> {
    let (n, c, _, _) = codes.dim();
    let places = linear.places(node, codes.shape());
    let [rows, columns] = places.expect("the shape was checked when the part was planned");
    Array4::from_shape_fn((n, c, rows.len(), columns.len()), |(n, c, y, x)| {
        let (row, column) = (rows[y], columns[x]);
        let (from, to) = (linear.input, linear.output);
        let term = |side: usize, end: usize| {
            let code = codes[[n, c, row.at[side], column.at[end]]];
            let weight = column.weights[end] * row.weights[side];
            weight * dequantise(code, from.scale, from.zero_point)
        };
        let value = ((term(0, 0) + term(0, 1)) + term(1, 0)) + term(1, 1);
        quantise(value, to.scale, to.zero_point)
    })
}

/// One tensor behind the other along `axis`.
pub(super) fn joined(parts: &[ArrayD<u8>], axis: i64) -> ArrayD<u8> {
    let axis = axis_of(axis, parts[0].ndim()).expect("the dimension was checked");
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    ndarray::concatenate(Axis(axis), &views).expect("the shapes were checked")
}

/// `inner` with a border of `code`.
pub(super) fn padded(
    inner: &ArrayD<u8>,
    [before, after]: &[Vec<usize>; 2],
    code: u8,
) -> ArrayD<u8> {
    let sides = inner.shape().iter().zip(before).zip(after);
    let shape: Vec<usize> = sides.map(|((len, before), after)| len + before + after).collect();
    let mut out = ArrayD::from_elem(IxDyn(&shape), code);
    let mut middle = out.slice_each_axis_mut(|axis| {
        let (at, len) = (axis.axis.index(), inner.shape()[axis.axis.index()]);
        Slice::from(before[at]..before[at] + len)
    });
    middle.assign(inner);
    out
}

/// The largest or least code over these dimensions.
pub(super) fn extreme(codes: &ArrayD<u8>, axes: Option<&[i64]>, least: bool) -> ArrayD<u8> {
    let mut out = codes.clone();
    for axis in (0..codes.ndim()).rev() {
        let is_reduced =
            |axes: &[i64]| axes.iter().any(|&given| axis_of(given, codes.ndim()) == Some(axis));
        if axes.is_none_or(is_reduced) {
            out = out.map_axis(Axis(axis), |lane| {
                let lane = lane.iter().copied();
                (if least { lane.min() } else { lane.max() }).unwrap_or(0)
            });
        }
    }
    out
}
