//! The crate `rten` as host engine: what the NPU does not take runs in Rust, without ONNX Runtime. It
//! rounds otherwise than ONNX Runtime's CPU provider, so a session with it is not exact.
//!
//! ```text
//! whole model, loaded by rten as it is
//! stages: host (what the next group reads) -> group on the NPU -> host -> ... -> host (outputs)
//! ```
//!
//! rten computes of a model what is asked for, from whatever values are given; so nothing is cut out for
//! it. Groups go in an order in which each finds what it reads. It is no more trusted than a model: a panic
//! in it is an error of the run.

use super::error::SessionError;
use super::part::Part;
use super::steps;
use crate::graph::{ElementType, Graph, ValueId};
use crate::partition::Plan;
use crate::run::{Executable, OwnedOutputs, OwnedTensor, RunOptions, RunReport, TensorRef};
use libnpu::{Context, Device, Workers};
use rten::{Model, ModelOptions, NodeId, Value, ValueOrView};
use rten_tensor::{Layout, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// The version of rten that is linked.
pub(super) const NAME: &str = "rten 0.27.0";

/// A model of which rten runs one part and the NPU the others.
#[derive(Debug)]
pub(super) struct Mixed {
    model: Loaded,
    stages: Vec<Stage>,
    /// What rten makes of the model's outputs at the end.
    last: Vec<ValueId>,
    /// The values that cross between rten and the rest, as rten knows them.
    ids: BTreeMap<ValueId, NodeId>,
    timeout: Duration,
    process: u32,
}

struct Loaded(Model);

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Model")
    }
}

/// What rten makes, and then a group that reads it.
#[derive(Debug)]
struct Stage {
    host: Vec<ValueId>,
    executable: Executable,
    reads: Vec<ValueId>,
    writes: Vec<ValueId>,
}

/// A model as its file or its bytes.
#[derive(Debug)]
pub(super) enum Given<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
}

impl Mixed {
    /// Compiles every group of `plan`; rten loads the model.
    pub(super) fn new(
        given: &Given<'_>,
        graph: &Graph,
        plan: &Plan,
        context: &Context,
        device: &Device,
        options: &RunOptions,
    ) -> Result<Self, SessionError> {
        let mut load = ModelOptions::with_all_ops();
        // Values between nodes keep their names.
        load.enable_optimization(false);
        let loaded = guarded(|| match given {
            Given::File(path) => load.load_file(path),
            Given::Bytes(bytes) => load.load(bytes.to_vec()),
        })?;
        let model = loaded.map_err(|error| engine(&error))?;
        let mut waiting = steps::parts(graph, plan)?;
        let mut known: BTreeSet<ValueId> = graph.inputs().iter().copied().collect();
        let mut stages = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            let is_ready =
                |(_, part): &(usize, Part)| is_within_reach(graph, plan, &known, &part.reads);
            let Some(next) = waiting.iter().position(is_ready) else {
                return Err(engine(&"groups of the NPU wait for each other"));
            };
            let (index, Part { graph: part, reads, writes }) = waiting.remove(next);
            let host = missing(graph, &known, &reads);
            known.extend(reads.iter().chain(&writes));
            let executable =
                Executable::new(part, context.clone(), device.clone(), options.clone()).map_err(
                    |source| SessionError::Compile { part: index, source: Box::new(source) },
                )?;
            stages.push(Stage { host, executable, reads, writes });
        }
        let last = missing(graph, &known, graph.outputs());
        let of_stages = stages.iter().flat_map(|stage| stage.reads.iter().chain(&stage.writes));
        let crossing: BTreeSet<ValueId> =
            of_stages.chain(graph.inputs()).chain(&last).copied().collect();
        let mut ids = BTreeMap::new();
        for value in crossing {
            let name = &graph.value(value).name;
            let id = model.node_id(name).map_err(|error| engine(&format!("`{name}`: {error}")))?;
            ids.insert(value, id);
        }
        let (timeout, process) = (options.timeout, std::process::id());
        Ok(Self { model: Loaded(model), stages, last, ids, timeout, process })
    }

    /// Runs the model.
    pub(super) fn run(
        &self,
        graph: &Graph,
        inputs: &[TensorRef<'_>],
        workers: &dyn Workers,
    ) -> Result<(Vec<OwnedTensor>, RunReport), SessionError> {
        if self.process != std::process::id() {
            return Err(engine(
                &"this process was forked from the one that made the session; make one in the child",
            ));
        }
        let started = Instant::now();
        let left = || match self.timeout.saturating_sub(started.elapsed()) {
            Duration::ZERO => Err(SessionError::Late { timeout: self.timeout }),
            left => Ok(left),
        };
        let given = graph.inputs().iter().copied().zip(inputs.iter().map(OwnedTensor::copy_of));
        let mut known: BTreeMap<ValueId, OwnedTensor> = given.collect();
        let mut report = RunReport::default();
        for stage in &self.stages {
            self.host(graph, &stage.host, &mut known)?;
            let reads = stage.reads.iter().map(|read| known.get(read).map(OwnedTensor::as_ref));
            let reads: Option<Vec<TensorRef<'_>>> = reads.collect();
            let reads = reads.expect("the stages are in an order in which inputs are there");
            let mut outputs = OwnedOutputs::default();
            let took = stage.executable.run_until(&reads, &mut outputs, workers, left()?, None)?;
            report.cycles = report.cycles.saturating_add(took.cycles);
            report.copied_bytes = report.copied_bytes.saturating_add(took.copied_bytes);
            known.extend(stage.writes.iter().copied().zip(outputs.into_tensors()));
        }
        self.host(graph, &self.last, &mut known)?;
        left()?;
        let output = |value: &ValueId| match known.get(value) {
            Some(tensor) => OwnedTensor::copy_of(&tensor.as_ref()),
            None => {
                let constant = graph.value(*value).constant.as_ref();
                constant.map(OwnedTensor::from_constant).unwrap_or_default()
            }
        };
        Ok((graph.outputs().iter().map(output).collect(), report))
    }

    /// Has rten make `wanted` of what is known.
    fn host(
        &self,
        graph: &Graph,
        wanted: &[ValueId],
        known: &mut BTreeMap<ValueId, OwnedTensor>,
    ) -> Result<(), SessionError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut given: Vec<(NodeId, ValueOrView<'_>)> = Vec::with_capacity(known.len());
        for (value, tensor) in &*known {
            if let Some(&id) = self.ids.get(value) {
                let name = &graph.value(*value).name;
                given.push((id, ValueOrView::Value(of_tensor(name, tensor)?)));
            }
        }
        let ids: Vec<NodeId> = wanted.iter().map(|value| self.ids[value]).collect();
        let made = guarded(|| self.model.0.run(given, &ids, None))?;
        let made = made.map_err(|error| engine(&error))?;
        for (&value, made) in wanted.iter().zip(&made) {
            let declared = graph.value(value).ty.as_ref().map(|ty| ty.element);
            known.insert(value, to_tensor(&graph.value(value).name, declared, made)?);
        }
        Ok(())
    }
}

/// Those of `values` that are neither known nor constants, each once.
fn missing(graph: &Graph, known: &BTreeSet<ValueId>, values: &[ValueId]) -> Vec<ValueId> {
    let is_missing =
        |value: &&ValueId| !known.contains(value) && graph.value(**value).constant.is_none();
    let missing: BTreeSet<ValueId> = values.iter().filter(is_missing).copied().collect();
    missing.into_iter().collect()
}

/// Whether all of `values` come from what is known through nodes of the host alone.
fn is_within_reach(
    graph: &Graph,
    plan: &Plan,
    known: &BTreeSet<ValueId>,
    values: &[ValueId],
) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = values.to_vec();
    while let Some(value) = open.pop() {
        let found = graph.value(value);
        if known.contains(&value) || found.constant.is_some() || !seen.insert(value) {
            continue;
        }
        let Some(producer) = found.producer else { return false };
        if plan.verdicts[producer.0 as usize].taken.is_some() {
            return false;
        }
        open.extend(graph.node(producer).inputs.iter().flatten());
    }
    true
}

/// Calls `body`, of rten.
fn guarded<R>(body: impl FnOnce() -> R) -> Result<R, SessionError> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason");
        engine(&format!("it panicked: {text}"))
    })
}

fn engine(error: &dyn std::fmt::Display) -> SessionError {
    SessionError::Engine { engine: NAME, message: error.to_string() }
}

/// `tensor` as rten has it: it knows no 64-bit numbers.
fn of_tensor(name: &str, tensor: &OwnedTensor) -> Result<Value, SessionError> {
    let (shape, bytes) = (tensor.shape(), tensor.bytes());
    match tensor.element() {
        ElementType::F32 => value(shape, words(bytes, f32::from_ne_bytes)),
        ElementType::I32 => value(shape, words(bytes, i32::from_ne_bytes)),
        ElementType::U8 => value(shape, bytes.to_vec()),
        ElementType::I8 => value(shape, words(bytes, i8::from_ne_bytes)),
        ElementType::I64 => {
            let narrow = words(bytes, i64::from_ne_bytes).into_iter().map(i32::try_from);
            let narrow: Vec<i32> = narrow.collect::<Result<_, _>>().map_err(|_| {
                engine(&format!("`{name}` has a number beyond 32 bits, which it does not know"))
            })?;
            value(shape, narrow)
        }
        other => Err(engine(&format!("`{name}` is {other}, which it does not know"))),
    }
}

fn value<T>(shape: &[usize], elements: Vec<T>) -> Result<Value, SessionError>
where
    Value: From<Tensor<T>>,
{
    Value::from_shape(shape, elements).map_err(|error| engine(&error))
}

fn words<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|&chunk| read(chunk)).collect()
}

/// What rten made, of the type that the model declares where that is known.
fn to_tensor(
    name: &str,
    declared: Option<ElementType>,
    made: &Value,
) -> Result<OwnedTensor, SessionError> {
    let (found, shape, bytes) = if let Some(view) = made.as_tensor_view::<f32>() {
        (ElementType::F32, view.shape().to_vec(), spread(view.iter(), |v| v.to_ne_bytes()))
    } else if let Some(view) = made.as_tensor_view::<u8>() {
        (ElementType::U8, view.shape().to_vec(), spread(view.iter(), |v| [v]))
    } else if let Some(view) = made.as_tensor_view::<i8>() {
        (ElementType::I8, view.shape().to_vec(), spread(view.iter(), |v| v.to_ne_bytes()))
    } else if let Some(view) = made.as_tensor_view::<i32>() {
        let shape = view.shape().to_vec();
        match declared {
            Some(ElementType::I64) => {
                let wide = spread(view.iter(), |v| i64::from(v).to_ne_bytes());
                (ElementType::I64, shape, wide)
            }
            _ => (ElementType::I32, shape, spread(view.iter(), |v| v.to_ne_bytes())),
        }
    } else {
        return Err(engine(&format!("`{name}` is a sequence, which no tensor is made of")));
    };
    match declared {
        Some(declared) if declared != found => {
            Err(engine(&format!("`{name}` came out as {found}, the model declares {declared}")))
        }
        _ => Ok(OwnedTensor::copy_of(&TensorRef::from_bytes(found, &shape, &bytes))),
    }
}

fn spread<'v, T: Copy + 'v, const N: usize>(
    values: impl Iterator<Item = &'v T>,
    bytes: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    values.flat_map(|&value| bytes(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::proto;
    use crate::session::{Fallback, HostEngine, Session};
    use prost::Message;

    const DIGITS: &[u8] = include_bytes!("../../../tests/models/digits.qdq.onnx");

    fn digits() -> proto::Model {
        proto::Model::decode(DIGITS).unwrap()
    }

    fn node(op: &str, input: &str, output: &str) -> proto::Node {
        proto::Node {
            input: vec![input.to_owned()],
            output: vec![output.to_owned()],
            name: Some(format!("{op} on the host")),
            op_type: Some(op.to_owned()),
            ..proto::Node::default()
        }
    }

    /// The digits with a Floor before and one behind what the NPU takes.
    fn floored() -> Vec<u8> {
        let mut model = digits();
        let graph = model.graph.as_mut().unwrap();
        let (input, output) = (graph.input[0].name().to_owned(), graph.output[0].name().to_owned());
        for name in graph.node.iter_mut().flat_map(|node| node.input.iter_mut()) {
            if *name == input {
                *name = "floored".to_owned();
            }
        }
        graph.node.insert(0, node("Floor", &input, "floored"));
        graph.node.push(node("Floor", &output, "last"));
        graph.output[0].name = Some("last".to_owned());
        model.encode_to_vec()
    }

    fn session(model: Vec<u8>) -> Result<Session, SessionError> {
        let device = Device::open("sim").unwrap();
        let builder = Session::builder(&device).fallback(Fallback::Host(HostEngine::Rten));
        builder.load_bytes(model)
    }

    #[test]
    fn the_host_runs_what_stands_before_and_behind_the_npu() {
        let session = session(floored()).unwrap();
        assert!(!session.is_exact());
        assert_eq!(session.host_engine().as_deref(), Some(NAME));
        assert_eq!(session.plan().groups.len(), 1, "{}", session.explain().summary);
        let device = Device::open("sim").unwrap();
        let whole = Session::builder(&device).load_bytes(DIGITS).unwrap();
        let mut noise = crate::testing::Noise(5);
        for batch in [1, 3] {
            let image: Vec<f32> = (0..batch * 28 * 28).map(|_| noise.float()).collect();
            let floor: Vec<f32> = image.iter().map(|value| value.floor()).collect();
            let shape = [batch, 1, 28, 28];
            let found = session.run(&[TensorRef::from_f32(&shape, &image)]).unwrap();
            let want = whole.run(&[TensorRef::from_f32(&shape, &floor)]).unwrap();
            let want = want.outputs[0].as_f32().unwrap();
            let want: Vec<f32> = want.iter().map(|value| value.floor()).collect();
            assert_eq!(found.outputs[0].as_f32().unwrap(), want);
            assert_eq!(found.outputs[0].shape(), [batch, 10]);
            assert!(found.report.cycles > 0);
        }
    }

    #[test]
    fn an_operator_that_it_does_not_know_is_an_error() {
        let mut model = digits();
        let graph = model.graph.as_mut().unwrap();
        let output = graph.output[0].name().to_owned();
        graph.node.push(node("NobodyKnows", &output, "last"));
        graph.output[0].name = Some("last".to_owned());
        let error = session(model.encode_to_vec()).unwrap_err().to_string();
        assert!(error.starts_with(NAME) && error.contains("NobodyKnows"), "{error}");
    }

    #[test]
    fn numbers_beyond_what_it_knows_are_named() {
        let bytes: Vec<u8> = [1_i64, 1 << 40].iter().flat_map(|n| n.to_ne_bytes()).collect();
        let tensor = OwnedTensor::copy_of(&TensorRef::from_bytes(ElementType::I64, &[2], &bytes));
        let error = of_tensor("ids", &tensor).unwrap_err().to_string();
        assert!(error.contains("`ids`") && error.contains("32 bits"), "{error}");
    }
}
