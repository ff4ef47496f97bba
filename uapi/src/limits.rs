//! What a device reports of itself: the answer to IDENTIFY, and all that the compiler knows of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Sizes, clocks and bounds of a device. 128 bytes, written by IDENTIFY.
///
/// The driver checks [`Limits::is_plausible`] before it believes any of it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Limits {
    /// Version of the command set, major in the high half.
    pub isa_version: u32,
    /// Optional features; see [`Features`].
    pub features: u32,
    /// Multiply-accumulates of the array in a cycle.
    pub macs_per_cycle: u32,
    /// Clock, in kHz.
    pub clock_khz: u32,
    /// Bytes of the SRAM slot.
    pub sram_bytes: u64,
    /// Bytes of SRAM in a cycle.
    pub sram_bytes_per_cycle: u32,
    /// Bytes of DRAM in a cycle.
    pub dram_bytes_per_cycle: u32,
    /// DMA channels.
    pub dma_channels: u32,
    /// Slots of a program.
    pub slots: u32,
    /// Contexts of a function.
    pub contexts: u32,
    /// I/O queues of a function.
    pub queues: u32,
    /// Programs of a function; all loaded ones together have at most 16 times `commands` commands.
    pub programs: u32,
    /// Base tables of a function.
    pub tables: u32,
    /// Log2 of the largest ring, in entries.
    pub ring_log2: u32,
    /// Interrupt vectors.
    pub vectors: u32,
    /// Bytes of a program image.
    pub program_bytes: u64,
    /// Commands of a program.
    pub commands: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Multiply-accumulates of one command.
    pub command_macs: u64,
    /// Multiply-accumulates of one program.
    pub program_macs: u64,
    /// Bytes that one program may move.
    pub program_traffic: u64,
    /// Must be zero.
    pub reserved2: [u64; 3],
}
const _: () = assert!(size_of::<Limits>() == 128);

bitflags::bitflags! {
    /// Optional features of a device.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub struct Features: u32 {
        /// Scales and zero points from memory (`Flags::DYNAMIC`).
        const DYNAMIC_QUANT = 1 << 0;
    }
}

impl Limits {
    /// The reference configuration: 1,024 MAC a cycle at 1 GHz, 2 MiB of SRAM at 64 bytes a cycle,
    /// DRAM at 16 bytes a cycle, 2 DMA channels.
    pub const REFERENCE: Self = Self {
        isa_version: crate::command::ISA_VERSION,
        features: 0,
        macs_per_cycle: 1024,
        clock_khz: 1_000_000,
        sram_bytes: 2 << 20,
        sram_bytes_per_cycle: 64,
        dram_bytes_per_cycle: 16,
        dma_channels: 2,
        slots: 256,
        contexts: 16,
        queues: 16,
        programs: 256,
        tables: 256,
        ring_log2: 12,
        vectors: 17,
        program_bytes: 16 << 20,
        commands: 65_536,
        reserved: 0,
        command_macs: 1 << 40,
        program_macs: 1 << 44,
        program_traffic: 1 << 44,
        reserved2: [0; 3],
    };

    /// Whether a driver can work with the device: nothing is zero that divides, and every bound is one
    /// that the ABI allows.
    pub fn is_plausible(&self) -> bool {
        let rates = [self.macs_per_cycle, self.clock_khz, self.sram_bytes_per_cycle];
        let counts = [self.dram_bytes_per_cycle, self.dma_channels, self.contexts, self.queues];
        rates.iter().chain(&counts).all(|&x| x > 0)
            && self.programs > 0
            && self.tables > 0
            && self.commands > 0
            && (16..=256).contains(&self.slots)
            && (4..=12).contains(&self.ring_log2)
            && (1..=2048).contains(&self.vectors)
            && self.sram_bytes <= 1 << 32
    }

    /// Version of the command set, major part.
    pub fn isa_major(&self) -> u32 {
        self.isa_version >> 16
    }
}
