//! What every bus device has: registers, interrupts, memory transfers, and faults when misused.

use super::{ARRIVAL, Bench, Figures};
use anyhow::{Context as _, Result, bail, ensure};
use libnpu::{Access, Caller, Error, Fault, Memory, Transport, TransportExt};
use npu_uapi::queue::{EntryHeader, FillEntry, Nop, opcode};
use npu_uapi::reg::{self, Register};
use npu_uapi::regs::{IrqMask, IrqStatus, Magic, Scratch, TABLE};
use npu_uapi::status::{FaultRecord, Status};
use std::time::Instant;

/// Scratch keeps every pattern.
pub(super) fn patterns(bench: &Bench) -> Result<Figures> {
    let transport = bench.device.transport();
    let walking = (0..32).flat_map(|bit| [1_u32 << bit, !(1 << bit)]);
    let patterns: Vec<u32> =
        [0, u32::MAX, 0x5555_5555, 0xaaaa_aaaa].into_iter().chain(walking).collect();
    for &pattern in &patterns {
        transport.write(Scratch::from_raw(pattern))?;
        let found = transport.read::<Scratch>()?.raw();
        ensure!(found == pattern, "Scratch reads {found:#010x} after {pattern:#010x} was written");
    }
    Ok(Figures::new(format!("{} patterns", patterns.len())))
}

/// Read-only registers, reserved bits and holes are not written, and each attempt is recorded.
pub(super) fn access_rules(bench: &Bench) -> Result<Figures> {
    let transport = bench.device.transport();
    let magic = transport.read::<Magic>()?;
    let hole = (0..).step_by(4).find(|at| TABLE.iter().all(|info| info.offset != *at));
    let hole = hole.context("the register map has no hole")?;
    let read_only = TABLE.iter().filter(|info| info.access == reg::Access::ReadOnly);
    let reserved = TABLE
        .iter()
        .filter(|info| info.access == reg::Access::ReadWrite && info.defined != u32::MAX);
    let read_only = read_only.map(|info| (info.name, info.offset, info.defined));
    let reserved = reserved.map(|info| (info.name, info.offset, !info.defined));
    let attempts: Vec<_> = read_only.chain(reserved).chain([("a hole", hole, 1)]).collect();
    for &(name, offset, value) in &attempts {
        let before = transport.read32(offset)?;
        let known = bench.device.faults()?.last().map_or(0, |fault| fault.sequence);
        transport.write32(offset, value)?;
        let faults = bench.device.faults()?;
        let fault = faults.last().filter(|fault| fault.sequence != known);
        let fault = fault.with_context(|| format!("no fault after a write to {name}"))?;
        ensure!(fault.offset == u64::from(offset), "the fault of {name} names {:#x}", fault.offset);
        // What counts faults and beats moves by itself.
        let moves = name.starts_with("Fault") || name.starts_with("Heartbeat");
        let after = transport.read32(offset)?;
        ensure!(moves || after == before, "{name} reads {after:#x}, it was {before:#x}");
    }
    ensure!(transport.read::<Magic>()? == magic, "the magic number changed");
    Ok(Figures::new(format!("{} forbidden writes dropped and recorded", attempts.len())))
}

/// Offset of the MSI-X capability in configuration space.
fn msix_capability(transport: &dyn Transport) -> Result<u32> {
    let mut at = transport.config_read(0x34)? & 0xfc;
    for _ in 0..48 {
        let head = transport.config_read(at)?;
        match (at, head & 0xff) {
            (0, _) => break,
            (_, 0x11) => return Ok(at),
            _ => at = head >> 8 & 0xfc,
        }
    }
    bail!("the device has no MSI-X capability")
}

/// Makes sure that as many interrupts came since `before` as are `expected` of `what`; those that are not yet
/// here have the time to come.
fn arrive(bench: &Bench, before: u64, expected: u64, what: &str) -> Result<()> {
    let transport = bench.device.transport();
    let mut count = transport.interrupts(0);
    bench.wait(ARRIVAL, |most| -> Result<()> {
        let deadline = Instant::now() + most;
        while count - before < expected && Instant::now() < deadline {
            count = transport.wait(0, count, deadline, &Caller)?;
        }
        Ok(())
    })?;
    let raised = count - before;
    ensure!(
        raised >= expected,
        "{what}: the cause is pending, but its interrupt did not come within {} s",
        ARRIVAL.as_secs()
    );
    ensure!(raised == expected, "{what}: {raised} interrupts, not {expected}");
    Ok(())
}

/// A cause raises vector 0 once; not while its mask, or the vectors', is closed.
pub(super) fn interrupt(bench: &Bench) -> Result<Figures> {
    const MASK_ALL: u32 = 1 << 30;
    let transport = bench.device.transport().as_ref();
    let (mask, hole) = (transport.read::<IrqMask>()?, 0x0ffc);
    let count_one = |expected: u64, what: &str| -> Result<()> {
        transport.write(IrqStatus::from_raw(IrqStatus::DEFINED))?;
        let before = transport.interrupts(0);
        transport.write32(hole, 0)?;
        let pending = transport.read::<IrqStatus>()?.get(IrqStatus::FAULT);
        ensure!(pending, "{what}: the cause is not pending");
        arrive(bench, before, expected, what)
    };
    transport.write(mask.with(IrqMask::FAULT, false))?;
    count_one(0, "cause masked")?;
    transport.write(mask.with(IrqMask::FAULT, true))?;
    count_one(1, "cause open")?;
    let msix = msix_capability(transport)?;
    let control = transport.config_read(msix)?;
    transport.config_write(msix, control | MASK_ALL)?;
    count_one(0, "vectors masked")?;
    let before = transport.interrupts(0);
    transport.config_write(msix, control)?;
    arrive(bench, before, 1, "vectors open again")?;
    transport.write(mask)?;
    transport.write(IrqStatus::from_raw(IrqStatus::DEFINED))?;
    bench.device.faults()?;
    Ok(Figures::new("raised 2, held back 2, delivered late 1"))
}

/// Sizes and alignments of the transfers.
const TRANSFERS: &[(usize, usize, usize)] = &[
    (0, 0, 1),
    (1, 2, 3),
    (0, 0, 64),
    (63, 65, 127),
    (0, 0, 4096),
    (5, 9, 100_003),
    (64, 0, 1 << 20),
];
/// Bytes of the buffers that they lie in.
const ROOM: usize = (1 << 20) + 4096;

fn memory(buffer: &libnpu::Buffer, at: usize, len: usize, access: Access) -> Result<Memory> {
    Ok(Memory::buffer(buffer, at as u64, len as u64, access)?)
}

/// FILL writes its bytes and no others.
pub(super) fn fill(bench: &Bench) -> Result<Figures> {
    let buffer = bench.device.allocate(ROOM)?;
    let (mut want, mut cycles, mut bytes) = (vec![0; ROOM], 0, 0);
    for (value, &(_, at, len)) in (1..).zip(TRANSFERS) {
        let job = bench.context.fill(&memory(&buffer, at, len, Access::Write)?, value)?;
        cycles += bench.finish(&job, &Caller)?.cycles;
        bytes += len;
        want[at..at + len].fill(value);
        ensure!(buffer.to_vec() == want, "{len} bytes at {at}: wrong content");
    }
    let detail = format!("{} fills, {bytes} bytes", TRANSFERS.len());
    Ok(Figures { cycles, detail, ..Figures::default() })
}

/// COPY moves its bytes and no others.
pub(super) fn copy(bench: &Bench) -> Result<Figures> {
    let (source, target) = (bench.device.allocate(ROOM)?, bench.device.allocate(ROOM)?);
    let pattern: Vec<u8> = super::scalar::codes(ROOM, 1);
    source.write(0, &pattern)?;
    let (mut want, mut cycles, mut bytes) = (vec![0; ROOM], 0, 0);
    for &(from, to, len) in TRANSFERS {
        let source = memory(&source, from, len, Access::Read)?;
        let target_bytes = memory(&target, to, len, Access::Write)?;
        let job = bench.context.copy(&source, &target_bytes)?;
        cycles += bench.finish(&job, &Caller)?.cycles;
        bytes += len;
        want[to..to + len].copy_from_slice(&pattern[from..from + len]);
        ensure!(target.to_vec() == want, "{len} bytes from {from} to {to}: wrong content");
    }
    let detail = format!("{} copies, {bytes} bytes", TRANSFERS.len());
    Ok(Figures { cycles, detail, ..Figures::default() })
}

/// The fault that an entry ends with, and its record; another entry runs after it.
fn fault(
    bench: &Bench,
    entry: impl FnOnce(u32) -> [u32; 16],
    want: Status,
) -> Result<(Fault, FaultRecord)> {
    let job = bench.context.submit_words(entry)?;
    let fault = match bench.finish(&job, &Caller) {
        Ok(_) => bail!("the entry completed, {want:?} was expected"),
        Err(Error::Fault(fault)) => *fault,
        Err(error) => return Err(error.into()),
    };
    ensure!(fault.status == want, "{:?} instead of {want:?}: {fault}", fault.status);
    let record = fault.record.context("the device left no fault record")?;
    ensure!(record.job == job.number(), "the record names job {}", record.job);
    ensure!(record.queue == bench.context.queue_id(), "the record names queue {}", record.queue);
    bench.finish(&bench.context.nop()?, &Caller).context("the device does not go on")?;
    Ok((fault, record))
}

/// An address that is not mapped gives a record with the address.
pub(super) fn unmapped(bench: &Bench) -> Result<Figures> {
    let dst = npu_uapi::addr::Iova::new(0x40);
    let entry = |job| {
        let header = EntryHeader::new(opcode::FILL, job);
        FillEntry { header, dst, len: 4096, value: 1, ..FillEntry::default() }.words()
    };
    let (fault, record) = fault(bench, entry, Status::UNMAPPED_IOVA)?;
    let found = (record.iova, record.len, record.access);
    ensure!(found == (dst.raw(), 4096, 2), "the record says {found:x?}");
    Ok(Figures::new(fault.to_string()))
}

/// Unknown opcodes and reserved bits are refused.
pub(super) fn bad_entry(bench: &Bench) -> Result<Figures> {
    let nop = |code, job| Nop { header: EntryHeader::new(code, job), ..Nop::default() }.words();
    let (_, record) = fault(bench, |job| nop(0x7f, job), Status::UNKNOWN_OPCODE)?;
    ensure!(record.opcode == 0x7f, "the record names opcode {:#x}", record.opcode);
    let reserved = |job| {
        let mut words = nop(opcode::NOP, job);
        words[15] = 1;
        words
    };
    let (fault, _) = fault(bench, reserved, Status::RESERVED_FIELD)?;
    Ok(Figures::new(fault.to_string()))
}
