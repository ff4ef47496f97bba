//! The register file: what a read gives and what a write may change, by the table in `npu_uapi::regs`.
//!
//! Knows access kinds and reserved bits only; what a write sets in motion is [`crate::device`]'s.

use npu_uapi::reg::{Access, Register, RegisterInfo};
use npu_uapi::regs::{IrqStatus, TABLE};
use npu_uapi::status::Status;

/// Why a register write was dropped: the status that its fault record carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Refused(pub(crate) Status);

/// The registers of one function, each at its place in [`TABLE`].
#[derive(Debug)]
pub(crate) struct Registers {
    values: [u32; TABLE.len()],
}

impl Registers {
    pub(crate) const fn new() -> Self {
        Self { values: [0; TABLE.len()] }
    }

    /// The value of `R`, whatever the driver may do with it.
    pub(crate) fn get<R: Register>(&self) -> R {
        // Found at compile time: the device looks at its state before each command.
        R::from_raw(const { place(R::OFFSET) }.map_or(0, |at| self.values[at]))
    }

    /// Sets `R` from inside the device.
    pub(crate) fn set<R: Register>(&mut self, value: R) {
        if let Some(at) = const { place(R::OFFSET) } {
            self.values[at] = value.raw();
        }
    }

    /// A read over the bus.
    pub(crate) fn read(&self, offset: u32) -> u32 {
        match find(offset) {
            Some((at, info)) if info.access != Access::WriteOnly => self.values[at],
            _ => 0,
        }
    }

    /// A write over the bus. Refused, it changes nothing.
    pub(crate) fn write(&mut self, offset: u32, value: u32) -> Result<(), Refused> {
        let (at, info) = find(offset).ok_or(Refused(Status::INVALID_FIELD))?;
        if value & !info.defined != 0 {
            return Err(Refused(Status::RESERVED_FIELD));
        }
        match info.access {
            Access::ReadOnly => return Err(Refused(Status::ACCESS_DENIED)),
            Access::ReadWrite => self.values[at] = value,
            Access::WriteOneToClear => self.values[at] &= !value,
            Access::WriteOnly => {}
        }
        Ok(())
    }

    /// Marks a cause of vector 0 as pending; whether the vector is to be raised by it.
    pub(crate) fn pend(&mut self, cause: IrqStatus) -> bool {
        let enabled = self.get::<npu_uapi::regs::IrqMask>().raw();
        let pending = self.get::<IrqStatus>().raw();
        self.set(IrqStatus::from_raw(pending | cause.raw()));
        cause.raw() & enabled & !pending != 0
    }
}

/// Where in [`TABLE`] the register at `offset` is.
const fn place(offset: u32) -> Option<usize> {
    let mut at = 0;
    while at < TABLE.len() {
        if TABLE[at].offset == offset {
            return Some(at);
        }
        at += 1;
    }
    None
}

fn find(offset: u32) -> Option<(usize, &'static RegisterInfo)> {
    TABLE.iter().enumerate().find(|(_, info)| info.offset == offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::regs::{Ctrl, IrqMask, Kick, Magic, Scratch};

    #[test]
    fn every_register_obeys_its_access_kind() {
        for info in TABLE {
            let mut regs = Registers::new();
            let before = regs.read(info.offset);
            let result = regs.write(info.offset, info.defined);
            let after = regs.read(info.offset);
            match info.access {
                Access::ReadOnly => {
                    assert_eq!(result, Err(Refused(Status::ACCESS_DENIED)), "{}", info.name);
                    assert_eq!(after, before);
                }
                Access::ReadWrite => assert_eq!(after, info.defined, "{}", info.name),
                Access::WriteOnly | Access::WriteOneToClear => assert_eq!(after, 0),
            }
        }
    }

    #[test]
    fn reserved_bits_and_holes_are_refused_and_change_nothing() {
        let mut regs = Registers::new();
        assert_eq!(regs.write(Ctrl::OFFSET, 0x10), Err(Refused(Status::RESERVED_FIELD)));
        assert_eq!(regs.read(Ctrl::OFFSET), 0);
        for offset in [0x2c, 0x11, 0xfffc, u32::MAX] {
            assert_eq!(regs.write(offset, 0), Err(Refused(Status::INVALID_FIELD)));
            assert_eq!(regs.read(offset), 0);
        }
        assert_eq!(regs.read(Kick::OFFSET), 0);
        assert_eq!(regs.read(Magic::OFFSET), 0, "the device sets it, not the file");
        regs.write(Scratch::OFFSET, 0x5a5a_a5a5).unwrap();
        assert_eq!(regs.read(Scratch::OFFSET), 0x5a5a_a5a5);
    }

    #[test]
    fn a_cause_raises_the_vector_once_until_it_is_cleared_and_only_when_enabled() {
        let mut regs = Registers::new();
        let fault = IrqStatus::default().with(IrqStatus::FAULT, true);
        assert!(!regs.pend(fault), "masked");
        regs.write(IrqStatus::OFFSET, fault.raw()).unwrap();
        assert_eq!(regs.read(IrqStatus::OFFSET), 0);
        regs.set(IrqMask::default().with(IrqMask::FAULT, true));
        assert!(regs.pend(fault));
        assert!(!regs.pend(fault), "still pending");
        regs.write(IrqStatus::OFFSET, fault.raw()).unwrap();
        assert!(regs.pend(fault));
    }
}
