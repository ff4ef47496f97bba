//! What work costs, roughly: on the host, on the NPU, and on the way between.
//!
//! Round figures of one present-day server core and of the device's own limits; good for telling a
//! group that pays from one that does not, and for ordering cuts, not for predicting times.

use npu_uapi::limits::Limits;

/// Multiplications of 8-bit numbers that the CPU provider does in a nanosecond.
const HOST_MACS_PER_NS: u64 = 50;
/// Elements that it moves or maps in a nanosecond.
const HOST_ELEMENTS_PER_NS: u64 = 4;
/// What a kernel of the CPU provider costs before its first element.
const HOST_NODE_NS: u64 = 1_000;
/// Bytes that a copy moves in a nanosecond.
const COPIED_BYTES_PER_NS: u64 = 10;
/// What a program costs beside its work: a call, a job, a completion.
pub const PROGRAM_NS: u64 = 20_000;

/// An amount of work.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Work {
    /// Nodes that compute something.
    pub nodes: u64,
    /// Multiplications.
    pub macs: u64,
    /// Elements written.
    pub elements: u64,
}

impl Work {
    /// Adds `other`.
    pub fn add(&mut self, other: Self) {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.macs = self.macs.saturating_add(other.macs);
        self.elements = self.elements.saturating_add(other.elements);
    }

    /// Nanoseconds of the CPU provider.
    pub fn host_ns(self) -> u64 {
        let products = self.macs / HOST_MACS_PER_NS;
        let moves = self.elements / HOST_ELEMENTS_PER_NS;
        products.saturating_add(moves).saturating_add(self.nodes.saturating_mul(HOST_NODE_NS))
    }

    /// Nanoseconds of the NPU: the array at its peak, and each byte once to and from on-chip memory.
    pub fn npu_ns(self, limits: &Limits) -> u64 {
        let products = self.macs / u64::from(limits.macs_per_cycle.max(1));
        let moves = self.elements.saturating_mul(2) / u64::from(limits.sram_bytes_per_cycle.max(1));
        let cycles = products.saturating_add(moves);
        cycles.saturating_mul(1_000_000) / u64::from(limits.clock_khz.max(1))
    }
}

/// Nanoseconds that `bytes` take across the border.
pub fn crossing_ns(bytes: u64) -> u64 {
    bytes / COPIED_BYTES_PER_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_work_is_cheaper_on_the_npu_and_small_work_is_not_worth_a_program() {
        let gain = |work: Work| {
            let npu = work.npu_ns(&Limits::REFERENCE) + PROGRAM_NS;
            i128::from(work.host_ns()) - i128::from(npu)
        };
        assert!(gain(Work { nodes: 50, macs: 4_000_000_000, elements: 10_000_000 }) > 0);
        assert!(gain(Work { nodes: 2, macs: 0, elements: 1000 }) < 0);
        assert_eq!(crossing_ns(1000), 100);
    }

    #[test]
    fn work_beyond_counting_is_a_large_number_not_a_panic() {
        let mut work = Work { nodes: u64::MAX, macs: u64::MAX, elements: u64::MAX };
        work.add(work);
        assert_eq!(work.host_ns(), u64::MAX);
        assert!(work.npu_ns(&Limits::REFERENCE) > 0);
    }
}
