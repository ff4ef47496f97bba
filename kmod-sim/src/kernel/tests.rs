//! Every command on random shapes, over every kernel, against oracles that share no code with them.
//!
//! Operands lie in memory of exactly their size, against pages that fault; whatever a command must not
//! use (pad lanes, gaps between rows) holds random bytes, and what it must not write is compared after.

mod conv;
mod elementwise;
mod far;
mod float;
mod machine;
mod moves;
mod pool;
mod preempt;
mod product;
mod resize;
mod rows;
mod wide;
mod winograd;

use super::{Control, Engine, Isa, IsaError, Stop};
use machine::Machine;
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Conv, Copy, Dims, Fill, Header, MatMul, Window};
use npu_uapi::status::Status;

#[test]
fn a_forced_instruction_set_is_checked() {
    assert_eq!(Isa::named("scalar"), Ok(Isa::Scalar));
    for isa in Isa::ALL {
        let found = if isa.is_available() { Ok(isa) } else { Err(IsaError::Absent { asked: isa }) };
        assert_eq!(Isa::named(isa.name()), found);
    }
    assert_eq!(Isa::named("neon"), Err(IsaError::Unknown { found: "neon".into() }));
}

/// The kernels that this processor runs; scalar ones first.
fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().rev().filter(|isa| isa.is_available()).collect()
}

fn fill(slot: u16, len: u64) -> Command {
    let header = Header { units: 1, ..Header::default() };
    Command::Fill(Fill {
        header,
        dst: Operand::new(SlotId(slot), 1),
        len,
        value: 9,
        ..Fill::default()
    })
}

#[test]
fn an_operand_outside_its_slot_is_refused() {
    let machine = Machine::new(&[100, 100], 1);
    machine.run(&fill(0, 99), Isa::Scalar).unwrap();
    let refused = |command: &Command| match machine.run(command, Isa::Scalar) {
        Err(Stop::Fault { status, .. }) => status,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&fill(0, 100)), Status::SLOT_TOO_SMALL);
    assert_eq!(refused(&fill(2, 1)), Status::UNBOUND_SLOT);
    machine.make_read_only(1);
    assert_eq!(refused(&fill(1, 1)), Status::ACCESS_DENIED);
}

#[test]
fn a_large_command_beats_often_and_can_be_aborted() {
    let (m, n, k) = (2048, 64, 512);
    let matmul = MatMul {
        weights: Operand::new(SlotId(1), 0),
        channels: Operand::new(SlotId(2), 0),
        out: Operand::new(SlotId(3), 0),
        m,
        n,
        k,
        a_row: 512,
        out_row: 64,
        ..MatMul::default()
    };
    let command = Command::MatMul(matmul);
    let size = |bytes: u32| usize::try_from(bytes).unwrap();
    let machine = Machine::new(&[size(m * k), size(n * k), size(n * 16), size(m * n)], 7);
    machine.write(2, &vec![0; size(n * 16)]);
    for isa in available() {
        let engine = Engine::default();
        let control = Control::new(&engine);
        machine.run_with(&command, isa, &control).unwrap();
        let macs = u64::from(m) * u64::from(n) * u64::from(k);
        assert!(engine.heartbeat() >= macs >> 24, "{isa:?}");
        engine.abort();
        assert_eq!(machine.run_with(&command, isa, &control), Err(Stop::Aborted));
    }
}

#[test]
fn groups_that_do_not_divide_the_channels_are_refused() {
    let conv = Conv {
        ifm_dims: Dims { n: 1, h: 1, w: 1, c: 4 },
        ofm_h: 1,
        ofm_w: 1,
        ofm_c: 4,
        groups: 3,
        window: Window { kernel_h: 1, kernel_w: 1, ..Window::default() },
        ..Conv::default()
    };
    let stop = Machine::new(&[4096], 1).run(&Command::Conv(conv), Isa::best());
    assert!(matches!(stop, Err(Stop::Fault { status: Status::PROGRAM_REFUSED, .. })), "{stop:?}");
}

#[test]
fn copies_move_bytes_and_nothing_else() {
    for len in [1u64, 63, 64, 1 << 20, (3 << 20) + 5] {
        let size = usize::try_from(len).unwrap() + 10;
        let machine = Machine::new(&[size, size], len);
        let (src, before) = (machine.read(0), machine.read(1));
        let (src_at, dst_at) = (Operand::new(SlotId(0), 10), Operand::new(SlotId(1), 5));
        let copy = Copy { src: src_at, dst: dst_at, len, ..Copy::default() };
        machine.run(&Command::Copy(copy), Isa::best()).unwrap();
        let mut expected = before;
        expected[5..size - 5].copy_from_slice(&src[10..]);
        assert_eq!(machine.read(1), expected);
    }
}
