//! Any graph has a plan: models with their parts broken are refused, never a panic; and what is left
//! to take still compiles.

use super::exact::random_model;
use crate::graph::{Attribute, Dim, ElementType, Graph, GraphBuilder, Node, Tensor, TensorType};
use crate::partition;
use crate::testing::Noise;
use npu_uapi::limits::Limits;
use proptest::prelude::*;
use std::collections::BTreeSet;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn broken_models_have_plans(seed: u64, steps in 1_usize..6, odds in 3_usize..60) {
        let graph = broken(&random_model(seed, steps), &mut Noise(seed), odds);
        let plan = partition::plan(&graph, &Limits::REFERENCE);
        prop_assert_eq!(plan.verdicts.len(), graph.node_count());
        prop_assert!(!plan.summary(&graph).contains('\n'));
        for verdict in &plan.verdicts {
            let group = verdict.taken.map(|group| &plan.groups[group]);
            prop_assert!(group.is_none_or(|group| group.contains(&verdict.node)));
            prop_assert_eq!(verdict.taken.is_none(), !verdict.reason.is_empty());
        }
        for group in &plan.groups {
            prop_assert!(is_convex(&graph, group.iter().map(|node| node.0).collect()));
        }
    }
}

/// No path leaves the group and comes back.
fn is_convex(graph: &Graph, group: BTreeSet<u32>) -> bool {
    let mut behind = BTreeSet::new();
    graph.nodes().all(|(id, node)| {
        let producers = node.inputs.iter().flatten().filter_map(|&v| graph.value(v).producer);
        let (mut from_group, mut from_behind) = (false, false);
        for producer in producers {
            from_group |= group.contains(&producer.0);
            from_behind |= behind.contains(&producer.0);
        }
        if group.contains(&id.0) {
            return !from_behind;
        }
        if from_group || from_behind {
            behind.insert(id.0);
        }
        true
    })
}

/// A copy of `graph` in which about one in `odds` of its parts is something else.
fn broken(graph: &Graph, noise: &mut Noise, odds: usize) -> Graph {
    let mut builder = GraphBuilder::new("broken");
    for &input in graph.inputs() {
        let value = builder.value(&graph.value(input).name);
        builder.add_input(value);
        let ty = graph.value(input).ty.clone().unwrap();
        builder.set_type(value, broken_type(ty, noise, odds));
    }
    for (_, node) in graph.nodes() {
        for &input in node.inputs.iter().flatten() {
            let value = graph.value(input);
            let Some(constant) = &value.constant else { continue };
            let id = builder.value(&value.name);
            let tensor = broken_constant(constant.clone(), noise, odds);
            let _ = builder.set_constant(id, tensor);
        }
        let renamed = broken_node(graph, node, &mut builder, noise, odds);
        if builder.add_node(renamed).is_err() {
            break;
        }
    }
    for &output in graph.outputs() {
        let value = builder.value(&graph.value(output).name);
        builder.add_output(value);
    }
    builder.finish().unwrap_or_else(|_| GraphBuilder::new("empty").finish().unwrap())
}

fn broken_type(mut ty: TensorType, noise: &mut Noise, odds: usize) -> TensorType {
    if noise.below(odds) == 0 {
        ty.element = noise.pick(&[ElementType::F32, ElementType::I8, ElementType::Other(99)]);
    }
    if noise.below(odds) == 0 {
        let lengths = [0, 1, 2, 77, 1 << 31, u32::MAX as usize - 1, 1 << 32, 1 << 35, usize::MAX];
        let shape: Vec<Dim> =
            (0..noise.below(6)).map(|_| Dim::Known(noise.pick(&lengths))).collect();
        ty.shape = Some(shape).filter(|_| noise.below(3) != 0);
    }
    ty
}

fn broken_constant(mut tensor: Tensor, noise: &mut Noise, odds: usize) -> Tensor {
    if noise.below(odds) == 0 {
        let words = [0, 0x7fc0_0000, 0x7f80_0000, 0xbf80_0000, 1, 0x7f7f_ffff_u32];
        let word = noise.pick(&words).to_le_bytes();
        tensor.bytes = tensor.bytes.iter().enumerate().map(|(i, _)| word[i % 4]).collect();
    }
    if noise.below(odds) == 0 {
        tensor.element = noise.pick(&[ElementType::I8, ElementType::U8, ElementType::F32]);
    }
    if noise.below(odds) == 0 {
        tensor.shape = vec![tensor.bytes.len(), 1, usize::from(noise.below(2) == 0)];
    }
    tensor
}

fn broken_node(
    graph: &Graph,
    node: &Node,
    builder: &mut GraphBuilder,
    noise: &mut Noise,
    odds: usize,
) -> Node {
    let mut node = node.clone();
    for value in node.inputs.iter_mut().chain(&mut node.outputs) {
        *value = value.map(|id| builder.value(&graph.value(id).name));
    }
    if noise.below(odds) == 0 {
        let ops = [
            "Conv",
            "Gemm",
            "MatMul",
            "Add",
            "MaxPool",
            "AveragePool",
            "Flatten",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Relu",
            "Clip",
            "GlobalAveragePool",
            "Softmax",
            "Mul",
            "Concat",
            "Slice",
            "Transpose",
            "Pad",
            "Tile",
            "Expand",
            "Resize",
            "ReduceMax",
            "DepthToSpace",
            "QuantizeLinear",
            "DequantizeLinear",
        ];
        node.op = noise.pick(&ops).to_owned();
    }
    if noise.below(odds) == 0 && !node.inputs.is_empty() {
        let at = noise.below(node.inputs.len());
        node.inputs[at] = node.inputs[0].filter(|_| noise.below(2) == 0);
    }
    if noise.below(odds) == 0 {
        node.inputs.truncate(noise.below(3));
    }
    let names = [
        "pads",
        "strides",
        "dilations",
        "kernel_shape",
        "group",
        "axis",
        "auto_pad",
        "ceil_mode",
        "transA",
        "transB",
        "alpha",
        "beta",
        "block_size",
        "axes",
        "storage_order",
        "perm",
        "starts",
        "ends",
        "blocksize",
    ];
    if noise.below(odds) == 0 {
        let numbers = [i64::MIN, -1, 0, 1, 2, 65_535, 65_536, i64::MAX];
        let attribute = match noise.below(4) {
            0 => Attribute::Int(noise.pick(&numbers)),
            1 => Attribute::Float(noise.pick(&[f32::NAN, -1.0, 0.0, f32::MAX])),
            2 => Attribute::String(noise.pick(&["SAME_UPPER", "VALID", "x"]).to_owned()),
            _ => {
                let count = noise.pick(&[0, 1, 2, 4]);
                Attribute::Ints((0..count).map(|_| noise.pick(&numbers)).collect())
            }
        };
        node.attributes.insert(noise.pick(&names).to_owned(), attribute);
    }
    node
}
