//! Bodies of the messages about the device: its regions and interrupts.

use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Indices of a PCI device's regions.
pub mod region {
    /// Registers.
    pub const BAR0: u32 = 0;
    /// MSI-X table and pending bits.
    pub const BAR2: u32 = 2;
    /// The telemetry page.
    pub const BAR4: u32 = 4;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// How many there are, used or not.
    pub const COUNT: u32 = 9;
}

/// Indices of a PCI device's kinds of interrupts.
pub mod irq {
    /// MSI-X vectors: the only kind used here.
    pub const MSIX: u32 = 2;
    /// How many there are, used or not.
    pub const COUNT: u32 = 5;
}

/// Bits of [`DeviceInfo::flags`].
pub mod device_flags {
    /// DEVICE_RESET works.
    pub const RESET: u32 = 1;
    /// A PCI device.
    pub const PCI: u32 = 2;
}

/// DEVICE_GET_INFO.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// Request: room for the reply. Reply: what it takes.
    pub argsz: u32,
    /// [`device_flags`].
    pub flags: u32,
    /// How many regions have an index.
    pub regions: u32,
    /// How many kinds of interrupts have an index.
    pub irqs: u32,
}
const _: () = assert!(size_of::<DeviceInfo>() == 16);

/// Bits of [`RegionInfo::flags`].
pub mod region_flags {
    /// REGION_READ works.
    pub const READ: u32 = 1;
    /// REGION_WRITE works.
    pub const WRITE: u32 = 2;
    /// The file descriptor beside the reply can be mapped.
    pub const MMAP: u32 = 4;
    /// Capabilities follow, the first at `cap_offset`.
    pub const CAPS: u32 = 8;
}

/// DEVICE_GET_REGION_INFO.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct RegionInfo {
    /// Request: room for the reply. Reply: what it takes, capabilities included.
    pub argsz: u32,
    /// [`region_flags`].
    pub flags: u32,
    /// One of [`region`].
    pub index: u32,
    /// Where in the reply's body the first capability lies; zero for none.
    pub cap_offset: u32,
    /// Bytes of the region; zero where it is not used.
    pub size: u64,
    /// Where it begins in the file that can be mapped.
    pub offset: u64,
}
const _: () = assert!(size_of::<RegionInfo>() == 32 && offset_of!(RegionInfo, size) == 16);

/// Capability of a region: only some areas of it can be mapped. As many [`SparseArea`]s follow.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct SparseAreas {
    /// [`SparseAreas::ID`].
    pub id: u16,
    /// 1.
    pub version: u16,
    /// Where in the body the next capability lies; zero for none.
    pub next: u32,
    /// How many areas follow.
    pub count: u32,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<SparseAreas>() == 16);

impl SparseAreas {
    /// Its number among capabilities.
    pub const ID: u16 = 1;
}

/// An area of a region that can be mapped.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct SparseArea {
    /// Where it begins in the region; add [`RegionInfo::offset`] for the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}
const _: () = assert!(size_of::<SparseArea>() == 16);

/// Bits of [`IrqInfo::flags`].
pub mod irq_flags {
    /// Eventfds can be set.
    pub const EVENTFD: u32 = 1;
    /// Setting more vectors means disabling all first.
    pub const NO_RESIZE: u32 = 8;
}

/// DEVICE_GET_IRQ_INFO.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct IrqInfo {
    /// Request: room for the reply. Reply: what it takes.
    pub argsz: u32,
    /// [`irq_flags`].
    pub flags: u32,
    /// One of [`irq`].
    pub index: u32,
    /// How many vectors it has.
    pub count: u32,
}
const _: () = assert!(size_of::<IrqInfo>() == 16);

/// Bits of [`IrqSet::flags`]: one of the data kinds, and one action.
pub mod irq_set {
    /// No data.
    pub const DATA_NONE: u32 = 1;
    /// A byte a vector follows: acts on those that are not zero.
    pub const DATA_BOOL: u32 = 2;
    /// An eventfd a vector lies beside the message; none at all takes those away that were set.
    pub const DATA_EVENTFD: u32 = 4;
    /// Masks.
    pub const MASK: u32 = 8;
    /// Unmasks.
    pub const UNMASK: u32 = 16;
    /// With eventfds: sets whom a vector wakes. Else: raises it; no vectors at all disables the kind.
    pub const TRIGGER: u32 = 32;
    /// The data kinds.
    pub const DATA: u32 = DATA_NONE | DATA_BOOL | DATA_EVENTFD;
    /// The actions.
    pub const ACTION: u32 = MASK | UNMASK | TRIGGER;
}

/// DEVICE_SET_IRQS, for vectors `start..start + count`.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes of this structure and the data behind it.
    pub argsz: u32,
    /// [`irq_set`].
    pub flags: u32,
    /// One of [`irq`].
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// How many.
    pub count: u32,
}
const _: () = assert!(size_of::<IrqSet>() == 20);

/// REGION_READ, REGION_WRITE: which bytes of which region.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region.
    pub offset: u64,
    /// One of [`region`].
    pub region: u32,
    /// Bytes.
    pub count: u32,
}
const _: () = assert!(size_of::<RegionAccess>() == 16 && offset_of!(RegionAccess, region) == 8);

/// One write of REGION_WRITE_MULTI.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct RegionWriteEntry {
    /// Which bytes; at most 8.
    pub access: RegionAccess,
    /// The bytes, the first `access.count` of these.
    pub data: [u8; 8],
}
const _: () = assert!(size_of::<RegionWriteEntry>() == 24);
