//! A report once, or again and again.

use super::error::SmiError;
use super::output::{self, Paper};
use std::time::{Duration, Instant};

/// How often a report is made.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// Report again every so many seconds, until interrupted or the server is gone; JSON is then one line each
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    pub(crate) watch: Option<Duration>,
}

/// Which of the reports one is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Every {
    /// The only one.
    Only,
    /// The first of many.
    First,
    /// One of the others.
    Later,
}

impl Every {
    /// Whether others follow.
    pub(crate) fn is_one_of_many(self) -> bool {
        self != Self::Only
    }
}

impl Watch {
    /// Makes the report `once`, and again where that is asked for.
    pub(crate) fn run(
        self,
        mut once: impl FnMut(Every) -> Result<(), SmiError>,
    ) -> Result<(), SmiError> {
        let Some(pause) = self.watch else { return once(Every::Only) };
        let mut next = Instant::now();
        let mut every = Every::First;
        loop {
            once(every)?;
            every = Every::Later;
            // A report that took longer than the pause is followed at once, but by one only.
            next = (next + pause).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

/// Prints `text` in place of the one before, or below it where that cannot be replaced.
pub(crate) fn print(text: &str, every: Every, paper: Paper) -> Result<(), SmiError> {
    match (every, paper.is_terminal) {
        (Every::Only, _) => output::print(text),
        // To the corner, and away with what was there.
        (_, true) => output::print(&format!("\x1b[H\x1b[2J{text}")),
        (_, false) => output::print(&format!("{text}\n")),
    }
}
