//! ADD and MUL on AVX-512, 64 elements at a time; takes every problem.

use super::repeated_avx512vnni as repeated;
use crate::kernel::Stop;
use crate::kernel::binary::{Function, Problem};
use crate::kernel::split::Split;
use crate::kernel::vector::{
    Addition, Lookup, Multiplication, is_bounded, is_bounded_product, load_masked_64, mask_64,
    runs, spread_64, store_64,
};
use crate::memory::isize_of;
use std::arch::x86_64::{__m512, __m512i};

/// Runs `problem`.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    // SAFETY: the caller's promise.
    if let Some(done) = unsafe { repeated::run(p, split) } {
        return done;
    }
    let piece = match kind(p.function) {
        SUM_WITHIN => piece::<SUM_WITHIN>,
        SUM => piece::<SUM>,
        PRODUCT_WITHIN => piece::<PRODUCT_WITHIN>,
        _ => piece::<PRODUCT>,
    };
    runs::over([&p.a, &p.b, &p.out], p.dims, split, &|at, len| {
        // SAFETY: the processor is the caller's promise, the run lies in all three operands.
        unsafe { piece(p, at, len) }
    })
}

/// The kinds of functions, as parameters: those that stay within 32 bits, and any.
pub(super) const SUM_WITHIN: u8 = 0;
pub(super) const SUM: u8 = 1;
pub(super) const PRODUCT_WITHIN: u8 = 2;
pub(super) const PRODUCT: u8 = 3;

/// The kind of `function`.
pub(super) fn kind(function: Function) -> u8 {
    match function {
        Function::Add(terms) if is_bounded(terms) => SUM_WITHIN,
        Function::Add(_) => SUM,
        Function::Multiply(terms) if is_bounded_product(terms) => PRODUCT_WITHIN,
        Function::Multiply(_) => PRODUCT,
    }
}

/// A function of kind `KIND` in registers.
pub(super) struct Codes<const KIND: u8> {
    sum: Addition,
    product: Multiplication,
    table: Option<Lookup>,
}

impl<const KIND: u8> Codes<KIND> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn new(p: &Problem) -> Self {
        let (mut sum, mut product) = Default::default();
        match p.function {
            Function::Add(terms) => sum = terms,
            Function::Multiply(terms) => product = terms,
        }
        Self {
            sum: Addition::new(sum, p.low, p.high),
            product: Multiplication::new(product, p.low, p.high),
            table: p.table.as_ref().map(|table| Lookup::new(table)),
        }
    }

    /// Codes of the first operand, or of the second, as the function takes them: spread.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn floats<const SECOND: bool>(&self, codes: __m512i) -> [__m512; 4] {
        let codes = spread_64(codes);
        match KIND {
            SUM | SUM_WITHIN => Addition::floats(codes),
            _ => self.product.floats::<SECOND>(codes),
        }
    }

    /// 64 results.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(super) fn bytes(&self, first: [__m512; 4], second: [__m512; 4]) -> __m512i {
        let bytes = match KIND {
            SUM_WITHIN => self.sum.bytes::<true>(first, second),
            SUM => self.sum.bytes::<false>(first, second),
            PRODUCT_WITHIN => self.product.bytes::<true>(first, second),
            _ => self.product.bytes::<false>(first, second),
        };
        self.table.as_ref().map_or(bytes, |table| table.bytes(bytes))
    }
}

/// # Safety
/// As of [`run`]; `len` elements from `at` on lie in each operand.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn piece<const KIND: u8>(p: &Problem, [a, b, out]: [i64; 3], len: i64) {
    let function = Codes::<KIND>::new(p);
    let (a, b, out) = (p.a.pointer(a), p.b.pointer(b), p.out.pointer(out));
    for done in (0..len).step_by(64) {
        let (mask, at) = (mask_64(len - done), isize_of(done));
        // SAFETY: the elements of `mask` lie in the run.
        let first = unsafe { load_masked_64(mask, a.wrapping_offset(at)) };
        // SAFETY: as above.
        let second = unsafe { load_masked_64(mask, b.wrapping_offset(at)) };
        let (first, second) = (function.floats::<false>(first), function.floats::<true>(second));
        let bytes = function.bytes(first, second);
        // SAFETY: as above, of the result.
        unsafe { store_64(out.wrapping_offset(at), mask, bytes) };
    }
}
