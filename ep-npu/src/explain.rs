//! Why each node runs where it does: the plan, for people and for scripts.

mod change;
mod cut;
mod sizes;

pub use cut::Cut;

use crate::graph::{Graph, Node};
use crate::partition::{Plan, Verdict};
use crate::refusal::rule;
use sizes::Sizes;
use std::collections::BTreeMap;

/// What became of each node of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// One line.
    pub summary: String,
    /// One for each node, in node order.
    pub nodes: Vec<NodeReport>,
    /// Number of programs.
    pub groups: usize,
    /// Multiplications of all nodes whose shapes are known, for a batch of 1.
    pub macs: u64,
    /// Of those, what the NPU does.
    pub macs_taken: u64,
    /// Nodes that multiply, of unknown shapes.
    pub macs_unknown: usize,
    /// What stays on the host, by neighbours that do so together; dearest first.
    pub cuts: Vec<Cut>,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    /// Name in the model; may be empty.
    pub name: String,
    /// Operator.
    pub op: String,
    /// The program that it is part of, when it is taken.
    pub group: Option<usize>,
    /// The [`rule`] by which it is not; empty when taken.
    pub rule: &'static str,
    /// What was found; empty when taken.
    pub reason: String,
    /// The attribute that is to blame, when it is one.
    pub attribute: Option<String>,
    /// The smallest change that would have the node taken, where it is known.
    pub change: Option<String>,
    /// Multiplications for a batch of 1; `None` when its shapes are unknown.
    pub macs: Option<u64>,
    /// The cut that it is in, when it is not taken.
    pub cut: Option<usize>,
    /// By how many codes its results can differ from the CPU provider's on the same inputs.
    pub bound_codes: u8,
}

/// Explains `plan`, which is of `graph`.
pub fn explain(graph: &Graph, plan: &Plan) -> Explanation {
    let sizes = Sizes::new(graph);
    let (cuts, of_node) = cut::cuts(graph, plan, &sizes);
    let mut explained = Explanation {
        summary: plan.summary(graph),
        nodes: Vec::with_capacity(plan.verdicts.len()),
        groups: plan.groups.len(),
        macs: 0,
        macs_taken: 0,
        macs_unknown: 0,
        cuts,
    };
    for (verdict, cut) in plan.verdicts.iter().zip(of_node) {
        let macs = sizes.macs(verdict.node);
        let count = macs.unwrap_or(0);
        explained.macs_unknown += usize::from(macs.is_none());
        explained.macs = explained.macs.saturating_add(count);
        if verdict.taken.is_some() {
            explained.macs_taken = explained.macs_taken.saturating_add(count);
        }
        explained.nodes.push(NodeReport { cut, ..report(graph, verdict, macs) });
    }
    explained
}

impl Explanation {
    /// Share of the multiplications that the NPU does; `None` when there are none, or some are not known.
    pub fn share(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a share, to be read by people")]
        let share = self.macs_taken as f64 / self.macs as f64;
        (self.macs > 0 && self.macs_unknown == 0).then_some(share)
    }
}

fn report(graph: &Graph, verdict: &Verdict, macs: Option<u64>) -> NodeReport {
    let node = graph.node(verdict.node);
    NodeReport {
        name: node.name.clone(),
        op: node.op.clone(),
        group: verdict.taken,
        rule: verdict.rule,
        reason: verdict.reason.clone(),
        attribute: attribute(node, verdict),
        change: change::change(node, verdict),
        macs,
        cut: None,
        bound_codes: verdict.bound_codes,
    }
}

/// The attribute that a reason names.
fn attribute(node: &Node, verdict: &Verdict) -> Option<String> {
    if verdict.rule != rule::ATTRIBUTE {
        return None;
    }
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = verdict.reason.split(|c| !is_letter(c));
    words.find(|word| node.attributes.contains_key(*word)).map(str::to_owned)
}

/// Refused nodes by rule, most frequent first.
pub fn by_rule(explained: &Explanation) -> Vec<(&'static str, usize)> {
    let mut rules: BTreeMap<&'static str, usize> = BTreeMap::new();
    for node in explained.nodes.iter().filter(|node| node.group.is_none()) {
        *rules.entry(node.rule).or_default() += 1;
    }
    let mut rules: Vec<_> = rules.into_iter().collect();
    rules.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    rules
}
