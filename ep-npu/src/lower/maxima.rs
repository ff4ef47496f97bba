//! Maxima over wide windows from those over narrower ones of the same pixels, as they come side by side in
//! networks that pool the same map at several sizes.
//!
//! ```text
//! 9x9 around a pixel = 5x5 around it of the maxima over 5x5          81 codes a pixel -> 25
//! ```
//!
//! What lies outside the map counts for neither, so that it is the same at its borders, too.

use super::{OpKind, Ops, Pool, TensorId};
use npu_uapi::command::Window;
use std::collections::BTreeMap;

/// Gives every maximum the widest one before it to read that it can be made of.
pub(super) fn from_narrower(ops: &mut Ops) {
    // By what they are of, windows and results.
    let mut found: BTreeMap<TensorId, Vec<(Window, TensorId)>> = BTreeMap::new();
    for at in 0..ops.ops.len() {
        let Some((wide, read)) = plain(ops, at) else { continue };
        let before = found.entry(read).or_default();
        let parts = before.iter().filter(|(narrow, _)| is_part(narrow, &wide));
        let narrower = parts.max_by_key(|(w, _)| u32::from(w.kernel_h) * u32::from(w.kernel_w));
        let op = &mut ops.ops[at];
        if let (OpKind::Pool { kind: Pool::Max(window), .. }, Some((narrow, result))) =
            (&mut op.kind, narrower)
        {
            window.kernel_h -= narrow.kernel_h - 1;
            window.kernel_w -= narrow.kernel_w - 1;
            window.pad_top -= narrow.pad_top;
            window.pad_left -= narrow.pad_left;
            op.reads = vec![*result];
        }
        before.push((wide, op.writes));
    }
}

/// The window of operation `at` and what it reads, when it is the maximum around each pixel, and nothing behind it.
fn plain(ops: &Ops, at: usize) -> Option<(Window, TensorId)> {
    let op = &ops.ops[at];
    let OpKind::Pool { kind: Pool::Max(window), table: None } = &op.kind else { return None };
    let w = *window;
    let dims = |tensor: TensorId| ops.tensor(tensor).form.dims();
    let is_around = |kernel: u16, pad: u16| kernel.checked_sub(1) == Some(pad.saturating_mul(2));
    (is_around(w.kernel_h, w.pad_top)
        && is_around(w.kernel_w, w.pad_left)
        && [w.stride_h, w.stride_w, w.dilation_h, w.dilation_w] == [1; 4]
        && dims(op.reads[0]) == dims(op.writes))
    .then_some((w, op.reads[0]))
}

/// Whether maxima over `narrow` make those over `wide` with fewer codes.
fn is_part(narrow: &Window, wide: &Window) -> bool {
    narrow.kernel_h <= wide.kernel_h
        && narrow.kernel_w <= wide.kernel_w
        && (narrow.kernel_h, narrow.kernel_w) != (1, 1)
}
