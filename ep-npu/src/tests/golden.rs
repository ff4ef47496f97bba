//! Each stage's text for small models, so that a change of any stage shows in review.

use crate::graph::{Attribute, Graph};
use crate::quantize::{self, Codes};
use crate::testing::{Model, Weighted};
use crate::{dump, partition, program};
use npu_uapi::limits::Limits;

/// Every stage of `graph`, for a batch of 2.
fn stages(graph: &Graph, input: &[usize]) -> String {
    let units = program::units(graph).unwrap();
    let plan = partition::plan(graph, &Limits::REFERENCE);
    let compiled = program::compile(graph, &units, &[input.to_vec()], &Limits::REFERENCE).unwrap();
    [
        ("graph", dump::graph(graph)),
        ("units", dump::units(graph, &units)),
        ("plan", plan.summary(graph) + "\n"),
        ("ops", dump::ops(graph, &compiled.ops)),
        ("memory", dump::memory(&compiled)),
        ("image", dump::image(&compiled.emitted)),
    ]
    .map(|(stage, text)| format!("== {stage}\n{text}"))
    .join("\n")
}

const RELU: Codes = Codes { scale: 0.02, zero_point: 0 };
const SIGNED: Codes = Codes { scale: 0.03, zero_point: 120 };

fn weighted(shape: &[usize]) -> Weighted {
    Weighted { shape: shape.to_vec(), axis: 0, per_channel: true, with_bias: true }
}

#[test]
fn a_convolution_a_pool_and_a_relu_that_changes_nothing() {
    let mut model = Model::new(1);
    let input = model.float_input(&[1, 3, 8, 8], SIGNED);
    let pads = [("pads", Attribute::Ints(vec![1; 4]))];
    let conv =
        model.weighted("Conv", &input, &weighted(&[8, 3, 3, 3]), &pads, (RELU, &[1, 8, 8, 8]));
    let window =
        [("kernel_shape", Attribute::Ints(vec![2, 2])), ("strides", Attribute::Ints(vec![2, 2]))];
    let pool = model.unit("MaxPool", &[&conv], &window, (RELU, &[1, 8, 4, 4]));
    let mean = model.rectified("GlobalAveragePool", &[&pool], (0.01, &[1, 8, 1, 1]));
    model.float_output(&mean);
    let graph = model.finish();
    insta::assert_snapshot!(stages(&graph, &[2, 3, 8, 8]));
}

#[test]
fn a_residual_addition_joins_the_convolution_before_it() {
    let mut model = Model::new(2);
    let input = model.code_input(&[1, 16, 4, 4], SIGNED);
    let shape = [1, 16, 4, 4];
    let conv = model.weighted("Conv", &input, &weighted(&[16, 16, 1, 1]), &[], (SIGNED, &shape));
    let sum = model.unit("Add", &[&input, &conv], &[], (RELU, &shape));
    let clipped = model.unit("LeakyRelu", &[&sum], &[], (SIGNED, &shape));
    model.code_output(&clipped);
    let graph = model.finish();
    insta::assert_snapshot!(stages(&graph, &[2, 16, 4, 4]));
}

#[test]
fn a_gate_over_the_tensor_that_it_multiplies_joins_the_convolution_before_it() {
    let mut model = Model::new(6);
    let input = model.code_input(&[1, 16, 4, 4], SIGNED);
    let shape = [1, 16, 4, 4];
    let conv = model.weighted("Conv", &input, &weighted(&[16, 16, 1, 1]), &[], (SIGNED, &shape));
    let gate = model.unit("Sigmoid", &[&conv], &[], (RELU, &shape));
    let product = model.unit("Mul", &[&conv, &gate], &[], (SIGNED, &shape));
    model.code_output(&product);
    let graph = model.finish();
    insta::assert_snapshot!(stages(&graph, &[2, 16, 4, 4]));
}

#[test]
fn a_product_with_a_flattened_image_is_a_convolution() {
    let mut model = Model::new(3);
    let input = model.code_input(&[1, 4, 2, 3], SIGNED);
    // An image of the part's own: what flows in is fetched flat.
    let image = model.unit("Relu", &[&input], &[], (SIGNED, &[1, 4, 2, 3]));
    let flat = model.unit("Flatten", &[&image], &[], (SIGNED, &[1, 24]));
    let transposed = [("transB", Attribute::Int(1))];
    let gemm = model.weighted("Gemm", &flat, &weighted(&[10, 24]), &transposed, (RELU, &[1, 10]));
    let again = model.weighted("Gemm", &gemm, &weighted(&[5, 10]), &transposed, (SIGNED, &[1, 5]));
    model.float_output(&again);
    let graph = model.finish();
    insta::assert_snapshot!(stages(&graph, &[2, 4, 2, 3]));
}

#[test]
fn a_program_file_holds_what_was_compiled() {
    use npu_uapi::container::Container;
    let mut model = Model::new(5);
    let input = model.code_input(&[1, 4, 2, 2], SIGNED);
    let shape = [1, 8, 2, 2];
    let conv = model.weighted("Conv", &input, &weighted(&[8, 4, 1, 1]), &[], (RELU, &shape));
    model.float_output(&conv);
    let graph = model.finish();
    let units = program::units(&graph).unwrap();
    let file = |batch| {
        let shapes = [vec![batch, 4, 2, 2]];
        let compiled = program::compile(&graph, &units, &shapes, &Limits::REFERENCE).unwrap();
        compiled.container(&graph, &Limits::REFERENCE)
    };
    let container = file(3);
    assert_eq!(Container::from_bytes(&container.to_bytes()).unwrap(), container);
    assert_eq!(container.io[0].shape, [3, 4, 2, 2]);
    assert!(container.name(1).unwrap().starts_with("conv"));
    assert_eq!(file(2).constants, container.constants);
    assert_ne!(file(2).source, container.source);
}

#[test]
fn verdicts_name_what_stays_behind() {
    let mut model = Model::new(4);
    let input = model.float_input(&[1, 4, 4, 4], SIGNED);
    let shape = [1, 4, 4, 4];
    let conv = model.weighted("Conv", &input, &weighted(&[4, 4, 1, 1]), &[], (SIGNED, &shape));
    let softsign = model.unit("Softsign", &[&conv], &[], (SIGNED, &shape));
    let conv = model.weighted("Conv", &softsign, &weighted(&[4, 4, 1, 1]), &[], (SIGNED, &shape));
    model.float_output(&conv);
    let graph = model.finish();
    let plan = partition::plan(&graph, &Limits::REFERENCE);
    let units = dump::units(&graph, &quantize::units(&graph));
    insta::assert_snapshot!(units + "\n" + &dump::plan(&graph, &plan));
}
