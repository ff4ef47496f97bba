//! PAIR_TABLE and CHANNEL_TABLE as the documented loops.

use crate::kernel::Stop;
use crate::kernel::lookup::{Channels, Pairs};
use crate::kernel::split::Split;

/// Runs a PAIR_TABLE.
pub(crate) fn pairs(problem: &Pairs, split: &Split<'_>) -> Result<(), Stop> {
    let p = problem;
    split.elements(p.dims, 4, &|[n, y, x, ch], _| {
        let (a, b) = (p.a.load(p.a.at(n, y, x) + ch), p.b.load(p.b.at(n, y, x) + ch));
        let entry = i64::from(a) * 256 + i64::from(b);
        p.out.store(p.out.at(n, y, x) + ch, p.table.memory.load(p.table.start + entry));
        Ok(())
    })
}

/// Runs a CHANNEL_TABLE.
pub(crate) fn channels(problem: &Channels, split: &Split<'_>) -> Result<(), Stop> {
    let p = problem;
    split.elements(p.dims, 2, &|[n, y, x, ch], _| {
        let entry = ch * 256 + i64::from(p.src.load(p.src.at(n, y, x) + ch));
        p.dst.store(p.dst.at(n, y, x) + ch, p.tables.memory.load(p.tables.start + entry));
        Ok(())
    })
}
