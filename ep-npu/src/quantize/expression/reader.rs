//! Reads the operators of an expression, and computes it as the CPU provider does.

use super::DEPTH;
use crate::graph::{Dim, ElementType, Graph, Node, NodeId, Tensor, ValueId};
use crate::quantize::codes::{Codes, SIGN};
use crate::quantize::form::is_dequantize;
use crate::quantize::pair_table::Arithmetic2;
use crate::quantize::signed::{self, Edge, Edges};
use crate::quantize::terms::{Operation, Term, is_operation, operation};
use crate::quantize::vectors::{Number, Vector};
use crate::refusal::{Refusal, refuse};
use npu_uapi::requantise::{AddTerms, MulTerms, dequantise, quantise};
use std::fmt::Display;

/// Collects what an expression is made of.
pub(super) struct Reader<'g> {
    graph: &'g Graph,
    /// The operators and the DequantizeLinears that they read.
    pub(super) nodes: Vec<NodeId>,
    /// The 8-bit tensors, each once.
    pub(super) leaves: Vec<ValueId>,
    /// What the CPU provider makes of all 8-bit tensors that are read.
    pub(super) edges: Vec<Edge>,
    /// Constants of several elements.
    pub(super) vectors: Vec<Vector>,
}

impl<'g> Reader<'g> {
    /// One that has met `nodes` and none of what they read.
    pub(super) fn new(graph: &'g Graph, nodes: Vec<NodeId>) -> Self {
        let (leaves, edges, vectors) = (Vec::new(), Vec::new(), Vec::new());
        Self { graph, nodes, leaves, edges, vectors }
    }

    /// The operator `node`, so many operators before the last, with all that it reads.
    pub(super) fn operator(&mut self, node: &Node, depth: usize) -> Result<Root, Refusal> {
        let (indices, operation) = operation(self.graph, node)?;
        if depth > 0 && !operation.may_nest() {
            return refuse!(
                UNIT,
                "{node} feeds float arithmetic, which the CPU may merge with it; quantise its output"
            );
        }
        let first = self.vectors.len();
        let terms = indices.into_iter().map(|index| self.operand(node, index, depth));
        let terms = terms.collect::<Result<Vec<Term>, Refusal>>()?;
        if operation.is_by_channel() {
            // A number a channel: dimension 1, whatever lies behind it.
            let shape = node.input(0).and_then(|value| self.shape(value));
            let Some((rank, channels)) =
                shape.and_then(|shape| Some((shape.len(), shape.get(1)?.clone())))
            else {
                return refuse!(
                    SHAPE,
                    "{node} reads a tensor of unknown rank; run shape inference"
                );
            };
            let is_single = |term: &Term| matches!(term, Term::Constant { .. });
            if channels != Dim::Known(1) && terms.iter().any(is_single) {
                // One number for several channels is nothing that the CPU takes.
                return refuse!(
                    SHAPE,
                    "{node} has constants of one number, and dimension 1 of its input is not declared to be 1; give each of them a number"
                );
            }
            for vector in &mut self.vectors[first..] {
                if vector.shape.len() != 1 {
                    return refuse!(SHAPE, "{node} reads a constant of shape {:?}", vector.shape);
                }
                vector.shape.extend(std::iter::repeat_n(1, rank - 2));
            }
        }
        Ok(Root { name: node.to_string(), operation, terms })
    }

    fn operand(&mut self, node: &Node, index: usize, depth: usize) -> Result<Term, Refusal> {
        let graph = self.graph;
        let Some(value) = node.input(index) else {
            return refuse!(UNIT, "{node} has no input {index}");
        };
        let found = graph.value(value);
        if let Some(constant) = &found.constant {
            if constant.len() != 1 {
                let Some(values) =
                    constant.as_f32().filter(|all| all.iter().all(|v| v.is_finite()))
                else {
                    return refuse!(
                        ELEMENT_TYPE,
                        "{node} reads {constant:?}; finite float32 is taken"
                    );
                };
                let numbers = values.iter().map(|&value| (value, None)).collect();
                return Ok(self.vector(constant, numbers));
            }
            return Ok(Term::Constant { value: self.scalar(node, constant)?, quantised: None });
        }
        let name = &found.name;
        let Some(producer) = found.producer else {
            return refuse!(UNIT, "{node} reads `{name}` as float; quantise it");
        };
        let before = graph.node(producer);
        self.nodes.push(producer);
        if is_dequantize(before) {
            return self.dequantised(node, before);
        }
        if depth == DEPTH {
            return refuse!(UNIT, "{node} stands behind {DEPTH} float operators");
        }
        if !is_operation(before) {
            return refuse!(UNIT, "{node} reads `{name}` as float; quantise it");
        }
        let root = self.operator(before, depth + 1)?;
        Ok(Term::Nested(Box::new((root.operation, root.terms))))
    }

    fn dequantised(&mut self, node: &Node, dequantize: &Node) -> Result<Term, Refusal> {
        let Some(source) = dequantize.input(0) else {
            return refuse!(UNIT, "{dequantize} has no input");
        };
        if let Some(constant) = &self.graph.value(source).constant
            && let Some(codes) = constant.as_i32()
        {
            return self.wide(dequantize, constant, &codes);
        }
        let codes = signed::codes(self.graph, dequantize, source)?;
        self.edges.push(signed::edge(self.graph, source));
        let Some(constant) = &self.graph.value(source).constant else {
            if !self.leaves.contains(&source) {
                self.leaves.push(source);
            }
            return Ok(Term::Leaf { value: source, codes });
        };
        let moved = match constant.element {
            ElementType::U8 => 0,
            ElementType::I8 => SIGN,
            found => {
                return refuse!(
                    ELEMENT_TYPE,
                    "{node} reads a constant of {found}; uint8 and int8 are taken"
                );
            }
        };
        let number = |&code: &u8| {
            let code = code ^ moved;
            (dequantise(code, codes.scale, codes.zero_point), Some((codes, code)))
        };
        if constant.len() != 1 {
            let numbers = constant.bytes.iter().map(number).collect();
            return Ok(self.vector(constant, numbers));
        }
        let (value, quantised) = number(&self.single(node, constant)?.bytes[0]);
        Ok(Term::Constant { value, quantised })
    }

    /// A constant of 32-bit codes, as quantisers make of a bias.
    fn wide(
        &mut self,
        dequantize: &Node,
        constant: &Tensor,
        codes: &[i32],
    ) -> Result<Term, Refusal> {
        let scales = self.graph.constant(dequantize, 1).and_then(Tensor::as_f32);
        let zero = self.graph.constant(dequantize, 2);
        let is_zero = zero.is_none_or(|zero| zero.bytes.iter().all(|&byte| byte == 0));
        let Some(&[scale]) = scales.as_deref().filter(|_| is_zero) else {
            return refuse!(
                SCALE,
                "{dequantize} has int32 codes with {:?} scales or a zero point; one scale and 0 are taken",
                scales.map(|scales| scales.len())
            );
        };
        #[expect(clippy::cast_precision_loss, reason = "as DequantizeLinear rounds int32")]
        let numbers: Vec<Number> = codes.iter().map(|&code| (code as f32 * scale, None)).collect();
        if numbers.iter().any(|(value, _)| !value.is_finite()) {
            return refuse!(SCALE, "{dequantize} has scale {scale:e}; finite values are taken");
        }
        match numbers.as_slice() {
            &[(value, quantised)] => {
                self.single(dequantize, constant)?;
                Ok(Term::Constant { value, quantised })
            }
            _ => Ok(self.vector(constant, numbers)),
        }
    }

    fn vector(&mut self, constant: &Tensor, numbers: Vec<Number>) -> Term {
        self.vectors.push(Vector { shape: constant.shape.clone(), numbers });
        Term::Vector(self.vectors.len() - 1)
    }

    /// Dimensions of `value`, or of the codes that it is dequantised from.
    fn shape(&self, value: ValueId) -> Option<&[Dim]> {
        let own = |value: ValueId| self.graph.value(value).ty.as_ref()?.shape.as_deref();
        let source = || self.graph.node(self.graph.value(value).producer?).input(0);
        own(value).or_else(|| source().and_then(own))
    }

    /// The only element of a float constant.
    fn scalar(&self, node: &Node, constant: &Tensor) -> Result<f32, Refusal> {
        match self.single(node, constant)?.as_f32().as_deref() {
            Some(&[value]) if value.is_finite() => Ok(value),
            Some(&[value]) => {
                refuse!(SCALE, "{node} reads the constant {value}; it must be finite")
            }
            _ => refuse!(ELEMENT_TYPE, "{node} reads {constant:?}; float32 constants are taken"),
        }
    }

    /// `constant`, when it has one element and gives the result no further dimensions.
    fn single<'t>(&self, node: &Node, constant: &'t Tensor) -> Result<&'t Tensor, Refusal> {
        if constant.len() != 1 {
            return refuse!(
                SHAPE,
                "{node} reads a constant of shape {:?}; one number for all elements is taken",
                constant.shape
            );
        }
        let rank =
            |value: ValueId| Some(self.graph.value(value).ty.as_ref()?.shape.as_ref()?.len());
        let flowing = node.inputs.iter().flatten().copied();
        let flowing = flowing.filter(|&value| self.graph.value(value).constant.is_none());
        let most = flowing.filter_map(rank).max().unwrap_or(0);
        if constant.shape.len() > most {
            return refuse!(
                SHAPE,
                "{node} reads a constant of shape {:?}, which has more dimensions than its other input; give it fewer",
                constant.shape
            );
        }
        Ok(constant)
    }
}

/// The last operator of an expression.
pub(super) struct Root {
    name: String,
    pub(super) operation: Operation,
    pub(super) terms: Vec<Term>,
}

impl Root {
    /// The same with these numbers for the constants of several elements.
    pub(super) fn with(&self, numbers: &[Number]) -> Self {
        let terms = self.terms.iter().map(|term| term.with(numbers)).collect();
        Self { name: self.name.clone(), operation: self.operation, terms }
    }

    /// The code that the expression comes to where its tensors have the codes that `leaf` gives, which
    /// `place` names.
    pub(super) fn code(
        &self,
        leaf: &dyn Fn(ValueId) -> u8,
        place: &dyn Display,
        edges: Edges,
        output: Codes,
    ) -> Result<u8, Refusal> {
        let name = &self.name;
        match self.operation.fused(&self.terms, leaf, edges, output) {
            Some(Ok(code)) => Ok(code),
            Some(Err(found)) => {
                refuse!(SCALE, "{name} has scales that come to a factor of {found}")
            }
            None => self.unfused(leaf, place, output),
        }
    }

    /// The same, where the CPU provider computes it in floats.
    pub(super) fn unfused(
        &self,
        leaf: &dyn Fn(ValueId) -> u8,
        place: &dyn Display,
        output: Codes,
    ) -> Result<u8, Refusal> {
        let code = self.torn(leaf, place, output, 0.0)?;
        if self.terms.iter().any(Term::may_tie) && self.torn(leaf, place, output, -0.0)? != code {
            let name = &self.name;
            return refuse!(
                UNIT,
                "{name} depends at {place} on the sign of a zero, which the CPU's Max and Min choose by where in memory it lies"
            );
        }
        Ok(code)
    }

    /// The same, with `tie` as of [`Operation::apply`].
    fn torn(
        &self,
        leaf: &dyn Fn(ValueId) -> u8,
        place: &dyn Display,
        output: Codes,
        tie: f32,
    ) -> Result<u8, Refusal> {
        let name = &self.name;
        let operands: Vec<f32> = self.terms.iter().map(|term| term.value(leaf, tie)).collect();
        if operands.iter().any(|operand| operand.is_nan()) {
            return refuse!(UNIT, "{name} reads NaN where its input has {place}");
        }
        let (value, error) = self.operation.apply(&operands, tie);
        if value.is_nan() && error.is_nan() {
            return refuse!(UNIT, "{name} comes to NaN where its input has {place}");
        }
        let found = quantise(value, output.scale, output.zero_point);
        // Where only a bound of the provider's error is known, both ends must have the same code.
        let ends = [value - error, value + error];
        if error > 0.0
            && ends.iter().any(|&end| quantise(end, output.scale, output.zero_point) != found)
        {
            return refuse!(
                SCALE,
                "{name} comes so near a rounding tie at {place} that the CPU's code is not certain; change the scale slightly"
            );
        }
        Ok(found)
    }

    /// Arithmetic of the device that may come to the same codes.
    pub(super) fn candidates(&self, output: Codes) -> Vec<Arithmetic2> {
        let [Term::Leaf { codes: first, .. }, Term::Leaf { codes: second, .. }] =
            self.terms.as_slice()
        else {
            return Vec::new();
        };
        let pair = |codes: &Codes| (codes.scale, codes.zero_point);
        let (first, second, result) = (pair(first), pair(second), pair(&output));
        match self.operation {
            Operation::Add => vec![Arithmetic2::Add(AddTerms::new(first, second, result))],
            Operation::Sub => {
                let negative = (-second.0, second.1);
                vec![Arithmetic2::Add(AddTerms::new(first, negative, result))]
            }
            Operation::Mul => vec![Arithmetic2::Multiply(MulTerms::new(first, second, result))],
            _ => Vec::new(),
        }
    }
}
