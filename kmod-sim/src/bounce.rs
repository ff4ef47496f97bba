//! Slots that are not one piece of memory here: gathered into a buffer before a job's first command,
//! scattered back after its last.
//!
//! ```text
//!   leaf | leaf | message     client's memory, piece by piece
//!      \    |    /   gather         ^ scatter, where the slot is written
//!       [ buffer ]  ── kernels ─────┘
//! ```
//! The bytes are counted: a driver that sees them grow has memory that it could lay out better. Buffers
//! are bounded, for each function and for the process, since clients choose how long slots are.

use crate::kernel::{Control, Stop};
use crate::memory::{Extent, usize_of};
use crate::remote::{CopyError, IsAborted, Remote};
use npu_uapi::addr::SlotId;
use npu_uapi::extent::Access;
use npu_uapi::queue::access;
use npu_uapi::status::Status;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of buffers of one function.
const FUNCTION_BYTES: u64 = 256 << 20;
/// Most bytes of buffers of all functions of the process.
const PROCESS_BYTES: u64 = 1 << 30;
/// Kernels may assume this alignment no more than that of any other slot; it only helps.
const ALIGN: usize = 64;
/// Bytes copied between two looks at whether to go on.
const CHUNK: u64 = 1 << 20;

static PROCESS: AtomicU64 = AtomicU64::new(0);

/// How many bytes of buffers a function has.
#[derive(Debug, Default)]
pub(crate) struct Budget(AtomicU64);

/// Zeroed memory of this process, counted against a budget.
#[derive(Debug)]
struct Buffer {
    allocation: NonNull<u8>,
    layout: Layout,
    budget: Arc<Budget>,
}

// SAFETY: the buffer is owned; what points into it goes through raw accesses of one job at a time.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len > 0` bytes; `None` beyond a limit.
    fn new(len: u64, budget: &Arc<Budget>) -> Option<Self> {
        // No alignment that the allocator does not have anyway, so that it can take fresh pages,
        // which are zero, instead of writing zeros.
        let layout = Layout::from_size_align(usize_of(len).checked_add(ALIGN)?, 16).ok()?;
        if !take(&budget.0, len, FUNCTION_BYTES) {
            return None;
        }
        if !take(&PROCESS, len, PROCESS_BYTES) {
            budget.0.fetch_sub(len, Ordering::Relaxed);
            return None;
        }
        // SAFETY: the size is not zero.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) });
        let Some(allocation) = allocation else {
            give_back(len, budget);
            return None;
        };
        Some(Self { allocation, layout, budget: Arc::clone(budget) })
    }

    fn len(&self) -> usize {
        self.layout.size() - ALIGN
    }

    fn start(&self) -> *mut u8 {
        let allocation = self.allocation.as_ptr();
        allocation.wrapping_add(allocation.align_offset(ALIGN))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(self.len() as u64, &self.budget);
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

/// Adds `len` to `used` unless it is more than `most` then.
fn take(used: &AtomicU64, len: u64, most: u64) -> bool {
    let add = |used: u64| used.checked_add(len).filter(|&sum| sum <= most);
    // Relaxed: a count, nothing is read by it.
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
}

fn give_back(len: u64, budget: &Budget) {
    budget.0.fetch_sub(len, Ordering::Relaxed);
    PROCESS.fetch_sub(len, Ordering::Relaxed);
}

/// A piece of a slot: as much of it as lies in one place.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) place: Place,
    pub(crate) len: u64,
    /// [`access`] bits of its mapping.
    pub(crate) access: u8,
}

/// Where memory lies.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In this process.
    Here(NonNull<u8>),
    /// Elsewhere, from this offset on.
    There(Arc<dyn Remote>, u64),
}

// SAFETY: the pointer is only used by the copies here, by rules that hold for any thread: the memory
// stays mapped for as long as a job uses it, and may be shared.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// The place `offset` bytes behind this one.
    pub(crate) fn plus(&self, offset: u64) -> Self {
        match self {
            Self::Here(start) => {
                let start = start.as_ptr().wrapping_add(usize_of(offset));
                Self::Here(NonNull::new(start).unwrap_or(NonNull::dangling()))
            }
            Self::There(remote, at) => Self::There(Arc::clone(remote), at.wrapping_add(offset)),
        }
    }

    /// Whether `next`, which comes `len` bytes later, goes on where this one ends.
    fn goes_on_at(&self, len: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Here(one), Self::Here(two)) => {
                one.as_ptr().wrapping_add(usize_of(len)) == two.as_ptr()
            }
            (Self::There(one, at), Self::There(two, next)) => {
                Arc::ptr_eq(one, two) && at.checked_add(len) == Some(*next)
            }
            _ => false,
        }
    }

    /// Copies `len` bytes to `to`.
    ///
    /// # Safety
    /// `to` is valid for writes of `len` bytes that nothing else accesses; a place in this process is
    /// mapped and readable.
    pub(crate) unsafe fn copy_to(
        &self,
        to: *mut u8,
        len: u64,
        is_aborted: IsAborted<'_>,
    ) -> Result<(), CopyError> {
        let mut done = 0;
        while done < len {
            let now = CHUNK.min(len - done);
            let to = to.wrapping_add(usize_of(done));
            match self {
                Self::Here(from) => {
                    let from = from.as_ptr().wrapping_add(usize_of(done));
                    // SAFETY: the caller's promise, for a part of the range; a buffer of ours does not
                    // overlap memory of the client.
                    unsafe { to.copy_from_nonoverlapping(from, usize_of(now)) };
                }
                Self::There(remote, at) => {
                    // SAFETY: initialised bytes, and nothing else accesses them, says the caller.
                    let out = unsafe { std::slice::from_raw_parts_mut(to, usize_of(now)) };
                    remote.read(at.wrapping_add(done), out, is_aborted)?;
                }
            }
            done += now;
            if done < len && is_aborted() {
                return Err(CopyError::Aborted);
            }
        }
        Ok(())
    }

    /// Copies `len` bytes from `from`.
    ///
    /// # Safety
    /// `from` is valid for reads of `len` bytes that nothing else writes; a place in this process is
    /// mapped and writable.
    pub(crate) unsafe fn copy_from(
        &self,
        from: *const u8,
        len: u64,
        is_aborted: IsAborted<'_>,
    ) -> Result<(), CopyError> {
        let mut done = 0;
        while done < len {
            let now = CHUNK.min(len - done);
            let from = from.wrapping_add(usize_of(done));
            match self {
                Self::Here(to) => {
                    let to = to.as_ptr().wrapping_add(usize_of(done));
                    // SAFETY: as in `copy_to`, the other way round.
                    unsafe { to.copy_from_nonoverlapping(from, usize_of(now)) };
                }
                Self::There(remote, at) => {
                    // SAFETY: as in `copy_to`.
                    let bytes = unsafe { std::slice::from_raw_parts(from, usize_of(now)) };
                    remote.write(at.wrapping_add(done), bytes, is_aborted)?;
                }
            }
            done += now;
            if done < len && is_aborted() {
                return Err(CopyError::Aborted);
            }
        }
        Ok(())
    }
}

/// The pieces of a range, in order; neighbours that are one piece of memory are one.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Vec<Piece>);

impl Pieces {
    pub(crate) fn push(&mut self, place: Place, len: u64, access: u8) {
        match self.0.last_mut() {
            Some(last) if last.access == access && last.place.goes_on_at(last.len, &place) => {
                last.len += len;
            }
            _ => self.0.push(Piece { place, len, access }),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.0.iter()
    }
}

/// A slot in a buffer.
#[derive(Debug)]
pub(crate) struct Bounce {
    slot: SlotId,
    buffer: Buffer,
    pieces: Pieces,
    /// What the job does with it, [`access`] bits.
    used: u8,
}

impl Bounce {
    /// A buffer for `pieces` of `len > 0` bytes; `None` when there are no more buffers.
    pub(crate) fn new(
        slot: SlotId,
        pieces: Pieces,
        (len, used): (u64, u8),
        budget: &Arc<Budget>,
    ) -> Option<Self> {
        Some(Self { slot, buffer: Buffer::new(len, budget)?, pieces, used })
    }

    pub(crate) fn slot(&self) -> SlotId {
        self.slot
    }

    /// The buffer as a kernel sees it.
    pub(crate) fn extent(&self) -> Extent {
        let is_written = self.used & access::WRITE != 0;
        // SAFETY: the buffer has this many bytes, and lives as long as the job's slots.
        unsafe { Extent::from_raw(self.buffer.start(), self.buffer.len(), is_written) }
    }

    /// Fills the buffer; returns how many bytes that took.
    ///
    /// Bytes that the job only writes are read too, since it need not write all of them. Only where
    /// the client did not allow that, and could tell, they begin as zeros.
    pub(crate) fn gather(&self, control: &Control<'_>) -> Result<u64, Stop> {
        let is_aborted = || control.engine.end().is_some();
        let (mut at, mut moved) = (0, 0);
        for piece in self.pieces.iter() {
            let is_asked = matches!(&piece.place, Place::There(remote, _) if !remote.is_prompt());
            if piece.access & access::READ != 0 || !is_asked {
                let to = self.buffer.start().wrapping_add(usize_of(at));
                // SAFETY: the pieces are as long as the buffer, and no command runs yet. The client's
                // memory stays mapped, since `unmap` waits for the job.
                let copied = unsafe { piece.place.copy_to(to, piece.len, &is_aborted) };
                copied.map_err(|error| self.stop(error, (at, piece.len), false))?;
                moved += piece.len;
                control.engine.beat();
            }
            at += piece.len;
        }
        Ok(moved)
    }

    /// Writes the buffer back, if the job writes the slot; returns how many bytes that took.
    pub(crate) fn scatter(&self, control: &Control<'_>) -> Result<u64, Stop> {
        if self.used & access::WRITE == 0 {
            return Ok(0);
        }
        let is_aborted = || control.engine.end().is_some();
        let mut at = 0;
        for piece in self.pieces.iter() {
            let from = self.buffer.start().wrapping_add(usize_of(at));
            // SAFETY: as in `gather`; the last command has ended, and the guest checked that every
            // piece of a slot that is written may be.
            let copied = unsafe { piece.place.copy_from(from, piece.len, &is_aborted) };
            copied.map_err(|error| self.stop(error, (at, piece.len), true))?;
            control.engine.beat();
            at += piece.len;
        }
        Ok(at)
    }

    fn stop(&self, error: CopyError, (start, len): (u64, u64), write: bool) -> Stop {
        match error {
            CopyError::Aborted => Stop::Aborted,
            CopyError::Failed => {
                let access = Access { slot: self.slot, start, len, write, ..Access::default() };
                Stop::Fault { access, status: Status::DMA_ERROR }
            }
        }
    }
}
