//! Random models of sums and normalisations over dimensions, alone and behind one another.

use super::exact::int;
use crate::graph::{Attribute, ElementType, Graph, ValueId};
use crate::partition;
use crate::quantize::Codes;
use crate::refusal::rule;
use crate::testing::{Flow, Model, Noise, Weighted, executable_on, expected, inputs, run};
use npu_uapi::limits::Limits;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn models_of_sums_equal_the_reference(
        seed: u64,
        steps in 1_usize..5,
        batch in 1_usize..4,
        device in prop::sample::select(&["sim:strict=1", "sim:sram=4K,strict=1"]),
    ) {
        let graph = random_sums(seed, steps);
        let plan = partition::plan(&graph, &Limits::REFERENCE);
        prop_assert_eq!(plan.groups.len(), 1, "{}: {:?}", plan.summary(&graph), plan.verdicts);
        let inputs = inputs(&graph, batch, seed);
        let want = expected(&graph, &inputs);
        let executable = executable_on(device, graph);
        let found = run(&executable, &inputs, &want);
        prop_assert_eq!(found, want);
    }
}

fn ints(values: &[i64]) -> Attribute {
    Attribute::Ints(values.to_vec())
}

fn random_sums(seed: u64, steps: usize) -> Graph {
    let (mut model, mut noise) = (Model::new(seed), Noise(seed ^ 0x5075));
    let rank = noise.below(3) + 2;
    let mut shape = vec![1];
    shape.extend((1..rank).map(|_| noise.pick(&[1, 2, 3, 5, 8, 12, 17])));
    let codes = model.codes();
    let mut flow = match noise.below(2) {
        0 => model.code_input(&shape, codes),
        _ => model.float_input(&shape, codes),
    };
    flow = model.unit("Sigmoid", &[&flow], &[], (codes, &shape));
    for _ in 0..steps {
        let shape = flow.shape.clone();
        let codes = model.codes();
        flow = match noise.below(6) {
            0 => model.unit("Sigmoid", &[&flow], &[], (codes, &shape)),
            1 if *shape.last().unwrap() >= 8 => {
                let width = *shape.last().unwrap();
                normalised(&mut model, "LayerNormalization", &flow, width, codes)
            }
            2 if shape.len() > 2 => {
                normalised(&mut model, "InstanceNormalization", &flow, shape[1], codes)
            }
            3 if shape.len() > 1 => single_operators(&mut model, &flow),
            _ if shape.len() > 1 => reduced(&mut model, &mut noise, &flow, codes),
            _ => flow,
        };
    }
    match noise.below(2) {
        0 => model.code_output(&flow),
        _ => model.float_output(&flow),
    }
    model.finish()
}

/// A sum or mean over some dimensions but the batch.
fn reduced(model: &mut Model, noise: &mut Noise, flow: &Flow, codes: Codes) -> Flow {
    let mut axes: Vec<usize> = (1..flow.shape.len()).filter(|_| noise.below(2) == 0).collect();
    if axes.is_empty() {
        axes.push(flow.shape.len() - 1);
    }
    let keep = noise.below(2) == 0;
    let kept = |(axis, &len): (usize, &usize)| match axes.contains(&axis) {
        true => keep.then_some(1),
        false => Some(len),
    };
    let shape: Vec<usize> = flow.shape.iter().enumerate().filter_map(kept).collect();
    let axes: Vec<i64> = axes.iter().map(|&axis| i64::try_from(axis).unwrap()).collect();
    let attributes = [("axes", ints(&axes)), ("keepdims", int(keep.into()))];
    let kind = noise.pick(&["ReduceMean", "ReduceSum"]);
    model.unit(kind, &[flow], &attributes, (codes, &shape))
}

/// An operator with a gain and a bias for each of `count`.
fn normalised(model: &mut Model, op: &str, flow: &Flow, count: usize, codes: Codes) -> Flow {
    let [gain, bias] = [0.5, -0.7].map(|about| floats(model, count, about));
    let read = model.dequantize(flow);
    let result = model.node(op, &[read, gain, bias], &[]);
    Flow { value: model.quantize(result, codes), codes, shape: flow.shape.clone() }
}

fn floats(model: &mut Model, count: usize, about: f32) -> ValueId {
    let number = |byte: u8| (about + f32::from(byte) / 255.0).to_le_bytes();
    let bytes = (0..count).flat_map(|_| number(model.noise.byte())).collect();
    model.constant(ElementType::F32, &[count], bytes)
}

/// What a quantiser leaves of a layer normalisation of the last dimension.
fn single_operators(model: &mut Model, flow: &Flow) -> Flow {
    let last = [("axes", ints(&[-1])), ("keepdims", int(1))];
    let scalar = |model: &mut Model, value: f32| {
        model.constant(ElementType::F32, &[], value.to_le_bytes().to_vec())
    };
    let read = model.dequantize(flow);
    let again = model.dequantize(flow);
    let mean = model.node("ReduceMean", &[read], &last);
    let centred = model.node("Sub", &[again, mean], &[]);
    let two = scalar(model, 2.0);
    let squares = model.node("Pow", &[centred, two], &[]);
    let variance = model.node("ReduceMean", &[squares], &last);
    let codes = Codes { scale: (flow.codes.scale * 60.0).powi(2) / 100.0, zero_point: 0 };
    let shape = flow.shape.clone();
    let variance = Flow { value: model.quantize(variance, codes), codes, shape };
    let read = model.dequantize(&variance);
    let epsilon = scalar(model, 1e-3);
    let sum = model.node("Add", &[read, epsilon], &[]);
    let sum = Flow { value: model.quantize(sum, codes), ..variance };
    let read = model.dequantize(&sum);
    let root = model.node("Sqrt", &[read], &[]);
    let result = model.node("Div", &[centred, root], &[]);
    let codes = Codes { scale: 0.03, zero_point: 120 };
    Flow { value: model.quantize(result, codes), codes, shape: flow.shape.clone() }
}

/// The rule by which the sum that `unit` makes is not taken, between a convolution and another.
fn between_convolutions(unit: impl FnOnce(&mut Model, &Flow) -> Flow) -> &'static str {
    let mut model = Model::new(5);
    let codes = Codes { scale: 0.03, zero_point: 100 };
    let flow = model.code_input(&[1, 8, 7, 9], codes);
    let conv = |model: &mut Model, flow: &Flow| {
        let weights =
            Weighted { shape: vec![8, 8, 1, 1], axis: 0, per_channel: false, with_bias: false };
        let shape = flow.shape.clone();
        model.weighted("Conv", flow, &weights, &[], (codes, &shape))
    };
    let flow = conv(&mut model, &flow);
    let flow = unit(&mut model, &flow);
    let flow = if flow.shape.len() == 4 { conv(&mut model, &flow) } else { flow };
    model.code_output(&flow);
    let graph = model.finish();
    let plan = partition::plan(&graph, &Limits::REFERENCE);
    let mut verdicts = plan.verdicts.iter();
    let is_sum = |node| graph.node(node).op.starts_with("Reduce");
    verdicts.find(|verdict| is_sum(verdict.node)).expect("there is one").rule
}

#[test]
fn a_sum_between_convolutions_is_taken_where_its_order_is_certain() {
    let codes = Codes { scale: 0.004, zero_point: 100 };
    let of = |axes: &[i64], keep: usize, shape: &[usize]| {
        let attributes = [("axes", ints(axes)), ("keepdims", int(keep))];
        between_convolutions(|model, flow| {
            model.unit("ReduceMean", &[flow], &attributes, (codes, shape))
        })
    };
    assert_eq!(of(&[2, 3], 1, &[1, 8, 1, 1]), rule::FLOAT_ORDER, "transpositions meet");
    assert_eq!(of(&[2, 3], 0, &[1, 8]), "", "none behind");
}
