//! The provider of one session: what it was asked for, its context on the device, and its callbacks.

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libnpu::Device;
use ort_sys::{OrtGraph, OrtNode, OrtRunOptions, OrtStatusPtr};

use crate::disk_cache::DiskCache;
use crate::{bundle, trace};

use super::api::{Api, Logger, Severity};
use super::capability;
use super::compile;
use super::compute::NodeProgram;
use super::ep_context::ContextOptions;
use super::factory::{EP_NAME_C, Factory};
use super::options::Options;
use super::profile::{self, Events};
use super::session_context::SessionContext;
use super::settings::Settings;
use super::status::{Failure, Kind, c_text, guard, guard_or};
use super::sys::{OrtEp, OrtEpGraphSupportInfo, OrtEpProfilerImpl, OrtNodeComputeInfo};
use super::terminate;
use super::view::{Graph, Node, array};

/// Most refused nodes that one error lists.
const MOST_SHOWN: usize = 16;

/// The provider; ONNX Runtime sees its first field.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Provider {
    ort: OrtEp,
    pub(crate) factory: Arc<Factory>,
    pub(crate) options: Options,
    pub(crate) compiled: ContextOptions,
    pub(crate) logger: Logger,
    pub(crate) device: Device,
    pub(crate) context: Arc<SessionContext>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) events: Arc<Events>,
    /// Where compiled parts are kept for other sessions.
    pub(crate) cache: Option<DiskCache>,
    /// What was refused so far, a line a node; an error in a strict session.
    refused: Mutex<Vec<String>>,
    /// What a compiled model says of its device.
    compatibility: CString,
    /// Parts of the model so far.
    parts: AtomicUsize,
}

impl Provider {
    /// Opens the device that `options` name.
    pub(crate) fn new(
        factory: Arc<Factory>,
        options: Options,
        compiled: ContextOptions,
        logger: Logger,
    ) -> Result<Box<Self>, Failure> {
        let failed = |error: libnpu::Error| {
            let failure = Failure::from_error(Kind::Provider, &error);
            failure.within(&format!("NPU device `{}`", options.device))
        };
        let device = Device::open(&options.device).map_err(failed)?;
        let context = SessionContext::open(&device).map_err(failed)?;
        let ort = OrtEp {
            version: factory.api().version(),
            get_name: Some(get_name),
            get_capability: Some(get_capability),
            compile: Some(compile_graphs),
            release_node_compute_infos: Some(release_node_compute_infos),
            get_preferred_data_layout: None,
            should_convert_data_layout: None,
            set_dynamic_options: Some(set_dynamic_options),
            on_run_start: Some(on_run_start),
            on_run_end: Some(on_run_end),
            create_allocator: None,
            create_sync_stream: None,
            get_compiled_model_compatibility: Some(get_compiled_model_compatibility),
            get_kernel_registry: None,
            is_concurrent_run_supported: Some(is_concurrent_run_supported),
            sync: None,
            create_profiler: Some(create_profiler),
            v26: [None; 5],
            on_session_initialization_end: Some(on_session_initialization_end),
            v27: [None; 2],
            v29: None,
        };
        let settings = Arc::new(Settings::new(&options));
        let events = Arc::new(Events::default());
        let folder = options.cache.as_deref();
        let cache = folder.map(|folder| DiskCache::new(folder, options.cache_bytes));
        let compatibility = c_text(&bundle::line(device.limits()));
        Ok(Box::new(Self {
            ort,
            factory,
            options,
            compiled,
            logger,
            device,
            context,
            settings,
            events,
            cache,
            refused: Mutex::default(),
            compatibility,
            parts: AtomicUsize::new(0),
        }))
    }

    /// The provider as the runtime holds it.
    pub(crate) fn into_raw(this: Box<Self>) -> *mut OrtEp {
        Box::into_raw(this).cast()
    }

    /// # Safety
    /// `raw` is from [`Provider::into_raw`] and is not used again.
    pub(crate) unsafe fn from_raw(raw: *mut OrtEp) -> Box<Self> {
        // SAFETY: the caller's promise; the table is the first field.
        unsafe { Box::from_raw(raw.cast()) }
    }

    /// # Safety
    /// `raw` is from [`Provider::into_raw`] and is not released during `'a`.
    unsafe fn borrow<'a>(raw: *const OrtEp) -> &'a Self {
        // SAFETY: the caller's promise; the table is the first field.
        unsafe { &*raw.cast() }
    }

    pub(crate) fn api(&self) -> &Api {
        self.factory.api()
    }

    /// A number for the next part of the model.
    pub(crate) fn next_part(&self) -> usize {
        self.parts.fetch_add(1, Ordering::Relaxed)
    }

    /// Remembers refused nodes, for strict sessions.
    pub(crate) fn refuse(&self, lines: Vec<String>) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
    }

    /// An error in a strict session of which any node was refused.
    fn check_strict(&self) -> Result<(), Failure> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.options.strict || refused.is_empty() {
            return Ok(());
        }
        let shown = refused.iter().take(MOST_SHOWN).map(String::as_str).collect::<Vec<_>>();
        let more = match refused.len().saturating_sub(MOST_SHOWN) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        Err(Failure::not_implemented(format!(
            "NPU option `strict` is set and not all of the model is taken: {}{more}",
            shown.join("; ")
        )))
    }
}

unsafe extern "C" fn get_name(_: *const OrtEp) -> *const c_char {
    EP_NAME_C.as_ptr()
}

unsafe extern "C" fn is_concurrent_run_supported(_: *mut OrtEp, out: *mut bool) -> OrtStatusPtr {
    // SAFETY: an out pointer of the runtime.
    unsafe { out.write(true) };
    OrtStatusPtr(ptr::null_mut())
}

unsafe extern "C" fn get_capability(
    this: *mut OrtEp,
    graph: *const OrtGraph,
    claims: *mut OrtEpGraphSupportInfo,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes a provider that it has not released.
    let provider = unsafe { Provider::borrow(this) };
    guard(provider.api(), || {
        // SAFETY: the graph is live during the callback.
        let Some(graph) = (unsafe { Graph::new(provider.api(), graph) }) else { return Ok(()) };
        // The runtime only logs an error of this callback, and at a level that few read.
        if let Err(failure) = capability::claim(provider, graph, claims) {
            let message = format!("NPU: no node is claimed: {failure}");
            provider.logger.log(Severity::Error, &message);
            provider.refuse(vec![message]);
        }
        Ok(())
    })
}

unsafe extern "C" fn compile_graphs(
    this: *mut OrtEp,
    graphs: *const *const OrtGraph,
    fused: *const *const OrtNode,
    len: usize,
    out: *mut *mut OrtNodeComputeInfo,
    context_nodes: *mut *mut OrtNode,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes a provider that it has not released.
    let provider = unsafe { Provider::borrow(this) };
    guard(provider.api(), || {
        provider.check_strict()?;
        let before = trace::counts();
        // SAFETY: both arrays have `len` handles, live during the callback.
        let graphs = unsafe { array(graphs, len) };
        // SAFETY: as above.
        let fused = unsafe { array(fused, len) };
        let mut programs = Vec::with_capacity(len);
        for (index, (&graph, &node)) in graphs.iter().zip(fused).enumerate() {
            // SAFETY: as above.
            let graph = unsafe { Graph::new(provider.api(), graph) };
            // SAFETY: as above.
            let node = unsafe { Node::new(provider.api(), node) };
            let (Some(graph), Some(node)) = (graph, node) else {
                return Err(Failure::invalid_graph(format!("fused node {index} of {len} is null")));
            };
            programs.push(compile::part(provider, graph, node)?);
        }
        let stages = trace::counts() - before;
        let before_compiled = programs.iter().filter(|part| part.is_loaded).count();
        provider.logger.log(
            Severity::Info,
            &format!("NPU compiler: {stages}; {before_compiled} of {len} part(s) compiled before"),
        );
        // Only now, so that an error leaves nothing behind.
        for (index, part) in programs.into_iter().enumerate() {
            // SAFETY: the runtime has room for `len`.
            let place = unsafe { out.add(index) };
            // SAFETY: as above.
            unsafe { place.write(NodeProgram::into_raw(part.program)) };
            if let Some(node) = part.context_node {
                // SAFETY: as above; the runtime asked for these nodes, so it has room for them too.
                let place = unsafe { context_nodes.add(index) };
                // SAFETY: as above.
                unsafe { place.write(node.into_raw()) };
            }
        }
        Ok(())
    })
}

unsafe extern "C" fn get_compiled_model_compatibility(
    this: *mut OrtEp,
    _: *const OrtGraph,
) -> *const c_char {
    // SAFETY: the runtime passes a provider that it has not released.
    let provider = unsafe { Provider::borrow(this) };
    provider.compatibility.as_ptr()
}

unsafe extern "C" fn release_node_compute_infos(
    _: *mut OrtEp,
    programs: *mut *mut OrtNodeComputeInfo,
    len: usize,
) {
    guard_or((), || {
        // SAFETY: the runtime returns what Compile wrote.
        for &program in unsafe { array(programs.cast_const(), len) } {
            if !program.is_null() {
                // SAFETY: as above, each once.
                drop(unsafe { NodeProgram::from_raw(program) });
            }
        }
    });
}

unsafe extern "C" fn on_run_start(this: *mut OrtEp, options: *const OrtRunOptions) -> OrtStatusPtr {
    // SAFETY: the runtime passes a provider that it has not released.
    let provider = unsafe { Provider::borrow(this) };
    guard(provider.api(), || {
        // Before version 27 a session has no end of its initialization to fail at.
        if provider.api().version() < 27 {
            provider.check_strict()?;
        }
        // Last: a run whose start fails is told no end, and its options would stay behind.
        terminate::begin(options);
        Ok(())
    })
}

unsafe extern "C" fn on_run_end(
    this: *mut OrtEp,
    _: *const OrtRunOptions,
    _wait: bool,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes a provider that it has not released.
    let provider = unsafe { Provider::borrow(this) };
    guard(provider.api(), || {
        terminate::end();
        Ok(())
    })
}

unsafe extern "C" fn set_dynamic_options(
    this: *mut OrtEp,
    keys: *const *const c_char,
    values: *const *const c_char,
    len: usize,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes a provider that it has not released.
    let provider = unsafe { Provider::borrow(this) };
    guard(provider.api(), || {
        // SAFETY: the runtime passes that many keys, for the length of the call.
        let keys = unsafe { array(keys, len) };
        // SAFETY: and as many values.
        let values = unsafe { array(values, len) };
        let pairs = keys.iter().zip(values).map(|(&key, &value)| {
            // SAFETY: a string of the runtime, live during the call.
            let key = unsafe { Api::text(key) };
            // SAFETY: as above.
            let value = unsafe { Api::text(value) };
            (key, value)
        });
        provider.settings.set(&pairs.collect::<Vec<_>>())
    })
}

unsafe extern "C" fn create_profiler(
    this: *mut OrtEp,
    out: *mut *mut OrtEpProfilerImpl,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes a provider that it has not released.
    let provider = unsafe { Provider::borrow(this) };
    guard(provider.api(), || {
        let profiler =
            profile::Profiler::into_raw(provider.factory.clone(), provider.events.clone());
        // SAFETY: an out pointer of the runtime.
        unsafe { out.write(profiler) };
        Ok(())
    })
}

unsafe extern "C" fn on_session_initialization_end(this: *mut OrtEp) -> OrtStatusPtr {
    // SAFETY: the runtime passes a provider that it has not released.
    let provider = unsafe { Provider::borrow(this) };
    // A model of which nothing is claimed is never compiled; this is where a strict session ends then.
    guard(provider.api(), || provider.check_strict())
}
