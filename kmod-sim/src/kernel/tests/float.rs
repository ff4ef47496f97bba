//! Sums in floats: every kernel equals the scalar one, which is the definition written out.

use super::conv::{Case, Parameters, case, outputs_of};
use super::machine::{Machine, Random};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Conv, Dims, Flags, Header, Stage, Window, opcode, record_bytes};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// The kind of cases that show the order of sums: all inputs alike and weights that cancel, so that what is
/// left is the roundings, and an output scale of about one of them a code.
const RESIDUES: u8 = 4;

/// The same on output scales of up to 2^14 such roundings, from where every code is open to where none is, and
/// half of the time with weights all of one sign first: long ways with a bias in their roundings.
const GRADED: u8 = 5;

/// Scales of a case: with powers of two, many sums lie on rounding ties; others are no numbers to speak of.
fn scale(about: f32, kind: u8, r: &mut Random) -> f32 {
    match kind {
        0 | 1 => about.log2().round().exp2(),
        2 if r.below(8) == 0 => f32::from_bits(u32::from_le_bytes(r.bytes(4).try_into().unwrap())),
        _ => about * (0.5 + r.scale()),
    }
}

/// Weights of one size first, then of another size and sign.
fn ramp(weights: &mut [Vec<i8>], r: &mut Random) {
    let count = weights.iter().map(Vec::len).sum::<usize>();
    let [up, down] = [0, 0].map(|_| i8::try_from(1 + r.below(127)).unwrap());
    let sizes = usize::from(up.unsigned_abs()) + usize::from(down.unsigned_abs());
    let turn = count * usize::from(down.unsigned_abs()) / sizes;
    for (index, weight) in weights.iter_mut().flatten().enumerate() {
        *weight = if index < turn { up } else { -down };
    }
}

/// Changes `weights` by as little as lets them cancel.
fn cancel(weights: &mut [Vec<i8>]) {
    let mut left: i64 = weights.iter().flatten().map(|&w| i64::from(w)).sum();
    for weight in weights.iter_mut().flatten() {
        let old = i64::from(*weight);
        let new = (old - left).clamp(-128, 127);
        (*weight, left) = (i8::try_from(new).unwrap(), left - (old - new));
    }
}

fn check(case: &Case, order: (u8, u8), kind: u8) -> Result<(), TestCaseError> {
    let Case { dims, groups, outputs, window: w, flags, styles, .. } = case.clone();
    let flags = flags | Flags::FLOAT;
    let r = &mut Random::new(case.seed);
    let taps = u32::from(w.kernel_h) * u32::from(w.kernel_w);
    let inputs = dims.c / groups;
    let ofm_h =
        outputs_of(dims.h, w.pad_top, case.pad_bottom, w.kernel_h, w.stride_h, w.dilation_h);
    let ofm_w =
        outputs_of(dims.w, w.pad_left, case.pad_right, w.kernel_w, w.stride_w, w.dilation_w);
    let ofm_dims = Dims { n: dims.n, h: ofm_h, w: ofm_w, c: outputs };
    let ifm = styles[0].shape(dims, 4);
    let ofm = styles[1].shape(ofm_dims, 1);
    let aux = styles[2].shape(ofm_dims, 1);
    let mut p = Parameters::random(outputs, taps, inputs, false, r);
    if kind >= RESIDUES {
        let is_ramp = kind == GRADED && r.below(2) == 0;
        for weights in &mut p.weights {
            if is_ramp {
                ramp(weights, r);
            }
            cancel(weights);
        }
    }
    let input_scale = scale(0.02, kind, r);
    let spread = f32::from(u16::try_from(taps * inputs).unwrap()).sqrt();
    let mut conv = Conv {
        header: Header::new(opcode::CONV, 4, flags, 0),
        ifm: ifm.operand(0),
        weights: Operand::new(SlotId(1), 0),
        channels: Operand::new(SlotId(2), 0),
        ofm: ofm.operand(3),
        ifm_dims: dims,
        ofm_h,
        ofm_w,
        ofm_c: outputs,
        groups,
        ifm_strides: ifm.strides,
        ofm_strides: ofm.strides,
        window: w,
        stage: Stage {
            float_order: order.0,
            float_block_log2: order.1,
            input_scale,
            output_scale: scale(2.0 * spread, kind, r) * 0.02,
            ..super::conv::stage(r, flags)
        },
        ..Conv::default()
    };
    if flags.contains(Flags::ADD_AUX) {
        // What is added may lie exactly where the codes go: each is read before it is overwritten.
        let in_place = r.below(3) == 0;
        let (slot, shape) = if in_place { (3, &ofm) } else { (4, &aux) };
        (conv.aux, conv.aux_strides) = (shape.operand(slot), shape.strides);
    }
    if flags.intersects(Flags::TABLE_0 | Flags::TABLE_1) {
        conv.tables = Operand::new(SlotId(5), 0);
    }
    if kind >= RESIDUES {
        let grade = if kind == GRADED { f32::from(r.byte() % 15).exp2() } else { 1.0 };
        let one = input_scale * 0.01 * spread * 8192.0 * f32::EPSILON * grade;
        conv.stage = Stage {
            output_scale: one,
            zero_point: 128,
            clamp_low: 0,
            clamp_high: 255,
            ..conv.stage
        };
    }
    let weights = match conv.is_depthwise() {
        true => p.packed_depthwise(),
        false => p.packed(usize::try_from(groups).unwrap()),
    };
    let mut records = Vec::new();
    for _ in 0..outputs {
        records.extend(scale(0.01, kind, r).to_le_bytes());
        let bias = match kind {
            1 => 0.0,
            RESIDUES.. => (r.scale() - 0.5) * 50.0 * conv.stage.output_scale,
            _ => scale(spread, kind, r) - 0.7 * spread,
        };
        records.extend(bias.to_le_bytes());
        records.extend(r.bytes(8));
    }
    records.resize(usize::try_from(record_bytes(outputs)).unwrap(), 0xa5);
    let sizes = [ifm.len, weights.len(), records.len(), ofm.len, aux.len, 512];
    let machine = Machine::new(&sizes, case.seed);
    if kind >= RESIDUES {
        machine.write(0, &vec![r.byte(); ifm.len]);
    }
    machine.write(1, &weights);
    machine.write(2, &records);
    machine.write(5, &p.tables);
    let runs = machine.run_each(&Command::Conv(conv), 3);
    let (_, defined) = &runs[0];
    for (isa, found) in &runs[1..] {
        for at in ofm.pixels() {
            let first = ofm.at(at[0], at[1], at[2]);
            for channel in 0..usize::try_from(outputs).unwrap() {
                let (found, defined) = (found[first + channel], defined[first + channel]);
                prop_assert_eq!(found, defined, "{:?} at {:?}, channel {}", isa, at, channel);
            }
        }
    }
    Ok(())
}

fn order() -> impl Strategy<Value = (u8, u8)> {
    prop_oneof![2 => (1u8..3, 0u8..11), 1 => (3u8..6).prop_map(|code| (code, 0))]
}

/// Depthwise, with larger kernels as well.
fn depthwise() -> impl Strategy<Value = Case> {
    let kernel = prop::option::weighted(0.3, (1u16..10, 1u16..10));
    (case(), 2u32..100, kernel).prop_map(|(mut case, channels, kernel)| {
        (case.dims.c, case.groups, case.outputs) = (channels, channels, channels);
        if let Some((kernel_h, kernel_w)) = kernel {
            case.window = Window { kernel_h, kernel_w, ..case.window };
        }
        case
    })
}

/// Sums of several blocks, most of them of one tap, on few pixels.
fn deep() -> impl Strategy<Value = Case> {
    let window = prop_oneof![3 => Just([1, 1]), 1 => Just([3, 3]), 1 => Just([1, 5])];
    (case(), 1u32..5, 1u32..700, 1u32..40, window).prop_map(
        |(mut case, h, inputs, outputs, [kernel_h, kernel_w])| {
            let inputs = inputs.div_ceil(u32::from(kernel_h * kernel_w));
            (case.groups, case.dims) = (1, Dims { n: 1, h, w: 5, c: inputs });
            case.outputs = outputs;
            case.window = Window { kernel_h, kernel_w, ..case.window };
            (case.window.dilation_h, case.window.dilation_w) = (1, 1);
            case
        },
    )
}

/// Of one tap, and few outputs, whose sums are made with pixels side by side, or few inputs.
fn narrow() -> impl Strategy<Value = Case> {
    let channels = prop_oneof![(1u32..60, 1u32..6), (1u32..34, 6u32..70)];
    (case(), channels).prop_map(|(mut case, (channels, outputs))| {
        (case.dims.c, case.groups, case.outputs) = (channels, 1, outputs);
        (case.pad_bottom, case.pad_right) = (0, 0);
        let [kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w] = [1; 6];
        case.window = Window {
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            dilation_h,
            dilation_w,
            pad_top: 0,
            pad_left: 0,
        };
        case
    })
}

proptest! {
    #[test]
    fn narrow_convolutions_in_floats_equal_the_definition(
        case in narrow(), order in (1u8..3, 2u8..8), kind in 0..=GRADED,
    ) {
        check(&case, order, kind)?;
    }

    #[test]
    fn deep_sums_in_floats_equal_the_definition(
        case in deep(), first in 1u8..3, log2 in 4u8..11, kind in 0..=GRADED,
    ) {
        check(&case, (first, log2), kind)?;
    }

    #[test]
    fn convolutions_in_floats_equal_the_definition(case in case(), order in order(), kind in 0..=GRADED) {
        check(&case, order, kind)?;
    }

    #[test]
    fn depthwise_convolutions_in_floats_equal_the_definition(
        case in depthwise(), order in 3u8..5, kind in 0..=GRADED,
    ) {
        check(&case, (order, 0), kind)?;
    }
}
