//! Binds the tensors of one run to slots: in place where the device reaches them, else by copy.
//! Unsafe: the device uses addresses of the caller until the job has ended.

use super::{CopyCause, Outputs, Role, RunError, TensorRef};
use crate::emit::SCRATCH;
use crate::program::Edge;
use libnpu::{Access, Buffer, Device, Error, Foreign, Memory};
use npu_uapi::addr::SlotId;
use smallvec::SmallVec;
use std::sync::{Mutex, PoisonError};

/// What device memory is aligned to.
const DEVICE_ALIGN: usize = 64;

/// Inputs and outputs together, up to which a run allocates no lists of them.
const FEW: usize = 8;

/// What the slots of a job are.
pub(super) type Overlay = SmallVec<[(SlotId, Memory); FEW]>;

/// What one run binds, and what it must copy back.
///
/// Dropping it unmaps the caller's memory, and returns when the device no longer reaches it.
pub(super) struct Bound<'d> {
    device: &'d Device,
    deny_copy: bool,
    overlay: Overlay,
    mapped: SmallVec<[Foreign; FEW]>,
    staged: Vec<Staged>,
    copied_bytes: u64,
    /// Whether tensors lie in the device's own memory and are used there.
    is_in_place: bool,
}

/// An output in a buffer, and where the caller wants it.
struct Staged {
    buffer: Buffer,
    to: *mut u8,
}

impl<'d> Bound<'d> {
    pub(super) fn new(device: &'d Device, deny_copy: bool) -> Self {
        Self {
            device,
            deny_copy,
            overlay: Overlay::new(),
            mapped: SmallVec::new(),
            staged: Vec::new(),
            copied_bytes: 0,
            is_in_place: false,
        }
    }

    /// Binds an input.
    pub(super) fn input(
        &mut self,
        slot: SlotId,
        tensor: &TensorRef<'_>,
        edge: &Edge,
    ) -> Result<(), RunError> {
        let (data, len_bytes) = (tensor.as_ptr().cast_mut(), tensor.len_bytes());
        if self.map(slot, data, len_bytes, Access::Read)? {
            return Ok(());
        }
        self.check_copy(Role::Input, edge, data)?;
        let buffer = self.device.allocate(len_bytes)?;
        // SAFETY: a `TensorRef` is valid for reads of its length as long as it lives.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast_const(), len_bytes) };
        buffer.write(0, bytes)?;
        self.copied_bytes += len_bytes as u64;
        self.bind(slot, &buffer, len_bytes as u64, Access::Read)
    }

    /// Asks the caller for the memory of an output, and binds it.
    pub(super) fn output(
        &mut self,
        slot: SlotId,
        outputs: &mut dyn Outputs,
        index: usize,
        edge: &Edge,
    ) -> Result<(), RunError> {
        let data = outputs
            .output(index, edge.element, &edge.shape)
            .map_err(|why| RunError::Output { output: edge.name.clone(), why })?;
        let len_bytes = usize::try_from(edge.len_bytes()).unwrap_or(usize::MAX);
        if self.map(slot, data, len_bytes, Access::ReadWrite)? {
            return Ok(());
        }
        self.check_copy(Role::Output, edge, data)?;
        let buffer = self.device.allocate(len_bytes)?;
        self.bind(slot, &buffer, len_bytes as u64, Access::ReadWrite)?;
        self.staged.push(Staged { buffer, to: data });
        Ok(())
    }

    /// Binds scratch memory.
    pub(super) fn scratch(&mut self, buffer: &Buffer, len_bytes: u64) -> Result<(), RunError> {
        self.bind(SCRATCH, buffer, len_bytes, Access::ReadWrite)
    }

    /// The bindings, for the job.
    pub(super) fn overlay(&mut self) -> Overlay {
        std::mem::take(&mut self.overlay)
    }

    /// After the job: brings staged outputs to the caller. Returns the bytes copied in all.
    pub(super) fn finish(mut self) -> Result<u64, RunError> {
        for Staged { buffer, to } in &self.staged {
            // SAFETY: `Outputs` promises memory for the output, whose length is the buffer's.
            let bytes = unsafe { std::slice::from_raw_parts_mut(*to, buffer.len()) };
            buffer.read(0, bytes)?;
            self.copied_bytes += buffer.len() as u64;
        }
        Ok(self.copied_bytes)
    }

    /// Whether a job that is given up could go on to use the caller's tensors: it must be ended.
    pub(super) fn is_in_place(&self) -> bool {
        self.is_in_place
    }

    /// Uses the caller's memory where it lies; `false` when this device does not reach it.
    fn map(
        &mut self,
        slot: SlotId,
        data: *mut u8,
        len_bytes: usize,
        access: Access,
    ) -> Result<bool, RunError> {
        if let Some(memory) = self.device.buffer_at(data, len_bytes, access) {
            self.overlay.push((slot, memory));
            self.is_in_place = true;
            return Ok(true);
        }
        // SAFETY: the caller's tensors are valid until the run returns, and the mapping, which is in
        // `self`, ends before that.
        let foreign = match unsafe { self.device.map_foreign(data, len_bytes, access) } {
            Ok(foreign) => foreign,
            Err(Error::NotReachable) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        self.overlay.push((slot, Memory::foreign(&foreign, 0, len_bytes as u64)?));
        self.mapped.push(foreign);
        Ok(true)
    }

    /// Refuses the copy of a tensor at `data`, when copies are denied.
    fn check_copy(&self, role: Role, edge: &Edge, data: *const u8) -> Result<(), RunError> {
        if !self.deny_copy {
            return Ok(());
        }
        let past = data.addr() % DEVICE_ALIGN;
        let cause = if self.device.buffer_at(data, 1, Access::Read).is_some() {
            CopyCause::Straddles
        } else if past != 0 {
            CopyCause::Unaligned { past, align: DEVICE_ALIGN }
        } else {
            CopyCause::NotReachable
        };
        Err(RunError::Copy { role, tensor: edge.name.clone(), bytes: edge.len_bytes(), cause })
    }

    fn bind(
        &mut self,
        slot: SlotId,
        buffer: &Buffer,
        len_bytes: u64,
        access: Access,
    ) -> Result<(), RunError> {
        self.overlay.push((slot, Memory::buffer(buffer, 0, len_bytes, access)?));
        Ok(())
    }
}

/// Scratch buffers that no job uses.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    free: Mutex<Vec<Buffer>>,
}

/// Scratch buffers kept between runs: as many as runs at a time are likely.
const KEPT: usize = 4;

impl Scratch {
    /// A buffer of at least `len_bytes`; none for none.
    pub(super) fn take(&self, device: &Device, len_bytes: u64) -> Result<Option<Buffer>, Error> {
        if len_bytes == 0 {
            return Ok(None);
        }
        let len_bytes = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = free.iter().position(|buffer| buffer.len() >= len_bytes) {
            return Ok(Some(free.swap_remove(at)));
        }
        drop(free);
        device.allocate(len_bytes).map(Some)
    }

    /// Keeps `buffer` for the next run; its job must have ended.
    pub(super) fn give_back(&self, buffer: Option<Buffer>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(buffer);
        if free.len() > KEPT {
            let smallest = (0..free.len()).min_by_key(|&index| free[index].len());
            smallest.map(|index| free.swap_remove(index));
        }
    }
}
