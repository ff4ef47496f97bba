//! ADD and MUL on AVX2, 32 elements at a time; takes every problem.

use crate::kernel::Stop;
use crate::kernel::binary::{Function, Problem};
use crate::kernel::split::Split;
use crate::kernel::vector::runs;
use crate::kernel::vector_avx2::{
    Addition, Clamp, Lookup, Multiplication, load_some, saturate_32, store_some, unpack_32,
};
use crate::memory::usize_of;
use std::arch::x86_64::__m256i;

/// Runs `problem`.
///
/// # Safety
/// On a processor with AVX2 and FMA.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    runs::over([&p.a, &p.b, &p.out], p.dims, split, &|at, len| {
        // SAFETY: the processor is the caller's promise, the run lies in all three operands.
        unsafe { piece(p, at, usize_of(len.unsigned_abs())) }
    })
}

/// The function in registers.
enum Codes {
    Sum(Addition),
    Product(Multiplication),
}

impl Codes {
    #[target_feature(enable = "avx2,fma")]
    fn new(p: &Problem) -> Self {
        match p.function {
            Function::Add(terms) => Self::Sum(Addition::new(terms)),
            Function::Multiply(terms) => Self::Product(Multiplication::new(terms)),
        }
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn codes(&self, first: __m256i, second: __m256i) -> __m256i {
        match self {
            Self::Sum(addition) => addition.codes(first, second),
            Self::Product(multiplication) => multiplication.codes(first, second),
        }
    }
}

/// # Safety
/// As of [`run`]; `len` elements from `at` on lie in each operand.
#[target_feature(enable = "avx2,fma")]
unsafe fn piece(p: &Problem, [a, b, out]: [i64; 3], len: usize) {
    let (function, clamp) = (Codes::new(p), Clamp::new(p.low, p.high));
    let table = p.table.as_ref().map(|table| Lookup::new(table));
    let (a, b, out) = (p.a.pointer(a), p.b.pointer(b), p.out.pointer(out));
    for at in (0..len).step_by(32) {
        let some = (len - at).min(32);
        // SAFETY: so many elements lie in the run.
        let first = unpack_32(unsafe { load_some(a.wrapping_add(at), some) });
        // SAFETY: as above.
        let second = unpack_32(unsafe { load_some(b.wrapping_add(at), some) });
        let mut codes = first;
        for j in 0..4 {
            codes[j] = function.codes(first[j], second[j]);
        }
        let mut bytes = clamp.bytes(saturate_32(codes));
        if let Some(table) = &table {
            bytes = table.bytes(bytes);
        }
        // SAFETY: as above, of the result.
        unsafe { store_some(out.wrapping_add(at), some, bytes) };
    }
}
