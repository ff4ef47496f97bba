//! The arithmetic of the output stage, one scalar at a time: the definition that every kernel equals.
//!
//! All of it is IEEE 754 binary32, each step rounded to nearest, ties to even, in the order written.
//! It is what ONNX Runtime's CPU provider executes for QLinear operators on x86-64 with AVX2 or later
//! (its matrix library multiplies by one f32 scale and rounds; it has no fixed-point stage), so equal
//! inputs give equal bytes. `libm` supplies the correctly rounded fused multiply-add that `core` lacks.
//!
//! Scales may be any bits, since some of them lie in memory that a driver can write: NaN quantises to
//! the lowest code, infinities saturate, and `-0.0` is zero.

/// Rounds to nearest, ties to even, then saturates into `low..=high`; NaN gives `low`.
fn round_into(value: f32, low: i32, high: i32) -> i32 {
    if value.is_nan() {
        return low;
    }
    #[expect(clippy::cast_possible_truncation, reason = "float to int casts saturate, as wanted")]
    let rounded = libm::rintf(value) as i32;
    rounded.clamp(low, high)
}

fn byte(code: i32) -> u8 {
    u8::try_from(code).expect("a code was clamped to 0..=255 on the line before")
}

#[expect(clippy::cast_precision_loss, reason = "the rounding to 24 bits is part of the definition")]
fn to_f32(accumulator: i32) -> f32 {
    accumulator as f32
}

/// An accumulator to an unsigned 8-bit code: `clamp(rne(clamp(f32(acc) * multiplier)) + zero_point)`.
///
/// The product is clamped to `[-zero_point, 255 - zero_point]` before it is rounded, as the CPU
/// provider does, so no rounding step can leave the code range.
pub fn requantise(accumulator: i32, multiplier: f32, zero_point: u8) -> u8 {
    let zero_point = i32::from(zero_point);
    let product = to_f32(accumulator) * multiplier;
    let (low, high) = (to_f32(-zero_point), to_f32(255 - zero_point));
    // `max` first: a NaN becomes `low`, as in the vector instructions `max(v, low)` then `min(v, high)`.
    let clamped = if product > low { product } else { low };
    let clamped = if clamped < high { clamped } else { high };
    byte(round_into(clamped, -zero_point, 255 - zero_point) + zero_point)
}

/// The immediates of an element-wise addition of two 8-bit tensors.
///
/// For `y = a + b` with scales `sa, sb, sy` and zero points `za, zb, zy`:
/// `first = sa / sy`, `second = sb / sy`, `offset = zy - fma(first, za, second * zb)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AddTerms {
    /// Scale of the first operand over the scale of the result.
    pub first: f32,
    /// Scale of the second operand over the scale of the result.
    pub second: f32,
    /// What the zero points come to.
    pub offset: f32,
}

impl AddTerms {
    /// The immediates for `(scale, zero point)` of the first and second operand and the result.
    pub fn new(first: (f32, u8), second: (f32, u8), result: (f32, u8)) -> Self {
        let (ra, rb) = (first.0 / result.0, second.0 / result.0);
        let zero = libm::fmaf(ra, f32::from(first.1), rb * f32::from(second.1));
        Self { first: ra, second: rb, offset: f32::from(result.1) - zero }
    }
}

/// `rne(fma(a, first, fma(b, second, offset)))`, saturated to `0..=255`.
pub fn add(a: u8, b: u8, terms: AddTerms) -> u8 {
    let inner = libm::fmaf(f32::from(b), terms.second, terms.offset);
    byte(round_into(libm::fmaf(f32::from(a), terms.first, inner), 0, 255))
}

/// The immediates of an element-wise product of two 8-bit tensors.
///
/// For `y = a * b` with scales `sa, sb, sy`: `multiplier = (sa * sb) / sy`, and the zero points as they
/// are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MulTerms {
    /// What a product of codes is multiplied by.
    pub multiplier: f32,
    /// Zero point of the first operand.
    pub first_zero_point: u8,
    /// Zero point of the second operand.
    pub second_zero_point: u8,
    /// Zero point of the result.
    pub zero_point: u8,
}

impl MulTerms {
    /// The immediates for `(scale, zero point)` of the first and second operand and the result.
    pub fn new(first: (f32, u8), second: (f32, u8), result: (f32, u8)) -> Self {
        Self {
            multiplier: first.0 * second.0 / result.0,
            first_zero_point: first.1,
            second_zero_point: second.1,
            zero_point: result.1,
        }
    }
}

/// `rne(f32((a - za) * (b - zb)) * multiplier + f32(zy))`, saturated to `0..=255`.
///
/// Product and sum are rounded one after the other, and the zero point is added before the rounding to
/// a code, as in [`average_finish`].
pub fn multiply(a: u8, b: u8, terms: MulTerms) -> u8 {
    let less = |code: u8, zero_point: u8| i32::from(code) - i32::from(zero_point);
    let product = less(a, terms.first_zero_point) * less(b, terms.second_zero_point);
    let scaled = to_f32(product) * terms.multiplier;
    byte(round_into(scaled + f32::from(terms.zero_point), 0, 255))
}

/// The immediates of a softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShareTerms {
    /// Codes that a whole sum stands for: the scale of the result, inverted and rounded down.
    pub scale: f32,
    /// Zero point of the result.
    pub zero_point: u8,
}

/// The code of the share that `part` has of `sum`: `rne(part * scale / sum) + zero_point`, saturated;
/// nothing, as NaN, is the lowest code.
pub fn share(part: f32, sum: f32, terms: ShareTerms) -> u8 {
    let zero_point = i32::from(terms.zero_point);
    let code = part * terms.scale / sum;
    byte(round_into(code, 0, 255 - zero_point) + zero_point)
}

/// A float to a code: `rne(clamp(value / scale)) + zero_point`, by a true division; NaN gives 0.
pub fn quantise(value: f32, scale: f32, zero_point: u8) -> u8 {
    let zero_point = i32::from(zero_point);
    byte(round_into(value / scale, -zero_point, 255 - zero_point) + zero_point)
}

/// A code to a float: `f32(code - zero_point) * scale`.
pub fn dequantise(code: u8, scale: f32, zero_point: u8) -> f32 {
    to_f32(i32::from(code) - i32::from(zero_point)) * scale
}

/// Four floats by the weights of their rows and columns:
/// `((x1*y1 * a + x2*y1 * b) + x1*y2 * c) + x2*y2 * d`, each step rounded; `weights` has those of the two
/// rows, `y1` and `y2`, then those of the columns.
pub fn blend(weights: [[f32; 2]; 2], [a, b, c, d]: [f32; 4]) -> f32 {
    let [[y1, y2], [x1, x2]] = weights;
    ((x1 * y1 * a + x2 * y1 * b) + x1 * y2 * c) + x2 * y2 * d
}

/// The multiplier of a global average over `count` elements: `sx / (sy * f32(count))`.
pub fn global_average_multiplier(input_scale: f32, output_scale: f32, count: u32) -> f32 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "the rounding to 24 bits is part of the definition"
    )]
    let count = count as f32;
    input_scale / (output_scale * count)
}

/// One step of a windowed average: `sum + f32(code - zero_point) * scale`, in row-major window order.
pub fn average_step(sum: f32, code: u8, scale: f32, zero_point: u8) -> f32 {
    sum + dequantise(code, scale, zero_point)
}

/// The end of a windowed average: `rne(sum / f32(count) / scale + f32(zero_point))`, saturated.
///
/// The zero point is added before the rounding: the CPU provider's pooling does so, its convolution
/// does not, and ties differ.
pub fn average_finish(sum: f32, count: u32, scale: f32, zero_point: u8) -> u8 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "the rounding to 24 bits is part of the definition"
    )]
    let mean = sum / count as f32;
    byte(round_into(mean / scale + f32::from(zero_point), 0, 255))
}

/// The mean of `values` in f32: four interleaved sums of every fourth value, joined as `(0 + 2) + (1 + 3)`,
/// then up to three values that are left, and a division. No values give NaN.
///
/// It is the order of the CPU provider's global average in float.
pub fn global_mean(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len();
    let interleaved = count / 4 * 4;
    let (mut parts, mut left) = ([0.0_f32; 4], [0.0_f32; 3]);
    for (index, value) in values.enumerate() {
        match index.checked_sub(interleaved) {
            None => parts[index % 4] += value,
            Some(index) => left[index] = value,
        }
    }
    let mut sum = (parts[0] + parts[2]) + (parts[1] + parts[3]);
    for value in &left[..count - interleaved] {
        sum += value;
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "the rounding to 24 bits is part of the definition"
    )]
    let count = count as f32;
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_even() {
        assert_eq!(requantise(5, 0.5, 0), 2);
        assert_eq!(requantise(7, 0.5, 0), 4);
        assert_eq!(quantise(2.5, 1.0, 10), 12);
    }

    #[test]
    fn any_bits_of_a_scale_give_a_code() {
        for bits in [0x7fc0_0000, 0xff80_0000, 0x7f80_0000, 0x8000_0000, 1] {
            let scale = f32::from_bits(bits);
            let _ = requantise(i32::MIN, scale, 128);
            let _ = add(255, 255, AddTerms { first: scale, second: scale, offset: scale });
            let _ = quantise(scale, scale, 255);
        }
        assert_eq!(requantise(1, f32::NAN, 7), 0);
        assert_eq!(quantise(f32::NAN, 1.0, 7), 0);
        assert_eq!(quantise(f32::INFINITY, 1.0, 7), 255);
    }

    #[test]
    fn a_global_mean_takes_every_fourth_value_and_then_what_is_left() {
        let large = 16_777_216.0;
        // One is lost beside 2^24, unless it meets its like first.
        assert_eq!(global_mean([large, 1.0, -large, 1.0].into_iter()), 0.5);
        assert_eq!(global_mean([large, 1.0, 1.0, -large, 4.0].into_iter()), 1.0);
        assert_eq!(global_mean([1.0, 2.0, 6.0].into_iter()), 3.0);
    }

    proptest! {
        /// Against f64: the result is the nearest code, or one of the two when rounding in f32 moved a tie.
        #[test]
        fn requantise_is_within_half_a_code(acc in -2_000_000i32..2_000_000, m in 1e-7f32..1e-2, z: u8) {
            let exact = f64::from(acc) * f64::from(m) + f64::from(z);
            let code = f64::from(requantise(acc, m, z));
            prop_assert!((code - exact.clamp(0.0, 255.0)).abs() <= 0.5001);
        }
    }
}
