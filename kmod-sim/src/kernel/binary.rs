//! ADD and MUL: two feature maps, element by element.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod repeated_avx512vnni;
mod scalar;

use super::operand::{Map, Slots, signed};
use super::split::Split;
use super::{Isa, Stop};
use npu_uapi::command::{self, Flags};
use npu_uapi::requantise::{self, AddTerms, MulTerms};

/// An addition or multiplication with resolved operands.
pub(crate) struct Problem {
    pub(crate) a: Map,
    pub(crate) b: Map,
    pub(crate) out: Map,
    /// `[n, h, w, c]`.
    pub(crate) dims: [i64; 4],
    pub(crate) function: Function,
    pub(crate) low: u8,
    pub(crate) high: u8,
    pub(crate) table: Option<[u8; 256]>,
}

/// What becomes of two codes.
#[derive(Clone, Copy)]
pub(crate) enum Function {
    Add(AddTerms),
    Multiply(MulTerms),
}

impl Function {
    pub(crate) fn code(self, a: u8, b: u8) -> u8 {
        match self {
            Self::Add(terms) => requantise::add(a, b, terms),
            Self::Multiply(terms) => requantise::multiply(a, b, terms),
        }
    }
}

/// Runs an ADD.
pub(crate) fn add(
    c: &command::Add,
    slots: Slots<'_>,
    isa: Isa,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let problem = Problem {
        a: slots.map(c.a, &c.dims, &c.a_strides),
        b: slots.map(c.b, &c.dims, &c.b_strides),
        out: slots.map(c.out, &c.dims, &c.out_strides),
        dims: signed(&c.dims),
        function: Function::Add(AddTerms { first: c.first, second: c.second, offset: c.offset }),
        low: c.clamp_low,
        high: c.clamp_high,
        table: c.header.flags().contains(Flags::TABLE_0).then(|| slots.table(c.tables, 0)),
    };
    run(&problem, isa, split)
}

/// Runs a MUL.
pub(crate) fn mul(
    c: &command::Mul,
    slots: Slots<'_>,
    isa: Isa,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let terms = MulTerms {
        multiplier: c.multiplier,
        first_zero_point: c.first_zero_point,
        second_zero_point: c.second_zero_point,
        zero_point: c.zero_point,
    };
    let problem = Problem {
        a: slots.map(c.a, &c.dims, &c.a_strides),
        b: slots.map(c.b, &c.dims, &c.b_strides),
        out: slots.map(c.out, &c.dims, &c.out_strides),
        dims: signed(&c.dims),
        function: Function::Multiply(terms),
        low: c.clamp_low,
        high: c.clamp_high,
        table: c.header.flags().contains(Flags::TABLE_0).then(|| slots.table(c.tables, 0)),
    };
    run(&problem, isa, split)
}

fn run(problem: &Problem, isa: Isa, split: &Split<'_>) -> Result<(), Stop> {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni {
        // SAFETY: `isa` says that the instructions exist.
        return unsafe { avx512vnni::run(problem, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa.is_256() {
        // SAFETY: as above.
        return unsafe { avx2::run(problem, split) };
    }
    let _ = isa;
    scalar::run(problem, split)
}
