//! Random operators that move elements, for random models of images.

use super::exact::{int, ints};
use crate::graph::{Attribute, ElementType, ValueId};
use crate::quantize::Codes;
use crate::testing::{Flow, Model, Noise};

fn numbers(model: &mut Model, values: &[i64]) -> ValueId {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    model.constant(ElementType::I64, &[values.len()], bytes)
}

/// An operator of one tensor that flows, and constants.
fn unit(
    model: &mut Model,
    op: &str,
    flow: &Flow,
    constants: &[ValueId],
    attributes: &[(&str, Attribute)],
    (codes, shape): (Codes, &[usize]),
) -> Flow {
    let mut inputs = vec![model.dequantize(flow)];
    inputs.extend(constants);
    let result = model.node(op, &inputs, attributes);
    Flow { value: model.quantize(result, codes), codes, shape: shape.to_vec() }
}

/// The same codes, or others.
fn codes(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Codes {
    if noise.below(2) == 0 { flow.codes } else { model.codes() }
}

fn size(value: usize) -> i64 {
    i64::try_from(value).unwrap()
}

/// One of the operators that rearrange an image; an image comes out.
pub(super) fn rearranged(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let [n, c, h, w] = flow.shape[..] else { panic!("images have four dimensions") };
    let codes = codes(model, noise, flow);
    match noise.below(5) {
        0 => {
            let order = noise.pick(&[[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [0, 3, 2, 1]]);
            let shape = order.map(|axis| flow.shape[axis]);
            let attributes = [("perm", ints(&order))];
            unit(model, "Transpose", flow, &[], &attributes, (codes, &shape))
        }
        1 => {
            let axis = noise.below(3) + 1;
            let len = flow.shape[axis];
            let (start, step) = (noise.below(len), noise.pick(&[1, 2, 3]));
            let mut shape = [n, c, h, w];
            shape[axis] = (len - start).div_ceil(step);
            let given = [size(start), i64::MAX, size(axis), size(step)];
            let given = given.map(|value| numbers(model, &[value]));
            unit(model, "Slice", flow, &given, &[], (codes, &shape))
        }
        2 => {
            // What is reflected lies within the tensor, and something is always left.
            let mut pads = [0; 8];
            for (at, pad) in pads.iter_mut().enumerate() {
                *pad = size(noise.below(flow.shape[at % 4].min(3)));
                if flow.shape[at % 4] >= 3 && noise.below(5) == 0 {
                    *pad = -1;
                }
            }
            (pads[0], pads[4]) = (0, 0);
            let is_cut = (0..4).any(|axis| pads[axis] < 0 || pads[axis + 4] < 0);
            let grown = |axis: usize| {
                usize::try_from(size(flow.shape[axis]) + pads[axis] + pads[axis + 4]).unwrap()
            };
            let shape = [n, grown(1), grown(2), grown(3)];
            let pads = numbers(model, &pads);
            let modes = ["constant", "edge", "wrap", "reflect"];
            let mode = modes[noise.below(if is_cut { 3 } else { 4 })];
            let attributes = [("mode", Attribute::String(mode.into()))];
            unit(model, "Pad", flow, &[pads], &attributes, (codes, &shape))
        }
        3 if h * w < 400 => {
            let times = [1, 1, noise.below(2) + 1, noise.below(3) + 1];
            let tiled = numbers(model, &times.map(size));
            let shape = [n, c, h * times[2], w * times[3]];
            unit(model, "Tile", flow, &[tiled], &[], (codes, &shape))
        }
        _ if c % 4 == 0 => {
            let attributes = [("blocksize", int(2))];
            let shape = [n, c / 4, 2 * h, 2 * w];
            unit(model, "DepthToSpace", flow, &[], &attributes, (codes, &shape))
        }
        _ => {
            let split = numbers(model, &[0, 0, 1, size(h * w)]);
            let shape = [n, c, 1, h * w];
            unit(model, "Reshape", flow, &[split], &[], (codes, &shape))
        }
    }
}

/// A tensor in two parts, joined the other way around.
pub(super) fn parted(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let axes: Vec<usize> = (1..4).filter(|&axis| flow.shape[axis] > 1).collect();
    if axes.is_empty() {
        return joined(model, noise, flow);
    }
    let axis = noise.pick(&axes);
    let first = noise.below(flow.shape[axis] - 1) + 1;
    let lengths = [first, flow.shape[axis] - first];
    let given = numbers(model, &lengths.map(size));
    let input = model.dequantize(flow);
    let parts = model.nodes("Split", &[input, given], 2, &[("axis", int(axis))]);
    let parts: Vec<Flow> = parts
        .into_iter()
        .zip(lengths)
        .map(|(part, len)| {
            let codes = codes(model, noise, flow);
            let mut shape = flow.shape.clone();
            shape[axis] = len;
            Flow { value: model.quantize(part, codes), codes, shape }
        })
        .collect();
    let codes = codes(model, noise, flow);
    let order = [&parts[1], &parts[0]];
    model.unit("Concat", &order, &[("axis", int(axis))], (codes, &flow.shape))
}

/// An image of another size, by linear interpolation.
pub(super) fn resized(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let [n, c, h, w] = flow.shape[..] else { panic!("images have four dimensions") };
    let shape = [n, c, noise.below(2 * h.min(20)) + 1, noise.below(2 * w.min(20)) + 1];
    let bytes = [1.0, 1.0].into_iter().chain([(h, shape[2]), (w, shape[3])].map(factor));
    let bytes = bytes.flat_map(f32::to_le_bytes).collect();
    let scales = model.constant(ElementType::F32, &[4], bytes);
    let coordinates = noise.pick(&["half_pixel", "asymmetric", "align_corners"]);
    let attributes = [
        ("mode", Attribute::String("linear".into())),
        ("coordinate_transformation_mode", Attribute::String(coordinates.into())),
    ];
    let codes = codes(model, noise, flow);
    unit(model, "Resize", flow, &[scales, scales], &attributes, (codes, &shape))
}

/// What makes `to` of `from`: a little more than the quotient, so that rounding takes nothing away.
fn factor((from, to): (usize, usize)) -> f32 {
    let [from, to] = [from, to].map(|len| f32::from(u16::try_from(len).unwrap()));
    (to + 0.25) / from
}

/// Some elements of a dimension, anywhere in it.
pub(super) fn gathered(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let axis = noise.below(3) + 1;
    let indices: Vec<i64> =
        (0..noise.below(12) + 1).map(|_| size(noise.below(flow.shape[axis]))).collect();
    let given = numbers(model, &indices);
    let mut shape = flow.shape.clone();
    shape[axis] = indices.len();
    let codes = codes(model, noise, flow);
    unit(model, "Gather", flow, &[given], &[("axis", int(axis))], (codes, &shape))
}

/// What a rearrangement made of `flow`, and `flow` itself, one behind the other where that works.
pub(super) fn joined(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let branch = rearranged(model, noise, flow);
    let axis = noise.below(3) + 1;
    let fits = (0..4).all(|at| at == axis || branch.shape[at] == flow.shape[at]);
    let (first, second) = if fits { (&branch, flow) } else { (flow, flow) };
    let mut shape = flow.shape.clone();
    shape[axis] = first.shape[axis] + second.shape[axis];
    let codes = codes(model, noise, flow);
    model.unit("Concat", &[first, second], &[("axis", int(axis))], (codes, &shape))
}

/// A product with the extremes of some dimensions.
pub(super) fn gated(model: &mut Model, noise: &mut Noise, flow: &Flow) -> Flow {
    let axes = noise.pick(&[vec![2, 3], vec![1], vec![3], vec![1, 2, 3], vec![2]]);
    let mut shape = flow.shape.clone();
    axes.iter().for_each(|&axis| shape[axis] = 1);
    let attributes = [("axes", ints(&axes))];
    let op = noise.pick(&["ReduceMax", "ReduceMin"]);
    let gate = codes(model, noise, flow);
    let gate = unit(model, op, flow, &[], &attributes, (gate, &shape));
    let codes = codes(model, noise, flow);
    let operands = if noise.below(2) == 0 { [flow, &gate] } else { [&gate, flow] };
    model.unit("Mul", &operands, &[], (codes, &flow.shape))
}
