//! `npu explain`: for each node of a model, where it runs, why, and what that costs.

#[path = "explain/page.rs"]
mod page;

use anyhow::{Context as _, Result};
use ep_npu::explain::{self, Explanation};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::model::{ModelArgs, Planned, Program};

/// Say for each node of a model whether the NPU takes it, and why not.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Write one self-contained page: the graph, the memory map and the cycles as pictures.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// List taken nodes too.
    #[arg(long)]
    all: bool,
}

/// Version of the JSON form.
const SCHEMA: u16 = 1;

/// The report, as JSON has it.
#[derive(Serialize)]
struct Report {
    schema: u16,
    model: String,
    device: String,
    batch: u32,
    summary: String,
    nodes_total: usize,
    nodes_taken: usize,
    programs: usize,
    macs: u64,
    macs_taken: u64,
    /// `None` when some node that multiplies has unknown shapes.
    macs_share: Option<f64>,
    macs_unknown: usize,
    cycles: u64,
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Node {
    name: String,
    op: String,
    taken: bool,
    program: Option<usize>,
    rule: Option<&'static str>,
    reason: Option<String>,
    attribute: Option<String>,
    change: Option<String>,
    macs: Option<u64>,
    /// Modelled cycles of the commands that are named for the node.
    cycles: Option<u64>,
}

/// Explains as `args` say.
pub(crate) fn run(args: &Args) -> Result<()> {
    let planned = args.model.plan()?;
    let programs = planned.compile()?;
    let explained = explain::explain(&planned.graph, &planned.plan);
    let report = Report::new(args, &planned, &explained, &programs);
    if let Some(path) = &args.html {
        let page = page::page(&report, &planned, &programs);
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.text(args.all, &explained),
    };
    crate::print(&text)
}

impl Report {
    fn new(args: &Args, planned: &Planned, explained: &Explanation, programs: &[Program]) -> Self {
        let cycles: Vec<BTreeMap<&str, u64>> = programs.iter().map(cycles_by_name).collect();
        let nodes: Vec<Node> = explained
            .nodes
            .iter()
            .map(|node| {
                let is_taken = node.group.is_some();
                let priced =
                    node.group.and_then(|group| cycles.get(group)?.get(node.name.as_str()));
                Node {
                    name: node.name.clone(),
                    op: node.op.clone(),
                    taken: is_taken,
                    program: node.group,
                    rule: (!is_taken).then_some(node.rule),
                    reason: (!is_taken).then(|| node.reason.clone()),
                    attribute: node.attribute.clone(),
                    change: node.change.clone(),
                    macs: node.macs,
                    cycles: priced.copied(),
                }
            })
            .collect();
        Self {
            schema: SCHEMA,
            model: args.model.model.display().to_string(),
            device: args.model.device.clone(),
            batch: args.model.batch,
            summary: explained.summary.clone(),
            nodes_total: planned.graph.node_count(),
            nodes_taken: nodes.iter().filter(|node| node.taken).count(),
            programs: programs.len(),
            macs: explained.macs,
            macs_taken: explained.macs_taken,
            macs_share: explained.share(),
            macs_unknown: explained.macs_unknown,
            cycles: programs.iter().map(Program::cycles).sum(),
            nodes,
        }
    }

    fn share_text(&self) -> String {
        self.macs_share.map_or("?".to_owned(), |share| format!("{:.1} %", 100.0 * share))
    }

    fn text(&self, all: bool, explained: &Explanation) -> String {
        let mut out = format!("{}: {}\n", self.model, self.summary);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} of {} MAC on the NPU, {} program(s), {} modelled cycles at batch {}",
            self.share_text(),
            self.macs,
            self.programs,
            self.cycles,
            self.batch
        );
        if self.macs_unknown > 0 {
            let _ = writeln!(
                out,
                "{} node(s) that multiply have unknown shapes; run ONNX shape inference for the share",
                self.macs_unknown
            );
        }
        for (rule, count) in explain::by_rule(explained) {
            let _ = writeln!(out, "  {count:>5} node(s) left by rule {rule}");
        }
        for node in &self.nodes {
            let name = if node.name.is_empty() { "(unnamed)" } else { &node.name };
            match (node.taken, node.program) {
                (true, Some(program)) if all => {
                    let cycles = node.cycles.map_or(String::new(), |c| format!("{c} cycles"));
                    let _ = writeln!(out, "npu {program:<3} {:<18} {name:<40} {cycles}", node.op);
                }
                (true, _) => {}
                (false, _) => {
                    let (rule, reason) = (node.rule.unwrap_or(""), node.reason.as_deref());
                    let _ = writeln!(out, "host    {:<18} {name}", node.op);
                    let _ = writeln!(out, "        {rule}: {}", reason.unwrap_or(""));
                    if let Some(attribute) = &node.attribute {
                        let _ = writeln!(out, "        attribute: {attribute}");
                    }
                    if let Some(change) = &node.change {
                        let _ = writeln!(out, "        change: {change}");
                    }
                }
            }
        }
        out
    }
}

/// Cycles of a program's commands, by the name of their node.
fn cycles_by_name(program: &Program) -> BTreeMap<&str, u64> {
    let mut cycles = BTreeMap::new();
    for (command, cost) in program.container.image.commands.iter().zip(&program.costs) {
        if let Some(name) = program.container.name(command.header().op_id) {
            *cycles.entry(name).or_default() += cost.cycles;
        }
    }
    cycles
}
