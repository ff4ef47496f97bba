//! The output stage of CONV and MATMUL, one scalar at a time.
//!
//! ```text
//! accumulator -> requantise, clamp -> [table 0] -> [add auxiliary] -> [table 1] -> store
//! ```

use super::operand::{Slots, zero_point};
use npu_uapi::addr::Operand;
use npu_uapi::command::{Flags, Stage};
use npu_uapi::float_order::Order;
use npu_uapi::requantise::{self, AddTerms};

/// The immediates and tables of an output stage, read once.
pub(crate) struct OutputStage {
    pub(crate) zero_point: u8,
    pub(crate) low: u8,
    pub(crate) high: u8,
    pub(crate) table_0: Option<[u8; 256]>,
    pub(crate) add: Option<AddTerms>,
    /// The auxiliary tensor is the first operand of the addition.
    pub(crate) aux_first: bool,
    pub(crate) table_1: Option<[u8; 256]>,
    /// Present when the stage begins with a sum in floats.
    pub(crate) float: Option<Float>,
}

/// How operands become floats, and their sum a code.
#[derive(Clone, Copy)]
pub(crate) struct Float {
    pub(crate) order: Order,
    pub(crate) input_scale: f32,
    pub(crate) output_scale: f32,
}

impl OutputStage {
    pub(crate) fn new(stage: &Stage, flags: Flags, tables: Operand, slots: Slots<'_>) -> Self {
        let table = |flag, index| flags.contains(flag).then(|| slots.table(tables, index));
        let terms =
            AddTerms { first: stage.add_first, second: stage.add_second, offset: stage.add_offset };
        Self {
            zero_point: zero_point(stage.zero_point),
            low: stage.clamp_low,
            high: stage.clamp_high,
            table_0: table(Flags::TABLE_0, 0),
            add: flags.contains(Flags::ADD_AUX).then_some(terms),
            aux_first: flags.contains(Flags::AUX_FIRST),
            table_1: table(Flags::TABLE_1, 1),
            float: flags.contains(Flags::FLOAT).then(|| Float::new(stage)),
        }
    }

    /// The code that is stored; `aux` is asked only when it is added.
    pub(crate) fn code(&self, accumulator: i32, multiplier: f32, aux: impl FnOnce() -> u8) -> u8 {
        self.rest(requantise::requantise(accumulator, multiplier, self.zero_point), aux)
    }

    /// The code that is stored for a sum in floats.
    pub(crate) fn float_code(&self, float: Float, sum: f32, aux: impl FnOnce() -> u8) -> u8 {
        self.rest(requantise::quantise(sum, float.output_scale, self.zero_point), aux)
    }

    /// What comes behind the first code.
    fn rest(&self, code: u8, aux: impl FnOnce() -> u8) -> u8 {
        let code = lookup(self.table_0.as_ref(), code.max(self.low).min(self.high));
        let code = match self.add {
            None => code,
            Some(terms) if self.aux_first => requantise::add(aux(), code, terms),
            Some(terms) => requantise::add(code, aux(), terms),
        };
        lookup(self.table_1.as_ref(), code)
    }
}

impl Float {
    fn new(stage: &Stage) -> Self {
        let order = Order::decode(stage.float_order, stage.float_block_log2);
        Self {
            order: order.expect("`kernel::check` refuses an unknown order"),
            input_scale: stage.input_scale,
            output_scale: stage.output_scale,
        }
    }
}

/// `code` through `table`, if there is one.
pub(crate) fn lookup(table: Option<&[u8; 256]>, code: u8) -> u8 {
    table.map_or(code, |table| table[usize::from(code)])
}
