//! Views: a tensor seen in another shape, order or part, without moving a byte.
//!
//! ```text
//! Slice, Transpose, Resize, Expand ..   a view of what the unit reads; moved where someone needs it so
//! Concat, Pad                           one move a part, each from a view into its place
//! ```

use super::matrix::Walk;
use super::{Form, Loop, Move};
use crate::quantize::{Step, Table};
use npu_uapi::command::{Dims, Strides, lanes};

/// How to find the elements of a tensor: for each dimension its loops, from the outermost.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct View {
    /// Byte of the first element.
    offset: i64,
    axes: Vec<Vec<Part>>,
}

/// A loop: how often, and the bytes from one turn to the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Part {
    count: usize,
    stride: i64,
}

impl View {
    /// A tensor of this form, seen in `shape`: channel-first and dense, both are the same elements.
    /// `None` where a dimension of `shape` would need steps that loops do not have.
    pub(super) fn of(form: Form, shape: &[usize]) -> Option<Self> {
        let (dims, strides) = (form.dims(), form.strides4());
        let part = |count: u32, stride| vec![Part { count: count as usize, stride }];
        let axes = vec![
            part(dims.n, strides.image),
            part(dims.c, strides.channel),
            part(dims.h, strides.row),
            part(dims.w, strides.pixel),
        ];
        Self { offset: 0, axes }.reshaped(shape)
    }

    /// After `steps`; `None` where only another order of the elements in memory could say it.
    pub(super) fn after(self, steps: &[Step]) -> Option<Self> {
        steps.iter().try_fold(self, Self::step)
    }

    fn step(mut self, step: &Step) -> Option<Self> {
        match step {
            Step::Reshape(shape) => return self.reshaped(shape),
            Step::Permute(order) => {
                self.axes = order.iter().map(|&axis| self.axes[axis].clone()).collect();
            }
            Step::Slice { axis, start, step, len } => {
                return self.sliced(*axis, *start, *step, *len);
            }
            // Only places of their own can say it.
            Step::Pick { .. } => return None,
            Step::RepeatEach { axis, times } => {
                self.axes[*axis].push(Part { count: *times, stride: 0 });
            }
            Step::RepeatAll { axis, times } => {
                self.axes[*axis].insert(0, Part { count: *times, stride: 0 });
            }
        }
        Some(self)
    }

    fn reshaped(self, shape: &[usize]) -> Option<Self> {
        let mut parts = merged(self.axes.into_iter().flatten());
        parts.reverse();
        let mut axes = Vec::with_capacity(shape.len());
        for &len in shape {
            let (mut axis, mut left) = (Vec::new(), len);
            while left > 1 {
                let part = parts.pop()?;
                let (taken, rest) = split(part, left)?;
                left /= taken.count;
                axis.push(taken);
                parts.extend(rest);
            }
            axes.push(axis);
        }
        Some(Self { offset: self.offset, axes })
    }

    /// Elements `start`, `start + step` and so on of dimension `axis`, `len` in all.
    pub(super) fn sliced(
        mut self,
        axis: usize,
        start: usize,
        step: isize,
        len: usize,
    ) -> Option<Self> {
        let parts = merged(self.axes[axis].iter().copied());
        let (start, step) = (i64::try_from(start).ok()?, i64::try_from(step).ok()?);
        self.axes[axis] = match parts.as_slice() {
            [] => parts,
            &[Part { stride, .. }] => {
                self.offset += start * stride;
                vec![Part { count: len, stride: stride * step }]
            }
            &[outer, ref inner @ ..] => {
                let span: usize = inner.iter().map(|part| part.count).product();
                let whole = i64::try_from(span).ok()?;
                if step != 1 || start % whole != 0 || !len.is_multiple_of(span) {
                    return None;
                }
                self.offset += start / whole * outer.stride;
                let first = Part { count: len / span, ..outer };
                std::iter::once(first).chain(inner.iter().copied()).collect()
            }
        };
        Some(self)
    }

    /// The strides by which a command walks it, which lies in a tensor of `form`, as a feature map of `dims`;
    /// `None` where it does not begin at the first byte, channels do not follow each other, or the lanes of
    /// a pixel reach behind the tensor.
    pub(super) fn as_map(&self, dims: Dims, form: Form) -> Option<Strides> {
        let image = [dims.n, dims.c, dims.h, dims.w].map(|len| len as usize);
        let (offset, strides) = self.clone().reshaped(&image)?.strides()?;
        let &[image, channel, row, pixel] = strides.as_slice() else { return None };
        let narrow = |stride: i64| i32::try_from(stride).ok();
        let is_dense = offset == 0 && (channel == 1 || dims.c == 1);
        let strides = Strides { image, row: narrow(row)?, pixel: narrow(pixel)? };
        let last = [(dims.n, image), (dims.h, row), (dims.w, pixel)];
        let last: i64 = last.iter().map(|&(len, stride)| (i64::from(len) - 1) * stride).sum();
        let end = last + i64::from(lanes(dims.c, strides.pixel));
        let is_inside = u64::try_from(end).is_ok_and(|end| end <= form.len_bytes());
        (is_dense && is_inside).then_some(strides)
    }

    /// Whether the last dimension of `shape`, which this is, are the channels of a feature map of `form`,
    /// and the others together its pixels, in their order.
    pub(super) fn is_pixels(&self, form: Form, shape: &[usize]) -> bool {
        let Form::Map { dims, pixel } = form else { return false };
        let Some((channels, rest)) = self.axes.split_last() else { return false };
        let channels = merged(channels.iter().copied());
        let rows = merged(rest.iter().flatten().copied());
        let count = [dims.n, dims.h, dims.w].map(|len| len as usize).iter().product::<usize>();
        let whole = |parts: &[Part], len: usize, step: i64| match parts {
            [] => len == 1,
            &[part] => part == Part { count: len, stride: step },
            _ => false,
        };
        self.offset == 0
            && shape.last() == Some(&(dims.c as usize))
            && whole(&channels, dims.c as usize, 1)
            && whole(&rows, count, pixel.into())
    }

    /// Whether both find the same elements.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let strides = self.strides();
        strides.is_some() && strides == other.strides()
    }

    /// Whether these are the elements of a host's tensor of floats of `shape`, in their order.
    pub(super) fn is_dense(&self, shape: &[usize]) -> bool {
        let mut count = 1;
        let steps = shape.iter().rev().map(|&len| {
            let step = if len == 1 { 0 } else { 4 * count };
            count *= i64::try_from(len).unwrap_or(i64::MAX);
            step
        });
        let mut steps: Vec<i64> = steps.collect();
        steps.reverse();
        self.strides() == Some((0, steps))
    }

    /// The byte of the first element, and for each dimension its stride; zero for dimensions of one
    /// element. `None` where a dimension has no single stride.
    fn strides(&self) -> Option<(i64, Vec<i64>)> {
        let stride = |axis: &Vec<Part>| match merged(axis.iter().copied()).as_slice() {
            [] => Some(0),
            [part] => Some(part.stride),
            _ => None,
        };
        Some((self.offset, self.axes.iter().map(stride).collect::<Option<_>>()?))
    }

    /// What moves the elements of this view of read tensor `read` to where `to` has them, through
    /// `table`. `None` where the two cut a dimension differently.
    pub(super) fn moves(&self, read: usize, to: &Self, table: Option<&Table>) -> Option<Vec<Move>> {
        let mut loops: Vec<Loop> = Vec::new();
        for (from, to) in self.axes.iter().zip(&to.axes) {
            let mut from = merged(from.iter().copied());
            let mut to = merged(to.iter().copied());
            from.reverse();
            to.reverse();
            while let (Some(a), Some(b)) = (from.pop(), to.pop()) {
                let count = a.count.min(b.count);
                let ((a, a_rest), (b, b_rest)) = (split(a, count)?, split(b, count)?);
                if a.count != b.count {
                    return None;
                }
                loops.push(Loop { count: a.count, src: a.stride, dst: b.stride });
                from.extend(a_rest);
                to.extend(b_rest);
            }
        }
        let whole = Move {
            read,
            loops: Vec::new(),
            src: self.offset,
            dst: to.offset,
            table: table.cloned(),
        };
        Some(within_five(whole, loops))
    }
}

/// How a command walks the matrices of these three, the third of which has `shape`: turns of two loops
/// around, and each one's strides. Dimensions of the first two that are 1 or absent are repeated. `None`
/// where strides are not what the command has.
pub(super) fn walks(views: [&View; 3], shape: &[usize]) -> Option<([usize; 2], [Walk; 3])> {
    let around = shape.len().checked_sub(2)?;
    let mut strides = Vec::with_capacity(3);
    for view in views {
        let (first, mut own) = view.strides()?;
        let mut all = vec![0; shape.len().checked_sub(own.len())?];
        all.append(&mut own);
        strides.push((first, all));
    }
    // One loop where every stride of the outer is the inner's times its turns.
    let mut loops: Vec<(usize, [i64; 3])> = Vec::new();
    for axis in (0..around).filter(|&axis| shape[axis] > 1) {
        let here: [i64; 3] = std::array::from_fn(|index| strides[index].1[axis]);
        let turns = i64::try_from(shape[axis]).ok()?;
        match loops.last_mut() {
            Some((count, outer))
                if outer.iter().zip(here).all(|(&outer, inner)| outer == inner * turns) =>
            {
                (*count, *outer) = (*count * shape[axis], here);
            }
            _ => loops.push((shape[axis], here)),
        }
    }
    let one = (1, [0; 3]);
    let [outer, batch] = match loops.as_slice() {
        [] => [one, one],
        &[batch] => [one, batch],
        &[outer, batch] => [outer, batch],
        _ => return None,
    };
    let walk = |index: usize| Walk {
        first: strides[index].0,
        turns: [outer.1[index], batch.1[index]],
        row: strides[index].1[around],
        column: strides[index].1[around + 1],
    };
    let walks = [walk(0), walk(1), walk(2)];
    let fits = |walk: &Walk| [walk.row, walk.column].iter().all(|&s| i32::try_from(s).is_ok());
    // The device knows left matrices and results by rows; dimensions of one element have no stride.
    let by_rows = |walk: &Walk| walk.column == 1 || walk.column == 0;
    let is_single = |index: usize| {
        views[index].axes.last().is_some_and(|axis| merged(axis.iter().copied()).is_empty())
    };
    let rows = by_rows(&walks[0])
        && by_rows(&walks[2])
        && (walks[0].column == 1 || is_single(0))
        && (walks[2].column == 1 || is_single(2));
    (rows && walks.iter().all(fits)).then_some(([outer.0, batch.0], walks))
}

/// `part` cut so that the first piece counts at most `left`, and what remains of it.
fn split(part: Part, left: usize) -> Option<(Part, Option<Part>)> {
    if left.is_multiple_of(part.count) {
        return Some((part, None));
    }
    if !part.count.is_multiple_of(left) {
        return None;
    }
    let inner = part.count / left;
    let outer = Part { count: left, stride: part.stride * i64::try_from(inner).ok()? };
    Some((outer, Some(Part { count: inner, ..part })))
}

/// The same loops, as few as possible.
fn merged(parts: impl Iterator<Item = Part>) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    for part in parts.filter(|part| part.count != 1) {
        match out.last_mut() {
            Some(outer)
                if Some(outer.stride)
                    == i64::try_from(part.count).ok().and_then(|n| n.checked_mul(part.stride)) =>
            {
                *outer = Part { count: outer.count * part.count, stride: part.stride };
            }
            _ => out.push(part),
        }
    }
    out
}

/// Loops that the device has; of more than that, the shortest become moves of their own.
fn within_five(whole: Move, loops: Vec<Loop>) -> Vec<Move> {
    // By steps in the result, so that loops that can be one lie next to each other.
    let mut loops: Vec<Loop> = loops.into_iter().filter(|l| l.count > 1).collect();
    loops.sort_by_key(|l| std::cmp::Reverse(l.dst.unsigned_abs()));
    let mut few: Vec<Loop> = Vec::new();
    for l in loops {
        let joins = |outer: i64, inner: i64| {
            i64::try_from(l.count).ok().and_then(|n| n.checked_mul(inner)) == Some(outer)
        };
        match few.last_mut() {
            Some(outer) if joins(outer.src, l.src) && joins(outer.dst, l.dst) => {
                *outer = Loop { count: outer.count * l.count, ..l };
            }
            _ => few.push(l),
        }
    }
    let mut moves = vec![whole];
    while few.len() > 5 {
        let shortest = (0..few.len()).min_by_key(|&at| few[at].count).unwrap_or(0);
        let unrolled = few.remove(shortest);
        let turns = |first: Move| {
            (0..).take(unrolled.count).map(move |turn: i64| Move {
                src: first.src + turn * unrolled.src,
                dst: first.dst + turn * unrolled.dst,
                ..first.clone()
            })
        };
        moves = moves.into_iter().flat_map(turns).collect();
    }
    moves.into_iter().map(|part| Move { loops: few.clone(), ..part }).collect()
}
