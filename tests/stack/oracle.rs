//! What the verifier accepts, the device runs without fault, inside its slots, and equally on every ISA.
//!
//! Random programs, half of them broken at random, run command by command on slots that are exactly as
//! long as declared, between pages that cannot be touched. Each command runs twice from the same memory:
//! once by the scalar kernels alone, once by the best kernels on three threads with every pad lane of
//! its inputs changed. Real lanes of the results must be equal, pad lanes may be anything, and every
//! other byte must be what it was.

use crate::guarded::Guarded;
use arbitrary::Unstructured;
use arbtest::arbtest;
use kmod_sim::kernel::{Control, Engine, Isa, execute};
use kmod_sim::memory::Extent;
use npu_uapi::command::{ChannelRecord, Command, Layout, Strides4, element};
use npu_uapi::extent::{FeatureMap, accesses, feature_maps};
use npu_uapi::fuzz::{check_verify, program, seeds};
use npu_uapi::image::Image;
use npu_uapi::limits::Limits;
use npu_uapi::queue::access::WRITE;
use npu_uapi::text::{command_text, disassemble};
use npu_uapi::verify::{Verified, verify};
use npu_uapi::workers::{Caller, Workers};
use std::cell::Cell;
use zerocopy::{FromBytes, IntoBytes};

/// What a byte of a slot is to a command.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Role {
    /// A pad lane that the command reads.
    pad_in: bool,
    /// Anything else that it reads.
    real_in: bool,
    /// A pad lane that it may write.
    pad_out: bool,
    /// An element that it writes.
    real_out: bool,
}

type Memory = Vec<Vec<u8>>;

/// Threads of its own for each call.
struct Threads(usize);

impl Workers for Threads {
    fn count(&self) -> usize {
        self.0
    }

    fn run(&self, piece: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for index in 1..self.0 {
                scope.spawn(move || piece(index));
            }
            piece(0);
        });
    }
}

#[test]
fn an_accepted_program_runs_inside_its_slots_and_equally_on_every_isa() {
    let runs = Cell::new(0);
    for case in seeds(1000) {
        arbtest(|u| {
            let seed = u.arbitrary()?;
            if let Some(program) = check_verify(u)?
                && is_small(&program)
            {
                run(u, &program, seed)?;
                runs.set(runs.get() + 1);
            }
            Ok(())
        })
        .seed(case);
    }
    assert!(runs.get() > 0, "no program was accepted");
}

/// The same on programs that exercise one command at a time more often than a long chain does.
#[test]
fn every_kind_of_command_ran_in_the_oracle() {
    let mut kinds = std::collections::BTreeSet::new();
    let mut state = 7u64;
    for _ in 0..150 {
        let bytes = noise(&mut state, 3000);
        let u = &mut Unstructured::new(&bytes);
        let image: Image = program(u).expect("3000 bytes are enough to choose from");
        let Ok(program) = verify(&image, &Limits::REFERENCE) else { continue };
        run(u, &program, state).expect("what is left over chooses the rest");
        kinds.extend(program.commands().iter().map(Command::name));
    }
    assert_eq!(kinds.len(), 17, "{kinds:?}");
}

/// Whether a run takes a moment only; broken dimensions may ask for much within the device's bounds.
fn is_small(program: &Verified) -> bool {
    let bytes: u64 = program.slots().iter().map(|slot| slot.len).fold(0, u64::saturating_add);
    let work: u64 = program.commands().iter().filter_map(Command::operations).sum();
    bytes < 1 << 22 && work < 1 << 22 && program.traffic() < 1 << 22
}

fn noise(state: &mut u64, len: usize) -> Vec<u8> {
    std::iter::repeat_with(|| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}

fn run(u: &mut Unstructured<'_>, program: &Verified, mut seed: u64) -> arbitrary::Result<()> {
    if std::env::var_os("NPU_ORACLE_TRACE").is_some() {
        let (slots, commands) = (program.slots().to_vec(), program.commands().to_vec());
        eprintln!("{}", disassemble(&Image { features: 0, slots, commands }));
    }
    let len = |slot: u64| usize::try_from(slot).expect("only small programs run");
    let mut memory: Memory =
        program.slots().iter().map(|slot| noise(&mut seed, len(slot.len))).collect();
    let at_end = u.arbitrary()?;
    let slots: Vec<Guarded> = memory.iter().map(|m| Guarded::new(m.len(), at_end)).collect();
    for command in program.commands() {
        plausible_constants(u, command, &mut memory)?;
        let roles = roles(command, &memory);
        let mut poisoned = memory.clone();
        for (bytes, roles) in poisoned.iter_mut().zip(&roles) {
            for (byte, role) in bytes.iter_mut().zip(roles) {
                if role.pad_in && !role.real_in {
                    *byte = byte.wrapping_mul(5).wrapping_add(77);
                }
            }
        }
        let scalar = run_one(command, program, &slots, &memory, Isa::Scalar, &Caller);
        for isa in Isa::ALL.into_iter().filter(|&isa| isa != Isa::Scalar && isa.is_available()) {
            let vector = run_one(command, program, &slots, &poisoned, isa, &Threads(3));
            compare(command, &roles, [&memory, &poisoned], [&scalar, &vector]);
        }
        memory = scalar;
    }
    Ok(())
}

/// Writes what compilers write where noise would not do: weights of padding are zero, by contract; and
/// most channel records have no weight zero point, since fast kernels leave the others to scalar ones.
fn plausible_constants(
    u: &mut Unstructured<'_>,
    command: &Command,
    memory: &mut Memory,
) -> arbitrary::Result<()> {
    // Reduction steps of a block of 16 outputs: real ones, then padding, in turns.
    let (real, padded) = match command {
        Command::Conv(c) if c.is_depthwise() => {
            let taps = usize::from(c.window.kernel_h) * usize::from(c.window.kernel_w);
            (taps, taps.next_multiple_of(4))
        }
        Command::Conv(c) => {
            let inputs = usize::try_from(c.ifm_dims.c / c.groups).expect("only small programs run");
            (inputs, inputs.next_multiple_of(4))
        }
        Command::MatMul(c) => {
            let inputs = usize::try_from(c.k).expect("only small programs run");
            (inputs, inputs.next_multiple_of(4))
        }
        _ => return Ok(()),
    };
    let bytes_of = |field: &str| {
        let accesses = accesses(command).expect("the program was accepted");
        let access = accesses.iter().find(|access| access.field == field);
        let access = access.expect("CONV and MATMUL have weights and records");
        let range = usize::try_from(access.start).ok().zip(usize::try_from(access.end()).ok());
        let (start, end) = range.expect("only small programs run");
        (access.slot.index(), start..end)
    };
    let noisy = u.ratio(1, 8)?;
    let (large, zero_points) = (u.ratio(1, 4)?, u.ratio(1, 8)?);
    let (slot, range) = bytes_of("channels");
    for bytes in memory[slot][range].chunks_exact_mut(16).filter(|_| !noisy) {
        let (mut record, _) = ChannelRecord::read_from_prefix(bytes).expect("a record is 16 bytes");
        if !large {
            record.bias %= 5000;
            record.multiplier = f32::from(record.bias.unsigned_abs().to_le_bytes()[0]) / 65_536.0;
        }
        if !zero_points {
            record.weight_zero_point = 0;
        }
        bytes.copy_from_slice(record.as_bytes());
    }
    // Last, since random operands may overlap. A quad of steps holds 16 outputs by 4 steps.
    let (slot, range) = bytes_of("weights");
    for (quad, bytes) in memory[slot][range].chunks_exact_mut(64).enumerate() {
        for (at, byte) in bytes.iter_mut().enumerate() {
            if (quad * 4 + at % 4) % padded >= real {
                *byte = 0;
            }
        }
    }
    Ok(())
}

fn run_one(
    command: &Command,
    program: &Verified,
    slots: &[Guarded],
    before: &Memory,
    isa: Isa,
    workers: &dyn Workers,
) -> Memory {
    let mut extents = Vec::new();
    for ((slot, decl), bytes) in slots.iter().zip(program.slots()).zip(before) {
        slot.protect(true);
        slot.set(bytes);
        let writable = decl.access() & WRITE != 0;
        slot.protect(writable);
        // SAFETY: the memory outlives this function, has `bytes.len()` bytes, and no reference to it is
        // ever made; `Guarded` copies in and out.
        let extent = unsafe { Extent::from_raw(slot.pointer(), bytes.len(), writable) };
        extents.push((decl.len > 0).then_some(extent));
    }
    let engine = Engine::default();
    let control = Control::new(&engine);
    let outcome = execute(command, &extents, isa, workers, &control);
    assert_eq!(outcome, Ok(()), "{}", command_text(command));
    slots.iter().map(Guarded::bytes).collect()
}

fn compare(command: &Command, roles: &[Vec<Role>], before: [&Memory; 2], after: [&Memory; 2]) {
    for (slot, roles) in roles.iter().enumerate() {
        for (at, role) in roles.iter().enumerate() {
            let [old_a, old_b] = before.map(|memory| memory[slot][at]);
            let [new_a, new_b] = after.map(|memory| memory[slot][at]);
            if role.real_out {
                let text = command_text(command);
                assert_eq!(new_a, new_b, "scalar and vector differ at s{slot}+{at:#x}\n{text}");
            } else if !role.pad_out && (new_a, new_b) != (old_a, old_b) {
                panic!("s{slot}+{at:#x} is none of its outputs\n{}", command_text(command));
            }
        }
    }
}

/// The role of every byte, listed element by element.
fn roles(command: &Command, memory: &Memory) -> Vec<Vec<Role>> {
    let mut roles: Vec<Vec<Role>> =
        memory.iter().map(|bytes| vec![Role::default(); bytes.len()]).collect();
    let maps = feature_maps(command);
    for map in &maps {
        map_roles(map, &mut roles[map.operand.slot.index()]);
    }
    for access in &accesses(command).expect("the program was accepted") {
        if maps.iter().any(|map| map.field == access.field) {
            continue;
        }
        let roles = &mut roles[access.slot.index()];
        match (command, access.field) {
            (Command::Layout(c), "src" | "dst") => layout_roles(c, access.write, roles),
            _ => {
                for at in access.start..access.end() {
                    mark(roles, i128::from(at), access.write);
                }
            }
        }
    }
    roles
}

fn mark(roles: &mut [Role], at: i128, write: bool) {
    let role = &mut roles[usize::try_from(at).expect("the program was accepted")];
    if write {
        role.real_out = true;
    } else {
        role.real_in = true;
    }
}

fn map_roles(map: &FeatureMap, roles: &mut [Role]) {
    let pixel = |n: u32, y: u32, x: u32| {
        i128::from(map.operand.offset)
            + i128::from(n) * i128::from(map.strides.image)
            + i128::from(y) * i128::from(map.strides.row)
            + i128::from(x) * i128::from(map.strides.pixel)
    };
    for n in 0..map.dims.n {
        for y in 0..map.dims.h {
            for x in 0..map.dims.w {
                for lane in 0..map.lanes() {
                    let at = pixel(n, y, x) + i128::from(lane);
                    if lane < map.dims.c {
                        mark(roles, at, map.write);
                        continue;
                    }
                    let role = &mut roles[usize::try_from(at).expect("the program was accepted")];
                    if map.write {
                        role.pad_out = true;
                    } else {
                        role.pad_in = true;
                    }
                }
            }
        }
    }
}

fn layout_roles(c: &Layout, write: bool, roles: &mut [Role]) {
    let (operand, strides, outer, code) = match write {
        true => (c.dst, c.dst_strides, c.dst_outer, c.dst_element),
        false => (c.src, c.src_strides, c.src_outer, c.src_element),
    };
    let Strides4 { image, row, pixel, channel } = strides;
    let bytes = element::bytes(code).expect("the program was decoded");
    let images = (0..c.outer.max(1)).flat_map(|i| (0..c.dims.n).map(move |n| (i, n)));
    for (i, n) in images {
        for y in 0..c.dims.h {
            for x in 0..c.dims.w {
                for ch in 0..c.dims.c {
                    let steps = [(i, outer), (n, image), (y, row), (x, pixel), (ch, channel)];
                    let offset: i128 =
                        steps.iter().map(|&(i, stride)| i128::from(i) * i128::from(stride)).sum();
                    for byte in 0..bytes {
                        mark(roles, i128::from(operand.offset + byte) + offset, write);
                    }
                }
            }
        }
    }
}
