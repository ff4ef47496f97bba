//! Addresses: one type per address space, so that one cannot be passed for another.

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An I/O virtual address: what the device puts on the bus, translated by the IOMMU. Not a pointer.
///
/// There are no operators: every sum is checked, by name.
#[derive(
    Clone,
    Copy,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Iova(u64);

impl Iova {
    /// The address `raw`, in bytes.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as it goes on the wire.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// `self + len_bytes`, or `None` past the end of the address space.
    pub const fn checked_add(self, len_bytes: u64) -> Option<Self> {
        match self.0.checked_add(len_bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// Bytes from `base` to `self`, or `None` when `self` lies before it.
    pub const fn offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }

    /// Whether the address is a multiple of `align_bytes`, a power of two.
    pub const fn is_aligned_to(self, align_bytes: u64) -> bool {
        debug_assert!(align_bytes.is_power_of_two());
        self.0 & (align_bytes - 1) == 0
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iova({:#x})", self.0)
    }
}

/// A slot of a program: an extent of memory that is named when a job starts, not when it is compiled.
#[derive(
    Clone,
    Copy,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
)]
#[repr(transparent)]
pub struct SlotId(pub u16);

impl SlotId {
    /// The slot as an index of a table.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Debug for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// Where an operand begins: a slot and a byte offset in it. 16 bytes.
#[derive(
    Clone, Copy, Default, Eq, Hash, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Operand {
    /// Byte offset from the start of the slot.
    pub offset: u64,
    /// Which slot.
    pub slot: SlotId,
    /// Must be zero.
    pub reserved: [u16; 3],
}
const _: () = assert!(size_of::<Operand>() == 16 && core::mem::offset_of!(Operand, slot) == 8);

impl Operand {
    /// The operand at byte `offset` of `slot`.
    pub const fn new(slot: SlotId, offset: u64) -> Self {
        Self { offset, slot, reserved: [0; 3] }
    }

    /// Whether every bit is zero, which is how an unused operand is written.
    pub fn is_unused(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Debug for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}+{:#x}", self.slot, self.offset)
    }
}
