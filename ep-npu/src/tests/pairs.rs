//! Functions of two tensors: as steps of random models, and as what the device is given for them.

use super::exact::ints;
use crate::graph::{Attribute, Dim, ElementType, Graph, TensorType};
use crate::lower::{Function, Op, OpKind};
use crate::partition;
use crate::program::{self, Compiled};
use crate::quantize::Codes;
use crate::testing::{Flow, Model, Noise, Weighted};
use npu_uapi::limits::Limits;

/// A function of `flow` and another tensor, which may be one that is repeated.
pub(super) fn pair(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let codes = model.codes();
    let c = flow.shape[1];
    let weighted =
        Weighted { shape: vec![c, c, 1, 1], axis: 0, per_channel: false, with_bias: true };
    let is_repeated = noise.below(3) == 0;
    let other = if is_repeated {
        let shape = [flow.shape[0], c, 1, 1];
        model.unit("GlobalAveragePool", &[flow], &[], (codes, &shape))
    } else {
        model.weighted("Conv", flow, &weighted, &[], (codes, &flow.shape))
    };
    let codes = model.codes();
    let order = noise.below(2) == 0;
    match noise.below(4) {
        3 => varied(model, noise, flow, codes),
        0 => {
            let op = noise.pick(&["Sub", "Div", "Max", "Min"]);
            let operands = if order { [flow, &other] } else { [&other, flow] };
            model.unit(op, &operands, &[], (codes, &flow.shape))
        }
        1 => model.unit("PRelu", &[flow, &other], &[], (codes, &flow.shape)),
        _ => {
            let read = [flow, &other].map(|flow| model.dequantize(flow));
            let gate = model.node("Abs", &read[1..], &[]);
            let value = model.node(noise.pick(&["Mul", "Add"]), &[read[0], gate], &[]);
            Flow { value: model.quantize(value, codes), codes, shape: flow.shape.clone() }
        }
    }
}

/// A function of `flow` and of constants that differ by channel, or from element to element.
fn varied(model: &mut Model, noise: &mut Noise, flow: &Flow, codes: Codes) -> Flow {
    let [_, c, h, w] = flow.shape[..] else { panic!("steps of pairs read images") };
    let mut floats = |shape: &[usize], low: f32| {
        let count = shape.iter().product();
        let values = (0..count).map(|_| low + f32::from(noise.byte()) / 64.0);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        model.constant(ElementType::F32, shape, bytes)
    };
    let others = [
        (vec![c, 1, 1], "PRelu"),
        (vec![1, c, 1, 1], "Sub"),
        (vec![1, w], "Mul"),
        (vec![h, 1], "Div"),
        (vec![c], "BatchNormalization"),
    ];
    let at = codes.zero_point as usize % others.len();
    let (shape, op) = &others[at];
    let count = if *op == "BatchNormalization" { 4 } else { 1 };
    let constants: Vec<_> = (0..count).map(|_| floats(shape, 0.5)).collect();
    let read = model.dequantize(flow);
    let inputs: Vec<_> = std::iter::once(read).chain(constants).collect();
    // How many dimensions it has says whether a constant of one element gives the result more.
    let shape = Some(vec![Dim::Known(1); 4]);
    model.set_type(read, TensorType { element: ElementType::F32, shape });
    let value = model.node(op, &inputs, &[]);
    Flow { value: model.quantize(value, codes), codes, shape: flow.shape.clone() }
}

fn compiled(graph: &Graph) -> Compiled {
    let plan = partition::plan(graph, &Limits::REFERENCE);
    assert_eq!(plan.groups.len(), 1, "{}: {:?}", plan.summary(graph), plan.verdicts);
    let units = program::units(graph).unwrap();
    let shapes = vec![vec![2, 8, 4, 4]; graph.inputs().len()];
    program::compile(graph, &units, &shapes, &Limits::REFERENCE).unwrap()
}

fn model(build: impl FnOnce(&mut Model, [&Flow; 2]) -> Flow) -> Graph {
    let mut model = Model::new(3);
    let codes = [Codes { scale: 0.03, zero_point: 120 }, Codes { scale: 0.05, zero_point: 3 }];
    let inputs = codes.map(|codes| model.code_input(&[1, 8, 4, 4], codes));
    let output = build(&mut model, [&inputs[0], &inputs[1]]);
    model.code_output(&output);
    model.finish()
}

#[test]
fn a_difference_with_scales_of_powers_of_two_is_an_addition() {
    let codes = |scale| Codes { scale, zero_point: 128 };
    let mut model = Model::new(3);
    let [a, b] = [0.25, 0.5].map(|scale| model.code_input(&[1, 8, 4, 4], codes(scale)));
    let output = model.unit("Sub", &[&a, &b], &[], (codes(0.5), &[1, 8, 4, 4]));
    model.code_output(&output);
    let ops = compiled(&model.finish()).ops.ops;
    let sum = |op: &Op| matches!(op.kind, OpKind::Pair { function: Function::Add(_), .. });
    assert!(ops.iter().any(sum), "{ops:?}");
}

#[test]
fn tables_before_and_behind_a_table_of_pairs_are_part_of_it() {
    let codes = Codes { scale: 0.04, zero_point: 77 };
    let shape = [1, 8, 4, 4];
    let graph = model(|model, [a, b]| {
        let a = model.unit("Abs", &[a], &[], (codes, &shape));
        let b = model.unit("Neg", &[b], &[], (codes, &shape));
        let quotient = model.unit("Div", &[&a, &b], &[], (codes, &shape));
        model.unit("Tanh", &[&quotient], &[], (codes, &shape))
    });
    let ops = compiled(&graph).ops.ops;
    let tables = ops.iter().filter(|op| matches!(op.kind, OpKind::Table(_))).count();
    let pairs = ops.iter().filter(|op| matches!(op.kind, OpKind::Pair { .. })).count();
    assert_eq!((tables, pairs), (0, 1), "{ops:?}");
}

#[test]
fn equal_tables_of_pairs_lie_in_one_place() {
    let codes = Codes { scale: 0.04, zero_point: 77 };
    let shape = [1, 8, 4, 4];
    let graph = model(|model, [a, b]| {
        let pool = [("kernel_shape", ints(&[1, 1]))];
        let first = model.unit("Div", &[a, b], &[], (codes, &shape));
        let a = model.unit("MaxPool", &[a], &pool, (a.codes, &shape));
        let second = model.unit("Div", &[&a, b], &[], (codes, &shape));
        model.unit("Concat", &[&first, &second], &[("axis", Attribute::Int(1))], (codes, &shape))
    });
    let emitted = compiled(&graph).emitted;
    assert!((65_536..2 * 65_536).contains(&emitted.constant_bytes), "{}", emitted.constant_bytes);
}

#[test]
fn a_constant_for_each_channel_is_a_table_for_each_channel() {
    let codes = Codes { scale: 0.04, zero_point: 77 };
    let graph = model(|model, [a, _]| {
        let values = (0..8_u8).flat_map(|slope| f32::from(slope).to_le_bytes()).collect();
        let slopes = model.constant(ElementType::F32, &[8, 1, 1], values);
        let read = model.dequantize(a);
        let value = model.node("PRelu", &[read, slopes], &[]);
        let value = model.quantize(value, codes);
        let flow = Flow { value, codes, shape: a.shape.clone() };
        model.unit("Abs", &[&flow], &[], (codes, &[1, 8, 4, 4]))
    });
    let ops = compiled(&graph).ops.ops;
    let tables = ops.iter().find_map(|op| match &op.kind {
        OpKind::Channels(tables) => Some(tables.len()),
        _ => None,
    });
    assert_eq!(tables, Some(8 * 256), "{ops:?}");
    assert!(!ops.iter().any(|op| matches!(op.kind, OpKind::Table(_))), "{ops:?}");
}
