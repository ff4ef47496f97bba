//! The other process of the measurement: a device server that also plays the games, when it is told to.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use kmod_sim::Config;
use kmod_sim::server::{Options, Server};

use super::lines::Lines;

/// What it says when it listens.
pub(super) const READY: &str = "ready";
/// What it says after a game.
pub(super) const DONE: &str = "done";

/// Serves devices at a socket, and plays on shared lines what standard input says.
#[derive(Args)]
pub(crate) struct Peer {
    /// The CPU to stay on.
    #[arg(long)]
    cpu: usize,
    /// The file of the lines.
    #[arg(long)]
    lines: String,
    /// Where to listen.
    #[arg(long)]
    socket: PathBuf,
}

impl Peer {
    /// Serves and plays until standard input ends.
    pub(crate) fn run(self) -> Result<()> {
        super::pin(self.cpu)?;
        let lines = Lines::open(&self.lines)?;
        let options = Options { config: Config::default(), max_clients: 1, is_verbose: false };
        let server = Server::bind(&self.socket, options)?;
        let stopper = server.stopper();
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| server.run());
            let played = play(&lines);
            stopper.stop();
            serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
            played
        })
    }
}

fn play(lines: &Lines) -> Result<()> {
    say(READY)?;
    for order in std::io::stdin().lock().lines() {
        let order = order?;
        let (name, count) = order.split_once(' ').context("an order is a game and a count")?;
        let count = count.parse()?;
        let side = match name {
            "ping-pong" => Lines::pong,
            "rings" => Lines::serve,
            _ => bail!("unknown game {name:?}"),
        };
        say(name)?;
        side(lines, count)?;
        say(DONE)?;
    }
    Ok(())
}

fn say(what: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what}")?;
    Ok(out.flush()?)
}
