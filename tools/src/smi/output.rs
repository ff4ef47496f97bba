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

/// `text` without what a terminal would act on: control characters, other than `kept`, as their pictures.
pub(crate) fn visible(text: &str, kept: &[char]) -> String {
    let picture = |character: char| match character {
        _ if kept.contains(&character) || !character.is_control() => character,
        '\x7f' => '\u{2421}',
        // Those of ASCII have pictures, in the same order.
        _ => char::from_u32(0x2400 + u32::from(character))
            .filter(|_| character.is_ascii())
            .unwrap_or(char::REPLACEMENT_CHARACTER),
    };
    text.chars().map(picture).collect()
}

/// Prints `text`.
pub(crate) fn print(text: &str) -> Result<(), SmiError> {
    print_bytes(text.as_bytes())
}

/// Writes `bytes` as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), SmiError> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_shown_instead() {
        assert_eq!(visible("a\x1b[2J\x07\u{9b}\x7f\né", &['\n']), "a␛[2J␇\u{fffd}␡\né");
    }
}
