//! PCI face of a function: configuration space, and the MSI-X table and pending bits in BAR2.
//!
//! ```text
//! 0x00  header: ids, command, class, BAR0 (registers), BAR2 (MSI-X), BAR4 (telemetry)
//! 0x40  MSI-X capability          BAR2 + 0x000  vector table, 16 bytes a vector
//! 0x50  PCI Express capability    BAR2 + 0x800  pending bits
//! ```

use npu_uapi::regs::pci;
use npu_uapi::{mailbox, telemetry};

/// Bytes of configuration space.
pub const CONFIG_BYTES: u32 = 256;
/// Bytes of BAR2.
pub const BAR2_BYTES: u32 = 4096;

/// Offsets in configuration space and BAR2 that a driver uses.
pub mod offset {
    /// Command, low half; status, high half.
    pub const COMMAND: u32 = 0x04;
    /// MSI-X capability: id, next, message control in the high half.
    pub const MSIX: u32 = 0x40;
    /// PCI Express capability.
    pub const EXPRESS: u32 = 0x50;
    /// Device control of the PCI Express capability, low half.
    pub const DEVICE_CONTROL: u32 = EXPRESS + 8;
    /// Pending bits in BAR2.
    pub const PENDING: u32 = 0x800;
}

/// Command: answers memory accesses.
pub const MEMORY_SPACE: u32 = 1 << 1;
/// Command: may access memory itself.
pub const BUS_MASTER: u32 = 1 << 2;
/// MSI-X message control, in the dword at [`offset::MSIX`]: vectors are used.
pub const MSIX_ENABLE: u32 = 1 << 31;
/// MSI-X message control: every vector is masked.
pub const MSIX_MASK_ALL: u32 = 1 << 30;
/// Device control: resets the function. Reads as zero.
pub const FUNCTION_RESET: u32 = 1 << 15;

/// Revision of the device.
pub const REVISION: u32 = 1;

/// Vendor and device of the subsystem: those of the device.
#[cfg(feature = "server")]
pub(crate) fn subsystem() -> (u16, u16) {
    (pci::VENDOR, pci::DEVICE)
}

const BAR0: u32 = 0x10;
const BAR2: u32 = 0x18;
const BAR4: u32 = 0x20;
const DWORDS: usize = 64;
const _: () = assert!(DWORDS * 4 == 256);

/// What a configuration write sets in motion.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub(crate) enum Effect {
    Nothing,
    /// A function-level reset.
    Reset,
    /// Vectors may have become unmasked: [`Pci::take_pending`].
    Unmasked,
}

/// Configuration space and MSI-X state.
#[derive(Debug)]
pub(crate) struct Pci {
    dwords: [u32; DWORDS],
    vectors: Vec<Vector>,
}

#[derive(Clone, Copy, Debug)]
struct Vector {
    address_low: u32,
    address_high: u32,
    data: u32,
    is_masked: bool,
    is_pending: bool,
}

impl Vector {
    const RESET: Self =
        Self { address_low: 0, address_high: 0, data: 0, is_masked: true, is_pending: false };
}

impl Pci {
    pub(crate) fn new(vectors: u16) -> Self {
        assert!((1..=128).contains(&vectors), "the vector table ends before the pending bits");
        let mut dwords = [0; DWORDS];
        // By index of the dword: ids, status (has capabilities), class, subsystem, first capability.
        dwords[0] = u32::from(pci::DEVICE) << 16 | u32::from(pci::VENDOR);
        dwords[1] = 1 << 20;
        dwords[2] = pci::CLASS << 8 | REVISION;
        dwords[11] = dwords[0];
        dwords[13] = offset::MSIX;
        // MSI-X: table and pending bits in BAR2. Express: an endpoint that can be reset.
        dwords[16] = u32::from(vectors - 1) << 16 | offset::EXPRESS << 8 | 0x11;
        dwords[17] = 2;
        dwords[18] = offset::PENDING | 2;
        dwords[20] = 2 << 16 | 0x10;
        dwords[21] = 1 << 28;
        Self { dwords, vectors: vec![Vector::RESET; usize::from(vectors)] }
    }

    /// Back to power-on; addresses of BARs are forgotten too.
    pub(crate) fn reset(&mut self) {
        let vectors = u16::try_from(self.vectors.len()).unwrap_or(1);
        let identity = self.dwords[0];
        *self = Self::new(vectors);
        (self.dwords[0], self.dwords[11]) = (identity, identity);
    }

    /// Says from now on that it is the management function, which has another BAR4 too.
    #[cfg(feature = "server")]
    pub(crate) fn become_manager(&mut self) {
        self.dwords[0] = u32::from(pci::MANAGER) << 16 | u32::from(pci::VENDOR);
        self.dwords[11] = self.dwords[0];
    }

    pub(crate) fn is_bus_master(&self) -> bool {
        self.dwords[1] & BUS_MASTER != 0
    }

    /// The dword at `offset`; zero outside, all ones nowhere.
    pub(crate) fn read(&self, offset: u32) -> u32 {
        dword(offset).map_or(0, |at| self.dwords[at])
    }

    /// Writes the dword at `offset`, as far as it is writable.
    pub(crate) fn write(&mut self, offset: u32, value: u32) -> Effect {
        let Some(at) = dword(offset) else { return Effect::Nothing };
        let writable = match offset {
            offset::COMMAND => MEMORY_SPACE | BUS_MASTER,
            BAR0 => !(pci::BAR0_BYTES - 1),
            BAR2 => !(BAR2_BYTES - 1),
            BAR4 if self.dwords[0] >> 16 == u32::from(pci::MANAGER) => !(mailbox::BAR4_BYTES - 1),
            BAR4 => !(telemetry::PAGE_BYTES - 1),
            0x3c => 0xff,
            offset::MSIX => MSIX_ENABLE | MSIX_MASK_ALL,
            offset::DEVICE_CONTROL => 0x7fff,
            _ => 0,
        };
        self.dwords[at] = self.dwords[at] & !writable | value & writable;
        match offset {
            offset::DEVICE_CONTROL if value & FUNCTION_RESET != 0 => Effect::Reset,
            offset::MSIX => Effect::Unmasked,
            _ => Effect::Nothing,
        }
    }

    /// A read of BAR2.
    pub(crate) fn read_bar2(&self, offset: u32) -> u32 {
        if !offset.is_multiple_of(4) || offset >= BAR2_BYTES {
            return 0;
        }
        if offset >= offset::PENDING {
            let first = usize::try_from((offset - offset::PENDING) * 8).unwrap_or(usize::MAX);
            let vectors = self.vectors.iter().skip(first).take(32);
            return (0..)
                .zip(vectors)
                .fold(0, |word, (bit, vector)| word | u32::from(vector.is_pending) << bit);
        }
        let Some((vector, field)) = self.vector(offset) else { return 0 };
        match field {
            0 => vector.address_low,
            4 => vector.address_high,
            8 => vector.data,
            _ => u32::from(vector.is_masked),
        }
    }

    /// A write of BAR2.
    pub(crate) fn write_bar2(&mut self, offset: u32, value: u32) -> Effect {
        if !offset.is_multiple_of(4) {
            return Effect::Nothing;
        }
        let Some((mut vector, field)) = self.vector(offset) else { return Effect::Nothing };
        match field {
            0 => vector.address_low = value & !3,
            4 => vector.address_high = value,
            8 => vector.data = value,
            _ => vector.is_masked = value & 1 != 0,
        }
        let index = usize::try_from(offset / 16).unwrap_or(usize::MAX);
        if let Some(slot) = self.vectors.get_mut(index) {
            *slot = vector;
        }
        Effect::Unmasked
    }

    fn vector(&self, offset: u32) -> Option<(Vector, u32)> {
        let index = usize::try_from(offset / 16).ok()?;
        Some((*self.vectors.get(index)?, offset % 16))
    }

    /// Whether raising `vector` reaches the driver; if not, the vector is pending.
    pub(crate) fn raise(&mut self, vector: u16) -> bool {
        let control = self.dwords[16];
        let Some(entry) = self.vectors.get_mut(usize::from(vector)) else { return false };
        let is_open =
            control & MSIX_ENABLE != 0 && control & MSIX_MASK_ALL == 0 && !entry.is_masked;
        entry.is_pending |= !is_open;
        is_open
    }

    /// The vectors that were pending and are no longer masked; their pending bits clear.
    pub(crate) fn take_pending(&mut self) -> Vec<u16> {
        let pending: Vec<u16> =
            (0..).zip(&self.vectors).filter(|(_, v)| v.is_pending).map(|(at, _)| at).collect();
        for &vector in &pending {
            self.vectors[usize::from(vector)].is_pending = false;
        }
        pending.into_iter().filter(|&vector| self.raise(vector)).collect()
    }
}

fn dword(offset: u32) -> Option<usize> {
    let is_inside = offset.is_multiple_of(4) && offset < CONFIG_BYTES;
    is_inside.then(|| usize::try_from(offset / 4).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_finds_the_device_and_its_capabilities() {
        let pci = Pci::new(17);
        assert_eq!(pci.read(0), 0x4e50_1de5);
        assert_eq!(pci.read(8) >> 8, pci::CLASS);
        let mut at = pci.read(0x34);
        let mut found = Vec::new();
        while at != 0 {
            found.push(pci.read(at) & 0xff);
            at = pci.read(at) >> 8 & 0xff;
        }
        assert_eq!(found, [0x11, 0x10]);
        assert_eq!(pci.read(offset::MSIX) >> 16 & 0x7ff, 16);
        assert_eq!(pci.read(CONFIG_BYTES), 0);
    }

    #[test]
    fn bars_answer_the_sizing_protocol() {
        let mut pci = Pci::new(1);
        for (bar, bytes) in [(BAR0, pci::BAR0_BYTES), (BAR2, BAR2_BYTES), (BAR4, 4096), (0x14, 0)] {
            assert_eq!(pci.write(bar, u32::MAX), Effect::Nothing);
            let read = pci.read(bar);
            assert_eq!(if read == 0 { 0 } else { !read + 1 }, bytes);
        }
        assert_eq!(pci.write(0, 0), Effect::Nothing);
        assert_eq!(pci.read(0), 0x4e50_1de5, "ids are read-only");
    }

    #[test]
    fn a_masked_vector_is_pending_until_it_is_unmasked() {
        let mut pci = Pci::new(40);
        assert!(!pci.raise(33), "MSI-X is off");
        assert_eq!(pci.read_bar2(offset::PENDING + 4), 2);
        assert_eq!(pci.write(offset::MSIX, MSIX_ENABLE), Effect::Unmasked);
        assert!(pci.take_pending().is_empty(), "the vector itself is masked");
        assert_eq!(pci.write_bar2(33 * 16 + 12, 0), Effect::Unmasked);
        assert_eq!(pci.take_pending(), [33]);
        assert_eq!(pci.read_bar2(offset::PENDING + 4), 0);
        assert!(pci.raise(33));
        assert!(!pci.raise(40), "there is no such vector");
    }

    #[test]
    fn accesses_behind_the_end_of_bar2_read_zero_and_write_nothing() {
        let mut pci = Pci::new(128);
        assert!(!pci.raise(0));
        for offset in [BAR2_BYTES, BAR2_BYTES + offset::PENDING, 0x2000_0800, u32::MAX - 3] {
            assert_eq!(pci.read_bar2(offset), 0, "{offset:#x}");
            assert_eq!(pci.write_bar2(offset, 1), Effect::Nothing);
        }
    }

    #[test]
    fn a_function_level_reset_is_asked_for_by_one_bit_that_reads_zero() {
        let mut pci = Pci::new(1);
        assert_eq!(pci.write(offset::DEVICE_CONTROL, FUNCTION_RESET), Effect::Reset);
        assert_eq!(pci.read(offset::DEVICE_CONTROL) & FUNCTION_RESET, 0);
    }
}
