//! PRODUCT as the documented loop; takes every problem.

use crate::kernel::Stop;
use crate::kernel::product::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use crate::kernel::stage::lookup;
use npu_uapi::requantise::requantise;

/// Runs `problem`.
pub(crate) fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let matrices = p.turns[0] * p.turns[1];
    split.elements([matrices, p.m, p.n], 1, &|[index, i, j], budget| {
        let [a, b, out] = p.matrices(index);
        let sum = sum(p, a + i * p.a_row, b + j * p.b_column, budget)?;
        let code = requantise(sum, p.multiplier, p.zero_point).max(p.low).min(p.high);
        p.out.memory.store(out + i * p.out_row + j, lookup(p.table.as_ref(), code));
        Ok(())
    })
}

/// The sum of one element: `a` is its row, `b` its column.
fn sum(p: &Problem, a: i64, b: i64, budget: &mut Budget<'_>) -> Result<i32, Aborted> {
    const SOME: i64 = 1 << 16;
    let mut sum = 0_i32;
    for first in (0..p.k).step_by(1 << 16) {
        let end = (first + SOME).min(p.k);
        budget.spend(end - first)?;
        for l in first..end {
            let left = i32::from(p.a.memory.load(a + l)) - i32::from(p.a_zero_point);
            let right = i32::from(p.b.memory.load(b + l * p.b_row)) - i32::from(p.b_zero_point);
            sum = sum.wrapping_add(left * right);
        }
    }
    Ok(sum)
}
