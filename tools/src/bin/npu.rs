//! `npu`: what a developer asks of a device or a program. One command a file under `src/npu`.
#![expect(clippy::print_stdout, reason = "the terminal is where this program reports")]

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

#[path = "../npu/compile.rs"]
mod compile;
#[path = "../npu/explain.rs"]
mod explain;
#[path = "../npu/host.rs"]
mod host;
#[path = "../npu/layers.rs"]
mod layers;
#[path = "../npu/model.rs"]
mod model;
#[path = "../npu/npy.rs"]
mod npy;
#[path = "../npu/objdump.rs"]
mod objdump;
#[path = "../npu/progress.rs"]
mod progress;
#[path = "../npu/run.rs"]
mod run;
#[path = "../npu/selftest.rs"]
mod selftest;
#[path = "../npu/test_device.rs"]
mod test_device;

/// A graph is many small pieces, which glibc scatters: a chain of 20,000 nodes compiles in half the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "npu", about = "Run models on an NPU, test it, and look into its programs")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a model: what comes out, how long it takes, what is copied.
    Run(run::Args),
    /// Compile a model to program files.
    Compile(compile::Args),
    /// Say for each node of a model where it runs, why, and what it costs.
    Explain(explain::Args),
    /// Test a device: registers, interrupts, DMA, faults, and programs against the scalar definition.
    Selftest(test_device::Args),
    /// Print a program: header, slots, tensors, commands and their modelled cost.
    Objdump(objdump::Args),
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Compile(args) => compile::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Explain(args) => explain::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Selftest(args) => test_device::run(&args),
        Command::Objdump(args) => objdump::run(args).map(|()| ExitCode::SUCCESS),
    }
}

/// Prints a report; a reader that has seen enough, as `head` has, is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the report"),
    }
}
