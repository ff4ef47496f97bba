//! Memory of a client: which files it lent for which IOVAs, mapped here for as long as the device uses it.
//!
//! DMA_UNMAP does what the kernel's Type 1 IOMMU does: it ends every mapping that lies in the range; a
//! range with nothing in it is no error; one that would cut a mapping in two is.
//!
//! A file that is sealed against shrinking is mapped once, whole ([`super::files`]); its large pages also
//! show in a window ([`super::window`]), side by side as their IOVAs are. Other files are read and
//! written by system calls, and memory without a file by asking the client ([`super::link`]).

use super::files::{FileId, Files, Kept};
use super::link::Link;
use super::message::Refusal;
use super::window::Windows;
use crate::device::Function;
use crate::guest::MapError;
use crate::remote::Remote;
use npu_uapi::addr::Iova;
use npu_uapi::queue::access;
use npu_uapi::vfio_user::{
    DmaMap, DmaUnmap, MAX_DMA_MAPS, PAGE_BYTES, dma_map_flags, dma_unmap_flags, errno,
};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most mappings of all clients together: each takes some 200 bytes here.
const MAX_ALL_MAPS: usize = 1 << 20;

static ALL_MAPS: AtomicUsize = AtomicUsize::new(0);

/// The mappings of one client.
#[derive(Debug)]
pub(crate) struct ClientMemory {
    function: Arc<Function>,
    link: Arc<Link>,
    ranges: BTreeMap<u64, Range>,
    files: Files,
    windows: Windows,
}

#[derive(Debug)]
struct Range {
    /// IOVA of the last byte: the end of the address space has no number of its own.
    last: u64,
    /// `None` without a file.
    file: Option<FileId>,
    has_window: bool,
}

impl ClientMemory {
    /// No mappings yet; memory without a file is asked for over `link`.
    pub(crate) fn new(function: Arc<Function>, link: Arc<Link>) -> Self {
        let (files, windows) = (Files::default(), Windows::default());
        Self { function, link, ranges: BTreeMap::new(), files, windows }
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
        if self.ranges.len() >= MAX_DMA_MAPS {
            return Err(Refusal::new(errno::ENOSPC, "too many mappings"));
        }
        // Relaxed: a count.
        if ALL_MAPS.fetch_add(1, Ordering::Relaxed) >= MAX_ALL_MAPS {
            ALL_MAPS.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::new(errno::ENOSPC, "too many mappings of all clients"));
        }
        let range = match file {
            None => self.map_asked(request).map(|()| Range { last, file: None, has_window: false }),
            Some(file) => self.map_file(request, &file, last),
        };
        let range = range.inspect_err(|_| {
            ALL_MAPS.fetch_sub(1, Ordering::Relaxed);
        })?;
        self.ranges.insert(address.raw(), range);
        Ok(())
    }

    /// Memory without a file: virtual machines map some in any case, and rarely use it.
    fn map_asked(&self, request: &DmaMap) -> Result<(), Refusal> {
        let link = Arc::<Link>::clone(&self.link) as Arc<dyn Remote>;
        let memory = (link, request.address.raw());
        self.function
            .map_remote(request.address, memory, request.size, bits(request.flags))
            .map_err(refusal)
    }

    fn map_file(&mut self, request: &DmaMap, file: &OwnedFd, last: u64) -> Result<Range, Refusal> {
        let DmaMap { flags, offset, address, size, .. } = *request;
        let end = offset.checked_add(size).ok_or(Refusal::invalid("beyond any file"))?;
        let is_writable = flags & dma_map_flags::WRITE != 0;
        let (id, kept) = self.files.keep(file, end, is_writable)?;
        let (lent, has_window) = match kept {
            Kept::Copied(copied) => {
                let memory = (copied as Arc<dyn Remote>, offset);
                (self.function.map_remote(address, memory, size, bits(flags)), false)
            }
            Kept::Mapped(mapped) => {
                let window = self.windows.show((address.raw(), size), (file, offset), is_writable);
                let lent = match (usize::try_from(offset), usize::try_from(size)) {
                    (Ok(offset), Ok(len)) => {
                        let host = mapped.as_mut_ptr().wrapping_add(offset);
                        let hosts = (host, window);
                        // SAFETY: the file and the window are valid for these accesses until `end`
                        // lets them go, which it does after `Function::unmap` succeeded; the sealed
                        // file cannot shrink under either. Nothing here makes a reference to the bytes.
                        unsafe { self.function.map_with_window(address, hosts, len, bits(flags)) }
                    }
                    _ => Err(MapError::Range { iova: address, len: size }),
                };
                (lent, window.is_some())
            }
        };
        if let Err(error) = lent {
            if has_window {
                self.windows.hide((address.raw(), size));
            }
            self.files.release(id);
            return Err(refusal(error));
        }
        Ok(Range { last, file: Some(id), has_window })
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
        let files: std::collections::BTreeSet<_> =
            self.ranges.values().filter_map(|range| range.file).collect();
        assert_eq!(files.len(), self.files.len());
    }

    /// Ends the mapping at `at`.
    fn end(&mut self, at: u64) -> Result<(), Refusal> {
        let Some(range) = self.ranges.get(&at) else { return Ok(()) };
        // Its size was a number when it was mapped.
        let len = range.last - at + 1;
        self.function.unmap(Iova::new(at), len).map_err(|error| match error {
            MapError::Busy { .. } => Refusal::new(errno::EBUSY, "a job still uses the memory"),
            _ => Refusal::new(errno::EIO, "the device does not know the mapping"),
        })?;
        if range.has_window {
            self.windows.hide((at, len));
        }
        if let Some(file) = range.file {
            self.files.release(file);
        }
        self.ranges.remove(&at);
        ALL_MAPS.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Access bits, as the device has them.
fn bits(flags: u32) -> u8 {
    let bit = |flag, bit| if flags & flag != 0 { bit } else { 0 };
    bit(dma_map_flags::READ, access::READ) | bit(dma_map_flags::WRITE, access::WRITE)
}

fn refusal(error: MapError) -> Refusal {
    match error {
        MapError::Overlap { .. } => Refusal::new(errno::EEXIST, "the range overlaps a mapping"),
        _ => Refusal::invalid("the device refuses the range"),
    }
}

impl Drop for ClientMemory {
    fn drop(&mut self) {
        let starts: Vec<u64> = self.ranges.keys().copied().collect();
        let stuck = starts.into_iter().filter(|&at| self.end(at).is_err()).count();
        if stuck > 0 {
            // A leak is better than memory that goes away under a job.
            std::mem::forget(std::mem::take(&mut self.files));
            std::mem::forget(std::mem::take(&mut self.windows));
            ALL_MAPS.fetch_sub(stuck, Ordering::Relaxed);
        }
    }
}
