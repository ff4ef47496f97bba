//! The commands of `npu-smi`, and what they share.
//!
//! ```text
//! place -> connection -> reply -> sample ─┬─> list, show, top          text, JSON, Prometheus, a screen
//!                                         └─> log, dump, trace, ...    one file each
//! ```
//! What is printed as JSON follows `docs/schemas/npu-smi-COMMAND.v1.json`.

mod connection;
mod dump;
mod error;
mod figure;
mod identity;
mod inject;
mod list;
mod log;
mod output;
mod place;
mod prometheus;
mod reply;
mod reset;
mod sample;
mod saturation;
mod selftest;
mod show;
mod table;
mod top;
mod trace;
mod watch;

use clap::{Parser, Subcommand};
use connection::Connection;
use error::SmiError;
use place::Place;
use std::process::ExitCode;
use std::time::Duration;

/// What devices do: who uses them, how much, what went wrong.
///
/// Talks to the management socket of a server (`npu-sim --manage PATH`): the one that --socket or NPU_MANAGE
/// names, the one beside the device that --device or NPU_DEVICE names, else `npu.manage` in $XDG_RUNTIME_DIR,
/// /run or the folder for temporary files. In a guest, which has none, to the management function on its bus.
#[derive(Debug, Parser)]
#[command(name = "npu-smi", version, after_help = error::EXIT_CODES, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,

    /// Print JSON, as docs/schemas/npu-smi-COMMAND.v1.json describes it
    #[arg(long, global = true)]
    json: bool,

    /// How long to wait for an answer
    #[arg(long, global = true, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    timeout: Duration,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Clients: whose they are, since when, in which state
    List(list::Args),
    /// Identity, sizes, use of the device and of each client, counters
    Show(show::Args),
    /// The same, live
    Top(top::Args),
    /// What went wrong: queue, operation, ONNX node
    Log(log::Args),
    /// Registers, rings, tables and the running program: of a client, or of a core dump
    Dump(dump::Args),
    /// Record a timeline of queues, operations and transfers for Perfetto
    Trace(trace::Args),
    /// End the jobs of a client, as its driver's own reset would
    Reset(reset::Args),
    /// Test a device: registers, DMA, interrupts, faults, programs, latency, bandwidth
    Selftest(selftest::Args),
    /// Arm faults that the device then has
    Inject(inject::Args),
    /// Have output codes at the ends of their range counted, for `show`
    Saturation(saturation::Args),
}

/// What every command is given.
#[derive(Debug)]
struct Tool {
    place: Place,
    is_json: bool,
    patience: Duration,
}

impl Tool {
    /// A connection to the server that is meant.
    fn connect(&self) -> Result<Connection, SmiError> {
        Connection::open(&self.place.find()?, self.patience)
    }
}

/// Does what the command line says.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let Arguments { place, json, timeout, command } = arguments;
    let tool = Tool { place, is_json: json, patience: timeout };
    let done = match command {
        Command::List(args) => list::run(&tool, &args),
        Command::Show(args) => show::run(&tool, &args),
        Command::Top(args) => top::run(&tool, &args),
        Command::Log(args) => log::run(&tool, &args),
        Command::Dump(args) => dump::run(&tool, &args),
        Command::Trace(args) => trace::run(&tool, &args),
        Command::Reset(args) => reset::run(&tool, &args),
        Command::Selftest(args) => selftest::run(&tool, &args),
        Command::Inject(args) => inject::run(&tool, &args),
        Command::Saturation(args) => saturation::run(&tool, &args),
    };
    match done {
        Ok(code) => code,
        // Whoever read the report has seen enough, as `head` has.
        Err(SmiError::Output { source }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("npu-smi: {error}");
            error.exit_code()
        }
    }
}

/// A number of seconds on the command line.
fn seconds(text: &str) -> Result<Duration, String> {
    let wanted = "a number of seconds from 0.05 to 86400";
    let seconds: f64 = text.parse().map_err(|_| wanted.to_owned())?;
    if (0.05..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(wanted.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn seconds_are_a_sensible_number() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "nan", "inf", "1e9", "soon"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
