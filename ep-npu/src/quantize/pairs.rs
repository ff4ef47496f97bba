//! Units of two tensors that flow, element by element.

use super::form::Former;
use super::unit::{Kind, Unit};
use crate::refusal::{Refusal, refuse};
use npu_uapi::requantise::MulTerms;

/// Mul of two tensors that flow.
pub(super) fn mul(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let (first, second) = (unit.activation(0)?, unit.activation(1)?);
    let (value, result) = unit.result()?;
    let pair = |codes: super::Codes| (codes.scale, codes.zero_point);
    let terms = MulTerms::new(pair(first), pair(second), pair(result));
    if !terms.multiplier.is_finite() {
        return refuse!(SCALE, "{node} has scales that come to {}", terms.multiplier);
    }
    Ok(unit.finish(value, Kind::Mul { first, second, result }))
}
