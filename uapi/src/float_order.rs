//! Sums of products in floats, in the orders that the CPU provider has: the definition of `FLOAT`.
//!
//! A convolution or product whose operands ONNX Runtime dequantises first runs there in binary32, and
//! the bits of a sum depend on its order. The order is a function of the shape alone as long as the work
//! is not divided among threads within a reduction; the compiler names it, and refuses where it cannot.
//!
//! Every step is IEEE 754 binary32, rounded to nearest, ties to even. Scales may be any bits.

/// The terms of one output in the order of the CPU provider: input channel, kernel row, kernel column,
/// the padding's zeros included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Order {
    /// How the terms are added.
    pub steps: Steps,
    /// Whether the bias is what the sum starts from; otherwise it is added last.
    pub bias_first: bool,
}

/// How terms are added to a sum.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Steps {
    /// In blocks of so many terms: `block = fma(x, w, block)` from 0, then `sum = sum + block`.
    Fused(u64),
    /// `sum = sum + (((x0*w0 + x1*w1) + x2*w2) + x3*w3)`, each operation rounded; of the last terms
    /// `sum + (x0*w0 + x1*w1)` while there are two, then `sum + x0*w0`.
    Quads,
    /// In eight lanes: term `k` is `lane[k % 8] = lane[k % 8] + x*w`, each operation rounded, and
    /// the lanes are added as a tree that depends on the output channel's place, see [`Place`].
    Lanes,
}

/// The place of an output channel among those of its group, which decides how [`Steps::Lanes`] end.
///
/// ```text
/// channels in fours         (((0 + 1) + 2) + 3) + (((4 + 5) + 6) + 7)
/// of the rest, two          ((2 + 0) + (6 + 4)) + ((3 + 1) + (7 + 5))
/// then one                  ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// One of four.
    OfFour,
    /// One of two.
    OfTwo,
    /// The last.
    Alone,
}

impl Place {
    /// The place of `channel` of `count`.
    pub fn of(channel: u64, count: u64) -> Self {
        match count - count % 4 {
            fours if channel < fours => Self::OfFour,
            fours if count % 4 >= 2 && channel < fours + 2 => Self::OfTwo,
            _ => Self::Alone,
        }
    }

    fn sum(self, [a, b, c, d, e, f, g, h]: [f32; 8]) -> f32 {
        match self {
            Self::OfFour => (a + b + c + d) + (e + f + g + h),
            Self::OfTwo => ((c + a) + (g + e)) + ((d + b) + (h + f)),
            Self::Alone => ((a + b) + (c + d)) + ((e + f) + (g + h)),
        }
    }
}

/// Codes of [`Order`] in [`crate::command::Stage::float_order`].
pub mod code {
    /// [`super::Steps::Fused`], the bias last.
    pub const FUSED: u8 = 1;
    /// [`super::Steps::Fused`], the bias first.
    pub const FUSED_BEHIND_BIAS: u8 = 2;
    /// [`super::Steps::Quads`], the bias last.
    pub const QUADS: u8 = 3;
    /// [`super::Steps::Quads`], the bias first.
    pub const QUADS_BEHIND_BIAS: u8 = 4;
    /// [`super::Steps::Lanes`], the bias last.
    pub const LANES: u8 = 5;
}

impl Order {
    /// Largest log2 of a block.
    pub const MOST_BLOCK_LOG2: u8 = 31;

    /// The order of a code and log2 of the block, which is zero where there are no blocks.
    pub fn decode(code: u8, block_log2: u8) -> Option<Self> {
        let bias_first = matches!(code, code::FUSED_BEHIND_BIAS | code::QUADS_BEHIND_BIAS);
        let steps = match code {
            code::FUSED | code::FUSED_BEHIND_BIAS if block_log2 <= Self::MOST_BLOCK_LOG2 => {
                Steps::Fused(1 << block_log2)
            }
            code::QUADS | code::QUADS_BEHIND_BIAS if block_log2 == 0 => Steps::Quads,
            code::LANES if block_log2 == 0 => Steps::Lanes,
            _ => return None,
        };
        Some(Self { steps, bias_first })
    }

    /// Code and log2 of the block; a block that is no power of two counts as the next smaller one.
    pub fn encode(self) -> (u8, u8) {
        match (self.steps, self.bias_first) {
            (Steps::Fused(block), first) => {
                let log2 = u8::try_from(block.max(1).ilog2()).unwrap_or(u8::MAX);
                let code = if first { code::FUSED_BEHIND_BIAS } else { code::FUSED };
                (code, log2.min(Self::MOST_BLOCK_LOG2))
            }
            (Steps::Quads, false) => (code::QUADS, 0),
            (Steps::Quads, true) => (code::QUADS_BEHIND_BIAS, 0),
            (Steps::Lanes, _) => (code::LANES, 0), // first or last, the bias is added to one sum
        }
    }
}

/// A sum in the making.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    order: Order,
    place: Place,
    bias: f32,
    sum: f32,
    /// Of `Fused`, the block so far, in the first; of `Quads`, the products that are not in the sum
    /// yet; of `Lanes`, the lanes.
    parts: [f32; 8],
    /// Terms in the block or waiting; the lane that is next.
    count: u64,
}

impl Sum {
    /// A sum without terms.
    pub fn new(order: Order, place: Place, bias: f32) -> Self {
        let sum = if order.bias_first { bias } else { 0.0 };
        Self { order, place, bias, sum, parts: [0.0; 8], count: 0 }
    }

    /// Adds the next term, `x * w`.
    pub fn add(&mut self, x: f32, w: f32) {
        match self.order.steps {
            Steps::Fused(len) => {
                self.parts[0] = libm::fmaf(x, w, self.parts[0]);
                self.count += 1;
                if self.count == len {
                    self.sum += self.parts[0];
                    (self.parts[0], self.count) = (0.0, 0);
                }
            }
            Steps::Quads => {
                self.parts[self.index()] = x * w;
                self.count += 1;
                if self.count == 4 {
                    let [a, b, c, d, ..] = self.parts;
                    self.sum += a + b + c + d;
                    self.count = 0;
                }
            }
            Steps::Lanes => {
                self.parts[self.index()] += x * w;
                self.count = (self.count + 1) % 8;
            }
        }
    }

    /// `count` as an index, which it is outside of `Fused`.
    fn index(&self) -> usize {
        usize::try_from(self.count & 7).unwrap_or(0)
    }

    /// The result, bias included.
    pub fn finish(mut self) -> f32 {
        let [a, b, c, ..] = self.parts;
        match (self.order.steps, self.count) {
            (Steps::Lanes, _) => self.sum = self.place.sum(self.parts),
            (_, 0) => {}
            (Steps::Fused(_), _) | (Steps::Quads, 1) => self.sum += a,
            (Steps::Quads, 2) => self.sum += a + b,
            (Steps::Quads, _) => {
                self.sum += a + b;
                self.sum += c;
            }
        }
        if self.order.bias_first { self.sum } else { self.sum + self.bias }
    }
}

/// A weight as a float: `f32(w) * scale`.
pub fn weight(code: i8, scale: f32) -> f32 {
    f32::from(code) * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(steps: Steps, bias_first: bool, bias: f32, terms: &[(f32, f32)]) -> f32 {
        let mut sum = Sum::new(Order { steps, bias_first }, Place::Alone, bias);
        terms.iter().for_each(|&(x, w)| sum.add(x, w));
        sum.finish()
    }

    #[test]
    fn a_block_is_fused_and_the_bias_has_its_place() {
        let tiny = f32::EPSILON / 4.0;
        // Alone a tiny term is lost beside 1; in a block of its own with others it is not.
        let terms = [(1.0, 1.0), (tiny, 1.0), (tiny, 1.0), (tiny, 1.0)];
        assert_eq!(sum(Steps::Fused(4), false, 0.0, &terms), 1.0);
        assert_eq!(sum(Steps::Fused(1), true, 0.0, &terms), 1.0);
        let late = [(tiny, 1.0), (tiny, 1.0), (tiny, 1.0), (tiny, 1.0)];
        assert_eq!(sum(Steps::Fused(4), true, 1.0, &late), 1.0 + 4.0 * tiny);
        assert_eq!(sum(Steps::Fused(2), true, 1.0, &late), 1.0);
        assert_eq!(sum(Steps::Fused(2), false, 1.0, &late), 1.0 + 4.0 * tiny);
    }

    #[test]
    fn quads_round_their_products_and_end_in_a_pair_and_a_single() {
        let terms: [(f32, f32); 7] =
            [1.1_f32, 2.3, 3.7, 4.9, 5.3, 6.1, 7.7].map(|x| (x, 1.0 / x.sqrt()));
        let p = terms.map(|(x, w)| x * w);
        let want = (p[0] + p[1] + p[2] + p[3]) + (p[4] + p[5]) + p[6] + 0.25;
        assert_eq!(sum(Steps::Quads, false, 0.25, &terms), want);
        let want = 0.25 + (p[0] + p[1] + p[2] + p[3]) + (p[4] + p[5]) + p[6];
        assert_eq!(sum(Steps::Quads, true, 0.25, &terms), want);
    }

    #[test]
    fn lanes_end_as_the_place_of_the_channel_says() {
        let terms: [(f32, f32); 11] = [1.1_f32, 2.3, 3.7, 4.9, 5.3, 6.1, 7.7, 8.3, 9.7, 10.1, 11.9]
            .map(|x| (x, 1.0 / x.sqrt()));
        let mut l = [0.0f32; 8];
        for (k, (x, w)) in terms.iter().enumerate() {
            l[k % 8] += x * w;
        }
        let order = Order { steps: Steps::Lanes, bias_first: false };
        let wants = [
            (0, ((l[0] + l[1] + l[2]) + l[3]) + ((l[4] + l[5] + l[6]) + l[7])),
            (4, ((l[2] + l[0]) + (l[6] + l[4])) + ((l[3] + l[1]) + (l[7] + l[5]))),
            (6, ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7]))),
        ];
        for (channel, want) in wants {
            let mut sum = Sum::new(order, Place::of(channel, 7), 0.5);
            terms.iter().for_each(|&(x, w)| sum.add(x, w));
            assert_eq!(sum.finish(), want + 0.5);
        }
        assert_eq!(Place::of(4, 5), Place::Alone);
        assert_eq!(Place::of(5, 6), Place::OfTwo);
    }

    #[test]
    fn codes_of_orders_come_back_and_unknown_ones_do_not() {
        for code in 0..=u8::MAX {
            for log2 in 0..=u8::MAX {
                match Order::decode(code, log2) {
                    Some(order) => assert_eq!(order.encode(), (code, log2)),
                    None => assert!(!(1..=5).contains(&code) || log2 > 0),
                }
            }
        }
    }
}
