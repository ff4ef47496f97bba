//! The report as one page without anything from elsewhere: figures on top, what stays on the host and
//! what that costs, then the graph, the cycles and the memory map as pictures.

#[path = "page/cycles.rs"]
mod cycles;
#[path = "page/graph.rs"]
mod graph;
#[path = "page/memory.rs"]
mod memory;
#[path = "page/style.rs"]
mod style;

use super::Report;
use crate::model::{Planned, Program};
use std::fmt::Write as _;
use style::{SCRIPT, STYLE};

/// The page.
pub(super) fn page(report: &Report, planned: &Planned, programs: &[Program]) -> String {
    let name = report.model.rsplit('/').next().unwrap_or(&report.model);
    let title = escape(name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title} on the NPU</title>\
         <style>{STYLE}</style></head><body><header><h1>{title}</h1>\
         <button id=\"theme\" type=\"button\">dark / light</button></header>"
    );
    out += &summary(report, planned);
    out += &cuts(report);
    out += &bounded(report);
    // Writing to a string cannot fail.
    let _ = write!(out, "<section><h2>Graph</h2>{}</section>", graph::draw(report, &planned.graph));
    for (index, program) in programs.iter().enumerate() {
        let commands = program.container.image.commands.len();
        let _ = write!(
            out,
            "<section><h2><i class=\"swatch p{}\"></i>Program {index}</h2>\
             <p class=\"quiet\">{} commands, {} modelled cycles</p>{}{}</section>",
            index % style::PROGRAMS,
            grouped(commands as u64),
            grouped(program.cycles()),
            cycles::draw(program),
            memory::draw(program, &planned.limits)
        );
    }
    let _ = writeln!(out, "<div id=\"tip\" hidden></div><script>{SCRIPT}</script></body></html>");
    out
}

/// The verdict in figures.
fn summary(report: &Report, planned: &Planned) -> String {
    let clock_khz = u64::from(planned.limits.clock_khz.max(1));
    let micros = report.cycles.saturating_mul(1000) / clock_khz;
    let clock = format!("at {} MHz", clock_khz / 1000);
    let mut out = "<section class=\"figures\">".to_owned();
    let exact = match report.nodes_bounded {
        0 => ("all".to_owned(), "equal to the CPU's"),
        count => (count.to_string(), "nodes within 1 code of the CPU's"),
    };
    for (figure, what) in [
        (format!("{} / {}", report.nodes_taken, report.nodes_total), "nodes on the NPU"),
        exact,
        (report.share_text(), "of the multiplications"),
        (report.programs.to_string(), "programs"),
        (grouped(report.cycles), "modelled cycles"),
        (format!("{} us", grouped(micros)), clock.as_str()),
    ] {
        let _ = write!(out, "<div><b>{figure}</b>{what}</div>");
    }
    let share = report.macs_share.unwrap_or(1.0).clamp(0.0, 1.0) * 100.0;
    let _ = write!(
        out,
        "</section><div class=\"bar\" role=\"img\" aria-label=\"share of the multiplications\">\
         <i style=\"width:{share:.2}%\"></i></div>\
         <p class=\"quiet\">Device <code>{}</code>, batch {}; {}.</p>",
        escape(&report.device),
        report.batch,
        escape(&report.graph_note)
    );
    out
}

/// What stays on the host, dearest first.
fn cuts(report: &Report) -> String {
    if report.cuts.is_empty() {
        return "<section id=\"cuts\"><h2>On the host</h2><p>Nothing: the NPU runs the whole model.</p></section>"
            .to_owned();
    }
    let mut out = "<section id=\"cuts\"><h2>On the host</h2>".to_owned();
    for (index, cut) in report.cuts.iter().enumerate() {
        let _ = write!(
            out,
            "<details class=\"cut\"{}><summary><b>Cut {index}</b> {}</summary><table>\
             <tr><th>node</th><th>why</th><th>what would change it</th></tr>",
            if index < 3 { " open" } else { "" },
            escape(&cut.text())
        );
        for &place in &cut.causes {
            let node = &report.nodes[place];
            let rule = match &node.attribute {
                Some(attribute) => format!("{}: {attribute}", node.rule.unwrap_or("")),
                None => node.rule.unwrap_or("").to_owned(),
            };
            let _ = write!(
                out,
                "<tr><td><code>{}</code><br>{}</td><td><em>{}</em> {}</td><td>{}</td></tr>",
                escape(&node.op),
                escape(&shortened(node.shown_name(), 48)),
                escape(&rule),
                escape(node.reason.as_deref().unwrap_or("")),
                escape(node.change.as_deref().unwrap_or(""))
            );
        }
        out += "</table></details>";
    }
    out + "</section>"
}

/// The operators whose results can differ from the CPU provider's.
fn bounded(report: &Report) -> String {
    let is_listed = |node: &&super::Node| {
        node.bound_codes > 0 && !matches!(node.op.as_str(), "QuantizeLinear" | "DequantizeLinear")
    };
    let mut nodes = report.nodes.iter().filter(is_listed).peekable();
    if nodes.peek().is_none() {
        return String::new();
    }
    let mut out = "<section id=\"bounded\"><h2>Not exact</h2><details class=\"cut\"><summary>On the same \
                   inputs at most so many codes beside the CPU's</summary><table><tr><th>node</th><th>runs on</th>\
                   <th>codes</th></tr>"
        .to_owned();
    for node in nodes {
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "<tr><td><code>{}</code><br>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&node.op),
            escape(&shortened(node.shown_name(), 48)),
            if node.taken { "the NPU" } else { "the host" },
            node.bound_codes
        );
    }
    out + "</table></details></section>"
}

/// `1,234,567`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The last `most` characters, which tell names apart.
fn shortened(text: &str, most: usize) -> String {
    match text.chars().count().checked_sub(most) {
        None | Some(0) => text.to_owned(),
        Some(more) => format!("…{}", text.chars().skip(more + 1).collect::<String>()),
    }
}

/// `text` as a page shows it: names come from the model.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\n' => out += "&#10;",
            letter if letter.is_control() => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_on_the_page() {
        assert_eq!(escape("<script>\"&\u{1}"), "&lt;script&gt;&quot;&amp;\u{fffd}");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(shortened("abcdef", 4), "…def");
    }
}
