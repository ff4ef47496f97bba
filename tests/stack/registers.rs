//! A device in this process whose registers read as a test says; all else is the device's own.

use libnpu::transport::inproc::InProcess;
use libnpu::{Access, DmaMemory, Transport, TransportError, Workers};
use npu_uapi::addr::Iova;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Reads a register of the device, or makes something up.
pub(crate) trait Read:
    Fn(&InProcess, u32) -> Result<u32, TransportError> + Send + Sync
{
}

impl<F: Fn(&InProcess, u32) -> Result<u32, TransportError> + Send + Sync> Read for F {}

pub(crate) struct Registers<R> {
    device: InProcess,
    read: R,
}

impl<R: Read> Registers<R> {
    pub(crate) fn new(read: R) -> Self {
        Self { device: InProcess::new("").unwrap(), read }
    }
}

impl<R> fmt::Debug for Registers<R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.device.fmt(out)
    }
}

impl<R: Read> Transport for Registers<R> {
    fn read32(&self, offset: u32) -> Result<u32, TransportError> {
        (self.read)(&self.device, offset)
    }
    fn write32(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.device.write32(offset, value)
    }
    fn config_read(&self, offset: u32) -> Result<u32, TransportError> {
        self.device.config_read(offset)
    }
    fn config_write(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.device.config_write(offset, value)
    }
    fn map(&self, memory: Arc<DmaMemory>, at: Iova, access: Access) -> Result<(), TransportError> {
        self.device.map(memory, at, access)
    }
    fn unmap(&self, at: Iova) -> Result<(), TransportError> {
        self.device.unmap(at)
    }
    fn iova_ranges(&self) -> Vec<Range<u64>> {
        self.device.iova_ranges()
    }
    fn reaches_process_memory(&self) -> bool {
        self.device.reaches_process_memory()
    }
    fn runs_by_itself(&self) -> bool {
        self.device.runs_by_itself()
    }
    fn interrupts(&self, vector: u16) -> u64 {
        self.device.interrupts(vector)
    }
    fn wait(
        &self,
        vector: u16,
        seen: u64,
        deadline: Instant,
        workers: &dyn Workers,
    ) -> Result<u64, TransportError> {
        self.device.wait(vector, seen, deadline, workers)
    }
    fn wake(&self, vector: u16) {
        self.device.wake(vector);
    }
    fn reset(&self) -> Result<(), TransportError> {
        self.device.reset()
    }
    fn is_gone(&self) -> bool {
        self.device.is_gone()
    }
    fn threads(&self) -> Option<usize> {
        self.device.threads()
    }
    fn describe(&self) -> String {
        self.device.describe()
    }
}
