//! The parts of a model in an order in which each finds what it reads.

use super::error::SessionError;
use super::part::Part;
use crate::graph::{ElementType, Graph, ValueId};
use crate::partition::Plan;
use crate::program::{CompileError, Edge};
use crate::run::{
    Executable, OwnedOutputs, OwnedTensor, RunError, RunOptions, RunReport, TensorRef,
};
use libnpu::{Context, Device, Workers};
use std::collections::{BTreeMap, BTreeSet};

/// The steps of a run.
#[derive(Debug)]
pub(super) struct Steps {
    steps: Vec<Step>,
    /// Of a model that is one program: the model's inputs that it reads, in its order, and the
    /// model's outputs that it writes.
    single: Option<(Vec<usize>, Vec<usize>)>,
}

/// One program.
#[derive(Debug)]
struct Step {
    executable: Executable,
    reads: Vec<ValueId>,
    writes: Vec<ValueId>,
}

impl Steps {
    /// Compiles every group of `plan`.
    pub(super) fn new(
        graph: &Graph,
        plan: &Plan,
        context: &Context,
        device: &Device,
        options: &RunOptions,
    ) -> Result<Self, SessionError> {
        let mut waiting = parts(graph, plan)?;
        let mut ready: BTreeSet<ValueId> = graph.inputs().iter().copied().collect();
        let mut steps = Vec::with_capacity(waiting.len());
        // Groups are convex, so that some group can always go next.
        while !waiting.is_empty() {
            let is_ready = |(_, part): &(usize, Part)| part.reads.iter().all(|v| ready.contains(v));
            let next = waiting.iter().position(is_ready).unwrap_or(0);
            let (index, Part { graph: part, reads, writes }) = waiting.remove(next);
            ready.extend(&writes);
            let executable =
                Executable::new(part, context.clone(), device.clone(), options.clone()).map_err(
                    |source| SessionError::Compile { part: index, source: Box::new(source) },
                )?;
            steps.push(Step { executable, reads, writes });
        }
        let single = single(graph, &steps);
        Ok(Self { steps, single })
    }

    /// The one program of the model, if it is one, with the places of its inputs and outputs among
    /// the model's.
    pub(super) fn single(&self) -> Option<(&Executable, &[usize], &[usize])> {
        let (reads, writes) = self.single.as_ref()?;
        Some((&self.steps.first()?.executable, reads, writes))
    }

    /// Runs every step; gives the outputs of the model.
    pub(super) fn run(
        &self,
        graph: &Graph,
        inputs: &[TensorRef<'_>],
        workers: &dyn Workers,
    ) -> Result<(Vec<OwnedTensor>, RunReport), RunError> {
        let given: BTreeMap<ValueId, TensorRef<'_>> =
            graph.inputs().iter().copied().zip(inputs.iter().copied()).collect();
        let mut made: BTreeMap<ValueId, OwnedTensor> = BTreeMap::new();
        let mut report = RunReport::default();
        for step in &self.steps {
            let reads = step.reads.iter().map(|read| match given.get(read) {
                Some(&tensor) => Some(tensor),
                None => made.get(read).map(OwnedTensor::as_ref),
            });
            let reads: Option<Vec<TensorRef<'_>>> = reads.collect();
            let reads = reads.expect("the steps are in an order in which inputs are there");
            let mut outputs = OwnedOutputs::default();
            let took = step.executable.run(&reads, &mut outputs, workers)?;
            report.cycles = report.cycles.saturating_add(took.cycles);
            report.copied_bytes = report.copied_bytes.saturating_add(took.copied_bytes);
            made.extend(step.writes.iter().copied().zip(outputs.into_tensors()));
        }
        let output = |&value: &ValueId| match (made.remove(&value), given.get(&value)) {
            (Some(tensor), _) => tensor,
            (None, Some(input)) => OwnedTensor::copy_of(input),
            (None, None) => {
                let constant = graph.value(value).constant.as_ref();
                constant.map(OwnedTensor::from_constant).unwrap_or_default()
            }
        };
        Ok((graph.outputs().iter().map(output).collect(), report))
    }
}

/// Every group of `plan`, with its number.
pub(super) fn parts(graph: &Graph, plan: &Plan) -> Result<Vec<(usize, Part)>, SessionError> {
    let mut parts = Vec::with_capacity(plan.groups.len());
    for (index, nodes) in plan.groups.iter().enumerate() {
        let name = match plan.groups.len() {
            1 => graph.name().to_owned(),
            _ => format!("{}.{index}", graph.name()),
        };
        let part = Part::new(graph, nodes, &name)
            .map_err(|source| SessionError::Part { part: index, source })?;
        parts.push((index, part));
    }
    Ok(parts)
}

/// Inputs and outputs of a model, once their shapes are numbers.
type Edges = (Vec<Edge>, Vec<Edge>);

impl Steps {
    /// The inputs and outputs of the model for inputs of these shapes.
    pub(super) fn edges(&self, graph: &Graph, shapes: &[&[usize]]) -> Result<Edges, CompileError> {
        let mut edges: BTreeMap<ValueId, Edge> = BTreeMap::new();
        for (&value, shape) in graph.inputs().iter().zip(shapes) {
            edges.insert(value, declared(graph, value, shape.to_vec()));
        }
        for step in &self.steps {
            let shape = |read| edges.get(read).map(|edge: &Edge| edge.shape.clone());
            let reads: Option<Vec<Vec<usize>>> = step.reads.iter().map(shape).collect();
            let reads = reads.expect("the steps are in an order in which inputs are there");
            let (_, writes) = step.executable.edges(&reads)?;
            edges.extend(step.writes.iter().copied().zip(writes));
        }
        let find = |&value: &ValueId| match (edges.get(&value), &graph.value(value).constant) {
            (Some(edge), _) => edge.clone(),
            (None, Some(constant)) => declared(graph, value, constant.shape.clone()),
            (None, None) => declared(graph, value, Vec::new()),
        };
        Ok((graph.inputs().iter().map(find).collect(), graph.outputs().iter().map(find).collect()))
    }
}

fn declared(graph: &Graph, value: ValueId, shape: Vec<usize>) -> Edge {
    let value = graph.value(value);
    let element = value.ty.as_ref().map_or(ElementType::Other(0), |ty| ty.element);
    Edge { name: value.name.clone(), element, shape }
}

fn single(graph: &Graph, steps: &[Step]) -> Option<(Vec<usize>, Vec<usize>)> {
    let [step] = steps else { return None };
    let place = |values: &[ValueId], value: &ValueId| values.iter().position(|v| v == value);
    let reads: Option<Vec<usize>> =
        step.reads.iter().map(|value| place(graph.inputs(), value)).collect();
    let writes: Option<Vec<usize>> =
        step.writes.iter().map(|value| place(graph.outputs(), value)).collect();
    let (reads, writes) = (reads?, writes?);
    // An output that is an input or a constant is nobody's to write.
    (writes.len() == graph.outputs().len()).then_some((reads, writes))
}
