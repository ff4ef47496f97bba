//! TABLE on AVX-512, 64 lookups at a time; takes every problem.

use crate::kernel::Stop;
use crate::kernel::split::Split;
use crate::kernel::table::Problem;
use crate::kernel::vector::{Lookup, load_masked_64, mask_64, runs, store_64};
use crate::memory::isize_of;

/// Runs `problem`.
///
/// # Safety
/// On a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    runs::over([&p.src, &p.dst], p.dims, split, &|at, len| {
        // SAFETY: the processor is the caller's promise, the run lies in both operands.
        unsafe { piece(p, at, len) }
    })
}

/// # Safety
/// As of [`run`]; `len` elements from `at` on lie in each operand.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn piece(p: &Problem, [src, dst]: [i64; 2], len: i64) {
    let table = Lookup::new(&p.table);
    let (src, dst) = (p.src.pointer(src), p.dst.pointer(dst));
    for done in (0..len).step_by(64) {
        let (mask, at) = (mask_64(len - done), isize_of(done));
        // SAFETY: the elements of `mask` lie in the run.
        let codes = unsafe { load_masked_64(mask, src.wrapping_offset(at)) };
        let codes = table.bytes(codes);
        // SAFETY: as above, of the result.
        unsafe { store_64(dst.wrapping_offset(at), mask, codes) };
    }
}
