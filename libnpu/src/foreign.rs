//! Memory of the application, used in place where the device can reach it.

use crate::dma::DmaMemory;
use crate::error::Error;
use crate::heap::Heap;
use crate::transport::Access;
use npu_uapi::addr::Iova;
use std::ptr::NonNull;
use std::sync::Arc;

/// A mapping of memory that somebody else owns. Dropping it ends the jobs that still use the memory,
/// and returns when the device no longer reaches it.
#[derive(Debug)]
pub struct Foreign {
    lease: Arc<Lease>,
    access: Access,
    is_mapped: bool,
}

/// The addresses of a foreign mapping. A queued job that outlives the mapping faults on them; they are
/// not used again before it has.
#[derive(Debug)]
pub(crate) struct Lease {
    heap: Arc<Heap>,
    iova: Iova,
    len: u64,
}

impl Lease {
    pub(crate) fn heap(&self) -> &Arc<Heap> {
        &self.heap
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.heap.check_process().is_ok() {
            self.heap.release(self.iova, self.len);
        }
    }
}

impl Foreign {
    /// Maps `len` bytes at `start`.
    ///
    /// # Safety
    ///
    /// The bytes are valid, for writes too unless `access` is `Read`, until the value is dropped; no
    /// references to them exist while a job that is bound to them is in flight.
    pub(crate) unsafe fn map(
        heap: &Arc<Heap>,
        start: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Self, Error> {
        heap.check_process()?;
        if !heap.transport.reaches_process_memory() {
            return Err(Error::NotReachable);
        }
        let bytes = len as u64;
        let outside = Error::OutOfRange { start: 0, len: bytes, size: 0 };
        let Some(start) = NonNull::new(start).filter(|_| len > 0) else { return Err(outside) };
        let phase = start.as_ptr().addr() as u64 % 4096;
        let iova = heap.reserve(bytes, phase)?;
        let lease = Arc::new(Lease { heap: Arc::clone(heap), iova, len: bytes });
        // SAFETY: the caller's promise covers the life of this value, which unmaps before it goes.
        let memory = Arc::new(unsafe { DmaMemory::lent(start, len) });
        heap.transport.map(memory, iova, access)?;
        Ok(Self { lease, access, is_mapped: true })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.lease.len
    }

    /// Whether it has no bytes: never, since nothing cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.lease.len == 0
    }

    /// Where the device finds it.
    pub fn iova(&self) -> Iova {
        self.lease.iova
    }

    /// The access the device has.
    pub fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// As dropping it, but says when the device would not let go.
    ///
    /// # Errors
    /// The device still uses the memory, which must then outlive the device.
    pub fn unmap(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        if !std::mem::take(&mut self.is_mapped) {
            return Ok(());
        }
        self.lease.heap.check_process()?;
        self.lease.heap.transport.unmap(self.lease.iova)?;
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let is_ours = self.lease.heap.check_process().is_ok();
        if self.end().is_err() && is_ours {
            // The device would go on using memory that its owner may free: take it away from all.
            let _ = self.lease.heap.transport.reset();
        }
    }
}
