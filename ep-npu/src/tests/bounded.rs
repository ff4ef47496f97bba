//! `exactness=bounded`: what it takes beside what is exact, what it says of it, and that it compiles.

use crate::exactness::Exactness;
use crate::graph::{ElementType, Graph, TensorType};
use crate::partition::{self, Plan};
use crate::quantize::Codes;
use crate::testing::{Flow, Model, Weighted, executable, expected, inputs, run};
use npu_uapi::limits::Limits;

const CODES: Codes = Codes { scale: 0.05, zero_point: 100 };
const SHAPE: [usize; 4] = [1, 8, 4, 4];

fn conv(model: &mut Model, input: &Flow) -> Flow {
    let weighted =
        Weighted { shape: vec![8, 8, 1, 1], axis: 0, per_channel: true, with_bias: true };
    model.weighted("Conv", input, &weighted, &[], (CODES, &SHAPE))
}

/// A convolution of int8 before Softsign, which stays on the CPU.
fn beside_softsign() -> Graph {
    let mut model = Model::signed(7);
    let input = model.float_input(&SHAPE, CODES);
    let first = conv(&mut model, &input);
    let softsign = model.unit("Softsign", &[&first], &[], (CODES, &SHAPE));
    let ty = TensorType { element: ElementType::I8, shape: super::refused::shape() };
    model.set_type(softsign.value, ty);
    model.float_output(&softsign);
    model.finish()
}

fn plan(graph: &mut Graph, exactness: Exactness) -> Plan {
    graph.set_exactness(exactness);
    partition::plan(graph, &Limits::REFERENCE)
}

/// Whether the only `op` is taken, and its bound.
fn verdict(graph: &Graph, plan: &Plan, op: &str) -> (bool, u8) {
    let found = plan.verdicts.iter().find(|verdict| graph.node(verdict.node).op == op).unwrap();
    (found.taken.is_some(), found.bound_codes)
}

#[test]
fn a_cut_beside_a_convolution_is_borne_within_a_code() {
    let mut graph = beside_softsign();
    let exact = plan(&mut graph, Exactness::Require);
    assert_eq!(verdict(&graph, &exact, "Conv"), (false, 0));
    assert!(exact.is_exact());
    let bounded = plan(&mut graph, Exactness::Bounded);
    let summary = bounded.summary(&graph);
    assert_eq!(verdict(&graph, &bounded, "Conv"), (true, 1), "{summary}");
    assert!(summary.contains("within 1 code of the CPU's") && !bounded.is_exact(), "{summary}");
}

#[test]
fn a_cut_beside_an_operator_without_a_bound_is_not_made() {
    let mut model = Model::signed(7);
    let input = model.float_input(&SHAPE, CODES);
    let first = conv(&mut model, &input);
    let huge = Weighted { shape: vec![8, 8, 1, 1], axis: 0, per_channel: true, with_bias: true };
    let pads = [("pads", super::exact::ints(&[0, 0, 70_000, 70_000]))];
    let last = model.weighted("Conv", &first, &huge, &pads, (CODES, &[1, 8, 70_004, 70_004]));
    model.float_output(&last);
    let mut graph = model.finish();
    let bounded = plan(&mut graph, Exactness::Bounded);
    let convs = bounded.verdicts.iter().filter(|verdict| graph.node(verdict.node).op == "Conv");
    let convs: Vec<_> =
        convs.map(|verdict| (verdict.taken.is_some(), verdict.bound_codes)).collect();
    // Of what cannot be placed there is no bound, so the first stays with it.
    assert_eq!(convs, [(false, 0), (false, 0)], "{}", bounded.summary(&graph));
}

#[test]
fn what_is_taken_within_a_code_compiles_and_equals_its_reference() {
    // 32 filters over 49 pixels of 300 channels: threads divide the columns, and the order with them.
    let shape = [1, 300, 7, 7];
    let mut model = Model::signed(7);
    let input = model.code_input(&shape, CODES);
    let weighted =
        Weighted { shape: vec![32, 300, 1, 1], axis: 0, per_channel: true, with_bias: true };
    let codes = Codes { scale: 0.9, zero_point: 120 };
    let output = model.weighted("Conv", &input, &weighted, &[], (codes, &[1, 32, 7, 7]));
    model.code_output(&output);
    let mut graph = model.finish();
    let bounded = plan(&mut graph, Exactness::Bounded);
    let found = verdict(&graph, &bounded, "Conv");
    assert!(found.0, "{}", bounded.summary(&graph));
    let given = inputs(&graph, 1, 5);
    let want = expected(&graph, &given);
    assert_eq!(run(&executable(graph), &given, &want), want);
}

#[test]
fn a_bundle_carries_it() {
    let mut graph = beside_softsign();
    let bounded = plan(&mut graph, Exactness::Bounded);
    let part = crate::session::parts(&graph, &bounded, 1).unwrap().remove(0).0;
    let blob = executable(part).bundle().unwrap().to_bytes();
    let bundle = crate::bundle::Bundle::from_bytes(&blob.into()).unwrap();
    assert_eq!(bundle.part.exactness(), Exactness::Bounded);
}
