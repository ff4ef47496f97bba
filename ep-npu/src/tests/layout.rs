//! Operators that stay with the CPU and depend on its layout, and what stays with them.

use crate::graph::{Attribute, Dim, ElementType, Graph, TensorType};
use crate::partition::{self, Plan};
use crate::quantize::Codes;
use crate::refusal::rule;
use crate::testing::{Flow, Model, Weighted};
use npu_uapi::limits::Limits;

const CODES: Codes = Codes { scale: 0.05, zero_point: 100 };
const SHAPE: [usize; 4] = [1, 8, 4, 4];

fn convolution(model: &mut Model, input: &Flow) -> Flow {
    let weights = Weighted { shape: vec![8, 8, 1, 1], axis: 0, per_channel: true, with_bias: true };
    model.weighted("Conv", input, &weights, &[], (CODES, &SHAPE))
}

fn moved(model: &mut Model, input: &Flow) -> Flow {
    let attributes = [("perm", Attribute::Ints(vec![0, 2, 3, 1]))];
    model.unit("Transpose", &[input], &attributes, (CODES, &SHAPE))
}

fn resized(model: &mut Model, input: &Flow, mode: &str) -> Flow {
    let attributes = [("mode", Attribute::String(mode.to_owned()))];
    let result = model.unit("Resize", &[input], &attributes, (CODES, &SHAPE));
    declared(model, result)
}

/// A sum that the NPU does not take, since it is no unit.
fn summed(model: &mut Model, input: &Flow, kind: &str) -> Flow {
    let read = model.dequantize(input);
    let sum = model.node(kind, &[read], &[("axes", Attribute::Ints(vec![-1]))]);
    let less = model.node("Sub", &[read, sum], &[]);
    let result = Flow { value: model.quantize(less, CODES), ..input.clone() };
    declared(model, result)
}

/// Behind what is not taken, a shape is known only where the model says it.
fn declared(model: &mut Model, flow: Flow) -> Flow {
    let shape = flow.shape.iter().map(|&len| Dim::Known(len)).collect();
    model.set_type(flow.value, TensorType { element: ElementType::U8, shape: Some(shape) });
    flow
}

fn graph(build: impl FnOnce(&mut Model, &Flow)) -> Graph {
    let mut model = Model::new(11);
    let input = model.code_input(&SHAPE, CODES);
    build(&mut model, &input);
    model.finish()
}

fn plan(graph: &Graph) -> Plan {
    partition::plan(graph, &Limits::REFERENCE)
}

/// Which nodes of `op` are taken; each that is not says that the CPU moves transpositions.
fn taken(graph: &Graph, op: &str) -> Vec<bool> {
    let plan = plan(graph);
    let of_op = plan.verdicts.iter().filter(|verdict| graph.node(verdict.node).op == op);
    of_op
        .map(|verdict| {
            if verdict.taken.is_none() {
                assert_eq!(verdict.rule, rule::FLOAT_ORDER, "{}", verdict.reason);
                assert!(verdict.reason.contains("may move"), "{}", verdict.reason);
            }
            verdict.taken.is_some()
        })
        .collect()
}

#[test]
fn convolutions_around_a_cubic_resize_stay_with_it() {
    let between = |mode: &str| {
        graph(|model, input| {
            let first = convolution(model, input);
            let middle = resized(model, &first, mode);
            let last = convolution(model, &middle);
            model.code_output(&last);
        })
    };
    assert_eq!(taken(&between("cubic"), "Conv"), [false, false]);
    let linear = between("linear");
    assert!(!plan(&linear).verdicts.iter().any(|verdict| verdict.reason.contains("may move")));
}

/// A linear Resize by these factors of rows and columns.
fn stretched(model: &mut Model, input: &Flow, [rows, columns]: [u8; 2]) -> Flow {
    let factors = [1, 1, rows, columns].map(f32::from);
    let bytes = factors.into_iter().flat_map(f32::to_le_bytes).collect();
    let scales = model.constant(ElementType::F32, &[4], bytes);
    let read = model.dequantize(input);
    let linear = [("mode", Attribute::String("linear".to_owned()))];
    let result = model.node("Resize", &[read, scales, scales], &linear);
    let shape = vec![1, 8, 4 * usize::from(rows), 4 * usize::from(columns)];
    let value = model.quantize(result, CODES);
    declared(model, Flow { value, codes: CODES, shape })
}

#[test]
fn a_linear_resize_of_columns_alone_is_taken_where_no_transposition_comes_through() {
    let resize = |size, with_convolutions: bool| {
        let graph = graph(|model, input| {
            let first = if with_convolutions { convolution(model, input) } else { input.clone() };
            let middle = stretched(model, &first, size);
            let last = if with_convolutions { moved(model, &middle) } else { middle };
            model.code_output(&last);
        });
        let verdicts = plan(&graph).verdicts;
        verdicts.into_iter().find(|verdict| graph.node(verdict.node).is("Resize")).unwrap()
    };
    assert!(resize([1, 2], false).taken.is_some() && resize([2, 2], true).taken.is_some());
    assert!(resize([2, 1], true).taken.is_some());
    let refused = resize([1, 2], true);
    assert_eq!((refused.taken, refused.rule), (None, rule::FLOAT_ORDER));
    assert!(refused.reason.contains("columns of as many rows"), "{}", refused.reason);
}

#[test]
fn what_else_reads_the_convolution_stays_too() {
    let graph = graph(|model, input| {
        let first = convolution(model, input);
        let beside = model.unit("Sigmoid", &[&first], &[], (CODES, &SHAPE));
        let middle = resized(model, &first, "cubic");
        let last = convolution(model, &middle);
        model.code_output(&beside);
        model.code_output(&last);
    });
    assert_eq!(taken(&graph, "Sigmoid"), [false]);
}

#[test]
fn a_convolution_elsewhere_decides_whether_transpositions_move() {
    let beside = |kind: &str, with_sum: bool| {
        graph(|model, input| {
            let first = moved(model, input);
            let middle = if with_sum { summed(model, &first, kind) } else { first };
            let last = moved(model, &middle);
            model.code_output(&last);
            let other = model.code_input(&SHAPE, CODES);
            let other = convolution(model, &other);
            model.code_output(&other);
        })
    };
    assert_eq!(taken(&beside("ReduceMean", true), "Conv"), [false]);
    assert_eq!(taken(&beside("ReduceL2", true), "Conv"), [false]);
    assert_eq!(taken(&beside("ReduceMax", true), "Conv"), [true], "maxima have no order");
    assert_eq!(taken(&beside("ReduceMean", false), "Conv"), [true]);
}

#[test]
fn a_convolution_elsewhere_is_taken_where_one_beside_the_sum_stays() {
    let graph = graph(|model, input| {
        let first = convolution(model, input);
        let middle = summed(model, &first, "ReduceMean");
        let last = convolution(model, &middle);
        let flattened = model.unit("Flatten", &[&last], &[], (CODES, &[1, 128]));
        model.code_output(&flattened);
        let other = model.code_input(&SHAPE, CODES);
        let other = convolution(model, &other);
        model.code_output(&other);
    });
    assert_eq!(taken(&graph, "Conv"), [false, false, true]);
}

#[test]
fn a_sum_without_transpositions_on_both_sides_changes_nothing() {
    let graph = graph(|model, input| {
        let first = convolution(model, input);
        let last = summed(model, &first, "ReduceMean");
        model.code_output(&last);
    });
    assert_eq!(taken(&graph, "Conv"), [true]);
}

#[test]
fn a_cubic_resize_between_transpositions_needs_no_convolution_to_change() {
    let graph = graph(|model, input| {
        let first = moved(model, input);
        let middle = resized(model, &first, "cubic");
        let last = moved(model, &middle);
        model.code_output(&last);
    });
    let plan = plan(&graph);
    assert_eq!(plan.groups.len(), 0, "{}", plan.summary(&graph));
    assert!(plan.verdicts[1].reason.contains("Resize"), "{}", plan.verdicts[1].reason);
}
