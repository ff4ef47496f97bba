//! What runs in the guest: the project's programs, built as for this machine, and the libraries they need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::archive::Archive;
use super::classifier;
use super::guest::{Step, plan};
use super::tools::Tools;
use crate::child;
use crate::setup::{self, cargo};

const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
const QUICK_LIMIT: Duration = Duration::from_secs(2 * 60);
/// Huge pages that the guest keeps for devices.
const HUGE_PAGES: u32 = 256;
/// Programs of the guest that are tests, or built beside them.
const FROM_TESTS: [&str; 4] = ["stack", "guest", "npu-guest", "npu-victim"];

/// Programs, by where they were built.
pub(crate) struct Programs {
    /// `npu-sim`, which stays outside.
    pub(crate) server: PathBuf,
    /// By their names in the guest.
    inside: BTreeMap<&'static str, PathBuf>,
}

impl Programs {
    /// Builds them.
    pub(crate) fn ready() -> Result<Self> {
        let beside = std::env::current_exe().context("cannot find where this program lies")?;
        let is_release = beside.parent().is_some_and(|folder| folder.ends_with("release"));
        if is_release {
            setup::plugin()?;
        } else {
            let packages = ["-p", "npu-tools", "-p", "kmod-sim"];
            let programs = ["--bin", "npu", "--bin", "npu-smi", "--bin", "npu-sim"];
            child::check(cargo().arg("build").args(packages).args(programs), BUILD_LIMIT)?;
        }
        let mut inside = tests()?;
        for name in ["npu", "npu-smi"] {
            inside.insert(name, beside.with_file_name(name));
        }
        Ok(Self { server: beside.with_file_name("npu-sim"), inside })
    }

    /// The guest's first file system, with `steps` to take.
    pub(crate) fn archive(&self, tools: &Tools, steps: &[Step]) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        let mut libraries = BTreeMap::new();
        for (&name, path) in &self.inside {
            libraries.extend(libraries_of(path)?);
            let place = if name == "npu-guest" { "init".into() } else { format!("bin/{name}") };
            archive.bytes(&place, &stripped(path)?);
        }
        for (place, path) in libraries {
            archive.file(place.trim_start_matches('/'), &path)?;
        }
        for (name, path) in tools.modules() {
            archive.file(&format!("modules/{name}"), &path)?;
        }
        classifier::add(&mut archive)?;
        archive.bytes("plan.json", plan(steps, HUGE_PAGES).to_string().as_bytes());
        for folder in ["proc", "sys", "tmp"] {
            archive.folder(folder);
        }
        Ok(archive.finish())
    }

    /// How many tests there are over each transport.
    pub(crate) fn count_each_transport(&self) -> Result<Vec<(&'static str, u32)>> {
        let stack = self.inside.get("stack").context("there are no tests")?;
        let listed = Command::new(stack).arg("--list").output().context("cannot list the tests")?;
        let listed = String::from_utf8_lossy(&listed.stdout);
        let count = |part: &str| listed.lines().filter(|line| line.contains(part)).count();
        let ways = [("sim", "::sim::"), ("vfio-user", "::vfio_user::"), ("pci", "::pci::")];
        let counts = ways.map(|(name, part)| Ok((name, u32::try_from(count(part))?)));
        counts.into_iter().collect()
    }
}

/// Builds the tests, as `cargo xtask test` does but for one feature, and the guest's first program.
fn tests() -> Result<BTreeMap<&'static str, PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--features", "ep-npu/rten,npu-tests/guest"]);
    command.args(["--test", "stack", "--test", "guest", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    println!("building the guest's programs");
    let built = child::quietly(&mut command, BUILD_LIMIT)?;
    let mut found = BTreeMap::new();
    for line in built.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let name = message["target"]["name"].as_str().unwrap_or_default();
        let name = FROM_TESTS.iter().find(|known| **known == name);
        if let (Some(&name), Some(path)) = (name, message["executable"].as_str()) {
            found.insert(name, PathBuf::from(path));
        }
    }
    ensure!(found.len() == FROM_TESTS.len(), "cargo built only {found:?}");
    Ok(found)
}

/// The libraries that the system's loader finds for a program, and the loader: where the program looks for
/// each, and where it is.
fn libraries_of(program: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = Command::new(program);
    command.env("LD_TRACE_LOADED_OBJECTS", "1");
    let listed = child::quietly(&mut command, QUICK_LIMIT)?;
    // `NAME => PATH (ADDRESS)`, or for the loader `PATH (ADDRESS)`.
    let paths = listed.lines().filter_map(|line| {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        path.split_whitespace().next().filter(|path| path.starts_with('/')).map(str::to_owned)
    });
    let found: BTreeMap<_, _> = paths.map(|path| (path.clone(), PathBuf::from(path))).collect();
    ensure!(!found.is_empty(), "the loader names no libraries of {}", program.display());
    Ok(found)
}

/// A program without what is for debuggers, where there is a `strip`.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let out = setup::target().join("vm").join(format!("stripped-{}", std::process::id()));
    let done = Command::new("strip").arg("-o").arg(&out).arg(program).status();
    let path = if done.is_ok_and(|status| status.success()) { &out } else { program };
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let _ = fs::remove_file(&out);
    Ok(bytes)
}
