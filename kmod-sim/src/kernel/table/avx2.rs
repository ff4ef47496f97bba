//! TABLE on AVX2, 32 lookups at a time; takes every problem.

use crate::kernel::Stop;
use crate::kernel::split::Split;
use crate::kernel::table::Problem;
use crate::kernel::vector::runs;
use crate::kernel::vector_avx2::{Lookup, load_some, store_some};
use crate::memory::usize_of;

/// Runs `problem`.
///
/// # Safety
/// On a processor with AVX2 and FMA.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    runs::over([&p.src, &p.dst], p.dims, split, &|at, len| {
        // SAFETY: the processor is the caller's promise, the run lies in both operands.
        unsafe { piece(p, at, usize_of(len.unsigned_abs())) }
    })
}

/// # Safety
/// As of [`run`]; `len` elements from `at` on lie in each operand.
#[target_feature(enable = "avx2,fma")]
unsafe fn piece(p: &Problem, [src, dst]: [i64; 2], len: usize) {
    let table = Lookup::new(&p.table);
    let (src, dst) = (p.src.pointer(src), p.dst.pointer(dst));
    for at in (0..len).step_by(32) {
        let some = (len - at).min(32);
        // SAFETY: so many elements lie in the run.
        let codes = table.bytes(unsafe { load_some(src.wrapping_add(at), some) });
        // SAFETY: as above, of the result.
        unsafe { store_some(dst.wrapping_add(at), some, codes) };
    }
}
