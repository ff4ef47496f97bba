//! RESIZE, element by element.

use super::machine::{Machine, Random, style};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Dims, Flags, Header, Resize, Tap, opcode};
use npu_uapi::requantise::{dequantise, quantise};
use proptest::prelude::*;
use zerocopy::IntoBytes;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pixels_are_blended_as_defined(
        n in 1u32..3, from in (1u32..6, 1u32..9), to in (1u32..9, 1u32..12),
        c in prop_oneof![1u32..40, 1u32..300], styles in [style(), style()],
        any_bits in prop_oneof![4 => Just(false), 1 => Just(true)], seed: u64,
    ) {
        let r = &mut Random::new(seed);
        let ifm_dims = Dims { n, h: from.0, w: from.1, c };
        let ofm_dims = Dims { n, h: to.0, w: to.1, c };
        let [ifm, ofm] = [(styles[0], ifm_dims), (styles[1], ofm_dims)].map(|(s, d)| s.shape(d, 1));
        let len = usize::try_from(16 * (to.0 + to.1)).unwrap();
        let machine = Machine::new(&[ifm.len, ofm.len, len], seed);
        let mut tap = |len: u32| {
            // Beyond the input now and then, and weights that have no end in binary.
            let first = u32::from(r.byte()) % (len + 1);
            let weight = f32::from(r.byte()) / 255.0;
            Tap { first, second: first + 1, first_weight: 1.0 - weight, second_weight: weight }
        };
        let rows = (0..to.0).map(|_| tap(from.0));
        let mut taps: Vec<Tap> = rows.collect();
        taps.extend((0..to.1).map(|_| tap(from.1)));
        if !any_bits {
            machine.write(2, taps.as_bytes());
        }
        let resize = Resize {
            header: Header::new(opcode::RESIZE, 3, Flags::empty(), 0),
            ifm: ifm.operand(0),
            ofm: ofm.operand(1),
            taps: Operand::new(SlotId(2), 0),
            ifm_dims,
            ofm_h: to.0,
            ofm_w: to.1,
            ifm_strides: ifm.strides,
            ofm_strides: ofm.strides,
            input_scale: r.scale(),
            output_scale: r.scale(),
            input_zero_point: r.byte(),
            zero_point: r.byte(),
            ..Resize::default()
        };
        let (codes, before, taps) = (machine.read(0), machine.read(1), machine.read(2));
        let number = |at: usize| u32::from_le_bytes(taps[at..at + 4].try_into().unwrap());
        let tap = |index: u32, len: u32| {
            let at = usize::try_from(index).unwrap() * 16;
            let [first, second] = [at, at + 4].map(|at| number(at).min(len - 1));
            let weights = [at + 8, at + 12].map(|at| f32::from_bits(number(at)));
            (first, second, weights)
        };
        for (isa, after) in machine.run_each(&Command::Resize(resize), 1) {
            let _ = isa;
            ofm.check(&before, &after, &|[n, y, x], ch| {
                let (y1, y2, [v1, v2]) = tap(y, from.0);
                let (x1, x2, [h1, h2]) = tap(to.0 + x, from.1);
                let ch = usize::try_from(ch).unwrap();
                let real = |y, x| {
                    let code = codes[ifm.at(n, y, x) + ch];
                    dequantise(code, resize.input_scale, resize.input_zero_point)
                };
                let above = h1 * v1 * real(y1, x1) + h2 * v1 * real(y1, x2);
                let value = (above + h1 * v2 * real(y2, x1)) + h2 * v2 * real(y2, x2);
                quantise(value, resize.output_scale, resize.zero_point)
            })?;
        }
    }
}
