//! `cargo xtask models`: what the demo and the tests compare on, fetched, built and quantised once.

use std::env;
use std::time::Duration;

use anyhow::Result;

use crate::child;
use crate::setup::{self, Python};

const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Which of the models are made.
#[derive(Clone, Copy)]
pub(crate) enum Set {
    /// What the demo and the benchmark show.
    Demo,
    /// The former, and the small ones of what packages ship: what CI compares.
    Quick,
    /// Everything.
    All,
}

impl Set {
    /// What the tests compare: the quick ones, or all with `NPU_MODELS=all` in the environment.
    pub(crate) fn of_tests() -> Self {
        match env::var("NPU_MODELS").as_deref() {
            Ok("all") => Self::All,
            _ => Self::Quick,
        }
    }
}

/// Sets Python up and makes the models of `set` that are missing or older than the code that makes
/// them; prints the table of what there is.
pub(crate) fn run(set: Set) -> Result<()> {
    let name = match set {
        Set::Demo => "demo",
        Set::Quick => "quick",
        Set::All => "all",
    };
    let mut command = Python::ready()?.command();
    command.args(["-m", "npu_models", "build", "--set", name]).arg(setup::models());
    child::check(&mut command, LIMIT)?;
    Ok(())
}
