//! `cargo xtask models`: everything the tests compare on, fetched, built and quantised once.

use std::time::Duration;

use anyhow::Result;

use crate::child;
use crate::setup::{self, Python};

const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Sets Python up and makes the models; prints the table of what there is.
pub(crate) fn run() -> Result<()> {
    build(&Python::ready()?)
}

/// Makes the models that are missing or older than the code that makes them.
pub(crate) fn build(python: &Python) -> Result<()> {
    let mut command = python.command();
    child::check(command.args(["-m", "npu_models", "build"]).arg(setup::models()), LIMIT)?;
    Ok(())
}
