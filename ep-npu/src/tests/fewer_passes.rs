//! What spares passes over memory: taps of one channel laid side by side, constants of channels in the
//! tables behind them, a maximum of a float expression, pixels written where they belong.

use super::exact::{int, ints};
use crate::graph::{Dim, ElementType, Graph, TensorType, ValueId};
use crate::lower::{Form, OpKind, Ops, Pool};
use crate::partition;
use crate::program;
use crate::quantize::Codes;
use crate::testing::{Flow, Model, Noise, Weighted, executable, expected, inputs, run};
use npu_uapi::limits::Limits;

const CODES: Codes = Codes { scale: 0.03, zero_point: 99 };

/// The operations of a model whose inputs are of `shapes`, when it is whole and its bytes are the reference's.
fn checked_all(graph: &Graph, shapes: &[&[usize]], seed: u64) -> Ops {
    let plan = partition::plan(graph, &Limits::REFERENCE);
    let is_whole = plan.verdicts.iter().all(|verdict| verdict.taken == Some(0));
    assert!(is_whole, "{}: {:?}", plan.summary(graph), plan.verdicts);
    let inputs = inputs(graph, 1, seed);
    let want = expected(graph, &inputs);
    let found = run(&executable(graph.clone()), &inputs, &want);
    assert_eq!(found, want, "seed {seed}");
    let units = program::units(graph).unwrap();
    let shapes: Vec<_> = shapes.iter().map(|shape| shape.to_vec()).collect();
    program::compile(graph, &units, &shapes, &Limits::REFERENCE).unwrap().ops
}

/// The same of a model of one input.
fn checked(graph: &Graph, shape: &[usize], seed: u64) -> Ops {
    checked_all(graph, &[shape], seed)
}

#[test]
fn a_kernel_row_of_one_channel_is_one_step() {
    let mut laid = 0;
    for seed in 0..60 {
        let mut noise = Noise(seed);
        let (h, w) = (noise.below(20) + 4, noise.below(40) + 4);
        let (kh, kw) = (noise.below(3) + 1, noise.below(4) + 1);
        let (sh, sw) = (noise.below(2) + 1, noise.below(3) + 1);
        let pads = [noise.below(kh), noise.below(kw), noise.below(kh), noise.below(kw)];
        let out = [(h + pads[0] + pads[2] - kh) / sh + 1, (w + pads[1] + pads[3] - kw) / sw + 1];
        let mut model = Model::new(seed);
        let shape = [1, 1, h, w];
        let flow = match noise.below(2) {
            0 => model.code_input(&shape, CODES),
            _ => model.float_input(&shape, CODES),
        };
        let outputs = noise.below(40) + 1;
        let weighted = Weighted {
            shape: vec![outputs, 1, kh, kw],
            axis: 0,
            per_channel: true,
            with_bias: true,
        };
        let attributes = [
            ("kernel_shape", ints(&[kh, kw])),
            ("strides", ints(&[sh, sw])),
            ("pads", ints(&pads)),
        ];
        let result = [1, outputs, out[0], out[1]];
        let codes = Codes { scale: 0.2, zero_point: 120 };
        let flow = model.weighted("Conv", &flow, &weighted, &attributes, (codes, &result));
        model.code_output(&flow);
        let ops = checked(&model.finish(), &shape, seed);
        let wide = |op: &&crate::lower::Op| match (&op.kind, ops.tensor(op.writes).form) {
            (OpKind::Move { .. }, Form::Map { dims, pixel: 4 }) => {
                dims.c == u32::try_from(kw).unwrap()
            }
            _ => false,
        };
        laid += ops.ops.iter().filter(wide).count();
    }
    assert!(laid >= 20, "{laid}");
}

/// ONNX Runtime puts the QuantizeLinear of an input before what gives it another shape.
#[test]
fn an_image_whose_channel_comes_last_is_fetched_as_the_convolution_reads_it() {
    for seed in 0..4 {
        let [h, w] = [30, 17];
        let mut model = Model::new(seed);
        let flow = match seed % 2 {
            0 => model.code_input(&[1, h, w], CODES),
            _ => model.float_input(&[1, h, w], CODES),
        };
        let shape: Vec<u8> = [0, 30, 17, 1_i64].iter().flat_map(|len| len.to_le_bytes()).collect();
        let shape = model.constant(ElementType::I64, &[4], shape);
        let read = model.dequantize(&flow);
        let value = model.node("Reshape", &[read, shape], &[]);
        let value = model.quantize(value, CODES);
        let flow = Flow { value, codes: CODES, shape: vec![1, h, w, 1] };
        let order = [("perm", ints(&[0, 3, 1, 2]))];
        let flow = model.unit("Transpose", &[&flow], &order, (CODES, &[1, 1, h, w]));
        let weighted =
            Weighted { shape: vec![8, 1, 3, 3], axis: 0, per_channel: true, with_bias: true };
        let attributes = [("kernel_shape", ints(&[3, 3])), ("pads", ints(&[1, 1, 1, 1]))];
        let codes = Codes { scale: 0.2, zero_point: 120 };
        let result = [1, 8, h, w];
        let flow = model.weighted("Conv", &flow, &weighted, &attributes, (codes, &result));
        model.code_output(&flow);
        let ops = checked(&model.finish(), &[1, h, w], seed);
        let moves = ops.ops.iter().filter(|op| matches!(op.kind, OpKind::Move { .. }));
        assert_eq!(moves.count(), 1, "only the pixels beside each other; seed {seed}");
    }
}

#[test]
fn the_first_channels_of_an_image_are_not_the_image_in_another_shape() {
    for seed in 0..4 {
        let shape = [1, 6, 3, 4];
        let mut model = Model::new(seed);
        let flow = match seed % 2 {
            0 => model.code_input(&shape, CODES),
            _ => model.float_input(&shape, CODES),
        };
        let mut inputs = vec![model.dequantize(&flow)];
        for number in [0, 2, 1, 1_i64] {
            let bytes = number.to_le_bytes().to_vec();
            inputs.push(model.constant(ElementType::I64, &[1], bytes));
        }
        let value = model.node("Slice", &inputs, &[]);
        let value = model.quantize(value, CODES);
        let part = Flow { value, codes: CODES, shape: vec![1, 2, 3, 4] };
        let weighted =
            Weighted { shape: vec![5, 2, 1, 1], axis: 0, per_channel: true, with_bias: true };
        let codes = Codes { scale: 0.2, zero_point: 120 };
        let result = [1, 5, 3, 4];
        let flow = model.weighted("Conv", &part, &weighted, &[], (codes, &result));
        model.code_output(&flow);
        checked(&model.finish(), &shape, seed);
    }
}

/// A constant of floats.
fn floats(model: &mut Model, shape: &[usize], low: f32) -> ValueId {
    let count = shape.iter().product();
    let values = (0..count).map(|_| low + f32::from(model.noise.byte()) / 64.0);
    let bytes = values.flat_map(f32::to_le_bytes).collect();
    model.constant(ElementType::F32, shape, bytes)
}

/// `op` of `flow` and of constants of its channels.
fn by_channel(model: &mut Model, op: &str, flow: &Flow, codes: Codes) -> Flow {
    let c = flow.shape[1];
    let constants: Vec<ValueId> = match op {
        "BatchNormalization" => (0..4).map(|_| floats(model, &[c], 0.5)).collect(),
        _ => vec![floats(model, &[1, c, 1, 1], 0.5)],
    };
    let read = model.dequantize(flow);
    let shape = Some(vec![Dim::Known(1); 4]);
    model.set_type(read, TensorType { element: ElementType::F32, shape });
    let inputs: Vec<ValueId> = std::iter::once(read).chain(constants).collect();
    let value = model.node(op, &inputs, &[]);
    Flow { value: model.quantize(value, codes), codes, shape: flow.shape.clone() }
}

#[test]
fn constants_of_channels_are_in_the_table_behind_them() {
    let shape = [1, 24, 7, 9];
    let mut model = Model::new(5);
    let mut flow = model.code_input(&shape, CODES);
    for op in ["Add", "Mul", "BatchNormalization"] {
        flow = by_channel(&mut model, op, &flow, Codes { scale: 0.05, zero_point: 60 });
    }
    model.code_output(&flow);
    let ops = checked(&model.finish(), &shape, 5);
    let lookups = ops.ops.iter().filter(|op| matches!(op.kind, OpKind::Channels(_))).count();
    let pairs = ops.ops.iter().filter(|op| matches!(op.kind, OpKind::Pair { .. })).count();
    assert_eq!((lookups, pairs), (1, 0), "{:?}", ops.ops);
}

#[test]
fn a_maximum_of_a_float_expression_is_one_unit() {
    // Absolute values do not keep the order of codes: what comes before the maximum must.
    for (op, seed) in [("LeakyRelu", 1), ("Abs", 2), ("HardSwish", 3), ("Neg", 4)] {
        let shape = [1, 20, 9, 12];
        let mut model = Model::new(seed);
        let flow = model.code_input(&shape, CODES);
        let read = model.dequantize(&flow);
        let value = model.node(op, &[read], &[]);
        let window = [("kernel_shape", ints(&[2, 2])), ("strides", ints(&[2, 2]))];
        let value = model.node("MaxPool", &[value], &window);
        let codes = Codes { scale: 0.04, zero_point: 70 };
        let value = model.quantize(value, codes);
        model.code_output(&Flow { value, codes, shape: vec![1, 20, 4, 6] });
        checked(&model.finish(), &shape, seed);
    }
}

#[test]
fn wide_maxima_are_made_of_narrower_ones() {
    for (sizes, shape, seed) in [
        ([5, 9, 13], [1, 20, 13, 13], 1),
        ([3, 3, 5], [1, 7, 2, 30], 2),
        ([9, 3, 7], [1, 70, 11, 4], 3),
    ] {
        let mut model = Model::new(seed);
        let flow = model.code_input(&shape, CODES);
        let flow = model.unit("LeakyRelu", &[&flow], &[], (CODES, &shape));
        for size in sizes {
            let pad = (size - 1) / 2;
            let window = [("kernel_shape", ints(&[size, size])), ("pads", ints(&[pad; 4]))];
            let pooled = model.unit("MaxPool", &[&flow], &window, (CODES, &shape));
            model.code_output(&pooled);
        }
        let ops = checked(&model.finish(), &shape, seed);
        let windows = ops.ops.iter().filter_map(|op| match &op.kind {
            OpKind::Pool { kind: Pool::Max(window), .. } => Some(window.kernel_h),
            _ => None,
        });
        let want = match sizes {
            [5, ..] => vec![5, 5, 5],
            [3, ..] => vec![3, 1, 3],
            _ => vec![9, 3, 5],
        };
        assert_eq!(windows.collect::<Vec<_>>(), want);
    }
}

#[test]
fn pixels_of_a_block_are_written_where_they_belong() {
    for (filters, stride, strips) in
        [(24, 2, Some(2)), (16, 1, Some(1)), (8, 4, Some(4)), (3, 2, None)]
    {
        let shape = [1, 12, 5, 6];
        let mut model = Model::new(7);
        let flow = model.code_input(&shape, CODES);
        let weighted = Weighted {
            shape: vec![12, filters, stride, stride],
            axis: 1,
            per_channel: true,
            with_bias: true,
        };
        let attributes = [("strides", ints(&[stride, stride])), ("group", int(1))];
        let codes = Codes { scale: 0.2, zero_point: 90 };
        let result = [1, filters, 5 * stride, 6 * stride];
        let flow = model.weighted("ConvTranspose", &flow, &weighted, &attributes, (codes, &result));
        let flow = by_channel(&mut model, "Add", &flow, codes);
        model.float_output(&flow);
        let ops = checked(&model.finish(), &shape, 7);
        let found = ops.ops.iter().find_map(|op| match &op.kind {
            OpKind::Conv(conv) => Some(conv.strips),
            _ => None,
        });
        assert_eq!(found, Some(strips), "{filters} filters, stride {stride}");
    }
}

/// A mask of attention: one row, added to all of them in each layer.
#[test]
fn a_repeated_row_is_moved_alone() {
    for seed in 0..6 {
        let mut noise = Noise(seed);
        let [heads, rows, keys] = [noise.below(3) + 2, noise.below(20) + 2, noise.below(40) + 2];
        let (scores, mask) = ([1, heads, rows, keys], [1, 1, 1, keys]);
        let mut model = Model::new(seed);
        let mut flow = model.code_input(&scores, CODES);
        let added = match seed % 2 {
            0 => model.code_input(&mask, CODES),
            _ => model.float_input(&mask, CODES),
        };
        let along = [("axis", int(3))];
        for _ in 0..2 {
            // Its rows are pixels; those of the input are not.
            flow = model.unit("Softmax", &[&flow], &along, (CODES, &scores));
            flow = model.unit("Add", &[&flow, &added], &[], (CODES, &scores));
        }
        flow = model.unit("Softmax", &[&flow], &along, (CODES, &scores));
        model.code_output(&flow);
        let ops = checked_all(&model.finish(), &[&scores, &mask], seed);
        let whole = [heads, rows, keys].iter().product::<usize>();
        let is_added = |op: &&crate::lower::Op| {
            matches!(op.kind, OpKind::Move { .. })
                && op.reads.iter().any(|&read| ops.tensor(read).form.dims().c == 1)
                && ops.tensor(op.writes).form.len_bytes() >= whole as u64
        };
        assert_eq!(ops.ops.iter().filter(is_added).count(), 0, "seed {seed}: {ops:?}");
    }
}
