//! The graph: one box an operator, in columns by depth, the columns in lines as text is.
//!
//! Conversions between floats and codes are no boxes: an edge goes through them. One that stays on the
//! host without an operator beside it is one.

use super::super::{Node, Report};
use super::style::PROGRAMS;
use super::{escape, grouped};
use ep_npu::graph::{Graph, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

const WIDE: usize = 34;
const HIGH: usize = 17;
const STEP_X: usize = 44;
const STEP_Y: usize = 24;
/// Columns of a line.
const COLUMNS: usize = 25;
const LINE_GAP: usize = 20;

/// A box's column and its place in it.
type Spot = (usize, usize);

/// The picture.
pub(super) fn draw(report: &Report, graph: &Graph) -> String {
    let picture = Picture::new(report, graph);
    let mut out = "<div class=\"legend\">".to_owned();
    let used: BTreeSet<usize> = report.nodes.iter().filter_map(|node| node.program).collect();
    for program in used {
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "<span><i class=\"key p{}\"></i>NPU, program {program}</span>",
            program % PROGRAMS
        );
    }
    let _ = write!(
        out,
        "<span><i class=\"key p0 melted\"></i>part of another's command</span><span><i class=\"key host\"></i>host</span><span>{} operators; point at a box for its name, cycles and reason</span></div>",
        picture.spots.len()
    );
    let (wide, high) = picture.size();
    let _ = write!(
        out,
        "<div class=\"picture\"><svg id=\"graph\" width=\"{wide}\" height=\"{high}\" role=\"img\" aria-label=\"graph\">"
    );
    picture.edges(&mut out);
    let most = report.nodes.iter().filter_map(|node| node.cycles).max().unwrap_or(1).max(1);
    for (&id, &spot) in &picture.spots {
        let node = &report.nodes[id.0 as usize];
        picture.node(&mut out, node, picture.at(spot), most);
    }
    out + "</svg></div>"
}

struct Picture {
    spots: BTreeMap<NodeId, Spot>,
    /// What each box reads, through conversions.
    reads: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Top of each line, and behind the last its bottom.
    lines: Vec<usize>,
}

impl Picture {
    fn new(report: &Report, graph: &Graph) -> Self {
        let mut reads: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        // Boxes that stand behind a value, through conversions.
        let mut behind: BTreeMap<ValueId, BTreeSet<NodeId>> = BTreeMap::new();
        let mut spots: BTreeMap<NodeId, Spot> = BTreeMap::new();
        let mut fill: Vec<usize> = Vec::new();
        for (id, node) in graph.nodes() {
            let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
            if inputs.iter().all(|&value| graph.value(value).constant.is_some()) {
                continue;
            }
            let sources: BTreeSet<NodeId> =
                inputs.iter().filter_map(|value| behind.get(value)).flatten().copied().collect();
            let is_conversion = matches!(node.op.as_str(), "QuantizeLinear" | "DequantizeLinear");
            let told = &report.nodes[id.0 as usize];
            let is_cause =
                told.cut.is_some_and(|cut| report.cuts[cut].causes.contains(&(id.0 as usize)));
            let mut seen = sources.clone();
            if !is_conversion || is_cause {
                let deepest = sources.iter().filter_map(|source| spots.get(source));
                let column = deepest.map(|&(column, _)| column + 1).max().unwrap_or(0);
                if column >= fill.len() {
                    fill.resize(column + 1, 0);
                }
                spots.insert(id, (column, fill[column]));
                fill[column] += 1;
                reads.insert(id, sources);
                seen = BTreeSet::from([id]);
            }
            for &value in node.outputs.iter().flatten() {
                behind.insert(value, seen.clone());
            }
        }
        let mut lines = vec![0];
        for line in fill.chunks(COLUMNS) {
            let rows = line.iter().copied().max().unwrap_or(0).max(1);
            lines.push(lines[lines.len() - 1] + rows * STEP_Y + LINE_GAP);
        }
        Self { spots, reads, lines }
    }

    fn size(&self) -> (usize, usize) {
        let columns = self.spots.values().map(|&(column, _)| column + 1).max().unwrap_or(1);
        (columns.min(COLUMNS) * STEP_X + 8, self.lines.last().copied().unwrap_or(0).max(STEP_Y))
    }

    /// The left upper corner of a box.
    fn at(&self, (column, row): Spot) -> (usize, usize) {
        (column % COLUMNS * STEP_X + 6, self.lines[column / COLUMNS] + row * STEP_Y + 4)
    }

    fn edges(&self, out: &mut String) {
        for (id, sources) in &self.reads {
            let to = self.spots[id];
            for source in sources {
                let from = self.spots[source];
                self.edge(out, from, to);
            }
        }
    }

    /// A curve; of an edge to another line only its two ends, which is all that can be followed.
    fn edge(&self, out: &mut String, from: Spot, to: Spot) {
        let ((x1, y1), (x2, y2)) = (self.at(from), self.at(to));
        let (x1, y1, y2) = (x1 + WIDE, y1 + HIGH / 2, y2 + HIGH / 2);
        if from.0 / COLUMNS != to.0 / COLUMNS {
            let _ = write!(
                out,
                "<path class=\"edge far\" d=\"M{x1} {y1}h8M{} {y2}H{x2}\"/>",
                x2.saturating_sub(6)
            );
            return;
        }
        let bend = (x2.saturating_sub(x1) / 2).max(5);
        // A long edge leaves the row of boxes that it passes.
        let dip = if to.0 > from.0 + 1 && y1 == y2 { STEP_Y / 2 } else { 0 };
        let far = if to.0 > from.0 + 1 { " far" } else { "" };
        let _ = match dip {
            0 => write!(
                out,
                "<path class=\"edge{far}\" d=\"M{x1} {y1}C{} {y1} {} {y2} {x2} {y2}\"/>",
                x1 + bend,
                x2 - bend.min(x2)
            ),
            _ => write!(
                out,
                "<path class=\"edge{far}\" d=\"M{x1} {y1}q3 0 4 {dip}H{}q1 -{dip} 4 -{dip}\"/>",
                x2.saturating_sub(4)
            ),
        };
    }

    fn node(&self, out: &mut String, node: &Node, (x, y): (usize, usize), most: u64) {
        let class = match node.program {
            Some(program) if node.cycles.is_some() => format!("p{}", program % PROGRAMS),
            // Melted into the command of another.
            Some(program) => format!("p{} melted", program % PROGRAMS),
            None => "host".to_owned(),
        };
        let mut told = format!("{} {}", node.op, node.shown_name());
        if let Some(macs) = node.macs.filter(|&macs| macs > 0) {
            let _ = write!(told, "\n{} multiplications", grouped(macs));
        }
        match (node.program, node.cycles) {
            (Some(program), Some(cycles)) => {
                let _ = write!(told, "\nprogram {program}, {} cycles", grouped(cycles));
            }
            (Some(program), None) => {
                let _ = write!(told, "\nprogram {program}, part of another command");
            }
            (None, _) => {
                let (rule, reason) = (node.rule.unwrap_or(""), node.reason.as_deref());
                let _ = write!(told, "\non the host [{rule}]: {}", reason.unwrap_or(""));
            }
        }
        let _ = write!(
            out,
            "<g data-t=\"{}\"><rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{WIDE}\" height=\"{HIGH}\" rx=\"4\"/>\
             <text class=\"op\" x=\"{}\" y=\"{}\">{}</text>",
            escape(&told),
            x + WIDE / 2,
            y + 12,
            escape(&short(&node.op))
        );
        // Its share of the longest node's cycles, along the bottom.
        if let Some(cycles) = node.cycles {
            let length =
                usize::try_from(cycles.saturating_mul(WIDE as u64 - 6) / most).unwrap_or(0);
            let _ = write!(
                out,
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"2\" rx=\"1\" fill=\"#fff\" opacity=\".75\"/>",
                x + 3,
                y + HIGH - 3,
                length.max(1)
            );
        }
        *out += "</g>";
    }
}

/// At most six letters of an operator: its capitals where it has several words.
fn short(op: &str) -> String {
    if op.chars().count() <= 6 {
        return op.to_owned();
    }
    let known = [
        ("ConvTranspose", "ConvT"),
        ("GlobalAveragePool", "GAvg"),
        ("GlobalMaxPool", "GMax"),
        ("AveragePool", "AvgP"),
        ("MaxPool", "MaxP"),
        ("HardSigmoid", "HSigm"),
        ("HardSwish", "HSwish"),
        ("BatchNormalization", "BN"),
        ("LayerNormalization", "LN"),
        ("InstanceNormalization", "IN"),
        ("QuantizeLinear", "Q"),
        ("DequantizeLinear", "DQ"),
        ("Transpose", "Transp"),
        ("Reshape", "Resh"),
        ("ReduceMean", "RMean"),
    ];
    let found = known.iter().find(|(name, _)| *name == op).map(|&(_, short)| short.to_owned());
    found.unwrap_or_else(|| op.chars().take(6).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_fits_its_box() {
        for op in ["Conv", "ConvTranspose", "SomethingVeryLong", "Ünïcödé words", ""] {
            assert!(short(op).chars().count() <= 6, "{op}");
        }
    }
}
