//! `cargo xtask loom`: every interleaving of the rings, and proof that each of their orderings is needed.
//!
//! The models are tests of `npu-uapi`, built with `--cfg loom` into a target folder of their own. With
//! `--weaken` each ordering of `npu_uapi::order::ALL` is weakened in turn, which the model that it is
//! listed with must report; the build is one, the name travels in `NPU_WEAKEN`.

use std::env;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use npu_uapi::order;
use serde_json::Value;

use crate::setup::{cargo, root};

/// From empty caches, on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
/// For one model, weakened or not; each takes seconds.
const MODEL_LIMIT: Duration = Duration::from_secs(120);
/// Where the models lie among the tests of `npu-uapi`.
const MODELS: &str = "ring::model::";

/// Runs the ring models, or with `weaken` after them each memory ordering weakened, which must be
/// caught; returns how many models, or orderings, it was.
pub(crate) fn run(weaken: bool) -> Result<usize> {
    let program = build()?;
    let models = list(&program)?;
    for claim in order::ALL {
        ensure!(
            models.iter().any(|model| model == claim.model),
            "`order::ALL` names the model {} for {}, which is not there",
            claim.model,
            claim.ordering
        );
    }
    println!("{:<12} {:>8}", "model", "seconds");
    for model in &models {
        let start = Instant::now();
        let outcome = check(&program, model, None)?;
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Outcome::Passed => println!("{model:<12} {seconds:>8.2}  every interleaving passes"),
            Outcome::Failed(cause) => bail!("the model {model} fails: {cause}"),
        }
    }
    if weaken { check_weakened(&program) } else { Ok(models.len()) }
}

/// Weakens each ordering alone and prints what its model reports.
fn check_weakened(program: &Path) -> Result<usize> {
    let mut survivors = Vec::new();
    println!("\n{:<20} {:<12} reports", "weakened", "model");
    for &order::Claim { ordering, model } in order::ALL {
        let report = match check(program, model, Some(ordering))? {
            Outcome::Failed(cause) => cause,
            Outcome::Passed => {
                survivors.push(ordering);
                "NOTHING: the ordering is not needed, or the model does not see it".to_owned()
            }
        };
        println!("{ordering:<20} {model:<12} {report}");
    }
    ensure!(survivors.is_empty(), "weakened, but no model failed: {}", survivors.join(", "));
    println!("{} orderings, each needed", order::ALL.len());
    Ok(order::ALL.len())
}

/// What a model has found.
enum Outcome {
    Passed,
    /// It panicked, with this message.
    Failed(String),
}

/// Runs one model to its end.
fn check(program: &Path, model: &str, weakened: Option<&str>) -> Result<Outcome> {
    let mut command = Command::new(program);
    command.args(["--exact", &format!("{MODELS}{model}")]);
    // Settings of loom and of the panic handler that would change what is explored or printed.
    for name in ["NPU_WEAKEN", "LOOM_MAX_PREEMPTIONS", "LOOM_MAX_PERMUTATIONS", "LOOM_MAX_DURATION"]
    {
        command.env_remove(name);
    }
    command.env("RUST_BACKTRACE", "0");
    if let Some(ordering) = weakened {
        command.env("NPU_WEAKEN", ordering);
    }
    let (success, output) = capture(&mut command, MODEL_LIMIT)
        .with_context(|| format!("model {model}, weakened: {}", weakened.unwrap_or("nothing")))?;
    outcome(success, &output).with_context(|| format!("model {model} printed:\n{output}"))
}

/// Reads what the test runner printed for one test. Only a finding of the model itself counts as its
/// failure, not that loom or the process gave up.
fn outcome(success: bool, output: &str) -> Result<Outcome> {
    if success {
        ensure!(output.contains("test result: ok. 1 passed"), "the model did not run");
        return Ok(Outcome::Passed);
    }
    let mut lines = output.lines().skip_while(|line| !line.contains("panicked at"));
    let cause = lines.nth(1).context("the model ended without a report")?.trim();
    ensure!(!cause.contains("exceeded maximum"), "loom gave up: {cause}");
    Ok(Outcome::Failed(cause.to_owned()))
}

/// The names of all models in the test program.
fn list(program: &Path) -> Result<Vec<String>> {
    let mut command = Command::new(program);
    command.args([MODELS, "--list", "--format", "terse"]);
    let (success, output) = capture(&mut command, MODEL_LIMIT)?;
    ensure!(success, "cannot list the models: {output}");
    let names = output.lines().filter_map(|line| line.strip_prefix(MODELS)?.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// Builds the tests of `npu-uapi` for loom and returns the program.
fn build() -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let mut command = cargo();
    command
        .args(["test", "-p", "npu-uapi", "--release", "--lib", "--no-run"])
        .args(["--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(target.join("loom"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "--cfg loom");
    let (success, output) = capture(&mut command, BUILD_LIMIT)?;
    ensure!(success, "the models do not build; cargo's messages are above");
    let program = output.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    program.context("cargo named no test program of npu-uapi")
}

/// Runs `command` and returns whether it succeeded and what it printed on standard output.
fn capture(command: &mut Command, limit: Duration) -> Result<(bool, String)> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut pipe = child.stdout.take().context("the child has no standard output")?;
    let (finished, output) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = pipe.read_to_end(&mut bytes).map(|_| bytes);
        // Nobody listens after the limit, and then nobody need know.
        drop(finished.send(read));
    });
    let Ok(bytes) = output.recv_timeout(limit) else {
        child.kill().with_context(|| format!("cannot stop {program}"))?;
        child.wait()?;
        bail!("{program} ran for more than {limit:?} and was stopped");
    };
    let status = child.wait()?;
    Ok((status.success(), String::from_utf8_lossy(&bytes?).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_the_line_after_the_panic() {
        let output = "running 1 test\ntest ring::model::kick ... FAILED\n\nfailures:\n\n\
            thread 'ring::model::kick' (7) panicked at execution.rs:1:2:\n\
            deadlock; threads = []\nnote: run with\n";
        let Outcome::Failed(cause) = outcome(false, output).unwrap() else { panic!("it failed") };
        assert_eq!(cause, "deadlock; threads = []");
    }

    #[test]
    fn neither_a_model_that_did_not_run_nor_a_crash_nor_a_bound_is_a_finding() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out";
        assert!(outcome(true, none).is_err());
        assert!(outcome(false, "running 1 test\n").is_err());
        let bound =
            "thread 'x' panicked at path.rs:1:2:\nModel exceeded maximum number of branches.";
        assert!(outcome(false, bound).is_err());
    }

    #[test]
    fn a_program_that_does_not_end_is_stopped() {
        let mut command = Command::new("sh");
        command.args(["-c", "exec sleep 600"]);
        let error = capture(&mut command, Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("more than 100ms"), "{error}");
    }
}
