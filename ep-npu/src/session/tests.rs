//! Sessions of the digits model against the reference, by each way of running.

use super::*;
use crate::program;
use crate::reference::Value;
use crate::testing;
use crate::{import, partition};
use ndarray::ArrayD;

const DIGITS: &[u8] = include_bytes!("../../../tests/models/digits.qdq.onnx");
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/digits.qdq.onnx");

fn device() -> Device {
    Device::open("sim").unwrap()
}

fn session() -> Session {
    Session::builder(&device()).load(PATH).unwrap()
}

/// An input of this batch, and what the reference makes of it.
fn sample(batch: usize) -> (ArrayD<f32>, Vec<f32>) {
    let graph = import::bytes(DIGITS).unwrap();
    let inputs = testing::inputs(&graph, batch, 9);
    let expected = testing::expected(&graph, &inputs);
    match (&inputs[0], &expected[0]) {
        (Value::Floats(input), Value::Floats(output)) => {
            (input.clone(), output.iter().copied().collect())
        }
        _ => panic!("the model's ends are floats"),
    }
}

fn tensor(input: &ArrayD<f32>) -> TensorRef<'_> {
    TensorRef::from_f32(input.shape(), input.as_slice().unwrap())
}

#[test]
fn every_way_of_running_gives_what_the_reference_does() {
    let session = session();
    for batch in [1, 3] {
        let (input, expected) = sample(batch);
        let done = session.run(&[tensor(&input)]).unwrap();
        assert_eq!(done.outputs[0].shape(), [batch, 10]);
        assert_eq!(done.outputs[0].as_f32(), Some(&expected[..]));
        assert!(done.report.cycles > 0);
        assert_eq!(done.report.copied_bytes, 0);

        let named = session.run_named(&[("input", tensor(&input))]).unwrap();
        assert_eq!(named.outputs[0].bytes(), done.outputs[0].bytes());

        let (mut output, shape) = (vec![0.0; batch * 10], [batch, 10]);
        let mut outputs = [TensorMut::from_f32(&shape, &mut output)];
        session.run_into(&[tensor(&input)], &mut outputs).unwrap();
        assert_eq!(output, expected);

        let mut bound = session.bind(&[input.shape()]).unwrap();
        let bytes: Vec<u8> = input.iter().flat_map(|float| float.to_le_bytes()).collect();
        bound.input_mut(0).unwrap().copy_from_slice(&bytes);
        let report = bound.run().unwrap();
        assert_eq!(report.copied_bytes, 0);
        assert_eq!(bound.output_shape(0), Some(&shape[..]));
        assert_eq!(bound.output(0), Some(done.outputs[0].bytes()));
    }
}

#[test]
fn a_session_tells_its_ends_and_its_plan() {
    let session = session();
    let [input] = session.inputs() else { panic!("one input") };
    assert_eq!((input.name.as_str(), input.element), ("input", ElementType::F32));
    assert_eq!(shape_text(input.shape.as_ref().unwrap()), "[batch, 1, 28, 28]");
    assert_eq!(session.outputs()[0].name, "output");
    assert_eq!(session.plan().groups.len(), 1);
    let explained = session.explain();
    assert!(explained.nodes.iter().all(|node| node.group == Some(0) && node.change.is_none()));
    assert_eq!(explained.share(), Some(1.0));
    // 28x28x8 of 3x3 taps, 14x14x16 of 8x3x3, 10 of 784.
    assert_eq!(explained.macs, 28 * 28 * 8 * 9 + 14 * 14 * 16 * 72 + 7840);
}

#[test]
fn threads_share_a_session() {
    let session = Session::builder(&device()).threads(1.try_into().unwrap()).load(PATH).unwrap();
    std::thread::scope(|scope| {
        for batch in 1..=4 {
            let session = &session;
            scope.spawn(move || {
                let (input, expected) = sample(batch);
                for _ in 0..5 {
                    let done = session.run(&[tensor(&input)]).unwrap();
                    assert_eq!(done.outputs[0].as_f32(), Some(&expected[..]));
                }
            });
        }
    });
}

#[test]
fn wrong_inputs_and_outputs_are_errors_and_the_session_goes_on() {
    let session = session();
    let (input, expected) = sample(1);
    let message = |result: Result<Outcome, SessionError>| result.unwrap_err().to_string();
    assert!(message(session.run(&[])).contains("0 inputs are given"));
    let flat = TensorRef::from_f32(&[1, 784], input.as_slice().unwrap());
    assert!(message(session.run(&[flat])).contains("[batch, 1, 28, 28]"));
    let codes = vec![0; 784];
    let codes = TensorRef::from_u8(&[1, 1, 28, 28], &codes);
    assert!(message(session.run(&[codes])).contains("is uint8"));
    let short = TensorRef::from_f32(&[1, 1, 28, 28], &input.as_slice().unwrap()[1..]);
    assert!(message(session.run(&[short])).contains("3132 bytes"));
    let none = TensorRef::from_f32(&[0, 1, 28, 28], &[]);
    assert_eq!(session.run(&[none]).unwrap().outputs[0].shape(), [0, 10]);
    assert!(message(session.run_named(&[("x", tensor(&input))])).contains("input"));

    let mut small = [0.0; 9];
    let mut outputs = [TensorMut::from_f32(&[1, 10], &mut small)];
    let error = session.run_into(&[tensor(&input)], &mut outputs).unwrap_err();
    assert!(error.to_string().contains("36 bytes"), "{error}");
    let mut other = [0.0; 10];
    let mut outputs = [TensorMut::from_f32(&[10, 1], &mut other)];
    let error = session.run_into(&[tensor(&input)], &mut outputs).unwrap_err();
    assert!(error.to_string().contains("[1, 10]"), "{error}");
    assert!(matches!(
        session.run_into(&[tensor(&input)], &mut []),
        Err(SessionError::Outputs { found: 0, want: 1 })
    ));

    let done = session.run(&[tensor(&input)]).unwrap();
    assert_eq!(done.outputs[0].as_f32(), Some(&expected[..]));
}

#[test]
fn without_a_host_engine_refused_nodes_are_an_error_that_names_them() {
    let mut model = <import::proto::Model as prost::Message>::decode(DIGITS).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let pool = graph.node.iter_mut().find(|node| node.op_type() == "MaxPool").unwrap();
    pool.op_type = Some("LpPool".into());
    let name = pool.name().to_owned();
    let result = Session::builder(&device()).load_bytes(prost::Message::encode_to_vec(&model));
    let error = result.unwrap_err();
    assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    let SessionError::Refused { nodes, all } = error else { panic!("{error}") };
    assert!(nodes.iter().any(|node| node.op == "LpPool" && node.rule == "operator"));
    assert_eq!(all, 26);
}

#[test]
fn a_model_of_two_programs_runs_both() {
    // Two copies of the model side by side: nothing connects them, so each is a program.
    let mut model = <import::proto::Model as prost::Message>::decode(DIGITS).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let mut copy = graph.clone();
    let constants: Vec<String> =
        graph.initializer.iter().map(|tensor| tensor.name().to_owned()).collect();
    for node in &mut copy.node {
        node.name = Some(format!("{}.copy", node.name()));
        for name in node.input.iter_mut().chain(&mut node.output) {
            if !constants.contains(name) {
                name.push_str(".copy");
            }
        }
    }
    for info in copy.input.iter_mut().chain(&mut copy.output) {
        info.name = Some(format!("{}.copy", info.name()));
    }
    graph.node.append(&mut copy.node);
    graph.input.append(&mut copy.input);
    // The copy's output first: outputs are in the model's order, not that of the programs.
    copy.output.append(&mut graph.output);
    graph.output = copy.output;
    let bytes = prost::Message::encode_to_vec(&model);
    let session = Session::builder(&device()).load_bytes(bytes).unwrap();
    assert_eq!(session.plan().groups.len(), 2);
    let ((one, expected_one), (three, expected_three)) = (sample(1), sample(3));
    let done = session.run(&[tensor(&one), tensor(&three)]).unwrap();
    assert_eq!(done.outputs[0].as_f32(), Some(&expected_three[..]));
    assert_eq!(done.outputs[1].as_f32(), Some(&expected_one[..]));
    let (mut first, mut second) = (vec![0.0; 30], vec![0.0; 10]);
    let shapes = [[3, 10], [1, 10]];
    let mut outputs =
        [TensorMut::from_f32(&shapes[0], &mut first), TensorMut::from_f32(&shapes[1], &mut second)];
    session.run_into(&[tensor(&one), tensor(&three)], &mut outputs).unwrap();
    assert_eq!((first, second), (expected_three, expected_one));
    let bound = session.bind(&[one.shape(), three.shape()]).unwrap();
    assert_eq!(bound.output_shape(0), Some(&[3, 10][..]));
}

#[test]
fn a_part_of_everything_is_the_whole() {
    let graph = import::bytes(DIGITS).unwrap();
    let plan = partition::plan(&graph, &device().limits().clone());
    let parts = parts(&graph, &plan, 2).unwrap();
    let [(part, shapes)] = parts.as_slice() else { panic!("one part") };
    assert_eq!(shapes, &[vec![2, 1, 28, 28]]);
    assert_eq!(crate::dump::graph(part), crate::dump::graph(&graph));
    assert!(program::units(part).is_ok());
}
