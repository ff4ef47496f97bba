//! The order in which the CPU provider sums a float convolution or product.
//!
//! A convolution is a product there too: `m` filters of a group by `n` output pixels, `k` terms each. Its
//! matrix library sums a product
//!
//! ```text
//! m = 1                  in quads
//! n = 1, one image row   in lanes
//! else                   fused, in blocks of k: block(n, k)
//! ```
//!
//! and divides it among threads: along `n` when `n > m`, else along `m`. Each thread's part has an order
//! of its own, so where the parts differ, or differ with the number of threads, there is no order to
//! keep, and the node is refused. All numbers of threads that are [possible](threads) are asked. The orders are those of weights that are dequantised when the model runs, as the CPU provider
//! does outside its 8-bit operators.

use super::bounded::{self, Unsettled};
use super::threads;
use crate::graph::Node;
use crate::refusal::{Refusal, refuse};
use npu_uapi::float_order::{Order, Steps};
use std::collections::BTreeSet;

/// A convolution as far as its order depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Convolution {
    /// Images.
    pub(crate) images: usize,
    /// Groups of channels.
    pub(crate) groups: usize,
    /// Input channels of a group.
    pub(crate) inputs: usize,
    /// Output channels of a group.
    pub(crate) filters: usize,
    /// Rows and columns of the input.
    pub(crate) size: [usize; 2],
    /// Rows and columns of the kernel.
    pub(crate) kernel: [usize; 2],
    /// Output pixels of an image.
    pub(crate) pixels: usize,
    /// Whether all strides are 1 and no side is padded.
    pub(crate) plain: bool,
    /// Whether all dilations are 1.
    pub(crate) dense: bool,
    /// Whether both strides are 2 and all sides are padded by 3.
    pub(crate) halving: bool,
}

/// How a part of a product is summed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Part {
    Fused(usize),
    Quads,
    Lanes,
    /// In an order that the device does not have.
    Other,
}

/// Multiply-accumulates for which the matrix library takes another thread.
const MACS_A_THREAD: f64 = 65_536.0;

/// Terms of a block, and columns: what fits its panels.
const BLOCK: usize = 128;

/// Columns that it does not divide.
const COLUMNS_TOGETHER: usize = 16;

/// The order of a convolution of `shape`.
pub(crate) fn convolution(node: &Node, shape: &Convolution) -> Result<Order, Refusal> {
    let k = shape.inputs * shape.kernel[0] * shape.kernel[1];
    settled(node, k, |threads| shape.parts(k, threads))
}

/// The order of a product of `m` rows, `n` columns and `k` terms, no bias, no transposition.
pub(crate) fn product(node: &Node, m: usize, n: usize, k: usize) -> Result<Order, Refusal> {
    settled(node, k, |threads| match product_parts(m, n, k, threads) {
        // Their ends depend on the row, not on the output channel.
        parts if parts.contains(&Part::Lanes) => BTreeSet::from([Part::Other]),
        parts => parts,
    })
}

/// Numbers of rows, multiples of `step`, one at least for each way in which a product of `n` columns and `k`
/// terms is summed: all others are summed as one of them.
pub(crate) fn rows_to_try(step: usize, n: usize, k: usize) -> Vec<usize> {
    let most = threads::possible().map_or(1, |counts| *counts.end());
    // From there on every thread has two rows at least, and all columns.
    let (step, last) = (step.max(1), n.max(2 * most));
    let mut known = None;
    let is_new = |&m: &usize| {
        // With more columns than rows, the columns are divided: only how many threads there are counts.
        let threads = (m > 1 && n > m).then(|| useful(m, n, k, most));
        let before = std::mem::replace(&mut known, threads);
        threads.is_none() || threads != before
    };
    (step..=last.next_multiple_of(step)).step_by(step).filter(is_new).collect()
}

/// An order near that of a convolution of `shape`, where none is settled.
pub(crate) fn convolution_about(shape: &Convolution) -> Unsettled {
    let k = shape.inputs * shape.kernel[0] * shape.kernel[1];
    about(k, |threads| shape.parts(k, threads))
}

/// An order near that of a product, where none is settled.
pub(crate) fn product_about(m: usize, n: usize, k: usize) -> Unsettled {
    about(k, |threads| product_parts(m, n, k, threads))
}

/// The order with all threads, if it is one that the device has.
fn about(k: usize, parts: impl Fn(usize) -> BTreeSet<Part>) -> Unsettled {
    let roundings = |part: &Part| part.order().map_or(k, |order| bounded::roundings(order, k));
    // `settled` has refused what names no number.
    let counts = threads::possible().unwrap_or(1..=1);
    let by_default = parts(*counts.end()).into_iter().find(|part| matches!(part, Part::Fused(_)));
    let order = by_default.and_then(|part| part.as_far_as(k).order());
    let order = order.unwrap_or_else(|| bounded::own_order(k));
    let all: BTreeSet<Part> = counts.flat_map(&parts).collect();
    Unsettled { order, roundings: all.iter().map(roundings).max().unwrap_or(k) }
}

/// The order of a product of `n` columns and `k` terms whose first matrix lies transposed: however few the
/// columns are and whatever number of threads shares them, its blocks are not longer.
pub(crate) fn transposed(n: usize, k: usize) -> Order {
    let block = if k > BLOCK { BLOCK } else { k.next_power_of_two() };
    let steps = if n == 1 { Steps::Quads } else { Steps::Fused(block as u64) };
    Order { steps, bias_first: false }
}

/// The one order that all parts have with any number of threads.
fn settled(
    node: &Node,
    k: usize,
    parts: impl Fn(usize) -> BTreeSet<Part>,
) -> Result<Order, Refusal> {
    let counts = match threads::possible() {
        Ok(counts) => counts,
        Err(found) => {
            return refuse!(
                FLOAT_ORDER,
                "{node} runs in float on the CPU, in an order of sums that follows from the number of \
                 threads, and {} is `{found}`; set it to a number from 1, or unset it",
                threads::VARIABLE
            );
        }
    };
    let (least, most) = (*counts.start(), *counts.end());
    let all: BTreeSet<Part> = counts.flat_map(&parts).map(|part| part.as_far_as(k)).collect();
    match all.iter().collect::<Vec<_>>().as_slice() {
        [part] => match part.order() {
            Some(order) => Ok(order),
            None => refuse!(
                FLOAT_ORDER,
                "{node} runs in float on the CPU, in an order of sums that the device does not have; \
                 quantise its inputs and output as uint8, or set `exactness=bounded`, which takes it \
                 within one code"
            ),
        },
        _ => refuse!(
            FLOAT_ORDER,
            "{node} runs in float on the CPU, and the order of its sums there depends on the number \
             of threads ({least} to {most} are possible here); quantise its inputs and output as \
             uint8, name the number by {}, or set `exactness=bounded`, which takes it within one code",
            threads::VARIABLE
        ),
    }
}

impl Part {
    /// The order, if the device has it.
    fn order(self) -> Option<Order> {
        let steps = match self {
            Self::Fused(block) => Steps::Fused(block as u64),
            Self::Quads => Steps::Quads,
            Self::Lanes => Steps::Lanes,
            Self::Other => return None,
        };
        Some(Order { steps, bias_first: false })
    }

    /// Blocks longer than all terms are all alike.
    fn as_far_as(self, k: usize) -> Self {
        match self {
            Self::Fused(block) if block >= k => Self::Fused(k.next_power_of_two()),
            other => other,
        }
    }
}

impl Convolution {
    fn parts(&self, k: usize, threads: usize) -> BTreeSet<Part> {
        let &Self { images, groups, inputs, filters: m, size, kernel, pixels: n, .. } = self;
        let several = images > 1 || groups > 1;
        let point = kernel == [1, 1];
        let across = self.dense && inputs == 1 && (kernel[1] == size[1]);
        let along = self.dense && inputs == 1 && kernel[0] == size[0] && kernel[1] == 1;
        let direct = self.plain && (point || across || along);
        if direct && !point && (m == 1 || n == 1) {
            return BTreeSet::from([Part::Other]);
        }
        if direct && several {
            return BTreeSet::from([alone(m, n, k)]);
        }
        if direct || m > n {
            return product_parts(m, n, k, threads);
        }
        let two_of_one = groups > 1 && inputs == 1 && m == 2;
        if two_of_one && kernel == [7, 7] && self.halving && self.dense {
            // Two filters to a channel of this one shape have a kernel of their own.
            return BTreeSet::from([Part::Other]);
        }
        if several || m == 1 {
            // Of several images or groups, each is one thread's. Here `n` is not less than `m`.
            return BTreeSet::from([if m == 1 { Part::Quads } else { Part::Fused(block(n, k)) }]);
        }
        let threads = useful(m, n, k, threads);
        let mut step = n.div_ceil(threads);
        if threads > 1 {
            step = step.next_multiple_of(COLUMNS_TOGETHER);
        }
        (0..n).step_by(step).map(|first| Part::Fused(block(step.min(n - first), k))).collect()
    }
}

/// A product that one thread computes.
fn alone(m: usize, n: usize, k: usize) -> Part {
    match (m, n) {
        (1, _) => Part::Quads,
        (_, 1) => Part::Lanes,
        _ => Part::Fused(block(n, k)),
    }
}

/// A product among `threads`.
fn product_parts(m: usize, n: usize, k: usize, threads: usize) -> BTreeSet<Part> {
    let threads = useful(m, n, k, threads);
    if m == 1 {
        return BTreeSet::from([Part::Quads]);
    }
    if n > m {
        let columns = n.div_ceil(COLUMNS_TOGETHER);
        let mut left = n;
        let of = |share: usize| {
            let share = (share * COLUMNS_TOGETHER).min(left);
            left -= share;
            Part::Fused(block(share, k))
        };
        return shares(columns, threads.min(columns)).map(of).collect();
    }
    let threads = threads.min(m);
    if n == 1 {
        // Rows end by their place in their thread's part: in fours, but for the last.
        let whole = shares(m, threads).take(threads - 1).all(|rows| rows % 4 == 0);
        return BTreeSet::from([if whole { Part::Lanes } else { Part::Other }]);
    }
    shares(m, threads).map(|rows| alone(rows, n, k)).collect()
}

/// `total` in `parts` parts, the first of which have one more.
fn shares(total: usize, parts: usize) -> impl Iterator<Item = usize> {
    (0..parts).map(move |part| total / parts + usize::from(part < total % parts))
}

/// Threads that are worth their while.
fn useful(m: usize, n: usize, k: usize, threads: usize) -> usize {
    let macs = [m, n, k].iter().fold(1.0, |all, &len| {
        #[expect(clippy::cast_precision_loss, reason = "the matrix library counts so, too")]
        let len = len as f64;
        all * len
    });
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let wanted = (macs / MACS_A_THREAD) as usize;
    wanted.saturating_add(1).min(threads)
}

/// Terms of a block: 128, more where there are few columns.
fn block(n: usize, k: usize) -> usize {
    let (mut columns, mut terms) = (BLOCK, BLOCK);
    if n < k {
        while columns > 16 && columns / 2 >= n {
            (columns, terms) = (columns / 2, terms * 2);
        }
    }
    // With few terms there are more columns in a block, and all the terms.
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(threads: usize, [m, n, k]: [usize; 3]) -> Vec<Part> {
        product_parts(m, n, k, threads).into_iter().map(|part| part.as_far_as(k)).collect()
    }

    #[test]
    fn blocks_grow_where_columns_are_few() {
        assert_eq!(
            [196, 64, 49, 25, 16, 1].map(|n| block(n, 2000)),
            [128, 256, 256, 512, 1024, 1024]
        );
        assert_eq!(block(1000, 300), 128);
    }

    #[test]
    fn columns_are_divided_among_threads_and_rows_where_there_are_more() {
        // Measured on the CPU provider: 32 filters over 49 pixels of 300 channels.
        assert_eq!(of(1, [32, 49, 300]), [Part::Fused(256)]);
        assert_eq!(of(2, [32, 49, 300]), [Part::Fused(512)]);
        assert_eq!(of(2, [64, 49, 300]), [Part::Fused(256)]);
        assert_eq!(of(2, [640, 1, 160]), [Part::Lanes]);
        assert_eq!(of(3, [640, 1, 1600]), [Part::Other]);
        assert_eq!(of(8, [1, 500, 1600]), [Part::Quads]);
    }

    #[test]
    fn few_rows_stand_for_all() {
        let most = *threads::possible().unwrap().end();
        let all = |m, n, k| -> Vec<Vec<Part>> {
            (1..=most).map(|threads| of(threads, [m, n, k])).collect()
        };
        for (step, n, k) in
            [(1, 57, 383), (1, 2, 9), (64, 384, 384), (3, 40, 5000), (1, 17, 1 << 16)]
        {
            let tried = rows_to_try(step, n, k);
            let known: Vec<_> = tried.iter().map(|&m| all(m, n, k)).collect();
            for m in (step..1000).step_by(step) {
                assert!(known.contains(&all(m, n, k)), "{m} rows of {n} columns: {tried:?}");
            }
        }
        assert!(rows_to_try(1, 30_000, 1000).len() < 4 * most + 4);
    }

    #[test]
    fn images_and_groups_are_one_thread_each() {
        let one = Convolution {
            images: 1,
            groups: 1,
            inputs: 64,
            filters: 32,
            size: [11, 10],
            kernel: [3, 3],
            pixels: 110,
            plain: false,
            dense: true,
            halving: false,
        };
        let k = 576;
        assert_eq!(Vec::from_iter(one.parts(k, 1)), [Part::Fused(128)]);
        assert_eq!(Vec::from_iter(one.parts(k, 2)), [Part::Fused(256)]);
        let two = Convolution { images: 2, ..one };
        assert_eq!(Vec::from_iter(two.parts(k, 2)), [Part::Fused(128)]);
        let depthwise = Convolution { groups: 64, inputs: 1, filters: 1, ..one };
        assert_eq!(Vec::from_iter(depthwise.parts(9, 2)), [Part::Quads]);
        let pairs = Convolution { filters: 2, kernel: [7, 7], halving: true, ..depthwise };
        assert_eq!(Vec::from_iter(pairs.parts(49, 2)), [Part::Other]);
        let others = [
            Convolution { halving: false, ..pairs },
            Convolution { filters: 4, ..pairs },
            Convolution { kernel: [7, 5], ..pairs },
            Convolution { groups: 1, ..pairs },
        ];
        for other in others {
            assert_eq!(Vec::from_iter(other.parts(49, 1)), [Part::Fused(128)], "{other:?}");
        }
    }
}
