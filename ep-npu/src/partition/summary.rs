//! The placement in one line, for a log.

use super::Plan;
use crate::graph::Graph;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Reasons longer than this are cut; verdicts have the whole.
const REASON_CHARS: usize = 160;

/// `NPU takes 148 of 150 nodes in 1 group; left to the CPU: Softmax x1 (no exact form ...)`.
pub(super) fn line(plan: &Plan, graph: &Graph) -> String {
    let taken = plan.verdicts.iter().filter(|verdict| verdict.taken.is_some()).count();
    let groups = plan.groups.len();
    let plural = if groups == 1 { "" } else { "s" };
    let all = graph.node_count();
    let mut line = format!("NPU takes {taken} of {all} nodes in {groups} group{plural}");
    // Writing to a string does not fail.
    let bounded = plan.verdicts.iter().filter(|verdict| verdict.bound_codes > 0);
    let (count, of_npu) = bounded.fold((0, 0), |(count, of_npu), verdict| {
        (count + 1, of_npu + usize::from(verdict.taken.is_some()))
    });
    if count > 0 {
        let exact = taken - of_npu;
        let most = plan.verdicts.iter().map(|verdict| verdict.bound_codes).max().unwrap_or(1);
        let codes = if most == 1 { "1 code".to_owned() } else { format!("{most} codes") };
        let _ = write!(line, "; {of_npu} within {codes} of the CPU's, {exact} exact");
        if count > of_npu {
            let beside = count - of_npu;
            let _ = write!(line, "; {beside} on the CPU within {codes} of the whole model's");
        }
    }
    let mut left: BTreeMap<(bool, &str, &str), (usize, &str)> = BTreeMap::new();
    for verdict in plan.verdicts.iter().filter(|verdict| verdict.taken.is_none()) {
        let op = graph.node(verdict.node).op.as_str();
        let is_conversion = matches!(op, "QuantizeLinear" | "DequantizeLinear");
        let entry = left.entry((is_conversion, op, verdict.rule)).or_insert((0, &verdict.reason));
        entry.0 += 1;
    }
    // Conversions follow their operators; they are news only when no operator is left.
    let has_operators = left.keys().any(|(is_conversion, ..)| !is_conversion);
    let named = left.iter().filter(|((is_conversion, ..), _)| !(*is_conversion && has_operators));
    for (index, ((_, op, _), (count, reason))) in named.enumerate() {
        let lead = if index == 0 { "; left to the CPU: " } else { ", " };
        let short: String = reason.chars().take(REASON_CHARS).collect();
        let dots = if short.len() < reason.len() { "…" } else { "" };
        let _ = write!(line, "{lead}{op} x{count} ({short}{dots})");
    }
    line
}
