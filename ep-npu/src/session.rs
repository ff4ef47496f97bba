//! A model, loaded and ready to run, for programs without ONNX Runtime.
//!
//! ```no_run
//! use ep_npu::{Device, Session, TensorRef};
//!
//! let device = Device::open("sim")?;
//! let session = Session::builder(&device).load("model.qdq.onnx")?;
//! let image = vec![0.0_f32; 3 * 224 * 224];
//! let done = session.run(&[TensorRef::from_f32(&[1, 3, 224, 224], &image)])?;
//! println!("{:?} in {} cycles", done.outputs[0].as_f32(), done.report.cycles);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```text
//! file --import--> Graph --partition--> parts --Executable each--> steps, in an order that works
//! run(inputs) -> step: the NPU, or the host engine -> ... -> outputs
//! ```
//!
//! The same importer's form, compiler and runtime as behind ONNX Runtime: the same programs and bytes.
//! A session is shared between threads by reference; what they run at once queues on the device.

mod binding;
mod compare;
mod error;
mod host;
mod left;
mod part;
#[cfg(feature = "rten")]
mod rten;
mod steps;

pub use binding::Binding;
pub use compare::{Comparison, Difference, Reference};
pub use error::{RefusedNode, SessionError};
pub use host::{Fallback, HostEngine, HostError, LibraryError, OrtOptions, Shown};

use crate::exactness::Exactness;
use crate::explain::{self, Explanation};
use crate::graph::{Dim, ElementType, Graph, ValueId, shape_text};
use crate::import;
use crate::ort::SessionContext;
use crate::ort::host::HostSession;
use crate::partition::{self, Plan, PlanOptions};
use crate::run::{
    GivenOutputs, OwnedTensor, RunError, RunOptions, RunReport, TensorMut, TensorRef,
};
use bytes::Bytes;
use host::Shared;
use libnpu::{Caller, Device, Pool, Workers};
use smallvec::SmallVec;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use steps::Steps;

/// What is known of an input or output before a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TensorInfo {
    /// Name in the model.
    pub name: String,
    /// Element type.
    pub element: ElementType,
    /// Shape; open dimensions, such as the batch, by name. `None` when the model does not say.
    pub shape: Option<Vec<Dim>>,
}

/// Inputs, or outputs, up to which a run allocates no lists of them.
const FEW: usize = 8;

/// What a run gives.
#[derive(Debug)]
pub struct Outcome {
    /// One tensor for each of [`Session::outputs`].
    pub outputs: Vec<OwnedTensor>,
    /// What it took.
    pub report: RunReport,
}

/// Who computes, when the device is in this process.
#[derive(Debug)]
enum Threads {
    /// The device's pool, shared by all that use the device.
    Device,
    Caller,
    Own(Pool),
}

impl Threads {
    fn asked(&self) -> Option<NonZeroUsize> {
        match self {
            Self::Device => None,
            Self::Caller => Some(NonZeroUsize::MIN),
            Self::Own(pool) => NonZeroUsize::new(pool.count()),
        }
    }
}

/// Where a model came from.
#[derive(Debug)]
enum Source {
    File(PathBuf),
    Bytes(Bytes),
}

/// Who runs what of it.
#[derive(Debug)]
enum Engine {
    /// The NPU, all.
    Npu(Steps),
    /// ONNX Runtime, with the NPU's programs as operators.
    Shared(Shared),
    /// The NPU and rten, in turn.
    #[cfg(feature = "rten")]
    Mixed(Box<rten::Mixed>),
}

/// What a session shall be; see [`Session::builder`].
#[derive(Debug)]
pub struct Builder {
    device: Device,
    options: RunOptions,
    threads: Threads,
    fallback: Fallback,
    ort: OrtOptions,
    plan_options: PlanOptions,
    exactness: Exactness,
}

/// A model on a device; see the module.
#[derive(Debug)]
pub struct Session {
    graph: Graph,
    plan: Plan,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    engine: Engine,
    threads: Threads,
    device: Device,
    source: Source,
    host: OrtOptions,
    timeout: Duration,
    /// The whole model on ONNX Runtime's CPU provider, once it was compared with.
    reference: OnceLock<HostSession>,
    // Last: what the engine loaded goes before it.
    _context: Arc<SessionContext>,
}

impl Builder {
    /// How long a run may take before it is given up; 60 seconds if not set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Threads that compute: the caller alone for 1, else a pool of the session's own. If not set, the
    /// device's pool, as wide as the process may use.
    pub fn threads(mut self, count: NonZeroUsize) -> Self {
        self.threads = match count.get() {
            1 => Threads::Caller,
            count => Threads::Own(Pool::new(count)),
        };
        self
    }

    /// Programs for different input shapes that are kept; 8 if not set.
    pub fn programs(mut self, count: NonZeroUsize) -> Self {
        self.options.programs = count.get();
        self
    }

    /// A folder where each program is written when it is compiled, as `npu objdump` reads it.
    pub fn dump(mut self, folder: impl Into<PathBuf>) -> Self {
        self.options.dump = Some(folder.into());
        self
    }

    /// Who runs what the NPU does not take; if not set, nobody: loading fails and says why.
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// Leaves to the host engine what is estimated to save less than `gain` on the NPU; see
    /// [`crate::partition::price`]. If not set, no estimate is made.
    pub fn min_gain(mut self, gain: Duration) -> Self {
        self.plan_options.min_gain = Some(gain);
        self
    }

    /// How near to the CPU provider's results must be; the same bits if not set.
    pub fn exactness(mut self, exactness: Exactness) -> Self {
        self.exactness = exactness;
        self
    }

    /// Which ONNX Runtime [`Session::compare_cpu`] compares with, when the host engine is none.
    pub fn ort(mut self, ort: OrtOptions) -> Self {
        self.ort = ort;
        self
    }

    /// Loads the model in the file at `path`, which must not be written while the session is in use.
    ///
    /// # Errors
    /// The file is no model, the NPU does not take all of it, or the device fails.
    pub fn load(self, path: impl AsRef<Path>) -> Result<Session, SessionError> {
        self.from(Source::File(path.as_ref().to_owned()))
    }

    /// Loads the model that `bytes` are; it has no external data.
    ///
    /// # Errors
    /// As for [`Builder::load`].
    pub fn load_bytes(self, bytes: impl Into<Bytes>) -> Result<Session, SessionError> {
        self.from(Source::Bytes(bytes.into()))
    }

    fn from(self, source: Source) -> Result<Session, SessionError> {
        let Self { device, options, threads, fallback, ort, plan_options, exactness } = self;
        let (mut graph, shown, host) = match (&fallback, &source) {
            (Fallback::Deny, Source::File(path)) => (import::file(path)?, None, ort),
            (Fallback::Deny, Source::Bytes(bytes)) => (import::bytes(bytes.clone())?, None, ort),
            #[cfg(feature = "rten")]
            (Fallback::Host(HostEngine::Rten), Source::File(path)) => {
                (import::file(path)?, None, ort)
            }
            #[cfg(feature = "rten")]
            (Fallback::Host(HostEngine::Rten), Source::Bytes(bytes)) => {
                (import::bytes(bytes.clone())?, None, ort)
            }
            (Fallback::Host(HostEngine::Ort(host)), source) => {
                let shown = match source {
                    Source::File(path) => Shown::file(path, host)?,
                    Source::Bytes(bytes) => Shown::bytes(bytes, host)?,
                };
                let (graph, shown) = shown.into_parts();
                (graph, Some(shown), host.clone())
            }
        };
        graph.set_exactness(exactness);
        let plan = partition::plan_with(&graph, device.limits(), plan_options);
        error::check_refused(&graph, &plan, &fallback)?;
        let context = SessionContext::open(&device)?;
        let is_whole = plan.verdicts.iter().all(|verdict| verdict.taken.is_some());
        let engine = match shown.filter(|_| !is_whole) {
            #[cfg(feature = "rten")]
            None if !is_whole => {
                let given = match &source {
                    Source::File(path) => rten::Given::File(path),
                    Source::Bytes(bytes) => rten::Given::Bytes(bytes),
                };
                let of_npu = context.context();
                let mixed = rten::Mixed::new(&given, &graph, &plan, of_npu, &device, &options)?;
                Engine::Mixed(Box::new(mixed))
            }
            None => Engine::Npu(Steps::new(&graph, &plan, context.context(), &device, &options)?),
            Some(shown) => {
                let counts = (threads.asked(), host.threads);
                let of_npu = context.context();
                let shared = Shared::new(shown, &graph, &plan, of_npu, &device, &options, counts)?;
                Engine::Shared(shared)
            }
        };
        let info = |&id: &ValueId| {
            let value = graph.value(id);
            let ty = value.ty.as_ref();
            TensorInfo {
                name: value.name.clone(),
                element: ty.map_or(ElementType::Other(0), |ty| ty.element),
                shape: ty.and_then(|ty| ty.shape.clone()),
            }
        };
        let inputs = graph.inputs().iter().map(info).collect();
        let outputs = graph.outputs().iter().map(info).collect();
        let (timeout, reference, _context) = (options.timeout, OnceLock::new(), context);
        Ok(Session {
            graph,
            plan,
            inputs,
            outputs,
            engine,
            threads,
            device,
            source,
            host,
            timeout,
            reference,
            _context,
        })
    }
}

impl Session {
    /// A session on `device`, to be told what it shall be.
    pub fn builder(device: &Device) -> Builder {
        Builder {
            device: device.clone(),
            options: RunOptions::default(),
            threads: Threads::Device,
            fallback: Fallback::Deny,
            ort: OrtOptions::default(),
            plan_options: PlanOptions::default(),
            exactness: Exactness::default(),
        }
    }

    /// The inputs that a run takes, in order.
    pub fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    /// The outputs that a run gives, in order.
    pub fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The model, as the compiler sees it.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Which nodes run where, by group.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Node by node: taken, or why not and what would change that.
    pub fn explain(&self) -> Explanation {
        explain::explain(&self.graph, &self.plan)
    }

    /// Runs the model. Inputs are in the order of [`Session::inputs`].
    ///
    /// # Errors
    /// An input is not as the model declares it, or the device fails; the session stays usable.
    pub fn run(&self, inputs: &[TensorRef<'_>]) -> Result<Outcome, SessionError> {
        self.check(inputs)?;
        let (outputs, report) = self.made(inputs)?;
        Ok(Outcome { outputs, report })
    }

    /// Runs the model; inputs are found by name.
    ///
    /// # Errors
    /// As for [`Session::run`]; or a name is unknown, missing or there twice.
    pub fn run_named(&self, inputs: &[(&str, TensorRef<'_>)]) -> Result<Outcome, SessionError> {
        let mut ordered = Vec::with_capacity(inputs.len());
        for info in &self.inputs {
            let mut same = inputs.iter().filter(|(name, _)| *name == info.name);
            match (same.next(), same.next()) {
                (Some(&(_, tensor)), None) => ordered.push(tensor),
                _ => return Err(self.no_such("input", &info.name, &self.inputs)),
            }
        }
        let is_known = |name: &str| self.inputs.iter().any(|info| info.name == name);
        match inputs.iter().find(|(name, _)| !is_known(name)) {
            Some((name, _)) => Err(self.no_such("input", name, &self.inputs)),
            None => self.run(&ordered),
        }
    }

    /// Runs the model into tensors of the caller, in the order of [`Session::outputs`].
    ///
    /// Once the shapes have been run before, no memory of a tensor's size is allocated when the NPU
    /// runs all of the model as one program.
    ///
    /// # Errors
    /// As for [`Session::run`]; or an output is not of the type and shape that the model gives.
    pub fn run_into(
        &self,
        inputs: &[TensorRef<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<RunReport, SessionError> {
        self.check(inputs)?;
        if outputs.len() != self.outputs.len() {
            let (found, want) = (outputs.len(), self.outputs.len());
            return Err(SessionError::Outputs { found, want });
        }
        let single = match &self.engine {
            Engine::Npu(steps) => steps.single(),
            Engine::Shared(_) => None,
            #[cfg(feature = "rten")]
            Engine::Mixed(_) => None,
        };
        if let Some((executable, reads, writes)) = single {
            let ordered: SmallVec<[TensorRef<'_>; FEW]> =
                reads.iter().map(|&read| inputs[read]).collect();
            let mut given = GivenOutputs::new(outputs, writes);
            return Ok(executable.run(&ordered, &mut given, self.workers())?);
        }
        let (made, report) = self.made(inputs)?;
        for ((made, to), info) in made.iter().zip(outputs).zip(&self.outputs) {
            to.copy_from(made)
                .map_err(|why| RunError::Output { output: info.name.clone(), why })?;
        }
        Ok(report)
    }

    /// Inputs and outputs in memory of the device, for inputs of these shapes: runs copy nothing.
    ///
    /// # Errors
    /// The shapes are not those of the model, or the device has no memory.
    pub fn bind(&self, shapes: &[&[usize]]) -> Result<Binding<'_>, SessionError> {
        Binding::new(self, shapes)
    }

    /// Whether all results are what ONNX Runtime's CPU provider computes, bit for bit. So it is unless
    /// [`Exactness::Bounded`] was asked for and some node needed it, or another host engine than that provider
    /// runs a part.
    pub fn is_exact(&self) -> bool {
        let is_host_exact = match &self.engine {
            Engine::Npu(_) | Engine::Shared(_) => true,
            #[cfg(feature = "rten")]
            Engine::Mixed(_) => false,
        };
        is_host_exact && self.plan.is_exact()
    }

    /// Who runs a part of the model on the host, by name and version, if somebody does.
    pub fn host_engine(&self) -> Option<String> {
        match &self.engine {
            Engine::Npu(_) => None,
            Engine::Shared(shared) => Some(format!("ONNX Runtime {}", shared.version())),
            #[cfg(feature = "rten")]
            Engine::Mixed(_) => Some(rten::NAME.to_owned()),
        }
    }

    /// Version of the ONNX Runtime that runs a part of the model, if one does.
    pub fn host_version(&self) -> Option<&str> {
        match &self.engine {
            Engine::Npu(_) => None,
            Engine::Shared(shared) => Some(shared.version()),
            #[cfg(feature = "rten")]
            Engine::Mixed(_) => None,
        }
    }

    fn made(
        &self,
        inputs: &[TensorRef<'_>],
    ) -> Result<(Vec<OwnedTensor>, RunReport), SessionError> {
        match &self.engine {
            Engine::Npu(steps) => Ok(steps.run(&self.graph, inputs, self.workers())?),
            Engine::Shared(shared) => shared.run(inputs),
            #[cfg(feature = "rten")]
            Engine::Mixed(mixed) => mixed.run(&self.graph, inputs, self.workers()),
        }
    }

    fn workers(&self) -> &dyn Workers {
        match &self.threads {
            Threads::Device => self.device.pool(),
            Threads::Caller => &Caller,
            Threads::Own(pool) => pool,
        }
    }

    /// Holds inputs to what the model declares of them.
    fn check(&self, inputs: &[TensorRef<'_>]) -> Result<(), RunError> {
        let shapes: SmallVec<[&[usize]; FEW]> = inputs.iter().map(TensorRef::shape).collect();
        self.check_shapes(&shapes)?;
        for (tensor, info) in inputs.iter().zip(&self.inputs) {
            if tensor.element() != info.element {
                let (found, want) = (tensor.element(), info.element);
                return Err(RunError::Element { input: info.name.clone(), found, want });
            }
        }
        Ok(())
    }

    fn check_shapes(&self, shapes: &[&[usize]]) -> Result<(), RunError> {
        if shapes.len() != self.inputs.len() {
            return Err(RunError::Inputs { found: shapes.len(), want: self.inputs.len() });
        }
        for (found, info) in shapes.iter().zip(&self.inputs) {
            let Some(want) = &info.shape else { continue };
            let fits = |(dim, len): (&Dim, &usize)| match dim {
                Dim::Known(known) => known == len,
                Dim::Symbol(_) => true,
            };
            if want.len() != found.len() || !want.iter().zip(*found).all(fits) {
                let (input, found) = (info.name.clone(), found.to_vec());
                return Err(RunError::Shape { input, found, want: shape_text(want) });
            }
        }
        Ok(())
    }

    fn no_such(&self, what: &'static str, name: &str, known: &[TensorInfo]) -> SessionError {
        let names: Vec<&str> = known.iter().map(|info| info.name.as_str()).collect();
        SessionError::Name { what, name: name.to_owned(), known: names.join(", ") }
    }
}

/// A shape for each input of a part.
pub type InputShapes = Vec<Vec<usize>>;

/// The groups of `plan` as graphs of their own, each with the shapes of its inputs when open
/// dimensions of the model's inputs are `batch` long: what a session compiles.
///
/// # Errors
/// A shape in the middle of the model is unknown.
pub fn parts(
    graph: &Graph,
    plan: &Plan,
    batch: usize,
) -> Result<Vec<(Graph, InputShapes)>, SessionError> {
    steps::parts(graph, plan)?
        .into_iter()
        .map(|(index, part)| {
            let shape = |&read: &ValueId| {
                let value = graph.value(read);
                let dims = value.ty.as_ref().and_then(|ty| ty.shape.as_ref());
                let dims = dims.ok_or_else(|| SessionError::UnknownShape {
                    part: index,
                    value: value.name.clone(),
                })?;
                let length = |dim: &Dim| match dim {
                    Dim::Known(length) => *length,
                    Dim::Symbol(_) => batch,
                };
                Ok(dims.iter().map(length).collect())
            };
            let shapes = part.reads.iter().map(shape).collect::<Result<_, SessionError>>()?;
            Ok((part.graph, shapes))
        })
        .collect()
}

const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<Session>();
};

#[cfg(test)]
mod tests;
