//! A small classifier: compiled in the guest, and as the host compiled it; with the host's bytes.
//!
//! `cargo xtask vm` puts its parts into `/model`: the model, an input, the program, and what came out there.

use ep_npu::Session;
use ep_npu::bundle::Bundle;
use ep_npu::run::{Executable, OwnedOutputs, RunOptions, TensorRef};
use libnpu::{Caller, Device};
use npu_tests::functions;

fn read(name: &str) -> Vec<u8> {
    let path = format!("/model/{name}");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn input() -> (Vec<usize>, Vec<f32>) {
    let bytes = read("input.f32");
    let floats = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let shape = String::from_utf8(read("shape")).unwrap();
    let shape = shape.split_whitespace().map(|length| length.parse().unwrap()).collect();
    (shape, floats.collect())
}

#[test]
fn a_model_compiled_in_the_guest_gives_the_bytes_of_the_host() {
    let function = functions::take(0);
    let device = Device::open_private(&function.device()).unwrap();
    let session = Session::builder(&device).load("/model/model.onnx").unwrap();
    let (shape, floats) = input();
    let done = session.run(&[TensorRef::from_f32(&shape, &floats)]).unwrap();
    assert_eq!(done.outputs[0].bytes(), read("output"));
}

#[test]
fn a_program_compiled_on_the_host_gives_the_bytes_of_the_host() {
    let function = functions::take(0);
    let device = Device::open_private(&function.device()).unwrap();
    let bundle = Bundle::from_bytes(&read("program").into()).unwrap();
    let context = device.create_context().unwrap();
    let executable =
        Executable::from_bundle(bundle, context, device.clone(), RunOptions::default()).unwrap();
    let (shape, floats) = input();
    let mut outputs = OwnedOutputs::default();
    let tensor = TensorRef::from_f32(&shape, &floats);
    executable.run(&[tensor], &mut outputs, &Caller).unwrap();
    assert_eq!(outputs.bytes(0).unwrap(), read("output"));
}
