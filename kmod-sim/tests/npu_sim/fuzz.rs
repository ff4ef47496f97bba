//! A function under a driver that writes anything anywhere: registers, ring words, mappings.

use super::DEADLINE;
use arbitrary::Unstructured;
use kmod_sim::pci::{BUS_MASTER, MSIX_ENABLE, offset};
use kmod_sim::{Config, Function};
use memmap2::{MmapMut, MmapRaw};
use npu_uapi::addr::Iova;
use npu_uapi::queue::{EntryHeader, Identify, opcode};
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    Abort, AdminBaseLow, AdminSize, Ctrl, FaultBaseLow, FaultHead, FaultTail, IrqMask, IrqStatus,
    Kick, MAGIC, Magic, Scratch, Status as State, state,
};
use npu_uapi::ring::{Driver, RingLayout, Words};
use npu_uapi::status::Status;
use npu_uapi::workers::Caller;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Where the driver's memory lies, and its words.
const BASE: u32 = 0x10_0000;
const WORDS: usize = 0x4000;
const BYTES: u64 = WORDS as u64 * 4;

struct Memory(MmapRaw);

impl Memory {
    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < WORDS);
        // SAFETY: the mapping has that many words, is aligned, and all access to it is atomic.
        unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().cast::<u32>().wrapping_add(index)) }
    }
}

impl Words for &Memory {
    fn word_count(&self) -> usize {
        WORDS
    }
    fn load(&self, index: usize, order: Ordering) -> u32 {
        self.word(index).load(order)
    }
    fn store(&self, index: usize, value: u32, order: Ordering) {
        self.word(index).store(value, order);
    }
}

fn map(
    function: &Function,
    memory: &Memory,
    at: u64,
    (start, len): (u64, u64),
    access: u8,
) -> bool {
    let (offset, len) = (usize::try_from(start).unwrap(), usize::try_from(len).unwrap());
    assert!(start + len as u64 <= BYTES);
    let host = memory.0.as_mut_ptr().wrapping_add(offset);
    // SAFETY: the memory lives longer than the function, and is accessed by atomics only.
    unsafe { function.map(Iova::new(at), host, len, access) }.is_ok()
}

/// Sets the admin queue up at the start of the memory.
fn enable(function: &Function) {
    function.config_write(offset::COMMAND, BUS_MASTER);
    function.write32(AdminBaseLow::OFFSET, BASE);
    function.write32(AdminBaseLow::OFFSET + 4, 0);
    let size = AdminSize::default().with(AdminSize::SQ_LOG2, 4).with(AdminSize::CQ_LOG2, 4);
    function.write32(AdminSize::OFFSET, size.raw());
    function.write32(Ctrl::OFFSET, Ctrl::default().with(Ctrl::ENABLE, true).raw());
}

/// A number that means something here, or anything.
fn number(u: &mut Unstructured<'_>) -> arbitrary::Result<u32> {
    Ok(match u.int_in_range(0..=7)? {
        0 => u.arbitrary()?,
        1 => 1 << u.int_in_range(0..=31)?,
        2 => BASE + u.int_in_range(0..=0x100)? * 64,
        3 => u32::MAX - u.int_in_range(0..=20)?,
        _ => u.int_in_range(0..=20)?,
    })
}

/// An entry of either kind of queue, near to one that makes sense, in slot `tail` of the ring at `ring`.
fn push(
    u: &mut Unstructured<'_>,
    memory: &Memory,
    ring: usize,
    tail: u32,
) -> arbitrary::Result<()> {
    let entry = ring + 32 + usize::try_from(tail % 16).unwrap() * 16;
    let opcode =
        if u.ratio(1, 2)? { u.int_in_range(0..=11)? } else { u.int_in_range(0x80..=0x85)? };
    memory.word(entry).store(opcode, Ordering::Relaxed);
    for at in 1..16 {
        let value = if u.ratio(2, 3)? { 0 } else { number(u)? };
        memory.word(entry + at).store(value, Ordering::Relaxed);
    }
    memory.word(entry + 2).store(BASE + u.int_in_range(0..=0xff)? * 64, Ordering::Relaxed);
    memory.word(ring).store(tail.wrapping_add(1), Ordering::Relaxed);
    Ok(())
}

fn act(u: &mut Unstructured<'_>, function: &Function, memory: &Memory) -> arbitrary::Result<()> {
    const REGISTERS: [u32; 14] = [
        Magic::OFFSET,
        Ctrl::OFFSET,
        State::OFFSET,
        AdminBaseLow::OFFSET,
        AdminSize::OFFSET,
        Kick::OFFSET,
        Kick::OFFSET,
        Abort::OFFSET,
        FaultBaseLow::OFFSET,
        FaultHead::OFFSET,
        FaultTail::OFFSET,
        IrqStatus::OFFSET,
        IrqMask::OFFSET,
        Scratch::OFFSET,
    ];
    // Queues that the device may have made lie anywhere; two places are tried.
    let ring = *u.choose(&[0, 0x1000])?;
    match u.int_in_range(0..=10)? {
        0 => function.write32(*u.choose(&REGISTERS)?, number(u)?),
        1 => function.write32(number(u)?, number(u)?),
        2 => function.config_write(number(u)?, number(u)?),
        3 => function.msix_write(number(u)?, number(u)?),
        4 => {
            let at = usize::from(u.int_in_range(0..=40_u8)?);
            memory.word(ring + at).store(number(u)?, Ordering::Relaxed);
        }
        5 => {
            let at = u64::from(u.int_in_range(0..=31_u8)?) << 12;
            let (start, len) =
                (u64::from(u.int_in_range(0..=7_u8)?) << 12, 4096 << u.int_in_range(0..=2)?);
            map(function, memory, at, (start, len), u.int_in_range(0..=4)?);
        }
        6 => {
            let at = u64::from(u.int_in_range(0..=31_u8)?) << 12;
            let _ = function.unmap(Iova::new(at), 4096 << u.int_in_range(0..=2)?);
        }
        7 if u.ratio(1, 8)? => {
            let _ = function.unmap(Iova::new(BASE.into()), BYTES);
        }
        7 => {
            map(function, memory, BASE.into(), (0, BYTES), 3);
        }
        8 => {
            // An I/O queue at the second place, in the first context.
            let tail = memory.word(0).load(Ordering::Relaxed);
            let entry = 32 + usize::try_from(tail % 16).unwrap() * 16;
            push(u, memory, 0, tail)?;
            let words = [opcode::CREATE_QUEUE.into(), 5, BASE + 0x4000, 0, 1, 0x0001_0404];
            for (at, word) in words.into_iter().enumerate() {
                memory.word(entry + at).store(word, Ordering::Relaxed);
            }
        }
        _ => push(u, memory, ring, memory.word(ring).load(Ordering::Relaxed))?,
    }
    Ok(())
}

#[test]
fn no_sequence_of_register_and_ring_writes_breaks_a_function() {
    let config = Config::parse("sram=64K").unwrap();
    for seed in npu_uapi::fuzz::seeds(500) {
        arbtest::arbtest(|u| {
            let start = Instant::now();
            let memory = Memory(MmapMut::map_anon(WORDS * 4).unwrap().into());
            let function = Function::new(config).unwrap();
            assert!(map(&function, &memory, BASE.into(), (0, BYTES), 3));
            enable(&function);
            for _ in 0..u.int_in_range(0..=60)? {
                act(u, &function, &memory)?;
                if u.ratio(1, 2)? {
                    function.write32(Kick::OFFSET, u.int_in_range(0..=2)?);
                    function.drive(&Caller);
                }
                assert_eq!(function.read32(Magic::OFFSET), MAGIC);
                assert!(start.elapsed() < DEADLINE, "a hang");
            }
            // Whatever it was, a reset makes it good.
            function.write32(Ctrl::OFFSET, Ctrl::default().with(Ctrl::RESET, true).raw());
            function.drive(&Caller);
            let found = State::from_raw(function.read32(State::OFFSET)).get(State::STATE);
            assert_eq!(found, state::RESET);
            for at in 0..32_u64 {
                for len in [4096, 8192, 16384] {
                    let _ = function.unmap(Iova::new(at << 12), len);
                }
            }
            let _ = function.unmap(Iova::new(BASE.into()), BYTES);
            (0..WORDS).for_each(|at| memory.word(at).store(0, Ordering::Relaxed));
            assert!(map(&function, &memory, BASE.into(), (0, BYTES), 3));
            function.config_write(offset::MSIX, MSIX_ENABLE);
            enable(&function);
            let mut admin = Driver::new(&memory, RingLayout::new(4, 4).unwrap()).unwrap();
            let (header, out) =
                (EntryHeader::new(opcode::IDENTIFY, 3), Iova::new(u64::from(BASE) + 0x8000));
            let entry = Identify { header, out, ..Identify::default() };
            admin.push(&entry.words()).unwrap();
            admin.publish();
            function.write32(Kick::OFFSET, 0);
            function.drive(&Caller);
            let done = npu_uapi::queue::Completion::from_words(admin.reap().unwrap().unwrap());
            assert_eq!((done.job, done.status), (3, Status::OK));
            Ok(())
        })
        .seed(seed);
    }
}
