//! Compile: one program for each claim that ONNX Runtime fused into a node.

use crate::run::{Executable, RunOptions};

use super::compute::NodeProgram;
use super::import;
use super::provider::Provider;
use super::status::{Failure, Kind};
use super::view::{Graph, Node};

/// The program of `fused`, the node that stands for all of `graph`.
pub(crate) fn program(
    provider: &Provider,
    graph: Graph<'_>,
    fused: Node<'_>,
) -> Result<Box<NodeProgram>, Failure> {
    let part = import::part(graph, fused)?;
    let input_names =
        part.inputs().iter().map(|&id| part.value(id).name.clone()).collect::<Vec<_>>();
    let options = run_options(provider);
    let (context, device) = (provider.context.context().clone(), provider.device.clone());
    let executable = Executable::new(part, context, device, options)
        .map_err(|error| Failure::from_error(Kind::Provider, &error).within("NPU compiler"))?;
    Ok(NodeProgram::new(provider, executable, input_names))
}

fn run_options(provider: &Provider) -> RunOptions {
    let mut options = RunOptions::default();
    if let Some(timeout) = provider.options.timeout {
        options.timeout = timeout;
    }
    options.dump.clone_from(&provider.options.dump);
    options.deny_copy = provider.options.deny_copy;
    options
}
