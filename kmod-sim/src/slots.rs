//! Base table and overlay, resolved to the memory that each slot of a job is.

use crate::fault::Problem;
use crate::guest::Guest;
use crate::memory::Extent;
use crate::sram::Sram;
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::image::{SlotDecl, slot_kind};
use npu_uapi::queue::{Binding, access};
use npu_uapi::status::Status;
use npu_uapi::verify::Verified;
use zerocopy::IntoBytes;

/// A table of bindings, copied from the client's memory: at most one a slot, each well formed.
#[derive(Debug, Default)]
pub(crate) struct Bindings(Vec<Binding>);

impl Bindings {
    /// Copies `count` bindings at `table`.
    pub(crate) fn read(
        guest: &Guest,
        (table, count): (Iova, u32),
        slots: u32,
    ) -> Result<Self, Problem> {
        let len = u64::from(count) * size_of::<Binding>() as u64;
        let too_many = Problem::new(Status::INVALID_FIELD).at(0, len).iova(table);
        if count > slots {
            return Err(too_many);
        }
        let count = usize::try_from(count).map_err(|_| too_many)?;
        let mut bindings = vec![Binding::default(); count];
        guest.read(table, bindings.as_mut_slice().as_mut_bytes())?;
        let mut is_bound = [false; 256];
        for (at, binding) in (0_u64..).step_by(size_of::<Binding>()).zip(&bindings) {
            let bad =
                |status| Problem::new(status).slot(binding.slot).at(at, 32).iova(binding.base);
            if binding.reserved != [0; 5] || binding.reserved2 != 0 {
                return Err(bad(Status::RESERVED_FIELD));
            }
            let slot = is_bound.get_mut(binding.slot.index());
            let slot = slot.filter(|_| u32::from(binding.slot.0) < slots);
            let is_access = (1..=access::READ | access::WRITE).contains(&binding.access);
            match slot {
                Some(slot) if !*slot && is_access => *slot = true,
                _ => return Err(bad(Status::INVALID_FIELD)),
            }
        }
        Ok(Self(bindings))
    }

    fn iter(&self) -> impl Iterator<Item = &Binding> {
        self.0.iter()
    }
}

/// The memory of a job.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// What each slot is, by slot; what the program does not use is `None`.
    pub(crate) extents: Vec<Option<Extent>>,
    /// The IOVA ranges behind them, `(start, len)`.
    pub(crate) ranges: Vec<(u64, u64)>,
}

impl Slots {
    /// Binds every slot that `program` uses: SRAM by the device, the rest by `overlay`, else `base`.
    pub(crate) fn resolve(
        program: &Verified,
        base: &Bindings,
        overlay: &Bindings,
        (guest, sram): (&Guest, &Sram),
    ) -> Result<Self, Problem> {
        let declared = program.slots();
        let mut bound: Vec<Option<&Binding>> = vec![None; declared.len()];
        for binding in base.iter() {
            // A base table may serve several programs: what this one does not have, it ignores.
            if let Some(slot) = bound.get_mut(binding.slot.index()) {
                *slot = Some(binding);
            }
        }
        for binding in overlay.iter() {
            let stray = Problem::new(Status::INVALID_FIELD).slot(binding.slot).iova(binding.base);
            *bound.get_mut(binding.slot.index()).ok_or(stray)? = Some(binding);
        }
        let mut slots = Self { extents: vec![None; declared.len()], ranges: Vec::new() };
        let mut sram_offset = 0;
        for (index, decl) in declared.iter().enumerate() {
            let id = SlotId(u16::try_from(index).unwrap_or(u16::MAX));
            let used = program.used().get(index).copied().unwrap_or(0);
            if decl.kind == slot_kind::SRAM {
                let extent = sram.extent(sram_offset, decl.len);
                let extent = extent.ok_or(Problem::new(Status::SLOT_TOO_SMALL).slot(id))?;
                slots.extents[index] = Some(extent);
                sram_offset += decl.len.next_multiple_of(64);
            } else if used != 0 {
                let unbound = Problem::new(Status::UNBOUND_SLOT).slot(id).at(0, decl.len);
                let binding = bound[index].ok_or(unbound)?;
                slots.extents[index] = Some(extent(guest, decl, used, binding)?);
                slots.ranges.push((binding.base.raw(), decl.len));
            }
        }
        Ok(slots)
    }
}

/// The memory of one slot: as much of `binding` as the program declares.
fn extent(guest: &Guest, decl: &SlotDecl, used: u8, binding: &Binding) -> Result<Extent, Problem> {
    let bad = |status| {
        let problem = Problem::new(status).slot(binding.slot).iova(binding.base);
        problem.at(0, decl.len).access(used)
    };
    if binding.len < decl.len {
        return Err(bad(Status::SLOT_TOO_SMALL).at(binding.len, decl.len - binding.len));
    }
    if binding.access & used != used {
        return Err(bad(Status::ACCESS_DENIED));
    }
    guest.extent(binding.base, decl.len, used).map_err(|fault| bad(fault.status))
}
