//! COPY and FILL: bytes, in pieces; the copy of the host's C library is the kernel.

use super::Stop;
use super::operand::Slots;
use super::split::Split;
use crate::memory::Extent;
use npu_uapi::command;

/// Bytes of a chunk.
const CHUNK: i64 = 1 << 20;

/// Runs a COPY.
pub(crate) fn copy(c: &command::Copy, slots: Slots<'_>, split: &Split<'_>) -> Result<(), Stop> {
    let (src, dst) = (slots.region(c.src), slots.region(c.dst));
    pieces(c.len, split, &|at, len| {
        dst.memory.copy(dst.start + at, &src.memory, src.start + at, len)
    })
}

/// Runs a FILL.
pub(crate) fn fill(c: &command::Fill, slots: Slots<'_>, split: &Split<'_>) -> Result<(), Stop> {
    let dst = slots.region(c.dst);
    pieces(c.len, split, &|at, len| dst.memory.fill(dst.start + at, len, c.value))
}

/// Sets every byte of `memory`.
pub(crate) fn fill_all(memory: &Extent, value: u8, split: &Split<'_>) -> Result<(), Stop> {
    pieces(memory.len(), split, &|at, len| memory.fill(at, len, value))
}

fn pieces(total: u64, split: &Split<'_>, body: &(dyn Fn(i64, u64) + Sync)) -> Result<(), Stop> {
    let total = i64::try_from(total).expect("the operand lies within its slot");
    let each = split.fine(CHUNK);
    split.chunks((total + each - 1) / each, &|chunk, _| {
        let at = chunk * each;
        body(at, each.min(total - at).unsigned_abs());
        Ok(())
    })
}
