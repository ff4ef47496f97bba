//! What crosses the bus between the NPU driver and the device, and the rules for it.
//!
//! Driver, device model, compiler and tools all read this one definition; it does no I/O and holds
//! no `unsafe`. Everything on the wire is little-endian, explicitly padded, and reserved bits are
//! zero: both sides refuse what they do not know instead of ignoring it.
//!
//! | module | what it fixes |
//! |---|---|
//! | [`addr`] | address newtypes: [`addr::Iova`], [`addr::SlotId`] |
//! | [`reg`], [`regs`] | the register map of BAR0 |
//! | [`order`], [`ring`] | memory orderings and both ends of a queue's rings |
//! | [`queue`] | submission and completion entries, bindings |
//! | [`status`] | completion codes and fault records |
//! | [`limits`] | what a device reports of itself |
//! | [`command`] | the command set: each command as the loop it runs |
//! | [`requantise`] | the arithmetic of the output stage: the definition for all kernels |
//! | [`float_order`] | sums in floats, in the orders of the CPU provider |
//! | [`encode`], [`decode`] | commands to bytes and back |
//! | [`extent`] | which bytes of which slots a command may touch |
//! | [`image`] | a program as the device loads it: header, slot table, commands |
//! | [`verify`] | which programs a device may run |
//! | [`container`] | the program file of the host: image, constants, names, hash |
//! | [`names`] | which node each operation of a program stands for |
//! | [`telemetry`] | the telemetry page of BAR4 |
//! | [`mailbox`] | the function through which a guest manages |
//! | [`event`], [`coredump`] | what a function did, and what a job that failed leaves |
//! | [`text`] | disassembly that assembles again |
//! | [`vfio_user`] | messages to a device in another process |
//! | [`workers`] | who computes when the device is in this process |
#![cfg_attr(not(any(test, loom, feature = "fuzz")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(target_endian = "big")]
compile_error!("the NPU ABI is little-endian, and so must the host be");

pub mod addr;
pub mod command;
pub mod container;
pub mod coredump;
pub mod decode;
pub mod encode;
pub mod event;
pub mod extent;
pub mod float_order;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod image;
pub mod limits;
pub mod mailbox;
pub mod names;
pub mod order;
pub mod queue;
pub mod reg;
pub mod regs;
pub mod requantise;
pub mod ring;
pub mod rows;
pub mod sealed;
pub mod status;
pub mod telemetry;
pub mod text;
pub mod verify;
pub mod vfio_user;
pub mod workers;
