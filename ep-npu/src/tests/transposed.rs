//! ConvTranspose of any kernel, stride, dilation and cut: the device's bytes equal the reference's, which adds
//! tap by tap where it falls; and what would be far more than the model says is refused.

use super::exact::{int, ints};
use crate::graph::{Attribute, Graph};
use crate::partition;
use crate::quantize::Codes;
use crate::refusal::rule;
use crate::testing::{Model, Noise, Weighted, executable_on, expected, inputs, run};
use npu_uapi::limits::Limits;
use proptest::prelude::*;

const CODES: Codes = Codes { scale: 0.05, zero_point: 100 };

/// A model of one ConvTranspose, over images or over rows.
fn model(
    seed: u64,
    input: &[usize],
    filters: usize,
    groups: usize,
    kernel: &[usize],
    attributes: &[(&str, Attribute)],
) -> Graph {
    let mut model = Model::new(seed);
    let flow = model.code_input(input, CODES);
    let mut shape = vec![input[1], filters];
    shape.extend(kernel);
    let weighted = Weighted {
        shape,
        axis: 1,
        per_channel: seed.is_multiple_of(2),
        with_bias: groups == 1 && !seed.is_multiple_of(3),
    };
    let mut attributes = attributes.to_vec();
    attributes.push(("group", int(groups)));
    // Declared is the shape of a batch of 1 of what flows in only.
    let codes = Codes { scale: 0.03, zero_point: 90 };
    let out = model.weighted("ConvTranspose", &flow, &weighted, &attributes, (codes, input));
    model.code_output(&out);
    model.finish()
}

fn random(seed: u64) -> Graph {
    let mut noise = Noise(seed);
    let rank = noise.below(2) + 1;
    let groups = noise.pick(&[1, 1, 2, 3]);
    let channels = groups * (noise.below(20) + 1);
    let mut input = vec![1, channels];
    input.extend((0..rank).map(|_| noise.below(6) + 1));
    let kernel: Vec<usize> = (0..rank).map(|_| noise.below(4) + 1).collect();
    let strides: Vec<usize> = (0..rank).map(|_| noise.below(4) + 1).collect();
    let dilations: Vec<usize> = (0..rank).map(|_| noise.pick(&[1, 1, 2])).collect();
    let more: Vec<usize> = strides.iter().map(|&stride| noise.below(stride)).collect();
    let full: Vec<usize> = (0..rank)
        .map(|axis| {
            let steps = (input[axis + 2] - 1) * strides[axis];
            steps + (kernel[axis] - 1) * dilations[axis] + 1 + more[axis]
        })
        .collect();
    let mut attributes = vec![
        ("strides", ints(&strides)),
        ("dilations", ints(&dilations)),
        ("output_padding", ints(&more)),
    ];
    match noise.below(4) {
        0 => {
            let pads: Vec<usize> =
                full.iter().chain(&full).map(|&len| noise.below(len.div_ceil(2))).collect();
            attributes.push(("pads", ints(&pads)));
        }
        1 => {
            let auto = noise.pick(&["SAME_UPPER", "SAME_LOWER", "VALID"]);
            attributes.push(("auto_pad", Attribute::String(auto.into())));
        }
        2 => {
            let out: Vec<usize> = full.iter().map(|&len| noise.below(len) + 1).collect();
            attributes.push(("output_shape", ints(&out)));
        }
        _ => {}
    }
    model(seed, &input, noise.below(9) + 1, groups, &kernel, &attributes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn spread_pixels_equal_the_reference(
        seed: u64,
        batch in 1_usize..4,
        device in prop::sample::select(&["sim:strict=1", "sim:sram=4K,strict=1"]),
    ) {
        let graph = random(seed);
        let plan = partition::plan(&graph, &Limits::REFERENCE);
        prop_assert_eq!(plan.groups.len(), 1, "{}: {:?}", plan.summary(&graph), plan.verdicts);
        let inputs = inputs(&graph, batch, seed);
        let want = expected(&graph, &inputs);
        let found = run(&executable_on(device, graph), &inputs, &want);
        prop_assert_eq!(found, want);
    }
}

#[track_caller]
fn assert_refused(graph: &Graph, rule: &str, words: &str) {
    let plan = partition::plan(graph, &Limits::REFERENCE);
    assert!(plan.groups.is_empty(), "{}", plan.summary(graph));
    let mut verdicts = plan.verdicts.iter();
    let found = verdicts.find(|verdict| graph.node(verdict.node).is("ConvTranspose")).unwrap();
    assert!(found.rule == rule && found.reason.contains(words), "{found:?}");
}

#[test]
fn what_comes_to_more_than_it_says_is_refused() {
    let of = |kernel: &[usize], name, values: &[usize]| {
        model(4, &[1, 8, 5, 5], 8, 1, kernel, &[(name, ints(values))])
    };
    // As many weights as a block has pixels, all but one of them nothing.
    let wide = of(&[2, 2], "strides", &[60_000, 60_000]);
    assert_refused(&wide, rule::SIZE, "comes to more than");
    // Blocks of gaps, and edges larger than the image.
    let gaps = of(&[2, 2], "dilations", &[100, 100]);
    assert_refused(&gaps, rule::SIZE, "times as many are taken");
    assert_refused(&of(&[64, 64], "strides", &[1, 1]), rule::SIZE, "times as many are taken");
    let wider = of(&[2, 2], "strides", &[70_000, 1]);
    assert_refused(&wider, rule::ATTRIBUTE, "strides");
    assert_refused(&of(&[2, 2], "pads", &[3, 3, 4, 3]), rule::SHAPE, "among these");
    assert_refused(&of(&[2, 2], "output_shape", &[7, 6]), rule::SHAPE, "among these");
    assert_refused(&of(&[2, 2], "output_padding", &[1, 0]), rule::ATTRIBUTE, "output_padding");
    assert_refused(&of(&[2, 2], "kernel_shape", &[3, 2]), rule::ATTRIBUTE, "kernel_shape");
    assert_refused(&of(&[2, 2], "dilations", &[0, 1]), rule::ATTRIBUTE, "dilations");
    let long = model(4, &[1, 129, 5, 5], 8, 1, &[3, 3], &[]);
    assert_refused(&long, rule::FLOAT_ORDER, "overlaps");
    let groups = model(4, &[1, 8, 5, 5], 8, 3, &[2, 2], &[]);
    assert_refused(&groups, rule::ATTRIBUTE, "group 3");
}
