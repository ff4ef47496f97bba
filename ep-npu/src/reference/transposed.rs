//! ConvTranspose, as the CPU provider spells it: for each tap a product over the channels, added to where it
//! falls, from the first tap to the last; the bias at the end.

use crate::graph::Node;
use crate::quantize::{Blocks, Floats, Products, TransposedSpec, weight as weight_at};
use crate::shape::spread_order;
use ndarray::Array4;
use npu_uapi::float_order::{Place, Sum, weight};
use npu_uapi::requantise::{dequantise, quantise};

pub(super) fn convolve(
    node: &Node,
    products: &Products,
    spec: &TransposedSpec,
    input: &Array4<u8>,
) -> Array4<u8> {
    let (n, _, h, w) = input.dim();
    let blocks = Blocks::new(node, products, spec, [n, h, w]);
    let blocks = blocks.expect("the blocks were checked when the part was planned");
    let order = spread_order(node, &blocks);
    let order = order.expect("the order was checked when the part was planned");
    let floats = products.arithmetic.floats().expect("it has no other form");
    let Floats { weight_scales, bias, range: [low, high], .. } = floats;
    let Blocks { groups, inputs, filters, rows, columns, .. } = blocks;
    let (from, to) = (products.input, products.output);
    // The input pixel, if there is one, that `tap` carries to `at` of the output.
    let source = |axis: &crate::quantize::Spread, at: usize, tap: usize| {
        let reach = (at + axis.before).checked_sub(tap * axis.dilation)?;
        let input = reach / axis.stride;
        (reach % axis.stride == 0 && input < axis.len).then_some(input)
    };
    Array4::from_shape_fn((n, groups * filters, rows.out, columns.out), |(n, output, y, x)| {
        let group = output / filters;
        let mut all = 0.0;
        for tap in 0..rows.kernel * columns.kernel {
            let [row, column] = [tap / columns.kernel, tap % columns.kernel];
            let Some((y, x)) = source(&rows, y, row).zip(source(&columns, x, column)) else {
                continue;
            };
            let mut sum = Sum::new(order, Place::Alone, 0.0);
            for channel in 0..inputs {
                let code = input[[n, group * inputs + channel, y, x]];
                let by = weight_at(products, groups, [output, channel], [row, column]);
                let by = weight(by, weight_scales[output]);
                sum.add(dequantise(code, from.scale, from.zero_point), by);
            }
            all += sum.finish();
        }
        let all = bias.as_ref().map_or(all, |bias| all + bias[output]);
        quantise(all, to.scale, to.zero_point).clamp(*low, *high)
    })
}
