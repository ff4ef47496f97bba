//! Random models of rows: products with matrices and of two tensors, Softmax, heads of attention.

use super::exact::{int, ints};
use crate::graph::{ElementType, Graph};
use crate::quantize::Codes;
use crate::refusal::rule;
use crate::testing::{Flow, Model, Noise, Weighted, executable_on, expected, inputs, run};
use crate::{dump, partition, program};
use npu_uapi::limits::Limits;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn models_of_rows_equal_the_reference(
        seed: u64,
        steps in 1_usize..7,
        batch in 1_usize..4,
        device in prop::sample::select(&["sim:strict=1", "sim:sram=4K,strict=1"]),
    ) {
        let graph = random_rows(seed, steps);
        let plan = partition::plan(&graph, &Limits::REFERENCE);
        prop_assert_eq!(plan.groups.len(), 1, "{}: {:?}", plan.summary(&graph), plan.verdicts);
        let inputs = inputs(&graph, batch, seed);
        let want = expected(&graph, &inputs);
        let executable = executable_on(device, graph);
        let found = run(&executable, &inputs, &want);
        prop_assert_eq!(found, want);
    }
}

fn random_rows(seed: u64, steps: usize) -> Graph {
    let (mut model, mut noise) = (Model::new(seed), Noise(seed ^ 0xa77e));
    let shape = [1, noise.below(20) + 1, noise.pick(&[8, 16, 24, 32, 40])];
    let codes = model.codes();
    let mut flow = match noise.below(2) {
        0 => model.code_input(&shape, codes),
        _ => model.float_input(&shape, codes),
    };
    flow = dense(&mut model, &flow, shape[2]);
    for _ in 0..steps {
        let codes = model.codes();
        let &[_, _, width] = flow.shape.as_slice() else { panic!("rows have three dimensions") };
        flow = match noise.below(5) {
            0 => dense(&mut model, &flow, noise.pick(&[8, 16, 24, 32])),
            1 => model.unit("Sigmoid", &[&flow], &[], (codes, &flow.shape)),
            2 => {
                let other = dense(&mut model, &flow, width);
                model.unit("Add", &[&flow, &other], &[], (codes, &flow.shape))
            }
            3 => softmax(&mut model, &flow),
            _ => attention(&mut model, &mut noise, &flow),
        };
    }
    match noise.below(2) {
        0 => model.code_output(&flow),
        _ => model.float_output(&flow),
    }
    model.finish()
}

fn dense(model: &mut Model, flow: &Flow, outputs: usize) -> Flow {
    let (codes, inputs) = (model.codes(), *flow.shape.last().unwrap());
    let per_channel = inputs % 16 == 0;
    let weighted =
        Weighted { shape: vec![inputs, outputs], axis: 1, per_channel, with_bias: false };
    let mut shape = flow.shape.clone();
    *shape.last_mut().unwrap() = outputs;
    model.weighted("MatMul", flow, &weighted, &[], (codes, &shape))
}

fn softmax(model: &mut Model, flow: &Flow) -> Flow {
    let codes = Codes { scale: 1.0 / 256.0, zero_point: 0 };
    let last = [("axis", int(flow.shape.len() - 1))];
    model.unit("Softmax", &[flow], &last, (codes, &flow.shape))
}

fn reshaped(model: &mut Model, flow: &Flow, shape: &[usize]) -> Flow {
    let numbers: Vec<i64> = shape.iter().map(|&len| i64::try_from(len).unwrap()).collect();
    let bytes = std::iter::once(0).chain(numbers[1..].iter().copied());
    let bytes = bytes.flat_map(i64::to_le_bytes).collect();
    let numbers = model.constant(ElementType::I64, &[shape.len()], bytes);
    let read = model.dequantize(flow);
    let result = model.node("Reshape", &[read, numbers], &[]);
    Flow { value: model.quantize(result, flow.codes), codes: flow.codes, shape: shape.to_vec() }
}

fn transposed(model: &mut Model, flow: &Flow, order: [usize; 4]) -> Flow {
    let shape = order.map(|axis| flow.shape[axis]);
    model.unit("Transpose", &[flow], &[("perm", ints(&order))], (flow.codes, &shape))
}

/// Attention of heads of eight channels, on the same rows or on those of another product.
fn attention(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let &[n, length, width] = flow.shape.as_slice() else { panic!("rows have three dimensions") };
    let (heads, depth) = (width / 8, 8);
    let apart = [n, length, heads, depth];
    let mut head = |model: &mut Model, order: [usize; 4]| {
        let other = noise.below(2) == 0;
        let rows = if other { dense(model, flow, width) } else { flow.clone() };
        let rows = reshaped(model, &rows, &apart);
        transposed(model, &rows, order)
    };
    let (q, k) = (head(model, [0, 2, 1, 3]), head(model, [0, 2, 3, 1]));
    let v = head(model, [0, 2, 1, 3]);
    let codes = model.codes();
    let scores = model.unit("MatMul", &[&q, &k], &[], (codes, &[n, heads, length, length]));
    let scores = if length > 1 { softmax(model, &scores) } else { scores };
    let codes = model.codes();
    let mixed = model.unit("MatMul", &[&scores, &v], &[], (codes, &[n, heads, length, depth]));
    let beside = transposed(model, &mixed, [0, 2, 1, 3]);
    reshaped(model, &beside, &[n, length, width])
}

#[test]
fn heads_are_read_and_written_where_they_lie() {
    let mut model = Model::new(5);
    let codes = model.codes();
    let flow = model.code_input(&[1, 24, 32], codes);
    let flow = attention(&mut model, &mut Noise(1), &flow);
    let flow = dense(&mut model, &flow, 32);
    model.code_output(&flow);
    let graph = model.finish();
    let units = program::units(&graph).unwrap();
    let shapes = [vec![1, 24, 32]];
    let compiled = program::compile(&graph, &units, &shapes, &Limits::REFERENCE).unwrap();
    let text = dump::ops(&graph, &compiled.ops);
    assert!(text.contains("product 24x24x8 x4") && text.contains("product 24x8x24 x4"), "{text}");
    assert!(!text.contains("move"), "{text}");
}

#[test]
fn what_the_device_does_not_sum_is_refused() {
    let refusal = |make: &dyn Fn(&mut Model) -> Flow| {
        let mut model = Model::new(7);
        let flow = make(&mut model);
        model.code_output(&flow);
        let graph = model.finish();
        let plan = partition::plan(&graph, &Limits::REFERENCE);
        let refused = plan.verdicts.into_iter().find(|verdict| verdict.taken.is_none());
        refused.map(|verdict| (verdict.rule, verdict.reason)).unwrap()
    };
    let shares = Codes { scale: 1.0 / 256.0, zero_point: 0 };
    let (rule_of, reason) = refusal(&|model| {
        let codes = model.codes();
        let flow = model.code_input(&[1, 4, 5], codes);
        model.unit("Softmax", &[&flow], &[("axis", int(1))], (shares, &[1, 4, 5]))
    });
    assert!(rule_of == rule::ATTRIBUTE && reason.contains("the last one is taken"), "{reason}");
    let (rule_of, reason) = refusal(&|model| {
        let codes = model.codes();
        let flow = model.code_input(&[1, 4, 1], codes);
        model.unit("Softmax", &[&flow], &[("axis", int(2))], (shares, &[1, 4, 1]))
    });
    assert!(rule_of == rule::SCALE && reason.contains("cannot round"), "{reason}");
    let (rule_of, reason) = refusal(&|model| {
        let codes = model.codes();
        let flow = model.code_input(&[1, 4, 5], codes);
        model.unit("MatMul", &[&flow, &flow], &[], (codes, &[1, 4, 5]))
    });
    assert!(rule_of == rule::SHAPE && reason.contains("do not fit"), "{reason}");
}
