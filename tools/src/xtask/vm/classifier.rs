//! A classifier for the guest: the model, an input, its program as this machine compiles it, and the output
//! that a device in this process gives.

use std::fs;

use anyhow::{Context, Result, ensure};
use ep_npu::graph::Dim;
use ep_npu::partition::{self, PlanOptions};
use ep_npu::run::{Executable, RunOptions};
use ep_npu::{Device, Session, TensorRef, import, session};

use super::archive::Archive;
use crate::setup;

/// In the checkout, so that it needs no download.
const MODEL: &str = "tests/models/digits.qdq.onnx";

/// Adds the parts to `archive`, in the folder `model`.
pub(crate) fn add(archive: &mut Archive) -> Result<()> {
    let path = setup::root().join(MODEL);
    let device = Device::open("sim")?;
    let model = Session::builder(&device).load(&path).with_context(|| format!("no {MODEL}"))?;
    let input = model.inputs().first().context("the model has no input")?;
    let dims = input.shape.as_ref().context("its input's shape is open")?;
    let length = |dim: &Dim| if let Dim::Known(length) = dim { *length } else { 1 };
    let shape: Vec<usize> = dims.iter().map(length).collect();
    let values = shape.iter().product();
    let floats = (0_u16..=96).cycle().take(values).map(|step| f32::from(step) / 97.0);
    let floats: Vec<f32> = floats.collect();
    let done = model.run(&[TensorRef::from_f32(&shape, &floats)])?;
    let output = done.outputs.first().context("the model has no output")?;
    let graph = import::file(&path)?;
    let plan = partition::plan_with(&graph, device.limits(), PlanOptions::default());
    let mut parts = session::parts(&graph, &plan, 1)?;
    let (part, _) = parts.pop().context("the NPU takes nothing of it")?;
    ensure!(parts.is_empty(), "the model is more than one part");
    let context = device.create_context()?;
    let program = Executable::compile(part, context, device.clone(), RunOptions::default())?;
    let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
    archive.bytes("model/model.onnx", &fs::read(&path)?);
    archive.bytes("model/shape", shape.join(" ").as_bytes());
    let bytes: Vec<u8> = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
    archive.bytes("model/input.f32", &bytes);
    archive.bytes("model/output", output.bytes());
    archive.bytes("model/program", &program.to_bytes());
    Ok(())
}
