//! SOFTMAX as the documented loop.

use crate::kernel::Stop;
use crate::kernel::softmax::Problem;
use crate::kernel::split::{Aborted, Budget, Split};
use npu_uapi::requantise::share;

/// Runs `problem`.
pub(crate) fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let [n, h, w, c] = p.dims;
    split.elements([n, h, w], c, &|[n, y, x], budget| {
        let (src, dst) = (p.src.at(n, y, x), p.dst.at(n, y, x));
        let mut most = 0;
        each(c, budget, |ch| most = most.max(p.src.load(src + ch)))?;
        let part = |code: u8| p.table[usize::from((255 - most).saturating_add(code))];
        let mut sum = 0.0;
        each(c, budget, |ch| sum += part(p.src.load(src + ch)))?;
        each(c, budget, |ch| {
            let code = share(part(p.src.load(src + ch)), sum, p.terms);
            p.dst.store(dst + ch, code);
        })
    })
}

/// Calls `body` for each channel.
fn each(c: i64, budget: &mut Budget<'_>, mut body: impl FnMut(i64)) -> Result<(), Aborted> {
    for first in (0..c).step_by(1 << 16) {
        let end = (first + (1 << 16)).min(c);
        budget.spend(end - first)?;
        (first..end).for_each(&mut body);
    }
    Ok(())
}
