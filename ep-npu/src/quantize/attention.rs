//! Units of what attention is made of: the product of two tensors that flow, and Softmax.

use super::codes::Codes;
use super::form::Former;
use super::signed::Edges;
use super::unit::{Kind, Unit};
use crate::refusal::{Refusal, refuse};
use std::sync::Arc;

/// A part for each code, as Softmax counts them.
pub type Parts = Arc<[f32; 256]>;

/// MatMul of two tensors.
pub(super) fn matmul(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let (first, second) = (unit.activation(0)?, unit.activation(1)?);
    let (value, result) = unit.result()?;
    if unit.outer_edges() != Edges::Unsigned {
        return refuse!(
            S8_ACTIVATIONS,
            "{node} reads or writes int8, so the CPU runs it in float; quantise activations as uint8"
        );
    }
    let multiplier = multiplier(first, second, result);
    if !(multiplier.is_finite() && multiplier > 0.0) {
        return refuse!(SCALE, "{node} has scales that come to a multiplier of {multiplier}");
    }
    Ok(unit.finish(value, Kind::MatMul { first, second, result }))
}

/// What sums of products of codes are multiplied by.
pub fn multiplier(first: Codes, second: Codes, result: Codes) -> f32 {
    first.scale * second.scale / result.scale
}

/// Softmax.
pub(super) fn softmax(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let axis = node.int("axis").unwrap_or(-1);
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    match unit.edges() {
        Edges::Unsigned => {}
        // Beyond int8 the CPU wraps; codes that no sum of shares leaves are the same here and there.
        Edges::Signed if whole(output) + f32::from(output.zero_point) <= 255.0 => {}
        Edges::Signed => {
            return refuse!(
                S8_ACTIVATIONS,
                "{node} writes int8 with scale {:e}, and a share of 1 is beyond its codes, where the CPU wraps; \
                 quantise it as uint8, or for shares up to 1",
                output.scale
            );
        }
        Edges::Mixed => {
            return refuse!(
                S8_ACTIVATIONS,
                "{node} reads and writes int8 and uint8, so the CPU runs it in float; quantise both as uint8"
            );
        }
    }
    Ok(unit.finish(value, Kind::Softmax { axis, input, output }))
}

/// What each code counts in a sum of `count`, as the CPU provider has it: powers of e, as large as the
/// sum allows, the largest code of a sum at 255.
pub fn parts(input: Codes, count: usize) -> Parts {
    #[expect(clippy::cast_precision_loss, reason = "as the CPU provider rounds it")]
    let room = f64::from((f32::MAX / count as f32).ln());
    let scale = f64::from(input.scale);
    let lift = (room - 5.0).max(0.0) / scale;
    let mut parts = [0.0; 256];
    for (part, code) in parts.iter_mut().zip(0..=255_u8) {
        #[expect(clippy::cast_possible_truncation, reason = "as the CPU provider rounds it")]
        let value = ((f64::from(code) - 255.0 + lift) * scale).exp() as f32;
        *part = value;
    }
    Arc::new(parts)
}

/// Codes that a whole sum stands for: the CPU provider rounds the inverse of the scale down.
pub fn whole(output: Codes) -> f32 {
    (1.0 / output.scale).floor()
}

/// Whether the CPU provider's arithmetic of `count` elements stays within what it can round: there is a
/// sum, which no part of it multiplied by the number of codes overflows.
pub fn is_in_range(input: Codes, output: Codes, count: usize) -> bool {
    let (parts, whole) = (parts(input, count), whole(output));
    #[expect(clippy::cast_precision_loss, reason = "a bound")]
    let most = parts[255] * count as f32;
    // Every row has its largest code at entry 255, so no sum is zero.
    parts[255] > 0.0 && most.is_finite() && (parts[255] * whole).is_finite() && whole < 16_777_216.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_sums_to_zero_or_past_float32() {
        let output = Codes { scale: 1.0 / 256.0, zero_point: 0 };
        for (scale, count) in [(1e-6, 2), (0.5, 6625), (30.0, 64), (0.01, 1 << 20)] {
            let input = Codes { scale, zero_point: 9 };
            let parts = parts(input, count);
            assert!(is_in_range(input, output, count), "{scale} {count}");
            assert!(parts[255] >= 1.0 && parts.windows(2).all(|pair| pair[0] <= pair[1]));
        }
        let input = Codes { scale: 0.1, zero_point: 9 };
        assert!(!is_in_range(input, output, 1), "256 times the only part is no float32");
        assert!(!is_in_range(input, Codes { scale: 1e-9, zero_point: 0 }, 64));
    }
}
