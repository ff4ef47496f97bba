//! Scale and zero point of an 8-bit tensor, read from QuantizeLinear and DequantizeLinear.

use crate::graph::{ElementType, Graph, Node};
use crate::refusal::{Refusal, refuse};
use npu_uapi::requantise::{dequantise, quantise};
use std::sync::Arc;

/// A code for each code: what any function of one 8-bit tensor comes to.
pub type Table = Arc<[u8; 256]>;

/// What moves a signed byte to an unsigned one, and back: 128 more, or less.
pub(crate) const SIGN: u8 = 0x80;

/// The table between the codes of an int8 tensor and those that stand for them.
pub(crate) fn change_of_sign() -> Table {
    let mut table = [0; 256];
    for (code, entry) in (0..=255).zip(&mut table) {
        *entry = code ^ SIGN;
    }
    Arc::new(table)
}

/// How the codes of an 8-bit tensor stand for reals: `(code - zero_point) * scale`.
///
/// Codes are unsigned wherever they are here: those of an int8 tensor are moved by 128, and their zero
/// point with them. Which tensors the model has in int8 is the matter of `signed.rs`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Codes {
    /// Finite, above zero.
    pub scale: f32,
    /// Code of zero.
    pub zero_point: u8,
}

impl Codes {
    /// The codes that `node`, a QuantizeLinear or DequantizeLinear, writes or reads.
    pub fn read(graph: &Graph, node: &Node) -> Result<Self, Refusal> {
        if let Some(size) = node.int("block_size").filter(|&size| size != 0) {
            return refuse!(ATTRIBUTE, "{node} has block_size {size}; only 0 is taken");
        }
        let Some(scale) = graph.constant(node, 1) else {
            return refuse!(SCALE, "{node} has a scale that is not constant");
        };
        let &[scale] = scale.as_f32().unwrap_or_default().as_slice() else {
            return refuse!(
                SCALE,
                "{node} has scale {scale:?}; an activation needs one float32 scale"
            );
        };
        check_scale(node, scale)?;
        let Some(zero_point) = graph.constant(node, 2) else {
            return refuse!(SCALE, "{node} has no constant zero point; give it a uint8 one");
        };
        let moved = match zero_point.element {
            ElementType::U8 => 0,
            ElementType::I8 => SIGN,
            found => {
                return refuse!(
                    ELEMENT_TYPE,
                    "{node} is {found}; activations are taken in uint8 or int8"
                );
            }
        };
        let &[zero_point] = zero_point.bytes.as_ref() else {
            return refuse!(SCALE, "{node} has zero point {zero_point:?}; one value is taken");
        };
        let zero_point = zero_point ^ moved;
        let codes = Self { scale, zero_point };
        if !codes.survives_a_round_trip() {
            return refuse!(SCALE, "{node} has scale {scale:e}: codes do not survive in float32");
        }
        Ok(codes)
    }

    /// The table of `function` between these codes and those of `result`.
    pub fn table(self, result: Self, function: impl Fn(f32) -> f32) -> Table {
        let code = |code| {
            let value = function(dequantise(code, self.scale, self.zero_point));
            quantise(value, result.scale, result.zero_point)
        };
        let mut table = [0; 256];
        for (entry, index) in table.iter_mut().zip(0..=255) {
            *entry = code(index);
        }
        Arc::new(table)
    }

    /// What DequantizeLinear of these codes and QuantizeLinear to those of `result` do together;
    /// `None` when that is nothing.
    pub fn requantise(self, result: Self) -> Option<Table> {
        let table = self.table(result, |value| value);
        table.iter().zip(0..=255).any(|(&to, from)| to != from).then_some(table)
    }

    fn survives_a_round_trip(self) -> bool {
        self.requantise(self).is_none()
    }
}

/// Refuses a scale that is NaN, infinite, zero or negative.
pub(super) fn check_scale(node: &Node, scale: f32) -> Result<(), Refusal> {
    if scale.is_finite() && scale > 0.0 {
        return Ok(());
    }
    refuse!(SCALE, "{node} has scale {scale}; it must be finite and above zero")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_codes_need_no_table() {
        let codes = Codes { scale: 0.023_529_41, zero_point: 17 };
        assert_eq!(codes.requantise(codes), None);
        assert!(codes.requantise(Codes { scale: 0.1, zero_point: 17 }).is_some());
    }

    #[test]
    fn a_scale_near_the_end_of_float32_loses_codes() {
        assert!(!Codes { scale: f32::MAX / 2.0, zero_point: 0 }.survives_a_round_trip());
        assert!(Codes { scale: 1e-30, zero_point: 255 }.survives_a_round_trip());
    }
}
