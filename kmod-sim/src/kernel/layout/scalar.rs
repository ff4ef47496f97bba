//! LAYOUT as the documented loop.

use crate::kernel::Stop;
use crate::kernel::layout::{Conversion, Problem, offset};
use crate::kernel::split::Split;
use crate::kernel::stage::lookup;
use npu_uapi::requantise;

/// Runs `problem`.
pub(crate) fn run(problem: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    // Counted as much: where memory is fresh, each element of a turned tensor may be the first of its page.
    split.elements(problem.dims, 64, &|at, _| {
        element(problem, at);
        Ok(())
    })
}

/// Converts one element.
pub(crate) fn element(p: &Problem, at: [i64; 5]) {
    let (src, dst) = (p.src.memory, p.dst.memory);
    let from = p.src.start + offset(&p.src_strides, at);
    let to = p.dst.start + offset(&p.dst_strides, at);
    match p.conversion {
        Conversion::Quantise => {
            let value = f32::from_le_bytes(src.load_bytes(from));
            dst.store(to, requantise::quantise(value, p.scale, p.zero_point));
        }
        Conversion::Dequantise => {
            let value = requantise::dequantise(src.load(from), p.scale, p.zero_point);
            dst.store_bytes(to, value.to_le_bytes());
        }
        Conversion::MoveBytes => dst.store(to, lookup(p.table.as_ref(), src.load(from))),
        Conversion::MoveFloats => dst.store_bytes(to, src.load_bytes::<4>(from)),
    }
}
