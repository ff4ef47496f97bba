//! `npu-smi trace`: what clients' queues, operations and transfers did, as a timeline for Perfetto.
//!
//! ```text
//! start ─> read, read, .. ─> stop, read ─> recording ─┬─> perfetto   ui.perfetto.dev, trace_processor
//!                                                     └─> JSON
//! ```

#[path = "trace/perfetto.rs"]
mod perfetto;
#[path = "trace/recording.rs"]
mod recording;
#[path = "trace/timeline.rs"]
mod timeline;

use super::Tool;
use super::connection::Connection;
use super::error::SmiError;
use super::output;
use super::reply::{self, Clients};
use super::reset::named;
use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use prost::Message as _;
use recording::Recording;
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two reads of the events: the device keeps those of longer than that at any pace it has.
const PAUSE: Duration = Duration::from_millis(50);

/// Options of `npu-smi trace`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Open the file at https://ui.perfetto.dev, which reads it in the browser, or with trace_processor. \
    Ctrl-C ends a trace early; what was recorded is written."
)]
pub(crate) struct Args {
    /// Clients of `list`; all that are there without
    clients: Vec<u64>,

    /// How long to record
    #[arg(long = "for", value_name = "SECONDS", default_value = "1", value_parser = super::seconds)]
    length: Duration,

    /// Where to write the trace; `-` is standard output
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "npu.pftrace",
        conflicts_with = "json"
    )]
    output: PathBuf,

    /// Which clock the timeline has: the wall's, or the modelled one's, on which every run is the same
    #[arg(long, value_enum, default_value = "wall")]
    clock: Clock,
}

/// What a timeline is drawn by.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Clock {
    Wall,
    Modelled,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    clients: &'a [Recording],
}

/// Records and writes a trace.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    let is_stdout = args.output.as_os_str() == "-";
    if is_stdout && !tool.is_json && std::io::stdout().is_terminal() {
        return Err(SmiError::Usage {
            what: "a trace is no text for a terminal".into(),
            remedy: "name a file with --output, or send the output to another program".into(),
        });
    }
    let mut connection = tool.connect()?;
    let recordings = record(&mut connection, args)?;
    if tool.is_json {
        let schema = "npu-smi-trace.v1";
        let report = Report { schema, place: connection.place(), clients: &recordings };
        output::print_json(&report, false)?;
        return Ok(code(&recordings));
    }
    let bytes = timeline::trace(&recordings, args.clock == Clock::Modelled).encode_to_vec();
    if is_stdout {
        output::print_bytes(&bytes)?;
        return Ok(code(&recordings));
    }
    let (what, path) = ("write", args.output.clone());
    std::fs::write(&path, &bytes).map_err(|source| SmiError::File { what, path, source })?;
    output::print(&told(&recordings, args, bytes.len()))?;
    Ok(code(&recordings))
}

/// A trace of nobody is not what was asked for.
fn code(recordings: &[Recording]) -> ExitCode {
    if recordings.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

fn told(recordings: &[Recording], args: &Args, len: usize) -> String {
    let ids: Vec<u64> = recordings.iter().map(|recording| recording.client).collect();
    let events: usize = recordings.iter().map(|recording| recording.events.len()).sum();
    let file = args.output.display();
    let mut out = format!("{events} events of {}, {len} bytes: {file}\n", named(&ids));
    for recording in recordings {
        if recording.lost > 0 {
            out += &format!(
                "client {} was faster than could be read: {} events are missing\n",
                recording.client, recording.lost
            );
        }
        if recording.has_left {
            out += &format!("client {} has left meanwhile\n", recording.client);
        }
    }
    out
}

/// What the clients did for as long as `args` say.
fn record(connection: &mut Connection, args: &Args) -> Result<Vec<Recording>, SmiError> {
    let Clients { functions } = reply::ask(connection, "list", Map::new())?;
    let clients = match &args.clients[..] {
        [] => functions.iter().map(|client| client.id).collect(),
        some => some.to_vec(),
    };
    // From here on a signal ends the trace, not this program: a device must not be left recording.
    let interrupt = Interrupt::new()?;
    let mut recordings = Vec::new();
    for id in clients {
        set(connection, id, "start")?;
        let pid = functions.iter().find(|client| client.id == id).and_then(|client| client.pid);
        recordings.push(Recording::new(id, pid));
    }
    let end = Instant::now() + args.length;
    let recorded = follow(connection, &mut recordings, &interrupt, end);
    for recording in &recordings {
        if !recording.has_left {
            // Also after an error, which is told instead.
            let stopped = set(connection, recording.client, "stop");
            if recorded.is_ok() && !is_gone(&stopped) {
                stopped?;
            }
        }
    }
    recorded?;
    for recording in &mut recordings {
        while recording.read(connection)? > 0 {}
    }
    Ok(recordings)
}

/// Reads events until `end` or a signal.
fn follow(
    connection: &mut Connection,
    recordings: &mut [Recording],
    interrupt: &Interrupt,
    end: Instant,
) -> Result<(), SmiError> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || interrupt.comes_within(left.min(PAUSE))? {
            return Ok(());
        }
        for recording in &mut *recordings {
            recording.read(connection)?;
        }
    }
}

fn set(connection: &mut Connection, client: u64, action: &str) -> Result<(), SmiError> {
    let fields = [("client", Value::from(client)), ("action", action.into())];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    connection.ask("trace", Map::from_iter(fields)).map(drop)
}

/// Whether the server refused: the client has left.
fn is_gone<T>(result: &Result<T, SmiError>) -> bool {
    matches!(result, Err(SmiError::Refused { .. }))
}

/// SIGINT and SIGTERM as something to wait for.
struct Interrupt(SignalFd);

impl Interrupt {
    fn new() -> Result<Self, SmiError> {
        let failed = |errno: nix::Error| SmiError::Terminal { source: errno.into() };
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&signals, flags).map_err(failed)?))
    }

    fn comes_within(&self, time: Duration) -> Result<bool, SmiError> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let millis = u8::try_from(time.as_millis()).unwrap_or(u8::MAX).max(1);
        match poll(&mut fds, millis) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(SmiError::Terminal { source: errno.into() }),
        }
    }
}
