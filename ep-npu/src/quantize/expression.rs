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

mod reader;

use self::reader::{Reader, Root};
use super::codes::{Codes, Table};
use super::form::{Former, closed, is_dequantize};
use super::pair_table::{Function2, Table2};
use super::pairs::{Operand, reads_a_tensor_of_constants};
use super::pools::max_window;
use super::signed::{self, Edges};
use super::terms::is_operation;
use super::unit::{Kind, Unit};
use super::vectors::{Meetings, Vector};
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::refusal::{Refusal, refuse};
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
    let mut reader = Reader::new(graph, Vec::new());
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
    let columns = Columns::new(&leaves, source, before, &mut nodes);
    let mut table = [0; 256];
    for (entry, code) in table.iter_mut().zip(0..=255) {
        let leaf = |value| columns.code(value, code);
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
    let mut reader = Reader::new(graph, vec![producer]);
    let root = reader.operator(inner, 0)?;
    let window = max_window(node)?;
    let (value, output) = unit.result()?;
    let Reader { mut nodes, leaves, mut edges, vectors, .. } = reader;
    let Some(source) = common_source(&leaves, before).filter(|_| vectors.is_empty()) else {
        return Ok(None);
    };
    edges.push(signed::edge(graph, value));
    let edges = Edges::of(&edges);
    let columns = Columns::new(&leaves, source, before, &mut nodes);
    let mut table = [0; 256];
    for (entry, code) in table.iter_mut().zip(0..=255) {
        let leaf = |value| columns.code(value, code);
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

/// What each tensor that an expression reads holds where the one that all are made of holds a code.
struct Columns(Vec<(ValueId, Table)>);

impl Columns {
    /// Those of `leaves`, made of `source`; the nodes on the way go to `nodes`.
    fn new(
        leaves: &[ValueId],
        source: ValueId,
        before: Before<'_>,
        nodes: &mut Vec<NodeId>,
    ) -> Self {
        let column = |&leaf: &ValueId| {
            let (table, passed) = path(leaf, source, before);
            nodes.extend(passed);
            (leaf, table)
        };
        Self(leaves.iter().map(column).collect())
    }

    /// The code of `leaf` where the source has `code`.
    fn code(&self, leaf: ValueId, code: u8) -> u8 {
        let column = self.0.iter().find(|(value, _)| *value == leaf);
        column.map_or(code, |(_, table)| table[usize::from(code)])
    }
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
