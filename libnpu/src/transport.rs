//! The one way to a device: words, mappings and interrupts. Knows nothing of queues, jobs or tensors.

use crate::dma::DmaMemory;
use npu_uapi::addr::Iova;
use npu_uapi::reg::Register;
use npu_uapi::workers::Workers;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "sim")]
pub mod inproc;
pub mod pci;
mod read_now;
mod vectors;
pub mod vfio_user;

/// Why the device could not be reached.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The other end is gone, or was given up: nothing is asked of it any more.
    #[error("device `{device}` went away: {why}; open it again")]
    Gone {
        /// The device string.
        device: String,
        /// What was seen of it last.
        why: String,
    },
    /// The device answered a request with an error. It can be asked other things.
    #[error("device `{device}` refused {command}: {why}")]
    Refused {
        /// The device string.
        device: String,
        /// The request.
        command: &'static str,
        /// The error it gave.
        why: String,
    },
    /// The device answered what no device may answer. It is given up.
    #[error(
        "device `{device}` answered {command} with {found} where {expected} was expected; it is \
         broken, or no NPU"
    )]
    Protocol {
        /// The device string.
        device: String,
        /// The request.
        command: &'static str,
        /// What a device may answer.
        expected: String,
        /// What came.
        found: String,
    },
    /// The device did not answer. It is given up.
    #[error("device `{device}` did not answer {command} within {waited:?}; restart it")]
    Silent {
        /// The device string.
        device: String,
        /// The request.
        command: &'static str,
        /// How long it was given.
        waited: Duration,
    },
    /// The connection was inherited by a forked child, which must not speak in its parent's name.
    #[error(
        "the device was opened by process {owner}, before a fork; open it again in this process"
    )]
    Forked {
        /// Who opened it.
        owner: u32,
    },
    /// It could not be started.
    #[error("cannot start the device: {why}")]
    Start {
        /// Why not.
        why: String,
    },
    /// A device on the PCI bus cannot be used.
    #[error("cannot use `{device}`: {obstacle}")]
    Pci {
        /// The device string.
        device: String,
        /// What stands in the way, and what to do about it.
        obstacle: pci::Obstacle,
    },
    /// A mapping was refused.
    #[error("cannot map or unmap memory: {why}")]
    Map {
        /// Why.
        why: String,
    },
}

/// Which way data moves through a mapping or a slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// The device reads: inputs, constants.
    Read,
    /// The device writes and never reads.
    Write,
    /// The device does both: outputs, scratch, rings.
    ReadWrite,
}

impl Access {
    /// Bits of [`npu_uapi::queue::access`].
    pub fn bits(self) -> u8 {
        use npu_uapi::queue::access::{READ, WRITE};
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
            Self::ReadWrite => READ | WRITE,
        }
    }
}

/// What memory for a device is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MemoryKind {
    /// Private to the process, for a device that is in it.
    Private,
    /// A sealed file, which another process maps.
    Shared,
    /// A sealed file on huge pages where there are some: all of it stays in RAM while it is mapped.
    Locked,
}

/// One open device.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Reads the register at byte `offset` of BAR0.
    fn read32(&self, offset: u32) -> Result<u32, TransportError>;

    /// Writes it, after every store to DMA memory before it.
    fn write32(&self, offset: u32, value: u32) -> Result<(), TransportError>;

    /// Reads the dword at `offset` of configuration space.
    fn config_read(&self, offset: u32) -> Result<u32, TransportError>;

    /// Writes it.
    fn config_write(&self, offset: u32, value: u32) -> Result<(), TransportError>;

    /// Reads the dword at `offset` of BAR4, which shows telemetry.
    ///
    /// # Errors
    /// There is none.
    fn telemetry_read(&self, offset: u32) -> Result<u32, TransportError> {
        Err(TransportError::Refused {
            device: self.describe(),
            command: "a telemetry read",
            why: format!("it has no word {offset:#x} of BAR4"),
        })
    }

    /// The words of page `place` of BAR4 that are in use, as they were at one moment; `None` where they
    /// changed while they were read.
    ///
    /// # Errors
    /// There is none.
    fn telemetry_page(&self, place: u32) -> Result<Option<Vec<u32>>, TransportError> {
        crate::telemetry::word_by_word(place, |at| self.telemetry_read(at))
    }

    /// Lets the device reach `memory` at `at`, and keeps it alive, until [`Transport::unmap`].
    fn map(&self, memory: Arc<DmaMemory>, at: Iova, access: Access) -> Result<(), TransportError>;

    /// Ends the mapping that begins at `at`; when this returns `Ok` the device has made its last access.
    fn unmap(&self, at: Iova) -> Result<(), TransportError>;

    /// Where mappings may lie.
    fn iova_ranges(&self) -> Vec<Range<u64>>;

    /// Whether the device reaches any memory of this process in place.
    fn reaches_process_memory(&self) -> bool;

    /// What memory for it must be made of.
    fn memory_kind(&self) -> MemoryKind {
        // Private where it can be: then a forked child never writes its parent's tensors.
        if self.reaches_process_memory() { MemoryKind::Private } else { MemoryKind::Shared }
    }

    /// Whether the device computes without a thread of this process: then a short spin may pay.
    fn runs_by_itself(&self) -> bool;

    /// How often interrupt `vector` arrived or [`Transport::wake`] was called, free-running.
    fn interrupts(&self, vector: u16) -> u64;

    /// Waits until that count differs from `seen`, or `deadline`; returns it. A device in this process
    /// is driven by the threads that wait, with `workers`.
    ///
    /// # Errors
    /// The device is gone: nothing will come.
    fn wait(
        &self,
        vector: u16,
        seen: u64,
        deadline: Instant,
        workers: &dyn Workers,
    ) -> Result<u64, TransportError>;

    /// Ends the waits for `vector`, without the device.
    fn wake(&self, vector: u16);

    /// Resets the function from outside and sets configuration space up again.
    fn reset(&self) -> Result<(), TransportError>;

    /// The error of whoever wants to begin something on a device that is known to be gone, though it may
    /// still answer: one that is to be let go.
    fn gone(&self) -> Option<TransportError> {
        None
    }

    /// Whether the device can never answer again, so that opening it anew makes another connection.
    fn is_gone(&self) -> bool;

    /// Threads that the device string asks for.
    fn threads(&self) -> Option<usize>;

    /// What computes, for people.
    fn describe(&self) -> String;
}

/// Typed register access, the same over every transport.
pub trait TransportExt: Transport {
    /// Reads a register.
    fn read<R: Register>(&self) -> Result<R, TransportError> {
        self.read32(R::OFFSET).map(R::from_raw)
    }

    /// Writes a register.
    fn write<R: Register>(&self, value: R) -> Result<(), TransportError> {
        self.write32(R::OFFSET, value.raw())
    }
}

impl<T: Transport + ?Sized> TransportExt for T {}
