//! What a function has done since its last reset.

use crate::timing::{self, Cost};
use npu_uapi::addr::SlotId;
use npu_uapi::command::Command;
use npu_uapi::limits::Limits;
use npu_uapi::queue::Counters;

/// What one command costs in modelled time and traffic.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Charge {
    pub(crate) cycles: u64,
    pub(crate) macs: u64,
    pub(crate) dram_read: u64,
    pub(crate) dram_written: u64,
    /// Cycles by engine: MAC array, vector unit, DMA.
    pub(crate) engines: [u64; 3],
}

impl Charge {
    /// The cost of `command` on a device of `limits`.
    pub(crate) fn of(command: &Command, limits: &Limits, is_sram: &dyn Fn(SlotId) -> bool) -> Self {
        let Cost { cycles, macs, dram_read, dram_written, compute, dma, .. } =
            timing::cycles(command, limits, is_sram);
        let (array, vector) = if macs > 0 { (compute, 0) } else { (0, compute) };
        Self { cycles, macs, dram_read, dram_written, engines: [array, vector, dma] }
    }
}

/// Adds a finished command to the counters, which saturate.
pub(crate) fn charge(counters: &mut Counters, charge: Charge) {
    counters.commands = counters.commands.saturating_add(1);
    counters.cycles = counters.cycles.saturating_add(charge.cycles);
    counters.macs = counters.macs.saturating_add(charge.macs);
    counters.dram_read = counters.dram_read.saturating_add(charge.dram_read);
    counters.dram_written = counters.dram_written.saturating_add(charge.dram_written);
    let [array, vector, dma] = charge.engines;
    counters.array_cycles = counters.array_cycles.saturating_add(array);
    counters.vector_cycles = counters.vector_cycles.saturating_add(vector);
    counters.dma_cycles = counters.dma_cycles.saturating_add(dma);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_saturate() {
        let mut counters = Counters::default();
        for _ in 0..2 {
            charge(&mut counters, Charge { cycles: u64::MAX, ..Charge::default() });
        }
        assert_eq!((counters.cycles, counters.commands), (u64::MAX, 2));
    }
}
