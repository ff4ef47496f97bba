//! A device on the PCI bus, behind the kernel's VFIO.
//!
//! ```text
//! list.rs        what the bus has, and what of it can be opened
//! obstacle.rs    why a device cannot be used, and what to do
//! open.rs        container, group, device: the order in which the kernel wants them, back and forth
//! registers.rs   words of BAR0 and of configuration space
//! ioctl.rs       requests whose errors matter
//! ../vectors.rs  interrupts: an eventfd each, counted
//! ```
//!
//! The device sees what is mapped for it and nothing else: the IOMMU sees to that, not this process. All
//! memory that it may reach stays in RAM while it is mapped, so arenas are smaller than elsewhere, and
//! on huge pages where the system has some: a page is an entry of the IOMMU's tables.

mod ioctl;
mod list;
mod obstacle;
mod open;
mod registers;

pub use list::{Found, list};
pub use obstacle::Obstacle;

use super::vectors::{Peer, Vectors};
use super::{Access, MemoryKind, Transport, TransportError};
use crate::dma::DmaMemory;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use npu_uapi::addr::Iova;
use npu_uapi::reg::Register;
use npu_uapi::regs::Magic;
use npu_uapi::regs::pci::BAR0_BYTES;
use npu_uapi::workers::Workers;
use open::{Opened, irq};
use registers::Registers;
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Configuration space: command, and what in it must stay set.
const COMMAND: u32 = 0x04;
const MEMORY_SPACE: u32 = 2;
const BUS_MASTER: u32 = 4;
/// Offset of the first capability, and how many there can be.
const CAPABILITIES: u32 = 0x34;
const MOST_CAPABILITIES: usize = 48;
/// The MSI-X capability: its id, and its first dword's bits.
const MSIX: u32 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK_ALL: u32 = 1 << 30;
/// Most interrupt vectors that a device may have.
const MOST_VECTORS: u32 = 128;
/// Addresses that no device is given: those below, so that a forgotten one faults; those of MSI messages.
const LOWEST: u64 = 0x20_0000;
const MESSAGES: Range<u64> = 0xfee0_0000..0xfef0_0000;
/// Where addresses end when the kernel does not say: what every IOMMU of the PC has.
const LEAST_END: u64 = 1 << 39;
/// Where they end in any case: the device has 48 bits.
const HIGHEST_END: u64 = 1 << 48;

/// What is seen of a device that is no more.
const SILENT: &str = "all its registers read ones, as where there is no device: it was removed, or what \
                      emulates it ended";

/// A device that the kernel's VFIO gave to this process.
#[derive(Debug)]
pub struct Pci {
    /// The device string, for errors.
    device: String,
    /// The process that opened it.
    owner: u32,
    group: u32,
    registers: Registers,
    config: Registers,
    /// BAR4, where it is long enough for a page.
    telemetry: Option<Registers>,
    vectors: Vectors,
    /// The kernel writes it when it wants the device back.
    request: EventFd,
    /// Offset of the MSI-X capability.
    msix: u32,
    ranges: Vec<Range<u64>>,
    /// Whether it no longer answers.
    is_silent: AtomicBool,
    /// Mappings on huge pages, and on others.
    huge: AtomicU32,
    small: AtomicU32,
    // Behind all that refers to it, before the memory that it reaches.
    opened: Opened,
    mapped: Mutex<HashMap<u64, Arc<DmaMemory>>>,
}

impl Pci {
    /// Opens the device at `address`, such as `0000:00:02.0`.
    ///
    /// # Errors
    /// [`TransportError::Pci`] says what stands in the way, and what to do about it.
    pub fn open(address: &str) -> Result<Self, TransportError> {
        let device = format!("pci:{address}");
        let blocked = |obstacle| TransportError::Pci { device: device.clone(), obstacle };
        let (opened, group) = Opened::new(address).map_err(blocked)?;
        let registers = opened.registers(BAR0_BYTES).map_err(blocked)?;
        let config = opened.config().map_err(blocked)?;
        let telemetry = opened.telemetry().map_err(blocked)?;
        // Of the vendor: nobody answers for a device that is gone.
        if config.read(0).is_ok_and(|ids| ids == u32::MAX) {
            return Err(TransportError::Gone { device, why: SILENT.to_owned() });
        }
        let info = ioctl::iommu_info(opened.container())
            .map_err(|error| blocked(kernel("say what its IOMMU can do", error)))?;
        let count = opened.interrupts(irq::MSIX).min(MOST_VECTORS);
        let msix = find_msix(&config).filter(|_| count > 0);
        let msix = msix.ok_or_else(|| {
            let found = format!("it has {count} MSI-X vectors, or no capability for them");
            blocked(Obstacle::Shape { expected: "MSI-X", found })
        })?;
        let vectors = Vectors::new(count)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let request = EventFd::from_flags(flags)
            .map_err(|error| blocked(kernel("make an eventfd", error)))?;
        if opened.interrupts(irq::REQUEST) > 0 {
            ioctl::set_events(opened.device(), irq::REQUEST, &[request.as_fd()])
                .map_err(|error| blocked(kernel("tell when it wants the device back", error)))?;
        }
        let device = Self {
            device,
            owner: std::process::id(),
            group,
            registers,
            config,
            telemetry,
            vectors,
            request,
            msix,
            ranges: usable(&info.ranges),
            is_silent: AtomicBool::new(false),
            huge: AtomicU32::new(0),
            small: AtomicU32::new(0),
            opened,
            mapped: Mutex::new(HashMap::new()),
        };
        device.set_up()?;
        Ok(device)
    }

    /// Opens every vector, lets the device answer and access memory.
    fn set_up(&self) -> Result<(), TransportError> {
        self.open_vectors(true)?;
        let command = self.config_read(COMMAND)? & 0xffff;
        self.config_write(COMMAND, command | MEMORY_SPACE | BUS_MASTER)
    }

    /// Has the kernel deliver interrupts, or not. It keeps the vectors' table to itself; the device holds
    /// back what is raised meanwhile.
    fn open_vectors(&self, is_open: bool) -> Result<(), TransportError> {
        let events: Vec<BorrowedFd<'_>> =
            if is_open { self.vectors.events().collect() } else { Vec::new() };
        ioctl::set_events(self.opened.device(), irq::MSIX, &events)
            .map_err(|error| self.refused("SET_IRQS", error.desc()))
    }

    fn check_process(&self) -> Result<(), TransportError> {
        if self.owner == crate::process::id() {
            Ok(())
        } else {
            Err(TransportError::Forked { owner: self.owner })
        }
    }

    fn refused(&self, command: &'static str, why: impl ToString) -> TransportError {
        TransportError::Refused { device: self.device.clone(), command, why: why.to_string() }
    }

    /// The error for a device that no longer answers.
    fn silent(&self) -> TransportError {
        self.is_silent.store(true, Ordering::Relaxed);
        TransportError::Gone { device: self.device.clone(), why: SILENT.to_owned() }
    }

    fn mapped(&self) -> MutexGuard<'_, HashMap<u64, Arc<DmaMemory>>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a mapping failed.
    fn map_error(&self, error: Errno, bytes: u64) -> TransportError {
        let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(RLIM_INFINITY, |(soft, _)| soft);
        if error == Errno::ENOMEM && limit != RLIM_INFINITY {
            let obstacle = Obstacle::LockedMemory { bytes, limit };
            return TransportError::Pci { device: self.device.clone(), obstacle };
        }
        let why = match error {
            Errno::ENOSPC => "the kernel counts no more mappings (`dma_entry_limit`)".to_owned(),
            other => format!("{bytes} bytes: {}", other.desc()),
        };
        TransportError::Map { why }
    }
}

fn kernel(what: &'static str, error: Errno) -> Obstacle {
    Obstacle::Kernel { what, why: error.desc().to_owned() }
}

/// Offset of the MSI-X capability.
fn find_msix(config: &Registers) -> Option<u32> {
    let mut at = config.read(CAPABILITIES).ok()? & 0xfc;
    for _ in 0..MOST_CAPABILITIES {
        let head = config.read(at).ok().filter(|_| at != 0)?;
        if head & 0xff == MSIX {
            return Some(at);
        }
        at = head >> 8 & 0xfc;
    }
    None
}

/// What of the addresses that an IOMMU has are given out.
fn usable(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let unknown = Vec::from_iter(std::iter::once(0..LEAST_END));
    let ranges = if ranges.is_empty() { &unknown } else { ranges };
    let both = ranges.iter().flat_map(|range| {
        let (start, end) = (range.start.max(LOWEST), range.end.min(HIGHEST_END));
        [start..end.min(MESSAGES.start), start.max(MESSAGES.end)..end]
    });
    both.filter(|range| range.start < range.end).collect()
}

impl Peer for Pci {
    fn hang_up(&self) -> PollFd<'_> {
        PollFd::new(self.request.as_fd(), PollFlags::POLLIN)
    }

    fn hung_up(&self) -> TransportError {
        let why = "the kernel wants it back, as when it is unbound from vfio-pci; it has it once this \
                   process lets go";
        TransportError::Gone { device: self.device.clone(), why: why.to_owned() }
    }

    fn is_gone(&self) -> bool {
        let mut fds = [Peer::hang_up(self)];
        // It is not read, so that whoever looks later sees it too.
        self.is_silent.load(Ordering::Relaxed)
            || poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any() == Some(true)
    }
}

impl Transport for Pci {
    fn read32(&self, offset: u32) -> Result<u32, TransportError> {
        self.check_process()?;
        let read = |at| self.registers.read(at).map_err(|why| self.refused("a register read", why));
        let value = read(offset)?;
        // Nobody answers for a device that is gone.
        if value == u32::MAX && read(Magic::OFFSET)? == u32::MAX {
            return Err(self.silent());
        }
        Ok(value)
    }

    fn write32(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.check_process()?;
        self.registers.write(offset, value).map_err(|why| self.refused("a register write", why))
    }

    fn config_read(&self, offset: u32) -> Result<u32, TransportError> {
        self.check_process()?;
        self.config.read(offset).map_err(|why| self.refused("a configuration read", why))
    }

    fn config_write(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.check_process()?;
        if offset == self.msix {
            // The kernel drops a write to it.
            return self.open_vectors(value & MSIX_ENABLE != 0 && value & MSIX_MASK_ALL == 0);
        }
        // Whoever touched the mapping of registers that do not answer would be ended by the system.
        let kept = if offset == COMMAND { MEMORY_SPACE } else { 0 };
        let written = self.config.write(offset, value | kept);
        written.map_err(|why| self.refused("a configuration write", why))
    }

    fn telemetry_read(&self, offset: u32) -> Result<u32, TransportError> {
        self.check_process()?;
        let refused = |why: &dyn ToString| self.refused("a telemetry read", why.to_string());
        let telemetry = self.telemetry.as_ref().ok_or_else(|| refused(&"it has no BAR4"))?;
        telemetry.read(offset).map_err(|why| refused(&why))
    }

    fn map(&self, memory: Arc<DmaMemory>, at: Iova, access: Access) -> Result<(), TransportError> {
        self.check_process()?;
        let ways = (access != Access::Write, access != Access::Read);
        let container = self.opened.container();
        // SAFETY: `mapped` keeps the memory until it is unmapped or the container is closed, which comes
        // first when this value is dropped; `DmaMemory` gives out no references to it.
        unsafe { ioctl::map(container, memory.as_ptr(), memory.len(), at.raw(), ways) }
            .map_err(|error| self.map_error(error, memory.len() as u64))?;
        let kind = if memory.is_on_huge_pages() { &self.huge } else { &self.small };
        kind.fetch_add(1, Ordering::Relaxed);
        self.mapped().insert(at.raw(), memory);
        Ok(())
    }

    fn unmap(&self, at: Iova) -> Result<(), TransportError> {
        self.check_process()?;
        let nothing = || TransportError::Map { why: format!("nothing is mapped at {at:?}") };
        let len = self.mapped().get(&at.raw()).map(|memory| memory.len()).ok_or_else(nothing)?;
        let unmapped = self.opened.unmap(at.raw(), len);
        unmapped.map_err(|why| TransportError::Map { why })?;
        let memory = self.mapped().remove(&at.raw());
        let is_huge = memory.is_some_and(|memory| memory.is_on_huge_pages());
        let kind = if is_huge { &self.huge } else { &self.small };
        kind.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn iova_ranges(&self) -> Vec<Range<u64>> {
        self.ranges.clone()
    }

    fn reaches_process_memory(&self) -> bool {
        false
    }

    fn memory_kind(&self) -> MemoryKind {
        MemoryKind::Locked
    }

    fn runs_by_itself(&self) -> bool {
        true
    }

    fn interrupts(&self, vector: u16) -> u64 {
        self.vectors.count(vector)
    }

    fn wait(
        &self,
        vector: u16,
        seen: u64,
        deadline: Instant,
        _: &dyn Workers,
    ) -> Result<u64, TransportError> {
        self.check_process()?;
        self.vectors.wait(vector, seen, deadline, self)
    }

    fn wake(&self, vector: u16) {
        self.vectors.wake(vector);
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.check_process()?;
        ioctl::reset(self.opened.device()).map_err(|error| match error {
            Errno::ENOTTY | Errno::EINVAL => {
                self.refused("DEVICE_RESET", "the kernel knows no way to reset it")
            }
            other => self.refused("DEVICE_RESET", other.desc()),
        })?;
        self.set_up()
    }

    fn is_gone(&self) -> bool {
        Peer::is_gone(self)
    }

    fn gone(&self) -> Option<TransportError> {
        let is_silent = self.is_silent.load(Ordering::Relaxed);
        Peer::is_gone(self).then(|| if is_silent { self.silent() } else { self.hung_up() })
    }

    fn threads(&self) -> Option<usize> {
        // Nobody here computes.
        Some(1)
    }

    fn describe(&self) -> String {
        let (huge, small) = (self.huge.load(Ordering::Relaxed), self.small.load(Ordering::Relaxed));
        let way = if self.registers.is_mapped() { "mapped" } else { "through its file" };
        let group = self.group;
        let memory = match small {
            0 => "memory on huge pages".to_owned(),
            small => format!(
                "{small} of {} arenas on small pages, which map slowly: reserve huge pages in \
                 /proc/sys/vm/nr_hugepages",
                small + huge
            ),
        };
        format!("kernel VFIO, IOMMU group {group}, registers {way}, {memory}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_out_where_the_iommu_has_them_and_messages_do_not_go() {
        let vt_d = [0..0xfee0_0000, 0xfef0_0000..1 << 57];
        let ours = [LOWEST..0xfee0_0000, 0xfef0_0000..1 << 48];
        assert_eq!(usable(&vt_d), ours);
        assert_eq!(usable(&[]), [LOWEST..0xfee0_0000, 0xfef0_0000..1 << 39]);
        let whole = Vec::from_iter(std::iter::once(0..1 << 32));
        assert_eq!(usable(&whole), [LOWEST..0xfee0_0000, 0xfef0_0000..1 << 32]);
        let odd = [0..0x1000, 0xfee0_1000..0xfee0_2000, 1 << 50..1 << 51];
        assert_eq!(usable(&odd), []);
    }

    #[test]
    fn an_address_without_a_device_says_so() {
        let error = Pci::open("ffff:ff:1f.7").unwrap_err();
        assert!(matches!(&error, TransportError::Pci { obstacle: Obstacle::NoDevice { .. }, .. }));
        let told = error.to_string();
        assert!(told.contains("`pci:ffff:ff:1f.7`") && told.contains("lspci -D"), "{told}");
    }
}
