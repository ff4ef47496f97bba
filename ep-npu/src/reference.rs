//! What each unit means, on plain channel-first tensors: the oracle of the tests.
//!
//! Loops and formulas only, with nothing of the compiler below `quantize`: no feature maps, no blocks
//! of weights, no fusion, no zero-point terms folded away.

mod attention;
mod float;
mod mean;
mod rearrange;
mod rows;
mod transposed;
mod window;

use crate::graph::{Graph, ValueId};
use crate::quantize::{
    Carry, Codes, Kind, Operand, Products, Share, Table, Unit, Units, WindowSpec, axis_of,
    is_signed, is_turned,
};
use crate::shape;
use ndarray::{Array4, ArrayD, Axis, Ix4, IxDyn};
use npu_uapi::requantise::{
    AddTerms, MulTerms, add, dequantise, global_average_multiplier, multiply as product, quantise,
    requantise,
};
use std::collections::BTreeMap;

/// A tensor of the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Codes; the bytes of int8 ones at the border.
    Codes(ArrayD<u8>),
    /// Floats.
    Floats(ArrayD<f32>),
}

impl Value {
    fn codes(&self) -> &ArrayD<u8> {
        match self {
            Self::Codes(codes) => codes,
            Self::Floats(_) => panic!("a unit reads codes, but for the first of a model"),
        }
    }
}

/// The outputs of `part`, whose units are `units`, for these inputs.
///
/// # Panics
///
/// When shapes or types are not those of the part: check them before.
pub fn run(part: &Graph, units: &Units, inputs: &[Value]) -> Vec<Value> {
    let inputs = part.inputs().iter().zip(inputs);
    let mut values: BTreeMap<ValueId, Value> =
        inputs.map(|(&id, value)| (id, at_border(part, id, value))).collect();
    for unit in &units.units {
        let inputs: Vec<&Value> = unit.inputs.iter().map(|value| &values[value]).collect();
        let outputs = match &unit.kind {
            Kind::Split { how, shares } => {
                let codes = inputs[0].codes();
                let part_of = |share: &Share| {
                    let step = how.step(part.node(unit.target), codes.shape(), share.index);
                    let step = step.expect("the shape was checked when the part was planned");
                    through(share.table.as_ref(), rearrange::step(codes.clone(), &step))
                };
                shares.iter().map(|share| Value::Codes(part_of(share))).collect()
            }
            Kind::Carry(how) => carried(part, unit, how, inputs[0]),
            _ => vec![evaluate(part, unit, &inputs)],
        };
        values.extend(unit.outputs().zip(outputs));
    }
    part.outputs().iter().map(|&output| at_border(part, output, &values[&output])).collect()
}

/// `value` as it is inside where it is given as outside, and the other way: int8 codes are unsigned inside.
fn at_border(part: &Graph, id: ValueId, value: &Value) -> Value {
    match value {
        Value::Codes(codes) if is_signed(part, id) => Value::Codes(codes.mapv(|code| code ^ 0x80)),
        _ => value.clone(),
    }
}

fn evaluate(part: &Graph, unit: &Unit, inputs: &[&Value]) -> Value {
    let codes = |index: usize| inputs[index].codes();
    let image = |index: usize| {
        let codes = codes(index).clone();
        // One dimension of space is a row.
        let codes = if codes.ndim() == 3 { codes.insert_axis(Axis(2)) } else { codes };
        codes.into_dimensionality::<Ix4>().expect("windows lie over images")
    };
    let flat = |out: ArrayD<u8>| match inputs[0] {
        Value::Codes(codes) if codes.ndim() == 3 => out.index_axis_move(Axis(2), 0),
        _ => out,
    };
    match &unit.kind {
        Kind::Quantize(to) => {
            let Value::Floats(floats) = inputs[0] else { panic!("quantisation reads floats") };
            Value::Codes(floats.mapv(|value| quantise(value, to.scale, to.zero_point)))
        }
        Kind::Dequantize(from) => {
            Value::Floats(codes(0).mapv(|code| dequantise(code, from.scale, from.zero_point)))
        }
        Kind::Conv { products, groups, window } if products.arithmetic.floats().is_some() => {
            let node = part.node(unit.target);
            let out = float::convolve(part, node, products, *groups, window, &image(0));
            Value::Codes(flat(out.into_dyn()))
        }
        Kind::Conv { products, groups, window } => {
            let out = convolve(part, unit, products, *groups, window, &image(0));
            Value::Codes(flat(out.into_dyn()))
        }
        Kind::ConvTranspose { products, spec } => {
            let out = transposed::convolve(part.node(unit.target), products, spec, &image(0));
            Value::Codes(flat(out.into_dyn()))
        }
        Kind::Product(products) => {
            let shape = shape::output(part, unit, &[codes(0).shape()]);
            let shape = shape.expect("the shape was checked when the part was planned");
            let k = products.weights.inputs;
            let turned = is_turned(part.node(unit.target));
            let codes = if turned { codes(0).t() } else { codes(0).view() };
            let flat: Vec<u8> = codes.iter().copied().collect();
            let rows = ArrayD::from_shape_vec(IxDyn(&[flat.len() / k, k]), flat);
            let rows = rows.expect("rows of as many elements as sums have");
            let out = match products.arithmetic.floats() {
                Some(_) => float::multiply(part, part.node(unit.target), products, &rows),
                None => multiply(products, &rows),
            };
            let flat = out.iter().copied().collect();
            let out = ArrayD::from_shape_vec(IxDyn(&shape), flat).expect("as many elements");
            Value::Codes(out)
        }
        Kind::MatMul { first, second, result } => {
            let shape = shape::output(part, unit, &[codes(0).shape(), codes(1).shape()]);
            let shape = shape.expect("the shapes were checked when the part was planned");
            let all = [*first, *second, *result];
            Value::Codes(attention::matmul(codes(0), codes(1), all, &shape))
        }
        Kind::Softmax { axis, input, output } => {
            let axis = axis_of(*axis, codes(0).ndim()).expect("the dimension was checked");
            Value::Codes(attention::softmax(codes(0), axis, *input, *output))
        }
        Kind::Add { first, second, result, constant } => {
            let terms = AddTerms::new(pair(*first), pair(*second), pair(*result));
            Value::Codes(pairs(part, unit, inputs, constant.as_ref(), |a, b| add(a, b, terms)))
        }
        Kind::Mul { first, second, result, constant } => {
            let terms = MulTerms::new(pair(*first), pair(*second), pair(*result));
            Value::Codes(pairs(part, unit, inputs, constant.as_ref(), |a, b| product(a, b, terms)))
        }
        Kind::Pair { function, constant, .. } => {
            Value::Codes(pairs(part, unit, inputs, constant.as_ref(), |a, b| function.code(a, b)))
        }
        Kind::Rearrange { how, table } => {
            let steps = how.steps(part.node(unit.target), codes(0).shape());
            let steps = steps.expect("the steps were checked when the part was planned");
            let out = steps.iter().fold(codes(0).clone(), rearrange::step);
            Value::Codes(through(table.as_ref(), out))
        }
        Kind::Linear(linear) => {
            Value::Codes(rearrange::linear(part.node(unit.target), linear, &image(0)).into_dyn())
        }
        Kind::Concat { axis, tables } => {
            let parts = tables.iter().enumerate();
            let parts = parts.map(|(index, table)| through(table.as_ref(), codes(index).clone()));
            Value::Codes(rearrange::joined(&parts.collect::<Vec<_>>(), *axis))
        }
        Kind::Pad { pads, code, table } => {
            let (steps, pads) = pads
                .cut(part.node(unit.target), codes(0).shape())
                .expect("the shape was checked when the part was planned");
            let inner = steps.iter().fold(codes(0).clone(), rearrange::step);
            let inner = through(table.as_ref(), inner);
            Value::Codes(rearrange::padded(&inner, &pads, *code))
        }
        Kind::Carry(_) | Kind::Split { .. } => {
            panic!("what may write several tensors is evaluated by its own")
        }
        Kind::Extreme { axes, least, table, .. } => {
            let shape = shape::output(part, unit, &[codes(0).shape()]);
            let shape = shape.expect("the shape was checked when the part was planned");
            let out = rearrange::extreme(codes(0), axes.as_deref(), *least);
            let flat = out.iter().copied().collect();
            let out = ArrayD::from_shape_vec(IxDyn(&shape), flat).expect("as many elements");
            Value::Codes(through(table.as_ref(), out))
        }
        Kind::Sum(sum) => {
            let shape = shape::output(part, unit, &[codes(0).shape()]);
            let shape = shape.expect("the shape was checked when the part was planned");
            Value::Codes(rows::sum(part.node(unit.target), sum, codes(0), &shape))
        }
        Kind::Norm(norm) => Value::Codes(rows::norm(part.node(unit.target), norm, codes(0))),
        Kind::MaxPool { before, window, table } => {
            let image = image(0);
            let image = match before {
                Some(table) => image.mapv(|code| table[usize::from(code)]),
                None => image,
            };
            let out = window::max(part.node(unit.target), window, &image);
            Value::Codes(through(table.as_ref(), flat(out.into_dyn())))
        }
        Kind::AveragePool { window, count_padding, input, output } => {
            let (node, padding) = (part.node(unit.target), *count_padding);
            let image = image(0);
            let size = [image.dim().2, image.dim().3];
            let placed = window.place(node, size).expect("the window was checked");
            let out = match placed.is_whole(size) {
                true => global_average(*input, *output, &image),
                false => window::average(node, window, padding, *input, *output, &image),
            };
            Value::Codes(flat(out.into_dyn()))
        }
        Kind::GlobalMean { input, output } => {
            Value::Codes(flat(mean::global(*input, *output, &image(0)).into_dyn()))
        }
        Kind::GlobalAveragePool { input, output } => {
            Value::Codes(flat(global_average(*input, *output, &image(0)).into_dyn()))
        }
        Kind::Reshape { table, .. } => {
            let shape = shape::output(part, unit, &[codes(0).shape()]);
            let shape = IxDyn(&shape.expect("the shape was checked when the part was planned"));
            let flat: Vec<u8> = codes(0).iter().copied().collect();
            let out = ArrayD::from_shape_vec(shape, flat).expect("as many elements as before");
            Value::Codes(through(table.as_ref(), out))
        }
        Kind::Elementwise(table) => Value::Codes(through(Some(table), codes(0).clone())),
    }
}

/// Floats elsewhere, for each tensor that `unit` writes.
fn carried(part: &Graph, unit: &Unit, how: &Carry, input: &Value) -> Vec<Value> {
    let Value::Floats(floats) = input else { panic!("floats are carried") };
    let shapes = shape::outputs(part, unit, &[floats.shape()]);
    let shapes = shapes.expect("the shape was checked when the part was planned");
    let node = part.node(unit.target);
    let one = |(nth, shape): (usize, &Vec<usize>)| {
        let steps = how.steps(node, floats.shape(), shape, nth);
        Value::Floats(steps.iter().fold(floats.clone(), rearrange::step))
    };
    shapes.iter().enumerate().map(one).collect()
}

/// `function` of two tensors element by element, the smaller one repeated.
fn pairs(
    part: &Graph,
    unit: &Unit,
    inputs: &[&Value],
    constant: Option<&Operand>,
    function: impl Fn(u8, u8) -> u8,
) -> ArrayD<u8> {
    let shapes: Vec<&[usize]> = inputs.iter().map(|input| input.codes().shape()).collect();
    let shape = shape::output(part, unit, &shapes);
    let shape = IxDyn(&shape.expect("the shapes were checked when the part was planned"));
    let [a, b] = match constant {
        Some(constant) => {
            let tensor = &constant.tensor;
            let codes = ArrayD::from_shape_vec(IxDyn(&tensor.shape), tensor.bytes.to_vec());
            constant.order(codes.expect("an element a byte"), inputs[0].codes().clone())
        }
        None => [inputs[0].codes().clone(), inputs[1].codes().clone()],
    };
    let [a, b] = [a, b].map(|codes| {
        let codes = codes.broadcast(shape.clone());
        codes.expect("the shapes were checked when the part was planned").to_owned()
    });
    ArrayD::from_shape_fn(shape, |at| function(a[&at], b[&at]))
}

fn convolve(
    part: &Graph,
    unit: &Unit,
    products: &Products,
    groups: usize,
    window: &WindowSpec,
    input: &Array4<u8>,
) -> Array4<u8> {
    let (n, _, h, w) = input.dim();
    let placed = window.place(part.node(unit.target), [h, w]).expect("the window was checked");
    let weights = &products.weights;
    let zero = i32::from(products.input.zero_point);
    let outputs_a_group = weights.outputs / groups;
    Array4::from_shape_fn((n, weights.outputs, placed.out_h, placed.out_w), |(n, oc, oy, ox)| {
        let mut sum = products.bias[oc];
        for channel in 0..weights.inputs {
            let channel_in = oc / outputs_a_group * weights.inputs + channel;
            for (row, column, y, x) in window::taps(&placed, [oy, ox], [h, w]) {
                let value = i32::from(input[[n, channel_in, y, x]]) - zero;
                sum += value * i32::from(weights.difference(oc, channel, row, column));
            }
        }
        requantise(sum, products.multipliers[oc], products.output.zero_point)
    })
}

fn multiply(products: &Products, input: &ArrayD<u8>) -> ArrayD<u8> {
    let weights = &products.weights;
    let zero = i32::from(products.input.zero_point);
    ArrayD::from_shape_fn(IxDyn(&[input.shape()[0], weights.outputs]), |index| {
        let (row, output) = (index[0], index[1]);
        let products_of = |k| {
            (i32::from(input[[row, k].as_slice()]) - zero)
                * i32::from(weights.difference(output, k, 0, 0))
        };
        let sum = products.bias[output] + (0..weights.inputs).map(products_of).sum::<i32>();
        requantise(sum, products.multipliers[output], products.output.zero_point)
    })
}

fn global_average(from: Codes, to: Codes, input: &Array4<u8>) -> Array4<u8> {
    let (n, c, h, w) = input.dim();
    let count = u32::try_from(h * w).expect("the size was checked when the part was planned");
    let multiplier = global_average_multiplier(from.scale, to.scale, count);
    Array4::from_shape_fn((n, c, 1, 1), |(n, c, _, _)| {
        let image = input.slice(ndarray::s![n, c, .., ..]);
        let sum = image.iter().map(|&code| i32::from(code) - i32::from(from.zero_point)).sum();
        requantise(sum, multiplier, to.zero_point)
    })
}

fn through(table: Option<&Table>, codes: ArrayD<u8>) -> ArrayD<u8> {
    match table {
        Some(table) => codes.mapv(|code| table[usize::from(code)]),
        None => codes,
    }
}

fn pair(codes: Codes) -> (f32, u8) {
    (codes.scale, codes.zero_point)
}
