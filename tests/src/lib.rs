//! What the whole-stack tests share: devices over every transport, and small programs built by hand.

pub mod functions;
pub mod liar;
mod noise;
mod simulator;
mod work;

pub use noise::Noise;
pub use simulator::Simulator;
pub use work::Work;

use libnpu::{Caller, Device, Error, Memory};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, End, Fill, Flags, Header, MatMul, Stage, opcode, record_bytes};
use npu_uapi::image::{Image, SlotDecl, slot_kind};
use npu_uapi::names::Names;
use std::time::Duration;

/// The device options that each test runs with, over each transport.
pub const OPTIONS: &[&str] = &["", "strict=1,macs=256,sram=512K,saturation=1"];

/// A deadline far above what any step takes: a hang fails a test, it does not stop it.
pub const HANG: Duration = Duration::from_secs(120);

/// A way to a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// The device in this process.
    Sim,
    /// The device in a process of its own.
    VfioUser,
    /// A device of this machine, which is the guest of `cargo xtask vm`.
    Pci,
}

/// Runs `test` with each of [`OPTIONS`], on a device of its own.
///
/// # Panics
/// Where `test` does or fails, with the device string.
pub fn over(way: Way, test: impl Fn(&Device) -> Result<(), Error>) {
    for (index, options) in OPTIONS.iter().enumerate() {
        let server = (way == Way::VfioUser).then(|| Simulator::shared(options));
        // Held while the test has it: nobody else could open it.
        let function = (way == Way::Pci).then(|| functions::take(index));
        let name = match (&server, &function) {
            (Some(server), _) => server.device(),
            (None, Some(function)) => function.device(),
            (None, None) => format!("sim:{options}"),
        };
        let device = Device::open_private(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        test(&device).unwrap_or_else(|error| panic!("{name} ({options}): {error}"));
    }
}

/// Makes tests of functions that take a device: `sim::NAME` and `vfio_user::NAME`, so that a run
/// shows for each way to a device what passed. With the feature `guest` also `pci::NAME`.
#[macro_export]
macro_rules! over_each_transport {
    ($($test:ident),+ $(,)?) => {
        mod sim {
            $(#[test]
            fn $test() {
                $crate::over($crate::Way::Sim, super::$test);
            })+
        }
        mod vfio_user {
            $(#[test]
            fn $test() {
                $crate::over($crate::Way::VfioUser, super::$test);
            })+
        }
        #[cfg(feature = "guest")]
        mod pci {
            $(#[test]
            fn $test() {
                $crate::over($crate::Way::Pci, super::$test);
            })+
        }
    };
}

/// Has a device that is older than names of operations load a program with some, run it, and fail.
///
/// # Panics
/// It does otherwise than such a device does.
pub fn works_without_names(device: &Device) {
    let context = device.create_context().expect("it makes contexts");
    let names = Names::new([(5, "a node")]);
    let image = image(&[(slot_kind::OUTPUT, 64)], &[fill(0, 0, 64, 7, 5)]);
    let program = context.load_named(&image, &names).expect("the driver brings it no names");
    let buffer = device.allocate(64).expect("there is memory");
    let overlay = vec![(SlotId(0), Memory::from(&buffer))];
    let job = context.exec(&program, None, overlay).expect("there is room in the queue");
    job.wait(&Caller, HANG).expect("the job is a good one");
    assert_eq!(buffer.to_vec()[..64], [7; 64]);
    // A slot that is not bound.
    let job = context.exec(&program, None, Vec::new()).expect("there is room in the queue");
    let error = job.wait(&Caller, HANG).expect_err("its slot is missing");
    assert!(matches!(&error, Error::Fault(_)), "{error}");
    assert_eq!(device.last_dump().expect("it is not asked"), None);
    let counters = device.counters().expect("it counts");
    assert!(counters.commands > 0 && counters.dma_cycles == 0, "{counters:?}");
}

/// The image of `commands`, END appended, on `slots` of `(kind, bytes)`.
pub fn image(slots: &[(u8, u64)], commands: &[Command]) -> Vec<u8> {
    let end = Command::End(End { header: header(opcode::END, 1, 0), ..End::default() });
    let slots = slots.iter().map(|&(kind, len)| SlotDecl::new(kind, len)).collect();
    let commands = commands.iter().copied().chain([end]).collect();
    Image { features: 0, slots, commands }.to_bytes()
}

fn header(opcode: u8, units: u8, op_id: u32) -> Header {
    Header::new(opcode, units, Flags::empty(), op_id)
}

/// FILL of `len` bytes at `offset` of `slot`.
pub fn fill(slot: u16, offset: u64, len: u64, value: u8, op_id: u32) -> Command {
    let dst = Operand::new(SlotId(slot), offset);
    let header = header(opcode::FILL, 1, op_id);
    Command::Fill(Fill { header, dst, len, value, ..Fill::default() })
}

/// Slots of [`product`]: left matrix, weights, records, result.
pub fn product_slots(m: u32, n: u32, k: u32) -> [(u8, u64); 4] {
    let (weights, row) = (n.next_multiple_of(16) * k.next_multiple_of(4), k.next_multiple_of(4));
    [
        (slot_kind::INPUT, u64::from(m) * u64::from(row)),
        (slot_kind::CONSTANT, u64::from(weights)),
        (slot_kind::CONSTANT, record_bytes(n)),
        (slot_kind::OUTPUT, u64::from(m) * u64::from(n.next_multiple_of(16))),
    ]
}

/// MATMUL on the slots of [`product_slots`].
///
/// # Panics
/// When a row is longer than a stride holds.
pub fn product(m: u32, n: u32, k: u32, op_id: u32) -> Command {
    let at = |slot| Operand::new(SlotId(slot), 0);
    let row = |len: u32| i32::try_from(len).expect("a row of the tests is short");
    Command::MatMul(MatMul {
        header: header(opcode::MATMUL, 3, op_id),
        a: at(0),
        weights: at(1),
        channels: at(2),
        out: at(3),
        m,
        n,
        k,
        a_row: row(k.next_multiple_of(4)),
        out_row: row(n.next_multiple_of(16)),
        stage: Stage { clamp_high: 255, ..Stage::default() },
        ..MatMul::default()
    })
}
