//! Arithmetic over a row of floats: sums in the orders that the CPU provider has, and what is made of them.
//!
//! ```text
//! REDUCE   codes of a row -> floats -> sum -> mean -> one code
//! NORM     codes of a row -> floats -> mean, deviation -> each float scaled -> a code each
//! ```
//!
//! All of it is IEEE 754, rounded to nearest at each step, in the order written. Rows lie one behind the
//! other in an array of floats that begins at a multiple of 16 bytes: where an order follows addresses, it
//! follows from the number of the row.

use crate::requantise::{dequantise, quantise};

/// Most elements of a row: what a device holds of one as floats.
pub const MOST_ELEMENTS: u32 = 1 << 20;

/// Numbers of [`Order`].
pub mod sum_order {
    /// See [`super::Order::Peeled`].
    pub const PEELED: u8 = 1;
    /// See [`super::Order::InTurn`].
    pub const IN_TURN: u8 = 2;
    /// See [`super::Order::InFours`].
    pub const IN_FOURS: u8 = 3;
}

/// In which order a row's elements are added.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// From the first element at a multiple of 16 bytes on: lanes of four, two accumulators in turn, a
    /// last four by itself; lanes joined as `(0 + 2) + (1 + 3)`; then the elements before the first, then
    /// those that are left. Fewer than four in lanes: one after the other.
    Peeled,
    /// One after the other.
    InTurn,
    /// `((0 + 1) + 2) + 3` of each four, one such sum after the other, then `0 + 1` of two, then one.
    InFours,
}

impl Order {
    /// The order of this number.
    pub const fn decode(number: u8) -> Option<Self> {
        match number {
            sum_order::PEELED => Some(Self::Peeled),
            sum_order::IN_TURN => Some(Self::InTurn),
            sum_order::IN_FOURS => Some(Self::InFours),
            _ => None,
        }
    }

    /// Its number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Peeled => sum_order::PEELED,
            Self::InTurn => sum_order::IN_TURN,
            Self::InFours => sum_order::IN_FOURS,
        }
    }

    /// The sum of row `row`.
    #[inline(always)]
    pub fn sum(self, row: u64, values: &[f32]) -> f32 {
        match self {
            Self::Peeled => peeled(lead(row, values.len()), values),
            Self::InTurn => values.iter().fold(0.0, |sum, value| sum + value),
            Self::InFours => in_fours(values),
        }
    }

    /// The sum of row `row`, divided by how many elements it has.
    #[inline(always)]
    pub fn mean(self, row: u64, values: &[f32]) -> f32 {
        self.sum(row, values) / count(values)
    }
}

/// Elements of row `row` of rows of `len` before the first at a multiple of four.
fn lead(row: u64, len: usize) -> usize {
    // Both fit: numbers below 4, and lengths of memory.
    let first = (row % 4) as usize * (len % 4) % 4;
    ((4 - first) % 4).min(len)
}

#[inline(always)]
fn peeled(lead: usize, values: &[f32]) -> f32 {
    let (head, rest) = values.split_at(lead);
    let (lanes, tail) = rest.split_at(rest.len() / 4 * 4);
    let Some((first, others)) = lanes.split_first_chunk::<4>() else {
        return values.iter().fold(0.0, |sum, value| sum + value);
    };
    let mut lanes = *first;
    if let Some((second, others)) = others.split_first_chunk::<4>() {
        let mut beside = *second;
        let pairs = others.chunks_exact(8);
        let last = pairs.remainder();
        for pair in pairs {
            let (one, other) = pair.split_at(4);
            add(&mut lanes, one);
            add(&mut beside, other);
        }
        add(&mut lanes, &beside);
        add(&mut lanes, last);
    }
    let sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    head.iter().chain(tail).fold(sum, |sum, value| sum + value)
}

/// Adds four lanes, or none.
#[inline(always)]
fn add(lanes: &mut [f32; 4], more: &[f32]) {
    for (lane, value) in lanes.iter_mut().zip(more) {
        *lane += value;
    }
}

#[inline(always)]
fn in_fours(values: &[f32]) -> f32 {
    let (fours, rest) = values.as_chunks::<4>();
    let sum = fours.iter().fold(0.0, |sum, [a, b, c, d]| sum + (((a + b) + c) + d));
    match *rest {
        [a] => sum + a,
        [a, b] => sum + (a + b),
        [a, b, c] => (sum + (a + b)) + c,
        _ => sum,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a row has at most 2^20 elements")]
fn count(values: &[f32]) -> f32 {
    values.len() as f32
}

/// What a processor does in one instruction, and `core` lacks; and what it does in wider ones.
pub trait Instructions {
    /// `a * b + c`, rounded once.
    fn fma(a: f32, b: f32, c: f32) -> f32;
    /// The square root.
    fn sqrt(value: f32) -> f32;

    /// The sum in f64, in four lanes. Of what codes of one scale stand for it is exact, in any order: 20
    /// bits of count and 8 of the code beside the 24 of the scale are fewer than 53.
    #[inline(always)]
    fn wide_sum(values: &[f32]) -> f64 {
        let (fours, rest) = values.as_chunks::<4>();
        let mut lanes = [0.0_f64; 4];
        for four in fours {
            for (lane, &value) in lanes.iter_mut().zip(four) {
                *lane += f64::from(value);
            }
        }
        let sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        rest.iter().fold(sum, |sum, &value| sum + f64::from(value))
    }

    /// Squares of distances from `mean` in eight lanes, by fused additions.
    #[inline(always)]
    fn squares(eights: &[[f32; 8]], mean: f32) -> [f32; 8] {
        let mut lanes = [0.0_f32; 8];
        for eight in eights {
            for (lane, value) in lanes.iter_mut().zip(eight) {
                let from_mean = value - mean;
                *lane = Self::fma(from_mean, from_mean, *lane);
            }
        }
        lanes
    }
}

/// In software.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

impl Instructions for Portable {
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        libm::fmaf(a, b, c)
    }

    fn sqrt(value: f32) -> f32 {
        libm::sqrtf(value)
    }
}

/// What a row is centred at, and what it is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f32,
    /// One over the deviation.
    pub inverse: f32,
}

impl Spread {
    /// Of a layer normalisation, for rows of eight elements and more: the mean in f64; squares in eight
    /// lanes by fused additions, joined as halves; of the rest, four by two roundings, then by fused ones.
    #[inline(always)]
    pub fn of_layer<I: Instructions>(values: &[f32], epsilon: f32) -> Self {
        let mean = wide_mean::<I>(values);
        let (eights, rest) = values.as_chunks::<8>();
        let [a, b, c, d, e, f, g, h] = I::squares(eights, mean);
        let fours = [a + e, b + f, c + g, d + h];
        let mut squares = (fours[0] + fours[2]) + (fours[1] + fours[3]);
        let (four, few) = rest.split_at(rest.len() / 4 * 4);
        for value in four {
            let from_mean = value - mean;
            squares += from_mean * from_mean;
        }
        for value in few {
            let from_mean = value - mean;
            squares = I::fma(from_mean, from_mean, squares);
        }
        let inverse = 1.0 / I::sqrt(squares / count(values) + epsilon);
        Self { mean, inverse }
    }

    /// Of an instance normalisation: both sums [`Order::Peeled`], that of squares as of a first row.
    #[inline(always)]
    pub fn of_instance<I: Instructions>(
        row: u64,
        values: &[f32],
        squares: &mut [f32],
        epsilon: f32,
    ) -> Self {
        let mean = Order::Peeled.mean(row, values);
        square(values, mean, squares);
        let squares = Order::Peeled.sum(0, squares);
        let inverse = 1.0 / I::sqrt(squares / count(values) + epsilon);
        Self { mean, inverse }
    }

    /// An element of a layer: `fma((value - mean) * inverse, gain, bias)`.
    #[inline(always)]
    pub fn in_layer<I: Instructions>(self, value: f32, terms: Affine) -> f32 {
        I::fma((value - self.mean) * self.inverse, terms.gain, terms.bias)
    }

    /// What each element of an instance is multiplied by, and what is added then.
    #[inline(always)]
    pub fn of_channel(self, terms: Affine) -> Affine {
        let gain = self.inverse * terms.gain;
        Affine { gain, bias: terms.bias - self.mean * gain }
    }
}

/// A factor and a summand.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Affine {
    /// The factor.
    pub gain: f32,
    /// The summand.
    pub bias: f32,
}

impl Affine {
    /// `value * gain + bias`, rounded twice.
    #[inline(always)]
    pub fn of(self, value: f32) -> f32 {
        value * self.gain + self.bias
    }
}

/// Squares of the distances from `mean`.
#[inline(always)]
pub fn square(values: &[f32], mean: f32, squares: &mut [f32]) {
    for (square, value) in squares.iter_mut().zip(values) {
        let from_mean = value - mean;
        *square = from_mean * from_mean;
    }
}

/// The mean, summed in f64.
#[inline(always)]
fn wide_mean<I: Instructions>(values: &[f32]) -> f32 {
    let sum = I::wide_sum(values);
    #[expect(clippy::cast_precision_loss, reason = "a row has at most 2^20 elements")]
    let mean = sum / values.len() as f64;
    #[expect(clippy::cast_possible_truncation, reason = "the rounding is part of the definition")]
    let mean = mean as f32;
    mean
}

/// Scale and zero point of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Codes {
    /// The scale.
    pub scale: f32,
    /// The zero point.
    pub zero_point: u8,
}

impl Codes {
    /// The float that `code` stands for.
    pub fn value(self, code: u8) -> f32 {
        dequantise(code, self.scale, self.zero_point)
    }

    /// The code of `value`.
    pub fn code(self, value: f32) -> u8 {
        quantise(value, self.scale, self.zero_point)
    }
}

/// What a REDUCE makes of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reduction {
    /// The order of the sum.
    pub order: Order,
    /// Whether it is divided by how many there are.
    pub is_mean: bool,
    /// Codes of the row.
    pub input: Codes,
    /// The code of the result.
    pub output: Codes,
}

impl Reduction {
    /// The code of row `row`, whose floats are `values`.
    #[inline(always)]
    pub fn code(&self, row: u64, values: &[f32]) -> u8 {
        let sum = self.order.sum(row, values);
        self.output.code(if self.is_mean { sum / count(values) } else { sum })
    }
}

/// A variance that becomes a code on its way, as a layer normalisation of single operators has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Staged {
    /// The order of the sum of elements.
    pub first: Order,
    /// The order of the sum of squares.
    pub second: Order,
    /// Codes of the variance.
    pub variance: Codes,
}

impl Staged {
    /// The mean of row `row` and the code of its variance.
    #[inline(always)]
    pub fn of(&self, row: u64, values: &[f32], squares: &mut [f32]) -> (f32, u8) {
        let mean = self.first.mean(row, values);
        square(values, mean, squares);
        (mean, self.variance.code(self.second.mean(row, squares)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const LARGE: f32 = 16_777_216.0;

    #[test]
    fn a_peeled_sum_begins_its_lanes_where_the_row_is_aligned() {
        // Row 1 of rows of 5 begins one element behind a multiple of four: three come last but the tail.
        assert_eq!(lead(0, 5), 0);
        assert_eq!(lead(1, 5), 3);
        assert_eq!(lead(2, 6), 0);
        assert_eq!(lead(1, 2), 2);
        // Beside 2^24 a one is lost, unless it meets another first: in a lane, or behind it as a head.
        let of = |places: &[usize]| {
            let mut values = [0.0; 12];
            values[3] = LARGE;
            places.iter().for_each(|&place| values[place] = 1.0);
            values
        };
        assert_eq!(peeled(3, &of(&[4, 5])), LARGE, "lanes 1 and 2 meet one another's neighbours");
        assert_eq!(peeled(3, &of(&[4, 6])), LARGE + 2.0, "lanes 1 and 3 meet first");
        assert_eq!(peeled(3, &of(&[0, 1])), LARGE, "heads come one after the other");
        assert_eq!(peeled(3, &of(&[4, 8])), LARGE + 2.0, "both accumulators of lane 1");
    }

    #[test]
    fn fours_are_added_before_they_meet_the_sum() {
        let values = [LARGE, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        assert_eq!(in_fours(&values), LARGE + 4.0);
        assert_eq!(Order::InTurn.sum(0, &values), LARGE);
    }

    #[test]
    fn orders_have_numbers() {
        for order in [Order::Peeled, Order::InTurn, Order::InFours] {
            assert_eq!(Order::decode(order.code()), Some(order));
        }
        assert_eq!(Order::decode(0), None);
    }

    #[test]
    fn a_layer_has_mean_zero_and_deviation_one() {
        for len in [8, 11, 15, 64, 385] {
            let values: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32 * 0.07 - 2.0).collect();
            let spread = Spread::of_layer::<Portable>(&values, 0.0);
            let plain = Affine { gain: 1.0, bias: 0.0 };
            let out = values.iter().map(|&value| spread.in_layer::<Portable>(value, plain));
            let out: Vec<f32> = out.collect();
            let mean = out.iter().sum::<f32>() / len as f32;
            let square = out.iter().map(|value| value * value).sum::<f32>() / len as f32;
            assert!(mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-4, "{len}: {mean} {square}");
        }
    }
}
