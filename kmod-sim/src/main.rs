//! `npu-sim`: virtual NPUs behind a socket, in a process of their own.

use anyhow::Context;
use clap::Parser;
use kmod_sim::server::{Options, Server};
use kmod_sim::{Config, OPTIONS};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use std::io::Write;
use std::path::PathBuf;

/// Serves virtual NPUs over vfio-user.
///
/// Each client that connects gets a device of its own. Use it as `vfio-user:PATH`, for example
/// `NPU_DEVICE=vfio-user:/run/npu.sock`, or with QEMU's `-device vfio-user-pci`. Prints one line when it
/// is ready, and ends on SIGTERM or SIGINT, when it removes the socket.
#[derive(Debug, Parser)]
#[command(name = "npu-sim", version, after_help = device_options())]
struct Arguments {
    /// Where to listen; the socket of a server that is gone is replaced
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// What each device is made of, KEY=VALUE,..; see below
    #[arg(long, value_name = "OPTIONS", default_value = "", value_parser = Config::parse, hide_default_value = true)]
    device: Config,

    /// Most clients at a time; more are refused with EUSERS
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_clients: u16,

    /// Where to listen for those who manage the server; only its user may connect
    #[arg(long, value_name = "PATH")]
    manage: Option<PathBuf>,

    /// Where to listen for guests that manage the server through a PCI function; only its user may connect
    #[arg(long, value_name = "PATH")]
    manage_function: Option<PathBuf>,

    /// Where to write what jobs leave that fault or hang: core dumps, of which the last 64 are kept
    #[arg(long, value_name = "FOLDER")]
    dumps: Option<PathBuf>,

    /// Tells refused commands and broken connections on standard error
    #[arg(long, short)]
    verbose: bool,
}

fn device_options() -> String {
    let lines = OPTIONS.iter().map(|(key, meaning)| format!("  {key:<11}{meaning}\n"));
    format!("Device options:\n{}", lines.collect::<String>())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Before any thread, so that all inherit it and the signals wait for the one that takes them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;
    raise_descriptor_limit();
    let options = Options {
        config: arguments.device,
        max_clients: arguments.max_clients.into(),
        is_verbose: arguments.verbose,
    };
    let mut server = Server::bind(&arguments.socket, options)?;
    if let Some(folder) = &arguments.dumps {
        server = server.dumps_into(folder)?;
    }
    if let Some(path) = &arguments.manage {
        server = server.manage_at(path)?;
    }
    if let Some(path) = &arguments.manage_function {
        server = server.manage_function_at(path)?;
    }
    let stopper = server.stopper();
    std::thread::Builder::new().name("npu-signals".into()).spawn(move || {
        // It fails only for signals that do not exist.
        let _ = signals.wait();
        stopper.stop();
    })?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", arguments.socket.display())?;
    out.flush()?;
    server.run()?;
    Ok(())
}

/// Clients hold descriptors in this process: as many as it is allowed.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without, fewer clients find room.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
