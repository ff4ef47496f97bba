//! Units of ReduceMean and ReduceSum, which the CPU provider computes in float.
//!
//! Its order of summation follows from where the reduced dimensions stand. It also moves transpositions
//! through reductions, when there are some on both sides that may meet; then they stand elsewhere.

use super::codes::Codes;
use super::form::Former;
use super::reduce::axes;
use super::unit::{Kind, Unit};
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::refusal::Refusal;

/// A sum or mean over whole dimensions.
#[derive(Clone, Debug)]
pub struct Sum {
    /// The dimensions; all of them when `None`.
    pub axes: Option<Vec<i64>>,
    /// Whether they stay, with length 1.
    pub keep: bool,
    /// Whether the sum is divided by how many elements it has.
    pub is_mean: bool,
    /// Codes of the input.
    pub input: Codes,
    /// Codes of the output.
    pub output: Codes,
    /// Whether the CPU provider may have moved a transposition through it.
    pub is_exposed: bool,
}

impl Sum {
    /// Whether `count` elements have the same code in whatever order they are added.
    ///
    /// Sums of codes are exact. The float sum lies within a bound of them, and no sum of codes lies
    /// so near a tie.
    pub fn any_order_will_do(&self, count: usize) -> bool {
        const MOST: usize = 1 << 12;
        let (Ok(n), true) = (i32::try_from(count), count <= MOST) else { return false };
        let (zero_point, scale) = (i32::from(self.input.zero_point), f64::from(self.input.scale));
        let parts = if self.is_mean { f64::from(n) } else { 1.0 };
        let step = scale / parts / f64::from(self.output.scale);
        let most = f64::from(n) * f64::from(zero_point.max(255 - zero_point));
        // Each element, each addition and both divisions round once; a little is left for this here.
        let bound = (f64::from(n) + 6.0) * 2_f64.powi(-24) * most * step * 1.01;
        let zero = f64::from(self.output.zero_point);
        let (low, high) = (-zero - 1.0 - bound, 256.0 - zero + bound);
        (-n * zero_point..=n * (255 - zero_point)).all(|sum| {
            let value = f64::from(sum) * step;
            !(low..high).contains(&value) || ((value - value.floor()) - 0.5).abs() > bound
        })
    }
}

/// ReduceMean and ReduceSum.
pub(super) fn sum(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let axes = axes(&unit)?;
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let is_mean = node.op == "ReduceMean";
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    let source = unit.input();
    let is_exposed = source.is_none_or(|source| is_exposed(unit.graph, source, value));
    Ok(unit.finish(value, Kind::Sum(Sum { axes, keep, is_mean, input, output, is_exposed })))
}

/// Whether transpositions before `source` may be moved to others behind `result`.
pub(super) fn is_exposed(graph: &Graph, source: ValueId, result: ValueId) -> bool {
    comes_from_one(graph, source) && leads_to_one(graph, result)
}

/// Whether a transposition is before `source`.
pub(crate) fn comes_from_one(graph: &Graph, source: ValueId) -> bool {
    meets(graph, source, Way::Back)
}

/// Whether `result` leads to a transposition.
pub(crate) fn leads_to_one(graph: &Graph, result: ValueId) -> bool {
    meets(graph, result, Way::On)
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Back,
    On,
}

/// Whether there is a transposition on this way from `value`, or what gets one: the CPU provider's 8-bit
/// convolutions have channels last.
fn meets(graph: &Graph, value: ValueId, way: Way) -> bool {
    let next = |value: ValueId| -> Vec<NodeId> {
        let value = graph.value(value);
        match way {
            Way::Back => value.producer.into_iter().collect(),
            Way::On => value.consumers.clone(),
        }
    };
    let mut seen = vec![false; graph.node_count()];
    let mut open = next(value);
    while let Some(id) = open.pop() {
        if std::mem::replace(&mut seen[id.0 as usize], true) {
            continue;
        }
        let node = graph.node(id);
        if node.is("Transpose") || node.op.contains("Conv") {
            return true;
        }
        if stops_transpositions(node) {
            continue;
        }
        let values = if way == Way::Back { &node.inputs } else { &node.outputs };
        open.extend(values.iter().flatten().flat_map(|&value| next(value)));
    }
    false
}

/// Whether the result of `node` depends on the order of all elements, so that no transposition is moved
/// through it.
pub(crate) fn stops_transpositions(node: &Node) -> bool {
    const ENDS: [&str; 7] = [
        "Reshape",
        "Flatten",
        "MatMul",
        "Gemm",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
    ];
    ENDS.iter().any(|end| node.is(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(input: f32, output: f32) -> Sum {
        let codes = |scale| Codes { scale, zero_point: 128 };
        let (input, output) = (codes(input), codes(output));
        Sum { axes: None, keep: true, is_mean: true, input, output, is_exposed: true }
    }

    #[test]
    fn ties_of_exact_sums_leave_the_order_open() {
        // Means of two codes on the same scale are ties half of the time.
        assert!(!of(0.1, 0.1).any_order_will_do(2));
        // Of three, there is none: sums stand at thirds.
        assert!(of(0.1, 0.1).any_order_will_do(3));
        assert!(of(0.1, 0.1).any_order_will_do(1));
        assert!(!of(0.013, 0.01).any_order_will_do(1 << 13), "too many to look at");
    }
}
