//! Random models in ONNX Runtime, on the NPU and on the CPU: a fixed set for the test, any by hand.
//!
//! The generator and what judges are `tests/plugin/random_models`; here it is built for and counted.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::child::{self, Finished};
use crate::setup::{self, Python};
use crate::tally::Tally;

/// The seeds of the test: a count, so that each run tests the same; about a minute on two cores.
const FIXED: &str = "0..6000";

/// Far above what the fixed set takes.
const FIXED_LIMIT: Duration = Duration::from_secs(20 * 60);

/// By hand one may ask for hours.
const HAND_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The fixed set; each model is a test.
pub(crate) fn fixed() -> Result<Tally> {
    println!("random models of the seeds {FIXED}");
    let finished = run(&["--seeds".to_owned(), FIXED.to_owned()], FIXED_LIMIT)?;
    let tally = counted(&finished.stdout).context("the run printed no count of models")?;
    Ok(tally.unless_failed(finished.success))
}

/// As many as twenty minutes give, from another seed each time; a finding prints its own.
pub(crate) fn new_ones() -> Result<Tally> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let arguments = ["--seconds", "1200", "--from", &now.as_secs().to_string()].map(str::to_owned);
    let finished = run(&arguments, 2 * FIXED_LIMIT)?;
    let tally = counted(&finished.stdout).context("the run printed no count of models")?;
    Ok(tally.unless_failed(finished.success))
}

/// What the arguments ask for, or the fixed set.
pub(crate) fn by_hand(arguments: &[String]) -> Result<ExitCode> {
    let fixed = ["--seeds".to_owned(), FIXED.to_owned()];
    let arguments = if arguments.is_empty() { &fixed } else { arguments };
    let finished = run(arguments, HAND_LIMIT)?;
    Ok(if finished.success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(arguments: &[String], limit: Duration) -> Result<Finished> {
    let python = Python::ready()?;
    let library = setup::plugin()?;
    let tests = setup::root().join("tests/plugin");
    ensure!(tests.is_dir(), "there is no {}", tests.display());
    let paths = std::env::join_paths([setup::root().join("tools/python"), tests])?;
    let mut command = python.command();
    command.env("PYTHONPATH", paths).env("NPU_EP_LIBRARY", library);
    command.args(["-m", "random_models"]).args(arguments);
    child::run(&mut command, limit)
}

/// Reads `1000 models: ..` and `2 findings ..` from the lines that close a run.
fn counted(output: &str) -> Option<Tally> {
    let before = |word: &str| {
        let line = output.lines().rev().find_map(|line| line.split_once(word))?;
        line.0.trim().parse::<u32>().ok()
    };
    let (models, failed) = (before(" models: ")?, before(" findings")?);
    Some(Tally { passed: models.saturating_sub(failed), failed, skipped: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_are_counted() {
        let output = "100 models, 0 findings\n== seed 7: different\noperator nodes\n\
            150 models: 131 equal, 15 refused by both, 4 different; 3857 nodes\n4 findings from the seeds [50]\n";
        assert_eq!(counted(output), Some(Tally { passed: 146, failed: 4, skipped: 0 }));
        assert_eq!(counted("nothing"), None);
    }
}
