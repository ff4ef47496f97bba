//! REDUCE and NORM against loops that index one element at a time.

use super::machine::{Machine, Random, style};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Dims, Flags, Header, Norm, Reduce, norm_kind, opcode};
use npu_uapi::requantise::{dequantise, quantise};
use npu_uapi::rows::sum_order;
use proptest::prelude::*;

/// The sum of `v`, the first of which is element `first` of its array.
fn sum(order: u8, first: usize, v: &[f32]) -> f32 {
    let n = v.len();
    match order {
        sum_order::IN_TURN => (0..n).fold(0.0, |sum, i| sum + v[i]),
        sum_order::IN_FOURS => {
            let (mut sum, mut i) = (0.0, 0);
            while i + 4 <= n {
                sum += ((v[i] + v[i + 1]) + v[i + 2]) + v[i + 3];
                i += 4;
            }
            if i + 2 <= n {
                sum += v[i] + v[i + 1];
                i += 2;
            }
            if i < n { sum + v[i] } else { sum }
        }
        _ => {
            let start = (0..n).find(|i| (first + i).is_multiple_of(4)).unwrap_or(n);
            let fours = (n - start) / 4;
            if fours == 0 {
                return (0..n).fold(0.0, |sum, i| sum + v[i]);
            }
            let lane = |lane: usize| {
                let at = |four: usize| v[start + 4 * four + lane];
                let pairs = fours / 2;
                if pairs == 0 {
                    return at(0);
                }
                let one = (1..pairs).fold(at(0), |sum, pair| sum + at(2 * pair));
                let other = (1..pairs).fold(at(1), |sum, pair| sum + at(2 * pair + 1));
                if fours % 2 == 1 { (one + other) + at(fours - 1) } else { one + other }
            };
            let lanes = (lane(0) + lane(2)) + (lane(1) + lane(3));
            (0..start).chain(start + 4 * fours..n).fold(lanes, |sum, i| sum + v[i])
        }
    }
}

/// Mean and one over the deviation of a layer.
fn layer(v: &[f32], epsilon: f32) -> (f32, f32) {
    let n = v.len();
    let mut wide = [0.0_f64; 4];
    (0..n / 4 * 4).for_each(|i| wide[i % 4] += f64::from(v[i]));
    let mut total = (wide[0] + wide[2]) + (wide[1] + wide[3]);
    (n / 4 * 4..n).for_each(|i| total += f64::from(v[i]));
    #[expect(clippy::cast_possible_truncation, reason = "the definition rounds here")]
    let mean = (total / n as f64) as f32;
    let mut lanes = [0.0_f32; 8];
    for i in 0..n / 8 * 8 {
        lanes[i % 8] = (v[i] - mean).mul_add(v[i] - mean, lanes[i % 8]);
    }
    let four = |i: usize| lanes[i] + lanes[i + 4];
    let mut squares = (four(0) + four(2)) + (four(1) + four(3));
    for (i, v) in v.iter().enumerate().skip(n / 8 * 8) {
        let d = v - mean;
        squares = if i < n / 4 * 4 { squares + d * d } else { d.mul_add(d, squares) };
    }
    (mean, 1.0 / (squares / n as f32 + epsilon).sqrt())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn sums_of_rows_equal_the_definition(
        n in 1u32..3, h in 1u32..4, w in 1u32..9, c in prop_oneof![1u32..40, 1u32..400],
        styles in [style(), style()], order in 1u8..4, mean in 0u8..2, seed: u64,
    ) {
        let r = &mut Random::new(seed);
        let dims = Dims { n, h, w, c };
        let src = styles[0].shape(dims, 1);
        let dst = styles[1].shape(Dims { c: 1, ..dims }, 1);
        let machine = Machine::new(&[src.len, dst.len], seed);
        let count = c as f32;
        let reduce = Reduce {
            header: Header::new(opcode::REDUCE, 2, Flags::empty(), 0),
            src: src.operand(0),
            dst: dst.operand(1),
            dims,
            src_strides: src.strides,
            dst_strides: dst.strides,
            input_scale: r.scale(),
            output_scale: r.scale() * if mean == 1 { 0.1 } else { count.sqrt() },
            input_zero_point: r.byte(),
            zero_point: r.byte(),
            order,
            mean,
            ..Reduce::default()
        };
        let codes = machine.read(0);
        let before = machine.read(1);
        for (isa, after) in machine.run_each(&Command::Reduce(reduce), 1) {
            let _ = isa;
            dst.check(&before, &after, &|[n, y, x], _| {
                let codes = &codes[src.at(n, y, x)..][..c as usize];
                let value = |&code: &u8| dequantise(code, reduce.input_scale, reduce.input_zero_point);
                let values: Vec<f32> = codes.iter().map(value).collect();
                let row = ((n * h + y) * w + x) as usize;
                let total = sum(order, row * c as usize, &values);
                let total = if mean == 1 { total / count } else { total };
                quantise(total, reduce.output_scale, reduce.zero_point)
            })?;
        }
    }

    #[test]
    fn normalised_rows_equal_the_definition(
        n in 1u32..3, h in 1u32..4, w in 1u32..9, c in prop_oneof![8u32..40, 8u32..400],
        styles in [style(), style()], in_place in any::<bool>(), kind in 1u8..4,
        orders in [1u8..4, 1u8..4], period in 1u32..9, seed: u64,
    ) {
        let r = &mut Random::new(seed);
        let dims = Dims { n, h, w, c };
        let [src, dst] = if in_place { [styles[0]; 2] } else { styles }.map(|style| style.shape(dims, 1));
        let result = if in_place { 0 } else { 1 };
        let is_staged = kind == norm_kind::STAGED;
        let mut norm = Norm {
            header: Header::new(opcode::NORM, 3, Flags::empty(), 0),
            src: src.operand(0),
            dst: dst.operand(result),
            terms: Operand::new(SlotId(2), 0),
            dims,
            src_strides: src.strides,
            dst_strides: dst.strides,
            input_scale: r.scale(),
            output_scale: r.scale() / 32.0,
            epsilon: if is_staged { 0.0 } else { r.scale() / 1000.0 },
            variance_scale: if is_staged { r.scale() * 40.0 } else { 0.0 },
            period: if kind == norm_kind::INSTANCE { period } else { 0 },
            input_zero_point: r.byte(),
            zero_point: r.byte(),
            variance_zero_point: if is_staged { r.byte() } else { 0 },
            kind,
            ..Norm::default()
        };
        if is_staged {
            [norm.order, norm.square_order] = orders;
        }
        let terms = usize::try_from(norm.terms_bytes()).unwrap();
        let machine = Machine::new(&[src.len, dst.len, terms], seed);
        let numbers = (0..terms / 4).flat_map(|_| (r.scale() - 0.7).to_le_bytes());
        machine.write(2, &numbers.collect::<Vec<_>>());
        let terms = floats(&machine.read(2));
        let codes = machine.read(0);
        let before = machine.read(usize::from(result));
        for (isa, after) in machine.run_each(&Command::Norm(norm), result.into()) {
            let _ = isa;
            dst.check(&before, &after, &|[n, y, x], ch| {
                let codes = &codes[src.at(n, y, x)..][..c as usize];
                let value = |&code: &u8| dequantise(code, norm.input_scale, norm.input_zero_point);
                let v: Vec<f32> = codes.iter().map(value).collect();
                let row = ((n * h + y) * w + x) as usize;
                let (first, count, ch) = (row * c as usize, c as f32, ch as usize);
                let squares =
                    |mean: f32| v.iter().map(|v| (v - mean) * (v - mean)).collect::<Vec<_>>();
                let out = match kind {
                    norm_kind::LAYER => {
                        let (mean, inverse) = layer(&v, norm.epsilon);
                        ((v[ch] - mean) * inverse).mul_add(terms[2 * ch], terms[2 * ch + 1])
                    }
                    norm_kind::INSTANCE => {
                        let mean = sum(sum_order::PEELED, first, &v) / count;
                        let square = sum(sum_order::PEELED, 0, &squares(mean));
                        let at = 2 * (row % period as usize);
                        let gain = 1.0 / (square / count + norm.epsilon).sqrt() * terms[at];
                        v[ch] * gain + (terms[at + 1] - mean * gain)
                    }
                    _ => {
                        let mean = sum(orders[0], first, &v) / count;
                        let variance = sum(orders[1], first, &squares(mean)) / count;
                        let code = quantise(variance, norm.variance_scale, norm.variance_zero_point);
                        (v[ch] - mean) / terms[usize::from(code)]
                    }
                };
                quantise(out, norm.output_scale, norm.zero_point)
            })?;
        }
    }
}
