//! How long it takes to stop a device that is at work: abort, unmap, reset, and death of the client.
//!
//! ```text
//! cargo run --release -p npu-tests --example stop [part of a command's name]
//! ```
//! Starts each kind of command at a large or a hostile size, waits until it is under way and a random
//! time more, stops it, and prints the worst of a few times in milliseconds. What is measured ends when
//! the device has made its last access: when the job has ended, the unmap has returned, the function says
//! that it is reset, or the server has forgotten the client. Both kinds of kernels, in this process and
//! over a socket.
#![expect(clippy::print_stdout, reason = "a report is what the program is for")]

use kmod_sim::kernel::Isa;
use libnpu::{Buffer, Context, Device, Error, Job, Memory, Pool};
use npu_tests::{HANG, Noise, Simulator};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    Add, ChannelTable, Command, Conv, Copy, Dims, End, Fill, Flags, Header, Layout, MatMul, Mul,
    PairTable, Pool as Pooling, Stage, Strides, Strides4, Table, UNIT_BYTES, Window, element,
    opcode, pool_kind,
};
use npu_uapi::image::{Image, SlotDecl, slot_kind};

use npu_uapi::reg::Register;
use npu_uapi::regs::{Ctrl, HeartbeatLow, Status as StatusRegister, state};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

/// Bytes of each of the three slots: operands, weights, results.
const SLOT_BYTES: u64 = 320 << 20;
/// Bytes of SRAM, which strict devices poison.
const SRAM: &str = "sram=256M";
const TRIES: usize = 4;
/// Longest wait before a stop, behind the first sign of life.
const LATEST_MS: u64 = 40;

/// What is stopped.
struct Case {
    name: &'static str,
    command: Command,
    is_poisoned: bool,
}

/// How.
#[derive(Clone, Copy, Debug)]
enum Way {
    Abort,
    Unmap,
    Reset,
    FunctionReset,
}

fn at(slot: u16) -> Operand {
    Operand::new(SlotId(slot), 0)
}

fn header(opcode: u8, bytes: usize) -> Header {
    let units = u8::try_from(bytes / UNIT_BYTES).expect("a command has few units");
    Header::new(opcode, units, Flags::empty(), 0)
}

/// Strides of a dense tensor of `dims`.
fn dense(dims: Dims) -> Strides {
    let narrow = |stride: u64| i32::try_from(stride).expect("the tensors below are small enough");
    let pixel = u64::from(dims.c);
    let row = pixel * u64::from(dims.w);
    let image = i64::try_from(row * u64::from(dims.h)).expect("as above");
    Strides { image, row: narrow(row), pixel: narrow(pixel) }
}

fn matmul([m, n, k]: [u32; 3]) -> Command {
    let row = |len: u32| i32::try_from(len).expect("a row is short");
    Command::MatMul(MatMul {
        header: header(opcode::MATMUL, size_of::<MatMul>()),
        a: at(0),
        weights: at(1),
        channels: at(2),
        out: at(3),
        m,
        n,
        k,
        a_row: row(k),
        out_row: row(n),
        stage: Stage { clamp_high: 255, ..Stage::default() },
        ..MatMul::default()
    })
}

fn conv(ifm_dims: Dims, ofm_c: u32, groups: u32, kernel: u16) -> Command {
    let shrunk = |size: u32| size - u32::from(kernel) + 1;
    let (ofm_h, ofm_w) = (shrunk(ifm_dims.h), shrunk(ifm_dims.w));
    let window = Window {
        kernel_h: kernel,
        kernel_w: kernel,
        stride_h: 1,
        stride_w: 1,
        dilation_h: 1,
        dilation_w: 1,
        ..Window::default()
    };
    Command::Conv(Conv {
        header: header(opcode::CONV, size_of::<Conv>()),
        ifm: at(0),
        weights: at(1),
        channels: at(2),
        ofm: at(3),
        ifm_dims,
        ifm_strides: dense(ifm_dims),
        ofm_h,
        ofm_w,
        ofm_c,
        ofm_strides: dense(Dims { n: 1, h: ofm_h, w: ofm_w, c: ofm_c }),
        groups,
        window,
        stage: Stage { clamp_high: 255, ..Stage::default() },
        ..Conv::default()
    })
}

fn pool(kind: u8, ifm_dims: Dims, kernel: u16) -> Command {
    let is_global = kind == pool_kind::GLOBAL_AVERAGE;
    let shrunk = |size: u32| if is_global { 1 } else { size - u32::from(kernel) + 1 };
    let (ofm_h, ofm_w) = (shrunk(ifm_dims.h), shrunk(ifm_dims.w));
    let window = Window {
        kernel_h: kernel,
        kernel_w: kernel,
        stride_h: 1,
        stride_w: 1,
        dilation_h: 1,
        dilation_w: 1,
        ..Window::default()
    };
    Command::Pool(Pooling {
        header: header(opcode::POOL, size_of::<Pooling>()),
        ifm: at(0),
        ofm: at(3),
        ifm_dims,
        ofm_h,
        ofm_w,
        kind,
        ifm_strides: dense(ifm_dims),
        ofm_strides: dense(Dims { n: 1, h: ofm_h, w: ofm_w, c: ifm_dims.c }),
        window: if is_global { Window::default() } else { window },
        clamp_high: 255,
        input_scale: if kind == pool_kind::AVERAGE { 0.1 } else { 0.0 },
        output_scale: if kind == pool_kind::AVERAGE { 0.1 } else { 0.0 },
        multiplier: if is_global { 0.001 } else { 0.0 },
        ..Pooling::default()
    })
}

fn cases() -> Vec<Case> {
    let dims = |h, w, c| Dims { n: 1, h, w, c };
    let flat = dims(16_384, 1024, 16);
    let strides = dense(flat);
    let add = Command::Add(Add {
        header: header(opcode::ADD, size_of::<Add>()),
        a: at(0),
        b: at(1),
        out: at(3),
        dims: flat,
        a_strides: strides,
        b_strides: strides,
        out_strides: strides,
        first: 0.5,
        second: 0.5,
        clamp_high: 255,
        ..Add::default()
    });
    let mul = Command::Mul(Mul {
        header: header(opcode::MUL, size_of::<Mul>()),
        a: at(0),
        b: at(1),
        out: at(3),
        dims: flat,
        a_strides: strides,
        b_strides: strides,
        out_strides: strides,
        multiplier: 0.01,
        clamp_high: 255,
        ..Mul::default()
    });
    let table = Command::Table(Table {
        header: header(opcode::TABLE, size_of::<Table>()),
        src: at(0),
        dst: at(3),
        table: at(1),
        dims: flat,
        src_strides: strides,
        dst_strides: strides,
        ..Table::default()
    });
    let pairs = Command::PairTable(PairTable {
        header: header(opcode::PAIR_TABLE, size_of::<PairTable>()),
        a: at(0),
        b: at(2),
        out: at(3),
        table: at(1),
        dims: flat,
        a_strides: strides,
        b_strides: strides,
        out_strides: strides,
        ..PairTable::default()
    });
    let channels = Command::ChannelTable(ChannelTable {
        header: header(opcode::CHANNEL_TABLE, size_of::<ChannelTable>()),
        src: at(0),
        dst: at(3),
        tables: at(1),
        dims: flat,
        src_strides: strides,
        dst_strides: strides,
        ..ChannelTable::default()
    });
    let layout = |dims, src_strides, dst_strides, to| {
        Command::Layout(Layout {
            header: header(opcode::LAYOUT, size_of::<Layout>()),
            src: at(0),
            dst: at(3),
            dims,
            src_strides,
            dst_strides,
            src_element: element::U8,
            dst_element: to,
            scale: if to == element::F32 { 0.1 } else { 0.0 },
            ..Layout::default()
        })
    };
    let side = 16_384;
    let turned = layout(
        dims(1, 16_384, 16_384),
        Strides4 { image: 0, row: 0, pixel: side, channel: 1 },
        Strides4 { image: 0, row: 0, pixel: 1, channel: side },
        element::U8,
    );
    let widened = layout(
        dims(1, 4096, 16_384),
        Strides4 { image: 0, row: 0, pixel: 1, channel: 4096 },
        Strides4 { image: 0, row: 0, pixel: 4, channel: 4 * 4096 },
        element::F32,
    );
    let copy = Command::Copy(Copy {
        header: header(opcode::COPY, size_of::<Copy>()),
        src: at(0),
        dst: at(3),
        len: 300 << 20,
        reserved: 0,
    });
    let fill = Command::Fill(Fill {
        header: header(opcode::FILL, size_of::<Fill>()),
        dst: at(3),
        len: 300 << 20,
        value: 7,
        ..Fill::default()
    });
    let (max, average) = (pool_kind::MAX, pool_kind::AVERAGE);
    let global = pool_kind::GLOBAL_AVERAGE;
    let named = [
        ("matmul 8192x8192x8192", matmul([8192, 8192, 8192])),
        ("matmul 1x16x4M", matmul([1, 16, 4 << 20])),
        ("matmul 16K x 16K x 4", matmul([16_384, 16_384, 4])),
        ("conv 3x3, 130x130x512 to 512", conv(dims(130, 130, 512), 512, 1, 3)),
        ("conv 64x64, 65x65x4096 to 16", conv(dims(65, 65, 4096), 16, 1, 64)),
        ("conv 3x3 in groups of 2", conv(dims(514, 514, 512), 512, 256, 3)),
        ("depthwise 3x3, 1026x1026x256", conv(dims(1026, 1026, 256), 256, 256, 3)),
        ("depthwise 255x255, 510x510x64", conv(dims(510, 510, 64), 64, 64, 255)),
        ("depthwise 1x1, one row of 4M pixels", conv(dims(1, 4 << 20, 64), 64, 64, 1)),
        ("max pool 1023x1023 of 1123x1123x64", pool(max, dims(1123, 1123, 64), 1023)),
        ("average pool 1023x1023", pool(average, dims(1123, 1123, 64), 1023)),
        ("global average pool 2900x2900x32", pool(global, dims(2900, 2900, 32), 0)),
        ("add 256M", add),
        ("mul 256M", mul),
        ("table 256M", table),
        ("pair table 256M", pairs),
        ("channel table 256M", channels),
        ("layout 16K x 16K, turned", turned),
        ("layout 4K x 16K to float", widened),
        ("copy 300 MiB", copy),
        ("fill 300 MiB", fill),
    ];
    let case = |(name, command)| Case { name, command, is_poisoned: false };
    let mut cases: Vec<_> = named.into_iter().map(case).collect();
    cases.push(Case { name: "poison of 256 MiB of SRAM", command: fill, is_poisoned: true });
    cases
}

/// A device with a program of one case and its memory.
struct Subject {
    device: Device,
    buffers: [Buffer; 3],
}

impl Subject {
    fn new(name: &str) -> Result<Self, Failure> {
        let device = Device::open_private(name)?;
        let len = usize::try_from(SLOT_BYTES)?;
        let allocate = || device.allocate(len);
        let buffers = [allocate()?, allocate()?, allocate()?];
        Ok(Self { device, buffers })
    }

    fn start(&self, case: &Case) -> Result<(Context, Job), Error> {
        let context = self.device.create_context()?;
        let end = End { header: header(opcode::END, size_of::<End>()), ..End::default() };
        let sram = if case.is_poisoned { 256 << 20 } else { 0 };
        let slots = [
            SlotDecl::new(slot_kind::INPUT, SLOT_BYTES),
            SlotDecl::new(slot_kind::CONSTANT, SLOT_BYTES),
            SlotDecl::new(slot_kind::CONSTANT, SLOT_BYTES),
            SlotDecl::new(slot_kind::OUTPUT, SLOT_BYTES),
            SlotDecl::new(slot_kind::SRAM, sram),
        ];
        let commands = vec![case.command, case.command, Command::End(end)];
        let image = Image { features: 0, slots: slots.to_vec(), commands };
        let program = context.load(&image.to_bytes())?;
        let [a, b, c] = &self.buffers;
        let overlay = [a, b, b, c].into_iter().zip(0..);
        let overlay = overlay.map(|(buffer, slot)| (SlotId(slot), Memory::from(buffer)));
        let job = context.exec(&program, None, overlay)?;
        Ok((context, job))
    }

    fn beat(&self) -> Result<u32, Error> {
        Ok(self.device.transport().read32(HeartbeatLow::OFFSET)?)
    }

    /// Waits until the device is at work, and `more`; whether it still is.
    fn until_under_way(&self, from: u32, context: &Context, more: Duration) -> Result<bool, Error> {
        let start = Instant::now();
        while self.beat()? == from && context.in_flight() > 0 && start.elapsed() < HANG {
            std::thread::yield_now();
        }
        std::thread::sleep(more);
        Ok(context.in_flight() > 0)
    }

    /// Runs `case` and stops it by `way` after `more`; how long that took, unless it was over before.
    fn stop(&self, case: &Case, way: Way, more: Duration) -> Result<Option<Duration>, Failure> {
        let from = self.beat()?;
        let (context, job) = self.start(case)?;
        let transport = self.device.transport();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| job.wait(&Pool::new(2), HANG).is_ok());
            let was_at_work = self.until_under_way(from, &context, more)?;
            let start = Instant::now();
            match way {
                Way::Abort => context.abort()?,
                Way::Unmap => transport.unmap(self.buffers[2].iova())?,
                Way::Reset => transport.write32(Ctrl::OFFSET, Ctrl::RESET.mask())?,
                Way::FunctionReset => transport.reset()?,
            }
            if matches!(way, Way::Reset | Way::FunctionReset) {
                let state = |raw| StatusRegister::from_raw(raw).get(StatusRegister::STATE);
                while state(transport.read32(StatusRegister::OFFSET)?) != state::RESET {
                    std::thread::yield_now();
                }
            }
            let mut took = start.elapsed();
            if matches!(way, Way::Reset | Way::FunctionReset) {
                self.device.reset()?;
            }
            let was_done = waiter.join().map_err(|_| "the waiting thread has panicked")?;
            if matches!(way, Way::Abort) {
                took = start.elapsed();
            }
            Ok((was_at_work && !was_done).then_some(took))
        })
    }
}

/// The worst of some tries, in milliseconds; `-` where every one came too late.
fn worst(
    tries: impl Iterator<Item = Result<Option<Duration>, Failure>>,
) -> Result<String, Failure> {
    let times = tries.collect::<Result<Vec<_>, _>>()?;
    let worst = times.into_iter().flatten().max();
    Ok(worst.map_or("-".into(), |time| format!("{:.1}", time.as_secs_f64() * 1e3)))
}

fn row(name: &str, case: &Case, noise: &mut Noise) -> Result<String, Failure> {
    let mut row = format!("{:38}", case.name);
    let subject = Subject::new(name)?;
    for way in [Way::Abort, Way::Reset, Way::FunctionReset, Way::Unmap] {
        let cell = worst((0..TRIES).map(|_| {
            let more = Duration::from_millis(noise.below(LATEST_MS));
            match way {
                // The heap of the device does not know of it: a device of its own each time.
                Way::Unmap => Subject::new(name)?.stop(case, way, more),
                _ => subject.stop(case, way, more),
            }
        }))?;
        row += &format!(" {cell:>9}");
    }
    Ok(row)
}

/// A client that runs `case` and says so, until it is killed.
fn victim(name: &str, case: &Case) -> Result<(), Failure> {
    let subject = Subject::new(name)?;
    let from = subject.beat()?;
    let (context, job) = subject.start(case)?;
    subject.until_under_way(from, &context, Duration::ZERO)?;
    println!("busy");
    std::io::stdout().flush()?;
    job.wait(&libnpu::Caller, HANG)?;
    Ok(())
}

fn death(server: &Simulator, case: &Case, more: Duration) -> Result<Option<Duration>, Failure> {
    let mut child: Child = std::process::Command::new(std::env::current_exe()?)
        .args(["--victim", &server.device(), case.name])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("it has an output")?).read_line(&mut line)?;
    std::thread::sleep(more);
    let was_alive = child.try_wait()?.is_none();
    child.kill()?;
    child.wait()?;
    let start = Instant::now();
    let number = |stats: &serde_json::Value, name: &str| stats[name].as_u64();
    loop {
        let stats = server.manage(r#"{"command":"stats"}"#);
        if number(&stats, "clients") == Some(0) {
            return Ok(was_alive.then(|| start.elapsed()));
        }
        if start.elapsed() > HANG {
            return Err(format!("the server keeps the client: {stats}").into());
        }
    }
}

/// LOAD_PROGRAM of as many commands as a program may have.
fn load(name: &str, noise: &mut Noise) -> Result<String, Failure> {
    let device = Device::open_private(name)?;
    let count = usize::try_from(device.limits().commands)? - 1;
    let fill = Command::Fill(Fill {
        header: header(opcode::FILL, size_of::<Fill>()),
        dst: at(0),
        len: 64,
        value: 7,
        ..Fill::default()
    });
    let end = End { header: header(opcode::END, size_of::<End>()), ..End::default() };
    let mut commands = vec![fill; count];
    commands.push(Command::End(end));
    let slots = vec![SlotDecl::new(slot_kind::OUTPUT, 64)];
    let image = Image { features: 0, slots, commands }.to_bytes();
    let whole = Instant::now();
    let context = device.create_context()?;
    let _program = context.load(&image)?;
    let whole = whole.elapsed();
    let latest = u64::try_from(whole.as_micros())?;
    let worst = worst((0..4 * TRIES).map(|_| {
        let context = device.create_context()?;
        let more = Duration::from_micros(noise.below(1 + latest));
        let transport = device.transport();
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| context.load(&image).is_ok());
            std::thread::sleep(more);
            let start = Instant::now();
            transport.write32(Ctrl::OFFSET, Ctrl::RESET.mask())?;
            let state = |raw| StatusRegister::from_raw(raw).get(StatusRegister::STATE);
            while state(transport.read32(StatusRegister::OFFSET)?) != state::RESET {
                std::thread::yield_now();
            }
            let took = start.elapsed();
            device.reset()?;
            let was_done = loader.join().map_err(|_| "the loading thread has panicked")?;
            Ok((!was_done).then_some(took))
        })
    }))?;
    Ok(format!("load of {} commands: {} ms in all, reset {worst} ms", count + 1, whole.as_millis()))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [mode, name, case] = arguments.as_slice()
        && mode == "--victim"
    {
        let cases = cases();
        let case = cases.iter().find(|known| known.name == case).ok_or("no such case")?;
        return victim(name, case);
    }
    let filter = arguments.first().cloned().unwrap_or_default();
    let mut noise = Noise::new(1);
    let Ok(isa) = std::env::var("NPU_ISA") else {
        // Devices read it when they are made: those of this process, and servers started from it.
        for isa in Isa::ALL.into_iter().rev().filter(|isa| isa.is_available()) {
            let mut again = std::process::Command::new(std::env::current_exe()?);
            let status = again.args(&arguments).env("NPU_ISA", isa.name()).status()?;
            if !status.success() {
                return Err(format!("{}: {status}", isa.name()).into());
            }
        }
        return Ok(());
    };
    let options = format!("strict=1,{SRAM}");
    let server = Simulator::start(&options);
    for (way, name) in [("sim", format!("sim:{options}")), ("vfio-user", server.device())] {
        let (abort, unmap) = ("abort", "unmap");
        println!("\n{isa}, {way}: worst of {TRIES}, ms");
        println!("{:38} {abort:>9} {:>9} {:>9} {unmap:>9} {:>9}", "", "reset", "FLR", "death");
        for case in cases().iter().filter(|case| case.name.contains(&filter)) {
            let mut row = row(&name, case, &mut noise)?;
            if way == "vfio-user" {
                let more = || Duration::from_millis(noise.below(LATEST_MS));
                let delays: Vec<_> = std::iter::repeat_with(more).take(TRIES).collect();
                let cell = worst(delays.into_iter().map(|more| death(&server, case, more)))?;
                row += &format!(" {cell:>9}");
            }
            println!("{row}");
        }
        if "load".contains(&filter) {
            println!("{}", load(&name, &mut noise)?);
        }
    }
    Ok(())
}
