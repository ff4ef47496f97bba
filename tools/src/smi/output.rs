//! Where reports go: whether it is a terminal, how wide, and whether it may be coloured.

use super::error::SmiError;
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};

/// Columns of a report that nobody's terminal limits.
const UNLIMITED: usize = usize::MAX;

/// How a report may look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paper {
    /// Most columns of a line.
    pub(crate) columns: usize,
    /// Whether escape codes are understood.
    pub(crate) is_terminal: bool,
    is_styled: bool,
}

impl Paper {
    /// That of standard output.
    pub(crate) fn of_stdout() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let size = is_terminal.then(|| ratatui::crossterm::terminal::size().ok()).flatten();
        let columns = size.map(|(columns, _)| usize::from(columns)).filter(|&columns| columns > 0);
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            columns: columns.unwrap_or(UNLIMITED),
            is_terminal,
            is_styled: is_terminal && !is_plain,
        }
    }

    /// So many columns, and no escape codes: a part of a screen, whose styles are set by who draws it.
    pub(crate) fn plain(columns: usize) -> Self {
        Self { columns, is_terminal: false, is_styled: false }
    }

    /// `text` as a heading.
    pub(crate) fn heading(self, text: &str) -> String {
        if self.is_styled { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Prints `text`.
pub(crate) fn print(text: &str) -> Result<(), SmiError> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|source| SmiError::Output { source })
}

/// Prints `report` as JSON: over several lines, or on one where others follow.
pub(crate) fn print_json(report: &impl Serialize, is_one_of_many: bool) -> Result<(), SmiError> {
    let text = match is_one_of_many {
        true => serde_json::to_string(report),
        false => serde_json::to_string_pretty(report),
    };
    let text = text.map_err(|error| SmiError::Output { source: error.into() })?;
    print(&format!("{text}\n"))
}
