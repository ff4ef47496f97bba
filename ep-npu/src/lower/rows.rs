//! Sums and normalisations of rows: the elements of a row become the channels of a pixel.

use super::matrix::row_dims;
use super::op::Normalise;
use super::place::Seen;
use super::{Form, Home, Lowering, OpKind, TensorId};
use crate::graph::{NodeId, ValueId};
use crate::quantize::{How, Norm, Step, Sum, Unit};
use crate::shape::rows::{of_norm, of_sum};
use npu_uapi::command::{Dims, Strides};
use npu_uapi::rows::{Codes, Reduction};

impl Lowering<'_> {
    /// The tensor whose pixels are the rows that `steps` make of `value`, which are of `shape`.
    fn rows_of(
        &mut self,
        value: ValueId,
        node: NodeId,
        steps: &[Step],
        shape: &[usize],
    ) -> TensorId {
        let Seen { tensor, view, table } = self.viewed(value, node, steps);
        let form = self.ops.tensor(tensor).form;
        let wanted = Form::map(row_dims(shape));
        if table.is_none() && form == wanted && view.is_pixels(form, shape) {
            return tensor;
        }
        self.placed_as(value, node, &Seen { tensor, view, table }, shape, row_dims(shape))
    }

    pub(super) fn sum(&mut self, unit: &Unit, sum: &Sum) {
        let (input, node) = (unit.inputs[0], unit.target);
        let rows = of_sum(self.part.graph.node(node), sum, &self.part.shapes[&input]);
        let (rows, order) = rows.expect("`shape` has found the rows");
        let map = self.rows_of(input, node, &rows.steps(), &rows.shape());
        let shape = &self.part.shapes[&unit.output];
        // What has one pixel an image takes one channel after the other.
        let natural = self.dims(unit.output);
        let (form, images) = match natural.h == 1 && natural.w == 1 && shape.len() > 1 {
            true => (Form::map(natural), natural.n),
            false => (Form::map(Dims { c: 1, ..row_dims(&rows.shape()) }), 1),
        };
        let source = self.ops.tensor(map).form.dims();
        let dims = Dims { n: images, h: source.n / images, ..source };
        let strides = form.strides();
        let step = if images == 1 && form.dims().c == 1 { strides.image } else { 1 };
        let row = i32::try_from(step).expect("a pixel is 16 bytes");
        let strides = Strides { image: strides.image, row, pixel: row };
        let out = self.tensor_of(unit.output, Home::Scratch, form);
        let reduction = Reduction {
            order,
            is_mean: sum.is_mean,
            input: codes(sum.input),
            output: codes(sum.output),
        };
        self.push(node, vec![map], out, OpKind::Reduce { reduction, dims, strides });
        self.hold(unit.output, out);
    }

    pub(super) fn norm(&mut self, unit: &Unit, norm: &Norm) {
        let (input, node) = (unit.inputs[0], unit.target);
        let of = of_norm(self.part.graph.node(node), norm, &self.part.shapes[&input]);
        let of = of.expect("`shape` has found the rows");
        let map = self.rows_of(input, node, &of.steps, &of.rows);
        let form = Form::map(row_dims(&of.rows));
        let kind = match &norm.how {
            How::Layer { epsilon, terms, .. } => {
                Normalise::Layer { epsilon: *epsilon, terms: terms.clone() }
            }
            How::Instance { epsilon, terms } => {
                Normalise::Instance { epsilon: *epsilon, terms: terms.clone() }
            }
            How::Staged { variance, divisors, .. } => Normalise::Staged {
                orders: of.orders.expect("single operators have two sums"),
                variance: codes(*variance),
                divisors: divisors.clone(),
            },
        };
        let out = self.tensor_of(unit.output, Home::Scratch, form);
        let (input, output) = (codes(norm.input), codes(norm.output));
        self.push(node, vec![map], out, OpKind::Norm { kind, input, output });
        self.hold(unit.output, out);
    }
}

fn codes(codes: crate::quantize::Codes) -> Codes {
    Codes { scale: codes.scale, zero_point: codes.zero_point }
}
