//! Products of two tensors, and Softmax, element by element.

use crate::quantize::{Codes, multiplier, parts, whole};
use ndarray::{ArrayD, Axis, IxDyn};
use npu_uapi::requantise::{ShareTerms, requantise, share};

/// The products of two tensors' matrices; `shape` is that of the result.
pub(super) fn matmul(
    a: &ArrayD<u8>,
    b: &ArrayD<u8>,
    [first, second, result]: [Codes; 3],
    shape: &[usize],
) -> ArrayD<u8> {
    let (around, sums) = (&shape[..shape.len() - 2], a.shape()[a.ndim() - 1]);
    let whole = |tensor: &ArrayD<u8>| {
        let own = [around, &tensor.shape()[tensor.ndim() - 2..]].concat();
        tensor.broadcast(IxDyn(&own)).expect("the shapes were checked").to_owned()
    };
    let (a, b) = (whole(a), whole(b));
    let multiplier = multiplier(first, second, result);
    ArrayD::from_shape_fn(IxDyn(shape), |at| {
        let (mut left, mut right) = (at.clone(), at.clone());
        let rank = shape.len();
        let mut sum = 0;
        for l in 0..sums {
            left[rank - 1] = l;
            right[rank - 2] = l;
            let x = i32::from(a[&left]) - i32::from(first.zero_point);
            sum += x * (i32::from(b[&right]) - i32::from(second.zero_point));
        }
        requantise(sum, multiplier, result.zero_point)
    })
}

/// Shares of the sums of dimension `axis`.
pub(super) fn softmax(codes: &ArrayD<u8>, axis: usize, input: Codes, output: Codes) -> ArrayD<u8> {
    let parts = parts(input, codes.shape()[axis]);
    let terms = ShareTerms { scale: whole(output), zero_point: output.zero_point };
    let mut out = codes.clone();
    for mut row in out.lanes_mut(Axis(axis)) {
        let most = row.iter().copied().max().unwrap_or(0);
        let part = |code: u8| parts[usize::from(255 - most + code)];
        let sum = row.iter().fold(0.0, |sum, &code| sum + part(code));
        row.mapv_inplace(|code| share(part(code), sum, terms));
    }
    out
}
