//! Speed of sums in floats (`FLOAT`): the 1x1 layers that ResNet-50 S8S8 has, beside the same sums of integers.
//!
//! ```text
//! cargo run --release -p kmod-sim --example floats [part of a layer's name]
//! ```
//! Inputs and weights are random: what is left open by the integer sum depends on them. Prints the median
//! of many runs in turn on one thread, and their ratio.
#![expect(clippy::print_stdout, reason = "a report is what the program is for")]

use kmod_sim::kernel::{Control, Engine, Isa, execute};
use kmod_sim::memory::Extent;
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    Command, Conv, Dims, Flags, FloatRecord, Header, Stage, Strides, Window, opcode,
};
use npu_uapi::extent::accesses;
use npu_uapi::float_order::code;
use npu_uapi::workers::Caller;
use std::time::Instant;

/// Size, inputs, outputs, stride, whether negative sums are codes, and how often the network has it.
const LAYERS: [(u32, u32, u32, u16, bool, u32); 14] = [
    (56, 64, 64, 1, false, 1),
    (56, 64, 256, 1, true, 1),
    (56, 256, 64, 1, false, 2),
    (56, 256, 128, 1, false, 1),
    (56, 256, 512, 2, true, 1),
    (28, 512, 128, 1, false, 3),
    (28, 512, 256, 1, false, 1),
    (28, 512, 1024, 2, true, 1),
    (14, 1024, 256, 1, false, 5),
    (14, 1024, 512, 1, false, 1),
    (14, 1024, 2048, 2, true, 1),
    (7, 2048, 512, 1, false, 2),
    (52, 48, 48, 1, true, 1),
    (56, 24, 144, 1, true, 1),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let isa = Isa::detect()?;
    let filter = std::env::args().nth(1).unwrap_or_default();
    let mut totals = [0.0; 2];
    println!("{:28} {:>12} {:>12} {:>7}", "layer", "integers", "floats", "ratio");
    for (size, inputs, outputs, stride, signed, times) in LAYERS {
        let name = format!("{size}x{size} {inputs}->{outputs} /{stride} times {times}");
        if !name.contains(&filter) {
            continue;
        }
        let mut runs =
            [false, true].map(|floats| Run::new(size, [inputs, outputs], stride, signed, floats));
        let mut times_of: [Vec<f64>; 2] = Default::default();
        let start = Instant::now();
        while start.elapsed().as_millis() < 800 {
            for (run, times) in runs.iter_mut().zip(&mut times_of) {
                times.push(run.seconds(isa));
            }
        }
        let [integers, floats] = times_of.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] * 1e6
        });
        println!("{name:28} {integers:9.1} us {floats:9.1} us {:7.2}", floats / integers);
        totals[0] += integers * f64::from(times);
        totals[1] += floats * f64::from(times);
    }
    println!(
        "{:28} {:9.0} us {:9.0} us {:7.2}",
        "all",
        totals[0],
        totals[1],
        totals[1] / totals[0]
    );
    Ok(())
}

struct Run {
    command: Command,
    memory: Vec<Vec<u64>>,
}

impl Run {
    fn new(size: u32, [c, k]: [u32; 2], stride: u16, signed: bool, floats: bool) -> Self {
        let ofm = size.div_ceil(u32::from(stride));
        let flags = if floats { Flags::FLOAT } else { Flags::empty() };
        let spread = f32::from(u16::try_from(c).expect("small")).sqrt() * 0.7 * 40.0 * 36.0;
        // Blocks of 128 terms, of 256 where there are no more than 64 pixels.
        let block = if ofm * ofm <= 64 { 8 } else { 7 };
        let mut stage = Stage { clamp_high: 255, ..Stage::default() };
        stage.zero_point = if signed { 128 } else { 0 };
        if floats {
            stage = Stage {
                float_order: code::FUSED,
                float_block_log2: block,
                input_scale: 0.021,
                output_scale: 0.021 * 0.0013 * spread / 45.0,
                ..stage
            };
        }
        let command = Command::Conv(Conv {
            header: Header::new(opcode::CONV, 4, flags, 0),
            ifm: Operand::new(SlotId(0), 0),
            weights: Operand::new(SlotId(1), 0),
            channels: Operand::new(SlotId(2), 0),
            ofm: Operand::new(SlotId(3), 0),
            ifm_dims: Dims { n: 1, h: size, w: size, c },
            ofm_h: ofm,
            ofm_w: ofm,
            ofm_c: k,
            groups: 1,
            ifm_strides: dense(size, c),
            ofm_strides: dense(ofm, k),
            window: Window {
                kernel_h: 1,
                kernel_w: 1,
                stride_h: stride,
                stride_w: stride,
                dilation_h: 1,
                dilation_w: 1,
                ..Window::default()
            },
            stage,
            ..Conv::default()
        });
        let accesses = accesses(&command).expect("the layers are well-formed");
        let bytes = |slot| accesses.iter().filter(|a| a.slot.0 == slot).map(|a| a.end()).max();
        let mut random = Random(1);
        let memory = (0..4).map(|slot| {
            let len = usize::try_from(bytes(slot).unwrap_or(0) / 8 + 16).expect("small");
            let mut words = vec![0u64; len];
            let skipped = words.as_ptr().align_offset(64);
            for word in &mut words[skipped..] {
                *word = match slot {
                    0 => u64::from_le_bytes([0; 8].map(|_| random.input())),
                    1 => u64::from_le_bytes([0; 8].map(|_| random.weight())),
                    _ => 0,
                };
            }
            if slot == 2 {
                for record in words[skipped..].chunks_exact_mut(2) {
                    let multiplier = 45.0 / spread;
                    let float = FloatRecord {
                        weight_scale: 0.0013,
                        bias: 0.1 * random.normal(),
                        ..FloatRecord::default()
                    };
                    let bits =
                        |a: f32, b: f32| u64::from(a.to_bits()) | u64::from(b.to_bits()) << 32;
                    record[0] = if floats {
                        bits(float.weight_scale, float.bias)
                    } else {
                        bits(0.0, multiplier)
                    };
                }
            }
            words
        });
        Self { command, memory: memory.collect() }
    }

    fn seconds(&mut self, isa: Isa) -> f64 {
        let slots: Vec<_> = self
            .memory
            .iter_mut()
            .map(|m| {
                let skipped = m.as_ptr().align_offset(64);
                &mut m[skipped..]
            })
            // SAFETY: the memory outlives the run below and is not touched meanwhile.
            .map(|m| Some(unsafe { Extent::from_raw(m.as_mut_ptr().cast(), m.len() * 8, true) }))
            .collect();
        let engine = Engine::default();
        let control = Control::new(&engine);
        let start = Instant::now();
        execute(&self.command, &slots, isa, &Caller, &control)
            .expect("operands lie in their slots");
        start.elapsed().as_secs_f64()
    }
}

/// Channels side by side, in sixteens.
fn dense(size: u32, c: u32) -> Strides {
    let pixel = c.next_multiple_of(16);
    let signed = |value| i32::try_from(value).expect("the layers are small");
    Strides {
        image: i64::from(size * size * pixel),
        row: signed(size * pixel),
        pixel: signed(pixel),
    }
}

/// Xorshift.
struct Random(u64);

impl Random {
    /// Nearly normal, of deviation 1.
    fn normal(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let sum: u16 = self.0.to_le_bytes().iter().map(|&byte| u16::from(byte)).sum();
        (f32::from(sum) - 1020.0) / 209.0
    }

    /// Behind a Relu: half of them zero.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    fn input(&mut self) -> u8 {
        (self.normal() * 57.0).clamp(0.0, 255.0) as u8
    }

    #[expect(clippy::cast_possible_truncation, reason = "clamped")]
    fn weight(&mut self) -> u8 {
        ((self.normal() * 36.0).clamp(-127.0, 127.0) as i8).cast_unsigned()
    }
}
