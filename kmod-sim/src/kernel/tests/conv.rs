//! CONV and MATMUL against a convolution over unpacked weights in 64-bit integers.

use super::machine::{Machine, Random, Shape, Style, dense_style, style};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    Command, Conv, Dims, Flags, Header, MatMul, Stage, Window, opcode, record_bytes,
};
use npu_uapi::requantise::{self, AddTerms};
use proptest::prelude::*;

/// Unpacked parameters of a convolution.
pub(super) struct Parameters {
    /// `[output][tap][input of its group]`.
    pub(super) weights: Vec<Vec<Vec<i8>>>,
    bias: Vec<i32>,
    multiplier: Vec<f32>,
    weight_zero_point: Vec<i32>,
    pub(super) tables: Vec<u8>,
}

impl Parameters {
    pub(super) fn random(
        outputs: u32,
        taps: u32,
        inputs: u32,
        asymmetric: bool,
        r: &mut Random,
    ) -> Self {
        let spread = 1.0 / f32::from(u16::try_from(taps * inputs).unwrap()).sqrt() / 80.0;
        let tap = |r: &mut Random| (0..inputs).map(|_| r.byte().cast_signed()).collect();
        // Seldom, one multiplier is above 1, and products leave the integers.
        let large = if r.below(6) == 0 { r.below(u64::from(outputs)) } else { u64::MAX };
        let factor = |output: u32| if u64::from(output) == large { 1e9 } else { 1.0 };
        Self {
            weights: (0..outputs).map(|_| (0..taps).map(|_| tap(r)).collect()).collect(),
            bias: (0..outputs).map(|_| i32::from(r.byte()) * 64 - 8000).collect(),
            multiplier: (0..outputs).map(|at| r.scale() * spread * factor(at)).collect(),
            weight_zero_point: (0..outputs)
                .map(|_| if asymmetric { i32::from(r.byte()) - 128 } else { 0 })
                .collect(),
            tables: r.bytes(512),
        }
    }

    fn records(&self, r: &mut Random) -> Vec<u8> {
        let size = usize::try_from(record_bytes(u32::try_from(self.bias.len()).unwrap())).unwrap();
        let mut out = Vec::new();
        for ((bias, multiplier), zero) in
            self.bias.iter().zip(&self.multiplier).zip(&self.weight_zero_point)
        {
            out.extend(bias.to_le_bytes());
            out.extend(multiplier.to_le_bytes());
            out.extend(zero.to_le_bytes());
            out.extend(r.bytes(4));
        }
        let padding = r.bytes(size - out.len());
        out.extend(padding);
        out
    }

    /// `[group][output block of 16][reduction / 4][16][4]`, straight from the description.
    pub(super) fn packed(&self, groups: usize) -> Vec<u8> {
        let outputs = self.weights.len() / groups;
        let mut out = Vec::new();
        for group in self.weights.chunks(outputs) {
            for block in group.chunks(16) {
                let reduction = |weights: &Vec<Vec<i8>>| {
                    let mut flat = Vec::new();
                    for tap in weights {
                        flat.extend(tap);
                        flat.resize(flat.len().next_multiple_of(4), 0);
                    }
                    flat
                };
                out.extend(interleaved(&block.iter().map(reduction).collect::<Vec<_>>()));
            }
        }
        out
    }

    /// `[channel block of 16][taps / 4][16][4]`.
    pub(super) fn packed_depthwise(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for block in self.weights.chunks(16) {
            let reduction = |weights: &Vec<Vec<i8>>| {
                let mut flat: Vec<i8> = weights.iter().map(|tap| tap[0]).collect();
                flat.resize(flat.len().next_multiple_of(4), 0);
                flat
            };
            out.extend(interleaved(&block.iter().map(reduction).collect::<Vec<_>>()));
        }
        out
    }
}

/// Rows of a reduction, up to 16, as `[reduction / 4][16][4]`.
fn interleaved(rows: &[Vec<i8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for four in 0..rows[0].len() / 4 {
        for lane in 0..16 {
            for k in 0..4 {
                out.push(rows.get(lane).map_or(0, |row| row[four * 4 + k].cast_unsigned()));
            }
        }
    }
    out
}

/// The stage's immediates and flags, random.
pub(super) fn stage(r: &mut Random, flags: Flags) -> Stage {
    let (one, other) = (r.byte(), r.byte());
    let full = r.below(2) == 0;
    let adds = flags.contains(Flags::ADD_AUX);
    let mut term = |span: f32| if adds { (r.scale() - 0.5) * span } else { 0.0 };
    let (add_first, add_second, add_offset) = (term(1.0), term(1.0), term(100.0));
    Stage {
        input_zero_point: r.byte().into(),
        zero_point: if r.below(2) == 0 { 0 } else { r.byte().into() },
        clamp_low: if full { 0 } else { one.min(other) },
        clamp_high: if full { 255 } else { one.max(other) },
        add_first,
        add_second,
        add_offset,
        ..Stage::default()
    }
}

fn staged(p: &Parameters, s: &Stage, flags: Flags, acc: i64, oc: usize, aux: u8) -> u8 {
    let wrapped = i32::from_le_bytes(acc.to_le_bytes()[..4].try_into().unwrap());
    let zero_point = u8::try_from(s.zero_point).unwrap();
    let code = requantise::requantise(wrapped, p.multiplier[oc], zero_point);
    let mut code = code.clamp(s.clamp_low, s.clamp_high);
    if flags.contains(Flags::TABLE_0) {
        code = p.tables[usize::from(code)];
    }
    if flags.contains(Flags::ADD_AUX) {
        let terms = AddTerms { first: s.add_first, second: s.add_second, offset: s.add_offset };
        let (first, second) =
            if flags.contains(Flags::AUX_FIRST) { (aux, code) } else { (code, aux) };
        code = requantise::add(first, second, terms);
    }
    if flags.contains(Flags::TABLE_1) {
        code = p.tables[256 + usize::from(code)];
    }
    code
}

pub(super) fn flags() -> impl Strategy<Value = Flags> {
    prop_oneof![
        2 => Just(Flags::empty()),
        1 => Just(Flags::ADD_AUX),
        1 => Just(Flags::TABLE_0),
        3 => (0u16..16).prop_map(|bits| {
            let flags = Flags::from_bits_truncate(bits);
            if flags.contains(Flags::ADD_AUX) { flags } else { flags - Flags::AUX_FIRST }
        }),
    ]
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) dims: Dims,
    pub(super) groups: u32,
    pub(super) outputs: u32,
    pub(super) window: Window,
    pub(super) pad_bottom: u16,
    pub(super) pad_right: u16,
    pub(super) flags: Flags,
    pub(super) asymmetric: bool,
    /// Weights and inputs are the largest and the smallest there are.
    pub(super) extreme: bool,
    pub(super) styles: [Style; 3],
    pub(super) seed: u64,
}

fn channels() -> impl Strategy<Value = (u32, u32, u32)> {
    prop_oneof![
        4 => (1u32..70, 1u32..70).prop_map(|(i, o)| (1, i, o)),
        1 => (1u32..5, 100u32..300).prop_map(|(i, o)| (1, i, o)),
        1 => (2u32..5, 1u32..12, 1u32..24).prop_map(|(g, i, o)| (g, g * i, g * o)),
        1 => (2u32..5, 1u32..5, 1u32..4).prop_map(|(g, i, o)| (g, g * i * 4, g * o * 16)),
        4 => (2u32..150).prop_map(|g| (g, g, g)),
    ]
}

fn window() -> impl Strategy<Value = (Window, u16, u16)> {
    let dilation = || prop_oneof![4 => Just(1u16), 1 => 2u16..4];
    let kernel = prop_oneof![1 => Just((1u16, 1u16)), 1 => Just((3, 3)), 2 => (1u16..6, 1u16..6)];
    let pads =
        prop_oneof![1 => Just([0u16; 4]), 1 => Just([1; 4]), 2 => prop::array::uniform4(0u16..4)];
    (kernel, (1u16..4, 1u16..4), (dilation(), dilation()), pads).prop_map(
        |((kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w), pads)| {
            let [pad_top, pad_left, pad_bottom, pad_right] = pads;
            let window = Window {
                kernel_h,
                kernel_w,
                stride_h,
                stride_w,
                dilation_h,
                dilation_w,
                pad_top,
                pad_left,
            };
            (window, pad_bottom, pad_right)
        },
    )
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let size = (1u32..3, 1u32..21, prop_oneof![4 => 1u32..21, 1 => 30u32..80]);
    let rare = prop_oneof![5 => Just(false), 1 => Just(true)];
    (size, channels(), window(), flags(), rare, [style(), style(), style()], any::<u64>()).prop_map(
        |(
            (n, h, w),
            (groups, c, outputs),
            (window, pad_bottom, pad_right),
            flags,
            asymmetric,
            styles,
            seed,
        )| {
            let mut dims = Dims { n, h, w, c };
            let taps = u32::from(window.kernel_h) * u32::from(window.kernel_w);
            let macs = |d: Dims| d.n * d.h * d.w * (d.c / groups) * outputs * taps;
            while macs(dims) > 1_500_000 && dims.h > 1 {
                dims.h = dims.h.div_ceil(2);
            }
            Case {
                dims,
                groups,
                outputs,
                window,
                pad_bottom,
                pad_right,
                flags,
                asymmetric,
                extreme: false,
                styles,
                seed,
            }
        },
    )
}

/// Maps of several strips or segments a row, of few channels: what thin layers have kernels for.
fn wide_case() -> impl Strategy<Value = Case> {
    let channels = prop_oneof![
        (1u32..20, 1u32..150).prop_map(|(inputs, outputs)| (1, inputs, outputs)),
        (2u32..150).prop_map(|channels| (channels, channels, channels)),
    ];
    let kernel = prop_oneof![2 => Just(3u16), 1 => Just(1), 1 => Just(5)];
    let window = (kernel, 1u16..3, 0u16..3, 0u16..3);
    (case(), 1u32..5, 60u32..260, channels, window).prop_map(
        |(case, h, w, (groups, c, outputs), (kernel, stride, before, after))| Case {
            dims: Dims { n: 1, h, w, c },
            groups,
            outputs,
            window: Window {
                kernel_h: kernel,
                kernel_w: kernel,
                stride_h: stride,
                stride_w: stride,
                dilation_h: 1,
                dilation_w: 1,
                pad_top: kernel / 2 + before,
                pad_left: before,
            },
            pad_bottom: kernel / 2,
            pad_right: kernel / 2 + after,
            ..case
        },
    )
}

pub(super) fn outputs_of(
    input: u32,
    before: u16,
    after: u16,
    kernel: u16,
    stride: u16,
    dilation: u16,
) -> u32 {
    let padded = input + u32::from(before) + u32::from(after);
    let reach = u32::from(kernel - 1) * u32::from(dilation) + 1;
    padded.saturating_sub(reach) / u32::from(stride) + 1
}

pub(super) fn check_conv(case: &Case) -> Result<(), TestCaseError> {
    let Case { dims, groups, outputs, window: w, flags, styles, .. } = case.clone();
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
    let mut p = Parameters::random(outputs, taps, inputs, case.asymmetric, r);
    if case.extreme {
        let sign = |weight: i8| if weight < 0 { i8::MIN } else { i8::MAX };
        let of_output = |output: &mut Vec<Vec<i8>>| {
            // All alike, or not.
            let first = output[0][0];
            let alike = first % 2 == 0;
            let of = |weight: i8| sign(if alike { first } else { weight });
            output.iter_mut().flatten().for_each(|weight| *weight = of(*weight));
        };
        p.weights.iter_mut().for_each(of_output);
    }
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
        stage: stage(r, flags),
        ..Conv::default()
    };
    if flags.contains(Flags::ADD_AUX) {
        conv.aux = aux.operand(4);
        conv.aux_strides = aux.strides;
    }
    if flags.intersects(Flags::TABLE_0 | Flags::TABLE_1) {
        conv.tables = Operand::new(SlotId(5), 0);
    }
    let depthwise = conv.is_depthwise();
    let weights =
        if depthwise { p.packed_depthwise() } else { p.packed(usize::try_from(groups).unwrap()) };
    prop_assert_eq!(Some(weights.len() as u64), conv.weight_bytes());
    let records = p.records(r);
    let sizes = [ifm.len, weights.len(), records.len(), ofm.len, aux.len, 512];
    let machine = Machine::new(&sizes, case.seed);
    machine.write(1, &weights);
    machine.write(2, &records);
    machine.write(5, &p.tables);

    if case.extreme {
        let extreme = |code: u8| if code < 128 { 0 } else { 255 };
        let all = extreme(r.byte());
        let alike = r.below(2) == 0;
        let input: Vec<u8> = machine.read(0).into_iter().map(extreme).collect();
        machine.write(0, &if alike { vec![all; input.len()] } else { input });
    }
    let (input, aux_bytes) = (machine.read(0), machine.read(4));
    let s = conv.stage;
    let expected = |[n, oy, ox]: [u32; 3], oc: u32| {
        let first = oc / (outputs / groups) * inputs;
        let oc_index = usize::try_from(oc).unwrap();
        let mut acc = i64::from(p.bias[oc_index]);
        for tap in 0..taps {
            let (ky, kx) = (tap / u32::from(w.kernel_w), tap % u32::from(w.kernel_w));
            let y = i64::from(oy * u32::from(w.stride_h) + ky * u32::from(w.dilation_h))
                - i64::from(w.pad_top);
            let x = i64::from(ox * u32::from(w.stride_w) + kx * u32::from(w.dilation_w))
                - i64::from(w.pad_left);
            let pixel = match (u32::try_from(y), u32::try_from(x)) {
                (Ok(y), Ok(x)) if y < dims.h && x < dims.w => Some(ifm.at(n, y, x)),
                _ => None,
            };
            for ic in 0..inputs {
                let code = pixel.map_or(i64::from(s.input_zero_point), |at| {
                    i64::from(input[at + usize::try_from(first + ic).unwrap()])
                });
                let tap = &p.weights[oc_index][usize::try_from(tap).unwrap()];
                let weight = i64::from(tap[usize::try_from(ic).unwrap()]);
                acc += code * (weight - i64::from(p.weight_zero_point[oc_index]));
            }
        }
        let aux_code = aux_bytes[aux.at(n, oy, ox) + oc_index];
        staged(&p, &s, flags, acc, oc_index, aux_code)
    };
    check(&machine, &Command::Conv(conv), &ofm, &expected)
}

fn check(
    machine: &Machine,
    command: &Command,
    ofm: &Shape,
    expected: &dyn Fn([u32; 3], u32) -> u8,
) -> Result<(), TestCaseError> {
    let before = machine.read(3);
    let cached: Vec<Vec<u8>> =
        ofm.pixels().map(|at| (0..ofm.dims.c).map(|ch| expected(at, ch)).collect()).collect();
    let cached = |[n, y, x]: [u32; 3], ch: u32| {
        let pixel = (n * ofm.dims.h + y) * ofm.dims.w + x;
        cached[usize::try_from(pixel).unwrap()][usize::try_from(ch).unwrap()]
    };
    for (isa, after) in machine.run_each(command, 3) {
        ofm.check(&before, &after, &cached)
            .map_err(|error| TestCaseError::fail(format!("{isa:?}: {error}")))?;
    }
    Ok(())
}

pub(super) fn check_matmul(
    [m, n, k]: [u32; 3],
    flags: Flags,
    asymmetric: bool,
    styles: [Style; 3],
    seed: u64,
) -> Result<(), TestCaseError> {
    let r = &mut Random::new(seed);
    let rows = |columns| Dims { n: 1, h: 1, w: m, c: columns };
    let a = styles[0].shape(rows(k), 4);
    let out = styles[1].shape(rows(n), 1);
    let aux = styles[2].shape(rows(n), 1);
    let p = Parameters::random(n, 1, k, asymmetric, r);
    let mut matmul = MatMul {
        header: Header::new(opcode::MATMUL, 3, flags, 0),
        a: a.operand(0),
        weights: Operand::new(SlotId(1), 0),
        channels: Operand::new(SlotId(2), 0),
        out: out.operand(3),
        m,
        n,
        k,
        a_row: a.strides.pixel,
        out_row: out.strides.pixel,
        stage: stage(r, flags),
        ..MatMul::default()
    };
    if flags.contains(Flags::ADD_AUX) {
        matmul.aux = aux.operand(4);
        matmul.aux_row = aux.strides.pixel;
    }
    if flags.intersects(Flags::TABLE_0 | Flags::TABLE_1) {
        matmul.tables = Operand::new(SlotId(5), 0);
    }
    let weights = p.packed(1);
    prop_assert_eq!(Some(weights.len() as u64), matmul.weight_bytes());
    let records = p.records(r);
    let sizes = [a.len, weights.len(), records.len(), out.len, aux.len, 512];
    let machine = Machine::new(&sizes, seed);
    machine.write(1, &weights);
    machine.write(2, &records);
    machine.write(5, &p.tables);
    let (input, aux_bytes) = (machine.read(0), machine.read(4));
    let s = matmul.stage;
    let expected = |[_, _, row]: [u32; 3], column: u32| {
        let column = usize::try_from(column).unwrap();
        let at = a.at(0, 0, row);
        let sum: i64 = p.weights[column][0]
            .iter()
            .zip(&input[at..])
            .map(|(&w, &x)| i64::from(x) * (i64::from(w) - i64::from(p.weight_zero_point[column])))
            .sum();
        let aux_code = aux_bytes[aux.at(0, 0, row) + column];
        staged(&p, &s, flags, sum + i64::from(p.bias[column]), column, aux_code)
    };
    check(&machine, &Command::MatMul(matmul), &out, &expected)
}

/// 1x1 convolutions of several images that lie side by side, which are one row of pixels.
fn of_images() -> impl Strategy<Value = Case> {
    let styles = [dense_style(), dense_style(), dense_style()];
    let channels = (1u32..40, prop_oneof![1u32..17, 17u32..100]);
    (2u32..6, 1u32..6, 1u32..12, channels, flags(), styles, any::<u64>()).prop_map(
        |(n, h, w, (c, outputs), flags, styles, seed)| Case {
            dims: Dims { n, h, w, c },
            groups: 1,
            outputs,
            window: Window {
                kernel_h: 1,
                kernel_w: 1,
                stride_h: 1,
                stride_w: 1,
                dilation_h: 1,
                dilation_w: 1,
                pad_top: 0,
                pad_left: 0,
            },
            pad_bottom: 0,
            pad_right: 0,
            flags,
            asymmetric: false,
            extreme: false,
            styles,
            seed,
        },
    )
}

proptest! {
    #[test]
    fn convolutions_equal_the_oracle(case in case()) {
        check_conv(&case)?;
    }

    #[test]
    fn convolutions_of_images_side_by_side_equal_the_oracle(case in of_images()) {
        check_conv(&case)?;
    }

    #[test]
    fn wide_convolutions_of_few_channels_equal_the_oracle(case in wide_case()) {
        check_conv(&case)?;
    }

    #[test]
    fn matrix_products_equal_the_oracle(
        m in 1u32..40, n in prop_oneof![1u32..100, 100u32..300], k in prop_oneof![1u32..80, 1u32..600],
        flags in flags(), asymmetric in prop_oneof![5 => Just(false), 1 => Just(true)],
        styles in [style(), style(), style()], seed: u64,
    ) {
        check_matmul([m, n, k], flags, asymmetric, styles, seed)?;
    }
}
