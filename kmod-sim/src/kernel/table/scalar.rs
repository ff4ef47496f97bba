//! TABLE as the documented loop.

use crate::kernel::Stop;
use crate::kernel::split::Split;
use crate::kernel::table::Problem;

/// Runs `problem`.
pub(crate) fn run(problem: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let p = problem;
    split.elements(p.dims, 2, &|[n, y, x, ch], _| {
        let code = p.src.load(p.src.at(n, y, x) + ch);
        p.dst.store(p.dst.at(n, y, x) + ch, p.table[usize::from(code)]);
        Ok(())
    })
}
