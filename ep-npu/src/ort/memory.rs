//! Memory that both ONNX Runtime and the device see: the allocator, and copies between tensors.
//!
//! Blocks are device buffers, which the host reads and writes like any memory, so the runtime is told
//! that it is plain CPU memory (of our vendor): it adds no copies, and numpy arrays view it directly.
//! A block may be freed through another allocator than it came from, and after the factory is gone, so
//! the blocks are kept by the process.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, MutexGuard};

use libnpu::{Buffer, Device, PerProcess};
use ort_sys::{OrtMemoryInfo, OrtStatusPtr, OrtSyncStream, OrtValue};

use super::api::{Severity, call};
use super::factory::{Factory, VENDOR};
use super::options;
use super::status::{Failure, Kind, guard, guard_or};
use super::sys::{self, OrtAllocator, OrtDataTransferImpl, OrtMemoryDevice};
use super::view;

/// Every block that the runtime holds, by address. Those that a forked child has from its parent are
/// not among its own: they stay mapped, for whoever still has a view of them.
static BLOCKS: PerProcess<BTreeMap<usize, Buffer>> = PerProcess::new();

fn blocks() -> MutexGuard<'static, BTreeMap<usize, Buffer>> {
    BLOCKS.lock()
}

/// Allocator of device buffers; ONNX Runtime sees its first field.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct PoolAllocator {
    ort: OrtAllocator,
    factory: Arc<Factory>,
    /// Opened with the first block, so that registering the library starts nothing; a forked child
    /// opens one of its own.
    device: PerProcess<Option<Device>>,
}

impl PoolAllocator {
    /// A new allocator, as the runtime holds it.
    pub(crate) fn into_raw(factory: Arc<Factory>) -> *mut OrtAllocator {
        let ort = OrtAllocator {
            version: factory.api().version(),
            alloc: Some(alloc),
            free: Some(free),
            info: Some(info),
            reserve: Some(alloc),
            get_stats: None,
            alloc_on_stream: None,
            shrink: None,
        };
        Box::into_raw(Box::new(Self { ort, factory, device: PerProcess::new() })).cast()
    }

    /// # Safety
    /// `raw` is from [`PoolAllocator::into_raw`] and is not used again.
    pub(crate) unsafe fn from_raw(raw: *mut OrtAllocator) -> Box<Self> {
        // SAFETY: the caller's promise; the table is the first field.
        unsafe { Box::from_raw(raw.cast()) }
    }

    fn allocate(&self, len_bytes: usize) -> Result<*mut c_void, Failure> {
        let failure = |error: libnpu::Error| Failure::from_error(Kind::Provider, &error);
        let mut opened = self.device.lock();
        let device = match &*opened {
            Some(device) => device.clone(),
            None => Device::open(&options::device_by_default()).map_err(failure)?,
        };
        opened.get_or_insert_with(|| device.clone());
        drop(opened);
        let buffer = device.allocate(len_bytes).map_err(failure)?;
        let start = buffer.as_ptr();
        blocks().insert(start.addr(), buffer);
        Ok(start.cast())
    }
}

unsafe extern "C" fn alloc(this: *mut OrtAllocator, len_bytes: usize) -> *mut c_void {
    guard_or(ptr::null_mut(), || {
        if len_bytes == 0 {
            return ptr::null_mut();
        }
        // SAFETY: the runtime passes an allocator of `into_raw` that it has not released.
        let allocator: &PoolAllocator = unsafe { &*this.cast() };
        allocator.allocate(len_bytes).unwrap_or_else(|failure| {
            let message = format!("NPU: no memory for {len_bytes} bytes: {failure}");
            allocator.factory.logger().log(Severity::Error, &message);
            ptr::null_mut()
        })
    })
}

unsafe extern "C" fn free(_: *mut OrtAllocator, block: *mut c_void) {
    guard_or((), || {
        let buffer = blocks().remove(&block.addr());
        // Outside the lock: the last buffer of an arena unmaps it.
        drop(buffer);
    });
}

unsafe extern "C" fn info(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: the runtime passes an allocator of `into_raw` that it has not released.
    let allocator: &PoolAllocator = unsafe { &*this.cast() };
    allocator.factory.memory()
}

/// Copies tensors between our memory and the host's, which is the host's own work.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Copier {
    ort: OrtDataTransferImpl,
    factory: Arc<Factory>,
}

impl Copier {
    /// A new copier, as the runtime holds it.
    pub(crate) fn into_raw(factory: Arc<Factory>) -> *mut OrtDataTransferImpl {
        let ort = OrtDataTransferImpl {
            version: factory.api().version(),
            release: Some(release),
            can_copy: Some(can_copy),
            copy_tensors: Some(copy_tensors),
        };
        Box::into_raw(Box::new(Self { ort, factory })).cast()
    }

    /// Whether the runtime says of `place` that it is host memory, and whether it is ours.
    fn place(&self, place: *const OrtMemoryDevice) -> (bool, bool) {
        let table = self.factory.api().ep();
        // SAFETY: the slot is in version 23.
        let device_type = unsafe { (*table).memory_device_get_device_type };
        // SAFETY: the slot is in version 23.
        let vendor = unsafe { (*table).memory_device_get_vendor_id };
        // SAFETY: the runtime lends `place` for the callback.
        let is_host = unsafe { device_type(place) } == sys::MEMORY_CPU;
        // SAFETY: as above.
        let is_ours = unsafe { vendor(place) } == VENDOR;
        (is_host, is_ours)
    }

    fn copy(&self, from: *const OrtValue, to: *mut OrtValue) -> Result<(), Failure> {
        let api = self.factory.api();
        // SAFETY: the runtime lends both tensors for the callback.
        let source = unsafe { view::Value::new(api, from) };
        let (mut source_len, mut target_len) = (0, 0);
        call!(api, GetTensorSizeInBytes(from, &raw mut source_len))?;
        call!(api, GetTensorSizeInBytes(to, &raw mut target_len))?;
        if source_len != target_len {
            return Err(Failure::invalid_argument(format!(
                "copy of a tensor of {source_len} bytes into one of {target_len}"
            )));
        }
        let Some(source) = source.filter(|_| source_len > 0) else { return Ok(()) };
        let data = source.data()?;
        let mut target: *mut c_void = ptr::null_mut();
        call!(api, GetTensorMutableData(to, &raw mut target))?;
        if !ptr::eq(data, target.cast()) {
            // SAFETY: both tensors have that many bytes; `copy` allows them to overlap.
            unsafe { ptr::copy(data, target.cast(), source_len) };
        }
        Ok(())
    }
}

unsafe extern "C" fn release(this: *mut OrtDataTransferImpl) {
    guard_or((), || {
        // SAFETY: the runtime returns a copier of `into_raw`, once; the table is its first field.
        drop(unsafe { Box::from_raw(this.cast::<Copier>()) });
    });
}

unsafe extern "C" fn can_copy(
    this: *const OrtDataTransferImpl,
    from: *const OrtMemoryDevice,
    to: *const OrtMemoryDevice,
) -> bool {
    guard_or(false, || {
        // SAFETY: the runtime passes a copier of `into_raw` that it has not released.
        let copier: &Copier = unsafe { &*this.cast() };
        let ((from_host, from_ours), (to_host, to_ours)) = (copier.place(from), copier.place(to));
        // Between two places that are not ours, the runtime's own copy is meant.
        from_host && to_host && (from_ours || to_ours)
    })
}

unsafe extern "C" fn copy_tensors(
    this: *mut OrtDataTransferImpl,
    from: *mut *const OrtValue,
    to: *mut *mut OrtValue,
    _streams: *mut *mut OrtSyncStream,
    len: usize,
) -> OrtStatusPtr {
    // SAFETY: the runtime passes a copier of `into_raw` that it has not released.
    let copier: &Copier = unsafe { &*this.cast() };
    guard(copier.factory.api(), || {
        // SAFETY: both arrays have `len` tensors, for the length of the call.
        let sources = unsafe { view::array(from.cast_const(), len) };
        // SAFETY: as above.
        let targets = unsafe { view::array(to.cast_const(), len) };
        for (&source, &target) in sources.iter().zip(targets) {
            copier.copy(source, target)?;
        }
        Ok(())
    })
}
