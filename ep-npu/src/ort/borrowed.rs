//! Graphs whose constants lie in ONNX Runtime's memory, for as long as GetCapability or Compile looks at
//! them: weights are not copied to be planned with, or to be packed for the device.
//! Unsafe: it shows memory of the callback as if it lived for ever.

use super::import;
use super::status::Failure;
use super::view;
use crate::graph::Graph;
use crate::run::Executable;
use bytes::Bytes;

/// Has `look` look at the whole of `graph`, of which it must keep no constant.
pub(super) fn seen(
    graph: view::Graph<'_>,
    look: impl FnOnce(&mut Graph) -> Result<(), Failure>,
) -> Result<(), Failure> {
    look(&mut import::whole(graph, &view)?)
}

/// What `make` compiles of the claim that `fused` stands for, settled: nothing of it is a view of ONNX
/// Runtime's memory any more.
///
/// `make` keeps no constant of the graph that it is given anywhere but in the executable.
pub(super) fn compiled(
    graph: view::Graph<'_>,
    fused: view::Node<'_>,
    make: impl FnOnce(Graph) -> Result<Executable, Failure>,
) -> Result<Executable, Failure> {
    let part = import::part(graph, fused, &view)?;
    let mut executable = make(part)?;
    executable.settle();
    Ok(executable)
}

fn view(bytes: &[u8]) -> Bytes {
    // SAFETY: constants of a graph in a callback live as long as it does. `seen` is within it, and lends
    // the graph only, so that none of them is kept. So is `compiled`, and its executable is settled
    // before it returns; where `make` fails, the graph is dropped there.
    let bytes: &'static [u8] = unsafe { std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) };
    Bytes::from_static(bytes)
}
