//! Faults: what a failed entry reports, and the ring in which the records lie for the driver.

use crate::guest::{Guest, Unreachable};
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::regs::FAULT_RECORDS;
use npu_uapi::status::{FaultRecord, NO_CAUSE, NOT_APPLICABLE, Status};
use zerocopy::IntoBytes;

/// A fault before it has a number: status, and where in program, slot or entry it lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Problem(FaultRecord);

impl Problem {
    pub(crate) fn new(status: Status) -> Self {
        Self(FaultRecord {
            status,
            cause: NO_CAUSE,
            slot: SlotId(u16::MAX),
            command: NOT_APPLICABLE,
            op_id: NOT_APPLICABLE,
            ..FaultRecord::default()
        })
    }

    /// The problem that a record describes, before it has a number.
    pub(crate) fn from_record(record: FaultRecord) -> Self {
        Self(record)
    }

    pub(crate) fn status(&self) -> Status {
        self.0.status
    }

    /// In bytes `offset..offset + len` of the slot, image or entry.
    pub(crate) fn at(mut self, offset: u64, len: u64) -> Self {
        (self.0.offset, self.0.len) = (offset, len);
        self
    }

    pub(crate) fn cause(mut self, cause: u16) -> Self {
        self.0.cause = cause;
        self
    }

    pub(crate) fn slot(mut self, slot: SlotId) -> Self {
        self.0.slot = slot;
        self
    }

    pub(crate) fn access(mut self, access: u8) -> Self {
        self.0.access = access;
        self
    }

    pub(crate) fn iova(mut self, iova: Iova) -> Self {
        self.0.iova = iova.raw();
        self
    }

    pub(crate) fn command(mut self, index: u32, op_id: u32, opcode: u8) -> Self {
        (self.0.command, self.0.op_id, self.0.opcode) = (index, op_id, opcode);
        self
    }

    /// The record, for an entry with `opcode` that was `job` of `queue`.
    fn record(self, sequence: u32, queue: u16, job: u32, opcode: u8, cycles: u64) -> FaultRecord {
        let opcode = if self.0.command == NOT_APPLICABLE { opcode } else { self.0.opcode };
        FaultRecord { sequence, queue, job, opcode, cycles, ..self.0 }
    }
}

impl From<Unreachable> for Problem {
    fn from(fault: Unreachable) -> Self {
        Self::new(fault.status).iova(fault.iova).at(0, fault.len).access(fault.access)
    }
}

/// Whom a problem happened to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Victim {
    pub(crate) queue: u16,
    pub(crate) job: u32,
    pub(crate) opcode: u8,
}

/// The fault ring, from the device's side.
#[derive(Debug, Default)]
pub(crate) struct FaultRing {
    /// Number of the latest fault.
    pub(crate) sequence: u32,
    /// Records written.
    pub(crate) head: u32,
    /// Records lost.
    pub(crate) lost: u32,
}

impl FaultRing {
    /// Numbers `problem` and writes its record where there is room; returns it.
    ///
    /// `tail` is the driver's word for how far it has read: out of range it only loses records.
    pub(crate) fn report(
        &mut self,
        guest: &Guest,
        (base, tail): (Iova, u32),
        (problem, victim): (Problem, Victim),
        cycles: u64,
    ) -> FaultRecord {
        // Zero says "no fault", so the count skips it when it wraps.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        let Victim { queue, job, opcode } = victim;
        let record = problem.record(self.sequence, queue, job, opcode, cycles);
        let has_room = base != Iova::new(0) && self.head.wrapping_sub(tail) < FAULT_RECORDS;
        let at = base.checked_add(u64::from(self.head % FAULT_RECORDS) * 64);
        let is_written =
            has_room && at.is_some_and(|at| guest.write(at, record.as_bytes()).is_ok());
        if is_written {
            self.head = self.head.wrapping_add(1);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    #[test]
    fn records_land_in_order_until_the_ring_is_full_and_then_are_counted_as_lost() {
        let mut memory = vec![0_u8; 64 * 64];
        let mut guest = Guest::default();
        // SAFETY: the memory outlives the table.
        unsafe { guest.map(Iova::new(0x1000), (memory.as_mut_ptr(), None), memory.len(), 3) }
            .unwrap();
        let mut ring = FaultRing::default();
        let problem = Problem::new(Status::UNBOUND_SLOT).slot(SlotId(3));
        let victim = Victim { queue: 2, job: 9, opcode: 0x81 };
        for sequence in 1..=65 {
            let base = (Iova::new(0x1000), 0);
            assert_eq!(ring.report(&guest, base, (problem, victim), 5).sequence, sequence);
        }
        assert_eq!((ring.head, ring.lost), (64, 1));
        ring.report(&guest, (Iova::new(0x1000), 64), (problem, victim), 5);
        let first = FaultRecord::read_from_bytes(&memory[..64]).unwrap();
        assert_eq!((first.sequence, first.slot, first.job), (66, SlotId(3), 9));
        assert_eq!((first.command, first.status), (NOT_APPLICABLE, Status::UNBOUND_SLOT));
    }
}
