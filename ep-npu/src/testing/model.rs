//! Quantised models, operator by operator, as a plugin sees them: every reader has its own
//! DequantizeLinear, every operator its QuantizeLinear.

use super::{Noise, builder};
use crate::graph::{
    Attribute, Dim, ElementType, Graph, GraphBuilder, Node, Tensor, TensorType, ValueId,
};
use crate::quantize::{Codes, SIGN};

/// A model under construction.
#[derive(Debug)]
pub(crate) struct Model {
    builder: GraphBuilder,
    names: usize,
    outputs: Vec<ValueId>,
    /// Whether activations are int8.
    signed: bool,
    /// Whether weights are uint8, with zero points.
    asymmetric: bool,
    pub(crate) noise: Noise,
}

/// An 8-bit tensor of a model; its shape is for a batch of 1.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) value: ValueId,
    pub(crate) codes: Codes,
    pub(crate) shape: Vec<usize>,
}

/// Weights of an operator.
#[derive(Clone, Debug)]
pub(crate) struct Weighted {
    pub(crate) shape: Vec<usize>,
    /// Dimension of the output channels.
    pub(crate) axis: usize,
    pub(crate) per_channel: bool,
    pub(crate) with_bias: bool,
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            builder: builder(),
            names: 0,
            outputs: Vec::new(),
            signed: false,
            asymmetric: false,
            noise: Noise(seed),
        }
    }

    /// A model whose activations are int8. Codes are still told as they are moved to unsigned.
    pub(crate) fn signed(seed: u64) -> Self {
        Self { signed: true, ..Self::new(seed) }
    }

    /// A model whose weights are uint8, with zero points.
    pub(crate) fn asymmetric(seed: u64) -> Self {
        Self { asymmetric: true, ..Self::new(seed) }
    }

    fn name(&mut self, stem: &str) -> String {
        self.names += 1;
        format!("{stem}{}", self.names)
    }

    fn input(&mut self, element: ElementType, shape: &[usize]) -> ValueId {
        let name = self.name("input");
        let value = self.builder.value(&name);
        self.builder.add_input(value);
        let known = shape[1..].iter().map(|&len| Dim::Known(len));
        let shape = std::iter::once(Dim::Symbol("batch".to_owned())).chain(known).collect();
        self.builder.set_type(value, TensorType { element, shape: Some(shape) });
        value
    }

    /// A float input, quantised.
    pub(crate) fn float_input(&mut self, shape: &[usize], codes: Codes) -> Flow {
        let value = self.input(ElementType::F32, shape);
        let value = self.quantize(value, codes);
        Flow { value, codes, shape: shape.to_vec() }
    }

    /// An input of codes.
    pub(crate) fn code_input(&mut self, shape: &[usize], codes: Codes) -> Flow {
        let element = if self.signed { ElementType::I8 } else { ElementType::U8 };
        let value = self.input(element, shape);
        Flow { value, codes, shape: shape.to_vec() }
    }

    /// Random codes for a tensor.
    pub(crate) fn codes(&mut self) -> Codes {
        let step = f32::from(self.noise.byte()) / 255.0;
        let zero_point = self.noise.pick(&[0, 128, 255, 3, 117]);
        Codes { scale: 0.01 + 0.05 * step, zero_point }
    }

    /// A constant.
    pub(crate) fn constant(
        &mut self,
        element: ElementType,
        shape: &[usize],
        bytes: Vec<u8>,
    ) -> ValueId {
        let name = self.name("constant");
        let value = self.builder.value(&name);
        let tensor = Tensor { element, shape: shape.to_vec(), bytes: bytes.into() };
        self.builder.set_constant(value, tensor).expect("the constant fills its shape");
        value
    }

    /// A node with one output.
    pub(crate) fn node(
        &mut self,
        op: &str,
        inputs: &[ValueId],
        attributes: &[(&str, Attribute)],
    ) -> ValueId {
        self.nodes(op, inputs, 1, attributes)[0]
    }

    /// A node with several outputs.
    pub(crate) fn nodes(
        &mut self,
        op: &str,
        inputs: &[ValueId],
        count: usize,
        attributes: &[(&str, Attribute)],
    ) -> Vec<ValueId> {
        let name = self.name(&op.to_lowercase());
        let label = |index: usize| match count {
            1 => format!("{name}.out"),
            _ => format!("{name}.out{index}"),
        };
        let outputs = (0..count).map(|index| self.builder.value(&label(index)));
        let outputs: Vec<ValueId> = outputs.collect();
        let node = Node {
            name,
            op: op.to_owned(),
            domain: String::new(),
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: outputs.iter().copied().map(Some).collect(),
            attributes: attributes
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        };
        self.builder.add_node(node).expect("inputs exist");
        outputs
    }

    /// QuantizeLinear.
    pub(crate) fn quantize(&mut self, value: ValueId, codes: Codes) -> ValueId {
        let (scale, zero_point) = self.parameters(codes);
        self.node("QuantizeLinear", &[value, scale, zero_point], &[])
    }

    /// DequantizeLinear.
    pub(crate) fn dequantize(&mut self, flow: &Flow) -> ValueId {
        let (scale, zero_point) = self.parameters(flow.codes);
        self.node("DequantizeLinear", &[flow.value, scale, zero_point], &[])
    }

    fn parameters(&mut self, codes: Codes) -> (ValueId, ValueId) {
        let scale = codes.scale.to_le_bytes().to_vec();
        let scale = self.constant(ElementType::F32, &[], scale);
        let (element, zero_point) = match self.signed {
            true => (ElementType::I8, codes.zero_point ^ SIGN),
            false => (ElementType::U8, codes.zero_point),
        };
        (scale, self.constant(element, &[], vec![zero_point]))
    }

    /// An operator between 8-bit tensors, without constants.
    pub(crate) fn unit(
        &mut self,
        op: &str,
        inputs: &[&Flow],
        attributes: &[(&str, Attribute)],
        (codes, shape): (Codes, &[usize]),
    ) -> Flow {
        let read: Vec<ValueId> = inputs.iter().map(|flow| self.dequantize(flow)).collect();
        let result = self.node(op, &read, attributes);
        Flow { value: self.quantize(result, codes), codes, shape: shape.to_vec() }
    }

    /// As [`Model::unit`], with a Relu before the result becomes codes that hold nothing below zero.
    pub(crate) fn rectified(
        &mut self,
        op: &str,
        inputs: &[&Flow],
        (scale, shape): (f32, &[usize]),
    ) -> Flow {
        let read: Vec<ValueId> = inputs.iter().map(|flow| self.dequantize(flow)).collect();
        let result = self.node(op, &read, &[]);
        let result = self.node("Relu", &[result], &[]);
        let codes = Codes { scale, zero_point: 0 };
        Flow { value: self.quantize(result, codes), codes, shape: shape.to_vec() }
    }

    /// Conv, Gemm or MatMul with random weights.
    pub(crate) fn weighted(
        &mut self,
        op: &str,
        input: &Flow,
        weighted: &Weighted,
        attributes: &[(&str, Attribute)],
        (codes, shape): (Codes, &[usize]),
    ) -> Flow {
        let channels = weighted.shape[weighted.axis];
        let count: usize = weighted.shape.iter().product();
        let weights: Vec<u8> = (0..count).map(|_| self.noise.byte()).collect();
        let scales = if weighted.per_channel { channels } else { 1 };
        // About as large as makes the sums fill the codes.
        let reduction = (count / channels) as f32;
        let base = codes.scale / input.codes.scale / (60.0 * reduction.sqrt());
        let scales: Vec<f32> =
            (0..scales).map(|_| base * (0.5 + f32::from(self.noise.byte()) / 255.0)).collect();
        let bytes = |floats: &[f32]| floats.iter().flat_map(|f| f.to_le_bytes()).collect();
        let shape_of: &[usize] = if weighted.per_channel { &[channels] } else { &[] };
        let element = if self.asymmetric { ElementType::U8 } else { ElementType::I8 };
        let weights = self.constant(element, &weighted.shape, weights);
        let scale = self.constant(ElementType::F32, shape_of, bytes(&scales));
        let zero = |_: &f32| if self.asymmetric { self.noise.byte() / 4 + 96 } else { 0 };
        let zero_points = scales.iter().map(zero).collect();
        let zero_point = self.constant(element, shape_of, zero_points);
        let axis = [("axis", Attribute::Int(i64::try_from(weighted.axis).unwrap()))];
        let weights = self.node("DequantizeLinear", &[weights, scale, zero_point], &axis);
        let read = self.dequantize(input);
        let mut inputs = vec![read, weights];
        if weighted.with_bias {
            let bias = (0..channels)
                .flat_map(|_| (i32::from(self.noise.byte()) * 16 - 2048).to_le_bytes())
                .collect();
            let bias = self.constant(ElementType::I32, &[channels], bias);
            let sums: Vec<f32> = scales.iter().map(|scale| input.codes.scale * scale).collect();
            let scale = self.constant(ElementType::F32, &[sums.len()], bytes(&sums));
            let axis = [("axis", Attribute::Int(0))];
            inputs.push(self.node("DequantizeLinear", &[bias, scale], &axis));
        }
        let result = self.node(op, &inputs, attributes);
        Flow { value: self.quantize(result, codes), codes, shape: shape.to_vec() }
    }

    /// Makes the codes of `flow` an output.
    pub(crate) fn code_output(&mut self, flow: &Flow) {
        self.outputs.push(flow.value);
    }

    /// Makes what `flow` stands for an output.
    pub(crate) fn float_output(&mut self, flow: &Flow) {
        let value = self.dequantize(flow);
        self.outputs.push(value);
    }

    /// Makes `value` an output.
    pub(crate) fn output(&mut self, value: ValueId) {
        self.outputs.push(value);
    }

    /// Declares another type for `value`.
    pub(crate) fn set_type(&mut self, value: ValueId, ty: TensorType) {
        self.builder.set_type(value, ty);
    }

    /// The model.
    pub(crate) fn finish(mut self) -> Graph {
        self.outputs.dedup();
        for output in std::mem::take(&mut self.outputs) {
            self.builder.add_output(output);
        }
        self.builder.finish().expect("outputs exist")
    }
}
