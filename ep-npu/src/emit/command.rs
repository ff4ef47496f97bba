//! One operation to its commands: one, but for moves and strips.

use super::{Content, Operands};
use crate::lower::{
    self, Conv, Form, Function, Loop, Matrices, Move, Op, OpKind, Pool, TensorId, Walk,
};
use npu_uapi::addr::Operand;
use npu_uapi::command::{
    self, Command, Dims, Flags, Header, Stage, Strides, Strides4, Window, element, opcode,
    pool_kind, record_bytes,
};
use npu_uapi::requantise::{AddTerms, MulTerms, ShareTerms};

impl Operands<'_> {
    /// The commands of operation `index`.
    pub(super) fn commands(&self, op_id: u32, index: usize) -> Vec<Command> {
        let op = &self.ops.ops[index];
        let command = match &op.kind {
            OpKind::Conv(conv) => match conv.strips {
                Some(strips) => return self.strips(op_id, index, op, conv, strips),
                None => self.conv(op_id, index, op, conv),
            },
            OpKind::Pair { function, strides, table, .. } => {
                self.pair(op_id, index, op, function, *strides, table_0(table.is_some()))
            }
            OpKind::Move { fill, parts } => {
                let fill = fill.map(|value| self.fill(op_id, op, value));
                let mut table = self.constant(index, Content::Tables);
                let moves = parts.iter().map(|part| {
                    let command = self.part(op_id, op, part, table);
                    table.offset += if part.table.is_some() { 256 } else { 0 };
                    command
                });
                return fill.into_iter().chain(moves).collect();
            }
            OpKind::Pool { kind, table } => {
                let flags = table_0(table.is_some());
                Command::Pool(self.pool(
                    Header::new(opcode::POOL, 3, flags, op_id),
                    index,
                    op,
                    kind,
                ))
            }
            OpKind::Product { matrices, table } => {
                Command::Product(self.product(op_id, index, op, matrices, table.is_some()))
            }
            OpKind::Softmax { terms, .. } => {
                Command::Softmax(self.softmax(op_id, index, op, *terms))
            }
            OpKind::Resize { input, output, .. } => {
                Command::Resize(self.resize(op_id, index, op, *input, *output))
            }
            OpKind::Reduce { reduction, dims, strides } => {
                Command::Reduce(self.reduce(op_id, op, reduction, *dims, *strides))
            }
            OpKind::Norm { kind, input, output } => {
                Command::Norm(self.norm(op_id, index, op, kind, [*input, *output]))
            }
            OpKind::Table(_) => Command::Table(self.table(op_id, index, op)),
            OpKind::Channels(_) => Command::ChannelTable(command::ChannelTable {
                header: Header::new(opcode::CHANNEL_TABLE, 2, Flags::empty(), op_id),
                src: self.tensor(op.reads[0]),
                dst: self.tensor(op.writes),
                tables: self.constant(index, Content::Tables),
                dims: self.form(op.writes).dims(),
                src_strides: self.form(op.reads[0]).strides(),
                dst_strides: self.form(op.writes).strides(),
                reserved: [0; 2],
            }),
            OpKind::Layout { scale, zero_point } => {
                Command::Layout(self.layout(op_id, op, *scale, *zero_point))
            }
        };
        vec![command]
    }

    fn conv(&self, op_id: u32, index: usize, op: &Op, conv: &Conv) -> Command {
        let mut flags = Flags::empty();
        flags.set(Flags::TABLE_0, conv.table_0.is_some());
        flags.set(Flags::ADD_AUX, conv.addition.is_some());
        flags.set(Flags::AUX_FIRST, conv.addition.is_some_and(|addition| addition.aux_first));
        flags.set(Flags::TABLE_1, conv.table_1.is_some());
        flags.set(Flags::FLOAT, conv.floats.is_some());
        let (ifm, ofm) = (self.form(op.reads[0]), self.form(op.writes));
        let aux = op.reads.get(1).copied();
        let aux_strides = aux.map_or_else(Strides::default, |aux| self.form(aux).strides());
        let aux = aux.map_or_else(Operand::default, |aux| self.tensor(aux));
        let weights = self.constant(index, Content::Weights(conv.weights.kernel));
        let channels = self.constant(index, Content::Records);
        let tables = self.constant(index, Content::Tables);
        let stage = stage(conv);
        let (from, to) = (ifm.dims(), ofm.dims());
        if is_product(conv, from, to) {
            return Command::MatMul(command::MatMul {
                header: Header::new(opcode::MATMUL, 3, flags, op_id),
                a: self.tensor(op.reads[0]),
                weights,
                channels,
                out: self.tensor(op.writes),
                aux,
                tables,
                m: from.n * from.h * from.w,
                n: to.c,
                k: from.c,
                // Rows of the matrix are pixels.
                a_row: ifm.strides().pixel,
                out_row: ofm.strides().pixel,
                aux_row: aux_strides.pixel,
                stage,
                ..command::MatMul::default()
            });
        }
        Command::Conv(command::Conv {
            header: Header::new(opcode::CONV, 4, flags, op_id),
            ifm: self.tensor(op.reads[0]),
            weights,
            channels,
            ofm: self.tensor(op.writes),
            aux,
            tables,
            quant: Operand::default(),
            ifm_dims: from,
            ofm_h: to.h,
            ofm_w: to.w,
            ofm_c: to.c,
            groups: u32::try_from(conv.groups).expect("groups divide the channels"),
            ifm_strides: ifm.strides(),
            ofm_strides: ofm.strides(),
            aux_strides,
            window: conv.window,
            stage,
        })
    }

    /// A convolution of one tap whose output channels are, in so many parts, rows of pixels.
    fn strips(&self, op_id: u32, index: usize, op: &Op, conv: &Conv, strips: u32) -> Vec<Command> {
        let Command::Conv(whole) = self.conv(op_id, index, op, conv) else {
            panic!("pixels of blocks are never one");
        };
        let Strides { image, row, .. } = self.form(op.writes).strides();
        let rows = i32::try_from(strips).expect("the stride of a kernel");
        let channels = u32::try_from(conv.weights.outputs).expect("`shape` bounds tensors");
        let channels = channels / strips;
        let depth = u64::from(whole.ifm_dims.c).next_multiple_of(4);
        let strip = |at: u32| {
            let further = |operand: Operand, bytes: u64| Operand {
                offset: operand.offset + u64::from(at) * bytes,
                ..operand
            };
            Command::Conv(command::Conv {
                weights: further(whole.weights, u64::from(channels) * depth),
                channels: further(whole.channels, record_bytes(channels)),
                ofm: further(whole.ofm, u64::from(row.unsigned_abs())),
                ofm_h: whole.ifm_dims.h,
                ofm_w: whole.ifm_dims.w,
                ofm_c: channels,
                ofm_strides: Strides {
                    image,
                    row: row.checked_mul(rows).expect("`shape` bounds rows to 31 bits"),
                    pixel: i32::try_from(channels).expect("`shape` bounds rows to 31 bits"),
                },
                ..whole
            })
        };
        (0..strips).map(strip).collect()
    }

    fn pair(
        &self,
        op_id: u32,
        index: usize,
        op: &Op,
        function: &Function,
        [a_strides, b_strides]: [Strides; 2],
        flags: Flags,
    ) -> Command {
        let [a, b] = match &op.kind {
            OpKind::Pair { constant: Some(constant), .. } => {
                let own = self.constant(index, Content::Operand);
                let other = self.tensor(op.reads[0]);
                if constant.is_first { [own, other] } else { [other, own] }
            }
            _ => [self.tensor(op.reads[0]), self.tensor(op.reads[1])],
        };
        let (out, tables) = (self.tensor(op.writes), self.constant(index, Content::Tables));
        let (dims, out_strides) = (self.form(op.writes).dims(), self.form(op.writes).strides());
        let (clamp_low, clamp_high) = (0, 255);
        match *function {
            Function::Add(AddTerms { first, second, offset }) => Command::Add(command::Add {
                header: Header::new(opcode::ADD, 3, flags, op_id),
                a,
                b,
                out,
                tables,
                dims,
                a_strides,
                b_strides,
                out_strides,
                first,
                second,
                offset,
                clamp_low,
                clamp_high,
                ..command::Add::default()
            }),
            Function::Multiply(terms) => {
                let MulTerms { multiplier, first_zero_point, second_zero_point, zero_point } =
                    terms;
                Command::Mul(command::Mul {
                    header: Header::new(opcode::MUL, 3, flags, op_id),
                    a,
                    b,
                    out,
                    tables,
                    dims,
                    a_strides,
                    b_strides,
                    out_strides,
                    multiplier,
                    first_zero_point,
                    second_zero_point,
                    zero_point,
                    clamp_low,
                    clamp_high,
                    ..command::Mul::default()
                })
            }
            Function::Table(_) => Command::PairTable(command::PairTable {
                header: Header::new(opcode::PAIR_TABLE, 3, flags, op_id),
                a,
                b,
                out,
                table: tables,
                dims,
                a_strides,
                b_strides,
                out_strides,
                ..command::PairTable::default()
            }),
        }
    }

    fn fill(&self, op_id: u32, op: &Op, value: u8) -> Command {
        Command::Fill(command::Fill {
            header: Header::new(opcode::FILL, 1, Flags::empty(), op_id),
            dst: self.tensor(op.writes),
            len: self.form(op.writes).len_bytes(),
            value,
            ..command::Fill::default()
        })
    }

    /// One move; `table` is where its table lies, if it has one.
    fn part(&self, op_id: u32, op: &Op, part: &Move, table: Operand) -> Command {
        let within = |operand: Operand, at: i64| {
            let offset = operand.offset.checked_add_signed(at);
            Operand { offset: offset.expect("a view lies in its tensor"), ..operand }
        };
        // Innermost what is contiguous in the result, then what is contiguous in the source.
        let mut loops = part.loops.clone();
        loops.sort_by_key(|l| (l.dst != 1, l.src != 1, l.dst.unsigned_abs()));
        let one = Loop { count: 1, src: 0, dst: 0 };
        let at = |index: usize| loops.get(index).copied().unwrap_or(one);
        let count = |l: Loop| u32::try_from(l.count).expect("`shape` bounds tensors");
        let strides = |step: fn(&Loop) -> i64| Strides4 {
            channel: step(&at(0)),
            pixel: step(&at(1)),
            row: step(&at(2)),
            image: step(&at(3)),
        };
        let outer = loops.get(4).copied();
        Command::Layout(command::Layout {
            header: Header::new(opcode::LAYOUT, 3, table_0(part.table.is_some()), op_id),
            src: within(self.tensor(op.reads[part.read]), part.src),
            dst: within(self.tensor(op.writes), part.dst),
            tables: if part.table.is_some() { table } else { Operand::default() },
            dims: Dims { n: count(at(3)), h: count(at(2)), w: count(at(1)), c: count(at(0)) },
            src_strides: strides(|l| l.src),
            dst_strides: strides(|l| l.dst),
            src_element: element::U8,
            dst_element: element::U8,
            outer: outer.map_or(0, count),
            src_outer: outer.map_or(0, |l| l.src),
            dst_outer: outer.map_or(0, |l| l.dst),
            ..command::Layout::default()
        })
    }

    fn pool(&self, header: Header, index: usize, op: &Op, kind: &Pool) -> command::Pool {
        let (ifm, ofm) = (self.form(op.reads[0]), self.form(op.writes));
        let pool = command::Pool {
            header,
            ifm: self.tensor(op.reads[0]),
            ofm: self.tensor(op.writes),
            tables: self.constant(index, Content::Tables),
            ifm_dims: ifm.dims(),
            ofm_h: ofm.dims().h,
            ofm_w: ofm.dims().w,
            ifm_strides: ifm.strides(),
            ofm_strides: ofm.strides(),
            clamp_low: 0,
            clamp_high: 255,
            ..command::Pool::default()
        };
        match *kind {
            Pool::Max(window) => command::Pool { kind: pool_kind::MAX, window, ..pool },
            Pool::Average { window, counted, input, output } => {
                let [pad_bottom, pad_right] = counted.unwrap_or_default();
                command::Pool {
                    kind: pool_kind::AVERAGE,
                    count_padding: u8::from(counted.is_some()),
                    pad_bottom,
                    pad_right,
                    window,
                    input_zero_point: input.1.into(),
                    zero_point: output.1.into(),
                    input_scale: input.0,
                    output_scale: output.0,
                    ..pool
                }
            }
            Pool::GlobalMean { input, output } => command::Pool {
                kind: pool_kind::GLOBAL_MEAN,
                window: Window::default(),
                input_zero_point: input.1.into(),
                zero_point: output.1.into(),
                input_scale: input.0,
                output_scale: output.0,
                ..pool
            },
            Pool::Global { multiplier, input_zero_point, zero_point } => command::Pool {
                kind: pool_kind::GLOBAL_AVERAGE,
                window: Window::default(),
                input_zero_point: input_zero_point.into(),
                zero_point: zero_point.into(),
                multiplier,
                ..pool
            },
        }
    }

    fn product(
        &self,
        op_id: u32,
        index: usize,
        op: &Op,
        matrices: &Matrices,
        has_table: bool,
    ) -> command::Product {
        let within = |tensor: TensorId, walk: Walk| {
            let operand = self.tensor(tensor);
            let offset = operand.offset.checked_add_signed(walk.first);
            Operand { offset: offset.expect("a view lies in its tensor"), ..operand }
        };
        let count = |len: usize| u32::try_from(len).expect("`shape` bounds tensors");
        let step = |stride: i64| i32::try_from(stride).expect("`walks` keeps to 32 bits");
        let Matrices { turns, size: [m, n, k], a, b, out, zero_points, multiplier } = *matrices;
        command::Product {
            header: Header::new(opcode::PRODUCT, 3, table_0(has_table), op_id),
            a: within(op.reads[0], a),
            b: within(op.reads[1], b),
            out: within(op.writes, out),
            tables: self.constant(index, Content::Tables),
            outer: count(turns[0]),
            batch: count(turns[1]),
            m: count(m),
            n: count(n),
            k: count(k),
            multiplier,
            a_zero_point: zero_points[0],
            b_zero_point: zero_points[1],
            zero_point: zero_points[2],
            clamp_low: 0,
            clamp_high: 255,
            a_outer: a.turns[0],
            b_outer: b.turns[0],
            out_outer: out.turns[0],
            a_batch: a.turns[1],
            b_batch: b.turns[1],
            out_batch: out.turns[1],
            a_row: step(a.row),
            b_row: step(b.row),
            b_column: step(b.column),
            out_row: step(out.row),
            ..command::Product::default()
        }
    }

    fn softmax(&self, op_id: u32, index: usize, op: &Op, terms: ShareTerms) -> command::Softmax {
        command::Softmax {
            header: Header::new(opcode::SOFTMAX, 2, Flags::empty(), op_id),
            src: self.tensor(op.reads[0]),
            dst: self.tensor(op.writes),
            table: self.constant(index, Content::Tables),
            dims: self.form(op.writes).dims(),
            src_strides: self.form(op.reads[0]).strides(),
            dst_strides: self.form(op.writes).strides(),
            scale: terms.scale,
            zero_point: terms.zero_point,
            ..command::Softmax::default()
        }
    }

    fn resize(
        &self,
        op_id: u32,
        index: usize,
        op: &Op,
        input: (f32, u8),
        output: (f32, u8),
    ) -> command::Resize {
        let (from, to) = (self.form(op.reads[0]), self.form(op.writes));
        command::Resize {
            header: Header::new(opcode::RESIZE, 3, Flags::empty(), op_id),
            ifm: self.tensor(op.reads[0]),
            ofm: self.tensor(op.writes),
            taps: self.constant(index, Content::Tables),
            ifm_dims: from.dims(),
            ofm_h: to.dims().h,
            ofm_w: to.dims().w,
            ifm_strides: from.strides(),
            ofm_strides: to.strides(),
            input_scale: input.0,
            output_scale: output.0,
            input_zero_point: input.1,
            zero_point: output.1,
            ..command::Resize::default()
        }
    }

    fn table(&self, op_id: u32, index: usize, op: &Op) -> command::Table {
        command::Table {
            header: Header::new(opcode::TABLE, 2, Flags::empty(), op_id),
            src: self.tensor(op.reads[0]),
            dst: self.tensor(op.writes),
            table: self.constant(index, Content::Tables),
            dims: self.form(op.writes).dims(),
            src_strides: self.form(op.reads[0]).strides(),
            dst_strides: self.form(op.writes).strides(),
            reserved: [0; 2],
        }
    }

    fn layout(&self, op_id: u32, op: &Op, scale: f32, zero_point: u8) -> command::Layout {
        let (src, dst) = (self.form(op.reads[0]), self.form(op.writes));
        // The host's side is dense, so it has whatever dimensions the feature map has.
        let dims = match (src, dst) {
            (Form::Map { dims, .. }, _) | (_, Form::Map { dims, .. } | Form::Host { dims, .. }) => {
                dims
            }
        };
        let strides = |form: Form| match form {
            Form::Map { .. } => form.strides4(),
            Form::Host { element_bytes, .. } => Form::Host { dims, element_bytes }.strides4(),
        };
        let code = |form: Form| if form.element_bytes() == 4 { element::F32 } else { element::U8 };
        command::Layout {
            header: Header::new(opcode::LAYOUT, 3, Flags::empty(), op_id),
            src: self.tensor(op.reads[0]),
            dst: self.tensor(op.writes),
            dims,
            src_strides: strides(src),
            dst_strides: strides(dst),
            src_element: code(src),
            dst_element: code(dst),
            zero_point: zero_point.into(),
            scale,
            ..command::Layout::default()
        }
    }
}

/// Whether a convolution is a product of matrices: one tap, and one pixel in and out, or pixels in
/// other dimensions out, so that only their order counts.
fn is_product(conv: &Conv, from: Dims, to: Dims) -> bool {
    let dot = |dims: Dims| dims.h == 1 && dims.w == 1;
    conv.groups == 1
        && conv.strips.is_none()
        && conv.weights.kernel == [1, 1]
        && (dot(from) && dot(to) || [from.n, from.h, from.w] != [to.n, to.h, to.w])
        && (conv.window.stride_h, conv.window.stride_w) == (1, 1)
        && (conv.window.pad_top, conv.window.pad_left) == (0, 0)
}

fn stage(conv: &lower::Conv) -> Stage {
    let none = AddTerms { first: 0.0, second: 0.0, offset: 0.0 };
    let terms = conv.addition.map_or(none, |addition| addition.terms);
    let order = conv.floats.as_ref().map(|floats| floats.order.encode());
    let (float_order, float_block_log2) = order.unwrap_or_default();
    Stage {
        input_zero_point: conv.input_zero_point.into(),
        zero_point: conv.zero_point.into(),
        clamp_low: conv.range[0],
        clamp_high: conv.range[1],
        float_order,
        float_block_log2,
        input_scale: conv.floats.as_ref().map_or(0.0, |floats| floats.input_scale),
        output_scale: conv.floats.as_ref().map_or(0.0, |floats| floats.output_scale),
        add_first: terms.first,
        add_second: terms.second,
        add_offset: terms.offset,
    }
}

fn table_0(is_used: bool) -> Flags {
    if is_used { Flags::TABLE_0 } else { Flags::empty() }
}
