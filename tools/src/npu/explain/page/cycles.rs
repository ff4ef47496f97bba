//! Cycles: every command in the order in which it runs, and the nodes that take most of them.

use super::{escape, grouped, shortened};
use crate::model::Program;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const WIDE: u64 = 1080;
const HIGH: u64 = 150;
/// Nodes that are listed.
const LISTED: usize = 12;
/// Kinds of commands that have a colour of their own.
const KINDS: usize = 6;

/// Both pictures.
pub(super) fn draw(program: &Program) -> String {
    let commands = program.container.image.commands.iter().zip(&program.costs);
    let bars: Vec<(String, &str, u64)> = commands
        .map(|(command, cost)| {
            let name = program.container.name(command.header().op_id).unwrap_or("no name");
            (command.name().to_string(), name, cost.cycles)
        })
        .collect();
    let all = program.cycles().max(1);
    skyline(&bars, all) + &longest(&bars, all)
}

/// A bar for each command: as wide as it is long, as high as its share of the longest.
fn skyline(bars: &[(String, &str, u64)], all: u64) -> String {
    let mut by_kind: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, _, cycles) in bars {
        *by_kind.entry(kind).or_default() += cycles;
    }
    let mut kinds: Vec<(&str, u64)> = by_kind.into_iter().collect();
    kinds.sort_by_key(|&(_, cycles)| std::cmp::Reverse(cycles));
    let class = |kind: &str| {
        let place = kinds.iter().position(|&(name, _)| name == kind).unwrap_or(0);
        place.min(KINDS - 1)
    };
    let mut out = "<h3>Cycles, command by command</h3><div class=\"legend\">".to_owned();
    for (kind, cycles) in &kinds {
        let per_mille = cycles.saturating_mul(1000) / all;
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "<span><i class=\"key p{}\"></i>{} {}.{} %</span>",
            class(kind),
            escape(kind),
            per_mille / 10,
            per_mille % 10
        );
    }
    let most = bars.iter().map(|&(_, _, cycles)| cycles).max().unwrap_or(1).max(1);
    let _ = write!(
        out,
        "</div><div class=\"picture\"><svg class=\"cycles\" width=\"{}\" height=\"{}\" role=\"img\" aria-label=\"cycles\">\
         <path class=\"axis\" d=\"M0 {HIGH}.5H{WIDE}\"/>",
        WIDE + 4,
        HIGH + 18
    );
    // Equal widths, so that short commands can be seen and pointed at; height is by the root, for
    // cycles of one program lie a thousandfold apart.
    let across = |index: usize| index as u64 * WIDE / bars.len().max(1) as u64;
    for (index, (kind, name, cycles)) in bars.iter().enumerate() {
        let (x, wide) = (across(index), (across(index + 1) - across(index)).max(1));
        let high = (cycles.saturating_mul(HIGH * HIGH) / most).isqrt().max(1);
        let told = format!("{kind} {name}\n{} cycles, command {index}", grouped(*cycles));
        let _ = write!(
            out,
            "<rect data-t=\"{}\" class=\"p{}\" x=\"{x}\" y=\"{}\" width=\"{}\" height=\"{high}\"/>",
            escape(&told),
            class(kind),
            HIGH - high,
            if wide > 2 { wide - 1 } else { wide }
        );
    }
    let _ = write!(
        out,
        "<text class=\"quiet\" x=\"0\" y=\"{}\">first command</text>\
         <text class=\"quiet\" x=\"{WIDE}\" y=\"{}\" text-anchor=\"end\">last; heights are square roots, the longest is {} cycles</text></svg></div>",
        HIGH + 14,
        HIGH + 14,
        grouped(most)
    );
    out
}

/// The nodes with most cycles, summed over their commands.
fn longest(bars: &[(String, &str, u64)], all: u64) -> String {
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, name, cycles) in bars {
        *by_name.entry(name).or_default() += cycles;
    }
    let mut nodes: Vec<(&str, u64)> = by_name.into_iter().collect();
    nodes.sort_by_key(|&(name, cycles)| (std::cmp::Reverse(cycles), name));
    nodes.truncate(LISTED);
    let most = nodes.first().map_or(1, |&(_, cycles)| cycles).max(1);
    let mut out = format!(
        "<h3>Layers that take longest</h3><div class=\"picture\"><svg class=\"layers\" width=\"{}\" height=\"{}\" role=\"img\" aria-label=\"layers\">",
        WIDE + 4,
        nodes.len() * 20 + 4
    );
    for (index, (name, cycles)) in nodes.iter().enumerate() {
        let (y, length) = (index * 20 + 3, cycles.saturating_mul(560) / most);
        let share = cycles.saturating_mul(1000) / all;
        let _ = write!(
            out,
            "<text x=\"0\" y=\"{}\">{}</text><rect class=\"p0\" x=\"330\" y=\"{y}\" width=\"{}\" height=\"14\" rx=\"2\"/>\
             <text class=\"quiet\" x=\"{}\" y=\"{}\">{} ({}.{} %)</text>",
            y + 11,
            escape(&shortened(name, 52)),
            length.max(1),
            338 + length,
            y + 11,
            grouped(*cycles),
            share / 10,
            share % 10
        );
    }
    out + "</svg></div>"
}
