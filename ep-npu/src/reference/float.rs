//! Sums of dequantised operands, in the CPU provider's order.

use super::window;
use crate::graph::{Graph, Node};
use crate::quantize::{Floats, Products, WindowSpec};
use crate::shape::{bounded, summed_over};
use ndarray::{Array4, ArrayD, IxDyn};
use npu_uapi::float_order::{Order, Place, Sum, weight};
use npu_uapi::requantise::{dequantise, quantise};

pub(super) fn convolve(
    graph: &Graph,
    node: &Node,
    products: &Products,
    groups: usize,
    window: &WindowSpec,
    input: &Array4<u8>,
) -> Array4<u8> {
    let (n, _, h, w) = input.dim();
    let placed = window.place(node, [h, w]).expect("the window was checked");
    let summed = summed_over(graph, node, products, groups, window, &placed, [n, h, w]);
    let order = summed.expect("the order was checked when the part was planned").order;
    let weights = &products.weights;
    let outputs_a_group = weights.outputs / groups;
    let [rows, columns] = weights.kernel;
    Array4::from_shape_fn((n, weights.outputs, placed.out_h, placed.out_w), |(n, oc, oy, ox)| {
        let place = Place::of((oc % outputs_a_group) as u64, outputs_a_group as u64);
        let terms = (0..weights.inputs).flat_map(|channel| {
            let mut codes = vec![products.input.zero_point; rows * columns];
            let channel_in = oc / outputs_a_group * weights.inputs + channel;
            for (row, column, y, x) in window::taps(&placed, [oy, ox], [h, w]) {
                codes[row * columns + column] = input[[n, channel_in, y, x]];
            }
            let taps = codes.into_iter().enumerate();
            taps.map(move |(tap, code)| {
                (code, weights.at(oc, channel, tap / columns, tap % columns))
            })
        });
        code(products, order, place, oc, terms)
    })
}

pub(super) fn multiply(
    graph: &Graph,
    node: &Node,
    products: &Products,
    input: &ArrayD<u8>,
) -> ArrayD<u8> {
    let weights = &products.weights;
    let (rows, outputs) = (input.shape()[0], weights.outputs);
    let summed = bounded::product(graph, node, products, rows);
    let order = summed.expect("the order was checked when the part was planned").order;
    ArrayD::from_shape_fn(IxDyn(&[rows, outputs]), |index| {
        let (row, output) = (index[0], index[1]);
        let place = Place::of(output as u64, outputs as u64);
        let terms =
            (0..weights.inputs).map(|k| (input[[row, k].as_slice()], weights.at(output, k, 0, 0)));
        code(products, order, place, output, terms)
    })
}

/// The code of one output.
fn code(
    products: &Products,
    order: Order,
    place: Place,
    output: usize,
    terms: impl Iterator<Item = (u8, i8)>,
) -> u8 {
    let floats = products.arithmetic.floats();
    let Floats { weight_scales, bias, range: [low, high], .. } =
        floats.expect("asked for sums of floats only");
    let bias = bias.as_ref().map_or(0.0, |bias| bias[output]);
    let (from, to) = (products.input, products.output);
    let mut sum = Sum::new(order, place, bias);
    for (x, w) in terms {
        sum.add(dequantise(x, from.scale, from.zero_point), weight(w, weight_scales[output]));
    }
    quantise(sum.finish(), to.scale, to.zero_point).clamp(*low, *high)
}
