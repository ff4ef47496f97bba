//! Device memory: arenas, mapped once and given out in pieces. Never one mapping a tensor.

use crate::buffer::Known;
use crate::dma::{ARENA_ALIGN, DmaMemory};
use crate::error::Error;
use crate::iova::Ranges;
use crate::transport::{Access, MemoryKind, Transport};
use npu_uapi::addr::Iova;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of an arena, unless one allocation needs more. Memory is only committed when it is touched.
const ARENA_BYTES: u64 = 64 << 20;
/// The same where it is committed when it is mapped.
const LOCKED_ARENA_BYTES: u64 = 16 << 20;
/// Alignment and grain of what is given out: a cache line.
const GRAIN: u64 = 64;

/// The memory of one device, and its I/O addresses.
#[derive(Debug)]
pub(crate) struct Heap {
    pub(crate) transport: Arc<dyn Transport>,
    /// The process that opened the device.
    pub(crate) owner: u32,
    /// What was given out, and as which buffer.
    pub(crate) known: Known,
    state: Mutex<State>,
    /// Completions that were found without the interrupt that should have told of them.
    pub(crate) missed_interrupts: AtomicU64,
}

#[derive(Debug)]
struct State {
    iovas: Ranges,
    arenas: Vec<Arena>,
}

#[derive(Debug)]
struct Arena {
    memory: Arc<DmaMemory>,
    iova: u64,
    free: Ranges,
    /// Bytes from here on were never given out, and are zero.
    touched: u64,
}

/// A piece of an arena. [`Heap::free`] takes it back.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) memory: Arc<DmaMemory>,
    pub(crate) iova: Iova,
    /// Byte offset in `memory`.
    pub(crate) offset: usize,
    /// Bytes taken, a multiple of the grain.
    taken: u64,
}

impl Heap {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        let iovas = Ranges::new(transport.iova_ranges());
        let state = Mutex::new(State { iovas, arenas: Vec::new() });
        let (owner, known) = (std::process::id(), Known::default());
        Self { transport, owner, known, state, missed_interrupts: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what a forked child does with its parent's device.
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        if self.owner == crate::process::id() {
            Ok(())
        } else {
            Err(Error::Forked { owner: self.owner })
        }
    }

    /// `len` zeroed bytes, 64-byte aligned.
    pub(crate) fn allocate(&self, len: usize) -> Result<Piece, Error> {
        self.check_process()?;
        let asked = len as u64;
        let out_of = |why: &str| Error::OutOfMemory { bytes: asked, why: why.to_owned() };
        let taken = asked
            .max(1)
            .checked_next_multiple_of(GRAIN)
            .filter(|&taken| taken < 1 << 46)
            .ok_or_else(|| out_of("more than an address space holds"))?;
        let mut state = self.lock();
        if let Some(piece) = state.arenas.iter_mut().find_map(|arena| arena.take(taken)) {
            return Ok(piece);
        }
        let bytes = taken.max(self.arena_bytes()).next_multiple_of(ARENA_ALIGN as u64);
        let iova = state
            .iovas
            .allocate(bytes, ARENA_ALIGN as u64, 0)
            .ok_or_else(|| out_of("no I/O addresses are left"))?;
        let made = self.make_arena(bytes, iova);
        let mut arena = match made {
            Ok(arena) => arena,
            Err(error) => {
                state.iovas.free(iova, bytes);
                return Err(error);
            }
        };
        let piece = arena.take(taken).ok_or_else(|| out_of("a new arena is too small"))?;
        state.arenas.push(arena);
        Ok(piece)
    }

    fn arena_bytes(&self) -> u64 {
        match self.transport.memory_kind() {
            MemoryKind::Private | MemoryKind::Shared => ARENA_BYTES,
            MemoryKind::Locked => LOCKED_ARENA_BYTES,
        }
    }

    fn make_arena(&self, bytes: u64, iova: u64) -> Result<Arena, Error> {
        let len = usize::try_from(bytes)
            .map_err(|_| Error::OutOfMemory { bytes, why: "more than a pointer holds".into() })?;
        let memory = match self.transport.memory_kind() {
            MemoryKind::Private => DmaMemory::anonymous(len)?,
            MemoryKind::Shared => DmaMemory::shared(len)?,
            MemoryKind::Locked => DmaMemory::on_huge_pages(len)?,
        };
        let memory = Arc::new(memory);
        self.transport.map(Arc::clone(&memory), Iova::new(iova), Access::ReadWrite)?;
        Ok(Arena { memory, iova, free: Ranges::new(std::iter::once(0..bytes)), touched: 0 })
    }

    /// Takes `piece` back. The device no longer uses it. An arena of one allocation goes with it.
    pub(crate) fn free(&self, piece: &Piece) {
        if self.check_process().is_err() {
            return;
        }
        let mut state = self.lock();
        let found = state.arenas.iter().position(|arena| Arc::ptr_eq(&arena.memory, &piece.memory));
        let Some(at) = found else { return };
        let arena = &mut state.arenas[at];
        arena.free.free(piece.offset as u64, piece.taken);
        let bytes = arena.memory.len() as u64;
        let iova = arena.iova;
        let is_spare = bytes > self.arena_bytes() && arena.free.is_free(0, bytes);
        if is_spare && self.transport.unmap(Iova::new(iova)).is_ok() {
            state.arenas.swap_remove(at);
            state.iovas.free(iova, bytes);
        }
    }

    /// I/O addresses for `len` bytes that lie at `phase` in their page.
    pub(crate) fn reserve(&self, len: u64, phase: u64) -> Result<Iova, Error> {
        let iova = self.lock().iovas.allocate(len, 4096, phase);
        let why = || Error::OutOfMemory { bytes: len, why: "no I/O addresses are left".into() };
        iova.map(Iova::new).ok_or_else(why)
    }

    /// Gives addresses of [`Heap::reserve`] back, which nothing in flight names any more.
    pub(crate) fn release(&self, iova: Iova, len: u64) {
        self.lock().iovas.free(iova.raw(), len);
    }
}

impl Arena {
    fn take(&mut self, taken: u64) -> Option<Piece> {
        let at = self.free.allocate(taken, GRAIN, 0)?;
        let offset = usize::try_from(at).ok()?;
        let used = self.touched.saturating_sub(at).min(taken);
        self.memory.zero(offset, usize::try_from(used).ok()?);
        self.touched = self.touched.max(at + taken);
        let iova = Iova::new(self.iova + at);
        Some(Piece { memory: Arc::clone(&self.memory), iova, offset, taken })
    }
}

#[cfg(test)]
#[cfg(feature = "sim")]
mod tests {
    use super::*;
    use crate::transport::inproc::InProcess;

    #[test]
    fn a_forked_child_is_told_to_open_the_device_itself() {
        let mut heap = Heap::new(Arc::new(InProcess::new("").unwrap()));
        heap.allocate(1).unwrap();
        // As a child finds it: its parent has another number.
        heap.owner = 1;
        let error = heap.allocate(1).unwrap_err();
        assert!(matches!(error, Error::Forked { owner: 1 }), "{error}");
    }

    #[test]
    fn a_large_arena_goes_with_its_only_piece() {
        let heap = Heap::new(Arc::new(InProcess::new("").unwrap()));
        let piece = heap.allocate(65 << 20).unwrap();
        let iova = piece.iova;
        heap.free(&piece);
        assert!(heap.lock().arenas.is_empty());
        assert_eq!(heap.allocate(65 << 20).unwrap().iova, iova, "its addresses are free again");
    }
}
