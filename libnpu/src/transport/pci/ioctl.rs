//! The requests to VFIO whose errors, or whose flags, `vfio-ioctls` keeps to itself.

use nix::errno::Errno;
use nix::libc;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, vfio_iommu_type1_dma_map,
};

/// Numbers of the requests: the kernel's `_IO(';', 100 + n)`.
const SET_IRQS: libc::Ioctl = 0x3b6e;
const RESET: libc::Ioctl = 0x3b6f;
const IOMMU_INFO: libc::Ioctl = 0x3b70;
const MAP_DMA: libc::Ioctl = 0x3b71;

/// Bytes of the fixed part of SET_IRQS: argsz, flags, index, start, count.
const IRQ_SET_BYTES: u32 = 20;
/// Room for what the kernel says of an IOMMU, in 8-byte words.
const INFO_WORDS: usize = 512;
/// Capabilities of an IOMMU that are read here.
const CAP_RANGES: u32 = 1;
const CAP_MAPPINGS: u32 = 3;
/// Bits of the flags of IOMMU_INFO.
const HAS_CAPABILITIES: u32 = 2;

/// Resets the function.
pub(super) fn reset(device: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the request has no argument.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), RESET) }).map(drop)
}

/// Has interrupts of kind `index` write `events`, from the first vector on; none turns all of them off.
pub(super) fn set_events(
    device: BorrowedFd<'_>,
    index: u32,
    events: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let count = u32::try_from(events.len()).map_err(|_| Errno::EINVAL)?;
    let data = if events.is_empty() { VFIO_IRQ_SET_DATA_NONE } else { VFIO_IRQ_SET_DATA_EVENTFD };
    let flags = data | VFIO_IRQ_SET_ACTION_TRIGGER;
    let argsz = count.checked_mul(4).and_then(|bytes| bytes.checked_add(IRQ_SET_BYTES));
    let argsz = argsz.ok_or(Errno::EINVAL)?;
    let fds = events.iter().map(|event| u32::from_ne_bytes(event.as_raw_fd().to_ne_bytes()));
    let request: Vec<u32> = [argsz, flags, index, 0, count].into_iter().chain(fds).collect();
    // SAFETY: the kernel reads `argsz` bytes, which are those of `request`.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), SET_IRQS, request.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Lets devices of `container` reach `len` bytes at `start`, by the addresses from `at` on.
///
/// # Safety
///
/// The bytes stay mapped, and no reference to them is made, until the range is unmapped or the container
/// is closed.
pub(super) unsafe fn map(
    container: BorrowedFd<'_>,
    start: *mut u8,
    len: usize,
    at: u64,
    (reads, writes): (bool, bool),
) -> Result<(), Errno> {
    let read = if reads { VFIO_DMA_MAP_FLAG_READ } else { 0 };
    let write = if writes { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
    const { assert!(size_of::<vfio_iommu_type1_dma_map>() == 32) };
    let request = vfio_iommu_type1_dma_map {
        argsz: 32,
        flags: read | write,
        vaddr: start.addr() as u64,
        iova: at,
        size: len as u64,
    };
    // SAFETY: a request of its true length; the caller answers for the bytes.
    let done = unsafe { libc::ioctl(container.as_raw_fd(), MAP_DMA, &raw const request) };
    Errno::result(done).map(drop)
}

/// What the IOMMU can do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct IommuInfo {
    /// Sizes of its pages, a bit each.
    pub(super) page_sizes: u64,
    /// Addresses that can be mapped; empty when the kernel does not say.
    pub(super) ranges: Vec<Range<u64>>,
    /// Mappings that are left.
    pub(super) mappings: Option<u32>,
}

/// Asks what the IOMMU of `container` can do.
pub(super) fn iommu_info(container: BorrowedFd<'_>) -> Result<IommuInfo, Errno> {
    let mut words = [0_u64; INFO_WORDS];
    // The first half of the first word is the size, in either order of bytes.
    let bytes = u32::try_from(size_of_val(&words)).map_err(|_| Errno::EINVAL)?;
    let mut first = [0; 8];
    first[..4].copy_from_slice(&bytes.to_ne_bytes());
    words[0] = u64::from_ne_bytes(first);
    // SAFETY: the kernel writes at most the size that the first word gives, which is that of `words`.
    let done = unsafe { libc::ioctl(container.as_raw_fd(), IOMMU_INFO, words.as_mut_ptr()) };
    Errno::result(done)?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(parse(&bytes))
}

/// Reads the answer to IOMMU_INFO: argsz, flags, page sizes, where the first capability is.
fn parse(bytes: &[u8]) -> IommuInfo {
    let u32_at = |at: usize| word(bytes, at).map(u32::from_ne_bytes);
    let u64_at = |at: usize| word(bytes, at).map(u64::from_ne_bytes);
    let mut info = IommuInfo { page_sizes: u64_at(8).unwrap_or(0), ..IommuInfo::default() };
    if u32_at(4).unwrap_or(0) & HAS_CAPABILITIES == 0 {
        return info;
    }
    let mut at = 0;
    let mut next = u32_at(16).unwrap_or(0);
    // Each lies behind the one before, so that a chain ends.
    while let Some(here) = usize::try_from(next).ok().filter(|&here| here > at) {
        at = here;
        // Id and version, 16 bits each, then the next.
        let Some(id) = word(bytes, at).map(u16::from_ne_bytes) else { break };
        let Some(following) = u32_at(at + 4) else { break };
        let count = u32_at(at + 8).unwrap_or(0);
        match u32::from(id) {
            CAP_RANGES => {
                let entries = (0..usize::try_from(count).unwrap_or(0)).map_while(|index| {
                    let entry = at.checked_add(16)?.checked_add(index.checked_mul(16)?)?;
                    // The last address is inside.
                    Some(u64_at(entry)?..u64_at(entry + 8)?.saturating_add(1))
                });
                info.ranges = entries.filter(|range| range.start < range.end).collect();
            }
            CAP_MAPPINGS => info.mappings = Some(count),
            _ => {}
        }
        next = following;
    }
    info
}

/// `N` bytes from `at` on.
fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn ranges_page_sizes_and_the_mappings_left_are_read() {
        let u32s = |words: &[u32]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
        let u64s = |words: &[u64]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
        let cap = |id: u16, next: u32| {
            [&id.to_ne_bytes()[..], &1_u16.to_ne_bytes(), &next.to_ne_bytes()].concat()
        };
        let bytes = answer(&[
            &u32s(&[88, 3]),
            &u64s(&[0x4020_1000]),
            &u32s(&[24, 0]),
            &cap(1, 72),
            &u32s(&[2, 0]),
            &u64s(&[0, 0xfedf_ffff, 0xfef0_0000, (1 << 39) - 1]),
            &cap(3, 0),
            &u32s(&[65_535, 0]),
        ]);
        let info = parse(&bytes);
        assert_eq!(info.page_sizes, 0x4020_1000);
        assert_eq!(info.ranges, [0..0xfee0_0000, 0xfef0_0000..1 << 39]);
        assert_eq!(info.mappings, Some(65_535));
        // Without the flag, what follows means nothing.
        let mut plain = bytes.clone();
        plain[4] = 1;
        assert_eq!(parse(&plain).ranges, []);
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_fail_or_go_on_for_ever(
            mut bytes in proptest::collection::vec(0_u8..40, 0..200),
        ) {
            if let Some(flags) = bytes.get_mut(4) {
                *flags |= 2;
            }
            let info = parse(&bytes);
            prop_assert!(info.ranges.iter().all(|range| range.start < range.end));
        }
    }
}
