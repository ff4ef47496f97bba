//! `npu-smi selftest`: whether a device does what the interface says, with a verdict.

use super::Tool;
use super::error::SmiError;
use super::output::{self, Paper};
use super::table::cut;
use crate::selftest::{Outcome, Subject};
use serde::Serialize;
use std::process::ExitCode;

/// Options of `npu-smi selftest`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The device is opened as a driver opens it, beside its other clients: --device or NPU_DEVICE \
    names it, `vfio-user:PATH`, or `sim` for one in this process."
)]
pub(crate) struct Args {}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    device: &'a str,
    description: &'a str,
    sizes: &'a str,
    passed: usize,
    failed: usize,
    tests: Vec<Test>,
}

#[derive(Debug, Serialize)]
struct Test {
    name: &'static str,
    is_passed: bool,
    error: Option<String>,
    time_us: f64,
    cycles: u64,
    detail: String,
}

/// Runs every test.
pub(crate) fn run(tool: &Tool, _args: &Args) -> Result<ExitCode, SmiError> {
    let Some(device) = tool.place.device() else {
        return Err(SmiError::Usage {
            what: "no device to test is named".into(),
            remedy: "name it with --device vfio-user:PATH, or --device sim for one in this process"
                .into(),
        });
    };
    let subject = Subject::open(&device).map_err(|error| SmiError::Unopened {
        device: device.clone(),
        why: format!("{:#}", error.root_cause()),
    })?;
    let (description, sizes) = (subject.describe(), subject.sizes());
    let paper = Paper::of_stdout();
    let line = |text: String| match tool.is_json {
        true => Ok(()),
        false => output::print(&(cut(&text, paper.columns) + "\n")),
    };
    line(format!("{device}: {description}"))?;
    line(format!("modelled: {sizes}"))?;
    let mut tests = Vec::new();
    for outcome in subject.outcomes() {
        line(outcome.line())?;
        tests.push(Test::from(outcome));
    }
    let passed = tests.iter().filter(|test| test.is_passed).count();
    let failed = tests.len() - passed;
    line(format!("{passed} of {} passed", tests.len()))?;
    if tool.is_json {
        let schema = "npu-smi-selftest.v1";
        let (device, description, sizes) = (device.as_str(), description.as_str(), sizes.as_str());
        let report = Report { schema, device, description, sizes, passed, failed, tests };
        output::print_json(&report, false)?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

impl From<Outcome> for Test {
    fn from(outcome: Outcome) -> Self {
        let Outcome { name, error, time, cycles, detail } = outcome;
        let time_us = (time.as_secs_f64() * 1e7).round() / 10.0;
        Self { name, is_passed: error.is_none(), error, time_us, cycles, detail }
    }
}
