//! Means in float, in the CPU provider's order.

use crate::quantize::Codes;
use ndarray::Array4;

/// Over whole images: four lanes of a vector register walk the pixels together, the upper two are added to
/// the lower two, then these to each other; what does not fill a register comes last.
pub(super) fn global(from: Codes, to: Codes, input: &Array4<u8>) -> Array4<u8> {
    let (n, c, h, w) = input.dim();
    Array4::from_shape_fn((n, c, 1, 1), |(n, c, _, _)| {
        let image = input.slice(ndarray::s![n, c, .., ..]);
        let floats: Vec<f32> = image.iter().map(|&code| float(code, from)).collect();
        let registers = floats.chunks_exact(4);
        let rest = registers.remainder().to_vec();
        let add = |sum: [f32; 4], next: &[f32]| {
            [sum[0] + next[0], sum[1] + next[1], sum[2] + next[2], sum[3] + next[3]]
        };
        let [a, b, c, d] = registers.fold([0.0; 4], add);
        let sum = rest.into_iter().fold((a + c) + (b + d), |sum, next| sum + next);
        #[expect(clippy::cast_precision_loss, reason = "images have fewer than 2^24 pixels")]
        let count = (h * w) as f32;
        code(sum / count, to)
    })
}

fn float(code: u8, codes: Codes) -> f32 {
    (f32::from(code) - f32::from(codes.zero_point)) * codes.scale
}

fn code(value: f32, codes: Codes) -> u8 {
    let zero_point = f32::from(codes.zero_point);
    let rounded = (value / codes.scale).round_ties_even() + zero_point;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
    let code = rounded as u8;
    code
}
