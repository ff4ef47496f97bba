//! Memory that the client mapped: lookup by IOVA, checked, and copies in and out.
//!
//! As a Type 1 IOMMU does it: mappings never overlap, are unmapped whole, and each allows reading,
//! writing or both. A range may run over several mappings only where these are adjacent in IOVA space
//! and in host memory alike, since a kernel reads an operand as one piece.
//!
//! The client may write any of this memory at any time, so nothing here makes a reference to it:
//! copies are atomic byte by byte, ring words are atomics, and tensors are raw [`Extent`]s.

use crate::memory::Extent;
use npu_uapi::addr::Iova;
use npu_uapi::queue::access;
use npu_uapi::ring::Words;
use npu_uapi::status::Status;
use std::collections::BTreeMap;
use std::ptr::NonNull;
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

/// Host memory that the device may reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    host: NonNull<u8>,
    len: u64,
    access: u8,
}

// SAFETY: the pointer is only used through this module, by rules that hold for any thread.
unsafe impl Send for Mapping {}

/// The IOVA table of one function.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    mappings: BTreeMap<u64, Mapping>,
}

impl Guest {
    /// Lets the device reach `len` bytes at `host` as `iova`.
    ///
    /// # Safety
    ///
    /// The bytes stay valid for reads, and for writes where `access` says so, until they are unmapped
    /// or the function is gone; the process accesses them meanwhile only in ways that allow for
    /// accesses of the device.
    pub(crate) unsafe fn map(
        &mut self,
        iova: Iova,
        host: *mut u8,
        len: usize,
        access: u8,
    ) -> Result<(), MapError> {
        let len = len as u64;
        let bad = MapError::Range { iova, len };
        let host = NonNull::new(host).ok_or(bad)?;
        iova.checked_add(len).ok_or(bad)?;
        if len == 0 || isize::try_from(len).is_err() {
            return Err(bad);
        }
        if access == 0 || access & !(access::READ | access::WRITE) != 0 {
            return Err(MapError::Access { found: access });
        }
        if let Some(other) = self.overlapped(iova, len) {
            return Err(MapError::Overlap { iova, len, other });
        }
        self.mappings.insert(iova.raw(), Mapping { host, len, access });
        Ok(())
    }

    /// Takes the mapping of exactly `len` bytes at `iova` out of the table: nothing finds it any more. The
    /// memory must stay valid until what found it before is done with it.
    pub(crate) fn take(&mut self, iova: Iova, len: u64) -> Result<Mapping, MapError> {
        match self.mappings.get(&iova.raw()) {
            Some(mapping) if mapping.len == len => {}
            _ => return Err(MapError::NotMapped { iova, len }),
        }
        self.mappings.remove(&iova.raw()).ok_or(MapError::NotMapped { iova, len })
    }

    /// Undoes [`Guest::take`], unless its place was taken meanwhile.
    pub(crate) fn put_back(&mut self, iova: Iova, mapping: Mapping) {
        if self.overlapped(iova, mapping.len).is_none() {
            self.mappings.insert(iova.raw(), mapping);
        }
    }

    /// Where a mapping begins that has a byte of `iova .. iova + len`, which do not wrap.
    fn overlapped(&self, iova: Iova, len: u64) -> Option<Iova> {
        let (&at, last) = self.mappings.range(..iova.raw() + len).next_back()?;
        (at + last.len > iova.raw()).then_some(Iova::new(at))
    }

    /// Host memory of `len > 0` bytes at `iova`, all of which allow `access`.
    fn find(&self, iova: Iova, len: u64, access: u8) -> Result<NonNull<u8>, Unreachable> {
        let fault = |status| Unreachable { status, iova, len, access };
        let unmapped = fault(Status::UNMAPPED_IOVA);
        let end = iova.checked_add(len).ok_or(unmapped)?.raw();
        let (&first, mapping) = self.mappings.range(..=iova.raw()).next_back().ok_or(unmapped)?;
        let mut reached = first + mapping.len;
        if reached <= iova.raw() {
            return Err(unmapped);
        }
        let offset = usize::try_from(iova.raw() - first).map_err(|_| unmapped)?;
        let start = mapping.host.as_ptr().wrapping_add(offset);
        let mut allowed = mapping.access;
        while reached < end {
            let next = self.mappings.get(&reached).ok_or(unmapped)?;
            let expected = start.addr() as u64 + (reached - iova.raw());
            if next.host.as_ptr().addr() as u64 != expected {
                return Err(fault(Status::INVALID_FIELD));
            }
            allowed &= next.access;
            reached += next.len;
        }
        if allowed & access != access {
            return Err(fault(Status::ACCESS_DENIED));
        }
        NonNull::new(start).ok_or(unmapped)
    }

    /// The `len > 0` bytes at `iova` as memory that a kernel may touch, writable when `access` says so.
    pub(crate) fn extent(&self, iova: Iova, len: u64, access: u8) -> Result<Extent, Unreachable> {
        let host = self.find(iova, len, access)?;
        let unmapped = Unreachable { status: Status::UNMAPPED_IOVA, iova, len, access };
        let len = usize::try_from(len).map_err(|_| unmapped)?;
        // SAFETY: `find` has shown that the bytes lie in mappings that are adjacent in host memory,
        // which whoever called `map` keeps valid; `device` waits for jobs before it unmaps.
        Ok(unsafe { Extent::from_raw(host.as_ptr(), len, access & access::WRITE != 0) })
    }

    /// Copies the bytes at `iova` to `out`.
    pub(crate) fn read(&self, iova: Iova, out: &mut [u8]) -> Result<(), Unreachable> {
        if out.is_empty() {
            return Ok(());
        }
        let host = self.find(iova, out.len() as u64, access::READ)?.as_ptr();
        for (at, byte) in out.iter_mut().enumerate() {
            // SAFETY: `find` has shown that `at < out.len()` bytes from `host` on are mapped.
            let shared = unsafe { AtomicU8::from_ptr(host.wrapping_add(at)) };
            *byte = shared.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies `bytes` to `iova`.
    pub(crate) fn write(&self, iova: Iova, bytes: &[u8]) -> Result<(), Unreachable> {
        if bytes.is_empty() {
            return Ok(());
        }
        let host = self.find(iova, bytes.len() as u64, access::WRITE)?.as_ptr();
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: `find` has shown that `at < bytes.len()` bytes from `host` on are mapped, writable.
            let shared = unsafe { AtomicU8::from_ptr(host.wrapping_add(at)) };
            shared.store(byte, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The `count` ring words at `iova`.
    pub(crate) fn words(&self, iova: Iova, count: usize) -> Result<GuestWords, Unreachable> {
        let len = count as u64 * 4;
        let access = access::READ | access::WRITE;
        let host = self.find(iova, len, access)?;
        let first = host.cast::<AtomicU32>();
        if !first.is_aligned() {
            return Err(Unreachable { status: Status::INVALID_FIELD, iova, len, access });
        }
        Ok(GuestWords { first, count })
    }
}

/// Ring words in mapped memory. Dropped before the memory is unmapped.
#[derive(Debug)]
pub(crate) struct GuestWords {
    first: NonNull<AtomicU32>,
    count: usize,
}

// SAFETY: atomics may be shared; the memory is the client's and outlives the mapping.
unsafe impl Send for GuestWords {}

impl GuestWords {
    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.count, "the ring stays within its region");
        // SAFETY: `Guest::words` checked that `count` words are mapped and that they are aligned, and
        // `device` drops a queue before it unmaps its ring.
        unsafe { &*self.first.as_ptr().wrapping_add(index) }
    }
}

impl Words for GuestWords {
    fn word_count(&self) -> usize {
        self.count
    }

    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }

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
        unsafe { guest.map(Iova::new(at), memory.as_mut_ptr(), memory.len(), access) }
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
        assert!(guest.extent(Iova::new(0x100), 1, access::READ).is_err());
        guest.put_back(Iova::new(0x100), taken);
        let taken = guest.take(Iova::new(0x100), 64).unwrap();
        map(&mut guest, 0x100, &mut memory, RW).unwrap();
        guest.put_back(Iova::new(0x100), taken);
        guest.put_back(Iova::new(0x13f), taken);
        assert!(guest.extent(Iova::new(0x140), 1, access::READ).is_err(), "its place is taken");
        let wraps = map(&mut guest, u64::MAX - 3, &mut memory, RW);
        assert!(matches!(wraps, Err(MapError::Range { .. })));
        assert!(matches!(map(&mut guest, 0, &mut memory, 4), Err(MapError::Access { found: 4 })));
    }

    #[test]
    fn a_range_over_two_mappings_needs_them_adjacent_in_host_memory() {
        let (mut guest, mut memory) = (Guest::default(), [0_u8; 96]);
        let (low, rest) = memory.split_at_mut(32);
        let (high, other) = rest.split_at_mut(32);
        map(&mut guest, 0x1000, low, RW).unwrap();
        map(&mut guest, 0x1020, high, access::READ).unwrap();
        guest.extent(Iova::new(0x1010), 0x20, access::READ).unwrap();
        let denied = guest.extent(Iova::new(0x1010), 0x20, RW).unwrap_err();
        assert_eq!(denied.status, Status::ACCESS_DENIED);
        map(&mut guest, 0xfe0, other, RW).unwrap();
        let apart = guest.extent(Iova::new(0xff0), 0x20, access::READ).unwrap_err();
        assert_eq!(apart.status, Status::INVALID_FIELD);
        for (at, len) in [(0x1030, 0x11), (0xfdf, 1), (0x1040, 1), (u64::MAX, 2)] {
            let unmapped = guest.extent(Iova::new(at), len, access::READ).unwrap_err();
            assert_eq!(unmapped.status, Status::UNMAPPED_IOVA, "{at:#x}");
        }
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
