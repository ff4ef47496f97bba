//! The register map of BAR0 (64 KiB), in offset order: driver, device model and tools read this table.
//!
//! Registers are 32 bits and accessed whole, at their own offset. Reads elsewhere give zero, writes
//! elsewhere are dropped and recorded as a fault.
//!
//! **Start.** Driver: read `Magic`, `AbiRange`; map ring memory, zero it; write `AdminBaseLow/High` and
//! `AdminSize`; write `Ctrl.ENABLE`; wait until `Status.STATE` is [`state::READY`]. **Reset.** Write
//! `Ctrl.RESET` (or function-level reset), wait until `Status.STATE` is [`state::RESET`]: the device
//! has then made its last access to memory and forgotten every queue, context, program and table.

use crate::registers;

/// Value of `Magic`: `NPU0`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NPU0");

/// Lowest and highest ABI version this library speaks: major in the high half of each.
///
/// | version | what it added |
/// |---|---|
/// | 1.1 | names in LOAD_PROGRAM; GET_DUMP; cycles by engine in the counters; layout 2 of the telemetry page |
pub const ABI: (u16, u16) = (0x0100, 0x0101);

/// The version that brought names of operations, dumps, and cycles by engine.
pub const ABI_WITH_NAMES: u16 = 0x0101;

/// Values of `Status.STATE`.
pub mod state {
    /// Disabled and quiet: the device does not touch memory.
    pub const RESET: u32 = 0;
    /// Serving its queues.
    pub const READY: u32 = 1;
    /// Stopped by a fault of the admin queue; reset it.
    pub const FAILED: u32 = 2;
    /// Ending jobs; becomes `RESET`.
    pub const QUIESCING: u32 = 3;

    /// The name of a state.
    pub const fn name(state: u32) -> &'static str {
        match state {
            RESET => "reset",
            READY => "ready",
            FAILED => "failed",
            QUIESCING => "quiescing",
            _ => "unknown",
        }
    }
}

/// PCI identity of the device.
pub mod pci {
    /// Vendor of the emulated device.
    pub const VENDOR: u16 = 0x1de5;
    /// Device.
    pub const DEVICE: u16 = 0x4e50;
    /// Class code: processing accelerator.
    pub const CLASS: u32 = 0x12_00_00;
    /// Device: the management function of a server, which is no NPU.
    pub const MANAGER: u16 = 0x4e51;
    /// Bytes of BAR0.
    pub const BAR0_BYTES: u32 = 0x1_0000;
}

registers! {
    /// Identifies the device; [`MAGIC`].
    Magic: ReadOnly @ 0x0000 {
        /// The magic number.
        [31:0] VALUE: u32;
    }
    /// ABI versions the device speaks.
    AbiRange: ReadOnly @ 0x0004 {
        /// Lowest.
        [15:0] LOW: u32;
        /// Highest.
        [31:16] HIGH: u32;
    }
    /// Version of the command set.
    IsaVersion: ReadOnly @ 0x0008 {
        /// Minor: additions.
        [15:0] MINOR: u32;
        /// Major: breaks.
        [31:16] MAJOR: u32;
    }
    /// What stands behind the registers.
    Platform: ReadOnly @ 0x000c {
        /// 1: emulator.
        [3:0] KIND: u32;
    }
    /// Device control. Zero after reset.
    Ctrl: ReadWrite @ 0x0010 {
        /// Serves the queues. Writing 1 takes up the admin queue.
        [0:0] ENABLE: bool;
        /// Resets the function. Reads as zero.
        [1:1] RESET: bool;
    }
    /// Device state.
    Status: ReadOnly @ 0x0014 {
        /// One of [`state`].
        [3:0] STATE: u32;
        /// How many resets the function has been through, modulo 256.
        [15:8] RESETS: u32;
    }
    /// Start of the admin queue's ring region, low half. 64-byte aligned.
    AdminBaseLow: ReadWrite @ 0x0020 {
        /// Bits 31:0 of the IOVA.
        [31:0] VALUE: u32;
    }
    /// Start of the admin queue's ring region, high half.
    AdminBaseHigh: ReadWrite @ 0x0024 {
        /// Bits 63:32 of the IOVA.
        [31:0] VALUE: u32;
    }
    /// Size of the admin queue's rings.
    AdminSize: ReadWrite @ 0x0028 {
        /// Log2 of the submission ring, in entries, 4 to 12.
        [3:0] SQ_LOG2: u32;
        /// Log2 of the completion ring, in entries, 4 to 12.
        [11:8] CQ_LOG2: u32;
    }
    /// Tells the device that a queue has entries, when it has said that it is about to sleep.
    Kick: WriteOnly @ 0x0030 {
        /// The queue, 0 for the admin queue.
        [15:0] QUEUE: u32;
    }
    /// Ends every entry in flight of a queue with `ABORTED`.
    Abort: WriteOnly @ 0x0034 {
        /// The queue.
        [15:0] QUEUE: u32;
    }
    /// Start of the fault ring, low half: 64 records of 64 bytes. Zero: no fault ring.
    FaultBaseLow: ReadWrite @ 0x0040 {
        /// Bits 31:0 of the IOVA.
        [31:0] VALUE: u32;
    }
    /// Start of the fault ring, high half.
    FaultBaseHigh: ReadWrite @ 0x0044 {
        /// Bits 63:32 of the IOVA.
        [31:0] VALUE: u32;
    }
    /// Records the device has written, free-running.
    FaultHead: ReadOnly @ 0x0048 {
        /// The index.
        [31:0] VALUE: u32;
    }
    /// Records the driver has read, free-running.
    FaultTail: ReadWrite @ 0x004c {
        /// The index.
        [31:0] VALUE: u32;
    }
    /// Records lost because the fault ring was full or absent.
    FaultLost: ReadOnly @ 0x0050 {
        /// How many, saturating.
        [31:0] VALUE: u32;
    }
    /// Pending causes of the admin vector, vector 0.
    IrqStatus: WriteOneToClear @ 0x0060 {
        /// The admin queue posted a completion.
        [0:0] ADMIN: bool;
        /// A fault record was written.
        [1:1] FAULT: bool;
        /// `Status.STATE` changed.
        [2:2] STATE: bool;
    }
    /// Causes that may raise vector 0.
    IrqMask: ReadWrite @ 0x0064 {
        /// Admin completions.
        [0:0] ADMIN: bool;
        /// Faults.
        [1:1] FAULT: bool;
        /// State changes.
        [2:2] STATE: bool;
    }
    /// Bands and commands begun since power-on: moves while anything makes progress. Low half.
    HeartbeatLow: ReadOnly @ 0x0070 {
        /// Bits 31:0.
        [31:0] VALUE: u32;
    }
    /// High half of the heartbeat; read high, low, high until the high half repeats.
    HeartbeatHigh: ReadOnly @ 0x0074 {
        /// Bits 63:32.
        [31:0] VALUE: u32;
    }
    /// Any value, kept: for register self-tests.
    Scratch: ReadWrite @ 0x0080 {
        /// The value.
        [31:0] VALUE: u32;
    }
}

/// Number of records in the fault ring.
pub const FAULT_RECORDS: u32 = 64;
