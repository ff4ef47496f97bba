//! A report once, or again and again.

use super::SmiError;
use super::output::{self, Paper};
use std::time::{Duration, Instant};

/// How often a report is made.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// Report again every so many seconds, until interrupted or the server is gone; JSON is then one line each
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    pub(crate) watch: Option<Duration>,
}

impl Watch {
    /// Makes the report `once`, and again where that is asked for.
    pub(crate) fn run(
        self,
        mut once: impl FnMut(bool) -> Result<(), SmiError>,
    ) -> Result<(), SmiError> {
        let Some(pause) = self.watch else { return once(false) };
        let mut next = Instant::now();
        loop {
            once(true)?;
            next += pause;
            // A report that took longer than the pause is followed by one pause, not by a burst.
            next = next.max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

/// Prints `text` in place of the one before, or below it where that cannot be replaced.
pub(crate) fn print(text: &str, is_one_of_many: bool, paper: Paper) -> Result<(), SmiError> {
    match (is_one_of_many, paper.is_terminal) {
        (false, _) => output::print(text),
        // To the corner, and away with what was there.
        (true, true) => output::print(&format!("\x1b[H\x1b[2J{text}")),
        (true, false) => output::print(&format!("{text}\n")),
    }
}
