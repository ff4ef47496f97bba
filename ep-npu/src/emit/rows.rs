//! Sums and normalisations of rows to their commands.

use super::{Content, Operands};
use crate::lower::{Normalise, Op};
use npu_uapi::command::{Dims, Flags, Header, Norm, Reduce, Strides, norm_kind, opcode};
use npu_uapi::rows::{Codes, Reduction};

impl Operands<'_> {
    pub(super) fn reduce(
        &self,
        op_id: u32,
        op: &Op,
        reduction: &Reduction,
        dims: Dims,
        dst_strides: Strides,
    ) -> Reduce {
        let Strides { image, pixel, .. } = self.form(op.reads[0]).strides();
        // Its rows are images of one pixel.
        let row = i32::try_from(image).expect("`shape` bounds rows to 31 bits");
        let image = image * i64::from(dims.h);
        Reduce {
            header: Header::new(opcode::REDUCE, 2, Flags::empty(), op_id),
            src: self.tensor(op.reads[0]),
            dst: self.tensor(op.writes),
            dims,
            src_strides: Strides { image, row, pixel },
            dst_strides,
            input_scale: reduction.input.scale,
            output_scale: reduction.output.scale,
            input_zero_point: reduction.input.zero_point,
            zero_point: reduction.output.zero_point,
            order: reduction.order.code(),
            mean: reduction.is_mean.into(),
            ..Reduce::default()
        }
    }

    pub(super) fn norm(
        &self,
        op_id: u32,
        index: usize,
        op: &Op,
        kind: &Normalise,
        [input, output]: [Codes; 2],
    ) -> Norm {
        let plain = Norm {
            header: Header::new(opcode::NORM, 3, Flags::empty(), op_id),
            src: self.tensor(op.reads[0]),
            dst: self.tensor(op.writes),
            terms: self.constant(index, Content::Tables),
            dims: self.form(op.writes).dims(),
            src_strides: self.form(op.reads[0]).strides(),
            dst_strides: self.form(op.writes).strides(),
            input_scale: input.scale,
            output_scale: output.scale,
            input_zero_point: input.zero_point,
            zero_point: output.zero_point,
            ..Norm::default()
        };
        match kind {
            Normalise::Layer { epsilon, .. } => {
                Norm { kind: norm_kind::LAYER, epsilon: *epsilon, ..plain }
            }
            Normalise::Instance { epsilon, terms } => Norm {
                kind: norm_kind::INSTANCE,
                epsilon: *epsilon,
                period: u32::try_from(terms.len()).expect("`shape` bounds channels to 31 bits"),
                ..plain
            },
            Normalise::Staged { orders: [order, square_order], variance, .. } => Norm {
                kind: norm_kind::STAGED,
                order: order.code(),
                square_order: square_order.code(),
                variance_scale: variance.scale,
                variance_zero_point: variance.zero_point,
                ..plain
            },
        }
    }
}
