//! Pools of whose result ONNX Runtime infers another shape than its kernel makes, and reductions on the CPU
//! of an empty tensor, which keep the dimensions that they are to drop.
//!
//! It plans memory by what it inferred: tensors that shall have the same size get the same buffer, and one
//! behind such a pool has another size than one that is not. It also infers anew for each node that a
//! provider leaves, and what reads a group has the shapes that were inferred for its tensors. Which of them
//! meet depends on which nodes are the CPU provider's, so a model that runs whole may fail when it is divided.

use super::group::Group;
use super::refuse_unit;
use crate::graph::{Dim, Graph, Node};
use crate::quantize::Units;
use crate::refusal::{Refusal, rule};

/// Refuses all units when the model is divided and has such a pool, or leaves such a reduction. Gives
/// whether there were any.
pub(super) fn refuse(graph: &Graph, units: &mut Units, groups: &[Group]) -> bool {
    let is_left = |id: usize| units.of_node[id].is_err();
    let is_divided = groups.len() > 1 || units.of_node.iter().any(Result::is_err);
    let mut nodes = graph.nodes();
    let found = nodes.find_map(|(id, node)| {
        let remedy = match node {
            _ if is_divided && is_misjudged(graph, node) => "give explicit pads, and ceil_mode 0",
            _ if is_left(id.0 as usize) && drops_nothing(graph, node) => {
                "give the tensor that it reads some elements"
            }
            _ => return None,
        };
        Some((node, remedy))
    });
    let Some((node, remedy)) = found else { return false };
    let refusal = Refusal::new(
        rule::SHAPE,
        format!(
            "ONNX Runtime infers another shape of what {node} gives than it makes, and some nodes stay on the CPU: a \
             model that is divided may then fail, so this one stays whole; {remedy}"
        ),
    );
    let mut any = false;
    for unit in 0..units.units.len() {
        if units.of_node[units.units[unit].target.0 as usize].is_ok() {
            refuse_unit(units, unit, &refusal);
            any = true;
        }
    }
    any
}

/// Whether `node` is a reduction of a tensor of no elements that is to drop dimensions.
fn drops_nothing(graph: &Graph, node: &Node) -> bool {
    let source = node.input(0).and_then(|input| graph.value(input).ty.as_ref());
    let shape = source.and_then(|ty| ty.shape.as_deref()).unwrap_or_default();
    node.op.starts_with("Reduce")
        && node.int("keepdims") == Some(0)
        && shape.contains(&Dim::Known(0))
}

/// Whether `node` is a pool that makes fewer rows or columns than are inferred.
fn is_misjudged(graph: &Graph, node: &Node) -> bool {
    let is_pool = ["MaxPool", "AveragePool", "LpPool"].iter().any(|pool| node.is(pool));
    let Some(kernel) = node.ints("kernel_shape").filter(|_| is_pool) else { return false };
    let source = node.input(0).and_then(|input| graph.value(input).ty.as_ref());
    let lengths = source.and_then(|ty| ty.shape.as_deref()).and_then(|shape| shape.get(2..));
    (0..kernel.len()).any(|axis| {
        let length = match lengths.and_then(|lengths| lengths.get(axis)) {
            Some(Dim::Known(length)) => i64::try_from(*length).ok(),
            _ => None,
        };
        length.is_some_and(|length| makes_fewer(node, kernel, axis, length).unwrap_or(false))
    })
}

/// Whether `node` makes fewer of dimension `axis` than are inferred; `None` for numbers that no pool has.
fn makes_fewer(node: &Node, kernel: &[i64], axis: usize, length: i64) -> Option<bool> {
    let of = |name: &str| match node.ints(name) {
        Some(found) => found.get(axis).copied().filter(|&found| found > 0),
        None => Some(1),
    };
    let (stride, dilation) = (of("strides")?, of("dilations")?);
    let reach = kernel[axis].checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
    let is_ceil = node.int("ceil_mode").unwrap_or(0) != 0;
    let pad = |at: usize| match node.ints("pads") {
        Some(pads) => pads.get(at).copied(),
        None => Some(0),
    };
    let [before, after] = match node.string("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => [pad(axis)?, pad(axis.checked_add(kernel.len())?)?],
        "VALID" => [0, 0],
        // The kernel pads for a window without dilation.
        _ => return Some(dilation > 1 && kernel[axis] > 1 || is_ceil && reach < stride),
    };
    let end = length.checked_add(before)?;
    let room = end.checked_add(after)?.checked_sub(reach)?;
    // The window that ceil_mode adds is left out where it would begin in the padding behind.
    let begins = (room / stride).checked_add(1)?.checked_mul(stride)?;
    Some(is_ceil && room % stride != 0 && begins >= end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Attribute, ElementType, TensorType};
    use crate::quantize::Codes;
    use crate::testing::Model;

    #[test]
    fn a_reduction_that_is_to_drop_dimensions_of_nothing_keeps_them() {
        let drops = |len: usize, keepdims: i64| {
            let codes = Codes { scale: 0.5, zero_point: 3 };
            let mut model = Model::new(1);
            let flow = model.float_input(&[len, 4], codes);
            let read = model.dequantize(&flow);
            let shape = Some(vec![Dim::Known(len), Dim::Known(4)]);
            model.set_type(read, TensorType { element: ElementType::F32, shape });
            let keepdims = [("keepdims", Attribute::Int(keepdims))];
            let product = model.node("ReduceProd", &[read], &keepdims);
            model.output(product);
            let graph = model.finish();
            let (_, node) = graph.nodes().find(|(_, node)| node.is("ReduceProd")).unwrap();
            drops_nothing(&graph, node)
        };
        assert!(drops(0, 0) && !drops(0, 1) && !drops(2, 0));
    }

    fn fewer(
        length: i64,
        [kernel, stride, dilation]: [i64; 3],
        ceil: i64,
        pads: Option<[i64; 2]>,
    ) -> bool {
        let mut attributes = vec![
            ("kernel_shape", Attribute::Ints(vec![kernel])),
            ("strides", Attribute::Ints(vec![stride])),
            ("dilations", Attribute::Ints(vec![dilation])),
            ("ceil_mode", Attribute::Int(ceil)),
        ];
        attributes.push(match pads {
            Some(pads) => ("pads", Attribute::Ints(pads.to_vec())),
            None => ("auto_pad", Attribute::String("SAME_UPPER".into())),
        });
        let node = Node {
            name: "pool".to_owned(),
            op: "MaxPool".to_owned(),
            domain: String::new(),
            inputs: vec![],
            outputs: vec![],
            attributes: attributes.into_iter().map(|(name, a)| (name.to_owned(), a)).collect(),
        };
        makes_fewer(&node, &[kernel], 0, length).unwrap()
    }

    #[test]
    fn pools_that_onnx_runtime_misjudges_are_those_that_were_found_to_be() {
        // Inferred and made: 3 and 2, 3 and 2, 3 and 2.
        assert!(fewer(4, [1, 2, 1], 1, Some([0, 0])));
        assert!(fewer(4, [2, 3, 1], 1, Some([1, 1])));
        assert!(fewer(4, [3, 2, 1], 1, Some([0, 2])));
        // 4 and 3, 2 and 1, 3 and 2.
        assert!(fewer(4, [2, 1, 2], 0, None) && fewer(4, [2, 2, 2], 0, None));
        assert!(fewer(4, [1, 2, 1], 1, None));
        assert!(!fewer(4, [3, 2, 1], 1, Some([0, 0])), "its last window begins inside");
        assert!(!fewer(4, [3, 2, 1], 0, Some([0, 2])));
        assert!(!fewer(4, [3, 2, 1], 0, None) && !fewer(4, [1, 1, 2], 0, None));
    }
}
