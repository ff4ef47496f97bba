//! Which arithmetic the CPU provider uses for a sum of products.
//!
//! Where it fuses a unit into one 8-bit operator, sums are of integers. Where it does not, the unit's
//! operands are dequantised and the operator runs in float32; then the order of its sums matters, and
//! that follows from the shapes.

/// How sums of products are computed.
#[derive(Clone, Debug)]
pub enum Arithmetic {
    /// In integers, as the 8-bit operators do.
    Integer,
    /// In floats, as DequantizeLinear, the operator and QuantizeLinear one by one.
    Float(Floats),
}

/// What a sum in floats needs beside the codes.
#[derive(Clone, Debug)]
pub struct Floats {
    /// Scale of the weights, for each output channel.
    pub weight_scales: Vec<f32>,
    /// Bias, for each output channel, dequantised; `None` where the operator has none.
    pub bias: Option<Vec<f32>>,
    /// Lowest and highest code that an activation behind the sums leaves.
    pub range: [u8; 2],
    /// Whether the order in which the CPU provider sums follows from the shapes.
    pub order_is_known: bool,
}

impl Arithmetic {
    /// The floats, unless sums are of integers.
    pub fn floats(&self) -> Option<&Floats> {
        match self {
            Self::Integer => None,
            Self::Float(floats) => Some(floats),
        }
    }
}
