//! Types that the file does not declare, from those that it does: what ONNX Runtime infers when it loads a
//! model, for the operators that quantised networks are made of. What is declared stays.

use super::draft::{Draft, Node};
use crate::graph::{Attribute, Dim, ElementType, Tensor, TensorType};
use std::collections::HashMap;

/// Fills in what is missing. The nodes are in order.
pub(super) fn infer(draft: &mut Draft) {
    let Draft { nodes, types, constants, .. } = draft;
    for node in nodes.iter() {
        let Some(output) = node.outputs.first().filter(|name| !name.is_empty()) else { continue };
        if types.get(output).is_some_and(|ty| ty.shape.is_some()) {
            continue;
        }
        let known = Known { node, types, constants };
        if let Some(ty) = known.output() {
            types.insert(output.clone(), ty);
        }
    }
}

type Shape = Vec<Dim>;

/// A node, and what is known of its inputs.
struct Known<'d> {
    node: &'d Node,
    types: &'d HashMap<String, TensorType>,
    constants: &'d HashMap<String, Tensor>,
}

/// A length that is not known.
const OPEN: Dim = Dim::Symbol(String::new());

impl Known<'_> {
    /// The type of the first output; `None` when it cannot be told.
    fn output(&self) -> Option<TensorType> {
        let node = self.node;
        let float = ElementType::F32;
        let typed = |element, shape| Some(TensorType { element, shape: Some(shape) });
        match node.op.as_str() {
            "QuantizeLinear" => {
                let element = self.element(2).unwrap_or(ElementType::U8);
                return typed(element, self.shape(0)?);
            }
            "DequantizeLinear" => return typed(float, self.shape(0)?),
            _ if !matches!(node.domain.as_str(), "" | "ai.onnx") => return None,
            _ => {}
        }
        let shape = match node.op.as_str() {
            "Relu"
            | "Clip"
            | "LeakyRelu"
            | "PRelu"
            | "Sigmoid"
            | "HardSigmoid"
            | "HardSwish"
            | "Tanh"
            | "Elu"
            | "Selu"
            | "Celu"
            | "Gelu"
            | "Mish"
            | "Softplus"
            | "Erf"
            | "Exp"
            | "Sqrt"
            | "Abs"
            | "Neg"
            | "Softmax"
            | "LogSoftmax"
            | "Identity"
            | "Dropout"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "LayerNormalization" => self.shape(0)?,
            "Add" | "Sub" | "Mul" | "Div" | "Min" | "Max" | "Pow" => self.broadcast()?,
            "Conv" => self.conv()?,
            "MaxPool" | "AveragePool" => {
                let kernel = self.ints("kernel_shape")?;
                self.window(self.shape(0)?, &kernel)?
            }
            "GlobalAveragePool" | "GlobalMaxPool" => {
                let mut shape = self.shape(0)?;
                shape.get_mut(2..)?.fill(Dim::Known(1));
                shape
            }
            "Gemm" => {
                let side = |index: usize, name: &str, plain: usize| {
                    let is_turned = self.int(name).unwrap_or(0) != 0;
                    self.shape(index)?.get(if is_turned { 1 - plain } else { plain }).cloned()
                };
                vec![side(0, "transA", 0)?, side(1, "transB", 1)?]
            }
            "MatMul" => {
                let (mut shape, second) = (self.shape(0)?, self.shape(1)?);
                let (columns, rest) = second.split_last()?;
                let around = rest.split_last().map_or(&[][..], |(_, around)| around);
                let own = shape.len().checked_sub(2)?;
                if !around.is_empty() && around != &shape[..own] {
                    return None;
                }
                *shape.last_mut()? = columns.clone();
                shape
            }
            "Flatten" => {
                let shape = self.shape(0)?;
                let axis = wrapped(self.int("axis").unwrap_or(1), shape.len() + 1)?;
                vec![product(&shape[..axis]), product(&shape[axis..])]
            }
            "Reshape" => self.reshaped()?,
            "Transpose" => {
                let shape = self.shape(0)?;
                let order = match self.ints("perm") {
                    Some(order) => order
                        .iter()
                        .map(|&axis| wrapped(axis, shape.len()))
                        .collect::<Option<_>>()?,
                    None => (0..shape.len()).rev().collect::<Vec<_>>(),
                };
                order.into_iter().map(|axis| shape[axis].clone()).collect()
            }
            "Concat" => self.joined()?,
            "Squeeze" | "Unsqueeze" => self.squeezed()?,
            _ => return None,
        };
        typed(self.element(0).unwrap_or(float), shape)
    }

    fn element(&self, index: usize) -> Option<ElementType> {
        let name = self.node.inputs.get(index)?;
        let constant = self.constants.get(name).map(|constant| constant.element);
        constant.or_else(|| self.types.get(name).map(|ty| ty.element))
    }

    fn shape(&self, index: usize) -> Option<Shape> {
        let name = self.node.inputs.get(index)?;
        if let Some(constant) = self.constants.get(name) {
            return Some(constant.shape.iter().map(|&len| Dim::Known(len)).collect());
        }
        self.types.get(name)?.shape.clone()
    }

    fn constant(&self, index: usize) -> Option<Vec<i64>> {
        self.constants.get(self.node.inputs.get(index)?)?.as_i64()
    }

    fn int(&self, name: &str) -> Option<i64> {
        match self.node.attributes.get(name)? {
            Attribute::Int(value) => Some(*value),
            _ => None,
        }
    }

    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.node.attributes.get(name)? {
            Attribute::Ints(values) => Some(values.clone()),
            _ => None,
        }
    }

    fn broadcast(&self) -> Option<Shape> {
        let mut result = self.shape(0)?;
        for index in 1..self.node.inputs.len() {
            let mut other = self.shape(index)?;
            if other.len() > result.len() {
                std::mem::swap(&mut result, &mut other);
            }
            let behind = result.len() - other.len();
            for (to, from) in result[behind..].iter_mut().zip(other) {
                match (&*to, &from) {
                    (Dim::Known(1), _) => *to = from,
                    (Dim::Symbol(_), Dim::Known(len)) if *len != 1 => *to = from,
                    _ => {}
                }
            }
        }
        Some(result)
    }

    fn conv(&self) -> Option<Shape> {
        let (mut shape, weights) = (self.shape(0)?, self.shape(1)?);
        *shape.get_mut(1)? = weights.first()?.clone();
        let known = |dim: &Dim| match dim {
            Dim::Known(len) => i64::try_from(*len).ok(),
            Dim::Symbol(_) => None,
        };
        let kernel: Vec<i64> = weights.get(2..)?.iter().map(known).collect::<Option<_>>()?;
        self.window(shape, &kernel)
    }

    /// `shape` with its dimensions of space as a window of `kernel` leaves them.
    fn window(&self, mut shape: Shape, kernel: &[i64]) -> Option<Shape> {
        let axes = kernel.len();
        if shape.len() != axes + 2 {
            return None;
        }
        let or = |name: &str, count: usize, value: i64| {
            self.ints(name).filter(|ints| ints.len() == count).unwrap_or(vec![value; count])
        };
        let (strides, dilations) = (or("strides", axes, 1), or("dilations", axes, 1));
        let pads = or("pads", 2 * axes, 0);
        let rounds_up = self.int("ceil_mode").unwrap_or(0) != 0;
        let same = match self.node.attributes.get("auto_pad") {
            Some(Attribute::String(kind)) => kind.starts_with("SAME"),
            _ => false,
        };
        for axis in 0..axes {
            let Dim::Known(len) = shape[axis + 2] else {
                shape[axis + 2] = OPEN;
                continue;
            };
            let (len, stride) = (i64::try_from(len).ok()?, strides[axis]);
            let out = if same {
                len.checked_add(stride)?.checked_sub(1)?.checked_div(stride)?
            } else {
                let reach = kernel[axis].checked_sub(1)?.checked_mul(dilations[axis])?;
                let padded = len.checked_add(pads[axis])?.checked_add(pads[axis + axes])?;
                let room = padded.checked_sub(reach)?.checked_sub(1)?;
                let extra = if rounds_up { stride.checked_sub(1)? } else { 0 };
                room.checked_add(extra)?.checked_div(stride)?.checked_add(1)?
            };
            shape[axis + 2] = Dim::Known(usize::try_from(out).ok()?);
        }
        Some(shape)
    }

    fn reshaped(&self) -> Option<Shape> {
        let input = self.shape(0)?;
        let copies = self.int("allowzero").unwrap_or(0) == 0;
        let wanted = self.constant(1)?;
        let length = |(axis, &length): (usize, &i64)| match length {
            -1 => Some(OPEN),
            0 if copies => input.get(axis).cloned(),
            length => usize::try_from(length).ok().map(Dim::Known),
        };
        let mut shape = wanted.iter().enumerate().map(length).collect::<Option<Shape>>()?;
        let Some(open) = wanted.iter().position(|&length| length == -1) else { return Some(shape) };
        // What is copied on both sides cancels; the rest must be numbers.
        let cancels = |axis: &usize| *axis < input.len() && wanted.get(*axis) == Some(&0) && copies;
        let rest = |dims: &[Dim], left_out: Option<usize>| {
            let axes = (0..dims.len()).filter(|axis| !cancels(axis) && Some(*axis) != left_out);
            product(&axes.map(|axis| dims[axis].clone()).collect::<Vec<_>>())
        };
        if let (Dim::Known(from), Dim::Known(to)) = (rest(&input, None), rest(&shape, Some(open))) {
            shape[open] = Dim::Known(from.checked_div(to)?);
        }
        Some(shape)
    }

    fn joined(&self) -> Option<Shape> {
        let mut shape = self.shape(0)?;
        let axis = wrapped(self.int("axis")?, shape.len())?;
        for index in 1..self.node.inputs.len() {
            let other = self.shape(index)?;
            let sum = match (&shape[axis], other.get(axis)?) {
                (Dim::Known(a), Dim::Known(b)) => Dim::Known(a.checked_add(*b)?),
                _ => OPEN,
            };
            shape[axis] = sum;
        }
        Some(shape)
    }

    fn squeezed(&self) -> Option<Shape> {
        let shape = self.shape(0)?;
        let axes = self.constant(1).or_else(|| self.ints("axes"))?;
        let is_squeeze = self.node.op == "Squeeze";
        let rank = if is_squeeze { shape.len() } else { shape.len() + axes.len() };
        let axes: Vec<usize> =
            axes.iter().map(|&axis| wrapped(axis, rank)).collect::<Option<_>>()?;
        if is_squeeze {
            let kept = shape.into_iter().enumerate().filter(|(axis, _)| !axes.contains(axis));
            return Some(kept.map(|(_, dim)| dim).collect());
        }
        let mut kept = shape.into_iter();
        let dim = |axis| if axes.contains(&axis) { Some(Dim::Known(1)) } else { kept.next() };
        (0..rank).map(dim).collect()
    }
}

/// The product of lengths; open when one of them is, and it is not alone.
fn product(dims: &[Dim]) -> Dim {
    if let [alone] = dims {
        return alone.clone();
    }
    let known = dims.iter().try_fold(1_usize, |product, dim| match dim {
        Dim::Known(len) => product.checked_mul(*len),
        Dim::Symbol(_) => None,
    });
    known.map_or(OPEN, Dim::Known)
}

/// An axis from the front, of `rank` of them.
fn wrapped(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(i64::try_from(rank).ok()?)? } else { axis };
    usize::try_from(axis).ok().filter(|&axis| axis < rank)
}
