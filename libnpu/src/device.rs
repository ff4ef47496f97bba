//! A device: found, checked, started; its memory, limits and contexts.

mod inner;
mod start;

use crate::buffer::{Buffer, Memory};
use crate::context::{Context, ContextOptions};
use crate::device_string::DeviceString;
use crate::error::Error;
use crate::foreign::Foreign;
use crate::fork::PerProcess;
use crate::transport::{Access, Transport};
use npu_uapi::limits::Limits;
use npu_uapi::queue::{Counters, EntryHeader, GetLog, opcode};
use npu_uapi::status::FaultRecord;
use npu_uapi::telemetry::Snapshot;
use npu_uapi::workers::{Caller, Workers};
use npu_workers::Pool;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use zerocopy::FromBytes;

pub(crate) use inner::Inner;

/// How long the device may take over an admin entry or a change of state, which are short.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// An open NPU. A clone is the same device; the last one closes it.
#[derive(Clone, Debug)]
pub struct Device(pub(crate) Arc<Inner>);

/// The open devices of this process, by name.
static OPEN: PerProcess<HashMap<String, Weak<Inner>>> = PerProcess::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// Opens the device that `name` names: `sim`, `sim:macs=256,sram=512K`, `vfio-user:PATH` for one
    /// behind a socket, or `pci:0000:00:02.0` for one on the bus ([`DeviceString`]). One name is one device in a process: whoever opens it again shares it, unless
    /// it went away.
    ///
    /// # Errors
    /// The name cannot be read or reached, or what is there is no NPU that this library can drive.
    pub fn open(name: &str) -> Result<Self, Error> {
        let parsed = DeviceString::parse(name)?;
        let mut open = OPEN.lock();
        let known = open.get(name).and_then(Weak::upgrade);
        if let Some(inner) = known.filter(|inner| !inner.heap.transport.is_gone()) {
            return Ok(Self(inner));
        }
        let transport = connect(&parsed)?;
        let inner = Arc::new(Inner::start(name, transport)?);
        open.retain(|_, device| device.strong_count() > 0);
        open.insert(name.to_owned(), Arc::downgrade(&inner));
        Ok(Self(inner))
    }

    /// As [`Device::open`], but a device of its own that nobody else in this process shares.
    ///
    /// # Errors
    /// As for [`Device::open`].
    pub fn open_private(name: &str) -> Result<Self, Error> {
        Self::over(name, connect(&DeviceString::parse(name)?)?)
    }

    /// Opens the device behind `transport`, for whoever brings their own.
    ///
    /// # Errors
    /// What is there is no NPU that this library can drive.
    pub fn over(name: &str, transport: Arc<dyn Transport>) -> Result<Self, Error> {
        Ok(Self(Arc::new(Inner::start(name, transport)?)))
    }

    /// The device string.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What computes, for people.
    pub fn describe(&self) -> String {
        self.0.heap.transport.describe()
    }

    /// What the device reports of itself.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Words, mappings and interrupts below the queues.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.heap.transport
    }

    /// Whether this process may use the device, which a child that was forked after it was opened may
    /// not. Everything that reaches the device asks this first; who holds locks of their own around it
    /// asks before these.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn check_process(&self) -> Result<(), Error> {
        self.0.heap.check_process()
    }

    /// What the device has done since its last reset.
    ///
    /// # Errors
    /// The device does not answer.
    pub fn counters(&self) -> Result<Counters, Error> {
        let out = self.allocate(size_of::<Counters>())?;
        self.0.admin(
            |job| {
                let header = EntryHeader::new(opcode::GET_LOG, job);
                GetLog { header, out: out.iova(), ..GetLog::default() }.words()
            },
            crate::queue::Kept::new(out.clone()),
        )?;
        Counters::read_from_bytes(&out.to_vec()).map_err(|_| Error::Implausible)
    }

    /// What its telemetry page says now: what the device has done, and what it is. Nothing is submitted, and the
    /// device does not see it. A job's work may show a moment after the job has ended.
    ///
    /// # Errors
    /// It shows none, or the page changes all the time.
    pub fn telemetry(&self) -> Result<Snapshot, Error> {
        self.check_process()?;
        Ok(crate::telemetry::read(self.0.heap.transport.as_ref(), 0)?)
    }

    /// How often a completion was found without the interrupt that should have told of it. Nothing is
    /// lost by that but time, at most 0.1 s each; a device where this grows is broken.
    pub fn missed_interrupts(&self) -> u64 {
        self.0.heap.missed_interrupts.load(Ordering::Relaxed)
    }

    /// The latest fault records, oldest first.
    ///
    /// # Errors
    /// The device cannot be read.
    pub fn faults(&self) -> Result<Vec<FaultRecord>, Error> {
        self.check_process()?;
        self.0.faults.recent(self.0.heap.transport.as_ref())
    }

    /// What the last job of this device that faulted or hung has left, if any has: a core dump, which
    /// [`npu_uapi::coredump`] reads. It outlives resets. Where the environment's `NPU_DUMP_DIR` names a folder,
    /// each is also written there.
    ///
    /// # Errors
    /// The device does not answer.
    pub fn last_dump(&self) -> Result<Option<Vec<u8>>, Error> {
        self.0.last_dump()
    }

    /// `len` bytes that driver and device both see, zeroed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(&self, len: usize) -> Result<Buffer, Error> {
        Buffer::new(&self.0.heap, len)
    }

    /// The `len` bytes at `start` where they are part of a [`Buffer`] of this device: they need neither
    /// a mapping nor a copy. What is returned keeps the buffer.
    pub fn buffer_at(&self, start: *const u8, len: usize, access: Access) -> Option<Memory> {
        let (buffer, at) = Buffer::find(&self.0.heap, start, len)?;
        Memory::buffer(&buffer, at as u64, len as u64, access).ok()
    }

    /// Lets the device use `len` bytes at `start` in place.
    ///
    /// # Safety
    ///
    /// The bytes are valid, for writes too unless `access` is `Read`, until the value is dropped; no
    /// references to them exist while a job that is bound to them is in flight.
    ///
    /// # Errors
    /// [`Error::NotReachable`] when this device does not reach process memory: copy it then.
    pub unsafe fn map_foreign(
        &self,
        start: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Foreign, Error> {
        // SAFETY: the caller's promise is the one that `Foreign::map` asks for.
        unsafe { Foreign::map(&self.0.heap, start, len, access) }
    }

    /// A context: a queue, and the programs and tables that its jobs may name.
    ///
    /// # Errors
    /// The device has no room for another.
    pub fn create_context(&self) -> Result<Context, Error> {
        self.create_context_with(ContextOptions::default())
    }

    /// As [`Device::create_context`], with options.
    ///
    /// # Errors
    /// As for [`Device::create_context`].
    pub fn create_context_with(&self, options: ContextOptions) -> Result<Context, Error> {
        Context::new(&self.0, options)
    }

    /// Threads to compute with, shared by all that ask: as many as the device string says, else as the
    /// process may use.
    pub fn pool(&self) -> &dyn Workers {
        if self.check_process().is_err() {
            // The parent's threads are not here, and nothing is computed on its device.
            return &Caller;
        }
        self.0.pool.get_or_init(|| {
            let asked = self.0.heap.transport.threads();
            Pool::new(asked.unwrap_or_else(Pool::default_count))
        })
    }

    /// Resets the device and starts it anew. Every context is lost, and every job in flight ends.
    ///
    /// # Errors
    /// The device does not become quiet, or does not start.
    pub fn reset(&self) -> Result<(), Error> {
        self.0.reset()
    }
}

pub(crate) fn connect(parsed: &DeviceString) -> Result<Arc<dyn Transport>, Error> {
    match parsed {
        #[cfg(feature = "sim")]
        DeviceString::Sim { options } => {
            Ok(Arc::new(crate::transport::inproc::InProcess::new(options)?))
        }
        #[cfg(not(feature = "sim"))]
        DeviceString::Sim { options } => Err(Error::Unsupported {
            device: format!("sim:{options}"),
            why: "this build has no emulator; build with the feature `sim`",
        }),
        DeviceString::VfioUser { path, patience } => {
            let patience = patience.unwrap_or(crate::transport::vfio_user::PATIENCE);
            let path = path.as_ref();
            Ok(Arc::new(crate::transport::vfio_user::VfioUser::connect_within(path, patience)?))
        }
        DeviceString::Pci { address } => Ok(Arc::new(crate::transport::pci::Pci::open(address)?)),
    }
}
