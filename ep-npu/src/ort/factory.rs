//! The factory: which devices there are, and the making of providers, allocators and copies.
//!
//! A factory is reference-counted. `ReleaseEpFactory` comes while sessions, tensors and results are
//! still alive, and ONNX Runtime goes through the factory's table to release those, so each of them
//! holds a count; what the runtime keeps pointers to (devices, memory infos) lives as long.

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ort_sys::{
    OrtEpDevice, OrtHardwareDevice, OrtHardwareDeviceType, OrtKeyValuePairs, OrtLogger,
    OrtMemoryInfo, OrtSessionOptions, OrtStatusPtr,
};

use crate::bundle::Fit;
use libnpu::Device;

use super::api::{Api, KeyValues, Logger, MemoryInfo, Severity, call};
use super::ep_context::ContextOptions;
use super::memory::{Copier, PoolAllocator};
use super::options::{self, Options};
use super::provider::Provider;
use super::status::{Failure, Kind, c_text, guard, guard_or};
use super::sys::{self, OrtAllocator, OrtDataTransferImpl, OrtEp, OrtEpFactory};
use super::terminate::FlagOffset;
use super::view;

/// Name of the provider: what a session asks for.
pub(crate) const EP_NAME: &str = "NpuExecutionProvider";
/// The same, for C.
pub(crate) const EP_NAME_C: &CStr = c"NpuExecutionProvider";
const VENDOR_NAME: &CStr = c"ep-npu";
/// A semantic version; the runtime refuses anything else.
const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("the package version contains a NUL"),
    };
/// Entry of the environment's configuration with which a user refuses virtual devices.
const ALLOW_VIRTUAL: &str = "allow_virtual_devices";

/// First version to which the device's memory is offered: crashes were seen with 23 and 25.
const LENDS_MEMORY: u32 = 28;

/// Vendor of the devices and of the memory.
pub(crate) const VENDOR: u32 = npu_uapi::regs::pci::VENDOR as u32;
const DEVICE: u32 = npu_uapi::regs::pci::DEVICE as u32;

/// The factory; ONNX Runtime sees its first field.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Factory {
    ort: OrtEpFactory,
    api: Api,
    memory: MemoryInfo,
    logger: Logger,
    /// Where run options say that a run is to end, if it was found.
    terminate: Option<FlagOffset>,
    /// The virtual device, made when first asked for.
    hardware: Mutex<Option<Hardware>>,
}

impl Factory {
    /// A factory for the runtime of `api`.
    pub(crate) fn new(api: Api, logger: Logger) -> Result<Arc<Self>, Failure> {
        let ort = OrtEpFactory {
            version: api.version(),
            get_name: Some(get_name),
            get_vendor: Some(get_vendor),
            get_supported_devices: Some(get_supported_devices),
            create_ep: Some(create_ep),
            release_ep: Some(release_ep),
            get_vendor_id: Some(get_vendor_id),
            get_version: Some(get_version),
            validate_compiled_model: Some(validate_compiled_model),
            create_allocator: Some(create_allocator),
            release_allocator: Some(release_allocator),
            create_data_transfer: Some(create_data_transfer),
            is_stream_aware: Some(is_stream_aware),
            create_sync_stream: None,
            v24: [None; 4],
            v25: [None; 2],
            v28: None,
        };
        let memory = api.memory_info(VENDOR)?;
        let terminate = FlagOffset::measure(&api);
        Ok(Arc::new(Self { ort, api, memory, logger, terminate, hardware: Mutex::new(None) }))
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    /// Where run options say that a run is to end, if it was found.
    pub(crate) fn terminate(&self) -> Option<FlagOffset> {
        self.terminate
    }

    /// The logger of the environment.
    pub(crate) fn logger(&self) -> &Logger {
        &self.logger
    }

    /// The one description of memory that the devices have.
    pub(crate) fn memory(&self) -> *const OrtMemoryInfo {
        self.memory.as_ptr()
    }

    /// One count, as the runtime holds it.
    pub(crate) fn into_raw(this: Arc<Self>) -> *mut OrtEpFactory {
        Arc::into_raw(this).cast_mut().cast()
    }

    /// Takes back a count.
    ///
    /// # Safety
    /// `raw` is from [`Factory::into_raw`], whose count has not been taken back.
    pub(crate) unsafe fn from_raw(raw: *mut OrtEpFactory) -> Arc<Self> {
        // SAFETY: the caller's promise; the table is the first field, so the address is the factory's.
        unsafe { Arc::from_raw(raw.cast_const().cast()) }
    }

    /// # Safety
    /// `raw` is from [`Factory::into_raw`], and some count is held during `'a`.
    unsafe fn borrow<'a>(raw: *const OrtEpFactory) -> &'a Self {
        // SAFETY: the caller's promise; the table is the first field.
        unsafe { &*raw.cast() }
    }

    /// # Safety
    /// As for [`Factory::borrow`], for the length of the call.
    unsafe fn share(raw: *const OrtEpFactory) -> Arc<Self> {
        let this: *const Self = raw.cast();
        // SAFETY: the caller's promise; the new count is owned by the value made below.
        unsafe { Arc::increment_strong_count(this) };
        // SAFETY: the count just added.
        unsafe { Arc::from_raw(this) }
    }

    /// The device to offer: the virtual NPU, or the CPU where the runtime knows no virtual devices.
    fn hardware(
        &self,
        offered: &[*const OrtHardwareDevice],
    ) -> Result<Option<*const OrtHardwareDevice>, Failure> {
        if self.api.version() < 24 {
            return Ok(offered.iter().copied().find(|&device| self.is_cpu(device)));
        }
        let refused = |(key, value): &(String, String)| key == ALLOW_VIRTUAL && value == "0";
        if self.api.environment_entries()?.iter().any(refused) {
            return Ok(None);
        }
        let mut hardware = self.hardware.lock().unwrap_or_else(PoisonError::into_inner);
        if hardware.is_none() {
            *hardware = Some(Hardware::new(&self.api)?);
        }
        Ok(hardware.as_ref().map(|hardware| hardware.raw.cast_const()))
    }

    fn is_cpu(&self, device: *const OrtHardwareDevice) -> bool {
        let table = self.api.ort();
        // SAFETY: the slot is in version 22.
        let kind = unsafe { (*table).HardwareDevice_Type };
        // SAFETY: the runtime offers the device in this call. It is asked in version 23 only, whose
        // three kinds are all that the enum knows.
        unsafe { kind(device) == OrtHardwareDeviceType::OrtHardwareDeviceType_CPU }
    }

    /// A new device of the runtime, which takes it over.
    fn device(
        &self,
        this: *mut OrtEpFactory,
        hardware: *const OrtHardwareDevice,
    ) -> Result<*mut OrtEpDevice, Failure> {
        let name = c_text(&options::device_by_default());
        let metadata = KeyValues::new(&self.api, &[(c"npu.device", name)]);
        // What `device_id` of a list of provider options is compared with.
        let options = KeyValues::new(&self.api, &[(c"device_id", c"0".to_owned())]);
        let (metadata_list, option_list) = (metadata.as_ptr(), options.as_ptr());
        let mut device = ptr::null_mut();
        call!(
            &self.api,
            ep.create_ep_device(this, hardware, metadata_list, option_list, &raw mut device)
        )?;
        // Before this version a result can outlive the provider whose memory it is in, which ONNX
        // Runtime then still calls; and nobody can ask for such memory. Results are its own there.
        if self.api.version() < LENDS_MEMORY {
            return Ok(device);
        }
        let added = call!(&self.api, ep.add_allocator_info(device, self.memory.as_ptr()));
        if added.is_err() {
            let table = self.api.ep();
            // SAFETY: the slot is in version 23.
            let release = unsafe { (*table).release_ep_device };
            // SAFETY: the device was made above and given to nobody.
            unsafe { release(device) };
        }
        added.map(|()| device)
    }
}

/// A virtual device, which the runtime keeps a pointer to.
#[derive(Debug)]
struct Hardware {
    api: Api,
    raw: *mut OrtHardwareDevice,
}

// SAFETY: a hardware device is constant after creation.
unsafe impl Send for Hardware {}

impl Hardware {
    fn new(api: &Api) -> Result<Self, Failure> {
        let metadata = KeyValues::new(api, &[(c"is_virtual", c"1".to_owned())]);
        let mut raw = ptr::null_mut();
        call!(
            api,
            ep.create_hardware_device(
                sys::HARDWARE_NPU,
                VENDOR,
                DEVICE,
                VENDOR_NAME.as_ptr(),
                metadata.as_ptr(),
                &raw mut raw,
            )
        )?;
        Ok(Self { api: *api, raw })
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        let table = self.api.ep();
        // SAFETY: a device was made, so the version is 24 or newer and has the slot.
        let release = unsafe { (*table).release_hardware_device };
        // SAFETY: ours, and the factory that kept it for the runtime is gone.
        unsafe { release(self.raw) };
    }
}

unsafe extern "C" fn get_name(_: *const OrtEpFactory) -> *const c_char {
    EP_NAME_C.as_ptr()
}

unsafe extern "C" fn get_vendor(_: *const OrtEpFactory) -> *const c_char {
    VENDOR_NAME.as_ptr()
}

unsafe extern "C" fn get_vendor_id(_: *const OrtEpFactory) -> u32 {
    VENDOR
}

unsafe extern "C" fn get_version(_: *const OrtEpFactory) -> *const c_char {
    VERSION.as_ptr()
}

unsafe extern "C" fn is_stream_aware(_: *const OrtEpFactory) -> bool {
    false
}

unsafe extern "C" fn get_supported_devices(
    this: *mut OrtEpFactory,
    offered: *const *const OrtHardwareDevice,
    offered_len: usize,
    out: *mut *mut OrtEpDevice,
    room: usize,
    out_len: *mut usize,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes the factory that it was given.
    let factory = unsafe { Factory::borrow(this) };
    guard(&factory.api, || {
        // SAFETY: an out pointer of the runtime.
        unsafe { out_len.write(0) };
        // SAFETY: the runtime passes that many devices, for the length of the call.
        let offered = unsafe { view::array(offered, offered_len) };
        let Some(hardware) = factory.hardware(offered)?.filter(|_| room > 0) else {
            return Ok(());
        };
        let device = factory.device(this, hardware)?;
        // SAFETY: there is room for one.
        unsafe { out.write(device) };
        // SAFETY: an out pointer of the runtime.
        unsafe { out_len.write(1) };
        Ok(())
    })
}

unsafe extern "C" fn create_ep(
    this: *mut OrtEpFactory,
    _devices: *const *const OrtHardwareDevice,
    _metadata: *const *const OrtKeyValuePairs,
    _len: usize,
    session: *const OrtSessionOptions,
    logger: *const OrtLogger,
    out: *mut *mut OrtEp,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes the factory that it was given.
    let factory = unsafe { Factory::share(this) };
    let api = *factory.api();
    guard(&api, || {
        // SAFETY: an out pointer of the runtime.
        unsafe { out.write(ptr::null_mut()) };
        // SAFETY: the options are live during the call.
        let entries = unsafe { api.session_entries(session) }?;
        let options = Options::from_session(&entries)?;
        let compiled = ContextOptions::from_session(&entries)?;
        // SAFETY: the session's logger lives as long as its providers.
        let logger = unsafe { Logger::new(&api, logger) };
        let provider = Provider::new(factory, options, compiled, logger)?;
        // SAFETY: an out pointer of the runtime.
        unsafe { out.write(Provider::into_raw(provider)) };
        Ok(())
    })
}

unsafe extern "C" fn release_ep(_: *mut OrtEpFactory, provider: *mut OrtEp) {
    guard_or((), || {
        if !provider.is_null() {
            // SAFETY: the runtime returns a provider of `create_ep`, once.
            drop(unsafe { Provider::from_raw(provider) });
        }
    });
}

/// Whether the session's default device runs what a compiled model's line says it is for.
unsafe extern "C" fn validate_compiled_model(
    this: *mut OrtEpFactory,
    _devices: *const *const OrtHardwareDevice,
    _len: usize,
    line: *const c_char,
    out: *mut i32,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes the factory that it was given.
    let factory = unsafe { Factory::borrow(this) };
    guard(&factory.api, || {
        // SAFETY: an out pointer of the runtime.
        unsafe { out.write(sys::COMPATIBILITY_NOT_APPLICABLE) };
        // SAFETY: the runtime passes a string that is live during the call.
        let line = unsafe { Api::text(line) };
        let name = options::device_by_default();
        let device = Device::open(&name).map_err(|error| {
            Failure::from_error(Kind::Provider, &error).within(&format!("NPU device `{name}`"))
        })?;
        let verdict = match Fit::of_line(&line, device.limits()) {
            Fit::Same => sys::COMPATIBILITY_OPTIMAL,
            Fit::Runs => sys::COMPATIBILITY_RECOMPILE,
            Fit::No(why) => {
                let line = format!("NPU: a compiled model does not run on `{name}`: {why}");
                factory.logger.log(Severity::Warning, &line);
                sys::COMPATIBILITY_UNSUPPORTED
            }
        };
        // SAFETY: an out pointer of the runtime.
        unsafe { out.write(verdict) };
        Ok(())
    })
}

unsafe extern "C" fn create_allocator(
    this: *mut OrtEpFactory,
    _info: *const OrtMemoryInfo,
    _options: *const OrtKeyValuePairs,
    out: *mut *mut OrtAllocator,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes the factory that it was given.
    let factory = unsafe { Factory::share(this) };
    let api = *factory.api();
    guard(&api, || {
        let allocator = PoolAllocator::into_raw(factory);
        // SAFETY: an out pointer of the runtime.
        unsafe { out.write(allocator) };
        Ok(())
    })
}

unsafe extern "C" fn release_allocator(_: *mut OrtEpFactory, allocator: *mut OrtAllocator) {
    guard_or((), || {
        if !allocator.is_null() {
            // SAFETY: the runtime returns an allocator of `create_allocator`, once.
            drop(unsafe { PoolAllocator::from_raw(allocator) });
        }
    });
}

unsafe extern "C" fn create_data_transfer(
    this: *mut OrtEpFactory,
    out: *mut *mut OrtDataTransferImpl,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes the factory that it was given.
    let factory = unsafe { Factory::share(this) };
    let api = *factory.api();
    guard(&api, || {
        let copier = Copier::into_raw(factory);
        // SAFETY: an out pointer of the runtime.
        unsafe { out.write(copier) };
        Ok(())
    })
}
