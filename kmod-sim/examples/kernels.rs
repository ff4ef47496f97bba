//! Speed of the kernels on layers of ResNet-50 and of MobileNet-like models, on one and two threads.
//!
//! ```text
//! cargo run --release -p kmod-sim --example kernels [part of a layer's name]
//! ```
//! Prints the best of many runs as GMAC/s (or GB/s where nothing is multiplied) and, where the machine
//! has the instruction, as a share of what back-to-back `vpdpbusd` reaches on as many threads.
#![expect(clippy::print_stdout, reason = "a report is what the program is for")]

use kmod_sim::kernel::{Control, Engine, Isa, execute};
use kmod_sim::memory::Extent;
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    Add, Command, Conv, Dims, Flags, Header, Layout, MatMul, PairTable, Pool, Stage, Strides,
    Strides4, Window, element, opcode, pool_kind,
};
use npu_uapi::extent::accesses;
use npu_uapi::workers::{Caller, Workers};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let isa = Isa::detect()?;
    let filter = std::env::args().nth(1).unwrap_or_default();
    let peak = peak();
    println!("kernels: {}; peak of a core: {peak:.0} GMAC/s", isa.name());
    println!("{:34} {:>18} {:>18}", "layer", "1 thread", "2 threads");
    let pair = Pair::default();
    std::thread::scope(|scope| {
        scope.spawn(|| pair.serve());
        for (name, command, macs) in
            layers().into_iter().filter(|(name, ..)| name.contains(&filter))
        {
            let mut line = format!("{name:34}");
            for (workers, threads) in [(&Caller as &dyn Workers, 1.0), (&pair, 2.0)] {
                let seconds = best(&command, isa, workers);
                let rate = macs / seconds / 1e9;
                let share = match command {
                    Command::Conv(_) | Command::MatMul(_) if peak > 0.0 => {
                        format!("{:3.0} %", 100.0 * rate / (peak * threads))
                    }
                    _ => String::new(),
                };
                line += &format!(" {:6.1} us {rate:6.1} {share:5}", seconds * 1e6);
            }
            println!("{line}");
        }
        pair.stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Best time of a command over about 60 ms.
fn best(command: &Command, isa: Isa, workers: &dyn Workers) -> f64 {
    let accesses = accesses(command).expect("the layers below are well-formed");
    let ends = |slot: u16| accesses.iter().filter(move |a| a.slot.0 == slot).map(|a| a.end());
    let sizes = (0..8).map(|slot| ends(slot).max().unwrap_or(0));
    let to_usize = |bytes| usize::try_from(bytes).expect("the layers below are small");
    let mut memory: Vec<Vec<u64>> =
        sizes.map(|bytes| vec![0x0102_0304_0506_0708; to_usize(bytes / 8 + 16)]).collect();
    // Channel records with a sensible multiplier and no weight zero point.
    let skipped = memory[2].as_ptr().align_offset(64);
    for record in memory[2][skipped..].chunks_exact_mut(2) {
        record.copy_from_slice(&[u64::from(1e-4f32.to_bits()) << 32, 0]);
    }
    let slots: Vec<_> = memory
        .iter_mut()
        // As a device's memory, which begins with a line of the cache.
        .map(|m| {
            let skipped = m.as_ptr().align_offset(64);
            &mut m[skipped..]
        })
        // SAFETY: `memory` outlives the runs below and is not touched meanwhile.
        .map(|m| Some(unsafe { Extent::from_raw(m.as_mut_ptr().cast(), m.len() * 8, true) }))
        .collect();
    let engine = Engine::default();
    let control = Control::new(&engine);
    let (mut best, start) = (Duration::MAX, Instant::now());
    while start.elapsed() < Duration::from_millis(60) {
        let run = Instant::now();
        execute(command, &slots, isa, workers, &control).expect("operands lie in their slots");
        best = best.min(run.elapsed());
    }
    best.as_secs_f64()
}

/// Two threads that wait for work by spinning, as between the layers of a model.
#[derive(Default)]
struct Pair {
    piece: std::sync::Mutex<Option<&'static (dyn Fn(usize) + Sync)>>,
    asked: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Pair {
    fn serve(&self) {
        let mut seen = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.asked.load(Ordering::Acquire) == seen {
                std::hint::spin_loop();
                continue;
            }
            seen += 1;
            let piece = *self.piece.lock().expect("no piece panics");
            if let Some(piece) = piece {
                piece(1);
            }
            self.done.store(seen, Ordering::Release);
        }
    }
}

impl Workers for Pair {
    fn count(&self) -> usize {
        2
    }

    fn run(&self, piece: &(dyn Fn(usize) + Sync)) {
        // SAFETY: `run` waits below until the other thread is done with the piece.
        let piece = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(piece)
        };
        *self.piece.lock().expect("no piece panics") = Some(piece);
        let asked = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        piece(0);
        while self.done.load(Ordering::Acquire) != asked {
            std::hint::spin_loop();
        }
    }
}

type Layer = (String, Command, f64);

fn layers() -> Vec<Layer> {
    let mut out = Vec::new();
    // ResNet-50: size, inputs, outputs, kernel, stride.
    for (size, c, k, kernel, stride) in [
        (224, 3, 64, 7, 2),
        (56, 64, 64, 1, 1),
        (56, 64, 64, 3, 1),
        (56, 64, 256, 1, 1),
        (56, 256, 64, 1, 1),
        (56, 256, 512, 1, 2),
        (56, 128, 128, 3, 2),
        (28, 128, 128, 3, 1),
        (28, 128, 512, 1, 1),
        (28, 512, 128, 1, 1),
        (14, 256, 256, 3, 1),
        (14, 256, 1024, 1, 1),
        (14, 1024, 256, 1, 1),
        (7, 512, 512, 3, 1),
        (7, 512, 2048, 1, 1),
        (7, 2048, 512, 1, 1),
        // MobileNet and EfficientNet-Lite: thin layers.
        (224, 3, 32, 3, 2),
        (112, 32, 16, 1, 1),
        (112, 16, 96, 1, 1),
        (56, 16, 96, 1, 1),
        (56, 96, 24, 1, 1),
        (56, 24, 144, 1, 1),
        (56, 144, 24, 1, 1),
        (28, 192, 32, 1, 1),
        (28, 32, 192, 1, 1),
        (14, 96, 576, 1, 1),
        (55, 16, 64, 3, 1),
        (27, 32, 128, 3, 1),
        (14, 576, 96, 1, 1),
        (7, 960, 320, 1, 1),
    ] {
        out.push(conv(size, c, k, kernel, stride, 1, Flags::empty()));
    }
    for (size, c, k, kernel, stride) in [
        // Detection: 24 and 48 outputs.
        (208, 12, 24, 3, 1),
        (208, 24, 48, 3, 2),
        (104, 48, 24, 1, 1),
        (104, 24, 24, 3, 1),
        (104, 48, 48, 1, 1),
        (52, 48, 48, 3, 1),
        (52, 96, 96, 3, 1),
        (26, 96, 96, 3, 1),
        (160, 96, 24, 3, 1),
    ] {
        out.push(conv(size, c, k, kernel, stride, 1, Flags::TABLE_0));
    }
    out.push(conv(56, 64, 256, 1, 1, 1, Flags::ADD_AUX));
    out.push(conv(56, 64, 256, 1, 1, 1, Flags::ADD_AUX | Flags::TABLE_1));
    out.push(conv(56, 64, 256, 1, 1, 1, Flags::TABLE_0));
    out.push(conv(28, 256, 256, 3, 1, 8, Flags::empty()));
    for (size, c, kernel, stride) in [
        (112, 32, 3, 1),
        (112, 96, 3, 2),
        (56, 96, 3, 2),
        (56, 32, 3, 1),
        (28, 144, 3, 1),
        (56, 144, 3, 1),
        (56, 144, 5, 2),
        (28, 240, 5, 1),
        (14, 576, 3, 1),
        (14, 672, 5, 1),
        (7, 960, 3, 1),
        (7, 1152, 5, 1),
    ] {
        out.push(conv(size, c, c, kernel, stride, c, Flags::empty()));
    }
    out.push(matmul(1, 1000, 2048));
    out.push(matmul(1, 1000, 1280));
    out.push(matmul(128, 768, 768));
    out.push(add(56, 256));
    out.push(pair_table(56, 256));
    out.push(pool(112, 64, pool_kind::MAX));
    out.push(pool(7, 2048, pool_kind::GLOBAL_AVERAGE));
    out.push(pool(28, 192, pool_kind::AVERAGE));
    out.push(quantise(224));
    out.push(dequantise(1000));
    out
}

fn slot(number: u16) -> Operand {
    Operand::new(SlotId(number), 0)
}

/// Channels as they lie: three as four, others in sixteens.
fn dense(size: u32, c: u32) -> Strides {
    let pixel = c.next_multiple_of(if c <= 4 { 4 } else { 16 });
    let signed = |value| i32::try_from(value).expect("the layers are small");
    Strides {
        image: i64::from(size * size * pixel),
        row: signed(size * pixel),
        pixel: signed(pixel),
    }
}

fn conv(size: u32, c: u32, k: u32, kernel: u16, stride: u16, groups: u32, flags: Flags) -> Layer {
    let ofm = size.div_ceil(u32::from(stride));
    let aux = if flags.contains(Flags::ADD_AUX) { dense(ofm, k) } else { Strides::default() };
    let conv = Conv {
        header: Header::new(opcode::CONV, 4, flags, 0),
        ifm: slot(0),
        weights: slot(1),
        channels: slot(2),
        ofm: slot(3),
        aux: slot(4),
        tables: slot(5),
        ifm_dims: Dims { n: 1, h: size, w: size, c },
        ofm_h: ofm,
        ofm_w: ofm,
        ofm_c: k,
        groups,
        ifm_strides: dense(size, c),
        ofm_strides: dense(ofm, k),
        aux_strides: aux,
        window: Window {
            kernel_h: kernel,
            kernel_w: kernel,
            stride_h: stride,
            stride_w: stride,
            dilation_h: 1,
            dilation_w: 1,
            pad_top: (kernel - 1) / 2,
            pad_left: (kernel - 1) / 2,
        },
        stage: Stage {
            zero_point: 3,
            clamp_high: 255,
            add_first: 0.5,
            add_second: 0.5,
            ..Stage::default()
        },
        ..Conv::default()
    };
    let macs = f64::from(ofm * ofm * k) * f64::from(u32::from(kernel * kernel) * (c / groups));
    let kind = match groups {
        1 => String::new(),
        g if g == c => " depthwise".into(),
        g => format!(" groups {g}"),
    };
    let name = format!("{size}x{size} {c}->{k} {kernel}x{kernel}/{stride}{kind}{}", names(flags));
    (name, Command::Conv(conv), macs)
}

fn names(flags: Flags) -> String {
    flags.iter_names().map(|(name, _)| format!(" {name}")).collect()
}

fn matmul(m: u32, n: u32, k: u32) -> Layer {
    let signed = |value| i32::try_from(value).expect("the layers are small");
    let matmul = MatMul {
        header: Header::new(opcode::MATMUL, 3, Flags::empty(), 0),
        a: slot(0),
        weights: slot(1),
        channels: slot(2),
        out: slot(3),
        m,
        n,
        k,
        a_row: signed(k),
        out_row: signed(n),
        stage: Stage { clamp_high: 255, ..Stage::default() },
        ..MatMul::default()
    };
    let macs = f64::from(m) * f64::from(n) * f64::from(k);
    (format!("matmul {m}x{k} by {n}"), Command::MatMul(matmul), macs)
}

fn add(size: u32, c: u32) -> Layer {
    let strides = dense(size, c);
    let add = Add {
        header: Header::new(opcode::ADD, 3, Flags::empty(), 0),
        a: slot(0),
        b: slot(1),
        out: slot(3),
        dims: Dims { n: 1, h: size, w: size, c },
        a_strides: strides,
        b_strides: strides,
        out_strides: strides,
        first: 0.5,
        second: 0.5,
        clamp_high: 255,
        ..Add::default()
    };
    (format!("add {size}x{size}x{c} (G elements/s)"), Command::Add(add), f64::from(size * size * c))
}

fn pair_table(size: u32, c: u32) -> Layer {
    let strides = dense(size, c);
    let pairs = PairTable {
        header: Header::new(opcode::PAIR_TABLE, 3, Flags::empty(), 0),
        a: slot(0),
        b: slot(1),
        out: slot(3),
        table: slot(2),
        dims: Dims { n: 1, h: size, w: size, c },
        a_strides: strides,
        b_strides: strides,
        out_strides: strides,
        ..PairTable::default()
    };
    let name = format!("pair table {size}x{size}x{c} (G elements/s)");
    (name, Command::PairTable(pairs), f64::from(size * size * c))
}

fn pool(size: u32, c: u32, kind: u8) -> Layer {
    let global = kind == pool_kind::GLOBAL_AVERAGE;
    let ofm = if global { 1 } else { size / 2 };
    let window = Window {
        kernel_h: 3,
        kernel_w: 3,
        stride_h: 2,
        stride_w: 2,
        dilation_h: 1,
        dilation_w: 1,
        pad_top: 1,
        pad_left: 1,
    };
    let pool = Pool {
        header: Header::new(opcode::POOL, 3, Flags::empty(), 0),
        ifm: slot(0),
        ofm: slot(3),
        ifm_dims: Dims { n: 1, h: size, w: size, c },
        ofm_h: ofm,
        ofm_w: ofm,
        kind,
        ifm_strides: dense(size, c),
        ofm_strides: dense(ofm, c),
        window: if global { Window::default() } else { window },
        clamp_high: 255,
        input_scale: 0.1,
        output_scale: 0.1,
        multiplier: 0.01,
        ..Pool::default()
    };
    let name = ["", "max", "average", "global average"][usize::from(kind)];
    let name = format!("{name} pool {size}x{size}x{c} (GB/s in)");
    (name, Command::Pool(pool), f64::from(size * size * c))
}

fn quantise(size: u32) -> Layer {
    let size64 = i64::from(size);
    let plane = size64 * size64 * 4;
    let layout = Layout {
        header: Header::new(opcode::LAYOUT, 3, Flags::empty(), 0),
        src: slot(0),
        dst: slot(3),
        dims: Dims { n: 1, h: size, w: size, c: 3 },
        src_strides: Strides4 { image: 3 * plane, row: 4 * size64, pixel: 4, channel: plane },
        dst_strides: Strides4 { image: plane, row: 4 * size64, pixel: 4, channel: 1 },
        src_element: element::F32,
        dst_element: element::U8,
        zero_point: 114,
        scale: 0.0186,
        ..Layout::default()
    };
    (
        format!("quantise {size}x{size}x3 (G elements/s)"),
        Command::Layout(layout),
        f64::from(3 * size * size),
    )
}

fn dequantise(c: u32) -> Layer {
    let count = i64::from(c);
    let layout = Layout {
        header: Header::new(opcode::LAYOUT, 3, Flags::empty(), 0),
        src: slot(0),
        dst: slot(3),
        dims: Dims { n: 1, h: 1, w: 1, c },
        src_strides: Strides4 { image: count, row: count, pixel: count, channel: 1 },
        dst_strides: Strides4 { image: 4 * count, row: 4 * count, pixel: 4 * count, channel: 4 },
        src_element: element::U8,
        dst_element: element::F32,
        zero_point: 60,
        scale: 0.1,
        ..Layout::default()
    };
    (format!("dequantise {c} (G elements/s)"), Command::Layout(layout), f64::from(c))
}

/// GMAC/s of back-to-back `vpdpbusd` on one core; zero where there is none.
fn peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if Isa::best() == Isa::Avx512Vnni {
        // SAFETY: the instructions exist, as the line above asks.
        return (0..20).map(|_| unsafe { dot_products() }).fold(0.0, f64::max);
    }
    0.0
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_products() -> f64 {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512};
    const ROUNDS: u32 = 300_000;
    let (one, two) = (_mm512_set1_epi8(1), _mm512_set1_epi8(2));
    let mut sums = [_mm512_setzero_si512(); 16];
    let start = Instant::now();
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, one, two);
            // SAFETY: an empty statement; it keeps the sums from being computed at once.
            unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) * sum) };
        }
    }
    f64::from(ROUNDS) * 16.0 * 64.0 / start.elapsed().as_secs_f64() / 1e9
}
