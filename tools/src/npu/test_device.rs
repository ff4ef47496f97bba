//! `npu selftest`: the self-test of a device, one line a test, with its figures.

use crate::selftest::Subject;
use anyhow::Result;
use std::process::ExitCode;

/// Options of `npu selftest`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The device: `sim`, or with options as `sim:macs=256,sram=512K,threads=2`.
    #[arg(long, default_value = "sim")]
    device: String,
}

/// Runs every test on the device that `args` name.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let subject = Subject::open(&args.device)?;
    println!("{}: {}", args.device, subject.describe());
    println!("modelled: {}", subject.sizes());
    let (mut passed, mut all) = (0, 0);
    for outcome in subject.outcomes() {
        println!("{}", outcome.line());
        all += 1;
        passed += usize::from(outcome.error.is_none());
    }
    println!("{passed} of {all} passed");
    Ok(if passed == all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
