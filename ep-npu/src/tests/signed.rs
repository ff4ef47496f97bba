//! int8 activations: what becomes uint8 in the CPU provider is taken as such, and only where nothing that
//! stays on the CPU changes by it.

use crate::graph::{Graph, TensorType};
use crate::partition::{self, Plan};
use crate::quantize::{Codes, Kind};
use crate::refusal::rule;
use crate::testing::{Flow, Model, Weighted, executable, expected, inputs, run};
use npu_uapi::limits::Limits;
use proptest::prelude::*;

const CODES: Codes = Codes { scale: 0.05, zero_point: 100 };
const SHAPE: [usize; 4] = [1, 8, 4, 4];

fn plan(graph: &Graph) -> Plan {
    partition::plan(graph, &Limits::REFERENCE)
}

fn conv(model: &mut Model, input: &Flow) -> Flow {
    let weighted =
        Weighted { shape: vec![8, 8, 1, 1], axis: 0, per_channel: true, with_bias: true };
    model.weighted("Conv", input, &weighted, &[], (CODES, &SHAPE))
}

/// Operators of which one is taken or not, in order.
fn taken(graph: &Graph, op: &str) -> Vec<bool> {
    let plan = plan(graph);
    let verdicts = plan.verdicts.iter().filter(|verdict| graph.node(verdict.node).op == op);
    verdicts.map(|verdict| verdict.taken.is_some()).collect()
}

#[track_caller]
fn assert_exact(graph: Graph) {
    let given = inputs(&graph, 2, 5);
    let want = expected(&graph, &given);
    assert_eq!(run(&executable(graph), &given, &want), want);
}

fn is_whole(graph: &Graph) -> bool {
    let plan = plan(graph);
    plan.groups.len() == 1 && plan.verdicts.iter().all(|verdict| verdict.taken.is_some())
}

#[test]
fn many_random_models_of_int8_are_taken_whole() {
    let whole =
        (0..60).filter(|&seed| is_whole(&super::exact::grown(Model::signed(seed), seed, 3)));
    assert!(whole.count() >= 20);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn compiled_models_of_int8_equal_the_reference(seed: u64, steps in 1_usize..7, batch in 1_usize..4) {
        let graph = super::exact::grown(Model::signed(seed), seed, steps);
        if is_whole(&graph) {
            let inputs = inputs(&graph, batch, seed);
            let want = expected(&graph, &inputs);
            prop_assert_eq!(run(&executable(graph), &inputs, &want), want);
        }
    }
}

#[test]
fn a_chain_is_uint8_between_its_ends() {
    let mut model = Model::signed(7);
    let input = model.float_input(&SHAPE, CODES);
    let first = conv(&mut model, &input);
    let second = conv(&mut model, &first);
    model.float_output(&second);
    let graph = model.finish();
    assert_eq!(taken(&graph, "Conv"), [true, true]);
    assert_exact(graph);
}

#[test]
fn codes_cross_the_border_as_int8() {
    let mut model = Model::signed(7);
    let input = model.code_input(&SHAPE, CODES);
    let window = [("kernel_shape", super::exact::ints(&[2, 2]))];
    let pool = model.unit("MaxPool", &[&input], &window, (CODES, &[1, 8, 3, 3]));
    model.code_output(&pool);
    let graph = model.finish();
    let given = inputs(&graph, 1, 3);
    let crate::reference::Value::Codes(codes) = &given[0] else { panic!("codes go in") };
    let largest = codes.iter().map(|code| code.cast_signed()).max().unwrap();
    let want = expected(&graph, &given);
    let found = run(&executable(graph), &given, &want);
    let crate::reference::Value::Codes(found) = &found[0] else { panic!("codes come out") };
    assert_eq!(found.iter().map(|code| code.cast_signed()).max(), Some(largest));
}

#[test]
fn a_cut_that_would_turn_an_operator_on_the_cpu_to_float_is_not_made() {
    // The Add on the CPU would read int8 where the first convolution's uint8 was before.
    let build = |model: &mut Model, op: &str| {
        let input = model.float_input(&SHAPE, CODES);
        let first = conv(model, &input);
        let second = conv(model, &first);
        let softsign = model.unit("Softsign", &[&second], &[], (CODES, &SHAPE));
        let ty =
            TensorType { element: crate::graph::ElementType::I8, shape: super::refused::shape() };
        model.set_type(softsign.value, ty);
        let third = conv(model, &softsign);
        let last = model.unit(op, &[&third], &[], (CODES, &SHAPE));
        model.float_output(&last);
    };
    let mut model = Model::signed(7);
    build(&mut model, "Relu");
    let graph = model.finish();
    let plan = plan(&graph);
    // Each convolution beside Softsign would stay int8 on one side, and so run in float.
    assert_eq!(taken(&graph, "Conv"), [false, false, false], "{}", plan.summary(&graph));
    let refusal =
        plan.verdicts.iter().find(|verdict| verdict.rule == rule::S8_ACTIVATIONS).unwrap();
    assert!(refusal.reason.contains("its ends are not both taken"), "{}", refusal.reason);
    assert!(refusal.reason.contains("Conv `conv"), "{}", refusal.reason);
    let mut model = Model::new(7);
    build(&mut model, "Relu");
    assert_eq!(taken(&model.finish(), "Conv"), [true; 3]);
}

#[test]
fn a_mean_from_int8_to_uint8_is_of_floats_in_the_providers_order() {
    for (h, w) in [(4, 4), (5, 7), (1, 3), (1, 1)] {
        let shape = [1, 24, h, w];
        let mut model = Model::signed(7);
        let input = model.float_input(&shape, CODES);
        // The input has two readers, so it stays int8; the mean has one, so it does not.
        let codes = Codes { scale: 0.013, zero_point: 91 };
        let mean = model.unit("GlobalAveragePool", &[&input], &[], (codes, &[1, 24, 1, 1]));
        let mean = model.unit("Relu", &[&mean], &[], (codes, &[1, 24, 1, 1]));
        let other = model.unit("Relu", &[&input], &[], (CODES, &shape));
        model.float_output(&mean);
        model.float_output(&other);
        let graph = model.finish();
        assert_eq!(taken(&graph, "GlobalAveragePool"), [true]);
        let units = crate::program::units(&graph).unwrap();
        assert!(units.units.iter().any(|unit| unit.kind.name() == "global-mean"));
        assert_exact(graph);
    }
}

/// `op` of `input`, and a second reader that keeps it int8.
fn beside_another(input: &[usize], op: impl Fn(&mut Model, &Flow) -> Flow) -> Graph {
    let mut model = Model::signed(7);
    let flow = model.float_input(input, CODES);
    let result = op(&mut model, &flow);
    let other = model.unit("Relu", &[&flow], &[], (CODES, input));
    model.float_output(&result);
    model.float_output(&other);
    model.finish()
}

#[test]
fn rows_of_any_rank_are_multiplied_in_float() {
    for shape in [&[1, 5, 32][..], &[3, 4, 48], &[1, 2, 3, 200], &[1, 1, 1, 24], &[7, 9]] {
        let (&inputs, rows) = shape.split_last().unwrap();
        let graph = beside_another(shape, |model, flow| {
            let per_channel = inputs % 16 == 0;
            let weighted =
                Weighted { shape: vec![inputs, 21], axis: 1, per_channel, with_bias: false };
            let codes = Codes { scale: 0.7, zero_point: 120 };
            model.weighted("MatMul", flow, &weighted, &[], (codes, &[rows, &[21]].concat()))
        });
        assert_eq!(taken(&graph, "MatMul"), [true], "{shape:?}");
        let units = crate::program::units(&graph).unwrap();
        let is_float = |kind: &Kind| match kind {
            Kind::Product(products) => products.arithmetic.floats().is_some(),
            _ => false,
        };
        assert!(units.units.iter().any(|unit| is_float(&unit.kind)), "{shape:?}");
        assert_exact(graph);
    }
}

/// int8 -> DQ -> Relu -> Q -> DQ -> MatMul, where the Relu has nothing to do if `relu` is 0.
fn product_behind_a_relu(relu: u8, is_fed: bool) -> Graph {
    let [codes, rectified] = [relu, 0].map(|zero_point| Codes { scale: 0.0045, zero_point });
    let mut model = Model::signed(7);
    let input = match is_fed {
        true => model.code_input(&[1, 3, 40], codes),
        false => model.float_input(&[1, 3, 40], codes),
    };
    let flow = model.unit("Relu", &[&input], &[], (rectified, &[1, 3, 40]));
    let weighted = Weighted { shape: vec![40, 9], axis: 1, per_channel: false, with_bias: false };
    let result = Codes { scale: 0.02, zero_point: 165 };
    let product = model.weighted("MatMul", &flow, &weighted, &[], (result, &[1, 3, 9]));
    model.float_output(&product);
    model.finish()
}

#[test]
fn a_tensor_that_is_another_to_the_cpu_has_the_others_ends() {
    let is_float = |graph: &Graph| {
        crate::quantize::units(graph).units.iter().any(|unit| match &unit.kind {
            Kind::Product(products) => products.arithmetic.floats().is_some(),
            _ => false,
        })
    };
    // Without the Relu and the pair around it the product reads the model's input, which stays int8.
    assert!(is_float(&product_behind_a_relu(0, true)));
    assert!(!is_float(&product_behind_a_relu(0, false)), "its QuantizeLinear becomes uint8");
    assert!(!is_float(&product_behind_a_relu(3, true)), "the Relu has something to do");
}

#[test]
fn a_softmax_of_int8_is_taken_where_no_share_is_beyond_its_codes() {
    let of = |scale, zero_point| {
        let codes = Codes { scale, zero_point };
        let mut model = Model::signed(7);
        let flow = model.code_input(&[3, 40], CODES);
        let shares = model.unit("Softmax", &[&flow], &[], (codes, &[3, 40]));
        model.code_output(&shares);
        model.finish()
    };
    assert_eq!(taken(&of(1.0 / 255.0, 0), "Softmax"), [true]);
    assert_exact(of(1.0 / 255.0, 0));
    assert_exact(of(1.0 / 100.0, 155));
    let wrapping = of(1.0 / 256.0, 0);
    assert_eq!(taken(&wrapping, "Softmax"), [false]);
    let plan = plan(&wrapping);
    assert!(plan.verdicts.iter().any(|verdict| verdict.reason.contains("the CPU wraps")));
}
