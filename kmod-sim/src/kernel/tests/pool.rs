//! POOL against windows gathered one by one.

use super::machine::{Machine, Random, Style, style};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Dims, Flags, Header, Pool, Window, opcode, pool_kind};
use npu_uapi::requantise;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Case {
    dims: Dims,
    ofm: (u32, u32),
    kind: u8,
    window: Window,
    /// Bottom, right; `None` when padding does not count.
    counted: Option<(u16, u16)>,
    table: bool,
    styles: [Style; 2],
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let kind = prop_oneof![
        Just(pool_kind::MAX),
        Just(pool_kind::AVERAGE),
        Just(pool_kind::GLOBAL_AVERAGE),
        Just(pool_kind::GLOBAL_MEAN)
    ];
    let window = (1u16..5, 1u16..5, 1u16..4, 1u16..4, 1u16..3, 1u16..3, 0u16..3, 0u16..3);
    let dims = (1u32..3, 1u32..14, 1u32..14, 1u32..150);
    let counted = prop::option::of((0u16..3, 0u16..3));
    let ofm = (1u32..10, 1u32..10);
    (dims, ofm, kind, window, counted, any::<bool>(), [style(), style()], any::<u64>()).prop_map(
        |((n, h, w, c), ofm, kind, window, counted, table, styles, seed)| {
            let global = pool_kind::is_global(kind);
            let (kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left) =
                window;
            let window = Window {
                kernel_h,
                kernel_w,
                stride_h,
                stride_w,
                dilation_h,
                dilation_w,
                pad_top: top,
                pad_left: left,
            };
            Case {
                dims: Dims { n, h, w, c },
                ofm: if global { (1, 1) } else { ofm },
                kind,
                window: if global { Window::default() } else { window },
                counted: counted.filter(|_| kind == pool_kind::AVERAGE),
                table,
                styles,
                seed,
            }
        },
    )
}

fn check_pool(case: &Case) -> Result<(), TestCaseError> {
    let Case { dims, kind, window: w, .. } = case.clone();
    let r = &mut Random::new(case.seed);
    let ofm_dims = Dims { n: dims.n, h: case.ofm.0, w: case.ofm.1, c: dims.c };
    let ifm = case.styles[0].shape(dims, 1);
    let ofm = case.styles[1].shape(ofm_dims, 1);
    let flags = if case.table { Flags::TABLE_0 } else { Flags::empty() };
    let (low, high) = if r.below(2) == 0 { (0, 255) } else { (20, 200) };
    let scaled = |r: &mut Random, yes| if yes { r.scale() } else { 0.0 };
    let average = matches!(kind, pool_kind::AVERAGE | pool_kind::GLOBAL_MEAN);
    let global = kind == pool_kind::GLOBAL_AVERAGE;
    let count = f32::from(u16::try_from(dims.h * dims.w).unwrap());
    let (bottom, right) = case.counted.unwrap_or_default();
    let pool = Pool {
        header: Header::new(opcode::POOL, 3, flags, 0),
        ifm: ifm.operand(0),
        ofm: ofm.operand(1),
        tables: if case.table { Operand::new(SlotId(2), 0) } else { Operand::default() },
        ifm_dims: dims,
        ofm_h: case.ofm.0,
        ofm_w: case.ofm.1,
        kind,
        count_padding: case.counted.is_some().into(),
        pad_bottom: bottom,
        pad_right: right,
        ifm_strides: ifm.strides,
        ofm_strides: ofm.strides,
        window: w,
        input_zero_point: if average || global { r.byte().into() } else { 0 },
        zero_point: if average || global { r.byte().into() } else { 0 },
        clamp_low: low,
        clamp_high: high,
        input_scale: scaled(r, average),
        output_scale: scaled(r, average),
        multiplier: scaled(r, global) / count,
        ..Pool::default()
    };
    let machine = Machine::new(&[ifm.len, ofm.len, 256], case.seed);
    let (input, before, table) = (machine.read(0), machine.read(1), machine.read(2));
    let zero_in = u8::try_from(pool.input_zero_point).unwrap();
    let zero_out = u8::try_from(pool.zero_point).unwrap();
    let inside = |at: i64, end: u32| u32::try_from(at).ok().filter(|&at| at < end);
    let expected = |[n, oy, ox]: [u32; 3], ch: u32| {
        let code_at = |y, x| input[ifm.at(n, y, x) + usize::try_from(ch).unwrap()];
        let (mut codes, mut count) = (Vec::new(), 0);
        for ky in 0..w.kernel_h {
            for kx in 0..w.kernel_w {
                let y = i64::from(oy) * i64::from(w.stride_h) + i64::from(ky * w.dilation_h)
                    - i64::from(w.pad_top);
                let x = i64::from(ox) * i64::from(w.stride_w) + i64::from(kx * w.dilation_w)
                    - i64::from(w.pad_left);
                match (inside(y, dims.h), inside(x, dims.w)) {
                    (Some(y), Some(x)) => {
                        codes.push(code_at(y, x));
                        count += 1;
                    }
                    _ => {
                        let padded = case.counted.is_some()
                            && y < i64::from(dims.h) + i64::from(bottom)
                            && x < i64::from(dims.w) + i64::from(right);
                        count += u32::from(padded);
                    }
                }
            }
        }
        let code = match kind {
            pool_kind::MAX => codes.iter().copied().max().unwrap_or(0),
            pool_kind::AVERAGE => {
                let step =
                    |sum, &code| requantise::average_step(sum, code, pool.input_scale, zero_in);
                let sum = codes.iter().fold(0.0, step);
                requantise::average_finish(sum, count, pool.output_scale, zero_out)
            }
            pool_kind::GLOBAL_MEAN => {
                let codes: Vec<u8> = (0..dims.h * dims.w)
                    .map(|pixel| code_at(pixel / dims.w, pixel % dims.w))
                    .collect();
                let value = |&code: &u8| requantise::dequantise(code, pool.input_scale, zero_in);
                let mean = requantise::global_mean(codes.iter().map(value));
                requantise::quantise(mean, pool.output_scale, zero_out)
            }
            _ => {
                let all = (0..dims.h).flat_map(|y| (0..dims.w).map(move |x| (y, x)));
                let sum: i32 =
                    all.map(|(y, x)| i32::from(code_at(y, x)) - i32::from(zero_in)).sum();
                requantise::requantise(sum, pool.multiplier, zero_out)
            }
        };
        let code = code.clamp(low, high);
        if case.table { table[usize::from(code)] } else { code }
    };
    for (isa, after) in machine.run_each(&Command::Pool(pool), 1) {
        ofm.check(&before, &after, &expected)
            .map_err(|error| TestCaseError::fail(format!("{isa:?}: {error}")))?;
    }
    Ok(())
}

proptest! {
    #[test]
    fn poolings_equal_the_oracle(case in case()) {
        check_pool(&case)?;
    }
}
