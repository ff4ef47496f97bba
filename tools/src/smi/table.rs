//! Tables that fit: where the terminal is too narrow for all columns, the least important go.

use super::output::Paper;

/// A column.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    title: &'static str,
    /// The higher, the sooner it is left out; 0 stays.
    rank: u8,
    is_number: bool,
    cells: Vec<String>,
}

impl Column {
    /// A column of words, on the left.
    pub(crate) fn words(
        title: &'static str,
        rank: u8,
        cells: impl IntoIterator<Item = String>,
    ) -> Self {
        Self { title, rank, is_number: false, cells: cells.into_iter().collect() }
    }

    /// A column of numbers, on the right.
    pub(crate) fn numbers(
        title: &'static str,
        rank: u8,
        cells: impl IntoIterator<Item = String>,
    ) -> Self {
        Self { is_number: true, ..Self::words(title, rank, cells) }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| cell.chars().count());
        cells.chain([self.title.len()]).max().unwrap_or(0)
    }

    fn padded(&self, text: &str, is_last: bool) -> String {
        let width = self.width();
        match (self.is_number, is_last) {
            (true, _) => format!("{text:>width$}"),
            (false, true) => text.to_owned(),
            (false, false) => format!("{text:<width$}"),
        }
    }
}

/// The columns as text, as many as fit on `paper`.
pub(crate) fn table(columns: Vec<Column>, paper: Paper) -> String {
    let columns = fitting(columns, paper.columns);
    let rows = columns.first().map_or(0, |column| column.cells.len());
    let last = columns.len().saturating_sub(1);
    let line = |cell: &dyn Fn(&Column) -> String| {
        let cells = columns.iter().enumerate();
        let cells = cells.map(|(at, column)| column.padded(&cell(column), at == last));
        cut(cells.collect::<Vec<_>>().join("  ").trim_end(), paper.columns)
    };
    let mut out = paper.heading(&line(&|column| column.title.to_owned())) + "\n";
    for row in 0..rows {
        out += &line(&|column| column.cells.get(row).cloned().unwrap_or_default());
        out.push('\n');
    }
    out
}

/// Leaves out columns until the rest fits, or only those that stay are left.
fn fitting(mut columns: Vec<Column>, most: usize) -> Vec<Column> {
    loop {
        let width: usize = columns.iter().map(|column| column.width() + 2).sum();
        if width.saturating_sub(2) <= most {
            return columns;
        }
        let last = columns.iter().enumerate().filter(|(_, column)| column.rank > 0);
        match last.max_by_key(|(_, column)| column.rank).map(|(at, _)| at) {
            Some(at) => drop(columns.remove(at)),
            None => return columns,
        }
    }
}

/// At most `most` columns of `text`, the last of which shows that there is more.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    kept + if most > 0 { "…" } else { "" }
}

/// `name  value` lines, the names of equal width; a value that does not fit goes on below.
pub(crate) fn pairs(pairs: &[(&str, String)], paper: Paper) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let (room, indent) = match paper.columns.saturating_sub(width + 2) {
        room if room >= 12 => (room, width + 2),
        _ => (paper.columns.saturating_sub(2).max(1), 2),
    };
    let mut out = String::new();
    for (name, value) in pairs {
        let lines = wrapped(value, room);
        let (first, rest) = lines.split_first().map_or(("", &[][..]), |(f, r)| (f.as_str(), r));
        if indent == width + 2 {
            out += format!("{name:<width$}  {first}").trim_end();
        } else {
            out += &format!("{}\n  {first}", cut(name, paper.columns));
        }
        out.push('\n');
        for line in rest {
            out += &format!("{:indent$}{line}\n", "");
        }
    }
    out
}

/// Lines of at most `columns`: what is longer goes on below, further in.
pub(crate) fn folded(text: &str, columns: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let indent = line.chars().take_while(|&c| c == ' ').count().min(columns / 4);
        let (mut rest, mut room): (Vec<char>, _) = (line.chars().collect(), columns.max(1));
        while rest.len() > room {
            // At the last space that leaves something on the line, else in the middle of a word.
            let space = rest[..=room].iter().rposition(|&c| c == ' ').filter(|&at| at > indent);
            let (end, next) = space.map_or((room, room), |at| (at, at + 1));
            out.extend(&rest[..end]);
            out.push('\n');
            out.push_str(&" ".repeat(indent + 2));
            rest.drain(..next);
            room = columns.saturating_sub(indent + 2).max(1);
        }
        out.extend(rest);
        out.push('\n');
    }
    out
}

/// `text` in lines of at most `room` columns, broken at spaces where there are any.
pub(crate) fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("there is always a line");
            let used = line.chars().count();
            let gap = usize::from(used > 0);
            if used + gap + word.len() <= room {
                line.extend(std::iter::repeat_n(' ', gap).chain(word));
                break;
            }
            if used == 0 {
                let rest = word.split_off(room.min(word.len()));
                line.extend(word);
                word = rest;
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        vec![
            Column::numbers("ID", 0, ["1", "12"].map(String::from)),
            Column::words("PROCESS", 1, ["python3", "a-long-name"].map(String::from)),
            Column::words("STATE", 0, ["ready", "failed"].map(String::from)),
        ]
    }

    #[test]
    fn the_least_important_columns_go_first() {
        let wide = table(columns(), Paper::plain(80));
        assert_eq!(
            wide,
            "ID  PROCESS      STATE\n 1  python3      ready\n12  a-long-name  failed\n"
        );
        assert_eq!(table(columns(), Paper::plain(15)), "ID  STATE\n 1  ready\n12  failed\n");
        let narrow = table(columns(), Paper::plain(6));
        assert!(narrow.lines().all(|line| line.chars().count() <= 6), "{narrow}");
    }

    #[test]
    fn no_line_of_pairs_is_too_long_at_any_width() {
        let value = "one two three-four-five six".to_owned();
        let list = [("name", value.clone()), ("a longer name", value)];
        assert_eq!(pairs(&list[..1], Paper::plain(80)), "name  one two three-four-five six\n");
        for columns in 3..60 {
            let text = pairs(&list, Paper::plain(columns));
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}: {text}");
            let letters = |text: &str| text.chars().filter(|c| c.is_alphabetic()).count();
            assert!(columns < 14 || letters(&text) == 2 * 22 + 4 + 11, "{columns}: {text}");
        }
    }

    #[test]
    fn folded_lines_fit_and_lose_nothing() {
        let text = "  a line with words and 0x0123456789abcdef0123456789abcdef\n\nshort\n";
        assert_eq!(folded(text, 200), text);
        for columns in 8..70 {
            let folded = folded(text, columns);
            assert!(
                folded.lines().all(|line| line.chars().count() <= columns),
                "{columns}: {folded}"
            );
            let letters =
                |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            assert_eq!(letters(&folded), letters(text), "{columns}");
        }
    }
}
