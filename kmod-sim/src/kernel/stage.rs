//! The output stage of CONV and MATMUL, one scalar at a time.
//!
//! ```text
//! accumulator -> requantise, clamp -> [table 0] -> [add auxiliary] -> [table 1] -> store
//! ```

use super::operand::{Slots, zero_point};
use npu_uapi::addr::Operand;
use npu_uapi::command::{Flags, Stage};
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
        }
    }

    /// The code that is stored; `aux` is asked only when it is added.
    pub(crate) fn code(&self, accumulator: i32, multiplier: f32, aux: impl FnOnce() -> u8) -> u8 {
        let code = requantise::requantise(accumulator, multiplier, self.zero_point);
        let code = lookup(self.table_0.as_ref(), code.max(self.low).min(self.high));
        let code = match self.add {
            None => code,
            Some(terms) if self.aux_first => requantise::add(aux(), code, terms),
            Some(terms) => requantise::add(code, aux(), terms),
        };
        lookup(self.table_1.as_ref(), code)
    }
}

/// `code` through `table`, if there is one.
pub(crate) fn lookup(table: Option<&[u8; 256]>, code: u8) -> u8 {
    table.map_or(code, |table| table[usize::from(code)])
}
