//! TABLE as the documented loop.

use crate::kernel::Stop;
use crate::kernel::split::Split;
use crate::kernel::table::Problem;

/// Runs `problem`, a chunk for each row.
pub(crate) fn run(problem: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let p = problem;
    let [images, rows, pixels, channels] = p.dims;
    split.chunks(images * rows, &|chunk, budget| {
        let (n, y) = (chunk / rows, chunk % rows);
        for x in 0..pixels {
            let (src, dst) = (p.src.at(n, y, x), p.dst.at(n, y, x));
            for ch in 0..channels {
                budget.spend(1)?;
                p.dst.store(dst + ch, p.table[usize::from(p.src.load(src + ch))]);
            }
        }
        Ok(())
    })
}
