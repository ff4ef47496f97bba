//! Element-wise expressions of one 8-bit tensor, or of two, whatever operators write them: tables.
//!
//! ```text
//! DequantizeLinear -> Div by 6 -> QuantizeLinear                      one operator and a constant
//! DequantizeLinear -> Div -> Erf -> QuantizeLinear                    floats between them
//! x -> HardSigmoid -> QuantizeLinear -> DequantizeLinear -> Mul by x  steps with roundings between
//! Sub(DequantizeLinear, DequantizeLinear) -> QuantizeLinear           two tensors
//! ```
//!
//! The proof that a table of 256 or 65,536 codes is right is that it has no more entries: every code,
//! or pair, went through the CPU provider's own arithmetic, with each rounding where it has one.

use super::codes::{Codes, SIGN, Table};
use super::form::{Former, closed, is_dequantize};
use super::pair_table::{Arithmetic2, Function2, Table2};
use super::pairs::{Operand, reads_a_tensor_of_constants};
use super::pools::max_window;
use super::signed::{self, Edge, Edges};
use super::terms::{Operation, Term, is_operation, operation};
use super::unit::{Kind, Unit};
use super::vectors::{Meetings, Number, Vector};
use crate::graph::{Dim, ElementType, Graph, Node, NodeId, Tensor, ValueId};
use crate::refusal::{Refusal, refuse};
use npu_uapi::requantise::{AddTerms, MulTerms, dequantise, quantise};
use std::fmt::Display;
use std::sync::Arc;

/// Steps that a tensor's history is followed back, and operators that an expression may nest.
const DEPTH: usize = 16;

/// The unit that writes a value, where it is a table.
pub(super) type Before<'a> = &'a dyn Fn(ValueId) -> Option<&'a Unit>;

/// The unit around the operator `id`, when all that it reads comes from one 8-bit tensor through
/// tables, or from two as they are; `None` when it reads more, or is arithmetic on the codes of two.
///
/// Units before it that only it reads become part of it.
pub(super) fn form(graph: &Graph, id: NodeId, before: Before<'_>) -> Result<Option<Unit>, Refusal> {
    let mut unit = Former::new(graph, id);
    let node = unit.node();
    if reads_a_tensor_of_constants(graph, node) {
        return Ok(None);
    }
    if let Some(before) = kept_only(graph, node) {
        return refuse!(
            UNIT,
            "{node} changes nothing that codes can hold, so the CPU runs {before} without it, which is refused"
        );
    }
    let mut reader = Reader {
        graph,
        nodes: Vec::new(),
        leaves: Vec::new(),
        edges: Vec::new(),
        vectors: Vec::new(),
    };
    let root = reader.operator(node, 0)?;
    let (value, output) = unit.result()?;
    let Reader { mut nodes, leaves, mut edges, vectors, .. } = reader;
    edges.push(signed::edge(graph, value));
    let edges = Edges::of(&edges);
    if leaves.is_empty() {
        return refuse!(UNIT, "{node} reads constants only; fold it");
    }
    if !vectors.is_empty() {
        return with_vectors(unit, &root, nodes, (&leaves, &vectors), (value, edges, output));
    }
    let Some(source) = common_source(&leaves, before) else {
        return pair(unit, &root, nodes, &leaves, (value, edges, output));
    };
    let own = nodes.clone();
    let mut columns = Vec::with_capacity(leaves.len());
    for &leaf in &leaves {
        let (table, passed) = path(leaf, source, before);
        nodes.extend(passed);
        columns.push((leaf, table));
    }
    let mut table = [0; 256];
    for (entry, code) in table.iter_mut().zip(0..=255) {
        let leaf = |value: ValueId| {
            let column = columns.iter().find(|(leaf, _)| *leaf == value);
            column.map_or(code, |(_, table)| table[usize::from(code)])
        };
        *entry = root.code(&leaf, &format_args!("code {code}"), edges, output)?;
    }
    let steps = unit.clone();
    nodes.into_iter().for_each(|node| unit.include(node));
    unit.reads(source);
    let unit = unit.finish(value, Kind::Elementwise(Arc::new(table)));
    let is_merged = leaves.len() > 1 && !leaves.iter().all(|&leaf| leaf == source);
    match closed(graph, unit) {
        // Something between is read elsewhere, so each step stays a unit of its own.
        Err(_) if is_merged => pair(steps, &root, own, &leaves, (value, edges, output)),
        closed => closed.map(Some),
    }
}

/// The unit around `id`, a MaxPool, whose input is an expression of one 8-bit tensor; `None` where it is no
/// such thing.
///
/// Quantisation keeps the order of floats, so the code of the largest is the largest code.
pub(super) fn pooled(
    graph: &Graph,
    id: NodeId,
    before: Before<'_>,
) -> Result<Option<Unit>, Refusal> {
    let mut unit = Former::new(graph, id);
    let node = unit.node();
    let producer = node.input(0).and_then(|value| graph.value(value).producer);
    let Some((producer, inner)) = producer.map(|id| (id, graph.node(id))) else { return Ok(None) };
    if !is_operation(inner) || reads_a_tensor_of_constants(graph, inner) {
        return Ok(None);
    }
    let mut reader = Reader {
        graph,
        nodes: vec![producer],
        leaves: Vec::new(),
        edges: Vec::new(),
        vectors: Vec::new(),
    };
    let root = reader.operator(inner, 0)?;
    let window = max_window(node)?;
    let (value, output) = unit.result()?;
    let Reader { mut nodes, leaves, mut edges, vectors, .. } = reader;
    let Some(source) = common_source(&leaves, before).filter(|_| vectors.is_empty()) else {
        return Ok(None);
    };
    edges.push(signed::edge(graph, value));
    let edges = Edges::of(&edges);
    let mut columns = Vec::with_capacity(leaves.len());
    for &leaf in &leaves {
        let (table, passed) = path(leaf, source, before);
        nodes.extend(passed);
        columns.push((leaf, table));
    }
    let mut table = [0; 256];
    for (entry, code) in table.iter_mut().zip(0..=255) {
        let leaf = |value: ValueId| {
            let column = columns.iter().find(|(leaf, _)| *leaf == value);
            column.map_or(code, |(_, table)| table[usize::from(code)])
        };
        let place = format_args!("code {code}");
        *entry = root.unfused(&leaf, &place, output)?;
        // The CPU provider may quantise before the maximum, and compute the rest on codes then.
        let found = root.code(&leaf, &place, edges, output)?;
        if found != *entry {
            return refuse!(
                SCALE,
                "{inner} comes to code {entry} in floats and to {found} on codes at code {code}; change the scale slightly"
            );
        }
    }
    nodes.into_iter().for_each(|node| unit.include(node));
    unit.reads(source);
    let kind = Kind::MaxPool { before: Some(Arc::new(table)), window, table: None };
    closed(graph, unit.finish(value, kind)).map(Some)
}

/// The operator before an activation that the CPU provider takes away, since the codes behind it hold no
/// more than it lets through. That operator's own unit has the activation in it.
fn kept_only<'g>(graph: &'g Graph, node: &Node) -> Option<&'g Node> {
    let is_activation = node.is("Relu") || node.is("Clip");
    let producer = graph.value(node.input(0)?).producer.filter(|_| is_activation)?;
    let before = graph.node(producer);
    let is_kept = !is_dequantize(before) && Former::new(graph, producer).result().is_ok();
    is_kept.then_some(before)
}

/// The unit of `root` as a function of two tensors; `None` where the CPU provider computes it on codes,
/// or it reads more than two.
fn pair(
    mut unit: Former<'_>,
    root: &Root,
    nodes: Vec<NodeId>,
    leaves: &[ValueId],
    (value, edges, output): (ValueId, Edges, Codes),
) -> Result<Option<Unit>, Refusal> {
    let &[first, second] = leaves else { return Ok(None) };
    if root.operation.is_fused(&root.terms, edges) {
        return Ok(None);
    }
    let table = Table2::try_new(|a, b| {
        let leaf = |value: ValueId| if value == first { a } else { b };
        root.code(&leaf, &format_args!("codes {a} and {b}"), edges, output)
    })?;
    let function = table.function(&root.candidates(output));
    nodes.into_iter().for_each(|node| unit.include(node));
    [first, second].into_iter().for_each(|value| unit.reads(value));
    Ok(Some(unit.finish(value, Kind::Pair { function, constant: None, sum: None })))
}

/// The unit of `root` as a function of one tensor and of constants that differ from element to element.
fn with_vectors(
    mut unit: Former<'_>,
    root: &Root,
    nodes: Vec<NodeId>,
    (leaves, vectors): (&[ValueId], &[Vector]),
    (value, edges, output): (ValueId, Edges, Codes),
) -> Result<Option<Unit>, Refusal> {
    let node = unit.node();
    let &[source] = leaves else {
        return refuse!(
            OPERATOR,
            "{node} is of {} tensors and of constants of several elements; one tensor is taken",
            leaves.len()
        );
    };
    let Meetings { which, different } = Meetings::of(node, vectors)?;
    let mut rows = Vec::with_capacity(different.len());
    for numbers in &different {
        let root = root.with(numbers);
        let mut row = [0; 256];
        for (entry, code) in row.iter_mut().zip(0..=255) {
            *entry = root.code(&|_| code, &format_args!("code {code}"), edges, output)?;
        }
        rows.push(row);
    }
    let entry = |a: u8, k: u8| rows.get(usize::from(k)).map_or(0, |row| row[usize::from(a)]);
    let function = Function2::Table(Table2::new(entry));
    let constant = Some(Operand { tensor: which, is_first: false });
    nodes.into_iter().for_each(|node| unit.include(node));
    unit.reads(source);
    Ok(Some(unit.finish(value, Kind::Pair { function, constant, sum: None })))
}

/// Collects what an expression is made of.
struct Reader<'g> {
    graph: &'g Graph,
    nodes: Vec<NodeId>,
    /// The 8-bit tensors, each once.
    leaves: Vec<ValueId>,
    /// What the CPU provider makes of all 8-bit tensors that are read.
    edges: Vec<Edge>,
    /// Constants of several elements.
    vectors: Vec<Vector>,
}

impl Reader<'_> {
    /// The operator `node` with all that it reads.
    fn operator(&mut self, node: &Node, depth: usize) -> Result<Root, Refusal> {
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
struct Root {
    name: String,
    operation: Operation,
    terms: Vec<Term>,
}

impl Root {
    /// The same with these numbers for the constants of several elements.
    fn with(&self, numbers: &[Number]) -> Self {
        let terms = self.terms.iter().map(|term| term.with(numbers)).collect();
        Self { name: self.name.clone(), operation: self.operation, terms }
    }

    /// The code that the expression comes to where its tensors have the codes that `leaf` gives, which
    /// `place` names.
    fn code(
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
    fn unfused(
        &self,
        leaf: &dyn Fn(ValueId) -> u8,
        place: &dyn Display,
        output: Codes,
    ) -> Result<u8, Refusal> {
        let name = &self.name;
        let operands: Vec<f32> = self.terms.iter().map(|term| term.value(leaf)).collect();
        if operands.iter().any(|operand| operand.is_nan()) {
            return refuse!(UNIT, "{name} reads NaN where its input has {place}");
        }
        let (value, error) = self.operation.apply(&operands);
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
    fn candidates(&self, output: Codes) -> Vec<Arithmetic2> {
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

/// The nearest tensor that all of `leaves` come from through tables.
fn common_source(leaves: &[ValueId], before: Before<'_>) -> Option<ValueId> {
    let (&first, others) = leaves.split_first()?;
    let others: Vec<Vec<ValueId>> = others.iter().map(|&leaf| history(leaf, before)).collect();
    let candidates = if others.is_empty() { vec![first] } else { history(first, before) };
    candidates.into_iter().find(|value| others.iter().all(|line| line.contains(value)))
}

/// `value` and the tensors that it comes from through tables, nearest first.
fn history(value: ValueId, before: Before<'_>) -> Vec<ValueId> {
    let back = |&value: &ValueId| before(value).map(|unit| unit.inputs[0]);
    std::iter::successors(Some(value), back).take(DEPTH).collect()
}

/// The table from codes of `source` to those of `leaf`, and the nodes on the way.
fn path(leaf: ValueId, source: ValueId, before: Before<'_>) -> (Table, Vec<NodeId>) {
    let mut table: [u8; 256] = std::array::from_fn(|code| u8::try_from(code).unwrap_or(u8::MAX));
    let (mut value, mut nodes) = (leaf, Vec::new());
    while value != source {
        let Some(unit) = before(value) else { break };
        let Kind::Elementwise(step) = &unit.kind else { break };
        // `table` leads from `value` to the leaf; one step further back comes first.
        table = std::array::from_fn(|code| table[usize::from(step[code])]);
        nodes.extend(&unit.nodes);
        value = unit.inputs[0];
    }
    (Arc::new(table), nodes)
}
