//! The vfio-user protocol: messages between a driver and a PCI device in another process.
//!
//! ```text
//!   message = Header (16 bytes, holds the size of the whole) | body | file descriptors beside it
//!
//!   VERSION first:     client ──> server   proposes, the server answers with what holds
//!   dma                DMA_MAP, DMA_UNMAP; DMA_READ, DMA_WRITE go from server to client
//!   device             DEVICE_GET_INFO, .._REGION_INFO, .._IRQ_INFO, SET_IRQS, REGION_READ, .._WRITE, RESET
//! ```
//!
//! Layouts, numbers and limits only; both ends bring their own sockets. The protocol is that of QEMU's
//! `docs/interop/vfio-user.rst`, native-endian, and little-endian here like everything else. Fields that
//! we do not know are not refused where the protocol lets others extend them; sizes and counts always are.

mod device;
mod dma;

pub use device::{
    DeviceInfo, IrqInfo, IrqSet, RegionAccess, RegionInfo, RegionWriteEntry, SparseArea,
    SparseAreas, device_flags, irq, irq_flags, irq_set, region, region_flags,
};
pub use dma::{DmaAccess, DmaMap, DmaUnmap, dma_map_flags, dma_unmap_flags};

use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Numbers of the commands.
pub mod command {
    /// Negotiates version and capabilities: [`super::Version`] and JSON. The first message.
    pub const VERSION: u16 = 1;
    /// [`super::DmaMap`], with the memory's file descriptor where it has one.
    pub const DMA_MAP: u16 = 2;
    /// [`super::DmaUnmap`]; the reply repeats it.
    pub const DMA_UNMAP: u16 = 3;
    /// [`super::DeviceInfo`], in the request and the reply.
    pub const DEVICE_GET_INFO: u16 = 4;
    /// [`super::RegionInfo`], in the request and the reply; capabilities may follow in the reply.
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    /// Not supported here.
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    /// [`super::IrqInfo`], in the request and the reply.
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    /// [`super::IrqSet`] and data or eventfds; the reply is empty.
    pub const DEVICE_SET_IRQS: u16 = 8;
    /// [`super::RegionAccess`]; the reply repeats it, followed by the bytes.
    pub const REGION_READ: u16 = 9;
    /// [`super::RegionAccess`] and the bytes; the reply repeats the former.
    pub const REGION_WRITE: u16 = 10;
    /// Server to client: [`super::DmaAccess`]; the reply repeats it, followed by the bytes.
    pub const DMA_READ: u16 = 11;
    /// Server to client: [`super::DmaAccess`] and the bytes; the reply repeats the former.
    pub const DMA_WRITE: u16 = 12;
    /// No body.
    pub const DEVICE_RESET: u16 = 13;
    /// A `u64` count and as many [`super::RegionWriteEntry`]s; the reply repeats the count.
    pub const REGION_WRITE_MULTI: u16 = 15;
    /// Not supported here.
    pub const DEVICE_FEATURE: u16 = 16;
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// The type of a message: [`COMMAND`] or [`REPLY`].
    pub const TYPE: u32 = 0xf;
    /// A request.
    pub const COMMAND: u32 = 0;
    /// The answer to one.
    pub const REPLY: u32 = 1;
    /// The sender wants no reply to this command.
    pub const NO_REPLY: u32 = 0x10;
    /// The command failed; [`super::Header::error`] says why, and there is no body.
    pub const ERROR: u32 = 0x20;
}

/// Error numbers that replies carry: Linux's, by value, so that both ends mean the same.
pub mod errno {
    /// Not allowed in this state.
    pub const EPERM: u32 = 1;
    /// There is no such thing.
    pub const ENOENT: u32 = 2;
    /// The device failed.
    pub const EIO: u32 = 5;
    /// A count beyond what was negotiated.
    pub const E2BIG: u32 = 7;
    /// The file descriptor is missing or of the wrong kind.
    pub const EBADF: u32 = 9;
    /// No memory, or the file could not be mapped.
    pub const ENOMEM: u32 = 12;
    /// The file does not allow the access, or its size is not sealed.
    pub const EACCES: u32 = 13;
    /// A job still uses the memory.
    pub const EBUSY: u32 = 16;
    /// The range overlaps a mapping.
    pub const EEXIST: u32 = 17;
    /// A field has a value that it must not have.
    pub const EINVAL: u32 = 22;
    /// Too many mappings.
    pub const ENOSPC: u32 = 28;
    /// Too many clients.
    pub const EUSERS: u32 = 87;
    /// The command is not supported.
    pub const ENOTSUP: u32 = 95;
}

/// Version we speak, major and minor.
pub const PROTOCOL: (u16, u16) = (0, 1);
/// Bytes of [`Header`].
pub const HEADER_BYTES: usize = size_of::<Header>();
/// Most file descriptors beside one message.
pub const MAX_FDS: usize = 16;
/// Most bytes of data in one region or DMA access; the default where a peer names none.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Largest message that is read at all.
pub const MAX_MESSAGE_BYTES: u32 = MAX_TRANSFER_BYTES + 4096;
/// Most mappings of one client; the limit of the kernel's Type 1 driver.
pub const MAX_DMA_MAPS: usize = 65_535;
/// Smallest page: addresses and sizes of mappings are multiples of it.
pub const PAGE_BYTES: u64 = 4096;
/// First request id of a server, so that its requests are not taken for those of a client.
pub const SERVER_ID: u16 = 0x8000;

/// Keys of the JSON object behind [`Version`], all under [`capability::CAPABILITIES`].
pub mod capability {
    /// Holds the others.
    pub const CAPABILITIES: &str = "capabilities";
    /// Number: [`super::MAX_FDS`].
    pub const MAX_MSG_FDS: &str = "max_msg_fds";
    /// Number: [`super::MAX_TRANSFER_BYTES`].
    pub const MAX_DATA_XFER_SIZE: &str = "max_data_xfer_size";
    /// Number: [`super::MAX_DMA_MAPS`].
    pub const MAX_DMA_MAPS: &str = "max_dma_maps";
    /// Number: bit mask of page sizes.
    pub const PGSIZES: &str = "pgsizes";
    /// Boolean: REGION_WRITE_MULTI is understood.
    pub const WRITE_MULTIPLE: &str = "write_multiple";
}

/// What every message begins with. 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command and repeated in the reply. Need not be unique.
    pub id: u16,
    /// One of [`command`].
    pub command: u16,
    /// Bytes of the whole message, header included.
    pub size: u32,
    /// [`flags`].
    pub flags: u32,
    /// One of [`errno`] in an error reply, else zero.
    pub error: u32,
}
const _: () = assert!(size_of::<Header>() == 16 && offset_of!(Header, error) == 12);

/// Why a stream of messages cannot be read any further.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// The size of a message cannot be.
    #[error("a message of {found} bytes; it must have {HEADER_BYTES} to {MAX_MESSAGE_BYTES}")]
    Size {
        /// What was found.
        found: u32,
    },
}

impl Header {
    /// The head of a command with a body of `body_len` bytes; `None` beyond [`MAX_MESSAGE_BYTES`].
    pub fn command(id: u16, command: u16, body_len: usize) -> Option<Self> {
        Some(Self { id, command, size: size_of_message(body_len)?, ..Self::default() })
    }

    /// The head of the reply to this command; `None` beyond [`MAX_MESSAGE_BYTES`].
    pub fn reply(&self, body_len: usize) -> Option<Self> {
        let size = size_of_message(body_len)?;
        Some(Self { id: self.id, command: self.command, size, flags: flags::REPLY, error: 0 })
    }

    /// The whole error reply to this command. `error` must not be zero, which would mean success.
    #[must_use]
    pub fn error_reply(&self, error: u32) -> Self {
        debug_assert!(error != 0, "an error reply has an error");
        let error = if error == 0 { errno::EIO } else { error };
        let size = size_of_message(0).unwrap_or(0);
        let flags = flags::REPLY | flags::ERROR;
        Self { id: self.id, command: self.command, size, flags, error }
    }

    /// Whether it answers a command.
    pub fn is_reply(&self) -> bool {
        self.flags & flags::TYPE == flags::REPLY
    }

    /// Whether the sender of a command wants no answer.
    pub fn is_posted(&self) -> bool {
        self.flags & flags::NO_REPLY != 0
    }

    /// In a reply, the error it carries. An error flag without a number reads as `EIO`.
    pub fn failure(&self) -> Option<u32> {
        let is_error = self.flags & flags::ERROR != 0;
        is_error.then_some(if self.error == 0 { errno::EIO } else { self.error })
    }

    /// How many bytes of body follow.
    ///
    /// # Errors
    /// The size is less than a header or more than [`MAX_MESSAGE_BYTES`]: what follows has no meaning.
    pub fn body_len(&self) -> Result<usize, FramingError> {
        let found = self.size;
        let size = usize::try_from(found).map_err(|_| FramingError::Size { found })?;
        if found > MAX_MESSAGE_BYTES {
            return Err(FramingError::Size { found });
        }
        size.checked_sub(HEADER_BYTES).ok_or(FramingError::Size { found })
    }
}

fn size_of_message(body_len: usize) -> Option<u32> {
    let size = u32::try_from(body_len.checked_add(HEADER_BYTES)?).ok()?;
    (size <= MAX_MESSAGE_BYTES).then_some(size)
}

/// VERSION: the versions, followed by a JSON object in UTF-8 that ends with a NUL byte.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Version {
    /// Must be equal.
    pub major: u16,
    /// A reply has at most what the request had.
    pub minor: u16,
}
const _: () = assert!(size_of::<Version>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_replies_repeat_id_and_command_and_never_fail_with_zero() {
        let command = Header::command(7, command::REGION_READ, 16).unwrap();
        assert_eq!((command.size, command.body_len(), command.is_reply()), (32, Ok(16), false));
        let reply = command.reply(20).unwrap();
        assert_eq!((reply.id, reply.command, reply.size), (7, command::REGION_READ, 36));
        assert!(reply.is_reply() && reply.failure().is_none());
        let error = command.error_reply(errno::EINVAL);
        assert_eq!((error.size, error.failure()), (16, Some(errno::EINVAL)));
        let silent = Header { error: 0, ..error };
        assert_eq!(silent.failure(), Some(errno::EIO));
    }

    #[test]
    fn sizes_outside_the_limits_end_the_stream() {
        for found in [0, 15, MAX_MESSAGE_BYTES + 1, u32::MAX] {
            let header = Header { size: found, ..Header::default() };
            assert_eq!(header.body_len(), Err(FramingError::Size { found }));
        }
        let largest = Header { size: MAX_MESSAGE_BYTES, ..Header::default() };
        assert!(largest.body_len().is_ok());
        assert_eq!(Header::command(0, 1, largest.body_len().unwrap() + 1), None);
        assert_eq!(Header::command(0, 1, usize::MAX), None);
    }

    #[test]
    fn a_header_has_the_bytes_of_the_protocol() {
        let header = Header { id: 0x0102, command: 9, size: 32, flags: 0x21, error: 22 };
        let bytes = [2, 1, 9, 0, 32, 0, 0, 0, 0x21, 0, 0, 0, 22, 0, 0, 0];
        assert_eq!(header.as_bytes(), bytes);
        assert_eq!(Header::read_from_bytes(&bytes).unwrap(), header);
    }
}
