//! RESIZE as the documented loop.

use crate::kernel::Stop;
use crate::kernel::resize::Problem;
use crate::kernel::split::Split;
use crate::memory::usize_of;
use npu_uapi::requantise::{blend, dequantise, quantise};

/// Runs `problem`.
pub(crate) fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    split.elements(p.dims, 8, &|[n, oy, ox, ch], _| {
        let row = p.rows[usize_of(oy.unsigned_abs())];
        let column = p.columns[usize_of(ox.unsigned_abs())];
        let real =
            |y: i64, x: i64| dequantise(p.ifm.load(p.ifm.at(n, y, x) + ch), p.input.0, p.input.1);
        let [above, below] = row.at.map(|y| column.at.map(|x| real(y, x)));
        let value = blend([row.weights, column.weights], [above[0], above[1], below[0], below[1]]);
        p.ofm.store(p.ofm.at(n, oy, ox) + ch, quantise(value, p.output.0, p.output.1));
        Ok(())
    })
}
