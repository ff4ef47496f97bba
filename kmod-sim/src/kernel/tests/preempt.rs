//! A command that is preempted and resumed, over and over, gives the bytes of one that is not.

use super::machine::{Machine, Random};
use crate::kernel::control::Lookout;
use crate::kernel::{Control, Engine, Isa, Stop};
use arbitrary::Unstructured;
use npu_uapi::command::{ChannelRecord, Command, Flags, opcode};
use npu_uapi::extent::accesses;
use npu_uapi::fuzz::program;
use npu_uapi::limits::Limits;
use npu_uapi::text::command_text;
use npu_uapi::verify::{Verified, verify};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// Chunks of a few elements.
const FINENESS: u32 = 17;

/// Runs `command` with a preemption after its first chunk, and after each later one by a chance of one in
/// four, each time resumed by one thread or three; how often it was preempted.
///
/// The order in which threads draw is not known, so what they draw from serves nothing else.
fn run_in_parts(machine: &Machine, command: &Command, isa: Isa, seed: u64) -> u32 {
    let engine = Engine::default();
    let random = Mutex::new(Random::new(seed));
    let below = |bound| random.lock().unwrap().below(bound);
    let mut stops = 0;
    loop {
        let look = || stops == 0 || below(4) == 0;
        let lookout = Lookout::looking_every(Duration::ZERO, &look);
        let control =
            Control { lookout: Some(&lookout), fineness: FINENESS, ..Control::new(&engine) };
        let threads = if stops == 0 || below(2) == 0 { 1 } else { 3 };
        match machine.run_by(threads, command, isa, &control) {
            Ok(()) => return stops,
            Err(Stop::Preempted) => stops += 1,
            Err(stop) => panic!("{stop:?}: {}", command_text(command)),
        }
        let place = engine.place();
        engine.begin(place);
    }
}

/// Noise in all slots, but most channel records as compilers write them, so that fast kernels take them.
fn fill(machine: &Machine, program: &Verified, command: &Command, random: &mut Random) {
    for (slot, decl) in program.slots().iter().enumerate() {
        machine.write(slot, &random.bytes(usize::try_from(decl.len).unwrap()));
    }
    let accesses = accesses(command).unwrap();
    let records = accesses.iter().find(|access| access.field == "channels");
    let Some(records) = records.filter(|_| random.below(4) > 0) else { return };
    let slot = records.slot.index();
    let range = usize::try_from(records.start).unwrap()..usize::try_from(records.end()).unwrap();
    let mut bytes = machine.read(slot);
    for bytes in bytes[range].chunks_exact_mut(size_of::<ChannelRecord>()) {
        let (mut record, _) = ChannelRecord::read_from_prefix(bytes).unwrap();
        record.bias %= 5000;
        (record.multiplier, record.weight_zero_point) = (random.scale() / 64.0, 0);
        bytes.copy_from_slice(record.as_bytes());
    }
    machine.write(slot, &bytes);
}

fn name(command: &Command) -> String {
    match command {
        Command::Conv(conv) if conv.is_depthwise() => "depthwise conv".into(),
        Command::Pool(pool) => format!("pool of kind {}", pool.kind),
        other => other.name().into(),
    }
}

#[test]
fn a_command_preempted_anywhere_gives_the_bytes_of_one_that_is_not() {
    let mut random = Random::new(11);
    let mut stops = BTreeMap::<(String, &str), u32>::new();
    let isas = super::available();
    for seed in 0..500 {
        let bytes = random.bytes(3000);
        let image = program(&mut Unstructured::new(&bytes)).unwrap();
        let Ok(program) = verify(&image, &Limits::REFERENCE) else { continue };
        let len = |len: u64| usize::try_from(len).unwrap();
        let sizes: Vec<_> = program.slots().iter().map(|slot| len(slot.len)).collect();
        let machine = Machine::new(&sizes, seed);
        let is_plain = |command: &&Command| {
            let header = command.header();
            header.opcode != opcode::END && !header.flags().contains(Flags::DYNAMIC)
        };
        for command in program.commands().iter().filter(is_plain) {
            fill(&machine, &program, command, &mut random);
            let read = || -> Vec<_> { (0..sizes.len()).map(|slot| machine.read(slot)).collect() };
            let before = read();
            for &isa in &isas {
                let reset =
                    || before.iter().enumerate().for_each(|(at, old)| machine.write(at, old));
                reset();
                let engine = Engine::default();
                machine.run_by(1, command, isa, &Control::new(&engine)).unwrap();
                let expected = read();
                reset();
                let count = run_in_parts(&machine, command, isa, seed);
                assert!(read() == expected, "{isa:?}: {}", command_text(command));
                *stops.entry((name(command), isa.name())).or_default() += count;
            }
        }
    }
    assert_eq!(stops.len(), isas.len() * 20, "every kind of command, on every ISA: {stops:?}");
    assert!(stops.values().all(|&count| count > 0), "each was preempted: {stops:?}");
}
