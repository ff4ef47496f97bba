//! A context: a queue, and the programs and base tables that its jobs may name.

use crate::buffer::{Buffer, Memory};
use crate::device::{Device, Inner as DeviceInner};
use crate::error::{Error, Loss};
use crate::heap::Heap;
use crate::job::Job;
use crate::queue::{Kept, Queue};
use crate::uses::{Spare, binding, count};
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::names::Names;
use npu_uapi::queue::{
    Bind, Binding, CopyEntry, CreateQueue, Destroy, EntryHeader, Exec, FillEntry, LoadProgram, Nop,
    Timestamp, opcode, priority,
};
use npu_uapi::ring::RingLayout;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Log2 of a context's rings: as many jobs in flight.
const QUEUE_LOG2: u8 = 6;

/// How soon the jobs of a context run, compared with those of others on the same device.
///
/// A job of a higher priority goes first, and stops one of a lower priority until it has ended. Jobs of
/// one priority share the device fairly.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Priority {
    /// When nothing else is to be done.
    Background,
    /// What everything has that does not ask.
    #[default]
    Normal,
    /// Before the normal ones.
    High,
    /// Before all others.
    Urgent,
}

impl Priority {
    /// As CREATE_QUEUE has it.
    fn code(self) -> u32 {
        match self {
            Self::Normal => priority::NORMAL,
            Self::High => priority::HIGH,
            Self::Urgent => priority::URGENT,
            Self::Background => priority::BACKGROUND,
        }
    }
}

/// What a context is made with.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ContextOptions {
    /// Of its jobs.
    pub priority: Priority,
}

impl ContextOptions {
    /// These options with another priority.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
}

/// A context of a device. A clone is the same one; the last one ends its jobs.
#[derive(Clone, Debug)]
pub struct Context(Arc<Owner>);

/// The handles' share of a context. Programs and tables, which jobs in flight keep, hold only
/// [`Inner`]: so a job does not keep its own queue alive.
#[derive(Debug)]
struct Owner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: Arc<DeviceInner>,
    id: u32,
    queue: Arc<Queue>,
    /// Resets the device had been through when this was made.
    epoch: u64,
    spare: Spare,
}

/// A loaded program: verified and sealed by the device. A clone is the same one; the last unloads it.
#[derive(Clone, Debug)]
pub struct Program(Arc<Object>);

/// A base table: the slots that are the same in every job. A clone is the same one; the last ends it.
#[derive(Clone, Debug)]
pub struct Table(Arc<BoundTable>);

#[derive(Debug)]
struct BoundTable {
    // First: the table goes before the memory that it names.
    object: Object,
    _memory: Vec<Memory>,
}

/// Something of a context that ends by an admin entry.
#[derive(Debug)]
struct Object {
    context: Arc<Inner>,
    id: u32,
    end: u8,
}

impl Drop for Object {
    fn drop(&mut self) {
        if self.context.is_alive() {
            // Nothing is lost when it fails: the object goes with its context.
            let _ = self.context.destroy(self.end, self.id);
        }
    }
}

impl Program {
    pub(crate) fn heap(&self) -> &Heap {
        &self.0.context.device.heap
    }

    /// Where the room of its jobs is kept.
    pub(crate) fn spare(&self) -> &Spare {
        &self.0.context.spare
    }
}

impl Context {
    pub(crate) fn new(device: &Arc<DeviceInner>, options: ContextOptions) -> Result<Self, Error> {
        let epoch = device.epoch();
        if let Some(why) = device.heap.transport.gone() {
            return Err(Error::Lost { queue: 0, why: Loss::Gone(why) });
        }
        let id = device.new_context_id(epoch)?;
        match open_queue(device, (id, epoch), options) {
            Ok(queue) => {
                let device = Arc::clone(device);
                let spare = Spare::new();
                Ok(Self(Arc::new(Owner(Arc::new(Inner { device, id, queue, epoch, spare })))))
            }
            Err(error) => {
                // The context would stay, unused, until the next reset.
                let _ = end(device, epoch, opcode::DESTROY_CONTEXT, id);
                Err(error)
            }
        }
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }

    /// The device it is a context of.
    pub fn device(&self) -> Device {
        Device(Arc::clone(&self.inner().device))
    }

    /// The number of its queue, as fault records have it.
    pub fn queue_id(&self) -> u16 {
        self.inner().queue.id
    }

    /// Jobs in flight; in a forked child, which has none, zero.
    pub fn in_flight(&self) -> u32 {
        if self.inner().device.heap.check_process().is_err() {
            return 0;
        }
        self.inner().queue.poll();
        self.inner().queue.in_flight()
    }

    /// Loads a program image ([`npu_uapi::image`]); the device verifies and seals it.
    ///
    /// # Errors
    /// [`Error::Fault`] with `PROGRAM_REFUSED` and the verifier's rule.
    pub fn load(&self, image: &[u8]) -> Result<Program, Error> {
        self.load_named(image, &Names::default())
    }

    /// As [`Context::load`], and tells a device that wants to know which nodes the program's operations
    /// are: its own log and dumps name them then.
    ///
    /// # Errors
    /// As for [`Context::load`].
    pub fn load_named(&self, image: &[u8], names: &Names) -> Result<Program, Error> {
        let inner = self.inner();
        inner.check_alive()?;
        let buffer = Buffer::new(&inner.device.heap, image.len())?;
        buffer.write(0, image)?;
        let names = if inner.device.takes_names() { names.as_bytes() } else { &[] };
        let named = match names {
            [] => None,
            names => {
                let buffer = Buffer::new(&inner.device.heap, names.len())?;
                buffer.write(0, names)?;
                Some(buffer)
            }
        };
        let names_len = u32::try_from(names.len()).unwrap_or(0);
        let entry = |job| {
            LoadProgram {
                header: EntryHeader::new(opcode::LOAD_PROGRAM, job),
                image: buffer.iova(),
                len: image.len() as u64,
                context: inner.id,
                names_len,
                names: named.as_ref().map_or(Iova::default(), Buffer::iova),
                ..LoadProgram::default()
            }
            .words()
        };
        let kept = Kept::new((buffer.clone(), named.clone()));
        let id = inner.device.admin_in(inner.epoch, entry, kept)?.value;
        let (context, end) = (Arc::clone(inner), opcode::UNLOAD_PROGRAM);
        Ok(Program(Arc::new(Object { context, id, end })))
    }

    /// Makes a base table of `slots`, which it keeps.
    ///
    /// # Errors
    /// [`Error::NotOurs`], or the device's fault for what it refuses.
    pub fn bind(&self, slots: &[(SlotId, Memory)]) -> Result<Table, Error> {
        let inner = self.inner();
        inner.check_alive()?;
        let (buffer, count) = bindings(&inner.device.heap, slots)?;
        let table = buffer.as_ref().map_or(Iova::default(), Buffer::iova);
        let entry = |job| {
            Bind {
                header: EntryHeader::new(opcode::BIND, job),
                table,
                count,
                context: inner.id,
                ..Bind::default()
            }
            .words()
        };
        let id = inner.device.admin_in(inner.epoch, entry, Kept::new(buffer))?.value;
        let object = Object { context: Arc::clone(inner), id, end: opcode::UNBIND };
        let memory = slots.iter().map(|(_, memory)| memory.clone()).collect();
        Ok(Table(Arc::new(BoundTable { object, _memory: memory })))
    }

    /// Submits a job: `program` on `table` overlaid with `overlay`. The job owns what it names until
    /// it ends, however long its handle lives.
    ///
    /// # Errors
    /// [`Error::QueueFull`] when as many jobs are in flight as the queue holds; nothing was submitted.
    pub fn exec(
        &self,
        program: &Program,
        table: Option<&Table>,
        overlay: impl IntoIterator<Item = (SlotId, Memory)>,
    ) -> Result<Job, Error> {
        let inner = self.inner();
        inner.check_alive()?;
        let is_ours = |object: &Object| Arc::ptr_eq(&object.context, inner);
        if !is_ours(&program.0) {
            return Err(Error::NotOurs { what: "the program" });
        }
        if table.is_some_and(|table| !is_ours(&table.0.object)) {
            return Err(Error::NotOurs { what: "the table" });
        }
        let named = (program, table);
        let (uses, address, count) = inner.spare.uses(&inner.device.heap, named, overlay)?;
        let (program_id, table_id) = (program.0.id, table.map_or(0, |table| table.0.object.id));
        let entry = |job| {
            Exec {
                header: EntryHeader::new(opcode::EXEC, job),
                overlay: address,
                count,
                program: program_id,
                table: table_id,
                ..Exec::default()
            }
            .words()
        };
        self.submit(entry, Kept::Exec { _uses: uses })
    }

    /// Submits a copy of `from` to `to`, of equal length.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when the lengths differ, [`Error::QueueFull`].
    pub fn copy(&self, from: &Memory, to: &Memory) -> Result<Job, Error> {
        self.inner().check_ours([from, to])?;
        if from.len() != to.len() {
            return Err(Error::OutOfRange { start: 0, len: from.len(), size: to.len() });
        }
        let (src, dst, len) = (from.iova(), to.iova(), to.len());
        let entry = |job| {
            let header = EntryHeader::new(opcode::COPY, job);
            CopyEntry { header, src, dst, len, ..CopyEntry::default() }.words()
        };
        self.submit(entry, Kept::new((from.clone(), to.clone())))
    }

    /// Submits a fill of `to` with `value`.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn fill(&self, to: &Memory, value: u8) -> Result<Job, Error> {
        self.inner().check_ours([to])?;
        let (dst, len) = (to.iova(), to.len());
        let entry = |job| {
            let header = EntryHeader::new(opcode::FILL, job);
            FillEntry { header, dst, len, value: value.into(), ..FillEntry::default() }.words()
        };
        self.submit(entry, Kept::new(to.clone()))
    }

    /// Submits an entry that only completes.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn nop(&self) -> Result<Job, Error> {
        let entry =
            |job| Nop { header: EntryHeader::new(opcode::NOP, job), ..Nop::default() }.words();
        self.submit(entry, Kept::new(()))
    }

    /// Submits an entry that completes with the device's modelled cycles.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn timestamp(&self) -> Result<Job, Error> {
        let entry = |job| {
            let header = EntryHeader::new(opcode::TIMESTAMP, job);
            Timestamp { header, ..Timestamp::default() }.words()
        };
        self.submit(entry, Kept::new(()))
    }

    /// Submits any sixteen words, for tests of what the device refuses: `entry` is given the job
    /// number that it must carry in its second word.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub fn submit_words(&self, entry: impl FnOnce(u32) -> [u32; 16]) -> Result<Job, Error> {
        self.submit(entry, Kept::new(()))
    }

    /// Ends every job in flight with `ABORTED`.
    ///
    /// # Errors
    /// The device cannot be reached.
    pub fn abort(&self) -> Result<(), Error> {
        self.inner().check_alive()?;
        self.inner().abort()
    }

    fn submit(&self, entry: impl FnOnce(u32) -> [u32; 16], kept: Kept) -> Result<Job, Error> {
        self.inner().check_alive()?;
        let ticket = self.inner().queue.submit(entry, kept)?;
        Ok(Job::new(Arc::clone(&self.inner().device), Arc::clone(&self.inner().queue), ticket))
    }
}

/// Bindings in device memory, and their number; no memory when there are none.
fn bindings(heap: &Arc<Heap>, slots: &[(SlotId, Memory)]) -> Result<(Option<Buffer>, u32), Error> {
    if slots.is_empty() {
        return Ok((None, 0));
    }
    let table: Result<Vec<Binding>, Error> = slots.iter().map(|slot| binding(heap, slot)).collect();
    let table = table?;
    let bytes = table.as_slice().as_bytes();
    let buffer = Buffer::new(heap, bytes.len())?;
    buffer.write(0, bytes)?;
    Ok((Some(buffer), count(slots)?))
}

fn open_queue(
    device: &Arc<DeviceInner>,
    (context, epoch): (u32, u64),
    options: ContextOptions,
) -> Result<Arc<Queue>, Error> {
    let log2 = QUEUE_LOG2.min(u8::try_from(device.limits().ring_log2).unwrap_or(QUEUE_LOG2));
    let lost = |error| Error::Lost { queue: 0, why: Loss::Ring(error) };
    let layout = RingLayout::new(log2.into(), log2.into()).map_err(lost)?;
    let region = Buffer::new(&device.heap, layout.total_bytes())?;
    // Vector 0 is the admin queue's; the others go round.
    let vectors = u16::try_from(device.limits().vectors).unwrap_or(u16::MAX);
    let vector = match u16::try_from(context) {
        _ if vectors < 2 => 0,
        Ok(context) => 1 + context % (vectors - 1),
        Err(_) => 1,
    };
    let entry = |job| {
        CreateQueue {
            header: EntryHeader::new(opcode::CREATE_QUEUE, job),
            base: region.iova(),
            context,
            sq_log2: log2,
            cq_log2: log2,
            vector,
            priority: options.priority.code(),
            ..CreateQueue::default()
        }
        .words()
    };
    let id = device.admin_in(epoch, entry, Kept::new(region.clone()))?.value;
    let id = u16::try_from(id).ok().filter(|&id| id != 0).ok_or(Error::Implausible)?;
    let queue = Arc::new(Queue::new(&device.heap, (id, vector), region, layout)?);
    device.register(&queue);
    Ok(queue)
}

fn end(device: &DeviceInner, epoch: u64, opcode: u8, id: u32) -> Result<(), Error> {
    let entry =
        |job| Destroy { header: EntryHeader::new(opcode, job), id, ..Destroy::default() }.words();
    device.admin_in(epoch, entry, Kept::new(())).map(drop)
}

impl Inner {
    /// Whether the device still knows it.
    fn is_alive(&self) -> bool {
        self.epoch == self.device.epoch() && self.device.heap.check_process().is_ok()
    }

    fn check_alive(&self) -> Result<(), Error> {
        self.device.heap.check_process()?;
        if self.epoch == self.device.epoch() {
            Ok(())
        } else {
            Err(Error::Lost { queue: self.queue.id, why: Loss::Reset })
        }
    }

    fn check_ours<'a>(&self, memory: impl IntoIterator<Item = &'a Memory>) -> Result<(), Error> {
        let mut memory = memory.into_iter();
        if memory.all(|memory| Arc::ptr_eq(memory.heap(), &self.device.heap)) {
            Ok(())
        } else {
            Err(Error::NotOurs { what: "the memory" })
        }
    }

    fn abort(&self) -> Result<(), Error> {
        self.device.abort_in(self.epoch, self.queue.id)
    }

    fn destroy(&self, opcode: u8, id: u32) -> Result<(), Error> {
        end(&self.device, self.epoch, opcode, id)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let inner = &self.0;
        if inner.device.heap.check_process().is_err() {
            // In a forked child it is the parent's.
            return;
        }
        // A job that runs notices; the admin entry behind it then finds the queue at rest. After a reset
        // both are refused, and the device has let go by its end.
        let _ = inner.abort();
        let ended = inner.destroy(opcode::DESTROY_QUEUE, inner.queue.id.into());
        inner.queue.poll();
        inner.queue.lose(Loss::Destroyed);
        if ended.is_ok() || inner.device.has_let_go(inner.epoch) {
            inner.queue.release();
        } else {
            // The device may still use what is in flight: better never freed than too early.
            std::mem::forget(Arc::clone(&inner.queue));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.is_alive() {
            // When it fails, it goes with the next reset.
            let _ = self.destroy(opcode::DESTROY_CONTEXT, self.id);
        }
    }
}
