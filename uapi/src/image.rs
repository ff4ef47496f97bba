//! A program as the device loads it: header, slot table, commands; position-independent.
//!
//! ```text
//! 0    ImageHeader, 64 bytes
//! 64   slot table: `slots` x SlotDecl, 16 bytes each, padded with zeros to a multiple of 64
//! ..   commands, `command_bytes`, ending with END
//! ```

use crate::addr::SlotId;
use crate::command::{Command, ISA_VERSION, UNIT_BYTES};
use alloc::vec::Vec;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First word of an image: `NPUP`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NPUP");

/// What a slot holds, which decides who binds it and what commands may do with it.
pub mod slot_kind {
    /// Not used by the program; its length is zero.
    pub const UNUSED: u8 = 0;
    /// On-chip memory of the job, undefined at its start. Read and written; bound by the device.
    pub const SRAM: u8 = 1;
    /// Weights, records, tables. Read only; bound by the base table.
    pub const CONSTANT: u8 = 2;
    /// Memory of the job. Read and written; bound by the overlay.
    pub const SCRATCH: u8 = 3;
    /// A tensor the host gives. Read only; bound by the overlay.
    pub const INPUT: u8 = 4;
    /// A tensor the host takes. Read and written; bound by the overlay.
    pub const OUTPUT: u8 = 5;
}

/// Declaration of a slot: what the verifier proves extents against, and EXEC checks bindings against.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct SlotDecl {
    /// Bytes the program may touch, from the start of the slot.
    pub len: u64,
    /// One of [`slot_kind`].
    pub kind: u8,
    /// Must be zero.
    pub reserved: [u8; 7],
}
const _: () = assert!(size_of::<SlotDecl>() == 16);

impl SlotDecl {
    /// A slot of `kind` with `len` bytes.
    pub const fn new(kind: u8, len: u64) -> Self {
        Self { len, kind, reserved: [0; 7] }
    }

    /// [`crate::queue::access`] bits that commands may use.
    pub fn access(&self) -> u8 {
        use crate::queue::access::{READ, WRITE};
        match self.kind {
            slot_kind::SRAM | slot_kind::SCRATCH | slot_kind::OUTPUT => READ | WRITE,
            slot_kind::CONSTANT | slot_kind::INPUT => READ,
            _ => 0,
        }
    }
}

/// Head of an image. 64 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct ImageHeader {
    /// [`MAGIC`].
    pub magic: u32,
    /// Version of the command set the program is written in.
    pub isa_version: u32,
    /// `Features` bits the program needs.
    pub features: u32,
    /// Entries of the slot table.
    pub slots: u32,
    /// Bytes of the commands.
    pub command_bytes: u64,
    /// Must be zero.
    pub reserved: [u64; 5],
}
const _: () =
    assert!(size_of::<ImageHeader>() == 64 && offset_of!(ImageHeader, command_bytes) == 16);

/// Why bytes are not an image. What the commands do is [`crate::verify`]'s to judge.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Too short for its header, slot table or commands.
    #[error("the image has {found} bytes, its header asks for {want}")]
    Length {
        /// Bytes given.
        found: u64,
        /// Bytes that the header asks for.
        want: u64,
    },
    /// Not an image.
    #[error("the image begins with {found:#010x}, not with the magic number {MAGIC:#010x}")]
    Magic {
        /// First word found.
        found: u32,
    },
    /// Written in a command set that this library does not read.
    #[error(
        "the program is written in command set {found:#x}, this library reads {ISA_VERSION:#x}"
    )]
    IsaVersion {
        /// Version found.
        found: u32,
    },
    /// A command is newer than the command set that the program says it is written in.
    #[error(
        "the program is written in command set {found:#x}, one of its commands is of {want:#x}"
    )]
    NewerCommand {
        /// Version found.
        found: u32,
        /// Version that has all of the commands.
        want: u32,
    },
    /// A reserved field is not zero.
    #[error("a reserved field of the image header or slot table is not zero")]
    Reserved,
    /// Too many slots.
    #[error("the program declares {found} slots, at most 256 are possible")]
    Slots {
        /// Slots declared.
        found: u32,
    },
    /// A slot of unknown kind.
    #[error("slot {slot:?} has unknown kind {kind}")]
    SlotKind {
        /// The slot.
        slot: SlotId,
        /// What was found.
        kind: u8,
    },
    /// A command is malformed.
    #[error("a command is malformed")]
    Command(#[from] crate::decode::DecodeError),
}

/// A decoded image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// `Features` bits the program needs.
    pub features: u32,
    /// The slot table; index is the slot's id.
    pub slots: Vec<SlotDecl>,
    /// The commands, END included.
    pub commands: Vec<Command>,
}

impl Image {
    /// The oldest command set that has all of the commands: what the wire form says, so that a program
    /// runs on every device that can run it.
    pub fn isa_version(&self) -> u32 {
        let since = self.commands.iter().map(Command::since);
        since.max().unwrap_or(1 << 16)
    }

    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let commands = crate::encode::commands(&self.commands);
        let header = ImageHeader {
            magic: MAGIC,
            isa_version: self.isa_version(),
            features: self.features,
            slots: u32::try_from(self.slots.len()).expect("a program has at most 256 slots"),
            command_bytes: commands.len() as u64,
            reserved: [0; 5],
        };
        let mut bytes = Vec::from(header.as_bytes());
        bytes.extend_from_slice(self.slots.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(UNIT_BYTES), 0);
        bytes.extend_from_slice(&commands);
        bytes
    }

    /// Decodes the wire form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ImageError> {
        let found = bytes.len() as u64;
        let short = |want| ImageError::Length { found, want };
        let (header, rest) = ImageHeader::read_from_prefix(bytes).map_err(|_| short(64))?;
        if header.magic != MAGIC {
            return Err(ImageError::Magic { found: header.magic });
        }
        let version = header.isa_version;
        if version >> 16 != ISA_VERSION >> 16 || version > ISA_VERSION {
            return Err(ImageError::IsaVersion { found: version });
        }
        if header.reserved != [0; 5] {
            return Err(ImageError::Reserved);
        }
        if header.slots > 256 {
            return Err(ImageError::Slots { found: header.slots });
        }
        let table = u64::from(header.slots) * 16;
        let table_padded = table.next_multiple_of(UNIT_BYTES as u64);
        let want = (64 + table_padded).saturating_add(header.command_bytes);
        if found != want {
            return Err(short(want));
        }
        let split = |at: u64| usize::try_from(at).map_err(|_| short(want));
        let (table_bytes, commands) = rest.split_at(split(table_padded)?);
        let (table_bytes, pad) = table_bytes.split_at(split(table)?);
        let slots: Vec<SlotDecl> = table_bytes
            .chunks_exact(16)
            .map(|decl| SlotDecl::read_from_bytes(decl).map_err(|_| short(want)))
            .collect::<Result<_, _>>()?;
        let zero = slots.iter().all(|slot| slot.reserved == [0; 7]) && pad.iter().all(|&b| b == 0);
        if !zero {
            return Err(ImageError::Reserved);
        }
        for (slot, decl) in (0..).map(SlotId).zip(&slots) {
            if decl.kind > slot_kind::OUTPUT {
                return Err(ImageError::SlotKind { slot, kind: decl.kind });
            }
        }
        let commands = crate::decode::commands(commands)?;
        let image = Self { features: header.features, slots, commands };
        if image.isa_version() > version {
            return Err(ImageError::NewerCommand { found: version, want: image.isa_version() });
        }
        Ok(image)
    }
}
