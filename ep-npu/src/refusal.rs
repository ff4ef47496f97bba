//! Why a node is not taken: a rule with a fixed name, and a sentence about this node.
//!
//! The names are stable, so that a script can count them; the sentence names the node, what was found,
//! and the smallest change that would be accepted.

/// Names of the rules.
pub mod rule {
    /// The operator has no exact form on the NPU yet.
    pub const OPERATOR: &str = "operator";
    /// An attribute's value is not supported.
    pub const ATTRIBUTE: &str = "attribute";
    /// The node is not wrapped in DequantizeLinear and QuantizeLinear as the CPU provider fuses it.
    pub const UNIT: &str = "unit";
    /// A scale or zero point is not constant, or not one the arithmetic is defined for.
    pub const SCALE: &str = "scale";
    /// An element type is not supported.
    pub const ELEMENT_TYPE: &str = "element-type";
    /// An int8 activation: the CPU provider runs what is around it in float, or would if it were parted.
    pub const S8_ACTIVATIONS: &str = "s8-activations";
    /// Weights or bias are not constant, or not of the form that the CPU provider fuses.
    pub const WEIGHTS: &str = "weights";
    /// The CPU runs the unit in float, and its sums have no order that holds.
    pub const FLOAT_ORDER: &str = "float-order";
    /// A sum might leave 32 bits.
    pub const ACCUMULATOR: &str = "accumulator";
    /// An activation between operator and QuantizeLinear changes values, so the CPU runs the unit in float.
    pub const ACTIVATION_RANGE: &str = "activation-range";
    /// A shape is unknown, symbolic beyond the batch, or not supported.
    pub const SHAPE: &str = "shape";
    /// A size exceeds what the device takes.
    pub const SIZE: &str = "size";
    /// The float neighbour stays on the CPU, so the conversion does too.
    pub const FLOAT_NEIGHBOUR: &str = "float-neighbour";
    /// Nothing but conversions would be taken.
    pub const NO_WORK: &str = "no-work";
    /// An operator or two without weights would be taken, between nodes on the CPU: the way there and
    /// back is longer than the work.
    pub const ISLAND: &str = "island";
    /// The CPU is estimated to take hardly longer than the NPU with the way there and back, and the
    /// option `min_gain` asks for more.
    pub const MIN_GAIN: &str = "min-gain";

    /// All of them.
    pub const ALL: &[&str] = &[
        OPERATOR,
        ATTRIBUTE,
        UNIT,
        SCALE,
        ELEMENT_TYPE,
        S8_ACTIVATIONS,
        WEIGHTS,
        FLOAT_ORDER,
        ACCUMULATOR,
        ACTIVATION_RANGE,
        SHAPE,
        SIZE,
        FLOAT_NEIGHBOUR,
        NO_WORK,
        ISLAND,
        MIN_GAIN,
    ];
}

/// Why something is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason} [{rule}]")]
pub struct Refusal {
    /// One of [`rule`].
    pub rule: &'static str,
    /// The sentence.
    pub reason: String,
}

impl Refusal {
    /// A refusal by `rule`.
    pub fn new(rule: &'static str, reason: impl Into<String>) -> Self {
        Self { rule, reason: reason.into() }
    }
}

/// `Err` of a [`Refusal`] by a rule, with a formatted reason.
macro_rules! refuse {
    ($rule:ident, $($format:tt)*) => {
        Err($crate::refusal::Refusal::new($crate::refusal::rule::$rule, format!($($format)*)))
    };
}
pub(crate) use refuse;
