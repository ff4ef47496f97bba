//! The cases that are counted: kernels as jobs of one command, an empty job, and a small model from its
//! file to its result. Everything runs on this thread, and once before it is counted.

use std::env;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ep_npu::{Device, Session, TensorRef};
use kmod_sim::kernel::Isa;
use libnpu::{Access, Buffer, Context, Memory};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    Add, Command, Conv, Copy, Dims, End, Flags, Header, Layout, MatMul, Mul, Pool, Stage, Strides,
    Strides4, Table, Window, element, opcode, pool_kind,
};
use npu_uapi::extent::accesses;
use npu_uapi::image::{Image, SlotDecl, slot_kind};
use npu_uapi::workers::Caller;

use super::chain;

/// The function after which valgrind writes what was executed since the last time.
pub(super) const MARK: &str = "gate_mark";
/// Begins the line that names a case once it was counted.
pub(super) const PREFIX: &str = "counted: ";

/// Under valgrind everything takes some fifty times as long.
const HANG: Duration = Duration::from_secs(300);
const SIDE: u32 = 10;
const CHANNELS: u32 = 32;
/// Nodes of the chains that are compiled.
pub(super) const CHAINS: [usize; 2] = [100, 2000];
/// Codes of inputs, weights and tables.
const CODES: [u8; 16] = [3, 250, 17, 128, 90, 7, 201, 64, 33, 150, 12, 99, 180, 2, 77, 240];

/// Runs all cases; `model` is the small one.
pub(crate) fn run(model: &Path) -> Result<()> {
    let device = Device::open_private("sim:threads=1").context("cannot open the device")?;
    let context = device.create_context().context("cannot create a context")?;
    case("empty job", job(&device, &context, None)?)?;
    for (name, command) in commands() {
        let work = job(&device, &context, Some(command)).with_context(|| name.to_owned())?;
        case(name, work)?;
    }
    let load = || {
        let threads = NonZeroUsize::MIN;
        Session::builder(&device).threads(threads).load(model).context("cannot load the model")
    };
    case("digits: from file to session", || load().map(drop))?;
    // The compiler is the same whatever the kernels are.
    if env::var("NPU_ISA").is_ok_and(|isa| isa == Isa::Scalar.name()) {
        for nodes in CHAINS {
            compile_chain(&device, nodes)?;
        }
    }
    let session = load()?;
    let image = [0.5_f32; 28 * 28];
    case("digits: one image", || {
        session.run(&[TensorRef::from_f32(&[1, 1, 28, 28], &image)]).map(drop).context("cannot run")
    })
}

/// What the case of a chain of so many nodes is called.
pub(super) fn chain_name(nodes: usize) -> String {
    format!("chain of {nodes} nodes: to session")
}

fn compile_chain(device: &Device, nodes: usize) -> Result<()> {
    let bytes = chain::model(nodes);
    case(&chain_name(nodes), || {
        let builder = Session::builder(device).threads(NonZeroUsize::MIN);
        let session = builder.load_bytes(bytes.clone()).context("cannot load the chain")?;
        ensure!(
            session.plan().groups.len() == 1,
            "the chain is not one group: {:?}",
            session.plan()
        );
        Ok(())
    })
}

/// Runs `work` twice; the second time counts, between two marks.
fn case(name: &str, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    work()?;
    gate_mark();
    let done = work();
    gate_mark();
    println!("{PREFIX}{name}");
    done
}

/// Never inlined, so that it is found by its name.
#[inline(never)]
fn gate_mark() {
    black_box(MARK);
}

/// A job of `command` alone, with memory for all that it reaches.
fn job<'a>(
    device: &Device,
    context: &'a Context,
    command: Option<Command>,
) -> Result<impl FnMut() -> Result<()> + use<'a>> {
    let reached = command.as_ref().map(accesses).transpose()?;
    let reached: Vec<_> = reached.iter().flat_map(|all| all.iter()).copied().collect();
    let slots = reached.iter().map(|access| access.slot.0 + 1).max().unwrap_or(0);
    let (mut declared, mut buffers) = (Vec::new(), Vec::new());
    for slot in 0..slots {
        let of_slot = || reached.iter().filter(|access| access.slot.0 == slot);
        let bytes = of_slot().map(npu_uapi::extent::Access::end).max().unwrap_or(0).max(64);
        let kind = match of_slot().any(|access| access.write) {
            true => slot_kind::OUTPUT,
            false if slot == 0 => slot_kind::INPUT,
            false => slot_kind::CONSTANT,
        };
        declared.push(SlotDecl::new(kind, bytes));
        let buffer = device.allocate(usize::try_from(bytes)?)?;
        let is_record = of_slot().any(|access| access.field == "channels");
        let content = if is_record { record() } else { CODES };
        let whole: Vec<u8> = content.into_iter().cycle().take(buffer.len()).collect();
        buffer.write(0, &whole)?;
        buffers.push((SlotId(slot), kind, buffer));
    }
    let end = Command::End(End { header: header(opcode::END, 1), ..End::default() });
    let image = Image {
        features: 0,
        slots: declared,
        commands: command.into_iter().chain([end]).collect(),
    };
    let program = context.load(&image.to_bytes())?;
    let memory = |buffer: &Buffer, access| Memory::buffer(buffer, 0, buffer.len() as u64, access);
    let constants = buffers.iter().filter(|(_, kind, _)| *kind == slot_kind::CONSTANT);
    let constants = constants.map(|(slot, _, buffer)| Ok((*slot, memory(buffer, Access::Read)?)));
    let table = context.bind(&constants.collect::<Result<Vec<_>>>()?)?;
    Ok(move || {
        let bound = buffers.iter().filter(|(_, kind, _)| *kind != slot_kind::CONSTANT);
        let overlay = bound.map(|(slot, kind, buffer)| {
            let access = if *kind == slot_kind::OUTPUT { Access::ReadWrite } else { Access::Read };
            Ok((*slot, memory(buffer, access)?))
        });
        let overlay = overlay.collect::<Result<Vec<_>>>()?;
        context.exec(&program, Some(&table), overlay)?.wait(&Caller, HANG)?;
        Ok(())
    })
}

/// A channel with a sensible multiplier and no zero point of its weights.
fn record() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&1e-4_f32.to_le_bytes());
    bytes
}

fn header(opcode: u8, units: u8) -> Header {
    Header::new(opcode, units, Flags::empty(), 0)
}

fn slot(number: u16) -> Operand {
    Operand::new(SlotId(number), 0)
}

/// One command of each kind that models are made of.
fn commands() -> Vec<(&'static str, Command)> {
    let dims = Dims { n: 1, h: SIDE, w: SIDE, c: CHANNELS };
    let signed = u32::cast_signed;
    let strides = Strides {
        image: i64::from(SIDE * SIDE * CHANNELS),
        row: signed(SIDE * CHANNELS),
        pixel: signed(CHANNELS),
    };
    let window = |kernel: u16| Window {
        kernel_h: kernel,
        kernel_w: kernel,
        stride_h: 1,
        stride_w: 1,
        dilation_h: 1,
        dilation_w: 1,
        pad_top: (kernel - 1) / 2,
        pad_left: (kernel - 1) / 2,
    };
    let stage = Stage { zero_point: 3, clamp_high: 255, ..Stage::default() };
    let conv = |kernel, groups| {
        Command::Conv(Conv {
            header: header(opcode::CONV, 4),
            ifm: slot(0),
            weights: slot(1),
            channels: slot(2),
            ofm: slot(3),
            ifm_dims: dims,
            ofm_h: SIDE,
            ofm_w: SIDE,
            ofm_c: CHANNELS,
            groups,
            ifm_strides: strides,
            ofm_strides: strides,
            window: window(kernel),
            stage,
            ..Conv::default()
        })
    };
    let pool = |kind, scale| {
        Command::Pool(Pool {
            header: header(opcode::POOL, 3),
            ifm: slot(0),
            ofm: slot(1),
            ifm_dims: dims,
            ofm_h: SIDE,
            ofm_w: SIDE,
            kind,
            ifm_strides: strides,
            ofm_strides: strides,
            window: window(3),
            clamp_high: 255,
            input_scale: scale,
            output_scale: scale,
            ..Pool::default()
        })
    };
    vec![
        ("conv 3x3", conv(3, 1)),
        ("conv 1x1", conv(1, 1)),
        ("conv 3x3 depthwise", conv(3, CHANNELS)),
        ("matmul", matmul(stage)),
        ("max pool", pool(pool_kind::MAX, 0.0)),
        ("average pool", pool(pool_kind::AVERAGE, 0.1)),
        ("add", add(dims, strides)),
        ("mul", mul(dims, strides)),
        ("table", table(dims, strides)),
        ("layout, quantises", layout(element::F32, element::U8)),
        ("layout, dequantises", layout(element::U8, element::F32)),
        ("copy", copy()),
    ]
}

fn matmul(stage: Stage) -> Command {
    Command::MatMul(MatMul {
        header: header(opcode::MATMUL, 3),
        a: slot(0),
        weights: slot(1),
        channels: slot(2),
        out: slot(3),
        m: 16,
        n: 64,
        k: 64,
        a_row: 64,
        out_row: 64,
        stage,
        ..MatMul::default()
    })
}

fn add(dims: Dims, strides: Strides) -> Command {
    Command::Add(Add {
        header: header(opcode::ADD, 3),
        a: slot(0),
        b: slot(1),
        out: slot(2),
        dims,
        a_strides: strides,
        b_strides: strides,
        out_strides: strides,
        first: 0.5,
        second: 0.5,
        clamp_high: 255,
        ..Add::default()
    })
}

fn mul(dims: Dims, strides: Strides) -> Command {
    Command::Mul(Mul {
        header: header(opcode::MUL, 3),
        a: slot(0),
        b: slot(1),
        out: slot(2),
        dims,
        a_strides: strides,
        b_strides: strides,
        out_strides: strides,
        multiplier: 0.01,
        clamp_high: 255,
        ..Mul::default()
    })
}

fn table(dims: Dims, strides: Strides) -> Command {
    Command::Table(Table {
        header: header(opcode::TABLE, 2),
        src: slot(0),
        table: slot(1),
        dst: slot(2),
        dims,
        src_strides: strides,
        dst_strides: strides,
        ..Table::default()
    })
}

fn copy() -> Command {
    Command::Copy(Copy {
        header: header(opcode::COPY, 1),
        src: slot(0),
        dst: slot(1),
        len: 1 << 14,
        ..Copy::default()
    })
}

/// Three planes to pixels of four, or back.
fn layout(from: u8, to: u8) -> Command {
    let planes = |bytes: i64| {
        let (row, plane) = (bytes * i64::from(SIDE), bytes * i64::from(SIDE * SIDE));
        Strides4 { image: 3 * plane, row, pixel: bytes, channel: plane }
    };
    let row = 4 * i64::from(SIDE);
    let pixels = Strides4 { image: row * i64::from(SIDE), row, pixel: 4, channel: 1 };
    let strides = |code: u8| if code == element::F32 { planes(4) } else { pixels };
    Command::Layout(Layout {
        header: header(opcode::LAYOUT, 3),
        src: slot(0),
        dst: slot(1),
        dims: Dims { n: 1, h: SIDE, w: SIDE, c: 3 },
        src_strides: strides(from),
        dst_strides: strides(to),
        src_element: from,
        dst_element: to,
        zero_point: 114,
        scale: 0.0186,
        ..Layout::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_gate_is_taken_and_run() {
        let device = Device::open_private("sim:threads=1").unwrap();
        let context = device.create_context().unwrap();
        for (name, command) in commands() {
            let mut work =
                job(&device, &context, Some(command)).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            work().unwrap_or_else(|e| panic!("{name}: {e:#}"));
        }
    }
}
