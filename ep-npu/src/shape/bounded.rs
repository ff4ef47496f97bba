//! Sums of floats whose order the CPU provider does not keep, or which is not known: how far two orders
//! can lie apart, and what `exactness=bounded` takes of them.
//!
//! ```text
//! A  = sum of |x| |w| + |bias|, the largest that any input makes of a channel's weights
//! u  = 2^-24, half a unit in the last place
//! e  = u (r + 6) A, where a term passes r roundings in its sum, and 6 around: both dequantisations,
//!      the product, the bias and its own, the division by the output's scale
//! ```
//!
//! Each side lies within its own `e` of the real number, and what it rounds to codes therefore within
//! `(e + e') / scale` of what the other rounds. Where that is below 1, the codes differ by at most 1.

use super::order::{self, Convolution};
use super::threads;
use crate::exactness::Exactness;
use crate::graph::{Graph, Node};
use crate::quantize::{Arithmetic, Codes, Kind, Placed, Products, Unit, WindowSpec};
use crate::refusal::{Refusal, refuse};
use npu_uapi::float_order::{Order, Steps};

/// Roundings of a term beside those of its sum.
const AROUND: usize = 6;
/// What terms of higher order and the computation of the bound itself may add: far more than they do.
const SLACK: f64 = 1.01;
/// Roundings of a sum of integers that becomes a float.
const OF_INTEGERS: usize = 2;
/// Terms of a block, where the device chooses its own order.
const OWN_BLOCK: u64 = 128;

/// The order in which the device sums, and by how many codes the results can differ from the CPU's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summed {
    pub(crate) order: Order,
    pub(crate) bound_codes: u8,
}

/// An order near the CPU provider's, and the most roundings that a term passes in a sum there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsettled {
    pub(crate) order: Order,
    pub(crate) roundings: usize,
}

/// The order of a convolution in floats. `shape` is `None` where nothing is known of the order on the CPU.
pub(crate) fn convolution(
    graph: &Graph,
    node: &Node,
    products: &Products,
    shape: Option<&Convolution>,
) -> Result<Summed, Refusal> {
    match shape {
        Some(shape) => settle(
            graph,
            node,
            products,
            || order::convolution(node, shape),
            || order::convolution_about(shape),
        ),
        None => of_unknown_order(graph, node, products),
    }
}

/// The order of a product of `m` rows in floats.
pub(crate) fn product(
    graph: &Graph,
    node: &Node,
    products: &Products,
    m: usize,
) -> Result<Summed, Refusal> {
    let is_known = products.arithmetic.floats().is_some_and(|floats| floats.order_is_known);
    if !is_known {
        return of_unknown_order(graph, node, products);
    }
    let (n, k) = (products.weights.outputs, products.weights.inputs);
    settle(
        graph,
        node,
        products,
        || order::product(node, m, n, k),
        || order::product_about(m, n, k),
    )
}

/// Refuses a product whose rows are some multiple of `step`, of which the model says not which, where it
/// would be refused for one of them.
pub(crate) fn product_of_any_rows(
    graph: &Graph,
    node: &Node,
    products: &Products,
    step: usize,
) -> Result<(), Refusal> {
    let weights = &products.weights;
    for m in order::rows_to_try(step, weights.outputs, weights.inputs) {
        product(graph, node, products, m).map_err(|refusal| {
            let reason = format!(
                "{}; that is so of {m} rows, which the open batch may make; or give the batch a length",
                refusal.reason
            );
            Refusal { reason, ..refusal }
        })?;
    }
    Ok(())
}

fn settle(
    graph: &Graph,
    node: &Node,
    products: &Products,
    settled: impl FnOnce() -> Result<Order, Refusal>,
    about: impl FnOnce() -> Unsettled,
) -> Result<Summed, Refusal> {
    match settled() {
        Ok(order) => Ok(Summed { order, bound_codes: 0 }),
        Err(refusal) if threads::possible().is_err() => Err(refusal),
        Err(refusal) => match graph.exactness() {
            Exactness::Require => Err(refusal),
            Exactness::Bounded => within_a_code(node, products, about()),
        },
    }
}

fn of_unknown_order(graph: &Graph, node: &Node, products: &Products) -> Result<Summed, Refusal> {
    if graph.exactness() == Exactness::Require {
        return refuse!(
            FLOAT_ORDER,
            "{node} runs in float on the CPU, in an order of sums that is not known; quantise its inputs and \
             output as uint8, or set `exactness=bounded`, which takes it within one code"
        );
    }
    let order = own_order(products.weights.terms());
    within_a_code(node, products, Unsettled { order, roundings: products.weights.terms() })
}

fn within_a_code(node: &Node, products: &Products, about: Unsettled) -> Result<Summed, Refusal> {
    let own = roundings(about.order, products.weights.terms());
    let apart = codes_apart(products, [own, about.roundings]);
    if apart < 1.0 {
        return Ok(Summed { order: about.order, bound_codes: 1 });
    }
    let terms = products.weights.terms();
    refuse!(
        FLOAT_ORDER,
        "{node} runs in float on the CPU, and sums of {terms} terms of these scales can differ by {apart:.1} codes \
         between two orders, where `exactness=bounded` takes less than 1; quantise its inputs and output as uint8"
    )
}

/// An order of the device's own for sums of `terms`.
pub(super) fn own_order(terms: usize) -> Order {
    let all = terms.checked_next_power_of_two().unwrap_or(usize::MAX) as u64;
    Order { steps: Steps::Fused(OWN_BLOCK.min(all)), bias_first: false }
}

/// The most roundings that a term passes in a sum of `terms`.
pub(super) fn roundings(order: Order, terms: usize) -> usize {
    match order.steps {
        Steps::Fused(block) => {
            let block = usize::try_from(block).unwrap_or(usize::MAX).clamp(1, terms.max(1));
            block + terms.div_ceil(block)
        }
        Steps::Quads => terms.div_ceil(4) + 4,
        Steps::Lanes => terms.div_ceil(8) + 4,
    }
}

/// Whether products and quotients of such scales, and of codes with them, neither overflow nor lose bits
/// that count: each rounding is then one of a normal number, or of less than a code's part in 2^100.
fn is_moderate(scale: f32) -> bool {
    (2_f32.powi(-50)..=2_f32.powi(30)).contains(&scale.abs())
}

/// By less than how many codes the results of `products` in floats differ, once with sums in which a
/// term passes so many roundings, once with so many others. Infinite where floats may overflow.
fn codes_apart(products: &Products, roundings: [usize; 2]) -> f64 {
    let Arithmetic::Float(floats) = &products.arithmetic else { return f64::INFINITY };
    let Codes { scale, zero_point } = products.input;
    let weight_scales = &floats.weight_scales;
    let all = [scale, products.output.scale].into_iter().chain(weight_scales.iter().copied());
    if !all.into_iter().all(is_moderate) || weight_scales.len() != products.weights.outputs {
        return f64::INFINITY;
    }
    let reach = f64::from(zero_point.max(255 - zero_point)) * f64::from(scale);
    let bias = |channel: usize| floats.bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
    let largest = |channel: usize| {
        let [positive, negative] = products.weights.sums(channel);
        #[expect(clippy::cast_precision_loss, reason = "`SLACK` holds more than that")]
        let weights = (positive - negative) as f64 * f64::from(floats.weight_scales[channel]).abs();
        let largest = reach * weights + bias(channel).abs();
        if largest.is_nan() { f64::INFINITY } else { largest }
    };
    let largest = (0..products.weights.outputs).map(largest).fold(0.0, f64::max);
    if largest >= f64::from(f32::MAX) / 2.0 {
        return f64::INFINITY;
    }
    #[expect(clippy::cast_precision_loss, reason = "`SLACK` holds more than that")]
    let count = roundings.iter().map(|&side| (side + AROUND) as f64).sum::<f64>();
    #[expect(clippy::cast_precision_loss, reason = "`SLACK` holds more than that")]
    let terms = products.weights.terms() as f64;
    // Products below the least normal number lose up to the least number there is.
    let lost = 2.0 * terms * 2_f64.powi(-149);
    let apart = SLACK * (2_f64.powi(-24) * count * largest + lost);
    apart / f64::from(products.output.scale)
}

/// By how many codes the results of `unit` can differ from the CPU provider's, for inputs of these shapes.
pub(crate) fn bound(graph: &Graph, unit: &Unit, inputs: &[&[usize]]) -> u8 {
    let node = graph.node(unit.target);
    let of = |summed: Result<Summed, Refusal>| summed.map_or(0, |summed| summed.bound_codes);
    match &unit.kind {
        Kind::Conv { products, groups, window } if products.arithmetic.floats().is_some() => {
            let Some((placed, size)) = inputs.first().and_then(|input| placed(node, window, input))
            else {
                return 0;
            };
            of(super::summed_over(graph, node, products, *groups, window, &placed, size))
        }
        Kind::Product(products) if products.arithmetic.floats().is_some() => {
            of(product(graph, node, products, rows(inputs)))
        }
        Kind::Add { .. } | Kind::Pair { .. } => super::codes_of_add(unit, inputs),
        _ => 0,
    }
}

/// The most roundings that a term passes on the CPU in the sums of `unit`, which is of floats.
pub(crate) fn roundings_of(graph: &Graph, unit: &Unit, inputs: &[&[usize]]) -> usize {
    let node = graph.node(unit.target);
    match &unit.kind {
        Kind::Conv { products, groups, window } => {
            let found = inputs.first().and_then(|input| placed(node, window, input));
            match found.filter(|_| !window.is_row()) {
                Some((placed, size)) => {
                    let shape = super::convolution(products, *groups, &placed, size);
                    order::convolution_about(&shape).roundings
                }
                None => products.weights.terms(),
            }
        }
        Kind::Product(products) if node.is("MatMul") => {
            let weights = &products.weights;
            order::product_about(rows(inputs), weights.outputs, weights.terms()).roundings
        }
        Kind::Product(products) => products.weights.terms(),
        _ => usize::MAX,
    }
}

fn placed(node: &Node, window: &WindowSpec, input: &[usize]) -> Option<(Placed, [usize; 3])> {
    let [n, _, h, w] = super::image(node, input, window.is_row()).ok()?;
    Some((window.place(node, [h, w]).ok()?, [n, h, w]))
}

fn rows(inputs: &[&[usize]]) -> usize {
    let rows = inputs.first().and_then(|input| input.split_last()).map(|(_, rows)| rows);
    rows.map_or(1, |rows| rows.iter().product())
}

/// By less than how many codes sums of floats differ from the same operator's of integers, infinite where
/// those wrap.
pub(crate) fn codes_from_integers(
    of_codes: &Products,
    of_floats: &Products,
    roundings: usize,
) -> f64 {
    let Some(floats) = of_floats.arithmetic.floats() else { return f64::INFINITY };
    let scale = |channel: usize| {
        f64::from(of_floats.input.scale) * f64::from(floats.weight_scales[channel])
    };
    let zero_point = i64::from(of_codes.input.zero_point);
    let reach = zero_point.max(255 - zero_point);
    // A bias may have a scale that is only near that of the sums.
    let mut of_bias = 0.0_f64;
    for (channel, &bias) in of_codes.bias.iter().enumerate() {
        let [positive, negative] = of_codes.weights.sums(channel);
        let most = reach.saturating_mul(positive - negative).saturating_add(i64::from(bias).abs());
        if most > i64::from(i32::MAX) {
            return f64::INFINITY;
        }
        let float = floats.bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
        of_bias = of_bias.max((f64::from(bias) * scale(channel) - float).abs());
    }
    // Floats on the CPU, or on the device in an order of its own.
    let terms = of_floats.weights.terms();
    let roundings = roundings.max(self::roundings(own_order(terms), terms));
    codes_apart(of_floats, [OF_INTEGERS, roundings])
        + SLACK * of_bias / f64::from(of_floats.output.scale)
}

/// By less than how many codes means over `count` elements differ, of integers and of floats in any order.
pub(crate) fn means_apart(input: Codes, output: Codes, count: usize) -> f64 {
    if ![input.scale, output.scale].into_iter().all(is_moderate) {
        return f64::INFINITY;
    }
    let reach = f64::from(input.zero_point.max(255 - input.zero_point));
    #[expect(clippy::cast_precision_loss, reason = "`SLACK` holds more than that")]
    let roundings = (count.saturating_add(OF_INTEGERS + 2 * AROUND)) as f64;
    let apart = 2_f64.powi(-24) * roundings * reach * f64::from(input.scale);
    SLACK * apart / f64::from(output.scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Floats, Weights};
    use npu_uapi::float_order::{Place, Sum, weight};
    use npu_uapi::requantise::{dequantise, quantise};
    use proptest::prelude::*;

    fn products(weights: &[i8], scales: [f32; 3], zero_points: [u8; 2], bias: f32) -> Products {
        let bytes: Vec<u8> = weights.iter().map(|weight| weight.cast_unsigned()).collect();
        let [from, of_weights, to] = scales;
        let floats = Floats {
            weight_scales: vec![of_weights],
            bias: Some(vec![bias]),
            range: [0, 255],
            order_is_known: true,
        };
        Products {
            input: Codes { scale: from, zero_point: zero_points[0] },
            output: Codes { scale: to, zero_point: zero_points[1] },
            weights: Weights {
                bytes: bytes.into(),
                outputs: 1,
                inputs: weights.len(),
                kernel: [1, 1],
                strides: [weights.len(), 1, 0, 0],
                zero_points: Vec::new(),
            },
            bias: Vec::new(),
            multipliers: Vec::new(),
            arithmetic: Arithmetic::Float(floats),
        }
    }

    /// The sum in floats in `order`, as codes before they are rounded, and the code.
    fn summed(products: &Products, order: Order, codes: &[u8]) -> (f64, u8) {
        let floats = products.arithmetic.floats().unwrap();
        let mut sum = Sum::new(order, Place::Alone, floats.bias.as_ref().unwrap()[0]);
        let (from, to) = (products.input, products.output);
        for (index, &code) in codes.iter().enumerate() {
            let w = weight(products.weights.at(0, index, 0, 0), floats.weight_scales[0]);
            sum.add(dequantise(code, from.scale, from.zero_point), w);
        }
        let sum = sum.finish();
        let value = f64::from(sum) / f64::from(to.scale);
        (value, quantise(sum, to.scale, to.zero_point))
    }

    proptest! {
        #[test]
        fn two_orders_lie_within_what_is_said(
            weights in prop::collection::vec(any::<i8>(), 1..700),
            seed: u64,
            scale in 1e-4_f32..1.0,
            zero_points: [u8; 2],
            bias in -50.0_f32..50.0,
        ) {
            let mut noise = crate::testing::Noise(seed);
            let products = products(&weights, [scale, 0.013, 0.3 * scale], zero_points, bias);
            let codes: Vec<u8> = weights.iter().map(|_| noise.byte()).collect();
            let orders = [Steps::Fused(1), Steps::Fused(1024), Steps::Fused(32), Steps::Quads, Steps::Lanes];
            let orders = orders.map(|steps| Order { steps, bias_first: false });
            for a in orders {
                for b in orders {
                    let count = [a, b].map(|order| roundings(order, weights.len()));
                    let most = codes_apart(&products, count);
                    let ((x, code), (y, other)) = (summed(&products, a, &codes), summed(&products, b, &codes));
                    prop_assert!((x - y).abs() <= most, "{x} and {y} are {} apart, not {most}", (x - y).abs());
                    if most < 1.0 {
                        prop_assert!(code.abs_diff(other) <= 1);
                    }
                }
            }
        }
    }

    #[test]
    fn sums_that_can_lie_apart_have_no_bound() {
        let few = products(&[127; 64], [0.02, 0.01, 0.05], [0, 0], 0.0);
        assert!(codes_apart(&few, [64, 64]) < 0.1);
        // Long sums that all but cancel: a code of the output is far below their rounding.
        let many = products(&[127; 8192], [0.02, 0.01, 1e-4], [128, 128], 0.0);
        assert!(codes_apart(&many, [8192, 192]) > 1.0);
        let endless = products(&[127; 64], [f32::MAX, 0.01, 0.05], [0, 0], 0.0);
        assert!(codes_apart(&endless, [64, 64]).is_infinite());
        // A product of scales that is subnormal has lost bits before it is multiplied.
        let small = products(&[127; 64], [1e-21, 2e-24, 4e-42], [0, 0], 0.0);
        assert!(codes_apart(&small, [64, 64]).is_infinite());
        let [tiny, fair] = [1e-21, 0.02].map(|scale| Codes { scale, zero_point: 128 });
        assert!(means_apart(tiny, tiny, 4).is_infinite() && means_apart(fair, fair, 4) < 1.0);
        let no_number = products(&[1], [0.02, 0.01, 0.05], [0, 0], f32::NAN);
        assert!(codes_apart(&no_number, [1, 1]).is_infinite());
    }
}
