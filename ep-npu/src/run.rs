//! Runs a compiled part on a device: binds tensors to slots, submits, waits.
//!
//! ```text
//! run(inputs) -> program for their shapes (compiled on first use, few kept)
//!             -> slots: constants (uploaded once), scratch (pooled), inputs and outputs in place
//!             -> job -> wait, with the caller's workers -> outputs
//! ```

mod cache;
mod constants;
mod empty;
mod error;
mod load;
mod memory;
mod stop;
mod tensor;
mod weights;

pub use error::{BundleLoadError, CopyCause, Role, RunError};
pub use stop::StopFlag;
pub use tensor::{GivenOutputs, Outputs, OwnedOutputs, OwnedTensor, TensorMut, TensorRef};

use crate::bundle::{Bundle, BundleError, Fit, Ready};
use crate::emit;
use crate::graph::{Dim, Graph, NodeId, ValueId};
use crate::program::{CompileError, Edge};
use cache::Cache;
use libnpu::{Context, Device, Done, Job, Memory, Program, Workers};
use load::Whole;
use memory::{Bound, Scratch};
use npu_uapi::addr::SlotId;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use weights::Held;

/// How long a device may take to end a job that is aborted.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How an [`Executable`] runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RunOptions {
    /// How long a run may take before it is given up.
    pub timeout: Duration,
    /// Programs for different input shapes that are kept; the least recently used goes first.
    pub programs: usize,
    /// A folder where each program is written when it is compiled, as `npu objdump` reads it.
    pub dump: Option<PathBuf>,
    /// Whether a run fails that would have to copy a tensor to or from device memory.
    pub deny_copy: bool,
    /// Lengths of the batch to compile for at once, where it is open; 1 when there are none.
    pub batches: Vec<usize>,
    /// Whether a run may compile for shapes that there is no program for.
    pub compile_missing: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            programs: 8,
            dump: None,
            deny_copy: false,
            batches: Vec::new(),
            compile_missing: true,
        }
    }
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RunReport {
    /// Modelled cycles.
    pub cycles: u64,
    /// Bytes copied because the device could not reach a tensor where it lies.
    pub copied_bytes: u64,
}

/// A part of a graph, ready to run for any batch; shared between threads by reference.
#[derive(Debug)]
pub struct Executable {
    /// Its weights are kept apart when it is from a bundle.
    part: Graph,
    /// Made when something is compiled.
    whole: OnceLock<Whole>,
    /// Programs that need no compiler, from a bundle.
    ready: Vec<Ready>,
    /// Weights that the part no longer has.
    held: Vec<Held>,
    context: Context,
    device: Device,
    options: RunOptions,
    cache: Cache<Loaded>,
    scratch: Scratch,
    /// Held while compiling, so that a new shape is compiled once.
    compiling: Mutex<()>,
}

/// A program on the device and what it is bound to.
#[derive(Debug)]
struct Loaded {
    program: Program,
    constants: Option<Arc<constants::Bound>>,
    scratch_bytes: u64,
    inputs: Vec<Edge>,
    outputs: Vec<Edge>,
    /// By `op_id`, the node that the command was compiled from.
    nodes: Vec<NodeId>,
}

impl Executable {
    /// Compiles `part` for `device` and loads it into `context`. Where dimensions are open, it is
    /// compiled for the batches of `options`, else for a batch of 1, to find what no batch could
    /// change; runs compile for theirs.
    pub fn new(
        part: Graph,
        context: Context,
        device: Device,
        options: RunOptions,
    ) -> Result<Self, CompileError> {
        let executable = Self::with(part, Vec::new(), context, device, options);
        for shapes in executable.shapes_at_once()? {
            executable.load(&shapes)?;
        }
        Ok(executable)
    }

    /// Compiles as [`Executable::new`] does, and loads nothing.
    ///
    /// # Errors
    /// As for [`Executable::new`].
    pub fn compile(
        part: Graph,
        context: Context,
        device: Device,
        options: RunOptions,
    ) -> Result<Bundle, CompileError> {
        Self::with(part, Vec::new(), context, device, options).bundle()
    }

    /// Loads what was compiled before: no stage of the compiler runs, until a run has shapes for which
    /// the bundle has no program.
    ///
    /// # Errors
    /// The bundle is for another device, or this one does not take a program of it.
    pub fn from_bundle(
        bundle: Bundle,
        context: Context,
        device: Device,
        options: RunOptions,
    ) -> Result<Self, BundleLoadError> {
        let Bundle { part, limits, programs, .. } = bundle;
        if let Fit::No(why) = Fit::of(&limits, device.limits()) {
            return Err(BundleError::Device { why }.into());
        }
        let executable = Self::with(part, programs, context, device, options);
        for ready in executable.ready.iter().take(executable.options.programs.max(1)) {
            executable.load(&ready.shapes())?;
        }
        Ok(executable)
    }

    fn with(
        part: Graph,
        ready: Vec<Ready>,
        context: Context,
        device: Device,
        options: RunOptions,
    ) -> Self {
        // What a run may not compile again must not go.
        let programs = match options.compile_missing {
            true => options.programs,
            false => options.programs.max(options.batches.len()),
        };
        Self {
            part,
            whole: OnceLock::new(),
            ready,
            held: Vec::new(),
            context,
            device,
            cache: Cache::new(programs),
            options,
            scratch: Scratch::default(),
            compiling: Mutex::new(()),
        }
    }

    /// Runs the part. Inputs and outputs are in the part's order.
    pub fn run(
        &self,
        inputs: &[TensorRef<'_>],
        outputs: &mut dyn Outputs,
        workers: &dyn Workers,
    ) -> Result<RunReport, RunError> {
        self.run_until(inputs, outputs, workers, self.options.timeout, None)
    }

    /// As [`Executable::run`], within `timeout`, and ended early when `stop` is set.
    ///
    /// # Errors
    /// Also [`RunError::Stopped`].
    pub fn run_until(
        &self,
        inputs: &[TensorRef<'_>],
        outputs: &mut dyn Outputs,
        workers: &dyn Workers,
        timeout: Duration,
        stop: Option<StopFlag>,
    ) -> Result<RunReport, RunError> {
        // Before any lock, which another thread may have held when this process was forked.
        self.device.check_process()?;
        self.check(inputs)?;
        let loaded = match self.cache.find(|shapes| is_of(shapes, inputs)) {
            Some(loaded) => loaded,
            None => {
                let shapes: Vec<Vec<usize>> =
                    inputs.iter().map(|tensor| tensor.shape().to_vec()).collect();
                if shapes.iter().any(|shape| shape.contains(&0))
                    && let Some(ran) = self.run_empty(inputs, &shapes, outputs)
                {
                    return ran;
                }
                self.program_for(inputs, &shapes)?
            }
        };
        let mut bound = Bound::new(&self.device, self.options.deny_copy);
        for (slot, (tensor, edge)) in
            (emit::EDGE_SLOTS_FROM..).zip(inputs.iter().zip(&loaded.inputs))
        {
            check_input(tensor, edge)?;
            bound.input(slot_id(slot), tensor, edge)?;
        }
        let first = emit::EDGE_SLOTS_FROM + inputs.len();
        for (index, edge) in loaded.outputs.iter().enumerate() {
            bound.output(slot_id(first + index), outputs, index, edge)?;
        }
        let scratch = self.scratch.take(&self.device, loaded.scratch_bytes)?;
        if let Some(scratch) = &scratch {
            bound.scratch(scratch, loaded.scratch_bytes)?;
        }
        let overlay = bound.overlay();
        let done =
            self.job_until(&loaded, &overlay, workers, timeout, bound.is_in_place(), stop)?;
        self.scratch.give_back(scratch);
        let copied_bytes = bound.finish()?;
        Ok(RunReport { cycles: done.cycles, copied_bytes })
    }

    /// One job, from submission to end.
    fn job(
        &self,
        loaded: &Loaded,
        overlay: &[(SlotId, Memory)],
        workers: &dyn Workers,
        timeout: Duration,
        is_in_place: bool,
    ) -> Result<Done, RunError> {
        let table = loaded.constants.as_ref().map(|constants| constants.table());
        let job = self.context.exec(&loaded.program, table, overlay.iter().cloned())?;
        job.wait(workers, timeout).map_err(|error| {
            if is_in_place {
                self.end(&job, workers);
            }
            self.failed(loaded, error)
        })
    }

    /// The error of a job, with the node whose command failed where the device names one.
    fn failed(&self, loaded: &Loaded, source: libnpu::Error) -> RunError {
        let record = source.fault().and_then(|fault| fault.record);
        let op_id = record.and_then(|record| usize::try_from(record.op_id).ok());
        match op_id.and_then(|op_id| loaded.nodes.get(op_id)) {
            Some(&node) => {
                let node = self.part.node(node);
                let (node, op) = (node.name.clone(), node.op.clone());
                RunError::Node { node, op, source: Box::new(source) }
            }
            None => source.into(),
        }
    }

    /// Ends `job`, which is given up, before its tensors go back to the caller.
    fn end(&self, job: &Job, workers: &dyn Workers) {
        if job.poll().is_some() {
            return;
        }
        let is_ended = self.context.abort().is_ok() && {
            let waited = job.wait(workers, ABORT_TIMEOUT);
            !matches!(waited, Err(libnpu::Error::Timeout(_)))
        };
        if !is_ended {
            // When this fails too, the device is gone.
            let _ = self.device.reset();
        }
    }

    /// The part that it runs; weights of one that was compiled before are not in it.
    pub fn part(&self) -> &Graph {
        &self.part
    }

    /// Inputs and outputs for input shapes, for which it is compiled if need be.
    pub fn edges(&self, shapes: &[Vec<usize>]) -> Result<(Vec<Edge>, Vec<Edge>), CompileError> {
        let loaded = self.program(shapes)?;
        Ok((loaded.inputs.clone(), loaded.outputs.clone()))
    }

    /// Holds the inputs to the rank that the part declares.
    ///
    /// Declared lengths bind nobody: ONNX Runtime holds a caller to those of the model's inputs, and
    /// those in the middle of a model can be wrong, as inference rounds a pool up that the CPU's
    /// kernel rounds down.
    fn check(&self, inputs: &[TensorRef<'_>]) -> Result<(), RunError> {
        let declared = self.part.inputs();
        if inputs.len() != declared.len() {
            return Err(RunError::Inputs { found: inputs.len(), want: declared.len() });
        }
        for (tensor, &input) in inputs.iter().zip(declared) {
            if self.declared(input).is_some_and(|want| want.len() != tensor.shape().len()) {
                return Err(self.wrong_shape(tensor, input));
            }
        }
        Ok(())
    }

    /// The program for the shapes of `inputs`, which the units may refuse.
    fn program_for(
        &self,
        inputs: &[TensorRef<'_>],
        shapes: &[Vec<usize>],
    ) -> Result<Arc<Loaded>, RunError> {
        if !self.options.compile_missing
            && self.cache.get(shapes).is_none()
            && self.ready.iter().all(|ready| ready.shapes() != shapes)
        {
            return Err(self.missing(shapes));
        }
        let refusal = match self.program(shapes) {
            Err(refusal @ CompileError::Refused(_)) => refusal,
            other => return Ok(other?),
        };
        let fits = |(dim, len): (&Dim, &usize)| match dim {
            Dim::Known(known) => known == len,
            Dim::Symbol(_) => true,
        };
        for (tensor, &input) in inputs.iter().zip(self.part.inputs()) {
            let want = self.declared(input).unwrap_or_default();
            if !want.iter().zip(tensor.shape()).all(fits) {
                return Err(self.wrong_shape(tensor, input));
            }
        }
        Err(refusal.into())
    }

    fn missing(&self, found: &[Vec<usize>]) -> RunError {
        let text = |shapes: &[Vec<usize>]| {
            let shapes = shapes.iter().map(|shape| format!("{shape:?}"));
            shapes.collect::<Vec<_>>().join(" and ")
        };
        let mut held: Vec<String> = self.ready.iter().map(|ready| text(&ready.shapes())).collect();
        for shapes in self.cache.shapes() {
            let shapes = text(&shapes);
            if !held.contains(&shapes) {
                held.push(shapes);
            }
        }
        RunError::Missing { found: text(found), held: held.join("; ") }
    }

    fn declared(&self, input: ValueId) -> Option<&[Dim]> {
        self.part.value(input).ty.as_ref()?.shape.as_deref()
    }

    fn wrong_shape(&self, tensor: &TensorRef<'_>, input: ValueId) -> RunError {
        RunError::Shape {
            input: self.part.value(input).name.clone(),
            found: tensor.shape().to_vec(),
            want: crate::graph::shape_text(self.declared(input).unwrap_or_default()),
        }
    }
}

/// Whether `shapes` are those of `inputs`.
fn is_of(shapes: &[Vec<usize>], inputs: &[TensorRef<'_>]) -> bool {
    shapes.iter().map(Vec::as_slice).eq(inputs.iter().map(TensorRef::shape))
}

/// Holds an input to the element type and size that the program takes.
fn check_input(tensor: &TensorRef<'_>, edge: &Edge) -> Result<(), RunError> {
    check_element(tensor, edge)?;
    let want = edge.len_bytes();
    if tensor.len_bytes() as u64 != want {
        let input = edge.name.clone();
        return Err(RunError::Bytes { input, found: tensor.len_bytes(), want });
    }
    Ok(())
}

fn check_element(tensor: &TensorRef<'_>, edge: &Edge) -> Result<(), RunError> {
    let (found, want) = (tensor.element(), edge.element);
    if found == want {
        return Ok(());
    }
    Err(RunError::Element { input: edge.name.clone(), found, want })
}

fn slot_id(slot: usize) -> SlotId {
    SlotId(u16::try_from(slot).expect("the verifier bounds slots to 256"))
}
