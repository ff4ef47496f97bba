//! One unit to operations.

use super::fuse::then;
use super::matrix::row_dims;
use super::{Conv, FloatStage, Form, Function, Held, Home, Lowering, OpKind, Pool, TensorId};
use crate::graph::{NodeId, ValueId};
use crate::quantize::{
    Between, Codes, Floats, Kind, Linear, Products, Step, Table, Unit, Weights, WindowSpec,
    is_turned,
};
use crate::shape::{bounded, summed_over};
use npu_uapi::command::{Dims, Tap, Window};
use npu_uapi::float_order::Order;
use npu_uapi::requantise::{AddTerms, MulTerms, global_average_multiplier};

impl Lowering<'_> {
    /// Lowers `unit`; afterwards its output is held.
    pub(super) fn unit(&mut self, unit: &Unit) {
        let node = unit.target;
        let input = unit.inputs[0];
        match &unit.kind {
            Kind::Quantize(codes) => {
                let held = self.quantised(unit, *codes);
                self.values.insert(unit.output, held);
            }
            // The unit that quantises carries it out.
            Kind::Carry(_) => {}
            Kind::Dequantize(codes) => {
                // Who gives it out puts the elements where they belong.
                let held = Held { dequantise: Some(*codes), ..self.held(input, node) };
                self.values.insert(unit.output, held);
            }
            Kind::Conv { products, groups, window } => {
                let placed = self.placed(node, window, input);
                let Dims { n, h, w, .. } = self.dims(input);
                let shape = [n, h, w].map(|len| len as usize);
                let floats = products.arithmetic.floats().map(|floats| {
                    let (graph, target) = (self.part.graph, self.part.graph.node(node));
                    let summed =
                        summed_over(graph, target, products, *groups, window, &placed, shape);
                    let summed = summed.expect("`shape` has found the order");
                    float_stage(products, floats, summed.order)
                });
                self.conv(unit, products, *groups, placed.window, floats);
            }
            Kind::ConvTranspose { products, spec } => self.conv_transpose(unit, products, spec),
            Kind::Product(products) => self.product(unit, products),
            Kind::MatMul { first, second, result } => {
                self.matmul(unit, [*first, *second, *result]);
            }
            Kind::Softmax { axis, input: from, output: to } => {
                self.softmax(unit, *axis, *from, *to);
            }
            Kind::Add { first, second, result, constant } => {
                let terms = AddTerms::new(pair(*first), pair(*second), pair(*result));
                self.function(unit, Function::Add(terms), constant.as_ref());
            }
            Kind::Mul { first, second, result, constant } => {
                let terms = MulTerms::new(pair(*first), pair(*second), pair(*result));
                self.function(unit, Function::Multiply(terms), constant.as_ref());
            }
            Kind::Pair { function, constant, .. } => {
                self.function(unit, function.into(), constant.as_ref());
            }
            Kind::Rearrange { how, table } => self.rearrange(unit, how, table.as_ref()),
            Kind::Linear(linear) => self.linear(unit, linear),
            Kind::Concat { axis, tables } => self.concat(unit, *axis, tables),
            Kind::Split { how, shares } => self.split(unit, how, shares),
            Kind::Pad { pads, code, table } => self.pad(unit, pads, *code, table.as_ref()),
            Kind::Extreme { axes, least, table, .. } => {
                self.extreme(unit, axes.as_deref(), *least, table.as_ref());
            }
            Kind::Sum(sum) => self.sum(unit, sum),
            Kind::Norm(norm) => self.norm(unit, norm),
            Kind::MaxPool { before, window, table } => {
                let pool = Pool::Max(self.window(node, window, input));
                if let Some(before) = before {
                    let map = self.natural_map(input, node);
                    let form = self.ops.tensor(map).form;
                    let codes = self.tensor_of(input, Home::Scratch, form);
                    self.push(node, vec![map], codes, OpKind::Table(before.clone()));
                    return self.pool_of(unit, codes, pool, table.clone());
                }
                self.pool(unit, pool, table.clone());
            }
            Kind::AveragePool { window, count_padding, input: from, output: to } => {
                let placed = self.placed(node, window, input);
                let Dims { h, w, .. } = self.dims(input);
                if placed.is_whole([h, w].map(|len| len as usize)) {
                    return self.pool(unit, self.global_average(input, *from, *to), None);
                }
                let counted = count_padding.then_some([placed.pad_bottom, placed.pad_right]);
                let (input, output) = (pair(*from), pair(*to));
                let pool = Pool::Average { window: placed.window, counted, input, output };
                self.pool(unit, pool, None);
            }
            Kind::GlobalMean { input: from, output: to } => {
                let pool = Pool::GlobalMean { input: pair(*from), output: pair(*to) };
                self.pool(unit, pool, None);
            }
            Kind::GlobalAveragePool { input: from, output: to } => {
                self.pool(unit, self.global_average(input, *from, *to), None);
            }
            Kind::Reshape { table: None, .. } => self.reshape(unit),
            Kind::Elementwise(table) if self.held(input, node).view.is_some() => {
                // Whoever moves it takes it through the table on the way.
                let held = self.held(input, node);
                let table =
                    Some(held.table.as_ref().map_or_else(|| table.clone(), |t| then(t, table)));
                self.values.insert(unit.output, Held { table, dequantise: None, ..held });
            }
            Kind::Reshape { table: Some(table), .. } | Kind::Elementwise(table) => {
                let map = self.map(input, node);
                let form = self.ops.tensor(map).form;
                let out = self.tensor_of(unit.output, Home::Scratch, form);
                self.push(node, vec![map], out, OpKind::Table(table.clone()));
                self.hold(unit.output, out);
            }
        }
    }

    fn conv(
        &mut self,
        unit: &Unit,
        products: &Products,
        groups: usize,
        window: Window,
        floats: Option<FloatStage>,
    ) {
        let map = self.natural_map(unit.inputs[0], unit.target);
        let taps = self.with_neighbours(unit, map);
        let (map, weights, window) =
            taps.unwrap_or_else(|| (map, products.weights.clone(), window));
        let out = Form::map(self.dims(unit.output));
        let out = self.tensor_of(unit.output, Home::Scratch, out);
        let conv = convolution(products, weights, groups, window, floats);
        self.push(unit.target, vec![map], out, OpKind::Conv(Box::new(conv)));
        self.hold(unit.output, out);
    }

    /// A product with a flattened image is a convolution with a kernel of the image's size.
    fn product(&mut self, unit: &Unit, products: &Products) {
        let (input, node) = (unit.inputs[0], unit.target);
        let fits = |len: u32| u16::try_from(len).ok();
        let rows = self.dims(input);
        let is_image = self.part.shapes[&input].len() == 2 && self.held(input, node).view.is_none();
        let (map, kernel) = if is_turned(self.part.graph.node(node)) {
            let turned = [Step::Permute(vec![1, 0])];
            let shape = turned[0].shape(self.part.shapes[&input].clone());
            let seen = self.viewed(input, node, &turned);
            (self.placed_as(input, node, &seen, &shape, row_dims(&shape)), [1, 1])
        } else if is_image {
            let map = self.map(input, node);
            let dims = self.ops.tensor(map).form.dims();
            match (fits(dims.h), fits(dims.w)) {
                (Some(h), Some(w)) if dims.n == rows.n => (map, [h, w]),
                _ => (self.natural_map(input, node), [1, 1]),
            }
        } else {
            (self.rows(input, node), [1, 1])
        };
        let [kernel_h, kernel_w] = kernel;
        let window = Window {
            kernel_h,
            kernel_w,
            stride_h: 1,
            stride_w: 1,
            dilation_h: 1,
            dilation_w: 1,
            pad_top: 0,
            pad_left: 0,
        };
        let weights = products.weights.over_image(kernel_h.into(), kernel_w.into());
        let floats = products.arithmetic.floats().map(|floats| {
            let m = self.part.shapes[&input].iter().product::<usize>() / products.weights.inputs;
            let graph = self.part.graph;
            let summed = bounded::product(graph, graph.node(node), products, m);
            float_stage(products, floats, summed.expect("`shape` has found the order").order)
        });
        let conv = convolution(products, weights, 1, window, floats);
        let out = Form::map(row_dims(&self.part.shapes[&unit.output]));
        let out = self.tensor_of(unit.output, Home::Scratch, out);
        self.push(node, vec![map], out, OpKind::Conv(Box::new(conv)));
        self.hold(unit.output, out);
    }

    fn pool(&mut self, unit: &Unit, kind: Pool, table: Option<Table>) {
        let map = self.natural_map(unit.inputs[0], unit.target);
        self.pool_of(unit, map, kind, table);
    }

    fn pool_of(&mut self, unit: &Unit, map: TensorId, kind: Pool, table: Option<Table>) {
        let out = Form::map(self.dims(unit.output));
        let out = self.tensor_of(unit.output, Home::Scratch, out);
        self.push(unit.target, vec![map], out, OpKind::Pool { kind, table });
        self.hold(unit.output, out);
    }

    fn linear(&mut self, unit: &Unit, linear: &Linear) {
        let (input, node) = (unit.inputs[0], unit.target);
        let places = linear.places(self.part.graph.node(node), &self.part.shapes[&input]);
        let places = places.expect("`shape` has found these places before");
        let narrow = |at: usize| u32::try_from(at).expect("`shape` bounds rows to 31 bits");
        let tap = |between: &Between| Tap {
            first: narrow(between.at[0]),
            second: narrow(between.at[1]),
            first_weight: between.weights[0],
            second_weight: between.weights[1],
        };
        let taps = places.iter().flatten().map(tap).collect();
        let map = self.natural_map(input, node);
        let out = Form::map(self.dims(unit.output));
        let out = self.tensor_of(unit.output, Home::Scratch, out);
        let (input, output) = (pair(linear.input), pair(linear.output));
        self.push(node, vec![map], out, OpKind::Resize { taps, input, output });
        self.hold(unit.output, out);
    }

    fn global_average(&self, input: ValueId, from: Codes, to: Codes) -> Pool {
        let Dims { h, w, .. } = self.dims(input);
        Pool::Global {
            multiplier: global_average_multiplier(from.scale, to.scale, h * w),
            input_zero_point: from.zero_point,
            zero_point: to.zero_point,
        }
    }

    fn window(&self, node: NodeId, window: &WindowSpec, input: ValueId) -> Window {
        self.placed(node, window, input).window
    }

    pub(super) fn placed(
        &self,
        node: NodeId,
        window: &WindowSpec,
        input: ValueId,
    ) -> crate::quantize::Placed {
        let shape = &self.part.shapes[&input];
        let size = match *shape.as_slice() {
            [_, _, w] => [1, w],
            [_, _, h, w] => [h, w],
            _ => panic!("`shape` has checked that windows lie over images or rows"),
        };
        let placed = window.place(self.part.graph.node(node), size);
        placed.expect("`shape` has placed this window before")
    }
}

/// The command of `products`, before anything behind it joins it.
fn convolution(
    products: &Products,
    weights: Weights,
    groups: usize,
    window: Window,
    floats: Option<FloatStage>,
) -> Conv {
    Conv {
        weights,
        bias: products.bias.clone(),
        multipliers: products.multipliers.clone(),
        groups,
        strips: None,
        window,
        input_zero_point: products.input.zero_point,
        zero_point: products.output.zero_point,
        range: products.arithmetic.floats().map_or([0, 255], |floats| floats.range),
        floats,
        table_0: None,
        addition: None,
        table_1: None,
    }
}

fn float_stage(products: &Products, floats: &Floats, order: Order) -> FloatStage {
    let outputs = products.weights.outputs;
    FloatStage {
        order,
        input_scale: products.input.scale,
        output_scale: products.output.scale,
        weight_scales: floats.weight_scales.clone(),
        bias: floats.bias.clone().unwrap_or_else(|| vec![0.0; outputs]),
    }
}

fn pair(codes: Codes) -> (f32, u8) {
    (codes.scale, codes.zero_point)
}
