//! The fault ring, from the driver's side: records read as they are asked for.

use crate::buffer::Buffer;
use crate::error::Error;
use crate::transport::{Transport, TransportExt};
use npu_uapi::reg::Register;
use npu_uapi::regs::{FAULT_RECORDS, FaultBaseHigh, FaultBaseLow, FaultHead, FaultTail};
use npu_uapi::status::FaultRecord;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use zerocopy::FromBytes;

/// Records kept for whoever asks late.
const KEPT: usize = 256;
const RECORD_BYTES: usize = size_of::<FaultRecord>();

#[derive(Debug)]
pub(crate) struct Faults {
    ring: Buffer,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// Records read, as the device counts.
    tail: u32,
    records: VecDeque<FaultRecord>,
}

impl Faults {
    /// Bytes of the fault ring.
    pub(crate) const BYTES: usize = 64 * RECORD_BYTES;

    pub(crate) fn new(ring: Buffer) -> Self {
        Self { ring, log: Mutex::new(Log::default()) }
    }

    /// Tells a device that was just reset where the ring is.
    pub(crate) fn start(&self, transport: &dyn Transport) -> Result<(), Error> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.tail = 0;
        let (low, high) = halves(self.ring.iova().raw());
        transport.write(FaultBaseLow::from_raw(low))?;
        transport.write(FaultBaseHigh::from_raw(high))?;
        Ok(())
    }

    /// Reads what the device has written since the last call.
    pub(crate) fn drain(&self, transport: &dyn Transport) -> Result<(), Error> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let head = transport.read::<FaultHead>()?.get(FaultHead::VALUE);
        // A device that claims more than a ring lies: what the ring holds is all there is.
        let new = head.wrapping_sub(log.tail).min(FAULT_RECORDS);
        for index in (1..=new).rev() {
            let slot = head.wrapping_sub(index) % FAULT_RECORDS;
            let mut bytes = [0; RECORD_BYTES];
            let at = usize::try_from(slot).unwrap_or(0) * RECORD_BYTES;
            self.ring.read(at, &mut bytes)?;
            if let Ok(record) = FaultRecord::read_from_bytes(&bytes) {
                log.records.push_back(record);
            }
            if log.records.len() > KEPT {
                log.records.pop_front();
            }
        }
        log.tail = head;
        transport.write(FaultTail::from_raw(head))?;
        Ok(())
    }

    /// The record with number `sequence`, if it was not lost.
    pub(crate) fn find(&self, transport: &dyn Transport, sequence: u32) -> Option<FaultRecord> {
        if sequence == 0 {
            return None;
        }
        self.drain(transport).ok()?;
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.records.iter().rev().find(|record| record.sequence == sequence).copied()
    }

    /// The latest records, oldest first.
    pub(crate) fn recent(&self, transport: &dyn Transport) -> Result<Vec<FaultRecord>, Error> {
        self.drain(transport)?;
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(log.records.iter().copied().collect())
    }
}

/// Low and high half of an address, as registers take it.
pub(crate) fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
