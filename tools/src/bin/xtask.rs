//! `cargo xtask`: what a developer would else script. One command a file under `src/xtask`.
#![expect(clippy::print_stdout, reason = "the terminal is where this program reports")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

#[path = "../xtask/bench.rs"]
mod bench;
#[path = "../xtask/book.rs"]
mod book;
#[path = "../xtask/child.rs"]
mod child;
#[path = "../xtask/demo.rs"]
mod demo;
#[path = "../xtask/gate.rs"]
mod gate;
#[path = "../xtask/latency.rs"]
mod latency;
#[path = "../xtask/loom.rs"]
mod loom;
#[path = "../xtask/models.rs"]
mod models;
#[path = "../xtask/random.rs"]
mod random;
#[path = "../xtask/setup.rs"]
mod setup;
#[path = "../xtask/simulator.rs"]
mod simulator;
#[path = "../xtask/tally.rs"]
mod tally;
#[path = "../xtask/test.rs"]
mod test;
#[path = "../xtask/vm.rs"]
mod vm;
#[path = "../xtask/wheel.rs"]
mod wheel;

use models::Set;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Demo, tests and models of the NPU stack; each command does its own set-up"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Classify labelled photographs in ONNX Runtime, on the NPU and on the CPU, and compare.
    Demo,
    /// Latency of every model beside the CPU provider's and OpenVINO's, and of its layers beside the machine's limits.
    Bench(bench::Args),
    /// What kernels, jobs and a model cost in instructions, against what is stored.
    Gate {
        /// Store what is found instead of comparing.
        #[arg(long)]
        store: bool,
    },
    /// What `gate` counts.
    #[command(hide = true)]
    GateCases {
        /// The small model.
        model: PathBuf,
    },
    /// An empty job over a socket beside a bare ping-pong, and what idling costs.
    Latency,
    /// The other process of `latency`.
    #[command(hide = true)]
    LatencyPeer(latency::Peer),
    /// Pack the plugin as a Python package, into `target/wheels`.
    Wheel,
    /// The driver behind a real kernel's VFIO: QEMU with a Linux guest whose PCI devices are `npu-sim`'s.
    Vm,
    /// Everything that CI runs, with a table of counts and times.
    Test {
        /// Also what takes hours: every model, every test with every wheel, long random models, pages in a browser.
        #[arg(long)]
        all: bool,
    },
    /// Random models on the NPU against the CPU provider alone: the set of the test, or as asked for.
    Random {
        /// Such as `--seconds 1200`, `--seed 7` or `--case FILE`; `--help` says more.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check the rings in every interleaving.
    Loom {
        /// Weaken each memory ordering in turn and expect a failure.
        #[arg(long)]
        weaken: bool,
    },
    /// Print the manual pages that `uapi` defines.
    Book {
        /// Compare with what is there instead of writing.
        #[arg(long)]
        check: bool,
    },
    /// Fetch, build and quantise models into `.models`.
    Models {
        /// All of them; otherwise those that the demo and the benchmark use.
        #[arg(long)]
        all: bool,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().task {
        Task::Demo => demo::run()?,
        Task::Bench(args) => return bench::run(&args),
        Task::Gate { store } => {
            gate::run(store)?;
        }
        Task::GateCases { model } => gate::cases(&model)?,
        Task::Latency => return latency::run(),
        Task::LatencyPeer(peer) => peer.run()?,
        Task::Wheel => wheel::run()?,
        Task::Vm => {
            let tally = vm::run()?;
            ensure!(
                tally.failed + tally.skipped == 0,
                "not all passed; the guest's console is above"
            );
        }
        Task::Test { all } => return test::run(all),
        Task::Random { arguments } => return random::by_hand(&arguments),
        Task::Loom { weaken } => {
            loom::run(weaken)?;
        }
        Task::Book { check } => book::run(&setup::root(), check)?,
        Task::Models { all } => models::run(if all { Set::All } else { Set::Demo })?,
    }
    Ok(ExitCode::SUCCESS)
}
