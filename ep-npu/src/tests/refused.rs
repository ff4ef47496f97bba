//! What is not taken, and that each refusal says why.

use crate::graph::{Attribute, Dim, ElementType, Graph, TensorType};
use crate::partition::{self, Plan};
use crate::quantize::Codes;
use crate::refusal::rule;
use crate::shape;
use crate::testing::{Flow, Model, Weighted, executable, inputs};
use npu_uapi::limits::Limits;

const CODES: Codes = Codes { scale: 0.05, zero_point: 100 };
const SHAPE: [usize; 4] = [1, 8, 4, 4];

fn plan(graph: &Graph) -> Plan {
    partition::plan(graph, &Limits::REFERENCE)
}

fn pointwise() -> Weighted {
    Weighted { shape: vec![8, 8, 1, 1], axis: 0, per_channel: true, with_bias: true }
}

/// The verdict on the only `op` of a model.
#[track_caller]
fn assert_refused(graph: &Graph, op: &str, rule: &str, reason: &str) {
    let plan = plan(graph);
    let (id, _) = graph.nodes().find(|(_, node)| node.op == op).unwrap();
    let verdict = &plan.verdicts[id.0 as usize];
    assert_eq!((verdict.taken, verdict.rule), (None, rule), "{}", verdict.reason);
    assert!(verdict.reason.contains(reason), "{}", verdict.reason);
    assert!(plan.summary(graph).contains(op), "{}", plan.summary(graph));
}

/// A model of one convolution whose output has these codes, made by `build`.
fn model(build: impl FnOnce(&mut Model, &Flow) -> Flow) -> Graph {
    let mut model = Model::new(7);
    let input = model.code_input(&SHAPE, CODES);
    let output = build(&mut model, &input);
    model.code_output(&output);
    model.finish()
}

#[test]
fn scales_that_are_no_scales() {
    for scale in [0.0, -0.5, f32::NAN, f32::INFINITY] {
        let graph = model(|model, input| {
            let codes = Codes { scale, zero_point: 0 };
            model.unit("MaxPool", &[input], &window(), (codes, &[1, 8, 3, 3]))
        });
        assert_refused(&graph, "MaxPool", rule::SCALE, &format!("scale {scale}"));
    }
}

fn window() -> Vec<(&'static str, Attribute)> {
    vec![("kernel_shape", Attribute::Ints(vec![2, 2]))]
}

#[test]
fn a_node_without_inputs() {
    let graph = model(|model, _| model.unit("Concat", &[], &axis_one(), (CODES, &SHAPE)));
    assert_refused(&graph, "Concat", rule::SHAPE, "has no input");
}

fn axis_one() -> Vec<(&'static str, Attribute)> {
    vec![("axis", Attribute::Int(1))]
}

#[test]
fn an_operator_without_an_exact_form() {
    let graph = model(|model, input| model.unit("LogSoftmax", &[input], &[], (CODES, &SHAPE)));
    assert_refused(&graph, "LogSoftmax", rule::OPERATOR, "computes LogSoftmax in floats");
}

#[test]
fn tensors_of_which_neither_can_be_repeated() {
    for op in ["Add", "Mul"] {
        let graph = model(|model, input| {
            let small = model.unit("MaxPool", &[input], &window(), (CODES, &[1, 8, 3, 3]));
            model.unit(op, &[input, &small], &[], (CODES, &SHAPE))
        });
        assert_refused(&graph, op, rule::SHAPE, "[2, 8, 4, 4] and [2, 8, 3, 3]");
    }
}

#[test]
fn an_addition_that_repeats_its_first_operand_where_the_order_counts() {
    let graph = model(|model, input| {
        let codes = Codes { scale: 0.1, zero_point: 10 };
        let large = model.unit("Relu", &[input], &[], (codes, &SHAPE));
        let gate = Codes { scale: 0.07, zero_point: 77 };
        let small = model.unit("GlobalAveragePool", &[input], &[], (gate, &[1, 8, 1, 1]));
        model.unit("Add", &[&small, &large], &[], (codes, &SHAPE))
    });
    assert_refused(&graph, "Add", rule::SCALE, "exchange the operands");
}

#[test]
fn an_addition_of_int8_that_repeats_its_first_operand_where_the_order_counts() {
    let of = |is_first: bool| {
        let mut model = Model::signed(7);
        let small = model.code_input(&[1, 1], Codes { scale: 4.0, zero_point: 0 });
        let large = model.code_input(&[1, 45], Codes { scale: 0.001_457_388_3, zero_point: 0 });
        let terms = if is_first { [&small, &large] } else { [&large, &small] };
        let codes = Codes { scale: 0.001_953_125, zero_point: 0 };
        let sum = model.unit("Add", &terms, &[], (codes, &[1, 45]));
        model.code_output(&sum);
        model.finish()
    };
    assert_refused(&of(true), "Add", rule::SCALE, "exchange the operands");
    let exchanged = plan(&of(false));
    assert!(exchanged.verdicts.iter().all(|verdict| verdict.taken.is_some()));
}

#[test]
fn a_batch_normalization_of_several_channels_by_one_number() {
    let of = |channels: usize| {
        let shape = [1, channels, 4, 4];
        let mut model = Model::new(7);
        let input = model.code_input(&shape, CODES);
        let mut read = vec![model.dequantize(&input)];
        let dims = shape.iter().map(|&len| Dim::Known(len)).collect();
        model.set_type(read[0], TensorType { element: ElementType::F32, shape: Some(dims) });
        for _ in 0..4 {
            let bytes = 1.5_f32.to_le_bytes().to_vec();
            read.push(model.constant(ElementType::F32, &[1], bytes));
        }
        let value = model.node("BatchNormalization", &read, &[]);
        let value = model.quantize(value, CODES);
        model.code_output(&Flow { value, codes: CODES, shape: shape.to_vec() });
        model.finish()
    };
    assert_refused(&of(3), "BatchNormalization", rule::SHAPE, "not declared to be 1");
    assert!(plan(&of(1)).verdicts.iter().all(|verdict| verdict.taken.is_some()));
}

#[test]
fn a_constant_for_each_image() {
    let graph = model(|model, input| {
        let slopes = model.constant(ElementType::F32, &[2, 8, 1, 1], vec![0; 64]);
        let read = model.dequantize(input);
        let value = model.node("PRelu", &[read, slopes], &[]);
        Flow { value: model.quantize(value, CODES), codes: CODES, shape: SHAPE.to_vec() }
    });
    assert_refused(&graph, "PRelu", rule::SHAPE, "the same for every image");
}

#[test]
fn a_function_of_three_tensors_without_a_common_source() {
    let graph = model(|model, input| {
        let mean = model.unit("GlobalAveragePool", &[input], &[], (CODES, &[1, 8, 1, 1]));
        let most = model.unit("GlobalMaxPool", &[input], &[], (CODES, &[1, 8, 1, 1]));
        model.unit("Max", &[input, &mean, &most], &[], (CODES, &SHAPE))
    });
    assert_refused(&graph, "Max", rule::OPERATOR, "more than two tensors");
}

#[test]
fn a_function_that_the_cpu_might_merge_into_another() {
    let graph = model(|model, input| {
        let read = [0, 1].map(|_| model.dequantize(input));
        let gate = model.node("Sigmoid", &read[..1], &[]);
        let value = model.node("Mul", &[read[1], gate], &[]);
        Flow { value: model.quantize(value, CODES), codes: CODES, shape: SHAPE.to_vec() }
    });
    assert_refused(&graph, "Mul", rule::UNIT, "may merge");
}

#[test]
fn inputs_whose_batches_may_differ() {
    let mut model = Model::new(7);
    let first = model.code_input(&SHAPE, CODES);
    let second = model.code_input(&SHAPE, CODES);
    let open = |name: &str| {
        let known = SHAPE[1..].iter().map(|&len| Dim::Known(len));
        let shape = std::iter::once(Dim::Symbol(name.to_owned())).chain(known).collect();
        TensorType { element: ElementType::U8, shape: Some(shape) }
    };
    model.set_type(first.value, open("n"));
    model.set_type(second.value, open("m"));
    let sum = model.unit("Add", &[&first, &second], &[], (CODES, &SHAPE));
    model.code_output(&sum);
    assert_refused(&model.finish(), "Add", rule::SHAPE, "[2, 8, 4, 4] and [3, 8, 4, 4]");
}

#[test]
fn a_model_around_a_pool_whose_shape_is_misjudged() {
    let with_dilations = |dilation: i64| {
        model(|model, input| {
            let mut same = window();
            same.push(("auto_pad", Attribute::String("SAME_UPPER".to_owned())));
            same.push(("dilations", Attribute::Ints(vec![dilation; 2])));
            let read = model.dequantize(input);
            let pool = model.node("MaxPool", &[read], &same);
            let pool =
                Flow { value: model.quantize(pool, CODES), codes: CODES, shape: SHAPE.to_vec() };
            for (value, element) in [(read, ElementType::F32), (pool.value, ElementType::U8)] {
                let shape = SHAPE.iter().map(|&len| Dim::Known(len)).collect();
                model.set_type(value, TensorType { element, shape: Some(shape) });
            }
            model.unit("GlobalAveragePool", &[&pool], &[], (CODES, &[1, 8, 1, 1]))
        })
    };
    let graph = with_dilations(2);
    assert_refused(&graph, "MaxPool", rule::ATTRIBUTE, "explicit pads");
    assert_refused(&graph, "GlobalAveragePool", rule::SHAPE, "infers another shape");
    assert!(plan(&with_dilations(1)).verdicts.iter().all(|verdict| verdict.taken.is_some()));
}

#[test]
fn a_divided_model_with_a_pool_whose_shape_is_misjudged() {
    let followed_by = |op: &str, ceil: i64| {
        model(|model, input| {
            let pair = |name, lengths: [i64; 2]| (name, Attribute::Ints(lengths.to_vec()));
            let ceil = ("ceil_mode", Attribute::Int(ceil));
            // A second window would begin in row 4, of 4.
            let apart = [pair("kernel_shape", [2, 2]), pair("strides", [4, 4]), ceil];
            let read = model.dequantize(input);
            let pool = model.node("MaxPool", &[read], &apart);
            let shape = vec![1, 8, 1, 1];
            let pool = Flow { value: model.quantize(pool, CODES), codes: CODES, shape };
            for (value, element) in [(read, ElementType::F32), (pool.value, ElementType::U8)] {
                let shape = if value == read { &SHAPE } else { &[1, 8, 1, 1] };
                let shape = shape.iter().map(|&len| Dim::Known(len)).collect();
                model.set_type(value, TensorType { element, shape: Some(shape) });
            }
            model.unit(op, &[&pool], &[], (CODES, &[1, 8, 1, 1]))
        })
    };
    assert_refused(&followed_by("Det", 1), "MaxPool", rule::SHAPE, "infers another shape");
    let is_taken = |graph: &Graph| {
        let pool = graph.nodes().position(|(_, node)| node.is("MaxPool")).unwrap();
        plan(graph).verdicts[pool].taken.is_some()
    };
    assert!(is_taken(&followed_by("GlobalMaxPool", 1)), "the model is not divided");
    assert!(is_taken(&followed_by("GlobalMaxPool", 0)));
}

#[test]
fn a_product_of_int8_that_some_batch_would_have_refused() {
    // Wider than a block, narrower, and of one column.
    for (inputs, outputs) in [(383, 57), (40, 57), (700, 20), (512, 2)] {
        let mut model = Model::signed(7);
        let flow = model.code_input(&[1, inputs], CODES);
        let shape = vec![inputs, outputs];
        let weighted = Weighted { shape, axis: 1, per_channel: false, with_bias: false };
        let codes = Codes { scale: 0.7, zero_point: 120 };
        let result = model.weighted("MatMul", &flow, &weighted, &[], (codes, &[1, outputs]));
        model.code_output(&result);
        let graph = model.finish();
        let units = crate::quantize::units(&graph);
        let unit = units.units.iter().find(|unit| graph.node(unit.target).op == "MatMul").unwrap();
        let works = |batch| shape::output(&graph, unit, &[&[batch, inputs]]).is_ok();
        let plan = plan(&graph);
        let verdict = &plan.verdicts[unit.target.0 as usize];
        assert_eq!(verdict.taken.is_some(), (1..400).all(works), "{inputs} by {outputs}");
        if works(1) && works(2) && verdict.taken.is_none() {
            assert_eq!(verdict.rule, rule::FLOAT_ORDER);
            assert!(verdict.reason.contains("give the batch a length"), "{}", verdict.reason);
        }
    }
}

#[test]
fn a_relu_that_cuts_codes_off() {
    let graph = model(|model, input| {
        let read = model.dequantize(input);
        let pool = model.node("GlobalAveragePool", &[read], &[]);
        let relu = model.node("Relu", &[pool], &[]);
        let value = model.quantize(relu, CODES);
        Flow { value, codes: CODES, shape: vec![1, 8, 1, 1] }
    });
    assert_refused(&graph, "GlobalAveragePool", rule::ACTIVATION_RANGE, "zero point 100");
}

#[test]
fn a_sum_that_leaves_32_bits() {
    let graph = model(|model, input| {
        let wide =
            Weighted { shape: vec![1, 80_000], axis: 0, per_channel: false, with_bias: false };
        let reshaped = model.unit("Flatten", &[input], &[], (CODES, &[1, 128]));
        model.weighted("Gemm", &reshaped, &wide, &[("transB", Attribute::Int(1))], (CODES, &[1, 1]))
    });
    // Random weights of 80,000 inputs reach 255 * 64 * 80,000 in sum.
    assert_refused(&graph, "Gemm", rule::SHAPE, "rows of 80000");
    let graph = model(|model, input| {
        let wide =
            Weighted { shape: vec![1, 300_000], axis: 0, per_channel: false, with_bias: false };
        let reshaped = model.unit("Flatten", &[input], &[], (CODES, &[1, 128]));
        model.weighted("Gemm", &reshaped, &wide, &[("transB", Attribute::Int(1))], (CODES, &[1, 1]))
    });
    assert_refused(&graph, "Gemm", rule::ACCUMULATOR, "32 bits");
}

#[test]
fn a_tensor_that_float_readers_see() {
    let graph = model(|model, input| {
        let read = model.dequantize(input);
        let pool = model.node("GlobalAveragePool", &[read], &[]);
        model.output(pool);
        let value = model.quantize(pool, CODES);
        Flow { value, codes: CODES, shape: vec![1, 8, 1, 1] }
    });
    assert_refused(&graph, "GlobalAveragePool", rule::UNIT, "graph output");
}

#[test]
fn conversions_alone_are_not_worth_a_program() {
    let mut model = Model::new(7);
    let input = model.float_input(&SHAPE, CODES);
    let softsign = model.unit("Softsign", &[&input], &[], (CODES, &SHAPE));
    model.float_output(&softsign);
    let graph = model.finish();
    assert_refused(&graph, "Softsign", rule::OPERATOR, "Softsign");
    assert!(plan(&graph).groups.is_empty());
}

#[test]
fn a_cut_is_at_8_bit_tensors_and_leaves_whole_units() {
    let mut model = Model::new(7);
    let input = model.float_input(&SHAPE, CODES);
    let first = model.weighted("Conv", &input, &pointwise(), &[], (CODES, &SHAPE));
    let softsign = model.unit("Softsign", &[&first], &[], (CODES, &SHAPE));
    let second = model.weighted("Conv", &softsign, &pointwise(), &[], (CODES, &SHAPE));
    let around = model.unit("Add", &[&second, &first], &[], (CODES, &SHAPE));
    model.float_output(&around);
    // The part behind the cut reads tensors whose shape the model must tell.
    for edge in [first.value, softsign.value] {
        model.set_type(edge, TensorType { element: ElementType::U8, shape: shape() });
    }
    let graph = model.finish();
    let plan = plan(&graph);
    assert_eq!(plan.groups.len(), 2, "{}", plan.summary(&graph));
    let left: Vec<&str> = plan
        .verdicts
        .iter()
        .filter(|verdict| verdict.taken.is_none())
        .map(|verdict| graph.node(verdict.node).op.as_str())
        .collect();
    assert_eq!(left, ["DequantizeLinear", "Softsign", "QuantizeLinear"]);
}

pub(super) fn shape() -> Option<Vec<Dim>> {
    let known = SHAPE[1..].iter().map(|&len| Dim::Known(len));
    Some(std::iter::once(Dim::Symbol("batch".to_owned())).chain(known).collect())
}

#[test]
fn a_run_names_the_input_that_is_wrong() {
    use crate::run::{OwnedOutputs, RunError, TensorRef};
    let graph =
        model(|model, input| model.weighted("Conv", input, &pointwise(), &[], (CODES, &SHAPE)));
    let given = inputs(&graph, 1, 1);
    assert_eq!(given.len(), 1);
    let executable = executable(graph);
    let mut outputs = OwnedOutputs::default();
    let mut run = |inputs: &[TensorRef<'_>]| {
        executable.run(inputs, &mut outputs, &libnpu::Caller).map(drop).unwrap_err()
    };
    let codes = [0_u8; 8 * 16];
    assert!(matches!(run(&[]), RunError::Inputs { found: 0, want: 1 }));
    for shape in [&[1, 7, 4, 4][..], &[8, 4, 4]] {
        let error = run(&[TensorRef::from_u8(shape, &codes[..shape.iter().product()])]);
        let want = format!("input `input1` has shape {shape:?}, the model takes [batch, 8, 4, 4]");
        assert_eq!(error.to_string(), want);
    }
    assert!(matches!(run(&[TensorRef::from_u8(&SHAPE, &codes[1..])]), RunError::Bytes { .. }));
    let floats = [0.0; 8 * 16];
    assert!(matches!(run(&[TensorRef::from_f32(&SHAPE, &floats)]), RunError::Element { .. }));
    assert!(matches!(run(&[TensorRef::from_u8(&[1, 8, 0, 4], &[])]), RunError::Shape { .. }));
    assert!(matches!(run(&[TensorRef::from_f32(&[0, 8, 4, 4], &[])]), RunError::Element { .. }));
}

#[test]
fn dimensions_that_overflow() {
    for side in [1 << 20, 1 << 40, usize::MAX] {
        let mut model = Model::new(7);
        let input = model.code_input(&[1, 8, side, side], CODES);
        let output = model.unit("MaxPool", &[&input], &window(), (CODES, &[1, 8, side, side]));
        model.code_output(&output);
        let graph = model.finish();
        let (id, _) = graph.nodes().find(|(_, node)| node.op == "MaxPool").unwrap();
        let verdict = &plan(&graph).verdicts[id.0 as usize];
        assert!(verdict.taken.is_none() && !verdict.reason.is_empty(), "{side}: {verdict:?}");
    }
}

#[test]
fn dimensions_beyond_32_bits() {
    for shape in [[1, 1, 1 << 32, 1], [1, 1, 1 << 16, 1 << 16]] {
        let mut model = Model::new(7);
        let input = model.code_input(&shape, CODES);
        let output = model.unit("Sigmoid", &[&input], &[], (CODES, &shape));
        model.code_output(&output);
        assert_refused(&model.finish(), "Sigmoid", rule::SIZE, "too large for the device");
    }
}

#[test]
fn a_long_dimension_beside_one_that_is_padded() {
    let mut model = Model::new(7);
    let input = model.code_input(&[1, 1, (1 << 32) - 2, 1], CODES);
    let x = model.dequantize(&input);
    let pads = [0_i64, 0, 0, 0, 0, 0, 0, 1].iter().flat_map(|pad| pad.to_le_bytes()).collect();
    let pads = model.constant(ElementType::I64, &[8], pads);
    let padded = model.node("Pad", &[x, pads], &[("mode", Attribute::String("edge".into()))]);
    let output = model.quantize(padded, CODES);
    model.code_output(&Flow { value: output, codes: CODES, shape: vec![1, 1, (1 << 32) - 2, 2] });
    assert_refused(&model.finish(), "Pad", rule::SIZE, "too large for the device");
}

#[test]
fn a_slice_that_is_empty_at_some_batches() {
    let of = |start: i64, end: i64, step: i64| {
        let mut model = Model::new(7);
        let input = model.code_input(&[4, 8], CODES);
        let x = model.dequantize(&input);
        let numbers = [start, end, 0, step].map(|number| number.to_le_bytes().to_vec());
        let numbers = numbers.map(|bytes| model.constant(ElementType::I64, &[1], bytes));
        let part = model.node("Slice", &[vec![x], numbers.to_vec()].concat(), &[]);
        let output = model.quantize(part, CODES);
        model.code_output(&Flow { value: output, codes: CODES, shape: vec![4, 8] });
        model.finish()
    };
    // Alone it is not worth a program, but nothing is wrong with it.
    let backwards = plan(&of(-1, i64::MIN, -1));
    assert!(backwards.verdicts.iter().all(|verdict| !verdict.reason.contains("open dimension")));
    assert_refused(&of(-3, 2, 1), "Slice", rule::SHAPE, "of length 5");
    assert_refused(&of(-3000, 2000, 1), "Slice", rule::SHAPE, "of length 8192");
}

#[test]
fn a_maximum_over_an_open_batch() {
    let reduced = |axis| {
        model(|model, input| {
            let axes = [("axes", Attribute::Ints(vec![axis]))];
            model.unit("ReduceMax", &[input], &axes, (CODES, &[1, 8, 4, 4]))
        })
    };
    assert_refused(&reduced(0), "ReduceMax", rule::SHAPE, "of an open batch");
    assert_eq!(plan(&reduced(2)).groups.len(), 1);
}

#[test]
fn a_global_maximum_of_volumes() {
    let graph = {
        let mut model = Model::new(7);
        let input = model.code_input(&[1, 8, 4, 4, 2], CODES);
        let output = model.unit("GlobalMaxPool", &[&input], &[], (CODES, &[1, 8, 1, 1, 1]));
        model.code_output(&output);
        model.finish()
    };
    assert_refused(&graph, "GlobalMaxPool", rule::SHAPE, "four dimensions are taken");
}
