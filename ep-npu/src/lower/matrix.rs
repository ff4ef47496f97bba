//! Products whose rows are not whole images, and Softmax: on feature maps of one pixel an image.
//!
//! ```text
//! [b, s, k]                        rows: b * s images of k channels, without a gap where 16 divides k
//! [b, h, s, d] of a [b, s, h * d]  seen in it by strides; a product of two tensors reads it so
//! ```

use super::place::Seen;
use super::view::View;
use super::{Form, Held, Home, Lowering, OpKind, TensorId, natural_dims};
use crate::graph::{NodeId, ValueId};
use crate::quantize::{
    Codes, How, Kind, Norm, Rearrange, Step, Unit, axis_of, multiplier, parts, whole,
};
use npu_uapi::command::Dims;
use npu_uapi::requantise::ShareTerms;

/// Products of matrices, as many as two loops say; strides in bytes, of the loops and of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Matrices {
    /// Turns of the loops around.
    pub turns: [usize; 2],
    /// Rows and columns of the result, and the length of sums.
    pub size: [usize; 3],
    /// The left matrices: first byte, strides of loops, rows, columns.
    pub a: Walk,
    /// The right ones.
    pub b: Walk,
    /// The results.
    pub out: Walk,
    /// Zero points of both and of the result.
    pub zero_points: [u8; 3],
    /// What sums are multiplied by.
    pub multiplier: f32,
}

/// How matrices are walked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Walk {
    /// The first byte.
    pub first: i64,
    /// From a turn of each loop to the next.
    pub turns: [i64; 2],
    /// From a row to the next.
    pub row: i64,
    /// From a column to the next.
    pub column: i64,
}

/// A shape as rows: one pixel an image, its channels the last dimension.
pub(super) fn row_dims(shape: &[usize]) -> Dims {
    let narrow = |len: usize| u32::try_from(len).expect("`shape` bounds elements to 32 bits");
    let (&c, rest) = shape.split_last().unwrap_or((&1, &[]));
    Dims { n: narrow(rest.iter().product()), h: 1, w: 1, c: narrow(c) }
}

impl Lowering<'_> {
    /// Whether a unit of the part reads `value` by rows.
    pub(super) fn is_read_by_rows(&self, value: ValueId) -> bool {
        let rank = self.part.shapes[&value].len();
        self.part.flow.readers(value).any(|unit| match &unit.kind {
            Kind::Product(_) => rank > 2,
            Kind::MatMul { .. } => true,
            Kind::Softmax { axis, .. } => axis_of(*axis, rank) == rank.checked_sub(1),
            Kind::Norm(Norm { how: How::Layer { axis, .. }, .. }) => {
                axis_of(*axis, rank) == rank.checked_sub(1)
            }
            _ => false,
        })
    }

    /// The dimensions in which `value` is fetched from a graph input.
    pub(super) fn fetched_dims(&self, value: ValueId) -> Dims {
        let shape = &self.part.shapes[&value];
        if self.is_read_by_rows(value) { row_dims(shape) } else { natural_dims(shape) }
    }

    /// The tensor of `value` whose pixels, in their order, are its rows.
    pub(super) fn rows(&mut self, value: ValueId, node: NodeId) -> crate::lower::TensorId {
        let shape = self.part.shapes[&value].clone();
        let seen = self.seen(value, node);
        let form = self.ops.tensor(seen.tensor).form;
        if seen.table.is_none() && seen.view.is_pixels(form, &shape) {
            return seen.tensor;
        }
        self.placed_as(value, node, &seen, &shape, row_dims(&shape))
    }

    /// `seen`, which is `value`, in a feature map of `dims`, whose order is that of `shape`.
    pub(super) fn placed_as(
        &mut self,
        value: ValueId,
        node: NodeId,
        seen: &Seen,
        shape: &[usize],
        dims: Dims,
    ) -> crate::lower::TensorId {
        let form = Form::map(dims);
        let to = View::of(form, shape).expect("the dimensions are of that shape");
        let parts = seen.view.moves(0, &to, seen.table.as_ref());
        let parts = parts.expect("a feature map of rows has one stride a dimension");
        let out = self.tensor_of(value, Home::Scratch, form);
        self.push(node, vec![seen.tensor], out, OpKind::Move { fill: None, parts });
        out
    }

    pub(super) fn softmax(&mut self, unit: &Unit, axis: i64, input: Codes, output: Codes) {
        let value = unit.inputs[0];
        let rank = self.part.shapes[&value].len();
        if axis_of(axis, rank) != rank.checked_sub(1) {
            // `shape` lets pass channels of images of one pixel.
            let map = self.natural_map(value, unit.target);
            let form = Form::map(self.dims(unit.output));
            return self.shares(unit, map, form, input, output);
        }
        let map = self.rows(value, unit.target);
        let form = Form::map(row_dims(&self.part.shapes[&value]));
        let map = match self.ops.tensor(map).form == form {
            true => map,
            false => {
                // The same rows, with the dimensions that the result has.
                let shape = self.part.shapes[&value].clone();
                let seen = self.seen(value, unit.target);
                self.placed_as(value, unit.target, &seen, &shape, row_dims(&shape))
            }
        };
        self.shares(unit, map, form, input, output);
    }

    /// The shares that channels have in the sum of their pixel.
    fn shares(&mut self, unit: &Unit, map: TensorId, form: Form, input: Codes, output: Codes) {
        let count = form.dims().c as usize;
        let out = self.tensor_of(unit.output, Home::Scratch, form);
        let terms = ShareTerms { scale: whole(output), zero_point: output.zero_point };
        let kind = OpKind::Softmax { parts: parts(input, count), terms };
        self.push(unit.target, vec![map], out, kind);
        self.hold(unit.output, out);
    }

    /// A product of two tensors. Where its result is only transposed to have its rows side by side,
    /// as heads of attention are, it is written so.
    pub(super) fn matmul(&mut self, unit: &Unit, [first, second, result]: [Codes; 3]) {
        let node = unit.target;
        let shape = self.part.shapes[&unit.output].clone();
        let (form, view) = self.result_of(unit, &shape);
        let operands = [unit.inputs[0], unit.inputs[1]];
        let mut seen = operands.map(|value| self.seen(value, node));
        let mut walks = None;
        for are_placed in [false, true] {
            if are_placed {
                // By rows there is a stride for everything.
                for (seen, value) in seen.iter_mut().zip(operands) {
                    let shape = self.part.shapes[&value].clone();
                    let map = self.placed_as(value, node, seen, &shape, row_dims(&shape));
                    let view = View::of(self.ops.tensor(map).form, &shape);
                    let view = view.expect("the dimensions are of that shape");
                    *seen = Seen { tensor: map, view, table: None };
                }
            }
            if seen.iter().any(|seen| seen.table.is_some()) {
                continue;
            }
            let [a, b] = seen.each_ref().map(|seen| &seen.view);
            walks = super::view::walks([a, b, &view], &shape);
            if walks.is_some() {
                break;
            }
        }
        let (turns, [a, b, out]) = walks.expect("`shape` has bounded the dimensions around");
        let &[.., m, n] = shape.as_slice() else { panic!("`shape` makes two dimensions at least") };
        let k = self.part.shapes[&unit.inputs[0]].last().copied().unwrap_or(1);
        let matrices = Matrices {
            turns,
            size: [m, n, k],
            a,
            b,
            out,
            zero_points: [first, second, result].map(|codes| codes.zero_point),
            multiplier: multiplier(first, second, result),
        };
        let tensor = self.tensor_of(unit.output, Home::Scratch, form);
        let reads = seen.iter().map(|seen| seen.tensor).collect();
        let kind = OpKind::Product { matrices: Box::new(matrices), table: None };
        self.push(node, reads, tensor, kind);
        let is_plain = View::of(form, &shape).is_some_and(|plain| plain.is_same(&view));
        let view = (!is_plain).then_some(view);
        self.values.insert(unit.output, Held { view, ..Held::plain(tensor) });
    }

    /// Where the result of a product of two tensors goes: its tensor, and how it lies in it.
    fn result_of(&self, unit: &Unit, shape: &[usize]) -> (Form, View) {
        let mut readers = self.part.flow.readers(unit.output);
        let beside = match (readers.next().map(|u| &u.kind), readers.next(), shape) {
            (
                Some(Kind::Rearrange { how: Rearrange::Transpose(Some(order)), .. }),
                None,
                &[b, heads, m, n],
            ) if order == &[0, 2, 1, 3] => Some([b, m, heads, n]),
            _ => None,
        };
        let is_output = self.part.outputs.contains(&unit.output);
        if let Some(beside) = beside.filter(|_| !is_output) {
            let [b, m, heads, n] = beside;
            let form = Form::map(row_dims(&[b, m, heads * n]));
            let view = View::of(form, &beside);
            let view = view.and_then(|view| view.after(&[Step::Permute(vec![0, 2, 1, 3])]));
            return (form, view.expect("rows of channels are heads of channels"));
        }
        let form = Form::map(row_dims(shape));
        (form, View::of(form, shape).expect("the dimensions are of that shape"))
    }
}
