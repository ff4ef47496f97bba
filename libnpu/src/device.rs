//! A device: found, checked, started; its admin queue, memory and limits.

use crate::buffer::{Buffer, Memory};
use crate::context::{Context, ContextOptions};
use crate::device_string::DeviceString;
use crate::error::{Error, Fault, Loss};
use crate::faults::{Faults, halves};
use crate::foreign::Foreign;
use crate::fork::PerProcess;
use crate::heap::Heap;
use crate::queue::Queue;
use crate::transport::{Access, Transport, TransportExt};
use npu_uapi::coredump::MOST_BYTES;
use npu_uapi::limits::Limits;
use npu_uapi::queue::{
    Completion, Counters, CreateContext, EntryHeader, GetDump, GetLog, Identify, opcode,
};
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    self, ABI, ABI_WITH_NAMES, AbiRange, AdminBaseHigh, AdminBaseLow, AdminSize, Ctrl, IrqMask,
    MAGIC, Magic, state,
};
use npu_uapi::ring::{RingLayout, SUBMISSION_WORDS};
use npu_uapi::status::FaultRecord;
use npu_uapi::telemetry::Snapshot;
use npu_uapi::workers::{Caller, Workers};
use npu_workers::Pool;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// How long the device may take over an admin entry or a change of state, which are short.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take to notice that it is to change its state.
const STATE_TIMEOUT: Duration = Duration::from_secs(2);

/// Log2 of the admin queue's rings.
const ADMIN_LOG2: u32 = 6;

/// An open NPU. A clone is the same device; the last one closes it.
#[derive(Clone, Debug)]
pub struct Device(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    name: String,
    limits: Limits,
    pub(crate) heap: Arc<Heap>,
    admin: RwLock<Admin>,
    pub(crate) faults: Faults,
    /// Counts resets: what was created before one is gone after it.
    epoch: AtomicU64,
    /// The epoch in which the device was last seen to have let go of all memory.
    quieted: AtomicU64,
    /// Queues to be told of a reset.
    queues: Mutex<Vec<Weak<Queue>>>,
    pool: OnceLock<Pool>,
    /// Held while the device is reset.
    resetting: Mutex<()>,
    /// Highest version of the ABI that the device speaks.
    abi: u32,
}

/// The admin queue of one epoch. What is made through it is of that epoch, whatever comes meanwhile.
#[derive(Clone, Debug)]
struct Admin {
    epoch: u64,
    queue: Arc<Queue>,
}

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
        crate::telemetry::read(self.0.heap.transport.as_ref())
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

impl Inner {
    fn start(name: &str, transport: Arc<dyn Transport>) -> Result<Self, Error> {
        let abi = check_identity(name, transport.as_ref())?;
        let heap = Arc::new(Heap::new(transport));
        quiet(heap.transport.as_ref())?;
        let faults = Faults::new(Buffer::new(&heap, Faults::BYTES)?);
        let admin = bring_up(&heap, &faults)?;
        let mut inner = Self {
            name: name.to_owned(),
            limits: Limits::REFERENCE,
            heap,
            admin: RwLock::new(Admin { epoch: 0, queue: Arc::new(admin) }),
            faults,
            epoch: AtomicU64::new(0),
            quieted: AtomicU64::new(0),
            queues: Mutex::new(Vec::new()),
            pool: OnceLock::new(),
            resetting: Mutex::new(()),
            abi,
        };
        inner.limits = inner.identify()?;
        Ok(inner)
    }

    fn identify(&self) -> Result<Limits, Error> {
        let out = Buffer::new(&self.heap, size_of::<Limits>())?;
        self.admin(
            |job| {
                let header = EntryHeader::new(opcode::IDENTIFY, job);
                Identify { header, out: out.iova(), ..Identify::default() }.words()
            },
            crate::queue::Kept::new(out.clone()),
        )?;
        let limits = Limits::read_from_bytes(&out.to_vec()).map_err(|_| Error::Implausible)?;
        if limits.is_plausible() { Ok(limits) } else { Err(Error::Implausible) }
    }

    /// Submits an admin entry and waits for its answer, which must be `OK`.
    pub(crate) fn admin(
        &self,
        entry: impl FnOnce(u32) -> [u32; SUBMISSION_WORDS],
        kept: crate::queue::Kept,
    ) -> Result<Completion, Error> {
        self.ask(&self.current().queue, entry, kept)
    }

    /// The same, of the device as it was in `epoch`: an error where it was reset since, or is being reset.
    pub(crate) fn admin_in(
        &self,
        epoch: u64,
        entry: impl FnOnce(u32) -> [u32; SUBMISSION_WORDS],
        kept: crate::queue::Kept,
    ) -> Result<Completion, Error> {
        let admin = self.current();
        if admin.epoch != epoch {
            return Err(Error::Lost { queue: 0, why: Loss::Reset });
        }
        self.ask(&admin.queue, entry, kept)
    }

    fn current(&self) -> Admin {
        self.admin.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ask(
        &self,
        queue: &Arc<Queue>,
        entry: impl FnOnce(u32) -> [u32; SUBMISSION_WORDS],
        kept: crate::queue::Kept,
    ) -> Result<Completion, Error> {
        self.heap.check_process()?;
        let ticket = queue.submit(entry, kept)?;
        // Admin entries compute nothing; while it waits this thread may go on with a job, alone.
        let completion = queue.wait(&ticket, &Caller, ADMIN_TIMEOUT)?;
        self.judge(completion, 0)
    }

    /// The completion when it says `OK`, else the fault that explains it.
    pub(crate) fn judge(&self, completion: Completion, queue: u16) -> Result<Completion, Error> {
        if completion.status.is_ok() {
            return Ok(completion);
        }
        let record = self.faults.find(self.heap.transport.as_ref(), completion.fault);
        let (status, job) = (completion.status, completion.job);
        Err(Error::Fault(Box::new(Fault { status, queue, job, record })))
    }

    /// Whether LOAD_PROGRAM may bring names, and GET_DUMP is known.
    pub(crate) fn takes_names(&self) -> bool {
        self.abi >= ABI_WITH_NAMES.into()
    }

    /// What the last job that failed has left, if any has.
    pub(crate) fn last_dump(&self) -> Result<Option<Vec<u8>>, Error> {
        if !self.takes_names() {
            return Ok(None);
        }
        let out = Buffer::new(&self.heap, MOST_BYTES)?;
        let entry = |job| {
            let header = EntryHeader::new(opcode::GET_DUMP, job);
            let (out, len) = (out.iova(), MOST_BYTES as u64);
            GetDump { header, out, len, ..GetDump::default() }.words()
        };
        let len = self.admin(entry, crate::queue::Kept::new(out.clone()))?.value;
        let len = usize::try_from(len).ok().filter(|&len| len <= MOST_BYTES);
        let mut bytes = vec![0; len.ok_or(Error::Implausible)?];
        out.read(0, &mut bytes)?;
        Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    pub(crate) fn new_context_id(&self, epoch: u64) -> Result<u32, Error> {
        let completion = self.admin_in(
            epoch,
            |job| {
                let header = EntryHeader::new(opcode::CREATE_CONTEXT, job);
                CreateContext { header, ..CreateContext::default() }.words()
            },
            crate::queue::Kept::new(()),
        )?;
        Ok(completion.value)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether the device has let go of all that was in flight in `epoch`: a reset came since, for whose
    /// end this waits, or it is made quiet here, being good for nothing else.
    pub(crate) fn has_let_go(&self, epoch: u64) -> bool {
        if self.epoch() != epoch {
            let _over = lock(&self.resetting);
            return self.quieted.load(Ordering::Acquire) > epoch;
        }
        let transport = self.heap.transport.as_ref();
        // One that cannot be asked to was another process, or is no more: it keeps what it mapped, whatever
        // is freed here.
        transport.is_gone() && matches!(quiet(transport), Ok(()) | Err(Error::Transport(_)))
    }

    /// A new I/O queue, to be told of resets.
    pub(crate) fn register(&self, queue: &Arc<Queue>) {
        let mut queues = lock(&self.queues);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(queue));
    }

    fn reset(&self) -> Result<(), Error> {
        self.heap.check_process()?;
        let _resetting = lock(&self.resetting);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let queues: Vec<Arc<Queue>> =
            lock(&self.queues).drain(..).filter_map(|queue| queue.upgrade()).collect();
        let old = self.current().queue;
        let all = || queues.iter().chain(std::iter::once(&old));
        all().for_each(|queue| queue.lose(Loss::Reset));
        quiet(self.heap.transport.as_ref())?;
        self.quieted.store(self.epoch(), Ordering::Release);
        // The device has made its last access to what was in flight.
        all().for_each(|queue| queue.release());
        let admin = bring_up(&self.heap, &self.faults)?;
        let admin = Admin { epoch: self.epoch(), queue: Arc::new(admin) };
        *self.admin.write().unwrap_or_else(PoisonError::into_inner) = admin;
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.heap.check_process().is_ok() {
            // What it leaves mapped goes with the transport.
            let _ = quiet(self.heap.transport.as_ref());
        }
    }
}

/// Whether an NPU with a version of the ABI in common is there; its highest.
fn check_identity(name: &str, transport: &dyn Transport) -> Result<u32, Error> {
    let magic = transport.read::<Magic>()?.raw();
    if magic != MAGIC {
        return Err(Error::NotAnNpu { device: name.to_owned(), found: magic });
    }
    let range: AbiRange = transport.read()?;
    let device = (range.get(AbiRange::LOW), range.get(AbiRange::HIGH));
    let has_common = device.0 <= u32::from(ABI.1) && u32::from(ABI.0) <= device.1;
    if !has_common {
        return Err(Error::AbiMismatch { device, library: ABI });
    }
    Ok(device.1)
}

/// Resets the device and waits until it no longer touches memory.
fn quiet(transport: &dyn Transport) -> Result<(), Error> {
    transport.write(Ctrl::default().with(Ctrl::RESET, true))?;
    wait_state(transport, state::RESET)
}

/// Starts a quiet device: fault ring, admin queue, ready.
fn bring_up(heap: &Arc<Heap>, faults: &Faults) -> Result<Queue, Error> {
    let transport = heap.transport.as_ref();
    faults.start(transport)?;
    let lost = |error| Error::Lost { queue: 0, why: Loss::Ring(error) };
    let layout = RingLayout::new(ADMIN_LOG2, ADMIN_LOG2).map_err(lost)?;
    let region = Buffer::new(heap, layout.total_bytes())?;
    let (low, high) = halves(region.iova().raw());
    transport.write(AdminBaseLow::from_raw(low))?;
    transport.write(AdminBaseHigh::from_raw(high))?;
    let size = AdminSize::default().with(AdminSize::SQ_LOG2, ADMIN_LOG2);
    transport.write(size.with(AdminSize::CQ_LOG2, ADMIN_LOG2))?;
    transport.write(IrqMask::default().with(IrqMask::ADMIN, true))?;
    let queue = Queue::new(heap, (0, 0), region, layout)?;
    transport.write(Ctrl::default().with(Ctrl::ENABLE, true))?;
    wait_state(transport, state::READY)?;
    Ok(queue)
}

fn wait_state(transport: &dyn Transport, want: u32) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        let found = transport.read::<regs::Status>()?.get(regs::Status::STATE);
        let waited = started.elapsed();
        if found == want {
            return Ok(());
        }
        // It may take longer to end a job, but says that it does.
        let patience = if found == state::QUIESCING { ADMIN_TIMEOUT } else { STATE_TIMEOUT };
        if waited > patience {
            return Err(Error::State { found, want, waited });
        }
        // A register has no interrupt to wait for here; the device changes within milliseconds.
        std::thread::yield_now();
    }
}
