//! Functions of one float as ONNX Runtime's CPU provider computes them, rounding by rounding.
//!
//! Each is the polynomial of its vector kernels for machines with FMA, which are the reference. A
//! correct rounding of the true value would be nearer to it, and differ: bits are what is promised.
//! `tests/plugin/test_tables.py` compares all codes of many scales with the provider itself.

/// Sigmoid: a quotient of polynomials of degree 9 and 10, moved by a half.
pub(super) fn logistic(value: f32) -> f32 {
    let x = value.clamp(-18.0, 18.0);
    let square = x * x;
    let above = [4.370_31e-11, 1.156_273_2e-7, 6.085_749e-5, 8.513_771e-3, 0.248_287_95];
    let below =
        [6.102_473_7e-13, 5.761_021_4e-9, 6.291_068e-6, 1.701_988_2e-3, 0.116_817_65, 0.993_151_9];
    let quotient = polynomial(square, &above) * x / polynomial(square, &below);
    (quotient + 0.5).clamp(0.0, 1.0)
}

/// Tanh: a quotient of polynomials of degree 13 and 6.
pub(super) fn tanh(value: f32) -> f32 {
    let x = value.clamp(-9.0, 9.0);
    let square = x * x;
    let above = [
        -2.760_768_4e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297_3e-8,
        1.485_722_35e-5,
        6.372_619_5e-4,
        4.893_524_6e-3,
    ];
    let below = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_7e-3, 4.893_525e-3];
    polynomial(square, &above) * x / polynomial(square, &below)
}

/// Erf: a polynomial near zero, else `1 - exp` of one.
pub(super) fn erf(value: f32) -> f32 {
    let x = value.abs();
    if x <= 0.921_875 {
        let near = [
            -5.991_049_7e-4,
            4.993_396e-3,
            -2.676_673_4e-2,
            0.112_818_025,
            -0.376_124_86,
            0.128_379_15,
        ];
        return polynomial(x * x, &near).mul_add(x, x).copysign(value);
    }
    let x = x.min(3.925);
    let far = [
        1.729_489_3e-5,
        -3.832_086_8e-4,
        3.883_934_3e-3,
        -2.425_456e-2,
        0.106_777_85,
        0.634_846_7,
        0.128_717_51,
    ];
    let terms = [1.383_198_1e-3, 8.375_5e-3, 4.166_895e-2, 0.166_664_47, 0.499_999_85, 1.0, 1.0];
    let exponent = -polynomial(x, &far).mul_add(x, x);
    (1.0 - exponential(exponent.max(-88.376_26), &terms)).copysign(value)
}

/// Exp.
pub(super) fn exp(value: f32) -> f32 {
    let x = value.clamp(-103.972_084, 88.776_26);
    let terms =
        [1.378_059_4e-3, 8.373_124_5e-3, 4.166_953_6e-2, 0.166_664_72, 0.499_999_85, 1.0, 1.0];
    exponential(x, &terms)
}

/// HardSigmoid.
pub(super) fn hard_sigmoid(value: f32, alpha: f32, beta: f32) -> f32 {
    (alpha * value + beta).clamp(0.0, 1.0)
}

/// Horner's rule, highest power first, each step fused.
fn polynomial(x: f32, coefficients: &[f32]) -> f32 {
    coefficients.iter().copied().reduce(|sum, term| sum.mul_add(x, term)).unwrap_or(0.0)
}

/// `2^m` times a polynomial of what `m ln 2` leaves of `x`; the logarithm is in two parts.
fn exponential(x: f32, terms: &[f32]) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let power = x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let rest = power.mul_add(-0.693_145_75, x);
    let rest = power.mul_add(-1.428_606_8e-6, rest);
    scale(polynomial(rest, terms), power)
}

/// `value * 2^power` for whole powers, rounded once: exact but where the result is subnormal.
fn scale(value: f32, power: f32) -> f32 {
    let double = f64::from(value) * f64::from(power).exp2();
    #[expect(clippy::cast_possible_truncation, reason = "the rounding is what is wanted")]
    let single = double as f32;
    single
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(ours: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let error = |step: i16| {
            let x = f32::from(step) / 64.0;
            (f64::from(ours(x)) - exact(f64::from(x))).abs() / exact(f64::from(x)).abs().max(1.0)
        };
        (-1280..1280).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn polynomials_are_near_what_they_stand_for() {
        assert!(worst(logistic, |x| 1.0 / (1.0 + (-x).exp())) < 4e-7);
        assert!(worst(tanh, f64::tanh) < 4e-7);
        assert!(worst(exp, f64::exp) < 4e-7);
        for (x, wanted) in
            [(0.5, 0.520_499_9), (1.0, 0.842_700_8), (-2.0, -0.995_322_3), (9.0, 1.0)]
        {
            assert!((erf(x) - wanted).abs() < 2e-7, "erf({x})");
        }
    }
}
