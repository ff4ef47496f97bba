//! Memory that driver and device both see, and what a slot can be bound to.

use crate::error::Error;
use crate::foreign::{Foreign, Lease};
use crate::heap::{Heap, Piece};
use crate::transport::Access;
use npu_uapi::addr::Iova;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Device-visible memory, zeroed, 64-byte aligned. A clone is the same memory; the last one frees it.
///
/// Its bytes are shared with a device that may write them whenever a job is bound to them, so safe
/// access is by copy.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    heap: Arc<Heap>,
    piece: Piece,
    len: usize,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.heap.check_process().is_ok() {
            self.heap.known.lock().remove(&self.address());
            self.heap.free(&self.piece);
        }
    }
}

impl Inner {
    /// Where this process finds it.
    fn address(&self) -> usize {
        self.piece.memory.as_ptr().addr() + self.piece.offset
    }
}

/// The buffers of a device by address, to find the one that a pointer leads into.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<BTreeMap<usize, Weak<Inner>>>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Weak<Inner>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    pub(crate) fn new(heap: &Arc<Heap>, len: usize) -> Result<Self, Error> {
        let piece = heap.allocate(len)?;
        let inner = Arc::new(Inner { heap: Arc::clone(heap), piece, len });
        heap.known.lock().insert(inner.address(), Arc::downgrade(&inner));
        Ok(Self(inner))
    }

    /// The buffer of `heap` that has all of the `len` bytes at `start`, and which of its bytes they are.
    pub(crate) fn find(heap: &Heap, start: *const u8, len: usize) -> Option<(Self, usize)> {
        heap.check_process().ok()?;
        let address = start.addr();
        let below = heap.known.lock().range(..=address).next_back().map(|(_, weak)| weak.clone());
        // Unlocked: dropping the last buffer takes the lock.
        let buffer = Self(below?.upgrade()?);
        let at = address - buffer.0.address();
        let is_inside = at.checked_add(len).is_some_and(|end| end <= buffer.len());
        is_inside.then_some((buffer, at))
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Where the device finds it.
    pub fn iova(&self) -> Iova {
        self.0.piece.iova
    }

    /// Where this process finds it: for code that is careful in its own way.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.piece.memory.as_ptr().wrapping_add(self.0.piece.offset)
    }

    /// Copies `bytes` to byte `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Forked`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        // A forked child would write its parent's memory where it is shared.
        self.0.heap.check_process()?;
        self.check(offset, bytes.len())?;
        self.0.piece.memory.write(self.0.piece.offset + offset, bytes);
        Ok(())
    }

    /// Copies the bytes from `offset` on to `out`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Error> {
        self.check(offset, out.len())?;
        self.0.piece.memory.read(self.0.piece.offset + offset, out);
        Ok(())
    }

    /// All bytes, copied.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.0.piece.memory.read(self.0.piece.offset, &mut bytes);
        bytes
    }

    /// The bytes in place.
    ///
    /// # Safety
    ///
    /// While the slice lives nothing writes the buffer: no job that may write it is in flight, and no
    /// other thread does.
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the bytes are inside the arena, which the buffer keeps; the rest is the caller's.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// The bytes in place, to write.
    ///
    /// # Safety
    ///
    /// While the slice lives nothing else accesses the buffer: no job bound to it is in flight, no
    /// other slice of it exists, and no other thread touches it.
    #[expect(clippy::mut_from_ref, reason = "a handle to shared memory; the caller promises")]
    pub unsafe fn as_mut_slice(&self) -> &mut [u8] {
        // SAFETY: the bytes are inside the arena, which the buffer keeps; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) }
    }

    fn check(&self, start: usize, len: usize) -> Result<(), Error> {
        check_range(start as u64, len as u64, self.len() as u64)
    }

    pub(crate) fn heap(&self) -> &Arc<Heap> {
        &self.0.heap
    }
}

fn check_range(start: u64, len: u64, size: u64) -> Result<(), Error> {
    let is_inside = start.checked_add(len).is_some_and(|end| end <= size);
    if is_inside { Ok(()) } else { Err(Error::OutOfRange { start, len, size }) }
}

/// What a slot is bound to: some bytes of a buffer or of foreign memory, and the access allowed.
#[derive(Clone, Debug)]
pub struct Memory {
    iova: Iova,
    len: u64,
    access: Access,
    source: Source,
}

/// What keeps the memory, or its address, as long as a job may use it.
#[derive(Clone, Debug)]
enum Source {
    Buffer(Buffer),
    Foreign(Arc<Lease>),
}

impl Memory {
    /// Bytes `start..start + len` of `buffer`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn buffer(buffer: &Buffer, start: u64, len: u64, access: Access) -> Result<Self, Error> {
        check_range(start, len, buffer.len() as u64)?;
        let iova = offset(buffer.iova(), start)?;
        Ok(Self { iova, len, access, source: Source::Buffer(buffer.clone()) })
    }

    /// Bytes `start..start + len` of `foreign`, with the access it was mapped with.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn foreign(foreign: &Foreign, start: u64, len: u64) -> Result<Self, Error> {
        check_range(start, len, foreign.len())?;
        let iova = offset(foreign.iova(), start)?;
        let source = Source::Foreign(Arc::clone(foreign.lease()));
        Ok(Self { iova, len, access: foreign.access(), source })
    }

    /// Where the device finds it.
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The access it allows.
    pub fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn heap(&self) -> &Arc<Heap> {
        match &self.source {
            Source::Buffer(buffer) => buffer.heap(),
            Source::Foreign(lease) => lease.heap(),
        }
    }
}

fn offset(base: Iova, start: u64) -> Result<Iova, Error> {
    let wraps = Error::OutOfRange { start, len: 0, size: u64::MAX };
    base.checked_add(start).ok_or(wraps)
}

impl From<&Buffer> for Memory {
    /// The whole buffer, to read and write.
    fn from(buffer: &Buffer) -> Self {
        Self {
            iova: buffer.iova(),
            len: buffer.len() as u64,
            access: Access::ReadWrite,
            source: Source::Buffer(buffer.clone()),
        }
    }
}

impl From<&Foreign> for Memory {
    /// All of it, with the access it was mapped with.
    fn from(foreign: &Foreign) -> Self {
        Self {
            iova: foreign.iova(),
            len: foreign.len(),
            access: foreign.access(),
            source: Source::Foreign(Arc::clone(foreign.lease())),
        }
    }
}
