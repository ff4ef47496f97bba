//! Sums and normalisations over dimensions, row by row, in the CPU provider's order.

use super::rearrange;
use crate::graph::Node;
use crate::quantize::{Codes, How, Norm, Sum};
use crate::shape::rows::{of_norm, of_sum};
use ndarray::{ArrayD, IxDyn};
use npu_uapi::requantise::{dequantise, quantise};
use npu_uapi::rows::{Portable, Spread, square};

/// Elements of each row as floats, one row after the other.
fn floats(codes: &ArrayD<u8>, from: Codes) -> Vec<f32> {
    codes.iter().map(|&code| dequantise(code, from.scale, from.zero_point)).collect()
}

/// The sum or mean of each row; `shape` is that of the result.
pub(super) fn sum(node: &Node, sum: &Sum, codes: &ArrayD<u8>, shape: &[usize]) -> ArrayD<u8> {
    let (rows, order) = of_sum(node, sum, codes.shape()).expect("the rows were checked");
    let codes = rows.steps().iter().fold(codes.clone(), rearrange::step);
    let floats = floats(&codes, sum.input);
    let code = |(row, values): (u64, &[f32])| {
        let total = order.sum(row, values);
        #[expect(clippy::cast_precision_loss, reason = "a row has at most 2^20 elements")]
        let total = if sum.is_mean { total / rows.count as f32 } else { total };
        quantise(total, sum.output.scale, sum.output.zero_point)
    };
    let all = (0..).zip(floats.chunks_exact(rows.count)).map(code).collect();
    ArrayD::from_shape_vec(IxDyn(shape), all).expect("a code a row")
}

/// Each element normalised.
pub(super) fn norm(node: &Node, norm: &Norm, codes: &ArrayD<u8>) -> ArrayD<u8> {
    let of = of_norm(node, norm, codes.shape()).expect("the rows were checked");
    let codes = of.steps.iter().fold(codes.clone(), rearrange::step);
    let count = of.rows.last().copied().unwrap_or(1);
    let mut floats = floats(&codes, norm.input);
    let mut squares = vec![0.0; count];
    for (row, values) in (0..).zip(floats.chunks_exact_mut(count)) {
        match &norm.how {
            How::Layer { epsilon, terms, .. } => {
                let spread = Spread::of_layer::<Portable>(values, *epsilon);
                for (value, &terms) in values.iter_mut().zip(terms.iter()) {
                    *value = spread.in_layer::<Portable>(*value, terms);
                }
            }
            How::Instance { epsilon, terms } => {
                let spread = Spread::of_instance::<Portable>(row, values, &mut squares, *epsilon);
                let channel = usize::try_from(row).expect("rows are in memory") % terms.len();
                let terms = spread.of_channel(terms[channel]);
                values.iter_mut().for_each(|value| *value = terms.of(*value));
            }
            How::Staged { variance, divisors, .. } => {
                let [first, second] = of.orders.expect("single operators have two sums");
                let mean = first.mean(row, values);
                square(values, mean, &mut squares);
                let spread = second.mean(row, &squares);
                let code = quantise(spread, variance.scale, variance.zero_point);
                let divisor = divisors[usize::from(code)];
                values.iter_mut().for_each(|value| *value = (*value - mean) / divisor);
            }
        }
    }
    let code = |&value: &f32| quantise(value, norm.output.scale, norm.output.zero_point);
    let all = floats.iter().map(code).collect();
    ArrayD::from_shape_vec(IxDyn(&of.shape), all).expect("a code an element")
}
