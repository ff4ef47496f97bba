//! Submission entries by opcode, the completion entry, and the tables that EXEC and BIND read.
//!
//! Queue 0 is the admin queue; the rest are I/O queues. An entry is 64 bytes, a completion 32; the
//! rings they lie in are [`crate::ring`]'s. The device answers every entry it fetched exactly once.
#![expect(
    missing_debug_implementations,
    reason = "zerocopy's derives emit helper types, which the macro below makes look like ours"
)]

use crate::addr::{Iova, SlotId};
use crate::status::Status;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Numbers of the entries. Zero is none, so that a zeroed ring holds no entry.
pub mod opcode {
    /// Admin: [`super::Identify`]
    pub const IDENTIFY: u8 = 0x01;
    /// Admin: [`super::CreateContext`]
    pub const CREATE_CONTEXT: u8 = 0x02;
    /// Admin: [`super::Destroy`] of a context
    pub const DESTROY_CONTEXT: u8 = 0x03;
    /// Admin: [`super::CreateQueue`]
    pub const CREATE_QUEUE: u8 = 0x04;
    /// Admin: [`super::Destroy`] of a queue
    pub const DESTROY_QUEUE: u8 = 0x05;
    /// Admin: [`super::LoadProgram`]
    pub const LOAD_PROGRAM: u8 = 0x06;
    /// Admin: [`super::Destroy`] of a program
    pub const UNLOAD_PROGRAM: u8 = 0x07;
    /// Admin: [`super::Bind`]
    pub const BIND: u8 = 0x08;
    /// Admin: [`super::Destroy`] of a base table
    pub const UNBIND: u8 = 0x09;
    /// Admin: [`super::GetLog`]
    pub const GET_LOG: u8 = 0x0a;
    /// Admin: [`super::GetDump`]
    pub const GET_DUMP: u8 = 0x0b;
    /// I/O: [`super::Nop`]
    pub const NOP: u8 = 0x80;
    /// I/O: [`super::Exec`]
    pub const EXEC: u8 = 0x81;
    /// I/O: [`super::CopyEntry`]
    pub const COPY: u8 = 0x82;
    /// I/O: [`super::FillEntry`]
    pub const FILL: u8 = 0x83;
    /// I/O: [`super::Timestamp`]
    pub const TIMESTAMP: u8 = 0x84;
}

/// Priorities of queues. Zero is the usual one, so they are not in order: see [`band`](priority::band).
pub mod priority {
    /// The usual.
    pub const NORMAL: u32 = 0;
    /// Before the normal ones.
    pub const HIGH: u32 = 1;
    /// Before all others.
    pub const URGENT: u32 = 2;
    /// When nothing else is to be done.
    pub const BACKGROUND: u32 = 3;

    /// How many there are.
    pub const COUNT: usize = 4;

    /// Its place in the order, 0 for the one that goes first; `None` where there is no such priority.
    pub const fn band(priority: u32) -> Option<usize> {
        match priority {
            URGENT => Some(0),
            HIGH => Some(1),
            NORMAL => Some(2),
            BACKGROUND => Some(3),
            _ => None,
        }
    }
}

/// What every entry begins with. 8 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct EntryHeader {
    /// One of [`opcode`].
    pub opcode: u8,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// Echoed in the completion; unique among the entries in flight of a queue.
    pub job: u32,
}

impl EntryHeader {
    /// A head for `opcode` and `job`.
    pub const fn new(opcode: u8, job: u32) -> Self {
        Self { opcode, reserved: [0; 3], job }
    }
}

macro_rules! entry {
    ($(#[$doc:meta])* $name:ident = $opcode:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? }
     pad $pad:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        #[derive(FromBytes, Immutable, IntoBytes, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            /// Opcode and job.
            pub header: EntryHeader,
            $($(#[$fdoc])* pub $field: $ty,)*
            /// Must be zero.
            pub reserved: [u32; $pad],
        }
        const _: () = assert!(size_of::<$name>() == 64 && offset_of!($name, header) == 0);

        impl $name {
            /// The entry as ring words.
            pub fn words(self) -> [u32; 16] {
                zerocopy::transmute!(self)
            }

            /// The entry that ring words hold; its opcode and reserved fields are not judged here.
            pub fn from_words(words: [u32; 16]) -> Self {
                zerocopy::transmute!(words)
            }

            /// Whether every reserved field is zero.
            pub fn reserved_is_zero(&self) -> bool {
                self.header.reserved == [0; 3] && self.reserved == [0; $pad]
            }
        }
    };
}

entry! {
    /// IDENTIFY: writes [`crate::limits::Limits`] (128 bytes) to `out`.
    Identify = IDENTIFY {
        /// Where to.
        out: Iova,
    } pad 12
}
entry! {
    /// CREATE_CONTEXT: completion `value` is the id. Programs, tables and queues belong to a context.
    CreateContext = CREATE_CONTEXT {} pad 14
}
entry! {
    /// DESTROY_CONTEXT, DESTROY_QUEUE, UNLOAD_PROGRAM, UNBIND: ends the object `id`.
    Destroy = DESTROY_CONTEXT {
        /// Which.
        id: u32,
    } pad 13
}
entry! {
    /// CREATE_QUEUE: an I/O queue over the ring region at `base` (layout: [`crate::ring`]), which the
    /// driver has zeroed. Completion `value` is the queue's id, from 1.
    CreateQueue = CREATE_QUEUE {
        /// Start of the ring region, 64-byte aligned.
        base: Iova,
        /// The context its jobs run in.
        context: u32,
        /// Log2 of the submission ring, in entries.
        sq_log2: u8,
        /// Log2 of the completion ring, in entries.
        cq_log2: u8,
        /// Interrupt vector of its completions.
        vector: u16,
        /// One of [`priority`].
        priority: u32,
    } pad 9
}
entry! {
    /// LOAD_PROGRAM: copies the image ([`crate::image`]) of `len` bytes at `image` into the device,
    /// verifies it once and seals it. Completion `value` is the program's id. From ABI 1.1 on the names of
    /// its operations ([`crate::names`]) may come with it, for whoever reads the device's faults.
    LoadProgram = LOAD_PROGRAM {
        /// Start of the image.
        image: Iova,
        /// Bytes of the image.
        len: u64,
        /// The context it belongs to.
        context: u32,
        /// Bytes of the names, zero for none.
        names_len: u32,
        /// Start of the names; zero where there are none.
        names: Iova,
    } pad 6
}
entry! {
    /// BIND: copies `count` [`Binding`]s at `table` into an immutable base table, for the slots that are
    /// the same in every job of a program. Completion `value` is the table's id.
    Bind = BIND {
        /// Start of the bindings.
        table: Iova,
        /// How many.
        count: u32,
        /// The context it belongs to.
        context: u32,
    } pad 10
}
entry! {
    /// GET_LOG: writes [`Counters`] to `out`.
    GetLog = GET_LOG {
        /// Where to.
        out: Iova,
    } pad 12
}
entry! {
    /// GET_DUMP: writes the first `len` bytes of what the last job that faulted or hung has left
    /// ([`crate::coredump`]) to `out`, a reset since then or not. Completion `value` is the bytes of all of
    /// it, zero where there is none. From ABI 1.1 on.
    GetDump = GET_DUMP {
        /// Where to.
        out: Iova,
        /// Most bytes that are written.
        len: u64,
    } pad 10
}
entry! {
    /// NOP: completes.
    Nop = NOP {} pad 14
}
entry! {
    /// EXEC: runs a loaded program on the base table `table` overlaid with `count` [`Binding`]s at
    /// `overlay`, copied when the entry is fetched.
    Exec = EXEC {
        /// The overlay: inputs, outputs and scratch of this job.
        overlay: Iova,
        /// How many bindings it has.
        count: u32,
        /// A program that LOAD_PROGRAM has verified and sealed.
        program: u32,
        /// A base table, or 0 for none.
        table: u32,
    } pad 9
}
entry! {
    /// COPY: moves `len` bytes from `src` to `dst`, which do not overlap.
    CopyEntry = COPY {
        /// From.
        src: Iova,
        /// To.
        dst: Iova,
        /// Bytes.
        len: u64,
    } pad 8
}
entry! {
    /// FILL: sets `len` bytes at `dst` to `value`.
    FillEntry = FILL {
        /// Where.
        dst: Iova,
        /// Bytes.
        len: u64,
        /// The byte, `0..=255`.
        value: u32,
    } pad 9
}
entry! {
    /// TIMESTAMP: completes with the function's modelled cycles.
    Timestamp = TIMESTAMP {} pad 14
}

/// Completion entry. 32 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Completion {
    /// The entry's `job`.
    pub job: u32,
    /// How it ended.
    pub status: Status,
    /// The queue it was in.
    pub queue: u16,
    /// The id of what was created, else zero.
    pub value: u32,
    /// `sequence` of the fault record that explains `status`, zero when there is none.
    pub fault: u32,
    /// EXEC: modelled cycles of the job. TIMESTAMP: of the function.
    pub cycles: u64,
    /// Must be zero.
    pub reserved: u32,
    /// Bit 31 is the phase, which the ring keeps; the rest must be zero.
    pub phase: u32,
}
const _: () = assert!(size_of::<Completion>() == 32 && offset_of!(Completion, phase) == 28);

impl Completion {
    /// The completion as ring words, phase bit clear.
    pub fn words(self) -> [u32; 8] {
        zerocopy::transmute!(self)
    }

    /// The completion that ring words hold.
    pub fn from_words(words: [u32; 8]) -> Self {
        zerocopy::transmute!(words)
    }
}

/// Access that a mapping or a slot allows.
pub mod access {
    /// The device may read.
    pub const READ: u8 = 1;
    /// The device may write.
    pub const WRITE: u8 = 2;
}

/// One slot's memory, an element of a base table or an overlay. 32 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Binding {
    /// Start of the memory.
    pub base: Iova,
    /// Bytes.
    pub len: u64,
    /// Which slot.
    pub slot: SlotId,
    /// [`access`] bits; must cover what the program does with the slot.
    pub access: u8,
    /// Must be zero.
    pub reserved: [u8; 5],
    /// Must be zero.
    pub reserved2: u64,
}
const _: () = assert!(size_of::<Binding>() == 32);

/// Counters of a function since its last reset, written by GET_LOG. 128 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Counters {
    /// Modelled cycles of all jobs.
    pub cycles: u64,
    /// Jobs that ended `OK`.
    pub jobs: u64,
    /// Entries that ended otherwise.
    pub failed: u64,
    /// Commands executed.
    pub commands: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Bytes read from DRAM, modelled.
    pub dram_read: u64,
    /// Bytes written to DRAM, modelled.
    pub dram_written: u64,
    /// Writes of the KICK register.
    pub kicks: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Fault records written or lost.
    pub faults: u64,
    /// Bytes of slots that the device had to copy, since their memory is not one piece for it.
    pub bounced_bytes: u64,
    /// Modelled cycles in which the MAC array had work; zero before ABI 1.1, as the two below.
    pub array_cycles: u64,
    /// Modelled cycles in which the vector unit had work.
    pub vector_cycles: u64,
    /// Modelled cycles in which the DMA had work.
    pub dma_cycles: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}
const _: () = assert!(size_of::<Counters>() == 128);

/// The model of power: what a device at rest takes, and what each piece of work adds. Of no silicon.
pub mod power {
    /// At rest, in mW.
    pub const STATIC_MW: u64 = 50;
    /// Of a multiply-accumulate, in pJ.
    pub const PJ_PER_MAC: u64 = 1;
    /// Of a byte of DRAM, in pJ.
    pub const PJ_PER_DRAM_BYTE: u64 = 20;
}

impl Counters {
    /// Modelled energy of the work, in µJ.
    pub fn energy_uj(&self) -> u64 {
        u64::try_from(self.energy_pj() / 1_000_000).unwrap_or(u64::MAX)
    }

    /// Modelled power, in mW: at rest, and the work's energy over the modelled time of `cycles` at
    /// `clock_khz`. The mean while jobs ran.
    pub fn power_mw(&self, clock_khz: u32) -> u64 {
        // pJ a cycle times kHz is nW.
        let cycles = u128::from(self.cycles).max(1);
        let mw = self.energy_pj().saturating_mul(clock_khz.into()) / cycles / 1_000_000;
        power::STATIC_MW.saturating_add(u64::try_from(mw).unwrap_or(u64::MAX))
    }

    fn energy_pj(&self) -> u128 {
        let bytes = u128::from(self.dram_read) + u128::from(self.dram_written);
        u128::from(self.macs) * u128::from(power::PJ_PER_MAC)
            + bytes * u128::from(power::PJ_PER_DRAM_BYTE)
    }
}

/// The name of an entry's opcode; `None` for one that this version does not know.
pub const fn entry_name(opcode: u8) -> Option<&'static str> {
    Some(match opcode {
        opcode::IDENTIFY => "identify",
        opcode::CREATE_CONTEXT => "create_context",
        opcode::DESTROY_CONTEXT => "destroy_context",
        opcode::CREATE_QUEUE => "create_queue",
        opcode::DESTROY_QUEUE => "destroy_queue",
        opcode::LOAD_PROGRAM => "load_program",
        opcode::UNLOAD_PROGRAM => "unload_program",
        opcode::BIND => "bind",
        opcode::UNBIND => "unbind",
        opcode::GET_LOG => "get_log",
        opcode::GET_DUMP => "get_dump",
        opcode::NOP => "nop",
        opcode::EXEC => "exec",
        opcode::COPY => "copy",
        opcode::FILL => "fill",
        opcode::TIMESTAMP => "timestamp",
        _ => return None,
    })
}

/// The name of a priority; `None` for one that does not exist.
pub const fn priority_name(priority: u32) -> Option<&'static str> {
    match priority {
        priority::NORMAL => Some("normal"),
        priority::HIGH => Some("high"),
        priority::URGENT => Some("urgent"),
        priority::BACKGROUND => Some("background"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_their_fields_through_ring_words() {
        let exec = Exec {
            header: EntryHeader::new(opcode::EXEC, 7),
            overlay: Iova::new(0x1234_5678_9abc),
            count: 3,
            program: 4,
            table: 5,
            ..Exec::default()
        };
        assert_eq!(exec.words()[0], u32::from(opcode::EXEC));
        assert_eq!(exec.words()[1], 7);
        assert_eq!(Exec::from_words(exec.words()), exec);
        assert!(exec.reserved_is_zero());
    }

    #[test]
    fn modelled_power_is_that_at_rest_plus_the_energy_of_the_work_over_its_time() {
        assert_eq!(Counters::default().power_mw(1_000_000), power::STATIC_MW);
        // A thousand cycles at 1 GHz are 1 us; 1e6 MACs of 1 pJ in it are 1 uJ: 1 W.
        let busy = Counters { cycles: 1000, macs: 1_000_000, ..Counters::default() };
        assert_eq!((busy.energy_uj(), busy.power_mw(1_000_000)), (1, power::STATIC_MW + 1000));
        let all = Counters { cycles: 1, macs: u64::MAX, dram_read: u64::MAX, ..busy };
        assert!(all.power_mw(u32::MAX) > 1 << 40);
    }
}
