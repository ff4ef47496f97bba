//! Units that put elements elsewhere, and what carries a change of shape, order or part out.

use super::fuse::then;
use super::matrix::row_dims;
use super::view::View;
use super::{
    Fixed, Form, Function, Held, Home, Lowering, Move, OpKind, Pool, TensorId, natural_dims,
};
use crate::graph::{NodeId, ValueId};
use crate::quantize::{Operand, Pads, Rearrange, Step, Table, Unit, axis_of};
use crate::shape::reduced_axes;
use npu_uapi::command::{Dims, Strides, Window};
use std::sync::Arc;

/// A value seen in its own shape.
pub(super) struct Seen {
    pub(super) tensor: TensorId,
    pub(super) view: View,
    pub(super) table: Option<Table>,
}

impl Lowering<'_> {
    /// Where `value` is; graph inputs are fetched on first use.
    pub(super) fn held(&mut self, value: ValueId, node: NodeId) -> Held {
        if let Some(held) = self.values.get(&value) {
            return held.clone();
        }
        let last = self.last_shape_of(value);
        let map = self.fetch(value, last, self.fetched_dims(last), node, None);
        self.hold(value, map);
        Held::plain(map)
    }

    /// The feature map of `value`, with the dimensions of its shape.
    pub(super) fn natural_map(&mut self, value: ValueId, node: NodeId) -> TensorId {
        let held = self.held(value, node);
        let form = self.ops.tensor(held.tensor).form;
        let dims = self.dims(value);
        if held.view.is_none() && held.table.is_none() && form.dims() == dims {
            return held.tensor;
        }
        let seen = self.seen(value, node);
        let shape = self.part.shapes[&value].clone();
        let map = self.place(value, node, &seen, &shape);
        self.values.insert(value, Held { dequantise: held.dequantise, ..Held::plain(map) });
        map
    }

    /// The feature map of `value` with `dims`, whose order is that of its shape.
    fn map_as(&mut self, value: ValueId, node: NodeId, dims: Dims) -> TensorId {
        let held = self.held(value, node);
        let form = self.ops.tensor(held.tensor).form;
        if held.view.is_none() && held.table.is_none() && form.dims() == dims {
            return held.tensor;
        }
        if dims == self.dims(value) {
            return self.natural_map(value, node);
        }
        let shape = self.part.shapes[&value].clone();
        let seen = self.seen(value, node);
        let map = self.placed_as(value, node, &seen, &shape, dims);
        self.values.insert(value, Held { dequantise: held.dequantise, ..Held::plain(map) });
        map
    }

    /// `value` in its own shape, as far as it need not be moved for that.
    pub(super) fn seen(&mut self, value: ValueId, node: NodeId) -> Seen {
        let Held { tensor, view, table, .. } = self.held(value, node);
        let shape = self.part.shapes[&value].clone();
        let form = self.ops.tensor(tensor).form;
        if let Some(view) = view.or_else(|| View::of(form, &shape)) {
            return Seen { tensor, view, table };
        }
        // Channel-first and dense, the two shapes are the same bytes.
        let dims = form.dims();
        let dense = Form::Host { dims, element_bytes: 1 };
        let own = [dims.n, dims.c, dims.h, dims.w].map(|len| len as usize);
        let views = View::of(form, &own).zip(View::of(dense, &own));
        let (from, to) = views.expect("a tensor has its own dimensions");
        let parts = from.moves(0, &to, table.as_ref()).expect("both have a stride a dimension");
        let written = self.tensor_of(value, Home::Scratch, dense);
        self.push(node, vec![tensor], written, OpKind::Move { fill: None, parts });
        let view = View::of(dense, &shape).expect("dense bytes have any shape");
        Seen { tensor: written, view, table: None }
    }

    /// A feature map of shape `shape`, which is also that of what is `seen`.
    pub(super) fn place(
        &mut self,
        value: ValueId,
        node: NodeId,
        seen: &Seen,
        shape: &[usize],
    ) -> TensorId {
        let form = Form::map(natural_dims(shape));
        let out = self.tensor_of(value, Home::Scratch, form);
        let to = View::of(form, shape).expect("the dimensions are of that shape");
        let parts = seen.view.moves(0, &to, seen.table.as_ref());
        let parts = parts.expect("dimensions of a feature map have one stride each");
        self.push(node, vec![seen.tensor], out, OpKind::Move { fill: None, parts });
        out
    }

    /// The codes of `value` in the host's order.
    pub(super) fn dense(&mut self, value: ValueId, node: NodeId) -> TensorId {
        let seen = self.seen(value, node);
        let shape = &self.part.shapes[&value];
        let form = Form::Host { dims: natural_dims(shape), element_bytes: 1 };
        let to = View::of(form, shape).expect("dense bytes have any shape");
        let parts = seen.view.moves(0, &to, seen.table.as_ref());
        let parts = parts.expect("dense bytes have one stride each");
        let out = self.tensor_of(value, Home::Scratch, form);
        self.push(node, vec![seen.tensor], out, OpKind::Move { fill: None, parts });
        out
    }

    /// Another shape of the same elements.
    pub(super) fn reshape(&mut self, unit: &Unit) {
        let input = unit.inputs[0];
        let held = self.held(input, unit.target);
        let Some(view) = held.view.clone() else {
            self.values.insert(unit.output, held);
            return;
        };
        let shape = self.part.shapes[&unit.output].clone();
        match view.after(&[Step::Reshape(shape)]) {
            Some(view) => {
                self.values.insert(unit.output, Held { view: Some(view), ..held });
            }
            None => {
                let map = self.natural_map(input, unit.target);
                self.hold(unit.output, map);
            }
        }
    }

    pub(super) fn rearrange(&mut self, unit: &Unit, how: &Rearrange, table: Option<&Table>) {
        let (input, node) = (unit.inputs[0], unit.target);
        if self.is_other_shape(unit) {
            return self.reshape(unit);
        }
        let shape = self.part.shapes[&input].clone();
        let steps = how.steps(self.part.graph.node(node), &shape);
        let steps = steps.expect("`shape` has taken these steps before");
        let seen = self.viewed(input, node, &steps);
        let table = both(seen.table.as_ref(), table);
        let held = Held { view: Some(seen.view), table, ..Held::plain(seen.tensor) };
        self.values.insert(unit.output, held);
    }

    pub(super) fn concat(&mut self, unit: &Unit, axis: i64, tables: &[Option<Table>]) {
        let shape = self.part.shapes[&unit.output].clone();
        let axis = axis_of(axis, shape.len()).expect("`shape` has checked the dimension");
        let mut reads = Vec::new();
        let (mut parts, mut start) = (Vec::new(), 0);
        for (&input, table) in unit.inputs.iter().zip(tables) {
            let len = self.part.shapes[&input][axis];
            let to = self.cut(&shape, |view| view.sliced(axis, start, 1, len));
            parts.extend(self.part_of(&mut reads, input, unit.target, &to, table.as_ref()));
            start += len;
        }
        self.moved(unit, reads, OpKind::Move { fill: None, parts });
    }

    pub(super) fn pad(&mut self, unit: &Unit, pads: &Pads, code: u8, table: Option<&Table>) {
        let (input, node) = (unit.inputs[0], unit.target);
        let (inner, shape) =
            (self.part.shapes[&input].clone(), self.part.shapes[&unit.output].clone());
        let cut = pads.cut(self.part.graph.node(node), &inner);
        let (steps, [before, _]) = cut.expect("`shape` has cut this before");
        let inner = steps.iter().fold(inner, |shape, step| step.shape(shape));
        let to = self.cut(&shape, |view| {
            let mut axes = inner.iter().zip(&before).enumerate();
            axes.try_fold(view, |view, (axis, (&len, &before))| view.sliced(axis, before, 1, len))
        });
        let seen = self.viewed(input, node, &steps);
        let table = both(seen.table.as_ref(), table);
        let parts = seen.view.moves(0, &to, table.as_ref());
        let parts = parts.expect("dimensions of a feature map have one stride each");
        self.moved(unit, vec![seen.tensor], OpKind::Move { fill: Some(code), parts });
    }

    /// Part of a feature map of shape `shape`.
    fn cut(&self, shape: &[usize], cut: impl FnOnce(View) -> Option<View>) -> View {
        let view = View::of(Form::map(natural_dims(shape)), shape);
        view.and_then(cut).expect("dimensions of a feature map have one stride each")
    }

    /// The moves of `input` to `to`, reading one of `reads`.
    fn part_of(
        &mut self,
        reads: &mut Vec<TensorId>,
        input: ValueId,
        node: NodeId,
        to: &View,
        table: Option<&Table>,
    ) -> Vec<Move> {
        let seen = self.seen(input, node);
        let table = both(seen.table.as_ref(), table);
        let read = reads.iter().position(|&read| read == seen.tensor).unwrap_or_else(|| {
            reads.push(seen.tensor);
            reads.len() - 1
        });
        let moves = seen.view.moves(read, to, table.as_ref());
        moves.expect("dimensions of a feature map have one stride each")
    }

    fn moved(&mut self, unit: &Unit, reads: Vec<TensorId>, kind: OpKind) {
        let out = self.tensor_of(unit.output, Home::Scratch, Form::map(self.dims(unit.output)));
        self.push(unit.target, reads, out, kind);
        self.hold(unit.output, out);
    }

    /// The maximum over dimensions is that over a window of their size; the minimum is the maximum of
    /// codes counted from the other end.
    pub(super) fn extreme(
        &mut self,
        unit: &Unit,
        axes: Option<&[i64]>,
        least: bool,
        table: Option<&Table>,
    ) {
        let (input, node) = (unit.inputs[0], unit.target);
        let shape = self.part.shapes[&input].clone();
        let reduced = reduced_axes(self.part.graph.node(node), axes, &shape);
        let reduced = reduced.expect("`shape` has checked the dimensions");
        let opposite: Option<Table> = least.then(opposite);
        let table = both(opposite.as_ref(), table);
        let map = if reduced == [2, 3] && shape.len() == 4 && !least {
            self.natural_map(input, node)
        } else {
            let kept: Vec<usize> =
                (0..shape.len()).filter(|axis| !reduced.contains(axis)).collect();
            let count = |axes: &[usize]| axes.iter().map(|&axis| shape[axis]).product::<usize>();
            let (first, rest) = kept.split_at(kept.len().min(1));
            let image = vec![count(first), count(rest), 1, count(&reduced)];
            let order = kept.iter().chain(&reduced).copied().collect();
            let mut seen = self.seen(input, node);
            let view = seen.view.after(&[Step::Permute(order), Step::Reshape(image.clone())]);
            seen.view = view.expect("dimensions that are joined only need no other order");
            seen.table = both(seen.table.as_ref(), opposite.as_ref());
            self.place(input, node, &seen, &image)
        };
        let dims = self.ops.tensor(map).form.dims();
        let side = |len: u32| u16::try_from(len).expect("`shape` has bounded the dimensions");
        let window = Window {
            kernel_h: side(dims.h),
            kernel_w: side(dims.w),
            stride_h: 1,
            stride_w: 1,
            dilation_h: 1,
            dilation_w: 1,
            ..Window::default()
        };
        let out = Form::map(Dims { h: 1, w: 1, ..dims });
        let out = self.tensor_of(unit.output, Home::Scratch, out);
        self.push(node, vec![map], out, OpKind::Pool { kind: Pool::Max(window), table });
        self.hold(unit.output, out);
    }

    /// A function of two tensors, the smaller one repeated.
    pub(super) fn pair(&mut self, unit: &Unit, function: Function) {
        let node = unit.target;
        let values = [unit.inputs[0], unit.inputs[1]];
        let shape = self.part.shapes[&unit.output].clone();
        let is_whole = values.map(|value| self.part.shapes[&value] == shape);
        let held = values.map(|value| self.held(value, node));
        // As whatever lies plainly does; where two lie so in different ways, as what was made by rows.
        let plain = (0..2).filter(|&index| {
            is_whole[index] && held[index].view.is_none() && held[index].table.is_none()
        });
        let plain = plain.map(|index| self.ops.tensor(held[index].tensor).form.dims());
        // What was only reshaped may lie in dimensions that are not those of its shape.
        let plain = plain.filter(|&dims| View::of(Form::map(dims), &shape).is_some());
        let natural = natural_dims(&shape);
        let dims = plain.reduce(|one, other| if one == natural { other } else { one });
        let dims = dims.unwrap_or(natural);
        let (mut maps, mut strides) = ([held[0].tensor; 2], [Strides::default(); 2]);
        for (index, value) in values.into_iter().enumerate() {
            (maps[index], strides[index]) = if is_whole[index] {
                let map = self.map_as(value, node, dims);
                (map, self.ops.tensor(map).form.strides())
            } else {
                self.repeated(value, node, &shape, dims)
            };
        }
        let out = self.tensor_of(unit.output, Home::Scratch, Form::map(dims));
        self.push(
            node,
            maps.to_vec(),
            out,
            OpKind::Pair { function, strides, constant: None, table: None },
        );
        self.hold(unit.output, out);
    }

    /// A function of two tensors or of one and a constant.
    pub(super) fn function(&mut self, unit: &Unit, function: Function, constant: Option<&Operand>) {
        let Some(constant) = constant else { return self.pair(unit, function) };
        let shape = self.part.shapes[&unit.output].clone();
        let (value, node) = (unit.inputs[0], unit.target);
        let own = constant.tensor.shape.split_last().map_or(&[][..], |(_, rest)| rest);
        let held = self.held(value, node);
        let is_rows = held.view.is_none()
            && held.table.is_none()
            && self.ops.tensor(held.tensor).form.dims() == row_dims(&shape);
        let (map, form, bytes, repeated) = if is_rows && own.iter().all(|&len| len == 1) {
            // The same channels at every row.
            let form = Form::map(row_dims(&shape));
            (held.tensor, form, channels(constant, form), Strides::default())
        } else {
            let form = Form::map(natural_dims(&shape));
            let (bytes, repeated) = fixed(constant, &shape, form);
            (self.natural_map(value, node), form, bytes, repeated)
        };
        let own = self.ops.tensor(map).form;
        let strides = constant.order(repeated, own.strides());
        let out = self.tensor_of(unit.output, Home::Scratch, own);
        if let (Function::Table(pairs), true) = (&function, repeated == Strides::default()) {
            // It depends on the channel alone: fewer entries than pairs have.
            let row = |&own: &u8| (0..=255).map(move |code| constant.order(own, code));
            let entries = bytes[..form.dims().c as usize].iter().flat_map(row);
            let tables = entries.map(|[a, b]| pairs.code(a, b)).collect();
            self.push(unit.target, vec![map], out, OpKind::Channels(tables));
            return self.hold(unit.output, out);
        }
        let constant = Some(Fixed { bytes, is_first: constant.is_first });
        self.push(
            unit.target,
            vec![map],
            out,
            OpKind::Pair { function, strides, constant, table: None },
        );
        self.hold(unit.output, out);
    }

    /// Where `value` is, which is repeated to `shape`, and how it is walked as a feature map of `dims`.
    fn repeated(
        &mut self,
        value: ValueId,
        node: NodeId,
        shape: &[usize],
        dims: Dims,
    ) -> (TensorId, Strides) {
        let own = self.part.shapes[&value].clone();
        let mut padded = vec![1; shape.len() - own.len()];
        padded.extend(&own);
        let repeat = |(axis, (&own, &len)): (usize, (&usize, &usize))| {
            (own != len).then_some(Step::RepeatEach { axis, times: len })
        };
        let repeats = padded.iter().zip(shape).enumerate().filter_map(repeat);
        let steps: Vec<Step> =
            std::iter::once(Step::Reshape(padded.clone())).chain(repeats).collect();
        let view = |form: Form| View::of(form, &own).and_then(|view| view.after(&steps));
        let walk = |form: Form| view(form).and_then(|view| view.as_map(dims, form));
        // As it lies, if that does; or where its elements become channels, as rows: so it is moved
        // alone, not what it is repeated to.
        let held = self.held(value, node);
        let form = self.ops.tensor(held.tensor).form;
        let is_plain = held.view.is_none() && held.table.is_none();
        if let (true, Some(strides)) = (is_plain, walk(form)) {
            return (held.tensor, strides);
        }
        let natural = Form::map(self.dims(value));
        for form in [natural, Form::map(row_dims(&own))] {
            if walk(form).is_some() {
                let map = self.map_as(value, node, form.dims());
                // What lies there may have more bytes a pixel.
                if let Some(strides) = walk(self.ops.tensor(map).form) {
                    return (map, strides);
                }
            }
        }
        let map = self.natural_map(value, node);
        let view = view(self.ops.tensor(map).form);
        let view =
            view.expect("a feature map has its own shape, and single elements can be repeated");
        let seen = Seen { tensor: map, view, table: None };
        let map = self.placed_as(value, node, &seen, shape, dims);
        (map, self.ops.tensor(map).form.strides())
    }
}

/// The bytes of a constant of the last dimension alone, as one pixel of `form`.
fn channels(constant: &Operand, form: Form) -> Arc<[u8]> {
    let c = form.dims().c as usize;
    let mut bytes = vec![0; c.next_multiple_of(16)];
    for (byte, &code) in bytes.iter_mut().zip(constant.tensor.bytes.iter().cycle()).take(c) {
        *byte = code;
    }
    bytes.into()
}

/// The bytes of a constant that is repeated to `shape`, a feature map of `form`, and how they are walked:
/// one pixel where it depends on the channel alone, else one image.
fn fixed(constant: &Operand, shape: &[usize], form: Form) -> (Arc<[u8]>, Strides) {
    let own = &constant.tensor.shape;
    let mut padded = vec![1; shape.len() - own.len()];
    padded.extend(own);
    let a_channel = padded.iter().skip(2).all(|&len| len == 1);
    let dims = form.dims();
    let strides =
        if a_channel { Strides::default() } else { Strides { image: 0, ..form.strides() } };
    let pixel = dims.c.next_multiple_of(16) as usize;
    let pixels = if a_channel { 1 } else { (dims.h * dims.w) as usize };
    let mut bytes = vec![0; pixels * pixel];
    for (at, byte) in bytes.iter_mut().enumerate() {
        let (mut left, channel) = (at / pixel, at % pixel);
        if channel >= dims.c as usize {
            continue;
        }
        // Row-major over the dimensions behind the channels, with those of length 1 repeated.
        let (mut index, mut step) = (0, 1);
        for (axis, &len) in padded.iter().enumerate().rev() {
            let position = match axis {
                _ if shape.len() == 1 => channel,
                0 => 0,
                1 => channel,
                _ => {
                    let position = left % shape[axis];
                    left /= shape[axis];
                    position
                }
            };
            index += if len == 1 { 0 } else { position * step };
            step *= len;
        }
        *byte = constant.tensor.bytes[index];
    }
    (bytes.into(), strides)
}

/// Codes counted from the other end.
fn opposite() -> Table {
    let mut table = [0; 256];
    for (code, entry) in (0..=255).zip(table.iter_mut().rev()) {
        *entry = code;
    }
    Arc::new(table)
}

/// One table behind the other, where there are any.
pub(super) fn both(first: Option<&Table>, second: Option<&Table>) -> Option<Table> {
    match (first, second) {
        (Some(first), Some(second)) => Some(then(first, second)),
        (first, second) => first.or(second).cloned(),
    }
}
