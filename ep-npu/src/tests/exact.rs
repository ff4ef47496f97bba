//! Random models: the device's bytes equal the reference's.

use crate::graph::{Attribute, Graph};
use crate::quantize::Codes;
use crate::reference::Value;
use crate::testing::{
    Flow, Model, Noise, Weighted, executable, executable_on, expected, inputs, run,
};
use npu_uapi::limits::Limits;
use proptest::prelude::*;
use std::collections::BTreeSet;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn compiled_models_equal_the_reference(
        seed: u64,
        steps in 1_usize..9,
        batch in 1_usize..4,
        device in prop::sample::select(&["sim:strict=1", "sim:sram=4K,strict=1"]),
    ) {
        let graph = random_model(seed, steps);
        let plan = crate::partition::plan(&graph, &Limits::REFERENCE);
        prop_assert_eq!(plan.groups.len(), 1, "{}: {:?}", plan.summary(&graph), plan.verdicts);
        let is_whole = plan.verdicts.iter().all(|verdict| verdict.taken == Some(0));
        prop_assert!(is_whole, "{}", plan.summary(&graph));
        let inputs = inputs(&graph, batch, seed);
        let want = expected(&graph, &inputs);
        let executable = executable_on(device, graph);
        let found = run(&executable, &inputs, &want);
        prop_assert_eq!(found, want);
    }
}

#[test]
fn random_models_have_many_codes_to_get_wrong() {
    let rich = (0..40).filter(|&seed| {
        let graph = random_model(seed, 5);
        let inputs = inputs(&graph, 3, seed);
        let outputs = expected(&graph, &inputs);
        let distinct = |value: &Value| match value {
            Value::Codes(codes) => codes.iter().collect::<BTreeSet<_>>().len(),
            Value::Floats(floats) => {
                floats.iter().map(|f| f.to_bits()).collect::<BTreeSet<_>>().len()
            }
        };
        outputs.iter().any(|output| distinct(output) >= 16)
    });
    assert!(rich.count() >= 20);
}

#[test]
fn threads_share_an_executable_and_each_batch_gets_its_program() {
    let graph = random_model(3, 6);
    let cases: Vec<_> = (1..=10)
        .map(|batch| {
            let inputs = inputs(&graph, batch, batch as u64);
            let want = expected(&graph, &inputs);
            (inputs, want)
        })
        .collect();
    let executable = executable(graph);
    std::thread::scope(|scope| {
        for first in 0..3 {
            let (cases, executable) = (&cases, &executable);
            scope.spawn(move || {
                for turn in 0..20 {
                    let (inputs, want) = &cases[(first * 7 + turn) % cases.len()];
                    assert_eq!(&run(executable, inputs, want), want);
                }
            });
        }
    });
}

#[test]
fn an_empty_batch_gives_empty_outputs() {
    let graph = random_model(3, 6);
    let want = expected(&graph, &inputs(&graph, 1, 7));
    let found = run(&executable(graph.clone()), &inputs(&graph, 0, 7), &want);
    for (found, want) in found.iter().zip(&want) {
        let (found, want) = match (found, want) {
            (Value::Codes(found), Value::Codes(want)) => (found.shape(), want.shape()),
            (Value::Floats(found), Value::Floats(want)) => (found.shape(), want.shape()),
            _ => panic!("another element type"),
        };
        assert_eq!((found[0], &found[1..]), (0, &want[1..]));
    }
}

/// A chain of `steps` random operators with branches that come back, and outputs in between.
pub(crate) fn random_model(seed: u64, steps: usize) -> Graph {
    grown(Model::new(seed), seed, steps)
}

/// The same in `model`.
pub(super) fn grown(mut model: Model, seed: u64, steps: usize) -> Graph {
    let mut noise = Noise(seed ^ 0x5eed);
    let shape = [1, noise.pick(&[1, 3, 4, 7, 16, 24]), noise.below(9) + 3, noise.below(9) + 3];
    let codes = model.codes();
    let mut flow = match noise.below(3) {
        0 => model.code_input(&shape, codes),
        _ => model.float_input(&shape, codes),
    };
    flow = conv(&mut model, &mut noise, &flow);
    for _ in 0..steps {
        let next = step(&mut model, &mut noise, &flow);
        if noise.below(6) == 0 {
            model.code_output(&next);
        }
        flow = next;
    }
    match noise.below(3) {
        0 => model.code_output(&flow),
        _ => model.float_output(&flow),
    }
    model.finish()
}

fn step(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let codes = model.codes();
    if let [_, features] = *flow.shape.as_slice() {
        return match noise.below(3) {
            0 => product(model, noise, flow, features),
            1 => elementwise(model, noise, flow, codes),
            _ => model.unit("Add", &[flow, flow], &[], (codes, &flow.shape)),
        };
    }
    match noise.below(18) {
        17 => super::moves::resized(model, noise, flow),
        16 => super::moves::parted(model, noise, flow),
        15 => super::moves::gathered(model, noise, flow),
        14 => super::pairs::pair(model, noise, flow),
        10 | 11 => super::moves::rearranged(model, noise, flow),
        12 => super::moves::joined(model, noise, flow),
        13 => super::moves::gated(model, noise, flow),
        0..=2 => conv(model, noise, flow),
        3..=5 => residual(model, noise, flow),
        6 => pool(model, noise, flow),
        7 => elementwise(model, noise, flow, codes),
        8 => flatten(model, noise, flow, codes),
        _ => {
            let shape = [flow.shape[0], flow.shape[1], 1, 1];
            model.unit("GlobalAveragePool", &[flow], &[], (codes, &shape))
        }
    }
}

fn conv(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let [n, c, h, w] = flow.shape[..] else { panic!("convolutions read images") };
    let (groups, outputs) = match noise.below(4) {
        0 => (c, c),
        1 if c % 4 == 0 => (4, 4 * (noise.below(5) + 1)),
        _ => (1, noise.below(40) + 1),
    };
    let axis = |noise: &mut Noise, len: usize| {
        let kernel = noise.pick(&[1, 1, 2, 3, 3, 5]);
        let dilation = if kernel == 1 { 1 } else { noise.pick(&[1, 1, 1, 2]) };
        let reach = (kernel - 1) * dilation + 1;
        let pads = [noise.below(reach.min(3)), noise.below(reach.min(3))];
        let short = reach.saturating_sub(len + pads[0] + pads[1]);
        match short {
            0 => (kernel, noise.pick(&[1, 1, 2, 3]), dilation, pads),
            _ => (1, 1, 1, [0, 0]),
        }
    };
    let (kh, sh, dh, ph) = axis(noise, h);
    let (kw, sw, dw, pw) = axis(noise, w);
    let out = |len: usize, k: usize, s: usize, d: usize, p: [usize; 2]| {
        (len + p[0] + p[1] - ((k - 1) * d + 1)) / s + 1
    };
    let shape = [n, outputs, out(h, kh, sh, dh, ph), out(w, kw, sw, dw, pw)];
    let weighted = Weighted {
        shape: vec![outputs, c / groups, kh, kw],
        axis: 0,
        per_channel: noise.below(2) == 0,
        with_bias: noise.below(3) != 0,
    };
    let attributes = [
        ("group", int(groups)),
        ("kernel_shape", ints(&[kh, kw])),
        ("strides", ints(&[sh, sw])),
        ("dilations", ints(&[dh, dw])),
        ("pads", ints(&[ph[0], pw[0], ph[1], pw[1]])),
    ];
    let codes = model.codes();
    model.weighted("Conv", flow, &weighted, &attributes, (codes, &shape))
}

/// An addition of what a convolution, or a function, makes of `flow`, and `flow` itself.
fn residual(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let c = flow.shape[1];
    let pointwise = |model: &mut Model, noise: &mut Noise| {
        let weighted = Weighted {
            shape: vec![c, c, 1, 1],
            axis: 0,
            per_channel: noise.below(2) == 0,
            with_bias: true,
        };
        let codes = model.codes();
        model.weighted("Conv", flow, &weighted, &[], (codes, &flow.shape))
    };
    let codes = model.codes();
    let branch = match noise.below(4) {
        0 => elementwise(model, noise, flow, codes),
        _ => pointwise(model, noise),
    };
    let other = if noise.below(3) == 0 { pointwise(model, noise) } else { flow.clone() };
    let operands = if noise.below(2) == 0 { [&branch, &other] } else { [&other, &branch] };
    let codes = model.codes();
    match noise.below(2) {
        0 => model.rectified("Add", &operands, (codes.scale, &flow.shape)),
        _ => model.unit("Add", &operands, &[], (codes, &flow.shape)),
    }
}

fn pool(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let [n, c, h, w] = flow.shape[..] else { panic!("pools read images") };
    if h < 3 || w < 3 {
        return conv(model, noise, flow);
    }
    let (kernel, stride) = (noise.pick(&[2, 3]), noise.pick(&[1, 2]));
    let pad = noise.below(2);
    let out = |len: usize| (len + 2 * pad - kernel) / stride + 1;
    let shape = [n, c, out(h), out(w)];
    let mut attributes = vec![
        ("kernel_shape", ints(&[kernel, kernel])),
        ("strides", ints(&[stride, stride])),
        ("pads", ints(&[pad, pad, pad, pad])),
    ];
    let same = if noise.below(2) == 0 { flow.codes } else { model.codes() };
    if noise.below(2) == 0 {
        return model.unit("MaxPool", &[flow], &attributes, (same, &shape));
    }
    attributes.push(("count_include_pad", int(noise.below(2))));
    let codes = model.codes();
    model.unit("AveragePool", &[flow], &attributes, (codes, &shape))
}

fn elementwise(model: &mut Model, noise: &mut Noise, flow: &Flow, codes: Codes) -> Flow {
    let shape = &flow.shape;
    match noise.below(4) {
        0 => model.unit("Relu", &[flow], &[], (codes, shape)),
        1 => {
            let attributes = [("alpha", Attribute::Float(0.3))];
            model.unit("LeakyRelu", &[flow], &attributes, (codes, shape))
        }
        2 => {
            let attributes = [("min", Attribute::Float(-0.7)), ("max", Attribute::Float(0.9))];
            model.unit("Clip", &[flow], &attributes, (codes, shape))
        }
        _ => {
            let read = model.dequantize(flow);
            Flow { value: model.quantize(read, codes), codes, shape: shape.clone() }
        }
    }
}

fn flatten(model: &mut Model, noise: &mut Noise, flow: &Flow, other: Codes) -> Flow {
    let codes = if noise.below(3) == 0 { other } else { flow.codes };
    let shape = [flow.shape[0], flow.shape[1..].iter().product()];
    model.unit("Flatten", &[flow], &[("axis", Attribute::Int(1))], (codes, &shape))
}

fn product(model: &mut Model, noise: &mut Noise, flow: &Flow, features: usize) -> Flow {
    let outputs = noise.below(30) + 1;
    let op = noise.pick(&["Gemm", "MatMul"]);
    let transposed = op == "Gemm" && noise.below(2) == 0;
    let with_bias = op == "Gemm" && noise.below(2) == 0;
    let mut attributes = vec![];
    if op == "Gemm" {
        attributes.push(("transB", int(usize::from(transposed))));
        if !with_bias {
            attributes.push(("alpha", Attribute::Float(0.7)));
        }
    }
    let shape = if transposed { vec![outputs, features] } else { vec![features, outputs] };
    let weighted = Weighted {
        shape,
        axis: usize::from(!transposed),
        per_channel: noise.below(2) == 0,
        with_bias,
    };
    let codes = model.codes();
    model.weighted(op, flow, &weighted, &attributes, (codes, &[flow.shape[0], outputs]))
}

pub(super) fn int(value: usize) -> Attribute {
    Attribute::Int(i64::try_from(value).unwrap())
}

pub(super) fn ints(values: &[usize]) -> Attribute {
    Attribute::Ints(values.iter().map(|&value| i64::try_from(value).unwrap()).collect())
}
