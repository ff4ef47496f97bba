//! ConvTranspose: a convolution with one tap that writes whole blocks of pixels as channels, and a view of
//! these as the pixels that they are.
//!
//! ```text
//! kernel within the stride    pixels                        -> conv -> blocks -> view
//! windows that overlap        pixels -> neighbours, aligned -> conv -> blocks -> view
//! ```
//!
//! The CPU provider adds what overlaps tap by tap, each tap a sum of its own over the channels. Where the
//! channels of each neighbour begin a block of the sum, the device adds in that order, too.

use super::place::Seen;
use super::view::View;
use super::{Conv, FloatStage, Form, Held, Home, Lowering, Move, OpKind, TensorId, natural_dims};
use crate::quantize::{
    Blocks, Floats, Products, Spread, Step, TransposedSpec, Unit, Weights, weight,
};
use crate::shape::spread_order;
use npu_uapi::command::{Dims, Window};

impl Lowering<'_> {
    pub(super) fn conv_transpose(
        &mut self,
        unit: &Unit,
        products: &Products,
        spec: &TransposedSpec,
    ) {
        let (input, node) = (unit.inputs[0], unit.target);
        let Dims { n, h, w, .. } = self.dims(input);
        let size = [n, h, w].map(|len| len as usize);
        let blocks = Blocks::new(self.part.graph.node(node), products, spec, size);
        let blocks = blocks.expect("`shape` has placed these blocks before");
        let map = self.natural_map(input, node);
        let map = if blocks.are_pixels() {
            map
        } else {
            self.neighbours(unit, map, &blocks, products.input.zero_point)
        };
        let mut conv = self.of_blocks(unit, products, &blocks);
        if let Some(strips) = strips(&blocks) {
            // Each row of a block's pixels is a run of channels, and written where it belongs.
            let dims = self.dims(unit.output);
            let out = self.tensor_of(unit.output, Home::Scratch, Form::Map { dims, pixel: dims.c });
            conv.strips = Some(strips);
            self.push(node, vec![map], out, OpKind::Conv(Box::new(conv)));
            return self.hold(unit.output, out);
        }
        let [_, shape] = blocks.shapes();
        let dims = natural_dims(&shape);
        // They are only moved on: what few channels need not take is spared.
        let form =
            Form::Map { dims, pixel: dims.c.next_multiple_of(if dims.c < 16 { 4 } else { 16 }) };
        let out = self.tensor_of(unit.output, Home::Scratch, form);
        self.push(node, vec![map], out, OpKind::Conv(Box::new(conv)));
        self.see_pixels(unit, out, &blocks);
    }

    /// For each block the input pixels that it sees, one behind the other in its channels; zero where there
    /// is none.
    fn neighbours(
        &mut self,
        unit: &Unit,
        map: TensorId,
        blocks: &Blocks,
        zero_point: u8,
    ) -> TensorId {
        let &Blocks { images, groups, inputs, rows, columns, .. } = blocks;
        let [shape, _] = blocks.shapes();
        let form = Form::map(natural_dims(&shape));
        let out = self.tensor_of(unit.inputs[0], Home::Scratch, form);
        let of_input = [images, groups, 1, inputs, rows.len, columns.len];
        let offsets = rows.offsets() * columns.offsets();
        let whole = [images, groups, offsets, blocks.channels(), rows.blocks(), columns.blocks()];
        let cut = |form: Form, shape: &[usize], parts: [[usize; 2]; 4]| {
            let view = View::of(form, shape);
            let mut parts = (2..).zip(parts);
            let view = view.and_then(|view| {
                parts.try_fold(view, |v, (axis, [start, len])| v.sliced(axis, start, 1, len))
            });
            view.expect("dimensions of a feature map have one stride each")
        };
        let from_form = self.ops.tensor(map).form;
        let mut parts = Vec::new();
        for (at, [row, column]) in blocks.offsets().enumerate() {
            // As far as there are blocks so far behind.
            let len =
                |axis: Spread, offset: usize| axis.len.min(axis.blocks().saturating_sub(offset));
            let (height, width) = (len(rows, row), len(columns, column));
            if height == 0 || width == 0 {
                continue;
            }
            let from = cut(from_form, &of_input, [[0, 1], [0, inputs], [0, height], [0, width]]);
            let to = cut(form, &whole, [[at, 1], [0, inputs], [row, height], [column, width]]);
            let moves: Option<Vec<Move>> = from.moves(0, &to, None);
            parts.extend(moves.expect("dimensions of a feature map have one stride each"));
        }
        self.push(unit.target, vec![map], out, OpKind::Move { fill: Some(zero_point), parts });
        out
    }

    fn of_blocks(&self, unit: &Unit, products: &Products, blocks: &Blocks) -> Conv {
        let order = spread_order(self.part.graph.node(unit.target), blocks);
        let order = order.expect("`shape` has found the order");
        let floats = products.arithmetic.floats();
        let Floats { weight_scales, bias, range, .. } = floats.expect("it has no other form");
        // Output channels of the model, in the order of the blocks' channels.
        let filters = blocks.filters;
        let channels = (0..blocks.groups).flat_map(|group| {
            (0..blocks.outputs()).map(move |output| group * filters + output % filters)
        });
        let of_channel = |of: &[f32]| channels.clone().map(|channel| of[channel]).collect();
        let biases = match bias {
            Some(bias) => of_channel(bias),
            None => vec![0.0; blocks.groups * blocks.outputs()],
        };
        Conv {
            weights: weights(products, blocks),
            bias: Vec::new(),
            multipliers: Vec::new(),
            groups: blocks.groups,
            strips: None,
            window: Window {
                kernel_h: 1,
                kernel_w: 1,
                stride_h: 1,
                stride_w: 1,
                dilation_h: 1,
                dilation_w: 1,
                pad_top: 0,
                pad_left: 0,
            },
            input_zero_point: products.input.zero_point,
            zero_point: products.output.zero_point,
            range: *range,
            floats: Some(FloatStage {
                order,
                input_scale: products.input.scale,
                output_scale: products.output.scale,
                weight_scales: of_channel(weight_scales),
                bias: biases,
            }),
            table_0: None,
            addition: None,
            table_1: None,
        }
    }

    /// Holds the output of `unit` as a view of `tensor`, which has its blocks.
    fn see_pixels(&mut self, unit: &Unit, tensor: TensorId, blocks: &Blocks) {
        let &Blocks { images, groups, filters, rows, columns, .. } = blocks;
        let [_, shape] = blocks.shapes();
        let full = [
            images,
            groups * filters,
            rows.blocks() * rows.stride,
            columns.blocks() * columns.stride,
        ];
        let split = vec![
            images,
            groups,
            rows.stride,
            columns.stride,
            filters,
            rows.blocks(),
            columns.blocks(),
        ];
        let to_pixels = [
            Step::Reshape(split),
            Step::Permute(vec![0, 1, 4, 5, 2, 6, 3]),
            Step::Reshape(full.to_vec()),
        ];
        let slice =
            |axis: usize, of: Spread| Step::Slice { axis, start: of.before, step: 1, len: of.out };
        let mut cuts = Vec::new();
        for (axis, of) in [(2, rows), (3, columns)] {
            if of.out != full[axis] {
                cuts.push(slice(axis, of));
            }
        }
        cuts.push(Step::Reshape(self.part.shapes[&unit.output].clone()));
        let view = View::of(self.ops.tensor(tensor).form, &shape);
        let view = view.and_then(|view| view.after(&to_pixels));
        let view = view.expect("channels and pixels of a feature map have one stride each");
        let (tensor, view) = match view.clone().after(&cuts) {
            Some(view) => (tensor, view),
            // Blocks are cut in two: pixel by pixel they can be.
            None => {
                let seen = Seen { tensor, view, table: None };
                let map = self.place(unit.output, unit.target, &seen, &full);
                let view = View::of(self.ops.tensor(map).form, &full);
                let view = view.and_then(|view| view.after(&cuts));
                (map, view.expect("a dimension with one stride takes every step"))
            }
        };
        self.values.insert(unit.output, Held { view: Some(view), ..Held::plain(tensor) });
    }
}

/// Rows of a block's pixels, where each can be a command: whole blocks of weights, in pixels that a
/// convolution can read, none of them cut away.
fn strips(blocks: &Blocks) -> Option<u32> {
    let &Blocks { groups, filters, rows, columns, .. } = blocks;
    let is_whole = |of: Spread| of.before == 0 && of.out == of.blocks() * of.stride;
    let fits = (columns.stride * filters).is_multiple_of(16) && filters.is_multiple_of(4);
    let strips = u32::try_from(rows.stride).ok();
    strips.filter(|_| groups == 1 && fits && is_whole(rows) && is_whole(columns))
}

/// The weights of a block's channels: for each of its pixels, of each neighbour the tap by which it is
/// seen, or nothing.
fn weights(products: &Products, blocks: &Blocks) -> Weights {
    let &Blocks { groups, inputs, filters, rows, columns, .. } = blocks;
    let (channels, terms) = (blocks.channels(), blocks.terms());
    let outputs = groups * blocks.outputs();
    let mut bytes = Vec::with_capacity(outputs * terms);
    for group in 0..groups {
        for place in 0..rows.stride * columns.stride {
            let [row, column] = [place / columns.stride, place % columns.stride];
            for filter in 0..filters {
                let output = group * filters + filter;
                for [above, before] in blocks.offsets() {
                    let tap = rows.tap(row, above).zip(columns.tap(column, before));
                    let of = |input: usize| match tap {
                        Some((row, column)) if input < inputs => {
                            weight(products, groups, [output, input], [row, column]).cast_unsigned()
                        }
                        _ => 0,
                    };
                    bytes.extend((0..channels).map(of));
                }
            }
        }
    }
    Weights {
        bytes: bytes.into(),
        outputs,
        inputs: terms,
        kernel: [1, 1],
        strides: [terms, 1, 0, 0],
        zero_points: Vec::new(),
    }
}
