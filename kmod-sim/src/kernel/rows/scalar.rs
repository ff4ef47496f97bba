//! Rows as the documented loops.

use super::{Buffers, Problem, Row, compute};
use npu_uapi::rows::{Codes, Portable};

/// One element after the other.
struct Each;

impl Row for Each {
    fn load(p: &Problem, at: i64, codes: Codes, values: &mut [f32]) {
        for (at, value) in (at..).zip(values) {
            *value = codes.value(p.src.load(at));
        }
    }

    fn store(p: &Problem, at: i64, codes: Codes, values: &[f32]) {
        for (at, &value) in (at..).zip(values) {
            p.dst.store(at, codes.code(value));
        }
    }
}

/// Row `row`.
pub(super) fn row(p: &Problem, row: i64, buffers: &mut Buffers) {
    compute::<Portable, Each>(p, row, buffers);
}
