//! A device in another process, behind a UNIX socket that speaks vfio-user.
//!
//! ```text
//! connection.rs   requests and their answers, one at a time, bounded in size and time
//! ../vectors.rs   interrupts: an eventfd each, counted
//! this file       what is asked at the start, and the transport made of both
//! ```
//!
//! Register accesses are round trips: the device says of each whether it was done, and jobs need none
//! while both sides are awake. Memory is shared as sealed files; rings and tensors in it cross
//! without a message. No file descriptor is taken from the device, and no memory of its making is mapped.

mod connection;
#[cfg(test)]
mod tests;

use super::vectors::{Peer, Vectors};
use super::{Access, Transport, TransportError};
use crate::dma::DmaMemory;
use connection::Connection;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use npu_uapi::addr::Iova;
use npu_uapi::regs::pci::BAR0_BYTES;
use npu_uapi::telemetry::PAGE_BYTES;
use npu_uapi::vfio_user::{
    DeviceInfo, DmaMap, DmaUnmap, IrqInfo, IrqSet, RegionAccess, RegionInfo, command, device_flags,
    dma_map_flags, irq, irq_flags, irq_set, region, region_flags,
};
use npu_uapi::workers::Workers;
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How long the device may take over a request: all of them are short, also while a job runs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Most interrupt vectors that a device may have.
const MOST_VECTORS: u32 = 128;
/// Bytes of the configuration space of a PCI device.
const CONFIG_BYTES: u64 = 256;
/// Bytes of a telemetry page.
const PAGE: usize = PAGE_BYTES as usize;

/// What a bus driver touches in configuration space, and in the MSI-X table.
mod pci {
    /// Command, low half.
    pub(super) const COMMAND: u32 = 0x04;
    /// Command: answers memory accesses, may access memory itself.
    pub(super) const MEMORY_SPACE_AND_BUS_MASTER: u32 = 6;
    /// Offset of the first capability.
    pub(super) const CAPABILITIES: u32 = 0x34;
    /// Id of the MSI-X capability.
    pub(super) const MSIX: u32 = 0x11;
    /// MSI-X, first dword: enabled.
    pub(super) const MSIX_ENABLE: u32 = 1 << 31;
    /// More capabilities than this do not fit into configuration space.
    pub(super) const MOST_CAPABILITIES: usize = 48;
    /// Bytes of an entry of the vector table, and where in it the mask lies.
    pub(super) const ENTRY_BYTES: u32 = 16;
    pub(super) const ENTRY_CONTROL: u32 = 12;
}

/// A connection to a device in another process.
#[derive(Debug)]
pub struct VfioUser {
    connection: Connection,
    vectors: Vectors,
    msix: Msix,
    /// Memory that the device was lent, by IOVA.
    mapped: Mutex<HashMap<u64, Arc<DmaMemory>>>,
}

/// Where the device has its MSI-X capability and table.
#[derive(Clone, Copy, Debug)]
struct Msix {
    capability: u32,
    region: u32,
    table: u32,
    vectors: u32,
}

impl VfioUser {
    /// Connects to the device that listens at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or what does is no device that this transport can drive.
    pub fn connect(path: &Path) -> Result<Self, TransportError> {
        Self::connect_within(path, PATIENCE)
    }

    /// As [`VfioUser::connect`]; the device is given up when it takes longer than `patience` over a request.
    ///
    /// # Errors
    /// As for [`VfioUser::connect`].
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Self, TransportError> {
        let stream = open(path, patience).map_err(|error| TransportError::Start {
            why: format!(
                "cannot connect to `{}`: {error}; is `npu-sim --socket` running there?",
                path.display()
            ),
        })?;
        Self::over(&format!("vfio-user:{}", path.display()), stream, patience)
    }

    /// Starts to speak on `stream`, whose other end has `patience` for each answer; `device` is what
    /// errors call it.
    ///
    /// # Errors
    /// What is there is no device that this transport can drive.
    pub fn over(
        device: &str,
        stream: UnixStream,
        patience: Duration,
    ) -> Result<Self, TransportError> {
        let connection = Connection::new(device, stream, patience)?;
        connection.negotiate()?;
        check_device(&connection)?;
        let msix = find_msix(&connection)?;
        let vectors = Vectors::new(msix.vectors)?;
        let device = Self { connection, vectors, msix, mapped: Mutex::new(HashMap::new()) };
        device.set_up()?;
        Ok(device)
    }

    /// What a bus driver does to a function: says whom interrupts wake, opens every vector, lets it
    /// access memory.
    fn set_up(&self) -> Result<(), TransportError> {
        for (vector, event) in (0..).zip(self.vectors.events()) {
            let set = IrqSet {
                argsz: size_of_u32::<IrqSet>(),
                flags: irq_set::DATA_EVENTFD | irq_set::TRIGGER,
                index: irq::MSIX,
                start: vector,
                count: 1,
            };
            // One at a time: a peer need not take more beside one message.
            self.connection.request(
                command::DEVICE_SET_IRQS,
                &[set.as_bytes()],
                Some(event),
                &mut [],
                0,
            )?;
        }
        self.config_write(pci::COMMAND, pci::MEMORY_SPACE_AND_BUS_MASTER)?;
        for vector in 0..self.msix.vectors {
            let control = self.msix.table + vector * pci::ENTRY_BYTES + pci::ENTRY_CONTROL;
            write(&self.connection, self.msix.region, control, 0)?;
        }
        self.config_write(self.msix.capability, pci::MSIX_ENABLE)
    }

    fn mapped(&self) -> MutexGuard<'_, HashMap<u64, Arc<DmaMemory>>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, in bounded time also when the other end accepts nobody.
fn open(path: &Path, patience: Duration) -> Result<UnixStream, nix::Error> {
    let address = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
    let limit = TimeVal::new(seconds, patience.subsec_micros().into());
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(UnixStream::from(socket))
}

/// The size of a message's body, as messages have it.
fn size_of_u32<T>() -> u32 {
    const { assert!(size_of::<T>() < 4096) };
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// Whether it is a PCI device with the regions of an NPU.
fn check_device(connection: &Connection) -> Result<(), TransportError> {
    let what = command::DEVICE_GET_INFO;
    let asked = DeviceInfo { argsz: size_of_u32::<DeviceInfo>(), ..DeviceInfo::default() };
    let info: DeviceInfo = connection.ask(what, &asked)?;
    if info.flags & device_flags::PCI == 0 {
        return Err(connection.wrong(what, "a PCI device", format!("flags {:#x}", info.flags)));
    }
    if info.regions <= region::CONFIG || info.irqs <= irq::MSIX {
        let found = format!("{} regions and {} kinds of interrupts", info.regions, info.irqs);
        return Err(connection.wrong(what, "those of a PCI device", found));
    }
    check_region(connection, region::BAR0, BAR0_BYTES.into())?;
    check_region(connection, region::CONFIG, CONFIG_BYTES)
}

/// Whether a region can be read and written and has at least `least` bytes.
fn check_region(connection: &Connection, index: u32, least: u64) -> Result<(), TransportError> {
    let what = command::DEVICE_GET_REGION_INFO;
    let asked = RegionInfo { argsz: size_of_u32::<RegionInfo>(), index, ..RegionInfo::default() };
    let info: RegionInfo = connection.ask(what, &asked)?;
    let has_access = info.flags & region_flags::READ != 0 && info.flags & region_flags::WRITE != 0;
    if info.index != index || info.size < least || !has_access {
        let expected = format!("region {index} of {least} bytes or more, to read and write");
        let found =
            format!("region {} of {} bytes, flags {:#x}", info.index, info.size, info.flags);
        return Err(connection.wrong(what, expected, found));
    }
    Ok(())
}

/// Finds the MSI-X capability, and holds what it says to what the protocol says.
fn find_msix(connection: &Connection) -> Result<Msix, TransportError> {
    let what = command::DEVICE_GET_IRQ_INFO;
    let asked = IrqInfo { argsz: size_of_u32::<IrqInfo>(), index: irq::MSIX, ..IrqInfo::default() };
    let info: IrqInfo = connection.ask(what, &asked)?;
    let is_usable = info.index == irq::MSIX && info.flags & irq_flags::EVENTFD != 0;
    if !is_usable || !(1..=MOST_VECTORS).contains(&info.count) {
        let expected = format!("1 to {MOST_VECTORS} MSI-X vectors that wake eventfds");
        let found = format!("{} of kind {}, flags {:#x}", info.count, info.index, info.flags);
        return Err(connection.wrong(what, expected, found));
    }
    let mut at = read(connection, region::CONFIG, pci::CAPABILITIES)? & 0xfc;
    for _ in 0..pci::MOST_CAPABILITIES {
        if at == 0 {
            break;
        }
        let head = read(connection, region::CONFIG, at)?;
        if head & 0xff != pci::MSIX {
            at = head >> 8 & 0xfc;
            continue;
        }
        // Where the table lies: which BAR, in the low bits, and where in it.
        let table = read(connection, region::CONFIG, (at + 4) & 0xfc)?;
        let (region, table) = (table & 7, table & !7);
        let entries = (head >> 16 & 0x7ff) + 1;
        if region > 5 || entries < info.count {
            let expected = format!("an MSI-X table of {} entries in a BAR", info.count);
            let found = format!("{entries} entries in region {region}");
            return Err(connection.wrong(command::REGION_READ, expected, found));
        }
        let end = u64::from(table) + u64::from(info.count * pci::ENTRY_BYTES);
        check_region(connection, region, end)?;
        return Ok(Msix { capability: at, region, table, vectors: info.count });
    }
    Err(connection.wrong(command::REGION_READ, "an MSI-X capability", "none".into()))
}

/// REGION_READ's answer for a dword.
#[derive(Clone, Copy, FromBytes, Immutable)]
#[repr(C, packed)]
struct ReadDword {
    access: RegionAccess,
    value: [u8; 4],
}

fn dword_of(region: u32, offset: u32) -> RegionAccess {
    RegionAccess { offset: offset.into(), region, count: 4 }
}

/// Reads the dword at `offset` of `region`.
fn read(connection: &Connection, region: u32, offset: u32) -> Result<u32, TransportError> {
    let access = dword_of(region, offset);
    let mut reply = [0; size_of::<ReadDword>()];
    let least = reply.len();
    connection.request(command::REGION_READ, &[access.as_bytes()], None, &mut reply, least)?;
    let ReadDword { access: found, value } = zerocopy::transmute!(reply);
    if found != access {
        return Err(connection.wrong(command::REGION_READ, text(access), text(found)));
    }
    Ok(u32::from_le_bytes(value))
}

/// Writes it; every store to shared memory before this is seen by whoever sees the write.
fn write(
    connection: &Connection,
    region: u32,
    offset: u32,
    value: u32,
) -> Result<(), TransportError> {
    // Pairs with the device's acquire of what it does with the message. The system call orders too.
    fence(Ordering::Release);
    let access = dword_of(region, offset);
    let body = [access.as_bytes(), &value.to_le_bytes()];
    let mut reply = [0; size_of::<RegionAccess>()];
    let least = reply.len();
    connection.request(command::REGION_WRITE, &body, None, &mut reply, least)?;
    let found: RegionAccess = zerocopy::transmute!(reply);
    if found != access {
        return Err(connection.wrong(command::REGION_WRITE, text(access), text(found)));
    }
    Ok(())
}

fn text(access: RegionAccess) -> String {
    format!("{} bytes at {:#x} of region {}", access.count, access.offset, access.region)
}

impl Transport for VfioUser {
    fn read32(&self, offset: u32) -> Result<u32, TransportError> {
        read(&self.connection, region::BAR0, offset)
    }

    fn write32(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        write(&self.connection, region::BAR0, offset, value)
    }

    fn config_read(&self, offset: u32) -> Result<u32, TransportError> {
        read(&self.connection, region::CONFIG, offset)
    }

    fn config_write(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        write(&self.connection, region::CONFIG, offset, value)
    }

    fn telemetry_read(&self, offset: u32) -> Result<u32, TransportError> {
        read(&self.connection, region::BAR4, offset)
    }

    fn telemetry_page(&self, place: u32) -> Result<Option<Vec<u32>>, TransportError> {
        // At once, which gives the words of one moment: word by word, a device at work would have changed
        // them in between.
        let offset = u64::from(place) * u64::from(PAGE_BYTES);
        let access = RegionAccess { offset, region: region::BAR4, count: PAGE_BYTES };
        let mut reply = vec![0; size_of::<RegionAccess>() + PAGE];
        let least = reply.len();
        let request = [access.as_bytes()];
        self.connection.request(command::REGION_READ, &request, None, &mut reply, least)?;
        let (found, bytes) = reply.split_at(size_of::<RegionAccess>());
        if found != access.as_bytes() {
            let found = RegionAccess::read_from_bytes(found).map_or_else(|_| String::new(), text);
            return Err(self.connection.wrong(command::REGION_READ, text(access), found));
        }
        let words: Vec<u32> =
            bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let used = words.get(2).map_or(0, |&bytes| bytes.min(PAGE_BYTES) / 4);
        let used = usize::try_from(used).unwrap_or(0).max(3);
        Ok(Some(words.into_iter().take(used).collect()))
    }

    fn map(&self, memory: Arc<DmaMemory>, at: Iova, access: Access) -> Result<(), TransportError> {
        let why = || "another process can only map memory that is a file".to_owned();
        let file = memory.file().ok_or_else(|| TransportError::Map { why: why() })?;
        let flags = match access {
            Access::Read => dma_map_flags::READ,
            Access::Write => dma_map_flags::WRITE,
            Access::ReadWrite => dma_map_flags::READ | dma_map_flags::WRITE,
        };
        let map = DmaMap {
            argsz: size_of_u32::<DmaMap>(),
            flags,
            offset: 0,
            address: at,
            size: memory.len() as u64,
        };
        let mut reply = [0; size_of::<DmaMap>()];
        self.connection.request(command::DMA_MAP, &[map.as_bytes()], Some(file), &mut reply, 0)?;
        self.mapped().insert(at.raw(), memory);
        Ok(())
    }

    fn unmap(&self, at: Iova) -> Result<(), TransportError> {
        let size = self.mapped().get(&at.raw()).map_or(0, |memory| memory.len() as u64);
        if size == 0 {
            let why = format!("nothing is mapped at {at:?}");
            return Err(TransportError::Map { why });
        }
        let unmap = DmaUnmap { argsz: size_of_u32::<DmaUnmap>(), flags: 0, address: at, size };
        let mut reply = [0; size_of::<DmaUnmap>()];
        self.connection.request(command::DMA_UNMAP, &[unmap.as_bytes()], None, &mut reply, 0)?;
        self.mapped().remove(&at.raw());
        Ok(())
    }

    fn iova_ranges(&self) -> Vec<Range<u64>> {
        // As behind an IOMMU of the PC: 48 bits without the page of MSI messages; and nothing at the
        // bottom, so that a forgotten address faults.
        vec![0x20_0000..0xfee0_0000, 0xfef0_0000..1 << 48]
    }

    fn reaches_process_memory(&self) -> bool {
        false
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
        self.vectors.wait(vector, seen, deadline, &self.connection)
    }

    fn wake(&self, vector: u16) {
        self.vectors.wake(vector);
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.connection.request(command::DEVICE_RESET, &[], None, &mut [], 0)?;
        self.set_up()
    }

    fn is_gone(&self) -> bool {
        self.connection.is_gone()
    }

    fn threads(&self) -> Option<usize> {
        // Nobody here computes.
        Some(1)
    }

    fn describe(&self) -> String {
        "a device in another process".to_owned()
    }
}
