//! Dumps read back, stay as they are, and are refused where they are none.

use super::*;
use crate::addr::{Iova, SlotId};
use crate::command::opcode;
use crate::event::kind;
use crate::fuzz::{check_dump, seeds};
use crate::image::slot_kind;
use crate::queue::{Binding, Completion, EntryHeader, Exec};
use crate::sealed::rehash;
use crate::status::Status;
use alloc::string::ToString;
use alloc::{format, vec};

fn dump() -> Dump {
    let image = crate::text::assemble(
        "image isa=1.0 features=0\nfill op=3 dst=s0+0x0 len=64 value=7\nfill op=4 dst=s0+0x40 len=64\nend op=5",
    );
    let words = Exec { header: EntryHeader::new(0x81, 9), program: 2, ..Exec::default() }.words();
    let done = Completion { job: 8, queue: 1, cycles: 400, ..Completion::default() };
    let fault = FaultRecord {
        sequence: 1,
        status: Status::HUNG,
        queue: 1,
        slot: SlotId(u16::MAX),
        job: 9,
        command: 1,
        op_id: 4,
        opcode: opcode::FILL,
        ..FaultRecord::default()
    };
    let binding = Binding { base: Iova::new(0x4000), len: 64, access: 1, ..Binding::default() };
    let slot = SlotRange {
        iova: Iova::new(0x9000),
        len: 128,
        slot: 0,
        kind: slot_kind::OUTPUT,
        access: 2,
        reserved: 0,
    };
    let event = Event { queue: 1, job: 9, program: 2, cycles: 400, ..Event::new(kind::OP_BEGIN) };
    Dump {
        summary: SummaryRow {
            reason: reason::HANG,
            status: Status::HUNG.0,
            state: 1,
            time_ms: 1_700_000_000_123,
            uptime_ns: 5_123_000,
            resets: 1,
            ..SummaryRow::default()
        },
        origin: "a test".into(),
        // What it was in that version.
        limits: Limits { isa_version: 0x1_0003, ..Limits::REFERENCE },
        fault: Some(fault),
        registers: vec![RegisterRow { offset: 0x14, value: 0x101 }],
        counters: Counters { jobs: 3, cycles: 400, ..Counters::default() },
        queues: vec![QueueRow {
            id: 1,
            sq_log2: 6,
            cq_log2: 6,
            sq_tail: 9,
            sq_head: 9,
            ..QueueRow::default()
        }],
        submissions: vec![SubmissionRow { queue: 1, is_fetched: 1, index: 8, words }],
        completions: vec![CompletionRow { queue: 1, index: 7, words: done.words(), reserved: 0 }],
        tables: vec![TableRow { id: 3, context: 1, bindings: 1, reserved: 0 }],
        bindings: vec![BindingRow { table: 3, reserved: 0, binding }],
        programs: vec![ProgramRow {
            id: 2,
            context: 1,
            commands: 3,
            slots: 1,
            names: 2,
            reserved: 0,
        }],
        job: Some(JobRow {
            queue: 1,
            opcode: 0x81,
            job: 9,
            program: 2,
            command: 1,
            commands: 3,
            ..JobRow::default()
        }),
        slots: vec![slot],
        listing: image.unwrap().commands,
        names: Names::new([(3, "/a/Conv"), (4, "/b/Relu")]),
        events: vec![Event { op_id: 4, index: 1, opcode: opcode::FILL, ..event }],
    }
}

#[test]
fn a_dump_reads_back() {
    let bytes = dump().to_bytes();
    assert_eq!(Dump::from_bytes(&bytes).unwrap(), dump());
    assert_eq!((dump().node(), dump().status()), (Some("/b/Relu"), Some(Status::HUNG)));
    let unnamed = Dump { fault: None, ..dump() };
    assert_eq!(unnamed.node(), Some("/b/Relu"), "by the command that the job is at");
}

#[test]
fn dumps_of_version_1_0_stay_as_they_are() {
    let lines = dump().to_bytes();
    let lines = lines
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_dump_says_what_failed_and_around_it() {
    insta::assert_snapshot!(dump().text());
}

#[test]
fn what_there_is_too_much_of_is_left_out() {
    let event = Event::new(kind::KICK);
    let many = Dump {
        origin: "x".repeat(5000),
        registers: vec![RegisterRow::default(); 1000],
        queues: vec![QueueRow::default(); 1000],
        submissions: vec![SubmissionRow::default(); 5000],
        completions: vec![CompletionRow::default(); 5000],
        tables: vec![TableRow::default(); 5000],
        bindings: vec![BindingRow::default(); 50_000],
        programs: vec![ProgramRow::default(); 5000],
        slots: vec![SlotRange::default(); 500],
        listing: vec![dump().listing[0]; 500],
        names: Names::new((0..5000).map(|op_id| (op_id, "name"))),
        events: (0..1000).map(|value| Event { value, ..event }).collect(),
        ..dump()
    };
    let bytes = many.to_bytes();
    assert!(bytes.len() <= MOST_BYTES, "{}", bytes.len());
    let read = Dump::from_bytes(&bytes).unwrap();
    assert_eq!((read.events.len(), read.events[0].value), (EVENTS, 1000 - EVENTS as u64));
    assert!(read.names.is_empty());
}

#[test]
fn foreign_new_short_and_damaged_dumps_are_told_apart() {
    let bytes = dump().to_bytes();
    let error = |bytes: &[u8]| Dump::from_bytes(bytes).unwrap_err();
    assert_eq!(error(b"ELF"), DumpError::Magic { found: 0 });
    let (found, want) = (bytes.len() as u64 - 1, bytes.len() as u64);
    assert_eq!(error(&bytes[..bytes.len() - 1]), DumpError::Length { found, want });
    let mut newer = bytes.clone();
    newer[4] = 2;
    assert_eq!(error(&newer), DumpError::Version { found: 2 });
    assert!(error(&newer).to_string().contains("it came with"));
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(error(&damaged), DumpError::Hash);
    // A section of a kind that only a newer minor version may have.
    let mut unknown = bytes;
    let entry = 64 + 16 * 16;
    unknown[entry] = 99;
    assert_eq!(error(&rehash(unknown.clone())), malformed("a section is of unknown kind"));
    unknown[6] = 1;
    let read = Dump::from_bytes(&rehash(unknown)).unwrap();
    assert_eq!(read, Dump { events: Vec::new(), ..dump() });
}

#[test]
fn no_bytes_make_the_reader_or_the_text_panic() {
    for seed in seeds(300) {
        arbtest::arbtest(|u| {
            let mut bytes = dump().to_bytes();
            for _ in 0..u.int_in_range(1..=4)? {
                let at = u.choose_index(bytes.len())?;
                bytes[at] = u.arbitrary()?;
            }
            bytes.truncate(u.int_in_range(bytes.len() - 8..=bytes.len())?);
            check_dump(&bytes);
            let len = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&len.to_le_bytes());
            check_dump(&rehash(bytes));
            Ok(())
        })
        .seed(seed);
    }
}
