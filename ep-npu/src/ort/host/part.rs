//! A program of ours as an operator of ONNX Runtime's: what stands in a model for a group of its nodes.
//!
//! The runtime knows of the operator what it knows of a provider's fused node: types at its ends, and
//! that it is nothing it could fuse with. What is left around it is therefore fused as behind the plugin.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use ort_sys::{
    ONNXTensorElementDataType, OrtApi, OrtCustomOp, OrtCustomOpInputOutputCharacteristic,
    OrtKernelContext, OrtKernelInfo, OrtMemType, OrtStatusPtr,
};

use crate::graph::{ElementType, Graph, ValueId};
use crate::ort::api::Api;
use crate::ort::compute::{Input, KernelOutputs};
use crate::ort::status::{Failure, Kind, guard};
use crate::ort::workers::Threads;
use crate::run::{Executable, RunError, RunReport, TensorRef};

use super::deadline;
use super::session::element;

/// The version of `OrtCustomOp` that is filled in: the last before aliases of inputs and outputs.
const VERSION: u32 = 17;

/// A program, as an operator; the runtime sees its first field.
#[repr(C)]
pub(crate) struct Part {
    ort: OrtCustomOp,
    api: Api,
    name: CString,
    executable: Executable,
    threads: Arc<Threads>,
    inputs: Vec<(String, ONNXTensorElementDataType)>,
    outputs: Vec<ONNXTensorElementDataType>,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Part {
    /// The operator `name` that runs `executable`.
    pub(crate) fn new(
        api: Api,
        name: &CStr,
        executable: Executable,
        threads: Arc<Threads>,
    ) -> Result<Self, Failure> {
        let graph = executable.part();
        let inputs = typed(graph, graph.inputs())?;
        let outputs = typed(graph, graph.outputs())?.into_iter().map(|(_, ty)| ty).collect();
        let ort = OrtCustomOp {
            version: VERSION,
            CreateKernel: None,
            GetName: Some(name_of),
            GetExecutionProviderType: Some(no_provider),
            GetInputType: Some(input_type),
            GetInputTypeCount: Some(input_count),
            GetOutputType: Some(output_type),
            GetOutputTypeCount: Some(output_count),
            KernelCompute: None,
            KernelDestroy: Some(destroy),
            GetInputCharacteristic: Some(required),
            GetOutputCharacteristic: Some(required),
            GetInputMemoryType: Some(memory),
            GetVariadicInputMinArity: Some(one),
            GetVariadicInputHomogeneity: Some(one),
            GetVariadicOutputMinArity: Some(one),
            GetVariadicOutputHomogeneity: Some(one),
            CreateKernelV2: Some(create),
            KernelComputeV2: Some(compute),
            InferOutputShapeFn: None,
            GetStartVersion: Some(one),
            GetEndVersion: Some(newest),
            GetMayInplace: None,
            ReleaseMayInplace: None,
            GetAliasMap: None,
            ReleaseAliasMap: None,
        };
        let name = name.to_owned();
        Ok(Self { ort, api, name, executable, threads, inputs, outputs })
    }

    /// The operator as the runtime takes it; good as long as the part stays where it is.
    pub(super) fn as_operator(&self) -> *const OrtCustomOp {
        ptr::from_ref(self).cast()
    }

    fn run(&self, context: *mut OrtKernelContext) -> Result<(), Failure> {
        let read = |(index, (name, _)): (usize, &(String, _))| {
            let input = Input::read(&self.api, context, index);
            input.map_err(|failure| failure.within(&format!("input `{name}`")))
        };
        let held = self.inputs.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        let inputs: Vec<TensorRef<'_>> = held.iter().map(Input::as_tensor).collect();
        let mut outputs = KernelOutputs { api: &self.api, context };
        let left = deadline::remaining();
        let run = |workers: &dyn libnpu::Workers| match left {
            Some(left) => self.executable.run_until(&inputs, &mut outputs, workers, left, None),
            None => self.executable.run(&inputs, &mut outputs, workers),
        };
        let ran = self.threads.with(&self.api, context, run);
        let told =
            ran.as_ref().map(|_| ()).map_err(|error| Failure::from_error(Kind::Provider, error));
        Recorder::note(ran);
        told
    }
}

/// The names and types of a part's ends.
fn typed(
    graph: &Graph,
    ends: &[ValueId],
) -> Result<Vec<(String, ONNXTensorElementDataType)>, Failure> {
    let end = |&id: &ValueId| {
        let value = graph.value(id);
        let found = value.ty.as_ref().map_or(ElementType::Other(0), |ty| ty.element);
        let found = element(found);
        let ty = found.map_err(|failure| failure.within(&format!("`{}`", value.name)))?;
        Ok((value.name.clone(), ty))
    };
    ends.iter().map(end).collect()
}

/// What the parts of one run took, and what failed. The runtime runs them on the thread that asked.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    report: RunReport,
    error: Option<RunError>,
}

thread_local! {
    static RECORDERS: RefCell<Vec<Recorder>> = const { RefCell::new(Vec::new()) };
}

impl Recorder {
    /// Calls `body`; gives what the parts took that ran in it, and the first failure of one.
    pub(crate) fn around<R>(body: impl FnOnce() -> R) -> (R, RunReport, Option<RunError>) {
        RECORDERS.with_borrow_mut(|recorders| recorders.push(Self::default()));
        let result = body();
        let found = RECORDERS.with_borrow_mut(Vec::pop).unwrap_or_default();
        (result, found.report, found.error)
    }

    fn note(ran: Result<RunReport, RunError>) {
        RECORDERS.with_borrow_mut(|recorders| {
            let Some(recorder) = recorders.last_mut() else { return };
            match ran {
                Ok(took) => {
                    let report = &mut recorder.report;
                    report.cycles = report.cycles.saturating_add(took.cycles);
                    report.copied_bytes = report.copied_bytes.saturating_add(took.copied_bytes);
                }
                Err(error) => {
                    recorder.error.get_or_insert(error);
                }
            }
        });
    }
}

/// The part that the runtime means.
///
/// # Safety
/// `raw` is from [`Part::as_operator`], and the part is alive.
unsafe fn part<'a>(raw: *const OrtCustomOp) -> &'a Part {
    // SAFETY: the caller's promise; the table is the first field.
    unsafe { &*raw.cast() }
}

unsafe extern "system" fn name_of(this: *const OrtCustomOp) -> *const c_char {
    // SAFETY: the runtime passes an operator of a domain whose parts the session owns.
    unsafe { part(this) }.name.as_ptr()
}

unsafe extern "system" fn no_provider(_: *const OrtCustomOp) -> *const c_char {
    // The CPU provider's.
    ptr::null()
}

unsafe extern "system" fn input_count(this: *const OrtCustomOp) -> usize {
    // SAFETY: as in `name_of`.
    unsafe { part(this) }.inputs.len()
}

unsafe extern "system" fn input_type(
    this: *const OrtCustomOp,
    index: usize,
) -> ONNXTensorElementDataType {
    // SAFETY: as in `name_of`.
    let input = unsafe { part(this) }.inputs.get(index);
    let none = ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    input.map_or(none, |&(_, ty)| ty)
}

unsafe extern "system" fn output_count(this: *const OrtCustomOp) -> usize {
    // SAFETY: as in `name_of`.
    unsafe { part(this) }.outputs.len()
}

unsafe extern "system" fn output_type(
    this: *const OrtCustomOp,
    index: usize,
) -> ONNXTensorElementDataType {
    // SAFETY: as in `name_of`.
    let output = unsafe { part(this) }.outputs.get(index);
    let none = ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    output.copied().unwrap_or(none)
}

unsafe extern "system" fn required(
    _: *const OrtCustomOp,
    _: usize,
) -> OrtCustomOpInputOutputCharacteristic {
    OrtCustomOpInputOutputCharacteristic::INPUT_OUTPUT_REQUIRED
}

unsafe extern "system" fn memory(_: *const OrtCustomOp, _: usize) -> OrtMemType {
    OrtMemType::OrtMemTypeDefault
}

unsafe extern "system" fn one(_: *const OrtCustomOp) -> c_int {
    1
}

unsafe extern "system" fn newest(_: *const OrtCustomOp) -> c_int {
    c_int::MAX
}

unsafe extern "system" fn create(
    this: *const OrtCustomOp,
    _: *const OrtApi,
    _: *const OrtKernelInfo,
    kernel: *mut *mut c_void,
) -> OrtStatusPtr {
    // The operator is its own kernel: what a run needs beyond the program, it makes itself.
    // SAFETY: an out pointer of the runtime.
    unsafe { kernel.write(this.cast_mut().cast()) };
    OrtStatusPtr(ptr::null_mut())
}

unsafe extern "system" fn destroy(_: *mut c_void) {}

unsafe extern "system" fn compute(
    kernel: *mut c_void,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes what `create` gave it, and the session's parts outlive the session.
    let part = unsafe { part(kernel.cast_const().cast()) };
    guard(&part.api, || part.run(context))
}
