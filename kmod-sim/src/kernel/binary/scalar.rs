//! ADD and MUL as the documented loop.

use crate::kernel::Stop;
use crate::kernel::binary::Problem;
use crate::kernel::split::Split;
use crate::kernel::stage::lookup;

/// Runs `problem`, a chunk for each row.
pub(crate) fn run(problem: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let p = problem;
    let [images, rows, pixels, channels] = p.dims;
    split.chunks(images * rows, &|chunk, budget| {
        let (n, y) = (chunk / rows, chunk % rows);
        for x in 0..pixels {
            let (a, b, out) = (p.a.at(n, y, x), p.b.at(n, y, x), p.out.at(n, y, x));
            for ch in 0..channels {
                budget.spend(4)?;
                let code = p.function.code(p.a.load(a + ch), p.b.load(b + ch));
                let code = code.max(p.low).min(p.high);
                p.out.store(out + ch, lookup(p.table.as_ref(), code));
            }
        }
        Ok(())
    })
}
