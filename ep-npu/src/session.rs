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
mod builder;
mod compare;
mod error;
mod host;
mod left;
mod part;
#[cfg(feature = "rten")]
mod rten;
mod steps;

pub use binding::Binding;
pub use builder::Builder;
pub use compare::{Comparison, Difference, Reference};
pub use error::{RefusedNode, SessionError};
pub use host::{Fallback, HostEngine, HostError, LibraryError, OrtOptions, Shown};

use crate::explain::{self, Explanation};
use crate::graph::{Dim, ElementType, Graph, ValueId, shape_text};
use crate::ort::SessionContext;
use crate::ort::host::HostSession;
use crate::partition::Plan;
use crate::run::{GivenOutputs, OwnedTensor, RunError, RunReport, TensorMut, TensorRef};
use bytes::Bytes;
use host::Shared;
use libnpu::{Caller, Device, Pool, Workers};
use smallvec::SmallVec;
use std::num::NonZeroUsize;
use std::path::PathBuf;
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

impl Session {
    /// A session on `device`, to be told what it shall be.
    pub fn builder(device: &Device) -> Builder {
        Builder::new(device)
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
    /// [bounded exactness](crate::exactness::Exactness::Bounded) was asked for and some node needed it, or
    /// another host engine than that provider runs a part.
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
