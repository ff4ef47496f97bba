//! ONNX Runtime's graph to ours: nodes in its order, names, types, attributes, and the constants.

use std::collections::HashSet;

use bytes::Bytes;

use crate::graph::{ElementType, Graph, GraphBuilder, GraphError, Node, Tensor, ValueId};

use super::factory::EP_NAME;
use super::status::{Failure, Kind};
use super::view;

/// A whole graph, as GetCapability shows it. Node `i` of the result is node `i` of `graph.nodes()`.
/// `hold` is how the bytes of its constants are kept.
pub(crate) fn whole(graph: view::Graph<'_>, hold: Hold<'_>) -> Result<Graph, Failure> {
    let inputs = graph.inputs()?;
    let outputs = graph.outputs()?;
    import(graph, &inputs, &outputs, hold)
}

/// The nodes of one claim, as Compile shows them: inputs and outputs are those of the node that
/// stands for them, in its order, which is the order in which Compute gets them. `hold` is how the bytes
/// of its constants are kept.
pub(crate) fn part(
    graph: view::Graph<'_>,
    fused: view::Node<'_>,
    hold: Hold<'_>,
) -> Result<Graph, Failure> {
    let inputs: Vec<_> = fused.inputs()?.into_iter().flatten().collect();
    let outputs: Vec<_> = fused.outputs()?.into_iter().flatten().collect();
    import(graph, &inputs, &outputs, hold)
}

/// How the bytes of constants are kept.
type Hold<'h> = &'h dyn Fn(&[u8]) -> Bytes;

fn import(
    graph: view::Graph<'_>,
    inputs: &[view::ValueInfo<'_>],
    outputs: &[view::ValueInfo<'_>],
    hold: Hold<'_>,
) -> Result<Graph, Failure> {
    let mut import = Import::new(GraphBuilder::new(&graph.name()?), hold);
    for &input in inputs {
        let id = import.value(input)?;
        if !import.given.contains(&id) {
            import.give(id);
        }
    }
    for node in graph.nodes()? {
        let (name, op) = (node.name()?, node.op()?);
        import.node(node).map_err(|failure| failure.within(&format!("node `{name}` ({op})")))?;
    }
    for &output in outputs {
        let id = import.value(output)?;
        import.builder.add_output(id);
    }
    import.builder.finish().map_err(invalid)
}

/// The graph so far.
struct Import<'h> {
    hold: Hold<'h>,
    builder: GraphBuilder,
    /// Values whose type and constant have been read.
    seen: HashSet<ValueId>,
    /// Values that a node may read: inputs, constants, outputs of the nodes so far.
    given: HashSet<ValueId>,
}

impl<'h> Import<'h> {
    fn new(builder: GraphBuilder, hold: Hold<'h>) -> Self {
        Self { hold, builder, seen: HashSet::new(), given: HashSet::new() }
    }

    fn give(&mut self, id: ValueId) {
        self.builder.add_input(id);
        self.given.insert(id);
    }

    /// The value, with its type and its constant read on first sight.
    fn value(&mut self, info: view::ValueInfo<'_>) -> Result<ValueId, Failure> {
        let name = info.name()?;
        let id = self.builder.value(&name);
        if !self.seen.insert(id) {
            return Ok(id);
        }
        if let Some(ty) = info.tensor_type()? {
            self.builder.set_type(id, ty);
        }
        if let Some(constant) = info.constant()? {
            let tensor =
                tensor(constant, self.hold).map_err(|f| f.within(&format!("constant `{name}`")))?;
            self.builder.set_constant(id, tensor).map_err(invalid)?;
            self.given.insert(id);
        }
        Ok(id)
    }

    fn node(&mut self, node: view::Node<'_>) -> Result<(), Failure> {
        let mut inputs = Vec::new();
        // What the body of an If reads is read by the If: whoever writes it has one reader more.
        for input in node.inputs()?.into_iter().chain(node.implicit_inputs()?) {
            let id = input.map(|info| self.value(info)).transpose()?;
            // Values from the graph around this one, and constants that a caller may override.
            if let Some(id) = id.filter(|id| !self.given.contains(id)) {
                self.give(id);
            }
            inputs.push(id);
        }
        let mut outputs = Vec::new();
        for output in node.outputs()? {
            outputs.push(output.map(|info| self.value(info)).transpose()?);
        }
        self.given.extend(outputs.iter().flatten());
        let described = Node {
            name: node.name()?,
            op: node.op()?,
            domain: domain(node)?,
            inputs,
            outputs,
            attributes: node.attributes()?.into_iter().collect(),
        };
        self.builder.add_node(described).map_err(invalid)?;
        Ok(())
    }
}

/// The node's domain; for a node that another provider has, one that no operator of ours is in.
fn domain(node: view::Node<'_>) -> Result<String, Failure> {
    let owner = node.owner()?;
    if owner.is_empty() || owner == EP_NAME {
        return node.domain();
    }
    Ok(format!("taken by {owner}"))
}

/// A constant; types that nothing here reads keep their shape only.
fn tensor(value: view::Value<'_>, hold: Hold<'_>) -> Result<Tensor, Failure> {
    let shape = value.shape()?;
    let bytes = match shape.element {
        ElementType::Other(_) => Bytes::new(),
        _ => hold(value.bytes(&shape)?),
    };
    Ok(Tensor { element: shape.element, shape: shape.dims, bytes })
}

fn invalid(error: GraphError) -> Failure {
    Failure::from_error(Kind::InvalidGraph, &error)
}
