//! `npu-smi`: what devices do, for those who look after them. One command a file under `src/smi`.

#[path = "../npu/selftest.rs"]
mod selftest;
#[path = "../smi/mod.rs"]
mod smi;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    smi::run(smi::Arguments::parse())
}
