//! ADD and MUL as the documented loop.

use crate::kernel::Stop;
use crate::kernel::binary::Problem;
use crate::kernel::operand::Map;
use crate::kernel::split::Split;
use crate::kernel::stage::lookup;

/// Runs `problem`.
pub(crate) fn run(problem: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let p = problem;
    split.elements(p.dims, 4, &|[n, y, x, ch], _| {
        let at = |map: &Map| map.at(n, y, x) + ch;
        let code = p.function.code(p.a.load(at(&p.a)), p.b.load(at(&p.b)));
        let code = code.max(p.low).min(p.high);
        p.out.store(at(&p.out), lookup(p.table.as_ref(), code));
        Ok(())
    })
}
