//! ADD and MUL on AVX-512, 64 elements at a time; takes every problem.

use super::repeated_avx512vnni as repeated;
use crate::kernel::Stop;
use crate::kernel::binary::{Function, Problem};
use crate::kernel::split::Split;
use crate::kernel::vector::{
    Addition, Lookup, Multiplication, load_masked_64, mask_64, pack_64, runs, store_64, unpack_64,
};
use crate::memory::isize_of;
use std::arch::x86_64::__m512i;

/// Runs `problem`.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    // SAFETY: the caller's promise.
    if let Some(done) = unsafe { repeated::run(p, split) } {
        return done;
    }
    runs::over([&p.a, &p.b, &p.out], p.dims, split, &|at, len| {
        // SAFETY: the processor is the caller's promise, the run lies in all three operands.
        unsafe { piece(p, at, len) }
    })
}

/// The function in registers.
#[derive(Clone, Copy)]
pub(super) enum Codes {
    Sum(Addition),
    Product(Multiplication),
}

impl Codes {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn new(p: &Problem) -> Self {
        match p.function {
            Function::Add(terms) => Self::Sum(Addition::new(terms, p.low, p.high)),
            Function::Multiply(terms) => Self::Product(Multiplication::new(terms, p.low, p.high)),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn codes(self, first: __m512i, second: __m512i) -> __m512i {
        match self {
            Self::Sum(addition) => addition.codes(first, second),
            Self::Product(multiplication) => multiplication.codes(first, second),
        }
    }
}

/// # Safety
/// As of [`run`]; `len` elements from `at` on lie in each operand.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn piece(p: &Problem, [a, b, out]: [i64; 3], len: i64) {
    let function = Codes::new(p);
    let table = p.table.as_ref().map(|table| Lookup::new(table));
    let (a, b, out) = (p.a.pointer(a), p.b.pointer(b), p.out.pointer(out));
    for done in (0..len).step_by(64) {
        let (mask, at) = (mask_64(len - done), isize_of(done));
        // SAFETY: the elements of `mask` lie in the run.
        let first = unpack_64(unsafe { load_masked_64(mask, a.wrapping_offset(at)) });
        // SAFETY: as above.
        let second = unpack_64(unsafe { load_masked_64(mask, b.wrapping_offset(at)) });
        let mut codes = first;
        for j in 0..4 {
            codes[j] = function.codes(first[j], second[j]);
        }
        let mut bytes = pack_64(codes);
        if let Some(table) = &table {
            bytes = table.bytes(bytes);
        }
        // SAFETY: as above, of the result.
        unsafe { store_64(out.wrapping_offset(at), mask, bytes) };
    }
}
