//! Element-wise commands as runs of contiguous channels, as long as the strides allow.

use crate::kernel::Stop;
use crate::kernel::operand::Map;
use crate::kernel::split::Split;

/// Bytes of a piece of a run.
const PIECE: i64 = 16 << 10;

/// Calls `body(first offset in each map, bytes)` for pieces that cover every real element once, and lanes of
/// padding where that makes runs long: a map's lanes are its own, read or written, whatever is in them.
///
/// Dimensions over which all maps are dense are one run. Pieces are at most 16 KiB.
pub(crate) fn over<const N: usize>(
    maps: [&Map; N],
    dims: [i64; 4],
    split: &Split<'_>,
    body: &(dyn Fn([i64; N], i64) + Sync),
) -> Result<(), Stop> {
    let [mut n, mut h, mut w, mut run] = dims;
    // Pixels that are nothing but lanes follow each other without a gap.
    let pixel = maps.first().map_or(run, |map| map.pixel);
    if maps.iter().all(|map| map.pixel == pixel && map.lanes == pixel) {
        run = pixel;
    }
    if w == 1 || maps.iter().all(|map| map.pixel == run) {
        (run, w) = (run * w, 1);
        if h == 1 || maps.iter().all(|map| map.row == run) {
            (run, h) = (run * h, 1);
            if n == 1 || maps.iter().all(|map| map.image == run) {
                (run, n) = (run * n, 1);
            }
        }
    }
    let pieces = (run + PIECE - 1) / PIECE;
    let units = n * h * w * pieces;
    let units_a_chunk = split.units_a_chunk(units, 4 * run.min(PIECE));
    split.chunks((units + units_a_chunk - 1) / units_a_chunk, &|chunk, budget| {
        let first = chunk * units_a_chunk;
        for unit in first..(first + units_a_chunk).min(units) {
            let (pixel, piece) = (unit / pieces, unit % pieces);
            let (row, x) = (pixel / w, pixel % w);
            let start = piece * PIECE;
            let len = (run - start).min(PIECE);
            budget.spend(4 * len)?;
            body(maps.map(|map| map.at(row / h, row % h, x) + start), len);
        }
        Ok(())
    })
}
