//! Convolutions of one channel: each pixel is laid beside those behind it in the row, as channels of its
//! own, so that a kernel row is one step of four products instead of one for each tap.
//!
//! ```text
//! row:  a b c d e ..   kernel 1x3, padding z   ->   pixels of 3 channels:  z a b | a b c | b c d | ..
//! ```

use super::{Form, Home, Loop, Lowering, Move, OpKind, TensorId};
use crate::graph::ValueId;
use crate::quantize::{Kind, Products, Unit, Weights};
use npu_uapi::command::{Dims, Window};

/// Widest kernel, the channels that a pixel of four bytes has.
const WIDEST: u16 = 4;

/// Most columns whose windows reach into the padding.
const MOST_AT_BORDERS: u32 = 8;

/// How a convolution reads pixels with their neighbours.
struct Taps {
    window: Window,
    /// Of the input.
    dims: Dims,
    /// Of the output.
    columns: u32,
    /// Columns of the output whose windows lie in the row.
    inside: std::ops::Range<u32>,
}

impl Taps {
    /// Bytes of a row of the input before the first tap of column `column`; negative in the padding.
    fn first(&self, column: u32) -> i64 {
        i64::from(column) * i64::from(self.window.stride_w) - i64::from(self.window.pad_left)
    }
}

impl Lowering<'_> {
    /// Whether all who read `value` read it so.
    pub(super) fn is_read_with_neighbours(&self, value: ValueId) -> bool {
        let mut readers = self.part.flow.readers(value);
        !self.part.outputs.contains(&value) && readers.all(|unit| self.taps(unit).is_some())
    }

    fn taps(&self, unit: &Unit) -> Option<Taps> {
        let (products, window) = taken(unit)?;
        let input = unit.inputs[0];
        let dims = self.dims(input);
        let window = self.placed(unit.target, window, input).window;
        let fits = (2..=WIDEST).contains(&window.kernel_w) && window.dilation_w == 1;
        if !fits || dims.c != 1 || products.weights.inputs != 1 {
            return None;
        }
        let columns = self.dims(unit.output).w;
        let stride = u32::from(window.stride_w);
        let room = dims.w + u32::from(window.pad_left);
        let behind = room.checked_sub(window.kernel_w.into())? / stride + 1;
        let inside = u32::from(window.pad_left).div_ceil(stride)..behind.min(columns);
        let at_borders = columns.checked_sub(inside.end.checked_sub(inside.start)?)?;
        (at_borders <= MOST_AT_BORDERS).then_some(Taps { window, dims, columns, inside })
    }

    /// What `unit`, a convolution, reads instead of `map`, which has pixels of one byte; and its weights and
    /// window then.
    pub(super) fn with_neighbours(
        &mut self,
        unit: &Unit,
        map: TensorId,
    ) -> Option<(TensorId, Weights, Window)> {
        let taps = self.taps(unit)?;
        let (products, _) = taken(unit)?;
        let form = self.ops.tensor(map).form;
        if !matches!(form, Form::Map { pixel: 1, .. }) {
            return None;
        }
        let Taps { window, dims, columns, ref inside } = taps;
        let kernel = usize::from(window.kernel_w);
        let to =
            Form::Map { dims: Dims { w: columns, c: window.kernel_w.into(), ..dims }, pixel: 4 };
        let (from_strides, to_strides) = (form.strides(), to.strides());
        let rows = |loops: Vec<Loop>| {
            let image =
                Loop { count: dims.n as usize, src: from_strides.image, dst: to_strides.image };
            let row = Loop {
                count: dims.h as usize,
                src: from_strides.row.into(),
                dst: to_strides.row.into(),
            };
            [image, row].into_iter().chain(loops).collect()
        };
        let part = |column: u32, tap: i64, loops: Vec<Loop>| Move {
            read: 0,
            loops: rows(loops),
            src: taps.first(column) + tap,
            dst: i64::from(column) * 4 + tap,
            table: None,
        };
        let run = |count: usize| Loop { count, src: 1, dst: 1 };
        let mut parts = Vec::new();
        if !inside.is_empty() {
            let along = Loop {
                count: (inside.end - inside.start) as usize,
                src: window.stride_w.into(),
                dst: 4,
            };
            parts.push(part(inside.start, 0, vec![along, run(kernel)]));
        }
        for column in (0..columns).filter(|column| !inside.contains(column)) {
            let first = taps.first(column);
            let end = (i64::from(dims.w) - first).min(window.kernel_w.into());
            let start = (-first).max(0);
            if let Some(count) = usize::try_from(end - start).ok().filter(|&count| count > 0) {
                parts.push(part(column, start, vec![run(count)]));
            }
        }
        let out = self.tensor_of(unit.inputs[0], Home::Scratch, to);
        let fill = Some(products.input.zero_point);
        self.push(unit.target, vec![map], out, OpKind::Move { fill, parts });
        let [output, _, row, column] = products.weights.strides;
        let weights = Weights {
            inputs: kernel,
            kernel: [products.weights.kernel[0], 1],
            strides: [output, column, row, column],
            ..products.weights.clone()
        };
        let window = Window { kernel_w: 1, stride_w: 1, pad_left: 0, ..window };
        Some((out, weights, window))
    }
}

/// Products and window of a convolution of one group, of integers: the order of floats is another.
fn taken(unit: &Unit) -> Option<(&Products, &crate::quantize::WindowSpec)> {
    match &unit.kind {
        Kind::Conv { products, groups: 1, window } if products.arithmetic.floats().is_none() => {
            Some((products, window))
        }
        _ => None,
    }
}
