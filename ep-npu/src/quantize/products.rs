//! Units of Conv, Gemm and MatMul: constant 8-bit weights, 32-bit sums.

use super::arithmetic::{Arithmetic, Floats};
use super::attention;
use super::codes::Codes;
use super::form::{Constant, CutResult, Former};
use super::signed::Edges;
use super::unit::{Kind, Products, Unit, Weights};
use super::window::WindowSpec;
use crate::exactness::Exactness;
use crate::graph::{ElementType, Node};
use crate::refusal::{Refusal, refuse};

/// Conv.
pub(super) fn conv(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let input = unit.activation(0)?;
    let constant = unit.constant(1, ElementType::I8, 0)?;
    let (outputs, inputs, space) = match constant.tensor.shape.as_slice() {
        [outputs, inputs, space @ ..] if (1..=2).contains(&space.len()) => {
            (*outputs, *inputs, space.to_vec())
        }
        shape => {
            return refuse!(
                SHAPE,
                "{node} has weights of shape {shape:?}; one or two dimensions of space are taken"
            );
        }
    };
    let (rows, columns) = match space.as_slice() {
        &[rows, columns] => (rows, columns),
        _ => (1, space[0]),
    };
    let groups = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(0);
    if groups == 0 || outputs == 0 || inputs == 0 || outputs % groups != 0 {
        return refuse!(ATTRIBUTE, "{node} has group {groups} for {outputs} output channels");
    }
    if rows == 0 || columns == 0 {
        return refuse!(SHAPE, "{node} has a kernel of {rows} by {columns}");
    }
    let weights = Weights {
        bytes: constant.tensor.bytes.clone(),
        outputs,
        inputs,
        kernel: [rows, columns],
        strides: [inputs * rows * columns, rows * columns, columns, 1],
        zero_points: constant.zero_points,
    };
    let window = WindowSpec::read(node, Some(&space))?;
    let scales = Scales { input: input.scale, weights: constant.scales };
    let CutResult { output: value, codes: output, cut } = unit.cut_result()?;
    // With an activation that cuts something off, the CPU fuses that, and not the 8-bit operator.
    let products = if unit.outer_edges() != Edges::Unsigned || cut.is_some() {
        let range = cut.map_or([0, 255], |(_, range)| range);
        let scales = scales.all(outputs);
        float(&mut unit, input, output, weights, scales, range)?
    } else {
        let bias = bias(&mut unit, outputs, &scales)?;
        products(node, input, output, weights, bias, &scales, None)?
    };
    Ok(unit.finish(value, Kind::Conv { products, groups, window }))
}

/// Gemm with a constant second matrix.
pub(super) fn gemm(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let transposed = node.int("transB").unwrap_or(0) != 0;
    let input = unit.activation(0)?;
    let constant = unit.constant(1, ElementType::I8, usize::from(!transposed))?;
    let weights = matrix(node, &constant, transposed)?;
    let alpha = node.float("alpha").unwrap_or(1.0);
    let scales = Scales { input: input.scale, weights: constant.scales };
    let beta = node.float("beta").unwrap_or(1.0);
    if node.input(2).is_some() && !(is_one(alpha) && is_one(beta)) {
        return refuse!(
            ATTRIBUTE,
            "{node} has a bias with alpha {alpha} and beta {beta}, so the CPU runs it in float; fold both into the weights and the bias"
        );
    }
    if !(alpha.is_finite() && alpha > 0.0) {
        return refuse!(ATTRIBUTE, "{node} has alpha {alpha}; it must be finite and above zero");
    }
    // The CPU multiplies sums of floats by alpha, and no bound is known of those.
    if unit.graph.exactness() == Exactness::Bounded && is_one(alpha) {
        let mut floats = unit.clone();
        let CutResult { output: value, codes: output, cut } = floats.cut_result()?;
        if cut.is_some() || floats.outer_edges() == Edges::Mixed {
            let range = cut.map_or([0, 255], |(_, range)| range);
            let scales = scales.all(weights.outputs);
            let products = float(&mut floats, input, output, weights, scales, range)?;
            return Ok(floats.finish(value, Kind::Product(products)));
        }
    }
    let bias = bias(&mut unit, weights.outputs, &scales)?;
    let (value, output) = unit.result()?;
    integer(&unit, &[Edges::Unsigned, Edges::Signed])?;
    let products = products(node, input, output, weights, bias, &scales, Some(alpha))?;
    Ok(unit.finish(value, Kind::Product(products)))
}

/// Whether `node` multiplies its first matrix with rows and columns exchanged.
pub(crate) fn is_turned(node: &Node) -> bool {
    node.is("Gemm") && node.int("transA").unwrap_or(0) != 0
}

/// MatMul with a constant second matrix, or of two tensors.
pub(super) fn matmul(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    if !unit.is_constant(1) {
        return attention::matmul(unit);
    }
    let node = unit.node();
    let input = unit.activation(0)?;
    let constant = unit.constant(1, ElementType::I8, 1)?;
    let weights = matrix(node, &constant, false)?;
    let bias = vec![0; weights.outputs];
    let scales = Scales { input: input.scale, weights: constant.scales };
    let (value, output) = unit.result()?;
    let products = if unit.outer_edges() != Edges::Unsigned {
        let scales = scales.all(weights.outputs);
        float(&mut unit, input, output, weights, scales, [0, 255])?
    } else {
        products(node, input, output, weights, bias, &scales, None)?
    };
    Ok(unit.finish(value, Kind::Product(products)))
}

/// Refuses an operator that the CPU provider runs in float: it takes these types only. Codes and zero
/// points of int8 and uint8 differ by the same 128, so its sums of products are the same for both.
fn integer(unit: &Former<'_>, types: &[Edges]) -> Result<(), Refusal> {
    if types.contains(&unit.outer_edges()) {
        return Ok(());
    }
    refuse!(
        S8_ACTIVATIONS,
        "{} reads or writes int8, so the CPU runs it in float; quantise activations as uint8",
        unit.node()
    )
}

struct Scales {
    input: f32,
    weights: Vec<f32>,
}

impl Scales {
    fn of(&self, output: usize) -> f32 {
        // One for all, or one each: `Former::constant` has checked it.
        self.weights.get(output).copied().unwrap_or(self.weights[0])
    }

    fn all(&self, outputs: usize) -> Vec<f32> {
        (0..outputs).map(|output| self.of(output)).collect()
    }
}

fn is_one(value: f32) -> bool {
    value.to_bits() == 1.0_f32.to_bits()
}

fn matrix(node: &Node, constant: &Constant, transposed: bool) -> Result<Weights, Refusal> {
    let &[rows, columns] = constant.tensor.shape.as_slice() else {
        let shape = &constant.tensor.shape;
        return refuse!(
            SHAPE,
            "{node} has a second matrix of shape {shape:?}; two dimensions are taken"
        );
    };
    if rows == 0 || columns == 0 {
        return refuse!(SHAPE, "{node} has an empty second matrix");
    }
    let bytes = constant.tensor.bytes.clone();
    let (inputs, outputs, strides) = match transposed {
        true => (columns, rows, [columns, 1, 0, 0]),
        false => (rows, columns, [1, columns, 0, 0]),
    };
    let zero_points = constant.zero_points.clone();
    Ok(Weights { bytes, outputs, inputs, kernel: [1, 1], strides, zero_points })
}

/// The bias, raw as the CPU provider uses it, once its scale is seen to be that of the sums.
fn bias(unit: &mut Former<'_>, outputs: usize, scales: &Scales) -> Result<Vec<i32>, Refusal> {
    let node = unit.node();
    if node.input(2).is_none() {
        return Ok(vec![0; outputs]);
    }
    let constant = unit.constant(2, ElementType::I32, 0)?;
    let is_row = node.is("Gemm") && constant.tensor.shape == [1, outputs];
    // One number for all.
    let is_one = node.is("Gemm") && matches!(*constant.tensor.shape, [1] | [1, 1]);
    if constant.tensor.shape != [outputs] && !is_row && !is_one {
        let shape = &constant.tensor.shape;
        return refuse!(SHAPE, "{node} has a bias of shape {shape:?}; [{outputs}] is taken");
    }
    for channel in 0..outputs {
        let want = scales.input * scales.of(channel);
        let found = constant.scales.get(channel).copied().unwrap_or(constant.scales[0]);
        if (found - want).abs() > 1e-6 + 0.01 * want.abs() {
            return refuse!(
                WEIGHTS,
                "{node} has bias scale {found:e} for channel {channel}; the sums have {want:e}, so the CPU does not fuse it"
            );
        }
    }
    match constant.tensor.as_i32().as_deref() {
        Some(&[one]) => Ok(vec![one; outputs]),
        Some(bias) => Ok(bias.to_vec()),
        None => refuse!(ELEMENT_TYPE, "{node} has a bias that is not int32"),
    }
}

fn products(
    node: &Node,
    input: Codes,
    output: Codes,
    weights: Weights,
    bias: Vec<i32>,
    scales: &Scales,
    alpha: Option<f32>,
) -> Result<Products, Refusal> {
    let input_scale = alpha.map_or(scales.input, |alpha| alpha * scales.input);
    let multipliers: Vec<f32> = (0..weights.outputs)
        .map(|channel| input_scale * scales.of(channel) / output.scale)
        .collect();
    if let Some(found) = multipliers.iter().find(|m| !(m.is_finite() && **m > 0.0)) {
        return refuse!(SCALE, "{node} has scales that come to a multiplier of {found}");
    }
    for channel in 0..weights.outputs {
        check_sum(node, &weights, channel, input.zero_point)?;
    }
    let arithmetic = Arithmetic::Integer;
    Ok(Products { input, output, weights, bias, multipliers, arithmetic })
}

/// Products of dequantised operands; a scale of the weights for each output channel.
pub(super) fn float(
    unit: &mut Former<'_>,
    input: Codes,
    output: Codes,
    weights: Weights,
    weight_scales: Vec<f32>,
    range: [u8; 2],
) -> Result<Products, Refusal> {
    if !weights.zero_points.is_empty() {
        return refuse!(
            WEIGHTS,
            "{} runs in float on the CPU and has weights further than 127 from their zero point; quantise them symmetrically",
            unit.node()
        );
    }
    // A Gemm in floats is another call of the matrix library than a MatMul.
    let order_is_known = !unit.node().is("Gemm");
    let bias = float_bias(unit, weight_scales.len())?;
    let arithmetic = Arithmetic::Float(Floats { weight_scales, bias, range, order_is_known });
    let (bias, multipliers) = (Vec::new(), Vec::new());
    Ok(Products { input, output, weights, bias, multipliers, arithmetic })
}

/// The bias as the float that it is, or dequantises to.
fn float_bias(unit: &mut Former<'_>, outputs: usize) -> Result<Option<Vec<f32>>, Refusal> {
    let node = unit.node();
    if node.input(2).is_none() {
        return Ok(None);
    }
    let (shape, values) = match unit.graph.constant(node, 2) {
        Some(floats) => (floats.shape.clone(), floats.as_f32()),
        None => {
            let constant = unit.constant(2, ElementType::I32, 0)?;
            let scale = |channel| *constant.scales.get(channel).unwrap_or(&constant.scales[0]);
            #[expect(clippy::cast_precision_loss, reason = "DequantizeLinear rounds so, too")]
            let value = |(channel, &code): (usize, &i32)| code as f32 * scale(channel);
            let codes = constant.tensor.as_i32();
            let values = codes.map(|codes| codes.iter().enumerate().map(value).collect());
            (constant.tensor.shape, values)
        }
    };
    if shape != [outputs] {
        return refuse!(SHAPE, "{node} has a bias of shape {shape:?}; [{outputs}] is taken");
    }
    match values {
        Some(values) => Ok(Some(values)),
        None => refuse!(ELEMENT_TYPE, "{node} has a bias that is neither float32 nor int32"),
    }
}

/// Proves that no input takes the products of `channel` out of 32 bits.
///
/// The bias is left out: the CPU and the device both add it modulo 2^32, and quantisers widen the
/// scale of a dead channel until its bias just fits, so its full sum may wrap, on both alike.
fn check_sum(
    node: &Node,
    weights: &Weights,
    channel: usize,
    zero_point: u8,
) -> Result<(), Refusal> {
    let (below, above) = (i64::from(zero_point), i64::from(255 - zero_point));
    let [positive, negative] = weights.sums(channel);
    let low = above * negative - below * positive;
    let high = above * positive - below * negative;
    if low > i64::from(i32::MIN) && high <= i64::from(i32::MAX) {
        return Ok(());
    }
    refuse!(
        ACCUMULATOR,
        "{node} has sums from {low} to {high} in channel {channel}, which 32 bits do not hold"
    )
}
