//! Floats of a graph input that are put elsewhere before they are quantised: Slice and Unsqueeze of an
//! image, for one.
//!
//! Each such operator is a unit of its own, which several others may read. To quantise first and move
//! codes then is the same.

use super::form::is_quantize;
use super::rearrange::{Rearrange, Step};
use super::split::Split;
use super::unit::ShapeChange;
use crate::graph::{ElementType, Graph, Node, ValueId};

/// Operators in a row that are followed.
const DEPTH: usize = 8;

/// Where floats go.
#[derive(Clone, Debug, PartialEq)]
pub enum Carry {
    /// Elsewhere.
    Rearrange(Rearrange),
    /// Nowhere: the shape changes.
    Reshape(ShapeChange),
    /// To several tensors.
    Split {
        /// How it is parted.
        how: Split,
        /// Which part each of the tensors is.
        indices: Vec<usize>,
    },
}

impl Carry {
    /// The steps from a tensor of shape `input` to one of shape `output`, the `nth` that the unit
    /// writes.
    ///
    /// # Panics
    ///
    /// When `shape` has not taken these steps before.
    pub fn steps(&self, node: &Node, input: &[usize], output: &[usize], nth: usize) -> Vec<Step> {
        match self {
            Self::Rearrange(how) => {
                how.steps(node, input).expect("`shape` has taken these steps before")
            }
            Self::Reshape(_) => vec![Step::Reshape(output.to_vec())],
            Self::Split { how, indices } => {
                let step = how.step(node, input, indices[nth]);
                vec![step.expect("`shape` has taken this step before")]
            }
        }
    }
}

/// What `node` reads and writes, when all that it does is to carry floats of a graph input to
/// QuantizeLinear nodes.
pub(super) fn ends(graph: &Graph, node: &Node) -> Option<(ValueId, ValueId)> {
    let is_carried = from_an_input(graph, node) && feeds_conversions(graph, node, DEPTH);
    is_carried.then_some((node.input(0)?, node.output(0)?))
}

/// The same of a node with several outputs, of which each that is read has its number with it.
pub(super) fn parts(graph: &Graph, node: &Node) -> Option<(ValueId, Vec<(usize, ValueId)>)> {
    let is_carried = from_an_input(graph, node) && feeds_conversions(graph, node, DEPTH);
    let outputs = node.outputs.iter().enumerate();
    let outputs = outputs.filter_map(|(index, &output)| Some((index, output?)));
    let read = outputs.filter(|(_, value)| !graph.value(*value).consumers.is_empty());
    is_carried.then_some((node.input(0)?, read.collect()))
}

/// Whether `node` carries floats that come from a graph input and were only carried before.
pub(super) fn from_an_input(graph: &Graph, node: &Node) -> bool {
    let mut node = node;
    for _ in 0..DEPTH {
        let Some(input) = node.input(0).filter(|_| may_carry(node)) else { return false };
        let value = graph.value(input);
        match value.producer {
            Some(before) => node = graph.node(before),
            None => {
                let ty = value.ty.as_ref();
                return value.constant.is_none()
                    && ty.is_some_and(|ty| ty.element == ElementType::F32);
            }
        }
    }
    false
}

fn feeds_conversions(graph: &Graph, node: &Node, depth: usize) -> bool {
    let goes_on = |output: ValueId, reader: &Node| {
        let is_first = reader.input(0) == Some(output);
        is_first
            && (is_quantize(reader)
                || may_carry(reader) && feeds_conversions(graph, reader, depth - 1))
    };
    let readers = |output: ValueId| &graph.value(output).consumers;
    let mut outputs = node.outputs.iter().flatten();
    let is_read = outputs.clone().any(|&output| !readers(output).is_empty());
    depth > 0
        && is_read
        && outputs.all(|&output| {
            !graph.is_output(output)
                && readers(output).iter().all(|&id| goes_on(output, graph.node(id)))
        })
}

fn may_carry(node: &Node) -> bool {
    let names = [
        "Slice",
        "Transpose",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "DepthToSpace",
        "SpaceToDepth",
        "Split",
    ];
    names.iter().any(|name| node.is(name))
}
