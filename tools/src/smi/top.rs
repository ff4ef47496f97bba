//! `npu-smi top`: the device and its clients, live.
//!
//! ```text
//! sampler (thread) ─ samples ─┐
//! signals (thread) ───────────┴─> loop ─> screen    drawn when something changed
//! keys ───────────────────────────┘
//! ```
//! Without a terminal it prints a report for each look instead, as text or as lines of JSON.

#[path = "top/history.rs"]
mod history;
#[path = "top/plain.rs"]
mod plain;
#[path = "top/sampler.rs"]
mod sampler;
#[path = "top/screen.rs"]
mod screen;

use super::Tool;
use super::error::SmiError;
use super::identity::Identity;
use super::sample::Sample;
use super::show;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use sampler::{Message, Sampler};
use screen::Screen;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longest time to a reaction; what it costs to look so often is not measurable.
const REACTION_MS: u8 = 100;
/// Between two looks, shortest and longest that keys choose.
const EVERY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));

/// Options of `npu-smi top`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Time between two looks; the keys + and - change it
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = super::seconds)]
    every: Duration,

    /// Print so many reports as text, or JSON, and end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// Shows what is done until it is told to stop.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    let is_live = io::stdout().is_terminal() && io::stdin().is_terminal();
    if tool.is_json || args.count.is_some() || !is_live {
        return plain::run(tool, args.every, args.count);
    }
    let mut connection = tool.connect()?;
    let identity = show::identity(&mut connection)?;
    let first = Sample::take(&mut connection)?;
    let device = Identity::new(identity.as_ref()).short();
    let screen = Screen::new(connection.place().to_owned(), device, first, args.every);
    let sampler = Sampler::start(connection, args.every)?;
    let broken = |source| SmiError::Terminal { source };
    // From here on the terminal is put back in every case, a panic included.
    let mut terminal = ratatui::try_init().map_err(broken)?;
    let ended = follow(&mut terminal, screen, &sampler);
    let restored = ratatui::try_restore().map_err(broken);
    let code = ended?;
    restored?;
    Ok(code)
}

/// Draws what comes until the end.
fn follow(
    terminal: &mut DefaultTerminal,
    mut screen: Screen,
    sampler: &Sampler,
) -> Result<ExitCode, SmiError> {
    let broken = |source| SmiError::Terminal { source };
    let mut heard = Instant::now();
    let mut is_changed = true;
    loop {
        if std::mem::take(&mut is_changed) {
            terminal.draw(|frame| screen.draw(frame)).map_err(broken)?;
        }
        wait_for_keys().map_err(broken)?;
        while event::poll(Duration::ZERO).map_err(broken)? {
            match event::read().map_err(broken)? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    is_changed = true;
                    if press(&mut screen, sampler, key) {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                Event::Resize(..) => is_changed = true,
                _ => {}
            }
        }
        while let Some(message) = sampler.message() {
            match message {
                Message::Sample(sample) => screen.add(sample?),
                // As a shell tells of a process that a signal has ended.
                Message::Signal(signal) => return Ok(ExitCode::from(128 + signal)),
            }
            (heard, is_changed) = (Instant::now(), true);
        }
        is_changed |= screen.waits(heard.elapsed());
    }
}

/// Waits until there is a key, the size changes, or it is time to look for other news.
///
/// A terminal that is gone is an error: its end is always ready, and would be read for ever.
fn wait_for_keys() -> io::Result<()> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, REACTION_MS) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    match fds[0].revents() {
        Some(events) if events.intersects(gone) => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed"))
        }
        _ => Ok(()),
    }
}

/// What a key does; whether it ends the program.
fn press(screen: &mut Screen, sampler: &Sampler, key: KeyEvent) -> bool {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if is_control => return true,
        KeyCode::Char('q') => return true,
        KeyCode::Esc if !screen.close_help() => return true,
        KeyCode::Char('h' | '?') => screen.toggle_help(),
        KeyCode::Char('s') => screen.sort_otherwise(),
        KeyCode::Down | KeyCode::Char('j') => screen.select(1),
        KeyCode::Up | KeyCode::Char('k') => screen.select(-1),
        KeyCode::Char('p' | ' ') => sampler.set(screen.toggle_pause()),
        KeyCode::Char('+') => sampler.set(screen.look_every(|every| every / 2, EVERY)),
        KeyCode::Char('-') => sampler.set(screen.look_every(|every| every * 2, EVERY)),
        _ => {}
    }
    false
}
