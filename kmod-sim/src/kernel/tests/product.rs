//! PRODUCT and SOFTMAX, element by element.

use super::machine::{Machine, Random, style};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Dims, Flags, Header, Product, Softmax, opcode};
use npu_uapi::requantise::{ShareTerms, requantise, share};
use proptest::prelude::*;

/// Loops from the outermost, each with its stride; the place of the first element, and bytes in all.
struct Lay {
    strides: [i64; 4],
    first: u64,
    len: usize,
}

/// Lays `counts` out so that `order` names dimensions from the innermost, with gaps.
fn lay(counts: [u32; 4], order: [usize; 4], gap: u32, backwards: usize, repeat: bool) -> Lay {
    let (mut strides, mut span, mut below) = ([0_i64; 4], 1_i64, 0_i64);
    for (place, axis) in order.into_iter().enumerate() {
        if repeat && axis < 2 {
            continue;
        }
        let stride = span + i64::from(if place > 0 { gap } else { 0 });
        let reach = i64::from(counts[axis] - 1) * stride;
        let back = place > 0 && axis == backwards;
        strides[axis] = if back { -stride } else { stride };
        below += if back { reach } else { 0 };
        span += reach + (stride - span) * i64::from(counts[axis] > 1);
    }
    let last: i64 = (0..4).map(|axis| i64::from(counts[axis] - 1) * strides[axis].abs()).sum();
    Lay { strides, first: u64::try_from(below).unwrap(), len: usize::try_from(last + 1).unwrap() }
}

fn at(lay: &Lay, index: [u32; 4]) -> usize {
    let sum: i64 = index.iter().zip(lay.strides).map(|(&i, s)| i64::from(i) * s).sum();
    usize::try_from(i64::try_from(lay.first).unwrap() + sum).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn products_equal_the_definition(
        turns in (1u32..3, 1u32..4), m in 1u32..40, n in prop_oneof![1u32..20, 1u32..150],
        k in prop_oneof![1u32..20, 1u32..200], gap in prop_oneof![2 => Just(0u32), 1 => 1u32..9],
        b_order in 0usize..3, heads_inside in any::<bool>(), backwards in 0usize..12,
        repeat in prop_oneof![4 => Just(false), 1 => Just(true)], table in any::<bool>(),
        middle in any::<bool>(), seed: u64,
    ) {
        let r = &mut Random::new(seed);
        let (outer, batch) = turns;
        // Innermost first; 0 and 1 are the loops around, 2 rows, 3 columns.
        let rows = if heads_inside { [3, 1, 2, 0] } else { [3, 2, 1, 0] };
        let b_rows = [rows, [2, 3, 1, 0], [1, 2, 3, 0]][b_order];
        let a = lay([outer, batch, m, k], rows, gap, backwards, repeat);
        let b = lay([outer, batch, k, n], b_rows, gap, backwards, false);
        let out = lay([outer, batch, m, n], rows, gap, backwards, false);
        let machine = Machine::new(&[a.len, b.len, out.len, 256], seed);
        let zero = |r: &mut Random| if middle { 128 } else { r.byte() };
        let (low, high) = if r.below(2) == 0 { (0, 255) } else { (r.byte() / 2, 255 - r.byte() / 2) };
        let spread = f32::from(u16::try_from(k).unwrap()).sqrt();
        let narrow = |stride: i64| i32::try_from(stride).unwrap();
        let product = Product {
            header: Header::new(opcode::PRODUCT, 3, if table { Flags::TABLE_0 } else { Flags::empty() }, 0),
            a: Operand::new(SlotId(0), a.first),
            b: Operand::new(SlotId(1), b.first),
            out: Operand::new(SlotId(2), out.first),
            tables: if table { Operand::new(SlotId(3), 0) } else { Operand::default() },
            outer, batch, m, n, k,
            multiplier: r.scale() / (64.0 * spread),
            a_zero_point: zero(r),
            b_zero_point: zero(r),
            zero_point: r.byte(),
            clamp_low: low,
            clamp_high: high,
            a_outer: a.strides[0], a_batch: a.strides[1], a_row: narrow(a.strides[2]),
            b_outer: b.strides[0], b_batch: b.strides[1],
            b_row: narrow(b.strides[2]), b_column: narrow(b.strides[3]),
            out_outer: out.strides[0], out_batch: out.strides[1], out_row: narrow(out.strides[2]),
            ..Product::default()
        };
        let (left, right, tables) = (machine.read(0), machine.read(1), machine.read(3));
        let mut expected = machine.read(2);
        for p in 0..outer { for q in 0..batch { for i in 0..m { for j in 0..n {
            let term = |l| {
                let x = i64::from(left[at(&a, [p, q, i, l])]) - i64::from(product.a_zero_point);
                x * (i64::from(right[at(&b, [p, q, l, j])]) - i64::from(product.b_zero_point))
            };
            let sum = i32::try_from((0..k).map(term).sum::<i64>()).unwrap();
            let code = requantise(sum, product.multiplier, product.zero_point).max(low).min(high);
            expected[at(&out, [p, q, i, j])] = if table { tables[usize::from(code)] } else { code };
        } } } }
        for (isa, after) in machine.run_each(&Command::Product(product), 2) {
            let wrong = after.iter().zip(&expected).position(|(found, want)| found != want);
            prop_assert_eq!(wrong, None, "{:?}", isa);
        }
    }

    #[test]
    fn shares_equal_the_definition(
        n in 1u32..3, h in 1u32..4, w in 1u32..25, c in prop_oneof![1u32..40, 1u32..400, 500u32..700],
        styles in [style(), style()], in_place in any::<bool>(), any_bits in any::<bool>(), seed: u64,
    ) {
        let r = &mut Random::new(seed);
        let dims = Dims { n, h, w, c };
        let [src, dst] = if in_place { [styles[0]; 2] } else { styles }.map(|style| style.shape(dims, 1));
        let result = if in_place { 0 } else { 1 };
        let machine = Machine::new(&[src.len, dst.len, 1024], seed);
        if !any_bits {
            let scale = 0.3 * r.scale().abs().clamp(0.01, 2.0);
            let part = |i: u8| (80.0 + (f32::from(i) - 255.0) * scale).exp();
            machine.write(2, &(0..=255).flat_map(|i| part(i).to_le_bytes()).collect::<Vec<_>>());
        }
        let softmax = Softmax {
            header: Header::new(opcode::SOFTMAX, 2, Flags::empty(), 0),
            src: src.operand(0),
            dst: dst.operand(result),
            table: Operand::new(SlotId(2), 0),
            dims,
            src_strides: src.strides,
            dst_strides: dst.strides,
            scale: if any_bits { r.scale() } else { 255.0 },
            zero_point: if r.below(2) == 0 { 0 } else { r.byte() },
            ..Softmax::default()
        };
        let terms = ShareTerms { scale: softmax.scale, zero_point: softmax.zero_point };
        let codes = machine.read(0);
        let table = machine.read(2);
        let part = |index: usize| f32::from_le_bytes(table[index * 4..][..4].try_into().unwrap());
        let pixel = |[n, y, x]: [u32; 3]| &codes[src.at(n, y, x)..][..usize::try_from(c).unwrap()];
        let before = machine.read(usize::from(result));
        for (isa, after) in machine.run_each(&Command::Softmax(softmax), result.into()) {
            let _ = isa;
            dst.check(&before, &after, &|at, ch| {
                let codes = pixel(at);
                let most = usize::from(*codes.iter().max().unwrap());
                let part = |code: u8| part(255 - most + usize::from(code));
                let sum = codes.iter().fold(0.0, |sum, &code| sum + part(code));
                share(part(codes[usize::try_from(ch).unwrap()]), sum, terms)
            })?;
        }
    }
}
