//! Bodies of the messages about memory of the client.

use crate::addr::Iova;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits of [`DmaMap::flags`].
pub mod dma_map_flags {
    /// The device may read.
    pub const READ: u32 = 1;
    /// The device may write.
    pub const WRITE: u32 = 2;
}

/// Bits of [`DmaUnmap::flags`].
pub mod dma_unmap_flags {
    /// Asks for the bitmap of written pages. Not supported here.
    pub const GET_DIRTY_BITMAP: u32 = 1;
    /// Every mapping; address and size must be zero.
    pub const ALL: u32 = 2;
}

/// DMA_MAP: lets the device reach memory of the client, with its file where it has one.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`dma_map_flags`].
    pub flags: u32,
    /// Where in the file the memory begins.
    pub offset: u64,
    /// Where the device finds it.
    pub address: Iova,
    /// Bytes.
    pub size: u64,
}
const _: () = assert!(size_of::<DmaMap>() == 32 && offset_of!(DmaMap, address) == 16);

/// DMA_UNMAP: ends every mapping that lies in the range; none there is no error, a part of one is.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes of this structure, and of the bitmap where one is asked for.
    pub argsz: u32,
    /// [`dma_unmap_flags`].
    pub flags: u32,
    /// Start of the range.
    pub address: Iova,
    /// Bytes; `address + size` may be exactly 2^64.
    pub size: u64,
}
const _: () = assert!(size_of::<DmaUnmap>() == 24 && offset_of!(DmaUnmap, address) == 8);

/// DMA_READ, DMA_WRITE: an access of the device to memory that has no file.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct DmaAccess {
    /// Where.
    pub address: Iova,
    /// Bytes.
    pub count: u64,
}
const _: () = assert!(size_of::<DmaAccess>() == 16);
