//! `npu`: what a developer asks of a device or a program. One command a file under `src/npu`.
#![expect(clippy::print_stdout, reason = "the terminal is where this program reports")]

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[path = "../npu/objdump.rs"]
mod objdump;
#[path = "../npu/selftest.rs"]
mod selftest;

#[derive(Parser)]
#[command(name = "npu", about = "Test an NPU, and look into its programs")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Test a device: registers, interrupts, DMA, faults, and programs against the scalar definition.
    Selftest(selftest::Args),
    /// Print a program: header, slots, tensors, commands and their modelled cost.
    Objdump(objdump::Args),
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Selftest(args) => selftest::run(&args),
        Command::Objdump(args) => objdump::run(args).map(|()| ExitCode::SUCCESS),
    }
}
