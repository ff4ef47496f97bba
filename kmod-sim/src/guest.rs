//! Memory that the client mapped: lookup by IOVA, checked, and copies in and out.
//!
//! As a Type 1 IOMMU does it: mappings never overlap, are unmapped whole, and each allows reading,
//! writing or both. A range may run over several mappings that are adjacent in IOVA space. A kernel
//! reads an operand as one piece: where the mappings are adjacent in host memory too, or in a window
//! that shows them so, a slot is used in place; else it goes through a [`Bounce`].
//!
//! The client may write any of this memory at any time, so nothing here makes a reference to it: what
//! the device decides by is copied once, ring words are atomics, and tensors are raw [`Extent`]s.

use crate::bounce::{Bounce, Budget, Pieces, Place};
use crate::inject::{Injector, Kind};
use crate::memory::{Extent, usize_of};
use crate::remote::{CopyError, Remote};
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::queue::access;
use npu_uapi::ring::Words;
use npu_uapi::status::Status;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Why a mapping is refused or not found.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Empty, beyond the end of the address space, or a null pointer.
    #[error("cannot map {len} bytes at {iova:?}: the range is empty or wraps around")]
    Range {
        /// Where.
        iova: Iova,
        /// Bytes.
        len: u64,
    },
    /// Access bits that do not exist, or none.
    #[error("a mapping allows reading (1), writing (2) or both (3), not {found}")]
    Access {
        /// What was found.
        found: u8,
    },
    /// Part of it is mapped already.
    #[error(
        "cannot map {len} bytes at {iova:?}: they overlap the mapping at {other:?}; unmap it first"
    )]
    Overlap {
        /// Where.
        iova: Iova,
        /// Bytes.
        len: u64,
        /// The mapping that is there.
        other: Iova,
    },
    /// No mapping begins there with that length.
    #[error("no mapping of {len} bytes begins at {iova:?}; unmap what was mapped, whole")]
    NotMapped {
        /// Where.
        iova: Iova,
        /// Bytes.
        len: u64,
    },
    /// A job would not end; the memory must stay as it is.
    #[error(
        "a job still uses the mapping at {iova:?} and did not end; its memory must not be freed"
    )]
    Busy {
        /// Where.
        iova: Iova,
    },
}

/// Why the device may not reach memory; the status that the fault record carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Unreachable {
    pub(crate) status: Status,
    pub(crate) iova: Iova,
    pub(crate) len: u64,
    pub(crate) access: u8,
}

/// Memory that the device may reach.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    /// IOVA of the last byte: the end of the address space has no number of its own.
    last: u64,
    access: u8,
    place: Place,
    /// A second address of the same bytes, next to those of its neighbours in IOVA space.
    window: Option<NonNull<u8>>,
}

// SAFETY: the pointers are only used through this module, by rules that hold for any thread.
unsafe impl Send for Mapping {}

/// The IOVA table of one function.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    mappings: BTreeMap<u64, Mapping>,
    mapped_bytes: u64,
    budget: Arc<Budget>,
    injector: Arc<Injector>,
}

impl Guest {
    /// An empty table; accesses fail where `injector` says so.
    pub(crate) fn new(injector: Arc<Injector>) -> Self {
        Self { injector, ..Self::default() }
    }

    /// The fault that is to happen to this access, if one is.
    fn injected(&self, (iova, len, access): (Iova, u64, u8)) -> Result<(), Unreachable> {
        match self.injector.fires(Kind::DmaError) {
            Some(_) => Err(Unreachable { status: Status::DMA_ERROR, iova, len, access }),
            None => Ok(()),
        }
    }

    /// Lets the device reach `len` bytes at `host` as `iova`; `window` is where else they lie.
    ///
    /// # Safety
    ///
    /// The bytes stay valid for reads, and for writes where `access` says so, until they are unmapped
    /// or the function is gone; the process accesses them meanwhile only in ways that allow for
    /// accesses of the device. The same holds at `window`, where neighbours in IOVA space are adjacent.
    pub(crate) unsafe fn map(
        &mut self,
        iova: Iova,
        (host, window): (*mut u8, Option<NonNull<u8>>),
        len: usize,
        access: u8,
    ) -> Result<(), MapError> {
        let bad = MapError::Range { iova, len: len as u64 };
        let host = NonNull::new(host).ok_or(bad)?;
        isize::try_from(len).map_err(|_| bad)?;
        self.insert(iova, len as u64, (Place::Here(host), window), access)
    }

    /// Lets the device reach `len` bytes from `offset` on in `memory` as `iova`, by copies.
    #[cfg_attr(not(feature = "server"), expect(dead_code, reason = "for clients elsewhere"))]
    pub(crate) fn map_remote(
        &mut self,
        iova: Iova,
        (memory, offset): (Arc<dyn Remote>, u64),
        len: u64,
        access: u8,
    ) -> Result<(), MapError> {
        self.insert(iova, len, (Place::There(memory, offset), None), access)
    }

    fn insert(
        &mut self,
        iova: Iova,
        len: u64,
        (place, window): (Place, Option<NonNull<u8>>),
        access: u8,
    ) -> Result<(), MapError> {
        let last = last_of(iova, len).ok_or(MapError::Range { iova, len })?;
        if access == 0 || access & !(access::READ | access::WRITE) != 0 {
            return Err(MapError::Access { found: access });
        }
        if let Some(other) = self.overlapped(iova, last) {
            return Err(MapError::Overlap { iova, len, other });
        }
        self.mappings.insert(iova.raw(), Mapping { last, access, place, window });
        self.mapped_bytes = self.mapped_bytes.saturating_add(len);
        Ok(())
    }

    /// Bytes that the device may reach.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// Takes the mapping of exactly `len` bytes at `iova` out of the table: nothing finds it any more. The
    /// memory must stay valid until what found it before is done with it.
    pub(crate) fn take(&mut self, iova: Iova, len: u64) -> Result<Mapping, MapError> {
        let not_mapped = MapError::NotMapped { iova, len };
        let last = last_of(iova, len).ok_or(not_mapped)?;
        match self.mappings.get(&iova.raw()) {
            Some(mapping) if mapping.last == last => {}
            _ => return Err(not_mapped),
        }
        let mapping = self.mappings.remove(&iova.raw()).ok_or(not_mapped)?;
        self.mapped_bytes = self.mapped_bytes.saturating_sub(len);
        Ok(mapping)
    }

    /// Undoes [`Guest::take`], unless its place was taken meanwhile.
    pub(crate) fn put_back(&mut self, iova: Iova, mapping: Mapping) {
        if self.overlapped(iova, mapping.last).is_none() {
            let len = (mapping.last - iova.raw()).saturating_add(1);
            self.mapped_bytes = self.mapped_bytes.saturating_add(len);
            self.mappings.insert(iova.raw(), mapping);
        }
    }

    /// Where a mapping begins that has a byte of `iova ..= last`.
    fn overlapped(&self, iova: Iova, last: u64) -> Option<Iova> {
        let (&at, found) = self.mappings.range(..=last).next_back()?;
        (found.last >= iova.raw()).then_some(Iova::new(at))
    }

    /// Shows `each` mapping of `len > 0` bytes at `iova`, in order, with where in it the range begins
    /// and how many bytes of it are meant. All of them are mapped and allow `access`, or it is an error.
    fn visit<'a>(
        &'a self,
        (iova, len, access): (Iova, u64, u8),
        mut each: impl FnMut(&'a Mapping, u64, u64),
    ) -> Result<(), Unreachable> {
        let fault = |status| Unreachable { status, iova, len, access };
        let unmapped = fault(Status::UNMAPPED_IOVA);
        let last = last_of(iova, len).ok_or(unmapped)?;
        let (&first, _) = self.mappings.range(..=iova.raw()).next_back().ok_or(unmapped)?;
        let (mut at, mut allowed) = (iova.raw(), access::READ | access::WRITE);
        for (&start, mapping) in self.mappings.range(first..=last) {
            if start > at || mapping.last < at {
                return Err(unmapped);
            }
            allowed &= mapping.access;
            let end = mapping.last.min(last);
            each(mapping, at - start, end - at + 1);
            if end == last {
                let is_allowed = allowed & access == access;
                return if is_allowed { Ok(()) } else { Err(fault(Status::ACCESS_DENIED)) };
            }
            at = end + 1;
        }
        Err(unmapped)
    }

    /// Address of `len > 0` bytes at `iova` where they are one piece of memory here, if they are.
    fn direct(&self, range: (Iova, u64, u8)) -> Result<Option<NonNull<u8>>, Unreachable> {
        let mut lanes = Lanes::default();
        self.visit(range, |mapping, offset, len| lanes.go_on(mapping, offset, len))?;
        Ok(lanes.start())
    }

    /// The `len > 0` bytes at `iova` as the memory of a slot, for a job that does `used` with them.
    pub(crate) fn slot(
        &self,
        slot: SlotId,
        (iova, len, used): (Iova, u64, u8),
    ) -> Result<Reached, Unreachable> {
        let range = (iova, len, used);
        let fault = |status| Unreachable { status, iova, len, access: used };
        self.injected(range)?;
        if let Some(host) = self.direct(range)? {
            let len = usize::try_from(len).map_err(|_| fault(Status::UNMAPPED_IOVA))?;
            // SAFETY: `direct` has shown that the bytes lie in mappings that are adjacent in host memory,
            // which whoever called `map` keeps valid; `device` waits for jobs before it unmaps.
            let extent = unsafe { Extent::from_raw(host.as_ptr(), len, used & access::WRITE != 0) };
            return Ok(Reached::Direct(extent));
        }
        let bounce = Bounce::new(slot, self.pieces(range)?, (len, used), &self.budget);
        bounce.map(Reached::Bounced).ok_or(fault(Status::NO_RESOURCES))
    }

    fn pieces(&self, range: (Iova, u64, u8)) -> Result<Pieces, Unreachable> {
        let mut pieces = Pieces::default();
        self.visit(range, |mapping, offset, len| {
            pieces.push(mapping.place.plus(offset), len, mapping.access);
        })?;
        Ok(pieces)
    }

    /// As [`Guest::pieces`], of memory that can be copied with the function locked.
    fn prompt_pieces(&self, range: (Iova, u64, u8)) -> Result<Pieces, Unreachable> {
        let pieces = self.pieces(range)?;
        let is_asked =
            |place: &Place| matches!(place, Place::There(remote, _) if !remote.is_prompt());
        if pieces.iter().any(|piece| is_asked(&piece.place)) {
            let (iova, len, access) = range;
            return Err(Unreachable { status: Status::ACCESS_DENIED, iova, len, access });
        }
        Ok(pieces)
    }

    /// Copies the bytes at `iova` to `out`.
    pub(crate) fn read(&self, iova: Iova, out: &mut [u8]) -> Result<(), Unreachable> {
        if out.is_empty() {
            return Ok(());
        }
        let range = (iova, out.len() as u64, access::READ);
        self.injected(range)?;
        let Some(host) = self.direct(range)? else {
            return copy_pieces(range, &self.prompt_pieces(range)?, |place, at, len| {
                // SAFETY: the pieces are as long as `out`, which is borrowed, and they are mapped.
                unsafe { place.copy_to(out.as_mut_ptr().wrapping_add(at), len, &|| false) }
            });
        };
        for (at, byte) in out.iter_mut().enumerate() {
            // SAFETY: `direct` has shown that `at < out.len()` bytes from `host` on are mapped.
            let shared = unsafe { AtomicU8::from_ptr(host.as_ptr().wrapping_add(at)) };
            *byte = shared.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies `bytes` to `iova`.
    pub(crate) fn write(&self, iova: Iova, bytes: &[u8]) -> Result<(), Unreachable> {
        if bytes.is_empty() {
            return Ok(());
        }
        let range = (iova, bytes.len() as u64, access::WRITE);
        let Some(host) = self.direct(range)? else {
            return copy_pieces(range, &self.prompt_pieces(range)?, |place, at, len| {
                // SAFETY: the pieces are as long as `bytes`, and they are mapped, writable.
                unsafe { place.copy_from(bytes.as_ptr().wrapping_add(at), len, &|| false) }
            });
        };
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: `direct` has shown that `at < bytes.len()` bytes from `host` on are mapped, writable.
            let shared = unsafe { AtomicU8::from_ptr(host.as_ptr().wrapping_add(at)) };
            shared.store(byte, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The `count` ring words at `iova`. Rings are atomics: memory that is not mapped here has none,
    /// and is refused with `ACCESS_DENIED`.
    pub(crate) fn words(&self, iova: Iova, count: usize) -> Result<GuestWords, Unreachable> {
        let (len, access) = (count as u64 * 4, access::READ | access::WRITE);
        let fault = |status| Unreachable { status, iova, len, access };
        let pieces = self.pieces((iova, len, access))?;
        let mut words = GuestWords { chunks: Vec::new(), count };
        let mut at = 0;
        for piece in pieces.iter() {
            let Place::Here(start) = &piece.place else {
                return Err(fault(Status::ACCESS_DENIED));
            };
            let first = start.cast::<AtomicU32>();
            if !first.is_aligned() || !piece.len.is_multiple_of(4) {
                return Err(fault(Status::INVALID_FIELD));
            }
            words.chunks.push((at, first));
            at += usize_of(piece.len / 4);
        }
        Ok(words)
    }
}

/// The last of `len > 0` bytes at `iova`; `None` where the range is empty or wraps around.
fn last_of(iova: Iova, len: u64) -> Option<u64> {
    iova.raw().checked_add(len.checked_sub(1)?)
}

/// Copies piece after piece; `copy` is told where in the range each begins.
fn copy_pieces(
    (iova, len, access): (Iova, u64, u8),
    pieces: &Pieces,
    mut copy: impl FnMut(&Place, usize, u64) -> Result<(), CopyError>,
) -> Result<(), Unreachable> {
    let mut at = 0;
    for piece in pieces.iter() {
        let status = Status::DMA_ERROR;
        copy(&piece.place, usize_of(at), piece.len).map_err(|_| Unreachable {
            status,
            iova,
            len,
            access,
        })?;
        at += piece.len;
    }
    Ok(())
}

/// Whether a range is one piece of memory: where its mappings lie, or in their windows.
#[derive(Debug, Default)]
struct Lanes {
    /// For either, as long as it is one piece; `None` before the first mapping.
    lanes: Option<[Option<Lane>; 2]>,
}

/// Where a range begins, and where its next bytes must lie.
#[derive(Clone, Copy, Debug)]
struct Lane {
    start: NonNull<u8>,
    reached: *mut u8,
}

impl Lanes {
    /// The next `len` bytes of the range lie `offset` bytes into `mapping`.
    fn go_on(&mut self, mapping: &Mapping, offset: u64, len: u64) {
        let host = match &mapping.place {
            Place::Here(host) => Some(*host),
            Place::There(..) => None,
        };
        let found = [host, mapping.window].map(|start| {
            let start = start?.as_ptr().wrapping_add(usize_of(offset));
            NonNull::new(start)
        });
        let begin = |start: NonNull<u8>| Lane { start, reached: start.as_ptr() };
        let before = self.lanes.unwrap_or(found.map(|start| start.map(begin)));
        let next = |lane: Option<Lane>, found: Option<NonNull<u8>>| {
            let (lane, found) = (lane?, found?.as_ptr());
            let reached = found.wrapping_add(usize_of(len));
            (lane.reached == found).then_some(Lane { reached, ..lane })
        };
        let ([one, two], [host, window]) = (before, found);
        self.lanes = Some([next(one, host), next(two, window)]);
    }

    fn start(&self) -> Option<NonNull<u8>> {
        let [one, two] = self.lanes?;
        one.or(two).map(|lane| lane.start)
    }
}

/// The memory of a slot.
#[derive(Debug)]
pub(crate) enum Reached {
    /// One piece of memory here.
    Direct(Extent),
    /// A buffer, to be filled first.
    Bounced(Bounce),
}

/// Ring words in mapped memory. Dropped before the memory is unmapped.
#[derive(Debug)]
pub(crate) struct GuestWords {
    /// The first word of each piece, and its index.
    chunks: Vec<(usize, NonNull<AtomicU32>)>,
    count: usize,
}

// SAFETY: atomics may be shared; the memory is the client's and outlives the mapping.
unsafe impl Send for GuestWords {}

impl GuestWords {
    #[inline]
    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.count, "the ring stays within its region");
        let (first, start) = match self.chunks[..] {
            [only] => only,
            _ => self.chunks[self.chunks.partition_point(|&(first, _)| first <= index) - 1],
        };
        // SAFETY: `Guest::words` checked that `count` words are mapped and that they are aligned, and
        // `device` drops a queue before it unmaps its ring.
        unsafe { &*start.as_ptr().wrapping_add(index - first) }
    }
}

impl Words for GuestWords {
    fn word_count(&self) -> usize {
        self.count
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }

    #[inline]
    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.word(index).store(value, order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: u8 = access::READ | access::WRITE;

    fn map(guest: &mut Guest, at: u64, memory: &mut [u8], access: u8) -> Result<(), MapError> {
        // SAFETY: the tests keep their memory for as long as the table.
        unsafe { guest.map(Iova::new(at), (memory.as_mut_ptr(), None), memory.len(), access) }
    }

    fn slot(guest: &Guest, at: u64, len: u64, used: u8) -> Result<Reached, Unreachable> {
        guest.slot(SlotId(0), (Iova::new(at), len, used))
    }

    #[test]
    fn mappings_do_not_overlap_and_are_unmapped_whole() {
        let (mut guest, mut memory) = (Guest::default(), [0; 64]);
        map(&mut guest, 0x100, &mut memory, RW).unwrap();
        for (at, len) in [(0x100, 1), (0xff, 2), (0x13f, 10), (0xc1, 64)] {
            let overlap = map(&mut guest, at, &mut [0; 64][..len], RW);
            assert!(matches!(overlap, Err(MapError::Overlap { .. })), "{at:#x}");
        }
        assert!(guest.take(Iova::new(0x100), 32).is_err());
        let taken = guest.take(Iova::new(0x100), 64).unwrap();
        assert!(slot(&guest, 0x100, 1, access::READ).is_err());
        guest.put_back(Iova::new(0x100), taken.clone());
        let taken = guest.take(Iova::new(0x100), 64).unwrap();
        map(&mut guest, 0x100, &mut memory, RW).unwrap();
        guest.put_back(Iova::new(0x100), taken.clone());
        guest.put_back(Iova::new(0x13f), Mapping { last: 0x140, ..taken });
        assert!(slot(&guest, 0x140, 1, access::READ).is_err(), "its place is taken");
        let wraps = map(&mut guest, u64::MAX - 3, &mut memory, RW);
        assert!(matches!(wraps, Err(MapError::Range { .. })));
        assert!(matches!(map(&mut guest, 0, &mut memory, 4), Err(MapError::Access { found: 4 })));
    }

    #[test]
    fn a_range_over_two_mappings_is_used_in_place_where_they_are_adjacent_in_host_memory() {
        let (mut guest, mut memory) = (Guest::default(), [0_u8; 96]);
        let (low, rest) = memory.split_at_mut(32);
        let (high, other) = rest.split_at_mut(32);
        map(&mut guest, 0x1000, low, RW).unwrap();
        map(&mut guest, 0x1020, high, access::READ).unwrap();
        assert!(matches!(slot(&guest, 0x1010, 0x20, access::READ), Ok(Reached::Direct(_))));
        let denied = slot(&guest, 0x1010, 0x20, RW).unwrap_err();
        assert_eq!(denied.status, Status::ACCESS_DENIED);
        map(&mut guest, 0xfe0, other, RW).unwrap();
        assert!(matches!(slot(&guest, 0xff0, 0x20, access::READ), Ok(Reached::Bounced(_))));
        for (at, len) in [(0x1030, 0x11), (0xfdf, 1), (0x1040, 1), (u64::MAX, 2)] {
            let unmapped = slot(&guest, at, len, access::READ).unwrap_err();
            assert_eq!(unmapped.status, Status::UNMAPPED_IOVA, "{at:#x}");
        }
    }

    #[test]
    fn a_window_makes_scattered_mappings_one_piece() {
        let (mut guest, mut memory, mut window) = (Guest::default(), [0_u8; 64], [0_u8; 64]);
        let [one, two] = [32, 0].map(|at| memory.as_mut_ptr().wrapping_add(at));
        let start = window.as_mut_ptr();
        for (at, host, window) in [(0x20, one, start), (0x40, two, start.wrapping_add(32))] {
            let hosts = (host, NonNull::new(window));
            // SAFETY: the arrays live longer than the table.
            unsafe { guest.map(Iova::new(at), hosts, 32, RW) }.unwrap();
        }
        let Ok(Reached::Direct(extent)) = slot(&guest, 0x30, 0x20, RW) else { panic!() };
        assert_eq!(extent.pointer(0, 32), start.wrapping_add(16));
        let Ok(Reached::Direct(extent)) = slot(&guest, 0x28, 0x18, RW) else { panic!() };
        assert_eq!(extent.pointer(0, 1), one.wrapping_add(8), "as long as it needs no window");
    }

    #[test]
    fn the_last_page_of_the_address_space_can_be_mapped_used_and_unmapped() {
        let (mut guest, mut memory) = (Guest::default(), [5_u8; 4096]);
        let at = 0_u64.wrapping_sub(4096);
        map(&mut guest, at, &mut memory, RW).unwrap();
        assert!(matches!(slot(&guest, at, 4096, RW), Ok(Reached::Direct(_))));
        let mut out = [0; 8];
        guest.read(Iova::new(u64::MAX - 7), &mut out).unwrap();
        assert_eq!(out, [5; 8]);
        assert!(slot(&guest, u64::MAX - 7, 9, RW).is_err());
        assert!(map(&mut guest, u64::MAX, &mut [0], RW).is_err());
        guest.take(Iova::new(at), 4096).unwrap();
        assert!(guest.read(Iova::new(u64::MAX - 7), &mut out).is_err());
    }

    #[test]
    fn scattered_memory_is_copied_and_its_rings_are_words_of_every_piece() {
        #[repr(align(8))]
        struct Aligned([u8; 64]);
        let (mut guest, mut memory) = (Guest::default(), Aligned([0; 64]));
        let (low, high) = memory.0.split_at_mut(32);
        map(&mut guest, 0x120, low, RW).unwrap();
        map(&mut guest, 0x100, high, RW).unwrap();
        let bytes: Vec<u8> = (0..48).collect();
        guest.write(Iova::new(0x108), &bytes).unwrap();
        let mut out = vec![0; 48];
        guest.read(Iova::new(0x108), &mut out).unwrap();
        assert_eq!(out, bytes);
        let words = guest.words(Iova::new(0x100), 16).unwrap();
        words.store(7, 77, Ordering::Relaxed);
        words.store(8, 88, Ordering::Relaxed);
        assert_eq!([words.load(7, Ordering::Relaxed), words.load(8, Ordering::Relaxed)], [77, 88]);
        drop(words);
        assert_eq!((memory.0[0], memory.0[60]), (88, 77));
    }

    #[test]
    fn copies_go_where_the_table_says_and_obey_permissions() {
        let (mut guest, mut memory) = (Guest::default(), [7_u8; 32]);
        map(&mut guest, 0x40, &mut memory, access::READ).unwrap();
        let mut out = [0; 4];
        guest.read(Iova::new(0x50), &mut out).unwrap();
        assert_eq!(out, [7; 4]);
        let denied = guest.write(Iova::new(0x50), &out).unwrap_err();
        assert_eq!(denied.status, Status::ACCESS_DENIED);
        assert!(guest.words(Iova::new(0x40), 4).is_err(), "rings are read and written");
    }
}
