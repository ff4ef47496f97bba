//! Units to operations on the device's tensors: feature maps channel-last, conversions at the edges.
//!
//! A tensor keeps the dimensions it was made with; a change of shape, order or part is only remembered,
//! and carried out where someone needs the new one. What a unit means is settled by `quantize`, that its shapes
//! work by `shape`: nothing here can fail.

mod carry;
mod flow;
mod fuse;
mod matrix;
mod maxima;
mod neighbours;
mod op;
mod pick;
mod place;
mod rows;
mod transposed;
mod unit;
mod view;

pub use flow::Flow;
pub use matrix::{Matrices, Walk};
pub use op::{
    Addition, Conv, Fixed, FloatStage, Form, Function, Home, Loop, Move, Normalise, Op, OpKind,
    Ops, Pool, Tensor, TensorId,
};

use crate::graph::{Graph, NodeId, ValueId};
use crate::quantize::{Codes, Table, Unit, change_of_sign, is_signed};
use crate::shape::Shapes;
use npu_uapi::command::Dims;
use std::collections::BTreeMap;
use view::View;

/// A convex part of a graph with all its shapes.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The graph that the units are of.
    pub graph: &'a Graph,
    /// The units, in topological order.
    pub units: &'a [&'a Unit],
    /// Who writes and reads what among them.
    pub flow: Flow<'a>,
    /// What flows in, in the order in which it is given.
    pub inputs: &'a [ValueId],
    /// What flows out, in the order in which it is taken; each is written by a unit.
    pub outputs: &'a [ValueId],
    /// Shapes of inputs and of what units write.
    pub shapes: &'a Shapes,
}

/// The operations of `part`.
pub fn ops(part: &Part<'_>) -> Ops {
    let mut lowering =
        Lowering { part, ops: Ops::default(), values: BTreeMap::new(), quantised: Vec::new() };
    for unit in part.units {
        lowering.unit(unit);
        lowering.give(unit);
    }
    let mut ops = lowering.ops;
    fuse::output_stages(&mut ops);
    maxima::from_narrower(&mut ops);
    ops
}

struct Lowering<'a> {
    part: &'a Part<'a>,
    ops: Ops,
    values: BTreeMap<ValueId, Held>,
    /// Float inputs that were fetched as these codes.
    quantised: Vec<(ValueId, Codes, TensorId)>,
}

/// Where a value is.
#[derive(Clone)]
struct Held {
    /// The codes.
    tensor: TensorId,
    /// Where in it they are; in its own order when `None`.
    view: Option<View>,
    /// What the codes still have to go through.
    table: Option<Table>,
    /// When the value is the float that these codes stand for.
    dequantise: Option<Codes>,
}

impl Held {
    fn plain(tensor: TensorId) -> Self {
        Self { tensor, view: None, table: None, dequantise: None }
    }
}

impl Lowering<'_> {
    /// The feature map of `value`, whatever its dimensions; graph inputs are fetched on first use.
    fn map(&mut self, value: ValueId, node: NodeId) -> TensorId {
        let held = self.held(value, node);
        if held.view.is_none() && held.table.is_none() {
            return held.tensor;
        }
        self.natural_map(value, node)
    }

    /// Brings the graph input `value` into a feature map called `name` of `dims`, which are the same
    /// elements in the same order; quantised when it is float.
    fn fetch(
        &mut self,
        value: ValueId,
        name: ValueId,
        dims: Dims,
        node: NodeId,
        quantise: Option<Codes>,
    ) -> TensorId {
        let index = self.part.inputs.iter().position(|&input| input == value);
        let index = index.expect("what no unit writes is an input of the part");
        let is_signed = quantise.is_none() && is_signed(self.part.graph, value);
        if quantise.is_none() && dims.h == 1 && dims.w == 1 && dims.c.is_multiple_of(16) {
            // Rows of channels without a gap are a feature map as they lie.
            let map = self.tensor_of(value, Home::Input(index), Form::map(dims));
            return if is_signed { self.with_other_sign(map, name, node) } else { map };
        }
        let element_bytes = if quantise.is_some() { 4 } else { 1 };
        let host = self.tensor_of(value, Home::Input(index), Form::Host { dims, element_bytes });
        // A network's image has few channels: four to a pixel spare most of the traffic.
        let form = match dims.c {
            // Only who reads a pixel with its neighbours reads pixels without a gap.
            1 if self.is_read_with_neighbours(name) => Form::Map { dims, pixel: 1 },
            ..=4 => Form::Map { dims, pixel: 4 },
            _ => Form::map(dims),
        };
        let map = self.tensor_of(name, Home::Scratch, form);
        let (scale, zero_point) =
            quantise.map_or((0.0, 0), |codes| (codes.scale, codes.zero_point));
        self.push(node, vec![host], map, OpKind::Layout { scale, zero_point });
        if is_signed { self.with_other_sign(map, name, node) } else { map }
    }

    /// The feature map `map` with int8 codes made unsigned, or the other way.
    fn with_other_sign(&mut self, map: TensorId, name: ValueId, node: NodeId) -> TensorId {
        let out = self.tensor_of(name, Home::Scratch, self.ops.tensor(map).form);
        self.push(node, vec![map], out, OpKind::Table(change_of_sign()));
        out
    }

    /// Gives what `unit` wrote to the outputs that want it.
    fn give(&mut self, unit: &Unit) {
        for output in unit.outputs().filter(|output| self.part.outputs.contains(output)) {
            self.give_one(unit, output);
        }
    }

    fn give_one(&mut self, unit: &Unit, output: ValueId) {
        let held = self.held(output, unit.target);
        let dequantise = held.dequantise;
        // What has to be moved anyway becomes floats fastest in the host's order.
        let is_moved = held.view.is_some() || held.table.is_some();
        let mut tensor = if dequantise.is_some() && is_moved {
            self.dense(output, unit.target)
        } else {
            self.map(output, unit.target)
        };
        if dequantise.is_none() && is_signed(self.part.graph, output) {
            tensor = self.with_other_sign(tensor, output, unit.target);
        }
        for index in 0..self.part.outputs.len() {
            if self.part.outputs[index] != output {
                continue;
            }
            let dims = self.dims(output);
            let element_bytes = if dequantise.is_some() { 4 } else { 1 };
            let form = Form::Host { dims, element_bytes };
            let host = self.tensor_of(output, Home::Output(index), form);
            let (scale, zero_point) =
                dequantise.map_or((0.0, 0), |codes| (codes.scale, codes.zero_point));
            self.push(unit.target, vec![tensor], host, OpKind::Layout { scale, zero_point });
        }
    }

    fn hold(&mut self, value: ValueId, tensor: TensorId) {
        self.values.insert(value, Held::plain(tensor));
    }

    fn dims(&self, value: ValueId) -> Dims {
        natural_dims(&self.part.shapes[&value])
    }

    fn tensor_of(&mut self, value: ValueId, home: Home, form: Form) -> TensorId {
        let name = self.part.graph.value(value).name.clone();
        self.tensor(name, home, form)
    }

    fn tensor(&mut self, name: String, home: Home, form: Form) -> TensorId {
        self.ops.tensors.push(Tensor { name, home, form });
        TensorId(self.ops.tensors.len() - 1)
    }

    fn push(&mut self, node: NodeId, reads: Vec<TensorId>, writes: TensorId, kind: OpKind) {
        self.ops.ops.push(Op { node, reads, writes, kind });
    }
}

/// A shape as images of rows, columns and channels. What lies between channels and the last
/// dimension is rows; a single dimension is channels.
fn natural_dims(shape: &[usize]) -> Dims {
    let narrow = |len: usize| u32::try_from(len).expect("`shape` bounds elements to 32 bits");
    let (n, c, rest) = match shape {
        [] => (1, 1, shape),
        &[c] => (1, c, &shape[1..]),
        [n, c, rest @ ..] => (*n, *c, rest),
    };
    let (w, rows) = rest.split_last().map_or((1, rest), |(&w, rows)| (w, rows));
    Dims { n: narrow(n), h: narrow(rows.iter().product()), w: narrow(w), c: narrow(c) }
}
