//! `npu explain`: for each node of a model, where it runs, why, and what that costs.

#[path = "explain/page.rs"]
mod page;

use anyhow::{Context as _, Result};
use ep_npu::explain::{self, Explanation};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::host::{Form, OrtArgs};
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
    /// Which form of the graph to explain.
    #[arg(long, value_enum, default_value_t = Form::Auto)]
    graph: Form,
    #[command(flatten)]
    ort: OrtArgs,
}

/// Version of the JSON form.
const SCHEMA: u16 = 3;

/// The report, as JSON has it.
#[derive(Serialize)]
struct Report {
    schema: u16,
    model: String,
    device: String,
    batch: u32,
    /// Who made the form of the graph: `onnxruntime` and its version, or `own`.
    graph: String,
    graph_note: String,
    summary: String,
    /// How near to the CPU provider's results were asked to be.
    exactness: &'static str,
    /// Nodes whose results can differ from it.
    nodes_bounded: usize,
    nodes_total: usize,
    nodes_taken: usize,
    programs: usize,
    macs: u64,
    macs_taken: u64,
    /// `None` when some node that multiplies has unknown shapes.
    macs_share: Option<f64>,
    macs_unknown: usize,
    cycles: u64,
    /// What stays on the host, by neighbours that do so together; dearest first.
    cuts: Vec<Cut>,
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Cut {
    /// Places in `nodes`.
    nodes: Vec<usize>,
    /// Those that the others follow.
    causes: Vec<usize>,
    bytes_in: u64,
    bytes_out: u64,
    /// Programs of the NPU that it lies between.
    programs: usize,
    macs: u64,
    macs_share: Option<f64>,
    /// Estimates, for a batch of 1.
    host_us: u64,
    price_us: u64,
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
    /// Place in `cuts`.
    cut: Option<usize>,
    /// By how many codes its results can differ from the CPU provider's on the same inputs.
    bound_codes: u8,
}

/// Explains as `args` say.
pub(crate) fn run(args: &Args) -> Result<()> {
    let form = || args.graph.graph(&args.model.model, &args.ort);
    let formed = args.model.progress.during("loading", form)?;
    let planned = args.model.plan_of(formed.graph)?;
    let programs = planned.compile()?;
    let explained = explain::explain(&planned.graph, &planned.plan);
    let mut report = Report::new(args, &planned, &explained, &programs);
    (report.graph, report.graph_note) = (formed.form, formed.note);
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

impl Cut {
    fn new(cut: &explain::Cut, explained: &Explanation) -> Self {
        let explain::Cut { nodes, causes, bytes_in, bytes_out, programs, macs, .. } = cut.clone();
        #[expect(clippy::cast_precision_loss, reason = "a share, to be read by people")]
        let share = macs as f64 / explained.macs as f64;
        let macs_share = (explained.macs > 0 && explained.macs_unknown == 0).then_some(share);
        let [host_us, price_us] = [cut.host_ns, cut.price_ns].map(|ns| ns.div_ceil(1000));
        Self { nodes, causes, bytes_in, bytes_out, programs, macs, macs_share, host_us, price_us }
    }

    /// The price in one line.
    fn text(&self) -> String {
        let mut out = format!("{} nodes, about {} us", self.nodes.len(), self.price_us);
        // Writing to a string cannot fail.
        let _ = write!(out, " ({} us on the host;", self.host_us);
        let _ = write!(out, " {} bytes there, {} back", self.bytes_in, self.bytes_out);
        if let Some(share) = self.macs_share.filter(|_| self.macs > 0) {
            let _ = write!(out, "; {:.1} % of the MAC", 100.0 * share);
        }
        if self.programs > 1 {
            let _ = write!(out, "; between {} programs", self.programs);
        }
        out + ")"
    }
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
                    cut: node.cut,
                    bound_codes: node.bound_codes,
                }
            })
            .collect();
        Self {
            schema: SCHEMA,
            model: args.model.model.display().to_string(),
            device: args.model.device.clone(),
            batch: args.model.batch,
            graph: String::new(),
            graph_note: String::new(),
            summary: explained.summary.clone(),
            exactness: args.model.exactness.name(),
            nodes_bounded: nodes.iter().filter(|node| node.bound_codes > 0).count(),
            nodes_total: planned.graph.node_count(),
            nodes_taken: nodes.iter().filter(|node| node.taken).count(),
            programs: programs.len(),
            macs: explained.macs,
            macs_taken: explained.macs_taken,
            macs_share: explained.share(),
            macs_unknown: explained.macs_unknown,
            cycles: programs.iter().map(Program::cycles).sum(),
            cuts: explained.cuts.iter().map(|cut| Cut::new(cut, explained)).collect(),
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
        let _ = writeln!(out, "{}", self.graph_note);
        if self.nodes_bounded > 0 {
            let _ = writeln!(
                out,
                "{} node(s) can differ from the CPU by a code, on the same inputs (exactness={}):",
                self.nodes_bounded, self.exactness
            );
        }
        // Conversions follow their operators.
        let is_operator =
            |node: &&Node| !matches!(node.op.as_str(), "QuantizeLinear" | "DequantizeLinear");
        for node in self.nodes.iter().filter(|node| node.bound_codes > 0).filter(is_operator) {
            let place = if node.taken { "npu " } else { "host" };
            let (op, name, most) = (&node.op, node.shown_name(), node.bound_codes);
            let _ = writeln!(out, "{place}    {op:<18} {name:<40} at most {most} code");
        }
        for (index, cut) in self.cuts.iter().enumerate() {
            let _ = writeln!(out, "\ncut {index}: {}", cut.text());
            for &place in &cut.nodes {
                self.nodes[place].refused(&mut out, cut.causes.contains(&place));
            }
        }
        for node in self.nodes.iter().filter(|node| all && node.taken) {
            let program = node.program.unwrap_or_default();
            let cycles = node.cycles.map_or(String::new(), |c| format!("{c} cycles"));
            let (op, name) = (&node.op, node.shown_name());
            let _ = writeln!(out, "npu {program:<3} {op:<18} {name:<40} {cycles}");
        }
        out
    }
}

impl Node {
    fn shown_name(&self) -> &str {
        if self.name.is_empty() { "(unnamed)" } else { &self.name }
    }

    /// The lines of a node that is left; of one that follows others, only the first.
    fn refused(&self, out: &mut String, is_cause: bool) {
        let (op, name) = (&self.op, self.shown_name());
        // Writing to a string cannot fail.
        let _ = writeln!(out, "host    {op:<18} {name}");
        if !is_cause {
            return;
        }
        let (rule, reason) = (self.rule.unwrap_or(""), self.reason.as_deref());
        let _ = writeln!(out, "        {rule}: {}", reason.unwrap_or(""));
        if let Some(attribute) = &self.attribute {
            let _ = writeln!(out, "        attribute: {attribute}");
        }
        if let Some(change) = &self.change {
            let _ = writeln!(out, "        change: {change}");
        }
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
