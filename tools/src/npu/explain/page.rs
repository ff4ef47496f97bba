//! The report as one page without anything from elsewhere: the graph, the cycles and the memory map as
//! pictures, and a line for each node that is left to the host.

use super::Report;
use crate::model::{Planned, Program};
use ep_npu::allocate::Space;
use ep_npu::graph::{Graph, NodeId};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Most commands that the chart of cycles shows; the rest is one bar.
const MOST_BARS: usize = 40;
const CELL: usize = 26;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1080px;padding:0 1rem;color:#1d2733}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .5rem}p{margin:.3rem 0}\
.figures{display:flex;gap:2rem;flex-wrap:wrap;margin:1.2rem 0}.figures b{display:block;font-size:1.5rem}\
.scroll{overflow:auto;max-height:640px;border:1px solid #d8dfe6;border-radius:6px;padding:8px}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #e4e9ee;vertical-align:top}\
text{font:11px system-ui,sans-serif;fill:#1d2733}.npu{fill:#2f7ebc}.host{fill:#d9822b}.edge{stroke:#a9b4bf;fill:none}\
.sram{fill:#3a9d6e}.dram{fill:#8c6bb1}code{font-size:.9em}";

/// The page.
pub(super) fn page(report: &Report, planned: &Planned, programs: &[Program]) -> String {
    let mut out = String::new();
    let title = escape(&report.model);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1><p>{}</p><div class=\"figures\">",
        escape(&report.summary)
    );
    for (figure, what) in [
        (format!("{} of {}", report.nodes_taken, report.nodes_total), "nodes on the NPU"),
        (report.share_text(), "of the multiplications"),
        (report.programs.to_string(), "programs"),
        (grouped(report.cycles), "modelled cycles"),
    ] {
        let _ = write!(out, "<div><b>{figure}</b>{what}</div>");
    }
    let _ = write!(
        out,
        "</div><p>Device <code>{}</code>, batch {}.</p>",
        escape(&report.device),
        report.batch
    );
    out += &refused(report);
    out += "<h2>Graph</h2><p>One box a node, a row below all that it reads; \
            <span style=\"color:#2f7ebc\">on the NPU</span>, \
            <span style=\"color:#d9822b\">on the host</span>. Point at a box for its name.</p>";
    out += &graph(report, &planned.graph);
    for (index, program) in programs.iter().enumerate() {
        let _ = write!(out, "<h2>Program {index}: cycles of each command</h2>");
        out += &cycles(program);
        let _ = write!(out, "<h2>Program {index}: memory over time</h2>");
        out += &memory(program);
    }
    out + "</html>\n"
}

fn refused(report: &Report) -> String {
    let left: Vec<_> = report.nodes.iter().filter(|node| !node.taken).collect();
    if left.is_empty() {
        return "<h2>Left to the host</h2><p>Nothing: the whole model runs on the NPU.</p>".into();
    }
    let mut out = String::from(
        "<h2>Left to the host</h2><div class=\"scroll\"><table>\
         <tr><th>node</th><th>operator</th><th>rule</th><th>reason</th><th>what would change it</th></tr>",
    );
    for node in left {
        let cell = |text: &str| format!("<td>{}</td>", escape(text));
        let rule = match &node.attribute {
            Some(attribute) => format!("{}: {attribute}", node.rule.unwrap_or("")),
            None => node.rule.unwrap_or("").to_owned(),
        };
        let _ = write!(
            out,
            "<tr>{}{}{}{}{}</tr>",
            cell(&node.name),
            cell(&node.op),
            cell(&rule),
            cell(node.reason.as_deref().unwrap_or("")),
            cell(node.change.as_deref().unwrap_or(""))
        );
    }
    out + "</table></div>"
}

/// Nodes in rows by depth, without those that make constants, and the edges between.
fn graph(report: &Report, graph: &Graph) -> String {
    let mut place: BTreeMap<NodeId, (usize, usize)> = BTreeMap::new();
    let mut width: Vec<usize> = Vec::new();
    for (id, node) in graph.nodes() {
        let reads = node.inputs.iter().flatten();
        let mut sources = reads.clone().filter(|&&value| graph.value(value).constant.is_none());
        if sources.next().is_none() {
            continue;
        }
        let above = reads.filter_map(|&value| place.get(&graph.value(value).producer?));
        let row = above.map(|&(row, _)| row + 1).max().unwrap_or(0);
        if row >= width.len() {
            width.resize(row + 1, 0);
        }
        place.insert(id, (row, width[row]));
        width[row] += 1;
    }
    let widest = width.iter().copied().max().unwrap_or(0).max(1);
    // Rows run from left to right, so that deep graphs are wide pictures that scroll.
    let at = |(row, column): (usize, usize)| (row * CELL, column * CELL);
    let (total, high) = (width.len() * CELL + 10, widest * CELL + 10);
    let mut out = format!(
        "<div class=\"scroll\"><svg width=\"{total}\" height=\"{high}\" role=\"img\" aria-label=\"graph\">"
    );
    for (id, node) in graph.nodes() {
        let Some(&to) = place.get(&id) else { continue };
        for &value in node.inputs.iter().flatten() {
            let producer = graph.value(value).producer;
            let Some(&from) = producer.and_then(|producer| place.get(&producer)) else { continue };
            let ((x1, y1), (x2, y2)) = (at(from), at(to));
            let _ = write!(
                out,
                "<path class=\"edge\" d=\"M{} {}C{} {} {} {} {} {}\"/>",
                x1 + 18,
                y1 + 14,
                x1 + 26,
                y1 + 14,
                x2,
                y2 + 14,
                x2 + 5,
                y2 + 14
            );
        }
    }
    for ((id, node), told) in graph.nodes().zip(&report.nodes) {
        let Some(&spot) = place.get(&id) else { continue };
        let (x, y) = at(spot);
        let class = if told.taken { "npu" } else { "host" };
        let cycles = told.cycles.map_or(String::new(), |c| format!(", {} cycles", grouped(c)));
        let reason = told.reason.as_deref().map_or(String::new(), |why| format!(": {why}"));
        let letter: String = node.op.chars().take(2).collect();
        let _ = write!(
            out,
            "<g><title>{}</title><rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"18\" height=\"18\" rx=\"3\"/>\
             <text x=\"{}\" y=\"{}\" style=\"fill:#fff;font-size:9px\">{}</text></g>",
            escape(&format!("{} {}{cycles}{reason}", node.op, node.name)),
            x + 2,
            y + 5,
            x + 5,
            y + 17,
            escape(&letter)
        );
    }
    out + "</svg></div>"
}

/// A bar for each command, longest first.
fn cycles(program: &Program) -> String {
    let commands = program.container.image.commands.iter().zip(&program.costs);
    let mut bars: Vec<(String, u64)> = commands
        .map(|(command, cost)| {
            let name = program.container.name(command.header().op_id).unwrap_or("no name");
            (format!("{} {name}", command.name()), cost.cycles)
        })
        .collect();
    bars.sort_by_key(|&(_, cycles)| std::cmp::Reverse(cycles));
    let rest = bars.split_off(bars.len().min(MOST_BARS));
    if !rest.is_empty() {
        bars.push((format!("{} more", rest.len()), rest.iter().map(|(_, cycles)| cycles).sum()));
    }
    let most = bars.iter().map(|&(_, cycles)| cycles).max().unwrap_or(1).max(1);
    let all = program.cycles().max(1);
    let mut out = format!(
        "<div class=\"scroll\"><svg width=\"1000\" height=\"{}\" role=\"img\" aria-label=\"cycles\">",
        bars.len() * 20 + 6
    );
    for (index, (name, cycles)) in bars.iter().enumerate() {
        let (y, length) = (index * 20 + 4, cycles * 460 / most);
        let share = cycles * 1000 / all;
        let _ = write!(
            out,
            "<text x=\"0\" y=\"{}\">{}</text><rect class=\"npu\" x=\"400\" y=\"{y}\" width=\"{length}\" height=\"14\"/>\
             <text x=\"{}\" y=\"{}\">{} ({}.{} %)</text>",
            y + 11,
            escape(&shortened(name, 62)),
            406 + length,
            y + 11,
            grouped(*cycles),
            share / 10,
            share % 10
        );
    }
    out + "</svg></div>"
}

/// Each tensor of the job as a box: from the command that writes it to the last that reads it, over
/// the bytes where it lies.
fn memory(program: &Program) -> String {
    let (ops, order) = (&program.compiled.ops, &program.compiled.order);
    let mut out = String::new();
    for (space, class, what) in
        [(Space::Sram, "sram", "On-chip memory"), (Space::Scratch, "dram", "Scratch memory")]
    {
        let mut boxes = Vec::new();
        for (start, &op) in order.iter().enumerate() {
            let written = ops.ops[op].writes;
            let Some((found, bytes)) = program.compiled.memory.range(ops, written) else {
                continue;
            };
            let is_read =
                |&(_, &reader): &(usize, &usize)| ops.ops[reader].reads.contains(&written);
            let end = order.iter().enumerate().filter(is_read).map(|(at, _)| at).max();
            if found == space {
                boxes.push((start, end.unwrap_or(start), bytes, &ops.tensor(written).name));
            }
        }
        let Some(top) = boxes.iter().map(|(_, _, bytes, _)| bytes.end).max() else { continue };
        let _ = write!(
            out,
            "<p>{what}: {} bytes at most; commands from left to right, addresses from top to bottom.</p>\
             <svg width=\"1000\" height=\"248\" role=\"img\" aria-label=\"{what}\" style=\"background:#f4f6f8\">",
            grouped(top)
        );
        let across = |command: usize| command * 1000 / order.len().max(1);
        let down = |byte: u64| byte * 244 / top.max(1);
        for (start, end, bytes, name) in boxes {
            let (x, y) = (across(start), down(bytes.start));
            let (wide, high) = (across(end + 1) - x, (down(bytes.end) - y).max(1));
            let title =
                format!("{name}: {} bytes at {}", grouped(bytes.end - bytes.start), bytes.start);
            let _ = write!(
                out,
                "<g><title>{}</title><rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{high}\" \
                 stroke=\"#fff\" opacity=\".85\"/></g>",
                escape(&title)
            );
        }
        out += "</svg>";
    }
    match out.is_empty() {
        true => "<p>The program keeps nothing between commands.</p>".into(),
        false => out,
    }
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
