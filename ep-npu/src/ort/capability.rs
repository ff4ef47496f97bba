//! GetCapability: which nodes of a graph run on the NPU, said to ONNX Runtime and to the user.

use crate::exactness::Exactness;
use crate::graph;
use crate::partition::{self, Plan, PlanOptions};

use super::api::{Severity, call};
use ort_sys::OrtNode;

use super::borrowed;
use super::ep_context;
use super::provider::Provider;
use super::status::Failure;
use super::sys::{OrtEpGraphSupportInfo, OrtNodeFusionOptions};
use super::view::{Graph, Node};

/// With this set to 1, each refused node is told at a level that is shown by default.
const VERBOSE: &str = "NPU_VERBOSE";

/// Claims what the compiler takes, group by group, and logs the rest with its reasons.
pub(crate) fn claim(
    provider: &Provider,
    graph: Graph<'_>,
    claims: *mut OrtEpGraphSupportInfo,
) -> Result<(), Failure> {
    if graph.is_nested()? {
        return refuse_body(provider, graph);
    }
    let nodes = graph.nodes()?;
    if nodes.is_empty() {
        return Ok(());
    }
    if claim_compiled(provider, &nodes, claims)? {
        return Ok(());
    }
    borrowed::seen(graph, |imported| {
        imported.set_exactness(provider.options.exactness);
        let mut options = PlanOptions::default();
        options.min_gain = provider.options.min_gain;
        let plan = partition::plan_with(imported, provider.device.limits(), options);
        for group in &plan.groups {
            add(provider, &nodes, group, claims)?;
        }
        report(provider, imported, &plan);
        Ok(())
    })
}

/// Claims each node that holds what this provider compiled before; false when there is none. In such a
/// model the rest was refused when it was compiled, and is not looked at again.
fn claim_compiled(
    provider: &Provider,
    nodes: &[Node<'_>],
    claims: *mut OrtEpGraphSupportInfo,
) -> Result<bool, Failure> {
    let mut claimed = 0;
    let mut left = Vec::new();
    for node in nodes {
        if ep_context::is_ours(*node)? {
            fuse(provider, &[node.raw()], claims)?;
            claimed += 1;
        } else {
            let (name, op) = (node.name()?, node.op()?);
            left.push(format!("NPU: node `{name}` ({op}) stays on the CPU: it was not compiled"));
        }
    }
    if claimed > 0 {
        let line = format!(
            "NPU takes {claimed} part(s) that were compiled before; {} nodes stay on the CPU",
            left.len()
        );
        match provider.options.exactness {
            Exactness::Require => provider.logger.log(Severity::Info, &line),
            Exactness::Bounded => {
                let line = line
                    + "; with `exactness=bounded` their results may differ from the CPU's by codes";
                provider.logger.log(Severity::Warning, &line);
            }
        }
        provider.refuse(left);
    }
    Ok(claimed > 0)
}

/// The bodies of If, Loop and Scan stay on the CPU: they run a few nodes many times.
fn refuse_body(provider: &Provider, graph: Graph<'_>) -> Result<(), Failure> {
    let count = graph.nodes()?.len();
    if count > 0 {
        let name = graph.name()?;
        let line = format!("NPU: {count} nodes in the nested graph `{name}` stay on the CPU");
        provider.logger.log(Severity::Info, &line);
        provider.refuse(vec![line]);
    }
    Ok(())
}

fn add(
    provider: &Provider,
    nodes: &[Node<'_>],
    group: &[graph::NodeId],
    claims: *mut OrtEpGraphSupportInfo,
) -> Result<(), Failure> {
    let handle = |id: &graph::NodeId| {
        let node = usize::try_from(id.0).ok().and_then(|index| nodes.get(index));
        node.map(|node| node.raw()).ok_or_else(|| Failure::provider(format!("no node {}", id.0)))
    };
    let handles = group.iter().map(handle).collect::<Result<Vec<_>, _>>()?;
    fuse(provider, &handles, claims)
}

fn fuse(
    provider: &Provider,
    handles: &[*const OrtNode],
    claims: *mut OrtEpGraphSupportInfo,
) -> Result<(), Failure> {
    let options = OrtNodeFusionOptions {
        version: provider.api().version(),
        // The program has its own copy, in the device's layout.
        drop_constant_initializers: true,
    };
    call!(
        provider.api(),
        ep.add_nodes_to_fuse(claims, handles.as_ptr(), handles.len(), &raw const options)
    )
}

fn report(provider: &Provider, graph: &graph::Graph, plan: &Plan) {
    let refused: Vec<String> = plan
        .verdicts
        .iter()
        .filter(|verdict| verdict.taken.is_none())
        .map(|verdict| {
            let node = graph.node(verdict.node);
            let (name, op) = (&node.name, &node.op);
            format!(
                "NPU: node `{name}` ({op}) stays on the CPU: {} ({})",
                verdict.reason, verdict.rule
            )
        })
        .collect();
    let is_exact = plan.verdicts.iter().all(|verdict| verdict.bound_codes == 0);
    let is_news = !refused.is_empty() || !is_exact;
    let summary = if is_news { Severity::Warning } else { Severity::Info };
    provider.logger.log(summary, &plan.summary(graph));
    let verbose = std::env::var(VERBOSE).is_ok_and(|value| value == "1");
    let each = if verbose { Severity::Warning } else { Severity::Info };
    for line in &refused {
        provider.logger.log(each, line);
    }
    provider.refuse(refused);
}
