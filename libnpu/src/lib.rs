//! The userspace driver of the NPU: open, allocate, load, submit, wait.
//!
//! ```
//! use libnpu::{Caller, Device, Memory};
//! use std::time::Duration;
//!
//! let device = Device::open("sim")?;
//! let context = device.create_context()?;
//! let (from, to) = (device.allocate(4096)?, device.allocate(4096)?);
//! from.write(0, b"moved by the device")?;
//! let job = context.copy(&Memory::from(&from), &Memory::from(&to))?;
//! job.wait(&Caller, Duration::from_secs(10))?;
//! assert!(to.to_vec().starts_with(b"moved by the device"));
//! # Ok::<(), libnpu::Error>(())
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`Device`] | a device: found, checked, started; reset |
//! | [`Context`] | a queue with the programs and tables that its jobs name |
//! | [`Buffer`], [`Foreign`], [`Memory`] | memory that the device sees, and how a slot is bound to it |
//! | [`Job`] | what was submitted, until it has ended |
//! | [`Pool`], [`Caller`], [`Workers`] | who computes for a device in this process |
//! | [`manage`] | asking a server of devices what they do |
//! | [`PerProcess`] | what a forked child gets anew |
//! | [`transport`] | the one trait between this and the device |
//!
//! The device is not trusted: indices, numbers and sizes that it reports are checked, and every wait
//! ends. What is submitted keeps its memory until the device has answered, whatever is dropped.

mod buffer;
mod context;
mod device;
mod device_string;
mod dma;
mod dump;
mod error;
mod faults;
mod foreign;
mod fork;
mod heap;
mod iova;
mod job;
pub mod manage;
mod process;
mod queue;
mod telemetry;
pub mod transport;
mod uses;

pub use buffer::{Buffer, Memory};
pub use context::{Context, ContextOptions, Priority, Program, Table};
pub use device::{ADMIN_TIMEOUT, Device};
pub use device_string::DeviceString;
pub use dma::DmaMemory;
pub use error::{Error, Fault, Loss, Stall};
pub use foreign::Foreign;
pub use fork::PerProcess;
pub use job::{Done, Job};
pub use npu_uapi::workers::{Caller, Workers};
pub use npu_workers::Pool;
pub use transport::pci;
pub use transport::{Access, MemoryKind, Transport, TransportError, TransportExt};
