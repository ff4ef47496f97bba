//! Memory of a client: which files it lent for which IOVAs, mapped here for as long as the device uses it.
//!
//! DMA_UNMAP does what the kernel's Type 1 IOMMU does: it ends every mapping that lies in the range; a
//! range with nothing in it is no error; one that would cut a mapping in two is.
//!
//! A file is only mapped if its size is sealed against shrinking: else the client could take the pages
//! away, and an access would kill the server. Memory without a file is noted, so that it may be unmapped
//! and nothing may overlap it, but the device does not reach it: an access is a fault.

use super::message::Refusal;
use crate::device::Function;
use crate::guest::MapError;
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use npu_uapi::addr::Iova;
use npu_uapi::queue::access;
use npu_uapi::vfio_user::{DmaMap, DmaUnmap, PAGE_BYTES, dma_map_flags, dma_unmap_flags, errno};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Most mappings of one client. All clients share the process's limit, 65,530 on Linux.
pub(crate) const MAX_MAPS: usize = 900;
/// Most bytes that one client may map; all clients share 47 bits of address space.
pub(crate) const MAX_MAPPED_BYTES: u64 = 1 << 40;

/// The mappings of one client.
#[derive(Debug)]
pub(crate) struct ClientMemory {
    function: Arc<Function>,
    ranges: BTreeMap<u64, Range>,
    mapped_bytes: u64,
}

#[derive(Debug)]
struct Range {
    /// IOVA of the last byte: the end of the address space has no number of its own.
    last: u64,
    /// `None` without a file.
    mapping: Option<MmapRaw>,
}

impl ClientMemory {
    pub(crate) fn new(function: Arc<Function>) -> Self {
        Self { function, ranges: BTreeMap::new(), mapped_bytes: 0 }
    }

    /// DMA_MAP.
    pub(crate) fn map(&mut self, request: &DmaMap, file: Option<OwnedFd>) -> Result<(), Refusal> {
        let DmaMap { flags, offset, address, size, .. } = *request;
        let allowed = dma_map_flags::READ | dma_map_flags::WRITE;
        if flags & !allowed != 0 || flags & allowed == 0 {
            return Err(Refusal::invalid("a mapping allows reading, writing or both"));
        }
        let is_page = |value: u64| value.is_multiple_of(PAGE_BYTES);
        if size == 0 || !is_page(size) || !is_page(address.raw()) || !is_page(offset) {
            return Err(Refusal::invalid("a mapping is made of whole pages"));
        }
        let last = address.raw().checked_add(size - 1);
        let last = last.ok_or(Refusal::invalid("the range wraps around"))?;
        if self.ranges.range(..=last).next_back().is_some_and(|(_, r)| r.last >= address.raw()) {
            return Err(Refusal::new(errno::EEXIST, "the range overlaps a mapping"));
        }
        if self.ranges.len() >= MAX_MAPS {
            return Err(Refusal::new(errno::ENOSPC, "too many mappings"));
        }
        let mapping = match file {
            None => None,
            Some(file) => {
                if size > MAX_MAPPED_BYTES - self.mapped_bytes {
                    return Err(Refusal::new(errno::ENOSPC, "too many bytes are mapped"));
                }
                let mapping = map_file(&file, offset, size, flags)?;
                self.lend(address, &mapping, flags)?;
                self.mapped_bytes += size;
                Some(mapping)
            }
        };
        self.ranges.insert(address.raw(), Range { last, mapping });
        Ok(())
    }

    /// Lets the device reach `mapping`, which the caller keeps.
    fn lend(&self, address: Iova, mapping: &MmapRaw, flags: u32) -> Result<(), Refusal> {
        let mut bits = 0;
        if flags & dma_map_flags::READ != 0 {
            bits |= access::READ;
        }
        if flags & dma_map_flags::WRITE != 0 {
            bits |= access::WRITE;
        }
        // SAFETY: the mapping is valid for these accesses until it is dropped, which `end` does after
        // `Function::unmap` succeeded; the sealed file cannot shrink under it. Nothing here makes a
        // reference to its bytes.
        let lent = unsafe { self.function.map(address, mapping.as_mut_ptr(), mapping.len(), bits) };
        lent.map_err(|error| match error {
            MapError::Overlap { .. } => Refusal::new(errno::EEXIST, "the range overlaps a mapping"),
            _ => Refusal::invalid("the device refuses the range"),
        })
    }

    /// DMA_UNMAP: returns when the device has made its last access.
    pub(crate) fn unmap(&mut self, request: &DmaUnmap) -> Result<(), Refusal> {
        let DmaUnmap { flags, address, size, .. } = *request;
        let (first, last) = match flags {
            dma_unmap_flags::ALL if address.raw() == 0 && size == 0 => (0, u64::MAX),
            dma_unmap_flags::ALL => {
                return Err(Refusal::invalid("all mappings, but also a range"));
            }
            0 if size == 0 => return Err(Refusal::invalid("an empty range")),
            0 => {
                let last = address.raw().checked_add(size - 1);
                (address.raw(), last.ok_or(Refusal::invalid("the range wraps around"))?)
            }
            dma_unmap_flags::GET_DIRTY_BITMAP => {
                return Err(Refusal::new(errno::ENOTSUP, "written pages are not tracked"));
            }
            _ => return Err(Refusal::invalid("unknown flags")),
        };
        let cuts_first =
            self.ranges.range(..first).next_back().is_some_and(|(_, range)| range.last >= first);
        let inside: Vec<u64> = self.ranges.range(first..=last).map(|(&at, _)| at).collect();
        let cuts_last = inside.last().is_some_and(|at| self.ranges[at].last > last);
        if cuts_first || cuts_last {
            return Err(Refusal::invalid("the range would cut a mapping in two"));
        }
        inside.into_iter().try_for_each(|at| self.end(at))
    }

    /// How many mappings there are.
    #[cfg(test)]
    pub(crate) fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// What holds between any two commands.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let ends = self.ranges.values().map(|range| range.last);
        assert!(ends.zip(self.ranges.keys().skip(1)).all(|(last, &next)| last < next));
        let mapped = self.ranges.values().filter_map(|range| range.mapping.as_ref());
        assert_eq!(mapped.map(|mapping| mapping.len() as u64).sum::<u64>(), self.mapped_bytes);
    }

    /// Ends the mapping at `at`.
    fn end(&mut self, at: u64) -> Result<(), Refusal> {
        let Some(range) = self.ranges.get(&at) else { return Ok(()) };
        if let Some(mapping) = &range.mapping {
            let len = mapping.len() as u64;
            self.function.unmap(Iova::new(at), len).map_err(|error| match error {
                MapError::Busy { .. } => Refusal::new(errno::EBUSY, "a job still uses the memory"),
                _ => Refusal::new(errno::EIO, "the device does not know the mapping"),
            })?;
            self.mapped_bytes = self.mapped_bytes.saturating_sub(len);
        }
        self.ranges.remove(&at);
        Ok(())
    }
}

impl Drop for ClientMemory {
    fn drop(&mut self) {
        let starts: Vec<u64> = self.ranges.keys().copied().collect();
        for at in starts {
            if self.end(at).is_err()
                && let Some(range) = self.ranges.remove(&at)
            {
                // A leak is better than memory that goes away under a job.
                std::mem::forget(range.mapping);
            }
        }
    }
}

/// Maps `size` bytes of `file` from `offset` on, shared with the client.
fn map_file(file: &OwnedFd, offset: u64, size: u64, flags: u32) -> Result<MmapRaw, Refusal> {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS)
        .map_err(|_| Refusal::new(errno::EBADF, "the memory is not a memfd"))?;
    if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
        return Err(Refusal::new(errno::EACCES, "the memfd is not sealed against shrinking"));
    }
    let end = offset.checked_add(size).ok_or(Refusal::invalid("beyond any file"))?;
    let found = fstat(file).map_err(|_| Refusal::new(errno::EBADF, "the file cannot be read"))?;
    if u64::try_from(found.st_size).map_or(true, |found| found < end) {
        return Err(Refusal::invalid("the range lies beyond the end of the file"));
    }
    let len = usize::try_from(size).map_err(|_| Refusal::invalid("more than a process has"))?;
    let mut options = MmapOptions::new();
    options.offset(offset).len(len);
    let mapped = if flags & dma_map_flags::WRITE == 0 {
        options.map_raw_read_only(file)
    } else {
        options.map_raw(file)
    };
    mapped.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => {
            Refusal::new(errno::EACCES, "the file does not allow the access")
        }
        _ => Refusal::new(errno::ENOMEM, "the file cannot be mapped"),
    })
}
