//! `cargo xtask wheel`: the plugin as a Python package that `pip install` takes, no compiler needed there.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::child;
use crate::setup;

const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Builds the plugin and the `npu` tool, and packs them.
pub(crate) fn run() -> Result<()> {
    let library = setup::plugin()?;
    let root = setup::root();
    let mut command = Command::new(setup::host_python()?);
    command.arg(root.join("ep-npu/python/build_wheel.py"));
    command.arg("--tool").arg(library.with_file_name("npu")).arg("--library").arg(library);
    command.args(["--version", env!("CARGO_PKG_VERSION")]);
    command.arg("--folder").arg(root.join("target/wheels"));
    child::check(&mut command, LIMIT)?;
    Ok(())
}
