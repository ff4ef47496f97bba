//! The device in this process: no daemon, no root, no VM. The only file that knows the simulator.

use super::{Access, Transport, TransportError};
use crate::dma::DmaMemory;
use kmod_sim::inject::Injector;
use kmod_sim::pci::{self, offset};
use kmod_sim::{Config, Function, MapError};
use npu_uapi::addr::Iova;
use npu_uapi::telemetry::{PAGE_BYTES, Writer};
use npu_uapi::workers::Workers;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Words of its telemetry page.
const PAGE_WORDS: usize = PAGE_BYTES as usize / 4;

/// A virtual device that lives as long as this value.
#[derive(Debug)]
pub struct InProcess {
    // Before `mapped`: the device goes before the memory that it reaches.
    function: Function,
    /// Keeps mapped memory alive, by IOVA.
    mapped: Mutex<HashMap<u64, Arc<DmaMemory>>>,
    /// The telemetry page as it was when its first word was read.
    telemetry: Mutex<Vec<u32>>,
}

impl InProcess {
    /// A device with the options of a device string behind `sim:`.
    pub fn new(options: &str) -> Result<Self, TransportError> {
        let start = |why: String| TransportError::Start { why };
        let config = Config::parse(options).map_err(|error| start(error.to_string()))?;
        let function = Function::new(config).map_err(|error| start(error.to_string()))?;
        let device = Self { function, mapped: Mutex::default(), telemetry: Mutex::default() };
        device.set_up();
        Ok(device)
    }

    /// Makes the device misbehave, for tests of what stands above.
    pub fn injector(&self) -> &Arc<Injector> {
        self.function.injector()
    }

    /// The device itself, for those who manage it.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// The words of a telemetry page, as things are now.
    fn shown(&self) -> Vec<u32> {
        let words = (0..PAGE_WORDS).map(|_| AtomicU32::new(0)).collect::<Arc<[_]>>();
        // It is long enough.
        let Ok(mut page) = Writer::new(words) else { return Vec::new() };
        page.show(&self.function.snapshot());
        page.words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// What a bus driver does to a function: lets it access memory, opens every vector.
    fn set_up(&self) {
        self.function.config_write(offset::COMMAND, pci::MEMORY_SPACE | pci::BUS_MASTER);
        for vector in 0..self.function.limits().vectors {
            self.function.msix_write(vector * 16 + 12, 0);
        }
        self.function.config_write(offset::MSIX, pci::MSIX_ENABLE);
    }
}

fn map_error(error: MapError) -> TransportError {
    TransportError::Map { why: error.to_string() }
}

impl Transport for InProcess {
    fn read32(&self, offset: u32) -> Result<u32, TransportError> {
        self.function.injector().delay_reply();
        Ok(self.function.read32(offset))
    }

    fn write32(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        // The function's lock orders this behind the stores of this thread.
        self.function.write32(offset, value);
        Ok(())
    }

    fn config_read(&self, offset: u32) -> Result<u32, TransportError> {
        Ok(self.function.config_read(offset))
    }

    fn config_write(&self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.function.config_write(offset, value);
        Ok(())
    }

    fn telemetry_read(&self, offset: u32) -> Result<u32, TransportError> {
        let mut page = self.telemetry.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 {
            *page = self.shown();
        }
        let index = usize::try_from(offset / 4).unwrap_or(usize::MAX);
        let word = page.get(index).copied();
        word.ok_or_else(|| TransportError::Refused {
            device: self.describe(),
            command: "a telemetry read",
            why: format!(
                "there is no word {offset:#x} of BAR4, or the first was not read before it"
            ),
        })
    }

    fn telemetry_page(&self, place: u32) -> Result<Option<Vec<u32>>, TransportError> {
        if place > 0 {
            return self.telemetry_read(place.saturating_mul(PAGE_BYTES)).map(|_| None);
        }
        Ok(Some(self.shown()))
    }

    fn map(&self, memory: Arc<DmaMemory>, at: Iova, access: Access) -> Result<(), TransportError> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `mapped` keeps the memory until `unmap` succeeds or this value is dropped, the
        // function first; `DmaMemory` gives out no references to it.
        unsafe { self.function.map(at, memory.as_ptr(), memory.len(), access.bits()) }
            .map_err(map_error)?;
        mapped.insert(at.raw(), memory);
        Ok(())
    }

    fn unmap(&self, at: Iova) -> Result<(), TransportError> {
        let lock = || self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let len = lock().get(&at.raw()).map_or(0, |memory| memory.len() as u64);
        // Not under our lock: this may wait for a job.
        self.function.unmap(at, len).map_err(map_error)?;
        lock().remove(&at.raw());
        Ok(())
    }

    fn iova_ranges(&self) -> Vec<Range<u64>> {
        // 48 bits, and nothing at the bottom, so that a forgotten address faults.
        Vec::from_iter(std::iter::once(0x20_0000..1 << 48))
    }

    fn reaches_process_memory(&self) -> bool {
        true
    }

    fn runs_by_itself(&self) -> bool {
        false
    }

    fn interrupts(&self, vector: u16) -> u64 {
        self.function.interrupts(vector)
    }

    fn wait(
        &self,
        vector: u16,
        seen: u64,
        deadline: Instant,
        workers: &dyn Workers,
    ) -> Result<u64, TransportError> {
        Ok(self.function.wait(vector, seen, deadline, workers))
    }

    fn wake(&self, vector: u16) {
        self.function.wake(vector);
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.function.config_write(offset::DEVICE_CONTROL, pci::FUNCTION_RESET);
        self.set_up();
        Ok(())
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn threads(&self) -> Option<usize> {
        self.function.config().threads
    }

    fn describe(&self) -> String {
        format!("in-process emulator, {} kernels", self.function.isa().name())
    }
}
