//! A session of ONNX Runtime on its CPU provider: what loads, describes, writes out and runs a model.

use std::ffi::{CStr, CString, c_char, c_void};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::time::Duration;

use ort_sys::{
    GraphOptimizationLevel, ONNXTensorElementDataType, OrtAllocator, OrtAllocatorType, OrtApi,
    OrtCustomOpDomain, OrtMemType, OrtMemoryInfo, OrtSession, OrtSessionOptions, OrtTypeInfo,
    OrtValue,
};

use crate::graph::{ElementType, TensorType};
use crate::ort::api::{Api, call};
use crate::ort::status::{Failure, c_text};
use crate::ort::view::{self, Value};
use crate::run::{OwnedTensor, TensorRef};

use super::deadline::Due;
use super::library::Library;
use super::part::Part;

/// Takes what a slot of the table made for us, to be released by another of its slots.
macro_rules! owned {
    ($api:expr, $raw:expr, $release:ident) => {{
        let table: *const OrtApi = $api.ort();
        // SAFETY: the slot is in every version of the table.
        let release = unsafe { (*table).$release };
        // SAFETY: the runtime has just made the object for us.
        unsafe { Owned::new($raw, release) }
    }};
}

/// Names the folder of external data.
const EXTERNAL_DATA: &CStr = c"session.model_external_initializers_file_folder_path";

/// How much ONNX Runtime changes a graph.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// What it does before it shows a graph to providers.
    Basic,
    /// What it does unless told otherwise.
    Default,
}

/// A model as its bytes or its file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Model<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
}

/// What a session shall be.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) level: Level,
    /// As many as the machine has, if not given.
    pub(crate) threads: Option<NonZeroUsize>,
    /// Where the model is written as it is after the optimisations.
    pub(crate) write: Option<&'a Path>,
    /// The folder that external data of a model from bytes is in.
    pub(crate) folder: Option<&'a Path>,
    /// Operators that are programs of ours, in the domain of this name.
    pub(crate) parts: Option<(&'a CStr, Vec<Part>)>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ran {
    /// The outputs, in the model's order.
    Outputs(Vec<OwnedTensor>),
    /// Its limit was over before it was done.
    Late,
}

/// A session; runs on any thread, on several at once.
#[derive(Debug)]
pub(crate) struct HostSession {
    library: &'static Library,
    raw: Owned<OrtSession>,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
    memory: Owned<OrtMemoryInfo>,
    // Behind the session, whose kernels they are; a vector's elements stay where they are.
    _domain: Option<Owned<OrtCustomOpDomain>>,
    _parts: Vec<Part>,
}

// SAFETY: a session runs on any thread, on several at once; the rest is constant after creation.
unsafe impl Send for HostSession {}
// SAFETY: as for `Send`.
unsafe impl Sync for HostSession {}

impl HostSession {
    /// Loads `model`.
    pub(crate) fn new(
        library: &'static Library,
        model: Model<'_>,
        options: Options<'_>,
    ) -> Result<Self, Failure> {
        let api = library.api();
        let settings = settings(api, &options)?;
        let (domain, parts) = match options.parts {
            None => (None, Vec::new()),
            Some((name, parts)) => {
                let domain = domain(api, name, &parts)?;
                call!(api, AddCustomOpDomain(settings.raw(), domain.raw()))?;
                (Some(domain), parts)
            }
        };
        let mut raw = ptr::null_mut();
        let environment = library.environment();
        match model {
            Model::File(path) => {
                let path = c_path(path)?;
                let options = settings.raw().cast_const();
                call!(api, CreateSession(environment, path.as_ptr(), options, &raw mut raw))?;
            }
            Model::Bytes(bytes) => {
                let (data, len) = (bytes.as_ptr().cast::<c_void>(), bytes.len());
                let options = settings.raw().cast_const();
                call!(api, CreateSessionFromArray(environment, data, len, options, &raw mut raw))?;
            }
        }
        let raw = owned!(api, raw, ReleaseSession)?;
        let mut memory = ptr::null_mut();
        let (allocator, kind) =
            (OrtAllocatorType::OrtArenaAllocator, OrtMemType::OrtMemTypeDefault);
        call!(api, CreateCpuMemoryInfo(allocator, kind, &raw mut memory))?;
        let memory = owned!(api, memory, ReleaseMemoryInfo)?;
        let (inputs, outputs) = (names(api, &raw, true)?, names(api, &raw, false)?);
        Ok(Self { library, raw, inputs, outputs, memory, _domain: domain, _parts: parts })
    }

    /// The library that it is of.
    pub(crate) fn library(&self) -> &'static Library {
        self.library
    }

    /// Names of the outputs, and their types as far as the runtime knows.
    pub(crate) fn outputs(&self) -> Result<Vec<(String, Option<TensorType>)>, Failure> {
        let api = self.library.api();
        let read = |(index, name): (usize, &CString)| {
            let mut info: *mut OrtTypeInfo = ptr::null_mut();
            call!(api, SessionGetOutputTypeInfo(self.raw.raw(), index, &raw mut info))?;
            let info = owned!(api, info, ReleaseTypeInfo)?;
            // SAFETY: the type was made for us just now, and is released behind its use.
            let ty = unsafe { view::tensor_type(api, info.raw()) }?;
            Ok((name.to_string_lossy().into_owned(), ty))
        };
        self.outputs.iter().enumerate().map(read).collect()
    }

    /// Runs the model: inputs and outputs in its order. It ends when `limit` is over.
    pub(crate) fn run(&self, inputs: &[TensorRef<'_>], limit: Duration) -> Result<Ran, Failure> {
        if !self.raw.is_of_this_process() {
            // Its threads are the parent's, and so are the holders of its locks.
            return Err(Failure::provider(
                "this process was forked from the one that made the session; make a session in the child",
            ));
        }
        let api = self.library.api();
        if inputs.len() != self.inputs.len() {
            let (found, want) = (inputs.len(), self.inputs.len());
            return Err(Failure::invalid_argument(format!(
                "{found} inputs are given, ONNX Runtime takes {want}"
            )));
        }
        let given = inputs.iter().map(|input| self.value(input)).collect::<Result<Vec<_>, _>>()?;
        let values: Vec<*const OrtValue> =
            given.iter().map(|value| value.raw().cast_const()).collect();
        let pointers = |names: &[CString]| -> Vec<*const c_char> {
            names.iter().map(|name| name.as_ptr()).collect()
        };
        let (names_in, names_out) = (pointers(&self.inputs), pointers(&self.outputs));
        let mut made: Vec<*mut OrtValue> = vec![ptr::null_mut(); self.outputs.len()];
        let due = Due::new(api, limit)?;
        let ran = call!(
            api,
            Run(
                self.raw.raw(),
                due.options(),
                names_in.as_ptr(),
                values.as_ptr(),
                values.len(),
                names_out.as_ptr(),
                names_out.len(),
                made.as_mut_ptr(),
            )
        );
        // Owned before anything can fail, so that none is lost.
        let made: Vec<Result<Owned<OrtValue>, Failure>> =
            made.into_iter().map(|raw| owned!(api, raw, ReleaseValue)).collect();
        match ran {
            Err(_) if due.is_over() => return Ok(Ran::Late),
            ran => ran?,
        }
        let copied = made.into_iter().zip(&self.outputs).map(|(value, name)| {
            let value = value?;
            tensor(api, &value)
                .map_err(|f| f.within(&format!("output `{}`", name.to_string_lossy())))
        });
        copied.collect::<Result<_, _>>().map(Ran::Outputs)
    }

    /// A tensor of the runtime over the caller's memory.
    fn value(&self, tensor: &TensorRef<'_>) -> Result<Owned<OrtValue>, Failure> {
        let api = self.library.api();
        let dim = |&len: &usize| {
            i64::try_from(len).map_err(|_| Failure::invalid_argument(format!("dimension {len}")))
        };
        let dims = tensor.shape().iter().map(dim).collect::<Result<Vec<i64>, _>>()?;
        let element = element(tensor.element())?;
        let mut raw = ptr::null_mut();
        call!(
            api,
            CreateTensorWithDataAsOrtValue(
                self.memory.raw().cast_const(),
                // The runtime does not write inputs.
                tensor.as_ptr().cast_mut().cast(),
                tensor.len_bytes(),
                dims.as_ptr(),
                dims.len(),
                element,
                &raw mut raw,
            )
        )?;
        owned!(api, raw, ReleaseValue)
    }
}

/// A copy of what `value` holds.
fn tensor(api: &Api, value: &Owned<OrtValue>) -> Result<OwnedTensor, Failure> {
    // SAFETY: the runtime made the value for us, and it lives beyond the copy.
    let view = unsafe { Value::new(api, value.raw().cast_const()) };
    let view = view.ok_or_else(|| Failure::provider("no value"))?;
    let shape = view.shape()?;
    if shape.element.bytes().is_none() {
        let element = shape.element;
        return Err(Failure::not_implemented(format!("is {element}, which sessions do not give")));
    }
    let bytes = view.bytes(&shape)?;
    Ok(OwnedTensor::copy_of(&TensorRef::from_bytes(shape.element, &shape.dims, bytes)))
}

/// The runtime's number of an element type.
pub(super) fn element(element: ElementType) -> Result<ONNXTensorElementDataType, Failure> {
    use ONNXTensorElementDataType as Number;
    Ok(match element {
        ElementType::F32 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        ElementType::U8 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        ElementType::I8 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        ElementType::I32 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        ElementType::I64 => Number::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ElementType::Other(_) => {
            return Err(Failure::not_implemented(format!("a tensor of {element}")));
        }
    })
}

fn settings(api: &Api, options: &Options<'_>) -> Result<Owned<OrtSessionOptions>, Failure> {
    let mut raw = ptr::null_mut();
    call!(api, CreateSessionOptions(&raw mut raw))?;
    let settings = owned!(api, raw, ReleaseSessionOptions)?;
    let level = match options.level {
        Level::None => GraphOptimizationLevel::ORT_DISABLE_ALL,
        Level::Basic => GraphOptimizationLevel::ORT_ENABLE_BASIC,
        Level::Default => GraphOptimizationLevel::ORT_ENABLE_ALL,
    };
    call!(api, SetSessionGraphOptimizationLevel(settings.raw(), level))?;
    if let Some(threads) = options.threads {
        let threads = i32::try_from(threads.get()).unwrap_or(i32::MAX);
        call!(api, SetIntraOpNumThreads(settings.raw(), threads))?;
    }
    if let Some(path) = options.write {
        let path = c_path(path)?;
        call!(api, SetOptimizedModelFilePath(settings.raw(), path.as_ptr()))?;
    }
    if let Some(folder) = options.folder {
        let folder = c_path(folder)?;
        call!(api, AddSessionConfigEntry(settings.raw(), EXTERNAL_DATA.as_ptr(), folder.as_ptr()))?;
    }
    Ok(settings)
}

fn domain(api: &Api, name: &CStr, parts: &[Part]) -> Result<Owned<OrtCustomOpDomain>, Failure> {
    let mut raw = ptr::null_mut();
    call!(api, CreateCustomOpDomain(name.as_ptr(), &raw mut raw))?;
    let domain = owned!(api, raw, ReleaseCustomOpDomain)?;
    for part in parts {
        call!(api, CustomOpDomain_Add(domain.raw(), part.as_operator()))?;
    }
    Ok(domain)
}

fn c_path(path: &Path) -> Result<CString, Failure> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Failure::invalid_argument(format!("path {path:?} has a NUL")))
}

/// Names of the session's inputs, or of its outputs.
fn names(api: &Api, session: &Owned<OrtSession>, of_inputs: bool) -> Result<Vec<CString>, Failure> {
    let session = session.raw().cast_const();
    let mut allocator: *mut OrtAllocator = ptr::null_mut();
    call!(api, GetAllocatorWithDefaultOptions(&raw mut allocator))?;
    let mut count = 0;
    match of_inputs {
        true => call!(api, SessionGetInputCount(session, &raw mut count))?,
        false => call!(api, SessionGetOutputCount(session, &raw mut count))?,
    }
    let name = |index| {
        let mut raw: *mut c_char = ptr::null_mut();
        match of_inputs {
            true => call!(api, SessionGetInputName(session, index, allocator, &raw mut raw))?,
            false => call!(api, SessionGetOutputName(session, index, allocator, &raw mut raw))?,
        }
        // SAFETY: the runtime made the string for us; it is freed behind the copy.
        let text = c_text(&unsafe { Api::text(raw) });
        call!(api, AllocatorFree(allocator, raw.cast()))?;
        Ok(text)
    };
    (0..count).map(name).collect()
}

/// An object of the runtime that we release.
#[derive(Debug)]
pub(super) struct Owned<T> {
    raw: NonNull<T>,
    release: unsafe extern "system" fn(*mut T),
    /// The process that made it.
    process: u32,
}

impl<T> Owned<T> {
    /// # Safety
    /// `raw` is null or an object that `release` releases, and nobody else does.
    unsafe fn new(
        raw: *mut T,
        release: unsafe extern "system" fn(*mut T),
    ) -> Result<Self, Failure> {
        let raw =
            NonNull::new(raw).ok_or_else(|| Failure::provider("ONNX Runtime made nothing"))?;
        Ok(Self { raw, release, process: std::process::id() })
    }

    fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    fn raw(&self) -> *mut T {
        self.raw.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // A forked child leaves its parent's objects alone: their threads are not there to be joined.
        if self.is_of_this_process() {
            // SAFETY: the object is ours and is not used again; `new` was promised that this releases it.
            unsafe { (self.release)(self.raw.as_ptr()) };
        }
    }
}
