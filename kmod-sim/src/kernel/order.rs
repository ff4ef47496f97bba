//! The order of chunks that are each some weights for some pixels, when workers take them from both ends.

use super::split::Split;

/// Chunks of a grid.
///
/// ```text
///              pixels                            pixels
///   front -> [  0  1  2  3             front -> [  0  1 | 14 15  <- back
///    weights    4  5  6  7              weights    2  3 | 12 13
///               8  9 10 11                         4  5 | 10 11
///              12 13 14 15 ] <- back               6  7 |  8  9 ]
/// ```
///
/// On the left, workers at the front and at the back each read all pixels, and other weights; on the right,
/// in halves, all weights, and the pixels of their half, which they have most likely written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// Chunks of the weights, each for all pixels.
    pub(crate) weights: i64,
    pub(crate) pixels: i64,
    pub(crate) in_halves: bool,
}

/// Whether chunks are better in halves, by the bytes of the weights and of the pixels. Weights are written by
/// nobody, so that each processor may have its own.
pub(crate) fn in_halves(split: &Split<'_>, weights: i64, pixels: i64) -> bool {
    split.workers() > 1 && weights <= pixels.saturating_mul(2)
}

impl Order {
    pub(crate) fn chunks(self) -> i64 {
        self.weights * self.pixels
    }

    /// Weights and pixels of `chunk`.
    pub(crate) fn at(self, chunk: i64) -> (i64, i64) {
        let back = self.pixels / 2;
        let front = self.pixels - back;
        if !self.in_halves {
            (chunk / self.pixels, chunk % self.pixels)
        } else if chunk < self.weights * front {
            (chunk / front, chunk % front)
        } else {
            let chunk = self.chunks() - 1 - chunk;
            (chunk / back, self.pixels - 1 - chunk % back)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn every_part_comes_once(weights in 1i64..9, pixels in 1i64..30, in_halves: bool) {
            let order = Order { weights, pixels, in_halves };
            let all: HashSet<_> = (0..order.chunks()).map(|chunk| order.at(chunk)).collect();
            prop_assert_eq!(i64::try_from(all.len()), Ok(order.chunks()));
            prop_assert!(all.iter().all(|at| (0..weights).contains(&at.0) && (0..pixels).contains(&at.1)));
        }

        #[test]
        fn whoever_comes_from_an_end_keeps_to_half_of_the_pixels(weights in 2i64..9, pixels in 2i64..30) {
            let order = Order { weights, pixels, in_halves: true };
            let half = |at: i64| order.at(at).1 < pixels - pixels / 2;
            let front = weights * (pixels - pixels / 2);
            prop_assert!((0..front).all(half));
            prop_assert!(!(front..order.chunks()).any(half));
        }
    }
}
