//! A host application: loads a classifier, runs it on one input, prints the five best classes.
//!
//! ```console
//! $ cargo run --release -p ep-npu --example classify -- model.qdq.onnx [image.f32] [device]
//! ```
//!
//! `image.f32` has the input's floats as they are in memory (numpy: `x.astype("float32").tofile(path)`);
//! without it the input is a gradient.
#![expect(clippy::print_stdout, reason = "an example reports on the terminal")]

use ep_npu::graph::Dim;
use ep_npu::{Device, Session, TensorRef};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: classify MODEL.onnx [IMAGE.f32] [DEVICE]")?;
    let image = arguments.next();
    let device = Device::open(&arguments.next().unwrap_or_else(|| "sim".to_owned()))?;

    // Whatever the NPU does not take is an error here that names each node and its reason.
    let session = Session::builder(&device).load(&model)?;
    let input = session.inputs().first().ok_or("the model has no input")?;
    let dims = input.shape.as_ref().ok_or("the model does not say how large its input is")?;
    let length = |dim: &Dim| if let Dim::Known(length) = dim { *length } else { 1 };
    let shape: Vec<usize> = dims.iter().map(length).collect();
    let pixels = shape.iter().product();
    let floats = match image {
        Some(path) => {
            let bytes = std::fs::read(path)?;
            bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
        }
        None => (0_u16..=1023).cycle().take(pixels).map(|i| f32::from(i) / 512.0 - 1.0).collect(),
    };
    let floats: Vec<f32> = floats;

    let done = session.run(&[TensorRef::from_f32(&shape, &floats)])?;
    let scores = done.outputs.first().and_then(|tensor| tensor.as_f32());
    let scores = scores.ok_or("the model's output is not float32")?;
    let mut classes: Vec<usize> = (0..scores.len()).collect();
    classes.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    for class in classes.into_iter().take(5) {
        println!("class {class:>4}  score {:.4}", scores[class]);
    }
    let clock_mhz = u64::from(device.limits().clock_khz / 1000).max(1);
    let cycles = done.report.cycles;
    println!("{cycles} cycles, {} us on the modelled device", cycles / clock_mhz);
    println!("{} bytes copied", done.report.copied_bytes);
    Ok(())
}
