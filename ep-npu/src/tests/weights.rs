//! Weights with zero points, and layers over rows, as random models.

use super::exact::{grown, int, ints};
use crate::graph::Graph;
use crate::testing::{Flow, Model, Noise, Weighted, executable_on, expected, inputs, run};
use npu_uapi::limits::Limits;
use proptest::prelude::*;

/// The device's outputs of `graph` are the reference's, and all of it is one program.
fn check(graph: Graph, device: &str, batch: usize, seed: u64) -> Result<(), TestCaseError> {
    let plan = crate::partition::plan(&graph, &Limits::REFERENCE);
    prop_assert_eq!(plan.groups.len(), 1, "{}: {:?}", plan.summary(&graph), plan.verdicts);
    prop_assert!(plan.verdicts.iter().all(|verdict| verdict.taken == Some(0)));
    let inputs = inputs(&graph, batch, seed);
    let want = expected(&graph, &inputs);
    let executable = executable_on(device, graph);
    let found = run(&executable, &inputs, &want);
    prop_assert_eq!(found, want);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn models_of_uint8_weights_equal_the_reference(
        seed: u64,
        steps in 1_usize..6,
        batch in 1_usize..4,
        device in prop::sample::select(&["sim:strict=1", "sim:sram=4K,strict=1"]),
    ) {
        check(grown(Model::asymmetric(seed), seed, steps), device, batch, seed)?;
    }

    #[test]
    fn models_of_rows_equal_the_reference(
        seed: u64,
        steps in 1_usize..6,
        batch in 1_usize..4,
        asymmetric: bool,
        device in prop::sample::select(&["sim:strict=1", "sim:sram=4K,strict=1"]),
    ) {
        let model = if asymmetric { Model::asymmetric(seed) } else { Model::new(seed) };
        check(rows(model, seed, steps), device, batch, seed)?;
    }
}

/// A chain of convolutions and pools of rows, and a mean behind them.
fn rows(mut model: Model, seed: u64, steps: usize) -> Graph {
    let mut noise = Noise(seed ^ 0x0123);
    let shape = [1, noise.pick(&[1, 3, 7, 16]), noise.below(40) + 20];
    let codes = model.codes();
    let mut flow = model.code_input(&shape, codes);
    for step in 0..steps {
        flow = match if step == 0 { 0 } else { noise.below(3) } {
            2 => pool(&mut model, &mut noise, &flow),
            _ => convolution(&mut model, &mut noise, &flow),
        };
    }
    if noise.below(2) == 0 {
        let codes = model.codes();
        let shape = [1, flow.shape[1], 1];
        flow = model.unit("GlobalAveragePool", &[&flow], &[], (codes, &shape));
    }
    model.code_output(&flow);
    model.finish()
}

fn convolution(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let [n, c, len] = flow.shape[..] else { panic!("rows have three dimensions") };
    let (groups, outputs) = match noise.below(3) {
        0 => (c, c),
        _ => (1, noise.below(30) + 1),
    };
    let kernel = noise.pick(&[1, 2, 3, 5]).min(len);
    let (stride, before, after) = (noise.pick(&[1, 2]), noise.below(kernel), noise.below(kernel));
    let weighted = Weighted {
        shape: vec![outputs, c / groups, kernel],
        axis: 0,
        per_channel: noise.below(2) == 0,
        with_bias: noise.below(3) != 0,
    };
    let attributes =
        [("group", int(groups)), ("strides", ints(&[stride])), ("pads", ints(&[before, after]))];
    let shape = [n, outputs, (len + before + after - kernel) / stride + 1];
    let codes = model.codes();
    model.weighted("Conv", flow, &weighted, &attributes, (codes, &shape))
}

fn pool(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let [n, c, len] = flow.shape[..] else { panic!("rows have three dimensions") };
    let (kernel, stride) = (noise.pick(&[1, 2, 3]).min(len), noise.pick(&[1, 2]));
    let shape = [n, c, (len - kernel) / stride + 1];
    let attributes = [("kernel_shape", ints(&[kernel])), ("strides", ints(&[stride]))];
    let codes = model.codes();
    match noise.below(2) {
        0 => model.unit("MaxPool", &[flow], &attributes, (flow.codes, &shape)),
        _ => model.unit("AveragePool", &[flow], &attributes, (codes, &shape)),
    }
}
