//! A virtual NPU: a PCI device in software, from its pins inward.
//!
//! ```text
//!            registers, config space      mappings        interrupts
//!                     │                      │                ^
//!   device ───────────┼──────────────────────┼────────────────┤
//!     state     regs, pci                  guest          interrupt
//!                     │                      │                │
//!     queue ──> front_end ──> program, slots ┴─> job ──> kernel ──> completion, fault, counters
//! ```
//!
//! Knows nothing of the driver: what passes between the two is [`npu_uapi`]'s. The entry is
//! [`Function`]; a driver in the same process calls it directly, others through a socket
//! (module `server`, with feature `server`).

mod array;
mod bounce;
mod config;
mod counters;
mod device;
mod execute;
mod fault;
mod front_end;
mod guest;
pub mod inject;
mod interrupt;
mod job;
pub mod kernel;
pub mod memory;
mod mortem;
pub mod pci;
mod program;
mod queue;
mod recorder;
mod regs;
mod remote;
mod report;
mod saturation;
#[cfg(feature = "server")]
pub mod server;
mod slots;
mod sram;
mod state;
pub mod times;
pub mod timing;
pub mod walker;
mod watch;

pub use array::Array;
pub use config::{Config, ConfigError, OPTIONS};
pub use device::Function;
pub use guest::MapError;
pub use interrupt::InterruptSink;
pub use mortem::{Left, Logged};
pub use report::{QueueReport, Report, TracePiece};
