//! The provider half of ONNX Runtime's C ABI, as of API version 30.
//!
//! `ort-sys` has the application half (`OrtApi`) and the opaque handles; these are the structures that
//! a provider fills and the table that it calls. Slot 0 of a structure that we fill is the API version
//! that we claim; ORT reads no slot newer than that. What ORT writes is a plain integer here, never an
//! `enum`: a newer ORT may write a value that this file does not know.

use std::ffi::{c_char, c_void};

use ort_sys::{
    OrtEpDevice, OrtGraph, OrtHardwareDevice, OrtKernelContext, OrtKeyValuePairs, OrtLogger,
    OrtMemoryInfo, OrtNode, OrtRunOptions, OrtSessionOptions, OrtStatusPtr, OrtSyncStream,
    OrtValue,
};

/// Newest API version that the structures here describe.
pub(crate) const NEWEST: u32 = 30;
/// Oldest API version that the plugin works with: the first with `OrtEp::Compile`.
pub(crate) const OLDEST: u32 = 23;

/// `OrtHardwareDeviceType_NPU`
pub(crate) const HARDWARE_NPU: u32 = 2;
/// `OrtMemoryInfoDeviceType_CPU`
pub(crate) const MEMORY_CPU: u32 = 0;

/// `OrtCompiledModelCompatibility_EP_NOT_APPLICABLE`
pub(crate) const COMPATIBILITY_NOT_APPLICABLE: i32 = 0;
/// `OrtCompiledModelCompatibility_EP_SUPPORTED_OPTIMAL`
pub(crate) const COMPATIBILITY_OPTIMAL: i32 = 1;
/// `OrtCompiledModelCompatibility_EP_SUPPORTED_PREFER_RECOMPILATION`
pub(crate) const COMPATIBILITY_RECOMPILE: i32 = 2;
/// `OrtCompiledModelCompatibility_EP_UNSUPPORTED`
pub(crate) const COMPATIBILITY_UNSUPPORTED: i32 = 3;

/// A slot that this provider neither fills nor calls.
pub(crate) type Unused = Option<unsafe extern "C" fn()>;

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        #[repr(C)]
        pub(crate) struct $name([u8; 0]);
    )*};
}

opaque! {
    /// Where GetCapability collects its claims.
    OrtEpGraphSupportInfo;
    /// What CreateState is told of a fused node.
    OrtNodeComputeContext;
    /// Which memory a value lives in.
    OrtMemoryDevice;
    /// An event of a profile.
    OrtProfilingEvent;
    /// Where a profiler puts its events.
    OrtProfilingEventsContainer;
}

/// Asserts that slot `n` of a structure of pointers stands `8 * n` bytes from its start.
macro_rules! slots {
    ($name:ident { $($field:ident = $slot:literal),* $(,)? } size $count:literal) => {
        const _: () = {
            $(assert!(std::mem::offset_of!($name, $field) == 8 * $slot, stringify!($field));)*
            assert!(size_of::<$name>() == 8 * $count);
        };
    };
}

/// `OrtEpFactory`: what `CreateEpFactories` hands out.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OrtEpFactory {
    pub(crate) version: u32,
    pub(crate) get_name: Option<unsafe extern "C" fn(*const OrtEpFactory) -> *const c_char>,
    pub(crate) get_vendor: Option<unsafe extern "C" fn(*const OrtEpFactory) -> *const c_char>,
    pub(crate) get_supported_devices: Option<
        unsafe extern "C" fn(
            *mut OrtEpFactory,
            *const *const OrtHardwareDevice,
            usize,
            *mut *mut OrtEpDevice,
            usize,
            *mut usize,
        ) -> OrtStatusPtr,
    >,
    pub(crate) create_ep: Option<
        unsafe extern "C" fn(
            *mut OrtEpFactory,
            *const *const OrtHardwareDevice,
            *const *const OrtKeyValuePairs,
            usize,
            *const OrtSessionOptions,
            *const OrtLogger,
            *mut *mut OrtEp,
        ) -> OrtStatusPtr,
    >,
    pub(crate) release_ep: Option<unsafe extern "C" fn(*mut OrtEpFactory, *mut OrtEp)>,
    pub(crate) get_vendor_id: Option<unsafe extern "C" fn(*const OrtEpFactory) -> u32>,
    pub(crate) get_version: Option<unsafe extern "C" fn(*const OrtEpFactory) -> *const c_char>,
    pub(crate) validate_compiled_model: Option<
        unsafe extern "C" fn(
            *mut OrtEpFactory,
            *const *const OrtHardwareDevice,
            usize,
            *const c_char,
            *mut i32,
        ) -> OrtStatusPtr,
    >,
    pub(crate) create_allocator: Option<
        unsafe extern "C" fn(
            *mut OrtEpFactory,
            *const OrtMemoryInfo,
            *const OrtKeyValuePairs,
            *mut *mut OrtAllocator,
        ) -> OrtStatusPtr,
    >,
    pub(crate) release_allocator:
        Option<unsafe extern "C" fn(*mut OrtEpFactory, *mut OrtAllocator)>,
    pub(crate) create_data_transfer: Option<
        unsafe extern "C" fn(*mut OrtEpFactory, *mut *mut OrtDataTransferImpl) -> OrtStatusPtr,
    >,
    pub(crate) is_stream_aware: Option<unsafe extern "C" fn(*const OrtEpFactory) -> bool>,
    pub(crate) create_sync_stream: Unused,
    /// v24: incompatibility details, resource importer, custom-op domains (2).
    pub(crate) v24: [Unused; 4],
    /// v25: graphics interop (2).
    pub(crate) v25: [Unused; 2],
    /// v28: choice among model candidates.
    pub(crate) v28: Unused,
}
slots!(OrtEpFactory {
    get_name = 1, get_vendor = 2, get_supported_devices = 3, create_ep = 4, release_ep = 5,
    get_vendor_id = 6, get_version = 7, validate_compiled_model = 8, create_allocator = 9,
    release_allocator = 10, create_data_transfer = 11, is_stream_aware = 12,
    create_sync_stream = 13, v24 = 14, v25 = 18, v28 = 20,
} size 21);

/// `OrtEp`: the provider of one session.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OrtEp {
    pub(crate) version: u32,
    pub(crate) get_name: Option<unsafe extern "C" fn(*const OrtEp) -> *const c_char>,
    pub(crate) get_capability: Option<
        unsafe extern "C" fn(
            *mut OrtEp,
            *const OrtGraph,
            *mut OrtEpGraphSupportInfo,
        ) -> OrtStatusPtr,
    >,
    pub(crate) compile: Option<
        unsafe extern "C" fn(
            *mut OrtEp,
            *const *const OrtGraph,
            *const *const OrtNode,
            usize,
            *mut *mut OrtNodeComputeInfo,
            *mut *mut OrtNode,
        ) -> OrtStatusPtr,
    >,
    pub(crate) release_node_compute_infos:
        Option<unsafe extern "C" fn(*mut OrtEp, *mut *mut OrtNodeComputeInfo, usize)>,
    pub(crate) get_preferred_data_layout: Unused,
    pub(crate) should_convert_data_layout: Unused,
    pub(crate) set_dynamic_options: Option<
        unsafe extern "C" fn(
            *mut OrtEp,
            *const *const c_char,
            *const *const c_char,
            usize,
        ) -> OrtStatusPtr,
    >,
    pub(crate) on_run_start:
        Option<unsafe extern "C" fn(*mut OrtEp, *const OrtRunOptions) -> OrtStatusPtr>,
    pub(crate) on_run_end:
        Option<unsafe extern "C" fn(*mut OrtEp, *const OrtRunOptions, bool) -> OrtStatusPtr>,
    pub(crate) create_allocator: Unused,
    pub(crate) create_sync_stream: Unused,
    pub(crate) get_compiled_model_compatibility:
        Option<unsafe extern "C" fn(*mut OrtEp, *const OrtGraph) -> *const c_char>,
    /// v24
    pub(crate) get_kernel_registry: Unused,
    /// v24
    pub(crate) is_concurrent_run_supported:
        Option<unsafe extern "C" fn(*mut OrtEp, *mut bool) -> OrtStatusPtr>,
    /// v25
    pub(crate) sync: Unused,
    /// v25
    pub(crate) create_profiler:
        Option<unsafe extern "C" fn(*mut OrtEp, *mut *mut OrtEpProfilerImpl) -> OrtStatusPtr>,
    /// v26: graph capture (4), available resource.
    pub(crate) v26: [Unused; 5],
    /// v27
    pub(crate) on_session_initialization_end:
        Option<unsafe extern "C" fn(*mut OrtEp) -> OrtStatusPtr>,
    /// v27: default memory device, release of captured graphs.
    pub(crate) v27: [Unused; 2],
    /// v29: weightless models.
    pub(crate) v29: Unused,
}
slots!(OrtEp {
    get_name = 1, get_capability = 2, compile = 3, release_node_compute_infos = 4,
    get_preferred_data_layout = 5, should_convert_data_layout = 6, set_dynamic_options = 7,
    on_run_start = 8, on_run_end = 9, create_allocator = 10, create_sync_stream = 11,
    get_compiled_model_compatibility = 12, get_kernel_registry = 13,
    is_concurrent_run_supported = 14, sync = 15, create_profiler = 16, v26 = 17, on_session_initialization_end = 22,
    v27 = 23, v29 = 25,
} size 26);

/// `OrtNodeComputeInfo`: what Compile returns for one fused node.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OrtNodeComputeInfo {
    pub(crate) version: u32,
    pub(crate) create_state: Option<
        unsafe extern "C" fn(
            *mut OrtNodeComputeInfo,
            *mut OrtNodeComputeContext,
            *mut *mut c_void,
        ) -> OrtStatusPtr,
    >,
    pub(crate) compute: Option<
        unsafe extern "C" fn(
            *mut OrtNodeComputeInfo,
            *mut c_void,
            *mut OrtKernelContext,
        ) -> OrtStatusPtr,
    >,
    pub(crate) release_state: Option<unsafe extern "C" fn(*mut OrtNodeComputeInfo, *mut c_void)>,
}
slots!(OrtNodeComputeInfo { create_state = 1, compute = 2, release_state = 3 } size 4);

/// `OrtNodeFusionOptions`
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OrtNodeFusionOptions {
    pub(crate) version: u32,
    /// Whether constants are left out of the inputs of the fused node.
    pub(crate) drop_constant_initializers: bool,
}
const _: () = assert!(std::mem::offset_of!(OrtNodeFusionOptions, drop_constant_initializers) == 4);

/// `OrtAllocator`; `ort-sys` has it without its newest slot, which ORT reads at version 25.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OrtAllocator {
    pub(crate) version: u32,
    pub(crate) alloc: Option<unsafe extern "C" fn(*mut OrtAllocator, usize) -> *mut c_void>,
    pub(crate) free: Option<unsafe extern "C" fn(*mut OrtAllocator, *mut c_void)>,
    pub(crate) info: Option<unsafe extern "C" fn(*const OrtAllocator) -> *const OrtMemoryInfo>,
    pub(crate) reserve: Option<unsafe extern "C" fn(*mut OrtAllocator, usize) -> *mut c_void>,
    /// v23
    pub(crate) get_stats: Unused,
    /// v23
    pub(crate) alloc_on_stream: Unused,
    /// v25
    pub(crate) shrink: Unused,
}
slots!(OrtAllocator {
    alloc = 1, free = 2, info = 3, reserve = 4, get_stats = 5, alloc_on_stream = 6, shrink = 7,
} size 8);

/// `OrtDataTransferImpl`
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OrtDataTransferImpl {
    pub(crate) version: u32,
    pub(crate) release: Option<unsafe extern "C" fn(*mut OrtDataTransferImpl)>,
    pub(crate) can_copy: Option<
        unsafe extern "C" fn(
            *const OrtDataTransferImpl,
            *const OrtMemoryDevice,
            *const OrtMemoryDevice,
        ) -> bool,
    >,
    pub(crate) copy_tensors: Option<
        unsafe extern "C" fn(
            *mut OrtDataTransferImpl,
            *mut *const OrtValue,
            *mut *mut OrtValue,
            *mut *mut OrtSyncStream,
            usize,
        ) -> OrtStatusPtr,
    >,
}
slots!(OrtDataTransferImpl { release = 1, can_copy = 2, copy_tensors = 3 } size 4);

/// `OrtEpProfilerImpl`, of version 25
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OrtEpProfilerImpl {
    pub(crate) version: u32,
    pub(crate) release: Option<unsafe extern "C" fn(*mut OrtEpProfilerImpl)>,
    pub(crate) start_profiling:
        Option<unsafe extern "C" fn(*mut OrtEpProfilerImpl, i64) -> OrtStatusPtr>,
    pub(crate) start_event: Unused,
    pub(crate) stop_event: Unused,
    pub(crate) end_profiling: Option<
        unsafe extern "C" fn(
            *mut OrtEpProfilerImpl,
            *mut OrtProfilingEventsContainer,
        ) -> OrtStatusPtr,
    >,
}
slots!(OrtEpProfilerImpl {
    release = 1, start_profiling = 2, start_event = 3, stop_event = 4, end_profiling = 5,
} size 6);

/// `OrtProfilingEventCategory_KERNEL`
pub(crate) const PROFILING_KERNEL: u32 = 2;

/// `OrtEpApi`, as far as it is called; no version slot. Slots 0 to 15 are there from version 23 on,
/// those to 49 from 24, the rest from 25.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OrtEpApi {
    pub(crate) create_ep_device: unsafe extern "C" fn(
        *mut OrtEpFactory,
        *const OrtHardwareDevice,
        *const OrtKeyValuePairs,
        *const OrtKeyValuePairs,
        *mut *mut OrtEpDevice,
    ) -> OrtStatusPtr,
    pub(crate) release_ep_device: unsafe extern "C" fn(*mut OrtEpDevice),
    pub(crate) add_nodes_to_fuse: unsafe extern "C" fn(
        *mut OrtEpGraphSupportInfo,
        *const *const OrtNode,
        usize,
        *const OrtNodeFusionOptions,
    ) -> OrtStatusPtr,
    pub(crate) add_single_node: Unused,
    pub(crate) node_compute_context_node_name: Unused,
    pub(crate) add_allocator_info:
        unsafe extern "C" fn(*mut OrtEpDevice, *const OrtMemoryInfo) -> OrtStatusPtr,
    pub(crate) memory_info_get_memory_device: Unused,
    pub(crate) value_get_memory_device: Unused,
    pub(crate) memory_device_are_equal: Unused,
    pub(crate) memory_device_get_device_type: unsafe extern "C" fn(*const OrtMemoryDevice) -> u32,
    pub(crate) memory_device_get_memory_type: Unused,
    pub(crate) memory_device_get_vendor_id: unsafe extern "C" fn(*const OrtMemoryDevice) -> u32,
    pub(crate) memory_device_get_device_id: Unused,
    pub(crate) sync_streams: [Unused; 3],
    /// v24
    pub(crate) create_hardware_device: unsafe extern "C" fn(
        u32,
        u32,
        u32,
        *const c_char,
        *const OrtKeyValuePairs,
        *mut *mut OrtHardwareDevice,
    ) -> OrtStatusPtr,
    /// v24
    pub(crate) release_hardware_device: unsafe extern "C" fn(*mut OrtHardwareDevice),
    /// v24: kernel registries and their helpers.
    pub(crate) kernels: [Unused; 31],
    /// v24
    pub(crate) get_env_config_entries:
        unsafe extern "C" fn(*mut *mut OrtKeyValuePairs) -> OrtStatusPtr,
    /// v25: queries of operator schemas.
    pub(crate) schemas: [Unused; 15],
    /// v25
    pub(crate) create_profiling_event: unsafe extern "C" fn(
        u32,
        i32,
        i32,
        *const c_char,
        i64,
        i64,
        *const *const c_char,
        *const *const c_char,
        usize,
        *mut *mut OrtProfilingEvent,
    ) -> OrtStatusPtr,
    /// v25
    pub(crate) release_profiling_event: unsafe extern "C" fn(*mut OrtProfilingEvent),
    /// v25: what an event holds.
    pub(crate) profiling_event_getters: [Unused; 5],
    /// v25
    pub(crate) add_profiling_events: unsafe extern "C" fn(
        *mut OrtProfilingEventsContainer,
        *const *const OrtProfilingEvent,
        usize,
    ) -> OrtStatusPtr,
}
slots!(OrtEpApi {
    create_ep_device = 0, release_ep_device = 1, add_nodes_to_fuse = 2, add_single_node = 3,
    node_compute_context_node_name = 4, add_allocator_info = 5, memory_info_get_memory_device = 6,
    value_get_memory_device = 7, memory_device_are_equal = 8, memory_device_get_device_type = 9,
    memory_device_get_memory_type = 10, memory_device_get_vendor_id = 11,
    memory_device_get_device_id = 12, sync_streams = 13, create_hardware_device = 16,
    release_hardware_device = 17, kernels = 18, get_env_config_entries = 49,
    schemas = 50, create_profiling_event = 65, release_profiling_event = 66,
    profiling_event_getters = 67, add_profiling_events = 72,
} size 73);
