//! Sums and products of two codes as the CPU provider computes them, whatever their types.

use super::codes::{Codes, SIGN};
use super::pair_table::Arithmetic2;
use super::signed::Edges;
use npu_uapi::requantise::{AddTerms, MulTerms, dequantise, quantise};

/// Which of the two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operator {
    /// Sum.
    Add,
    /// Product.
    Mul,
}

/// A sum or product of codes.
#[derive(Clone, Copy, Debug)]
pub struct Pairwise {
    operator: Operator,
    edges: Edges,
    first: Codes,
    second: Codes,
    result: Codes,
}

impl Pairwise {
    /// Of operands and a result of these codes, on these types; as an error, what the scales come to
    /// when that is no number, or how far codes would reach when that is beyond 32 bits: there the CPU
    /// provider's conversion wraps to the lowest code.
    pub(super) fn new(
        operator: Operator,
        edges: Edges,
        [first, second, result]: [Codes; 3],
    ) -> Result<Self, f32> {
        let terms = match operator {
            Operator::Add => {
                let terms = AddTerms::new(pair(first), pair(second), pair(result));
                vec![terms.first, terms.second, terms.offset]
            }
            Operator::Mul => {
                vec![MulTerms::new(pair(first), pair(second), pair(result)).multiplier]
            }
        };
        let reach = match (operator, terms.as_slice()) {
            (Operator::Mul, terms) => 255.0 * 255.0 * terms[0].abs() + 255.0,
            (Operator::Add, terms) => 255.0 * (terms[0].abs() + terms[1].abs()) + terms[2].abs(),
        };
        let broken = terms.into_iter().find(|term| !term.is_finite());
        match broken.or((reach >= 2_147_483_648.0).then_some(reach)) {
            Some(broken) if edges != Edges::Mixed => Err(broken),
            _ => Ok(Self { operator, edges, first, second, result }),
        }
    }

    /// The same of exchanged operands.
    pub(crate) fn exchanged(self) -> Self {
        Self { first: self.second, second: self.first, ..self }
    }

    /// The code for these two.
    pub(crate) fn code(&self, a: u8, b: u8) -> u8 {
        match self.edges {
            Edges::Unsigned => self.arithmetic().code(a, b),
            Edges::Signed => self.signed(a, b),
            Edges::Mixed => self.float(a, b),
        }
    }

    /// As the device's ADD and MUL have it.
    pub(super) fn arithmetic(&self) -> Arithmetic2 {
        let [first, second, result] = [self.first, self.second, self.result].map(pair);
        match self.operator {
            Operator::Add => Arithmetic2::Add(AddTerms::new(first, second, result)),
            Operator::Mul => Arithmetic2::Multiply(MulTerms::new(first, second, result)),
        }
    }

    /// The same formulas on int8: other zero points, so other roundings.
    fn signed(&self, a: u8, b: u8) -> u8 {
        let Self { first, second, result, .. } = *self;
        let value = match self.operator {
            Operator::Add => {
                let (ra, rb) = (first.scale / result.scale, second.scale / result.scale);
                let zero = ra.mul_add(signed(first.zero_point), rb * signed(second.zero_point));
                let inner = signed(b).mul_add(rb, signed(result.zero_point) - zero);
                signed(a).mul_add(ra, inner)
            }
            Operator::Mul => {
                let less = |code: u8, codes: Codes| signed(code) - signed(codes.zero_point);
                let multiplier = first.scale * second.scale / result.scale;
                // The differences have 9 bits each, so their product is exact.
                less(a, first) * less(b, second) * multiplier + signed(result.zero_point)
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "it is whole, from -128 to 127")]
        let code = value.round_ties_even().clamp(-128.0, 127.0) as i8;
        code.cast_unsigned() ^ SIGN
    }

    /// DequantizeLinear, the float operator, QuantizeLinear.
    fn float(&self, a: u8, b: u8) -> u8 {
        let Self { first, second, result, .. } = *self;
        let a = dequantise(a, first.scale, first.zero_point);
        let b = dequantise(b, second.scale, second.zero_point);
        let value = match self.operator {
            Operator::Add => a + b,
            Operator::Mul => a * b,
        };
        quantise(value, result.scale, result.zero_point)
    }
}

/// The int8 code that stands as `code` here.
fn signed(code: u8) -> f32 {
    f32::from((code ^ SIGN).cast_signed())
}

fn pair(codes: Codes) -> (f32, u8) {
    (codes.scale, codes.zero_point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_change_few_codes_and_those_by_one() {
        let codes = [(0.031, 130), (0.047, 90), (0.05, 121)];
        let codes = codes.map(|(scale, zero_point)| Codes { scale, zero_point });
        for operator in [Operator::Add, Operator::Mul] {
            let of = |edges| Pairwise::new(operator, edges, codes).unwrap();
            let all = [Edges::Unsigned, Edges::Signed, Edges::Mixed].map(of);
            let mut differ = 0;
            for (a, b) in (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b))) {
                let found = all.map(|pairwise| pairwise.code(a, b));
                let apart = |other: u8| found[0].abs_diff(other);
                assert!(apart(found[1]) <= 1 && apart(found[2]) <= 1, "{operator:?} of {a}, {b}");
                differ += usize::from(found != [found[0]; 3]);
            }
            assert!(differ < 1000, "{operator:?}: {differ}");
        }
    }

    #[test]
    fn infinite_terms_are_told_where_they_are_used() {
        let codes = [1e30, 1e30, 1e-30].map(|scale| Codes { scale, zero_point: 0 });
        let of = |edges| Pairwise::new(Operator::Mul, edges, codes);
        assert_eq!(of(Edges::Unsigned).unwrap_err(), f32::INFINITY);
        assert!(of(Edges::Mixed).is_ok());
    }
}
