//! `cargo xtask demo`: a real model in stock ONNX Runtime, on the NPU and on the CPU.

use std::time::Duration;

use anyhow::Result;

use crate::child;
use crate::setup::{self, Python};

const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Does all the set-up, then hands over to `npu_models.demo`, which prints and compares.
pub(crate) fn run() -> Result<()> {
    let python = Python::ready()?;
    println!("building the plugin");
    let library = setup::plugin()?;
    let mut command = python.command();
    command.args(["-m", "npu_models", "demo"]).arg(setup::models()).arg("--plugin").arg(library);
    child::check(&mut command, LIMIT)?;
    Ok(())
}
