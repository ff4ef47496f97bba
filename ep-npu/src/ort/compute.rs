//! Compute: the tensors of one run to the program and back. Runs on several threads at once.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use ort_sys::{OrtKernelContext, OrtStatusPtr};

use crate::graph::ElementType;
use crate::run::{Executable, Outputs, RunError, RunReport, TensorRef};

use super::api::{Api, Logger, Severity, call};
use super::factory::Factory;
use super::profile::Events;
use super::provider::Provider;
use super::settings::Settings;
use super::status::{Failure, Kind, guard};
use super::sys::{OrtNodeComputeContext, OrtNodeComputeInfo};
use super::terminate;
use super::view::{Shape, Value};

/// The program of one fused node; ONNX Runtime sees its first field.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct NodeProgram {
    ort: OrtNodeComputeInfo,
    factory: Arc<Factory>,
    settings: Arc<Settings>,
    events: Arc<Events>,
    executable: Executable,
    /// Of the part of the model, for profiles.
    name: String,
    input_names: Vec<String>,
}

impl NodeProgram {
    /// A program whose inputs, in the order in which the runtime passes them, are called so.
    pub(crate) fn new(
        provider: &Provider,
        executable: Executable,
        input_names: Vec<String>,
    ) -> Box<Self> {
        let ort = OrtNodeComputeInfo {
            version: provider.api().version(),
            create_state: Some(create_state),
            compute: Some(compute),
            release_state: Some(release_state),
        };
        let factory = provider.factory.clone();
        let (settings, events) = (provider.settings.clone(), provider.events.clone());
        let name = executable.part().name().to_owned();
        Box::new(Self { ort, factory, settings, events, executable, name, input_names })
    }

    /// The program as the runtime holds it.
    pub(crate) fn into_raw(this: Box<Self>) -> *mut OrtNodeComputeInfo {
        Box::into_raw(this).cast()
    }

    /// # Safety
    /// `raw` is from [`NodeProgram::into_raw`] and is not used again.
    pub(crate) unsafe fn from_raw(raw: *mut OrtNodeComputeInfo) -> Box<Self> {
        // SAFETY: the caller's promise; the table is the first field.
        unsafe { Box::from_raw(raw.cast()) }
    }

    fn run(&self, context: *mut OrtKernelContext) -> Result<(), Failure> {
        let api = self.factory.api();
        let mut given = 0;
        call!(api, KernelContext_GetInputCount(context, &raw mut given))?;
        if given != self.input_names.len() {
            return Err(Failure::invalid_argument(format!(
                "the NPU program has {} inputs, {given} are given",
                self.input_names.len()
            )));
        }
        let mut held = Vec::with_capacity(given);
        for (index, name) in self.input_names.iter().enumerate() {
            let input = Input::read(api, context, index);
            held.push(input.map_err(|failure| failure.within(&format!("input `{name}`")))?);
        }
        let inputs: Vec<TensorRef<'_>> = held.iter().map(Input::as_tensor).collect();
        let mut outputs = KernelOutputs { api, context };
        let stop = terminate::flag(self.factory.terminate());
        let timeout = self.settings.timeout();
        let run = |workers: &dyn libnpu::Workers| {
            self.executable.run_until(&inputs, &mut outputs, workers, timeout, stop)
        };
        let event = self.events.begin();
        let threads = self.settings.threads();
        let report = threads.with(api, context, run).map_err(|error| failure_of(&error))?;
        if let Some(event) = event {
            self.events.end(event, &self.name, report);
        }
        report_to(api, context, report);
        Ok(())
    }
}

/// Tells the run's log, if it shows as much, what the run took: one line for each part of the model.
fn report_to(api: &Api, context: *const OrtKernelContext, report: RunReport) {
    let mut logger = ptr::null();
    if call!(api, KernelContext_GetLogger(context, &raw mut logger)).is_err() {
        return;
    }
    // SAFETY: the run's logger outlives Compute.
    let logger = unsafe { Logger::new(api, logger) };
    if logger.shows(Severity::Info) {
        let RunReport { cycles, copied_bytes, .. } = report;
        logger.log(
            Severity::Info,
            &format!("NPU ran {cycles} cycles and copied {copied_bytes} bytes of tensors"),
        );
    }
}

fn failure_of(error: &RunError) -> Failure {
    let failure = Failure::from_error(kind_of(error), error);
    match error {
        RunError::Stopped => failure
            .within("Exiting due to terminate flag being set to true, which the NPU saw in a node"),
        RunError::Device(libnpu::Error::Timeout(_)) => {
            failure.within("NPU option `timeout_ms` sets how long a run may take")
        }
        RunError::Device(libnpu::Error::Lost { .. }) => {
            failure.within("this session can run no more; make a new session")
        }
        _ => failure,
    }
}

/// Whether the caller can do something about `error`.
fn kind_of(error: &RunError) -> Kind {
    match error {
        RunError::Inputs { .. }
        | RunError::Element { .. }
        | RunError::Shape { .. }
        | RunError::Bytes { .. }
        | RunError::Missing { .. }
        | RunError::Copy { .. } => Kind::InvalidArgument,
        RunError::Stopped => Kind::Stopped,
        _ => Kind::Provider,
    }
}

/// An input of one run, where the runtime has it.
pub(super) struct Input {
    shape: Shape,
    data: *const u8,
    len_bytes: usize,
}

impl Input {
    pub(super) fn read(
        api: &Api,
        context: *const OrtKernelContext,
        index: usize,
    ) -> Result<Self, Failure> {
        let mut value = ptr::null();
        call!(api, KernelContext_GetInput(context, index, &raw mut value))?;
        // SAFETY: the inputs are live during Compute.
        let Some(value) = (unsafe { Value::new(api, value) }) else {
            return Err(Failure::invalid_argument("absent"));
        };
        let shape = value.shape()?;
        let bytes = value.bytes(&shape)?;
        let (data, len_bytes) = (bytes.as_ptr(), bytes.len());
        Ok(Self { shape, data, len_bytes })
    }

    pub(super) fn as_tensor(&self) -> TensorRef<'_> {
        // SAFETY: the tensor has that many bytes by its own shape, and is live and unwritten during
        // Compute, which `self` does not outlive.
        unsafe {
            TensorRef::from_raw(self.shape.element, &self.shape.dims, self.data, self.len_bytes)
        }
    }
}

/// Outputs that the runtime allocates when their shape is known.
pub(super) struct KernelOutputs<'a> {
    pub(super) api: &'a Api,
    pub(super) context: *mut OrtKernelContext,
}

// SAFETY: `allocate` returns the data of a tensor that the runtime made for this run, of the element
// type and shape asked for; nobody else has it until Compute returns.
unsafe impl Outputs for KernelOutputs<'_> {
    fn output(
        &mut self,
        index: usize,
        element: ElementType,
        shape: &[usize],
    ) -> Result<*mut u8, String> {
        self.allocate(index, element, shape).map_err(|failure| failure.message)
    }
}

impl KernelOutputs<'_> {
    fn allocate(
        &mut self,
        index: usize,
        element: ElementType,
        shape: &[usize],
    ) -> Result<*mut u8, Failure> {
        let dim = |&len: &usize| {
            i64::try_from(len)
                .map_err(|_| Failure::provider(format!("dimension {len} of an output")))
        };
        let dims = shape.iter().map(dim).collect::<Result<Vec<i64>, _>>()?;
        let mut value = ptr::null_mut();
        call!(
            self.api,
            KernelContext_GetOutput(self.context, index, dims.as_ptr(), dims.len(), &raw mut value)
        )?;
        // SAFETY: the runtime made the output for this run.
        let view = unsafe { Value::new(self.api, value.cast_const()) };
        let view = view.ok_or_else(|| Failure::provider("the runtime has no such output"))?;
        let found = view.shape()?;
        if found.element != element || found.dims != shape {
            return Err(Failure::provider(format!(
                "the program writes {element}{shape:?}, the model declares {}{:?}",
                found.element, found.dims
            )));
        }
        let mut data: *mut c_void = ptr::null_mut();
        call!(self.api, GetTensorMutableData(value, &raw mut data))?;
        Ok(data.cast())
    }
}

unsafe extern "C" fn create_state(
    _: *mut OrtNodeComputeInfo,
    _: *mut OrtNodeComputeContext,
    state: *mut *mut c_void,
) -> OrtStatusPtr {
    // What a run needs beyond the program, it makes itself: runs share nothing.
    // SAFETY: an out pointer of the runtime.
    unsafe { state.write(ptr::null_mut()) };
    OrtStatusPtr(ptr::null_mut())
}

unsafe extern "C" fn release_state(_: *mut OrtNodeComputeInfo, _: *mut c_void) {}

unsafe extern "C" fn compute(
    this: *mut OrtNodeComputeInfo,
    _state: *mut c_void,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes a program of Compile that it has not released.
    let program: &NodeProgram = unsafe { &*this.cast() };
    guard(program.factory.api(), || program.run(context))
}
