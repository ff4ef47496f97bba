//! The project's own Python: a virtual environment in the checkout with pinned packages.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::child;

/// Pip downloads about 60 MB; a slow line may take its time.
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);
const QUICK_LIMIT: Duration = Duration::from_secs(3 * 60);

/// Where the checkout is.
pub(crate) fn root() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR"));
    tools.parent().unwrap_or(tools).to_path_buf()
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where the models are kept.
pub(crate) fn models() -> PathBuf {
    root().join(".models")
}

/// A cargo command in the checkout, with the cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    command
}

/// Builds the plugin and returns its path. It lands beside this program, which is a release build too,
/// and so does `npu-sim`, which some of the plugin's tests start.
///
/// This program's own package is named as well: cargo then resolves the same features as it did for
/// this program, and finds every crate built.
pub(crate) fn plugin() -> Result<PathBuf> {
    child::check(
        cargo().args([
            "build",
            "--release",
            "-p",
            "ep-npu",
            "-p",
            "npu-tools",
            "-p",
            "kmod-sim",
            "--lib",
            "--bin",
            "xtask",
            "--bin",
            "npu",
            "--bin",
            "npu-smi",
            "--bin",
            "npu-sim",
        ]),
        Duration::from_secs(20 * 60),
    )?;
    let program = env::current_exe().context("cannot find where this program lies")?;
    let library = program.with_file_name("libep_npu.so");
    ensure!(library.exists(), "the build made no {}", library.display());
    Ok(library)
}

/// Versions of ONNX Runtime that the plugin works with beside the pinned one: the oldest, the first
/// whose lists of providers know plugins, the first that gives out memory of a device.
pub(crate) const OTHER_WHEELS: [&str; 3] = ["1.23.2", "1.25.1", "1.28.0"];

/// What the quantiser of an older wheel needs, which that wheel does not ask for.
const WITH_OLDER_WHEELS: &str = "sympy==1.14.0\nmpmath==1.3.0\n";

/// The environment's Python, with everything in `requirements.txt` installed.
pub(crate) struct Python(PathBuf);

impl Python {
    /// The environment of the project.
    pub(crate) fn ready() -> Result<Self> {
        Self::with(&root().join(".venv"), &requirements()?)
    }

    /// An environment that has another version of ONNX Runtime.
    pub(crate) fn with_wheel(version: &str) -> Result<Self> {
        let pinned = requirements()?;
        let other = |line: &str| match line.starts_with("onnxruntime==") {
            true => format!("onnxruntime=={version}\n"),
            false => format!("{line}\n"),
        };
        let text = pinned.lines().map(other).collect::<String>() + WITH_OLDER_WHEELS;
        Self::with(&root().join(".venvs").join(version), &text)
    }

    /// An environment that has what the benchmark compares with as well.
    pub(crate) fn with_peers() -> Result<Self> {
        Self::with(&root().join(".venvs/bench"), &(requirements()? + &packages("peers.txt")?))
    }

    /// An environment that has what the tests of `npu-smi` need, and no ONNX Runtime.
    pub(crate) fn for_smi() -> Result<Self> {
        Self::with(&root().join(".venvs/smi"), &packages("smi.txt")?)
    }

    /// Makes the environment in `folder`, or finds it as the last run left it: a copy of the
    /// requirements inside says which.
    fn with(folder: &Path, wanted: &str) -> Result<Self> {
        let python = Self(folder.join("bin/python"));
        let stamp = folder.join("installed-requirements.txt");
        if python.0.exists()
            && fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted)
        {
            return Ok(python);
        }
        let host = host_python()?;
        println!("making a Python environment in {}", folder.display());
        child::check(Command::new(&host).args(["-m", "venv", "--clear"]).arg(folder), QUICK_LIMIT)?;
        println!("installing what it needs (about 60 MB with ONNX Runtime) with pip");
        let list = folder.join("requirements.txt");
        fs::write(&list, wanted).with_context(|| format!("cannot write {}", list.display()))?;
        let pip =
            ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r"];
        child::check(Command::new(&python.0).args(pip).arg(&list), INSTALL_LIMIT)?;
        fs::rename(&list, &stamp).with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(python)
    }

    /// The environment.
    pub(crate) fn folder(&self) -> &Path {
        self.0.ancestors().nth(2).unwrap_or(&self.0)
    }

    /// A command that runs the environment's Python in the checkout, with the project's modules in reach.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command
            .current_dir(root())
            .env("PYTHONPATH", root().join("tools/python"))
            .env("PYTHONUNBUFFERED", "1");
        command
    }
}

fn requirements() -> Result<String> {
    packages("requirements.txt")
}

/// A list of packages of the checkout.
fn packages(name: &str) -> Result<String> {
    let wanted = root().join("tools/python").join(name);
    fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))
}

/// The system's Python, or the line that installs what is missing.
pub(crate) fn host_python() -> Result<OsString> {
    let host = env::var_os("PYTHON").unwrap_or_else(|| OsString::from("python3"));
    let can = |code: &str| {
        let mut command = Command::new(&host);
        command.args(["-c", code]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !can("") {
        bail!("there is no {}: run `apt-get install python3 python3-venv`", host.display());
    }
    if !can("import sys; sys.exit(sys.version_info < (3, 11))") {
        bail!(
            "{} is older than 3.11, which ONNX Runtime's wheel needs: name a newer one in PYTHON",
            host.display()
        );
    }
    if !can("import ensurepip, venv") {
        bail!("{} cannot make environments: run `apt-get install python3-venv`", host.display());
    }
    Ok(host)
}
