//! Everything that can go wrong between an application and the device, and what to do about it.

use crate::transport::TransportError;
use npu_uapi::regs::state;
use npu_uapi::ring::RingError;
use npu_uapi::status::{FaultRecord, Status};
use npu_uapi::telemetry::TelemetryError;
use std::fmt;
use std::time::Duration;

/// Why the driver refuses or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device string is none.
    #[error("cannot read device string `{found}`: {why}")]
    DeviceString {
        /// What was found.
        found: String,
        /// What is wrong with it.
        why: String,
    },
    /// The device string names a way to the device that this build has not.
    #[error("cannot open `{device}`: {why}")]
    Unsupported {
        /// The device string.
        device: String,
        /// What is missing.
        why: &'static str,
    },
    /// The device cannot be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Something else is behind the registers.
    #[error(
        "`{device}` is no NPU: its first register reads {found:#010x}; check the device string"
    )]
    NotAnNpu {
        /// The device string.
        device: String,
        /// What was read.
        found: u32,
    },
    /// No common version.
    #[error(
        "device speaks ABI {device:#06x?}, this library {library:#06x?}: no version in common; \
         update the older one"
    )]
    AbiMismatch {
        /// Lowest and highest version of the device.
        device: (u32, u32),
        /// Lowest and highest version of this library.
        library: (u16, u16),
    },
    /// The device reports sizes that it cannot have.
    #[error("device reports limits that no device has; it is broken or hostile, do not use it")]
    Implausible,
    /// Its telemetry page is none, or does not come to rest.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The device did not become ready.
    #[error("device is in state {} after {waited:?}, not {}; reset it", state_name(*.found), state_name(*.want))]
    State {
        /// `Status.STATE`.
        found: u32,
        /// The state that was waited for.
        want: u32,
        /// How long.
        waited: Duration,
    },
    /// No memory for the device.
    #[error("no {bytes} bytes of memory that the device reaches: {why}")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// What ran out.
        why: String,
    },
    /// An access outside a buffer.
    #[error("bytes {start}..{start}+{len} are outside the buffer of {size} bytes")]
    OutOfRange {
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the buffer.
        size: u64,
    },
    /// Memory, program or table of another device or context.
    #[error("{what} belongs to another device or context; use what this one gave out")]
    NotOurs {
        /// What it is.
        what: &'static str,
    },
    /// The device cannot reach memory of this process where it lies.
    #[error("this device does not reach process memory in place; copy to a buffer")]
    NotReachable,
    /// The queue is full. Nothing was submitted.
    #[error("queue is full ({in_flight} jobs in flight); wait for one, then submit again")]
    QueueFull {
        /// Jobs in flight.
        in_flight: u32,
    },
    /// The device refused an entry, or a job failed.
    #[error("{0}")]
    Fault(Box<Fault>),
    /// The device did not answer in time. What was submitted may still run.
    #[error("{0}")]
    Timeout(Box<Stall>),
    /// The queue is gone: reset, destroyed, or broken by the device.
    #[error("queue {queue} is lost: {why}")]
    Lost {
        /// The queue.
        queue: u16,
        /// What happened to it.
        why: Loss,
    },
    /// The handle was inherited by a forked child.
    #[error(
        "the device was opened by process {owner}, before a fork; open it again in this process"
    )]
    Forked {
        /// Who opened it.
        owner: u32,
    },
}

/// How a queue was lost.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// The device was reset.
    #[error("the device was reset; create a new context")]
    Reset,
    /// The queue was destroyed with its context.
    #[error("its context is gone; create a new one")]
    Destroyed,
    /// The device broke the rules of the rings.
    #[error("{0}; create a new context")]
    Ring(RingError),
    /// The device posted a completion that answers nothing.
    #[error("the device answered job {job}, which is not in flight; create a new context")]
    Stray {
        /// The job it named.
        job: u32,
    },
    /// The device no longer serves queues: somebody else reset it, or it failed.
    #[error("the device is {}; reset it, then create a new context", state_name(*state))]
    Stopped {
        /// `Status.STATE`.
        state: u32,
    },
    /// The device is gone.
    #[error("{0}")]
    Gone(TransportError),
}

/// A failed entry, with what the device recorded of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// How the entry ended.
    pub status: Status,
    /// The queue it was in; 0 is the admin queue.
    pub queue: u16,
    /// Its number in the queue.
    pub job: u32,
    /// The device's record; `None` when it was lost because the fault ring was full.
    pub record: Option<FaultRecord>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {} of queue {}: {}", self.job, self.queue, self.status.meaning())?;
        let Some(record) = &self.record else {
            return f.write_str(" (no fault record: the fault ring was full)");
        };
        write!(f, "{}", record.place(None))
    }
}

/// What the device did while nothing came of a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stall {
    /// How long was waited.
    pub waited: Duration,
    /// The queue.
    pub queue: u16,
    /// Entries in flight in it.
    pub in_flight: u32,
    /// `Status.STATE` at the end; `None` when the device could not be read.
    pub state: Option<u32>,
    /// Whether the heartbeat moved meanwhile: the device was computing.
    pub has_moved: bool,
    /// Interrupts that this device has not delivered since it was opened.
    pub missed_interrupts: u64,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waited, queue, in_flight, state, has_moved, missed_interrupts } = self;
        let state = state.map_or("unreadable", state_name);
        write!(f, "no completion in {waited:?} from queue {queue} ({in_flight} in flight); ")?;
        write!(f, "device is {state} and its heartbeat ")?;
        f.write_str(if *has_moved {
            "moves: it computes; wait longer, or abort the context"
        } else {
            "stands still: abort the context, or reset the device"
        })?;
        match missed_interrupts {
            0 => Ok(()),
            missed => write!(f, "; it has not delivered {missed} interrupts"),
        }
    }
}

/// The name of a value of `Status.STATE`.
fn state_name(state: u32) -> &'static str {
    match state {
        state::RESET => "RESET",
        state::READY => "READY",
        state::FAILED => "FAILED",
        state::QUIESCING => "QUIESCING",
        _ => "in an unknown state",
    }
}

impl Error {
    /// The fault, when it is one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}
