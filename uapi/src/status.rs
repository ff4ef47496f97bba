//! Completion codes and fault records: how the device says what went wrong, and where.

use crate::addr::SlotId;
use alloc::format;
use alloc::string::String;
use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Status of a completion. A newtype, not an enum: a hostile device may write any value.
#[derive(
    Clone, Copy, Default, Eq, Hash, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(transparent)]
pub struct Status(pub u16);

macro_rules! statuses {
    ($( $(#[$doc:meta])* $name:ident = $code:literal, $text:literal; )*) => {
        impl Status {
            $( $(#[$doc])* pub const $name: Self = Self($code); )*

            /// Every status of this version, with its meaning.
            pub const ALL: &'static [(Self, &'static str, &'static str)] =
                &[$( (Self::$name, stringify!($name), $text), )*];
        }
    };
}

statuses! {
    /// Done.
    OK = 0, "done";
    /// No such opcode in this queue.
    UNKNOWN_OPCODE = 1, "the queue entry has an opcode this queue does not take";
    /// A reserved field of the entry is not zero.
    RESERVED_FIELD = 2, "a reserved field of the queue entry is not zero";
    /// A field of the entry is out of its range.
    INVALID_FIELD = 3, "a field of the queue entry is out of range";
    /// No such context, queue, program or table.
    UNKNOWN_ID = 4, "the entry names a context, queue, program or table that does not exist";
    /// A limit of the device is reached.
    NO_RESOURCES = 5, "a limit of the device is reached; destroy what is not used";
    /// The object is still used by another.
    BUSY = 6, "the object is still used; destroy what uses it first";
    /// The program image or a command of it is malformed, or the verifier refused it.
    PROGRAM_REFUSED = 7, "the program was refused by the verifier";
    /// The memory of the entry, an overlay, an image or an operand is not mapped.
    UNMAPPED_IOVA = 8, "the device was told to reach memory that is not mapped";
    /// The mapping forbids this access.
    ACCESS_DENIED = 9, "the mapping or slot does not allow this access";
    /// The program uses a slot that the tables leave unbound.
    UNBOUND_SLOT = 10, "the program uses a slot that is not bound";
    /// A slot is smaller than the program was verified for.
    SLOT_TOO_SMALL = 11, "a slot is smaller than the program declares";
    /// The job was ended by an abort, reset or unmap.
    ABORTED = 12, "the job was ended by an abort, a reset or an unmap";
    /// The job made no progress for the device's `hang_ms`, or for as long did not give the array back
    /// that others waited for, and was ended: the guilty one.
    HUNG = 13, "the job made no progress, or did not let others have the array in time, and was ended";
    /// The device found a fault of its own.
    INTERNAL = 14, "the device failed; reset it";
    /// The job was lost because another one hung, and did nothing wrong itself.
    INNOCENT = 15, "the job was lost because another one hung; submit it again";
    /// An access to memory failed on its way.
    DMA_ERROR = 16, "an access to memory failed; submit the job again, or check the link to the device";
}

impl Status {
    /// What the code means; says so when it is unknown.
    pub fn meaning(self) -> &'static str {
        let known = Self::ALL.iter().find(|(status, ..)| *status == self);
        known.map_or("a status that this library does not know", |(_, _, text)| text)
    }

    /// Whether the command did what it was asked.
    pub fn is_ok(self) -> bool {
        self == Self::OK
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::ALL.iter().find(|(status, ..)| status == self) {
            Some((_, name, _)) => f.write_str(name),
            None => write!(f, "Status({})", self.0),
        }
    }
}

/// What a fault was caused by, finer than [`Status`]: the `cause` field of a [`FaultRecord`] for
/// `PROGRAM_REFUSED` is the number of the verifier's rule, otherwise zero.
pub const NO_CAUSE: u16 = 0;

/// Marks a field of a fault record that does not apply.
pub const NOT_APPLICABLE: u32 = u32::MAX;

/// One entry of the fault ring. 64 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct FaultRecord {
    /// Counts faults of the function, from 1; a gap means records were lost for want of room.
    pub sequence: u32,
    /// What happened.
    pub status: Status,
    /// The verifier's rule for `PROGRAM_REFUSED`, else zero.
    pub cause: u16,
    /// The queue, 0 for the admin queue.
    pub queue: u16,
    /// The slot, `u16::MAX` when no operand is meant.
    pub slot: SlotId,
    /// The job of the entry.
    pub job: u32,
    /// Index of the command in its program, [`NOT_APPLICABLE`] when none is meant.
    pub command: u32,
    /// The command's `op_id`, [`NOT_APPLICABLE`] when none is meant.
    pub op_id: u32,
    /// Opcode of the entry or of the command that is meant.
    pub opcode: u8,
    /// 1 for a read, 2 for a write, 0 when no access is meant.
    pub access: u8,
    /// Must be zero.
    pub reserved: [u8; 6],
    /// Byte offset in the slot, in the program image, or in the entry.
    pub offset: u64,
    /// Bytes of the access.
    pub len: u64,
    /// The IOVA, where one is meant, else zero.
    pub iova: u64,
    /// Modelled cycles of the function when it happened.
    pub cycles: u64,
}
const _: () = assert!(size_of::<FaultRecord>() == 64);

impl FaultRecord {
    /// What happened, and where, in one line; `node` is the name behind `op_id`.
    pub fn message(&self, node: Option<&str>) -> String {
        format!(
            "job {} of queue {}: {}{}",
            self.job,
            self.queue,
            self.status.meaning(),
            Place(self, node)
        )
    }

    /// Where it happened: what follows the meaning of the status in [`FaultRecord::message`].
    pub fn place<'a>(&'a self, node: Option<&'a str>) -> impl fmt::Display + 'a {
        Place(self, node)
    }
}

/// A record and the node of its operation.
struct Place<'a>(&'a FaultRecord, Option<&'a str>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(record, node) = self;
        if record.command != NOT_APPLICABLE {
            write!(f, "; command {} (opcode {:#04x}", record.command, record.opcode)?;
            if record.op_id != NOT_APPLICABLE {
                write!(f, ", op {}", record.op_id)?;
            }
            f.write_str(")")?;
        } else {
            write!(f, "; entry opcode {:#04x}", record.opcode)?;
        }
        if let Some(node) = node {
            write!(f, ", node `{node}`")?;
        }
        if record.slot != SlotId(u16::MAX) {
            write!(f, ", slot {:?}", record.slot)?;
        }
        if record.len != 0 {
            write!(f, ", bytes {}..{}+{}", record.offset, record.offset, record.len)?;
        }
        if record.access != 0 {
            let access = ["", "read", "written", "read and written"];
            let access = access.get(usize::from(record.access)).copied().unwrap_or("");
            write!(f, " {access}")?;
        }
        if record.iova != 0 {
            write!(f, ", IOVA {:#x}", record.iova)?;
        }
        if record.status == Status::PROGRAM_REFUSED {
            write!(f, ", verifier rule {}", record.cause)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_unknown_ones_say_so() {
        for (index, (status, ..)) in Status::ALL.iter().enumerate() {
            assert_eq!(usize::from(status.0), index);
        }
        assert!(Status(999).meaning().contains("does not know"));
        assert_eq!(alloc::format!("{:?}", Status(999)), "Status(999)");
    }
}
