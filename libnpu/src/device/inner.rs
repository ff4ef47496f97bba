//! What the handles of one device share: its admin queue, its resets, and who is to be told of them.

use super::start::{bring_up, check_identity, quiet};
use super::{ADMIN_TIMEOUT, lock};
use crate::buffer::Buffer;
use crate::error::{Error, Fault, Loss};
use crate::faults::Faults;
use crate::heap::Heap;
use crate::queue::Queue;
use crate::transport::{Transport, TransportExt};
use npu_uapi::coredump::MOST_BYTES;
use npu_uapi::limits::Limits;
use npu_uapi::queue::{Completion, CreateContext, EntryHeader, GetDump, Identify, opcode};
use npu_uapi::reg::Register;
use npu_uapi::regs::{ABI_WITH_NAMES, Abort};
use npu_uapi::ring::SUBMISSION_WORDS;
use npu_uapi::workers::Caller;
use npu_workers::Pool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use zerocopy::FromBytes;

#[derive(Debug)]
pub(crate) struct Inner {
    pub(super) name: String,
    pub(super) limits: Limits,
    pub(crate) heap: Arc<Heap>,
    admin: RwLock<Admin>,
    pub(crate) faults: Faults,
    /// Counts resets: what was created before one is gone after it.
    epoch: AtomicU64,
    /// The epoch in which the device was last seen to have let go of all memory.
    quieted: AtomicU64,
    /// Queues to be told of a reset.
    queues: Mutex<Vec<Weak<Queue>>>,
    pub(super) pool: OnceLock<Pool>,
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

impl Inner {
    pub(super) fn start(name: &str, transport: Arc<dyn Transport>) -> Result<Self, Error> {
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

    /// Ends the jobs of `queue`, which is of `epoch`: after a reset the number may be another one's.
    pub(crate) fn abort_in(&self, epoch: u64, queue: u16) -> Result<(), Error> {
        // Held over the write: no queue of the next epoch is made before its admin queue is there.
        let admin = self.admin.read().unwrap_or_else(PoisonError::into_inner);
        if admin.epoch != epoch {
            return Err(Error::Lost { queue, why: Loss::Reset });
        }
        self.heap.transport.write(Abort::default().with(Abort::QUEUE, queue.into()))?;
        Ok(())
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

    pub(super) fn reset(&self) -> Result<(), Error> {
        self.heap.check_process()?;
        let _resetting = lock(&self.resetting);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let queues: Vec<Arc<Queue>> =
            lock(&self.queues).drain(..).filter_map(|queue| queue.upgrade()).collect();
        let old = self.current().queue;
        let all = || queues.iter().chain(std::iter::once(&old));
        all().for_each(|queue| queue.lose(Loss::Reset));
        if let Err(error) = quiet(self.heap.transport.as_ref()) {
            // The device may still use what is in flight: better never freed than too early.
            std::mem::forget(queues);
            return Err(error);
        }
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
