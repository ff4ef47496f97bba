//! What a job that runs a program uses until it has ended: its room is kept for the jobs that follow, so
//! that a steady run allocates nothing.

use crate::buffer::{Buffer, Memory};
use crate::context::{Program, Table};
use crate::error::Error;
use crate::heap::Heap;
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::queue::Binding;
use smallvec::SmallVec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::IntoBytes;

/// Jobs whose room is kept.
const KEPT: usize = 4;
/// Slots for which there is room.
const FEW: usize = 8;

/// Room of jobs that have ended.
#[derive(Debug)]
#[expect(clippy::vec_box, reason = "it is the boxes that are kept")]
pub(crate) struct Spare(Mutex<Vec<Box<Room>>>);

/// What a job uses.
#[derive(Debug, Default)]
struct Room {
    /// Where the device reads what the slots are.
    bindings: Option<Buffer>,
    overlay: SmallVec<[(SlotId, Memory); FEW]>,
    program: Option<Program>,
    table: Option<Table>,
}

/// What a job uses; when it is dropped, its room is spare.
#[derive(Debug)]
pub(crate) struct Uses(Option<Box<Room>>);

impl Spare {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Vec::with_capacity(KEPT)))
    }

    #[expect(clippy::vec_box, reason = "it is the boxes that are kept")]
    fn lock(&self) -> MutexGuard<'_, Vec<Box<Room>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a job of `program` uses, with the address and number of the bindings of `overlay`, which are
    /// written to memory of the device.
    pub(crate) fn uses(
        &self,
        heap: &Arc<Heap>,
        (program, table): (&Program, Option<&Table>),
        overlay: impl IntoIterator<Item = (SlotId, Memory)>,
    ) -> Result<(Uses, Iova, u32), Error> {
        let mut room = self.lock().pop().unwrap_or_default();
        room.overlay.extend(overlay);
        room.table = table.cloned();
        let (address, count) = room.bind(heap)?;
        room.program = Some(program.clone());
        Ok((Uses(Some(room)), address, count))
    }
}

impl Room {
    fn bind(&mut self, heap: &Arc<Heap>) -> Result<(Iova, u32), Error> {
        if self.overlay.is_empty() {
            return Ok((Iova::default(), 0));
        }
        let mut table = SmallVec::<[Binding; FEW]>::new();
        for slot in &self.overlay {
            table.push(binding(heap, slot)?);
        }
        let bytes = table.as_slice().as_bytes();
        let buffer = match self.bindings.take().filter(|buffer| buffer.len() >= bytes.len()) {
            Some(buffer) => buffer,
            None => Buffer::new(heap, bytes.len().max(FEW * size_of::<Binding>()))?,
        };
        buffer.write(0, bytes)?;
        let address = buffer.iova();
        self.bindings = Some(buffer);
        Ok((address, count(&self.overlay)?))
    }
}

impl Drop for Uses {
    fn drop(&mut self) {
        let Some(mut room) = self.0.take() else { return };
        let Some(program) = room.program.take() else { return };
        // Before the lock: these may submit when they go.
        room.overlay.clear();
        room.table = None;
        // A forked child may find the lock held for ever.
        if program.heap().check_process().is_ok() {
            let mut spare = program.spare().lock();
            if spare.len() < KEPT {
                spare.push(room);
            }
        }
    }
}

/// How many bindings these are.
pub(crate) fn count(slots: &[(SlotId, Memory)]) -> Result<u32, Error> {
    let many = Error::OutOfRange { start: 0, len: slots.len() as u64, size: u32::MAX.into() };
    u32::try_from(slots.len()).map_err(|_| many)
}

/// A slot as the device reads it.
pub(crate) fn binding(
    heap: &Arc<Heap>,
    (slot, memory): &(SlotId, Memory),
) -> Result<Binding, Error> {
    if !Arc::ptr_eq(memory.heap(), heap) {
        return Err(Error::NotOurs { what: "the memory of a slot" });
    }
    let (base, len, access) = (memory.iova(), memory.len(), memory.access().bits());
    Ok(Binding { base, len, slot: *slot, access, ..Binding::default() })
}
