//! Bad input of every kind: the right status, a record that names the thing, and a device that goes on.

use arbitrary::Unstructured;
use kmod_sim::{Config, Function};
use libnpu::{Access, Caller, Context, Device, Error, Fault, Job, Memory, Program};
use npu_tests::{HANG, fill, image, over_each_transport};
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::image::slot_kind;
use npu_uapi::queue::{CopyEntry, EntryHeader, Exec, FillEntry, Nop, opcode};
use npu_uapi::status::{FaultRecord, NOT_APPLICABLE, Status};
use npu_uapi::verify::Rule;
use std::mem::offset_of;

over_each_transport! {
    malformed_entries_are_answered_with_what_is_wrong_and_where,
    entries_that_name_what_does_not_exist_are_answered_with_the_field,
    addresses_that_are_not_mapped_fault_with_the_address,
    slots_that_do_not_fit_the_program_fault_with_the_slot,
    programs_that_break_a_rule_are_refused_with_the_rule_the_command_and_the_slot,
    limits_are_refused_and_what_is_given_back_can_be_had_again,
    a_full_fault_ring_loses_records_but_no_answers,
}

/// The fault that `job` ends with, and its record; then others' jobs still run.
fn fault(device: &Device, job: Result<Job, Error>) -> (Fault, FaultRecord) {
    let job = job.expect("the driver submits it");
    let error = job.wait(&Caller, HANG).expect_err("the device refuses it");
    let fault = *error.fault().unwrap_or_else(|| panic!("{error}"));
    let record = fault.record.expect("the fault ring has room");
    assert_eq!((record.status, record.job), (fault.status, job.number()));
    assert_eq!(record.queue, fault.queue);
    let other = device.create_context().expect("there is room");
    other.nop().and_then(|job| job.wait(&Caller, HANG)).expect("the device goes on");
    (fault, record)
}

fn words(context: &Context, entry: impl FnOnce(u32) -> [u32; 16]) -> Result<Job, Error> {
    context.submit_words(entry)
}

fn malformed_entries_are_answered_with_what_is_wrong_and_where(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    for opcode in [0, 0x7f, opcode::IDENTIFY, opcode::LOAD_PROGRAM, 0xff] {
        let nop = |job| Nop { header: EntryHeader::new(opcode, job), ..Nop::default() };
        let (fault, record) = fault(device, words(&context, |job| nop(job).words()));
        assert_eq!((fault.status, record.opcode), (Status::UNKNOWN_OPCODE, opcode));
    }
    for (word, bits) in [(0, 0x100), (2, 1), (15, 0x8000_0000)] {
        let entry = |job| {
            let header = EntryHeader::new(opcode::NOP, job);
            let mut words = Nop { header, ..Nop::default() }.words();
            words[word] |= bits;
            words
        };
        let (fault, record) = fault(device, words(&context, entry));
        assert_eq!(fault.status, Status::RESERVED_FIELD);
        assert_eq!(record.offset, if word == 0 { 1 } else { 8 });
    }
    let entry = |job| {
        let header = EntryHeader::new(opcode::FILL, job);
        FillEntry { header, value: 256, ..FillEntry::default() }.words()
    };
    let (fault, record) = fault(device, words(&context, entry));
    assert_eq!(fault.status, Status::INVALID_FIELD);
    assert_eq!(record.offset, offset_of!(FillEntry, value) as u64);
    assert_eq!((record.command, record.op_id), (NOT_APPLICABLE, NOT_APPLICABLE));
    Ok(())
}

fn entries_that_name_what_does_not_exist_are_answered_with_the_field(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    let exec = |program, table| {
        move |job| {
            let header = EntryHeader::new(opcode::EXEC, job);
            Exec { header, program, table, ..Exec::default() }.words()
        }
    };
    let (fault1, record) = fault(device, words(&context, exec(0, 0)));
    assert_eq!(fault1.status, Status::UNKNOWN_ID);
    assert_eq!(record.offset, offset_of!(Exec, program) as u64);
    // Ids count up from 1, and the context took one: find the program's by trying.
    let program = context.load(&image(&[], &[]))?;
    context.exec(&program, None, Vec::new())?.wait(&Caller, HANG)?;
    let found = (1..10).find(|&id| {
        let (fault, record) = fault(device, words(&context, exec(id, 999)));
        assert_eq!(fault.status, Status::UNKNOWN_ID);
        record.offset == offset_of!(Exec, table) as u64
    });
    let id = found.expect("the program has a small id");
    // A program of another context does not exist for this one.
    let other = device.create_context()?;
    let (fault2, record) = fault(device, words(&other, exec(id, 0)));
    assert_eq!(fault2.status, Status::UNKNOWN_ID);
    assert_eq!(record.offset, offset_of!(Exec, program) as u64);
    Ok(())
}

fn addresses_that_are_not_mapped_fault_with_the_address(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    // Ids count up from 1, which the context took: the program is 2.
    let program = context.load(&image(&[], &[]))?;
    let buffer = device.allocate(64)?;
    let bad = Iova::new(0x10);
    for (src, dst, want, access) in [(bad, buffer.iova(), bad, 1), (buffer.iova(), bad, bad, 2)] {
        let entry = |job| {
            let header = EntryHeader::new(opcode::COPY, job);
            CopyEntry { header, src, dst, len: 64, ..CopyEntry::default() }.words()
        };
        let (fault, record) = fault(device, words(&context, entry));
        assert_eq!(fault.status, Status::UNMAPPED_IOVA);
        assert_eq!((record.iova, record.len, record.access), (want.raw(), 64, access));
    }
    let wraps = |job| {
        let header = EntryHeader::new(opcode::FILL, job);
        FillEntry { header, dst: buffer.iova(), len: u64::MAX, ..FillEntry::default() }.words()
    };
    let (fault1, _) = fault(device, words(&context, wraps));
    assert_eq!(fault1.status, Status::UNMAPPED_IOVA);
    let overlay = |job| {
        let header = EntryHeader::new(opcode::EXEC, job);
        Exec { header, overlay: bad, count: 2, program: 2, ..Exec::default() }.words()
    };
    let (fault2, record) = fault(device, words(&context, overlay));
    assert_eq!(fault2.status, Status::UNMAPPED_IOVA);
    assert_eq!((record.iova, record.len), (bad.raw(), 64));
    drop(program);
    Ok(())
}

/// A program that writes 64 bytes of slot 2, an output, as operation 41.
fn writer(context: &Context) -> Result<Program, Error> {
    let slots = [(slot_kind::UNUSED, 0), (slot_kind::SRAM, 128), (slot_kind::OUTPUT, 64)];
    context.load(&image(&slots, &[fill(1, 0, 128, 0, 40), fill(2, 0, 64, 9, 41)]))
}

fn slots_that_do_not_fit_the_program_fault_with_the_slot(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    let (program, buffer) = (writer(&context)?, device.allocate(64)?);
    let bound = |memory| context.exec(&program, None, vec![(SlotId(2), memory)]);

    let (fault1, record) = fault(device, context.exec(&program, None, Vec::new()));
    assert_eq!((fault1.status, record.slot), (Status::UNBOUND_SLOT, SlotId(2)));

    let short = Memory::buffer(&buffer, 0, 63, Access::ReadWrite)?;
    let (fault2, record) = fault(device, bound(short));
    assert_eq!((fault2.status, record.slot), (Status::SLOT_TOO_SMALL, SlotId(2)));
    assert_eq!((record.offset, record.len), (63, 1));

    let read_only = Memory::buffer(&buffer, 0, 64, Access::Read)?;
    let (fault3, record) = fault(device, bound(read_only));
    assert_eq!((fault3.status, record.slot), (Status::ACCESS_DENIED, SlotId(2)));

    if device.transport().reaches_process_memory() {
        let mut memory = vec![0_u8; 64];
        // SAFETY: the vector outlives the mapping, which is gone before it is used.
        let foreign = unsafe { device.map_foreign(memory.as_mut_ptr(), 64, Access::ReadWrite) }?;
        let gone = Memory::from(&foreign);
        drop(foreign);
        let (fault4, record) = fault(device, bound(gone.clone()));
        assert_eq!((fault4.status, record.slot), (Status::UNMAPPED_IOVA, SlotId(2)));
        assert_eq!(record.iova, gone.iova().raw());
        assert_eq!(memory, [0; 64]);
    }

    for slot in [SlotId(3), SlotId(300)] {
        let overlay = vec![(SlotId(2), Memory::from(&buffer)), (slot, Memory::from(&buffer))];
        let (fault5, record) = fault(device, context.exec(&program, None, overlay));
        assert_eq!((fault5.status, record.slot), (Status::INVALID_FIELD, slot));
    }
    let twice = vec![(SlotId(2), Memory::from(&buffer)), (SlotId(2), Memory::from(&buffer))];
    let (fault6, record) = fault(device, context.exec(&program, None, twice));
    assert_eq!((fault6.status, record.slot), (Status::INVALID_FIELD, SlotId(2)));

    bound(Memory::from(&buffer))?.wait(&Caller, HANG)?;
    assert_eq!(buffer.to_vec(), [9; 64]);
    Ok(())
}

/// The fault that loading `image` ends with.
fn refusal(context: &Context, image: &[u8]) -> (Fault, FaultRecord) {
    let error = context.load(image).map(drop).expect_err("the device refuses it");
    let fault = *error.fault().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(fault.status, Status::PROGRAM_REFUSED, "{error}");
    assert!(error.to_string().contains("verifier rule"), "{error}");
    (fault, fault.record.expect("a record"))
}

fn programs_that_break_a_rule_are_refused_with_the_rule_the_command_and_the_slot(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    let slots = [(slot_kind::OUTPUT, 64), (slot_kind::INPUT, 64)];
    let long = image(&slots, &[fill(0, 0, 64, 0, 7), fill(0, 1, 64, 0, 8)]);
    let (fault, record) = refusal(&context, &long);
    assert_eq!(fault.queue, 0);
    assert_eq!(record.cause, Rule::SlotLength.number());
    assert_eq!((record.command, record.op_id, record.slot), (1, 8, SlotId(0)));
    assert_eq!((record.offset, record.len, record.access), (1, 64, 2));

    let (_, record) = refusal(&context, &image(&slots, &[fill(1, 0, 64, 0, 3)]));
    assert_eq!(record.cause, Rule::SlotAccess.number());
    assert_eq!((record.op_id, record.slot), (3, SlotId(1)));

    let (_, record) = refusal(&context, &image(&slots, &[fill(2, 0, 64, 0, 3)]));
    assert_eq!(record.cause, Rule::UnknownSlot.number());

    let mut bytes = image(&slots, &[]);
    bytes.pop();
    for garbage in [&[][..], b"not a program", &bytes] {
        let (_, record) = refusal(&context, garbage);
        assert_eq!(record.cause, Rule::Malformed.number());
    }
    writer(&context).map(drop)
}

fn limits_are_refused_and_what_is_given_back_can_be_had_again(
    device: &Device,
) -> Result<(), Error> {
    let mut contexts = Vec::new();
    let error = loop {
        match device.create_context() {
            Ok(context) => contexts.push(context),
            Err(error) => break error,
        }
    };
    assert_eq!(error.fault().map(|fault| fault.status), Some(Status::NO_RESOURCES), "{error}");
    assert_eq!(contexts.len(), usize::try_from(device.limits().contexts).unwrap());
    contexts.pop();
    let context = device.create_context()?;
    let program = image(&[], &[]);
    let mut programs = Vec::new();
    let error = loop {
        match context.load(&program) {
            Ok(program) => programs.push(program),
            Err(error) => break error,
        }
    };
    assert_eq!(error.fault().map(|fault| fault.status), Some(Status::NO_RESOURCES), "{error}");
    programs.pop();
    context.load(&program).map(drop)
}

#[test]
fn programs_that_together_take_too_much_memory_are_refused() {
    let device = Device::open_private("sim").unwrap();
    let context = device.create_context().unwrap();
    let commands = usize::try_from(device.limits().commands).unwrap();
    let largest = image(&[(slot_kind::OUTPUT, 1)], &vec![fill(0, 0, 1, 0, 0); commands - 1]);
    let mut programs = Vec::new();
    let error = loop {
        match context.load(&largest) {
            Ok(program) => programs.push(program),
            Err(error) => break error,
        }
        assert!(programs.len() <= 16, "each of them takes megabytes of the device's host");
    };
    assert_eq!(error.fault().map(|fault| fault.status), Some(Status::NO_RESOURCES), "{error}");
    programs.pop();
    context.load(&largest).unwrap();
}

fn a_full_fault_ring_loses_records_but_no_answers(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    for _ in 0..3 {
        let jobs: Vec<Job> = (0..60)
            .map(|_| words(&context, |job| [0xee, job, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
            .collect::<Result<_, _>>()?;
        device.create_context()?.nop()?.wait(&Caller, HANG)?;
        for job in jobs {
            let error = job.wait(&Caller, HANG).unwrap_err();
            assert_eq!(error.fault().map(|fault| fault.status), Some(Status::UNKNOWN_OPCODE));
        }
    }
    for _ in 0..100 {
        device.transport().write32(0x0ffc, 0)?;
    }
    let lost = device.transport().read32(0x50)?;
    assert!(lost > 0, "a hundred faults that nobody read do not fit");
    assert!(device.faults()?.len() <= 256);
    let (fault, _) = fault(
        device,
        words(&context, |job| {
            let mut words = [0; 16];
            (words[0], words[1]) = (0xee, job);
            words
        }),
    );
    assert_eq!(fault.status, Status::UNKNOWN_OPCODE, "read, the ring has room again");
    Ok(())
}

/// Random register accesses, config accesses and ring words never panic or hang the device.
fn check_registers_and_rings(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    const BYTES: usize = 64 << 10;
    let function = Function::new(Config::parse("sram=4K").unwrap()).unwrap();
    function.config_write(4, 6);
    let words: Vec<std::sync::atomic::AtomicU32> =
        (0..BYTES / 4).map(|_| std::sync::atomic::AtomicU32::new(0)).collect();
    let base = Iova::new(0x1000);
    let start = words.as_ptr().cast_mut().cast::<u8>();
    // SAFETY: atomics, which outlive the function's last access below.
    unsafe { function.map(base, start, BYTES, 3) }.unwrap();
    for (offset, value) in [(0x20, 0x1000), (0x28, 0x404), (0x40, 0x4000), (0x10, 1)] {
        function.write32(offset, value);
    }
    for _ in 0..u.int_in_range(0..=60)? {
        match u.int_in_range(0..=6)? {
            0 => function.write32(u32::from(u.int_in_range(0..=0x24_u8)?) * 4, u.arbitrary()?),
            1 => _ = function.read32(u.arbitrary()?),
            2 => function.config_write(u.int_in_range(0..=0x60)?, u.arbitrary()?),
            3 => function.msix_write(u.int_in_range(0..=0x900)?, u.arbitrary()?),
            4 => {
                // A plausible admin entry, of random fields, in the first ring slots.
                let slot = usize::from(u.int_in_range(0..=15_u8)?) * 16 + 32;
                for at in 0..16 {
                    let word = match at {
                        0 => u.int_in_range(0..=0xc)?,
                        2 | 4 => u.int_in_range(0..=0x1_2000)?,
                        _ => u.int_in_range(0..=6)?,
                    };
                    words[slot + at].store(word, std::sync::atomic::Ordering::Relaxed);
                }
            }
            5 => {
                let at = usize::from(u.int_in_range(0..=255_u8)?);
                words[at].store(u.arbitrary()?, std::sync::atomic::Ordering::Relaxed);
            }
            _ => {
                words[0].fetch_add(u.int_in_range(0..=3)?, std::sync::atomic::Ordering::Release);
                function.write32(0x30, 0);
                function.drive(&Caller);
            }
        }
    }
    function.drive(&Caller);
    function.unmap(base, BYTES as u64).unwrap();
    function.write32(0x10, 2);
    assert_eq!(function.read32(0x14) & 0xf, 0, "a reset always brings it back");
    Ok(())
}

#[test]
fn no_register_or_ring_content_panics_or_hangs_the_device() {
    for seed in npu_uapi::fuzz::seeds(500) {
        arbtest::arbtest(check_registers_and_rings).seed(seed);
    }
}
