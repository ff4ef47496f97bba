//! Base table and overlay, resolved to the memory that each slot of a job is.

use crate::bounce::Bounce;
use crate::fault::Problem;
use crate::guest::{Guest, Reached};
use crate::kernel::{Control, Stop};
use crate::memory::Extent;
use crate::queue::overlaps;
use crate::sram::Bank;
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::image::{SlotDecl, slot_kind};
use npu_uapi::queue::{Binding, access};
use npu_uapi::status::Status;
use npu_uapi::verify::Verified;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::IntoBytes;

/// Slots that a program may declare: its operands name them in 8 bits.
const MOST_SLOTS: usize = 256;

/// A table of bindings, copied from the client's memory: at most one a slot, each well formed.
#[derive(Debug, Default)]
pub(crate) struct Bindings(Vec<Binding>);

impl Bindings {
    /// Copies `count` bindings at `table`.
    pub(crate) fn read(guest: &Guest, table: (Iova, u32), slots: u32) -> Result<Self, Problem> {
        let mut bindings = Self::default();
        bindings.read_again(guest, table, slots)?;
        Ok(bindings)
    }

    /// As [`Bindings::read`], in the place of what it held.
    pub(crate) fn read_again(
        &mut self,
        guest: &Guest,
        (table, count): (Iova, u32),
        slots: u32,
    ) -> Result<(), Problem> {
        let len = u64::from(count) * size_of::<Binding>() as u64;
        let too_many = Problem::new(Status::INVALID_FIELD).at(0, len).iova(table);
        if count > slots {
            return Err(too_many);
        }
        let count = usize::try_from(count).map_err(|_| too_many)?;
        let bindings = &mut self.0;
        bindings.clear();
        bindings.resize(count, Binding::default());
        guest.read(table, bindings.as_mut_slice().as_mut_bytes())?;
        let mut is_bound = [false; MOST_SLOTS];
        for (at, binding) in (0_u64..).step_by(size_of::<Binding>()).zip(&*bindings) {
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
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Binding> {
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
    /// Whether one of them is SRAM.
    pub(crate) has_sram: bool,
    /// Those that are not one piece of memory.
    bounces: Vec<Bounce>,
    /// Bytes that went through the buffers of `bounces` so far.
    bounced: AtomicU64,
}

impl Slots {
    /// Binds every slot that `program` uses: SRAM by the device, the rest by `overlay`, else `base`. In
    /// the place of what was bound before, whose room is used again.
    pub(crate) fn resolve(
        &mut self,
        program: &Verified,
        base: &Bindings,
        overlay: &Bindings,
        (guest, sram): (&Guest, &Bank),
    ) -> Result<(), Problem> {
        self.clear();
        let declared = program.slots();
        let mut bound = [None::<&Binding>; MOST_SLOTS];
        let bound = bound.get_mut(..declared.len()).ok_or(Problem::new(Status::INTERNAL))?;
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
        self.extents.resize(declared.len(), None);
        let mut sram_offset = 0;
        for (index, decl) in declared.iter().enumerate() {
            let id = SlotId(u16::try_from(index).unwrap_or(u16::MAX));
            let used = program.used().get(index).copied().unwrap_or(0);
            if decl.kind == slot_kind::SRAM {
                let extent = sram.extent(sram_offset, decl.len);
                let extent = extent.ok_or(Problem::new(Status::SLOT_TOO_SMALL).slot(id))?;
                self.extents[index] = Some(extent);
                self.has_sram |= decl.len > 0;
                sram_offset += decl.len.next_multiple_of(64);
            } else if used != 0 {
                let unbound = Problem::new(Status::UNBOUND_SLOT).slot(id).at(0, decl.len);
                let binding = bound[index].ok_or(unbound)?;
                let reached = reach(guest, decl, used, (id, binding))?;
                self.add(id, (binding.base, decl.len), reached);
            }
        }
        if self.is_bounced() {
            let uses = (0..).map(SlotId).zip(declared).filter_map(|(id, decl)| {
                let used = program.used().get(id.index()).copied().filter(|&used| used != 0)?;
                let binding = bound[id.index()].filter(|_| decl.kind != slot_kind::SRAM)?;
                Some((id, (binding.base, decl.len, used)))
            });
            self.check_overlaps(&uses.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Lets go of all memory, and keeps the room for as many slots.
    pub(crate) fn clear(&mut self) {
        let Self { extents, ranges, has_sram, bounces, bounced } = self;
        extents.clear();
        ranges.clear();
        bounces.clear();
        *has_sram = false;
        *bounced.get_mut() = 0;
    }

    /// Slots `0..` of a transfer, each `(start, len, access)`.
    pub(crate) fn of_ranges(guest: &Guest, ranges: &[(Iova, u64, u8)]) -> Result<Self, Problem> {
        let mut slots = Self { extents: vec![None; ranges.len()], ..Self::default() };
        for (id, &range) in (0..).map(SlotId).zip(ranges) {
            let reached = guest.slot(id, range)?;
            slots.add(id, (range.0, range.1), reached);
        }
        Ok(slots)
    }

    fn add(&mut self, slot: SlotId, (start, len): (Iova, u64), reached: Reached) {
        self.ranges.push((start.raw(), len));
        let extent = match reached {
            Reached::Direct(extent) => extent,
            Reached::Bounced(bounce) => {
                let extent = bounce.extent();
                self.bounces.push(bounce);
                extent
            }
        };
        self.extents[slot.index()] = Some(extent);
    }

    /// Refuses a slot in a buffer that shares bytes with another slot, of which one is written: what one
    /// writes the other would not see.
    fn check_overlaps(&self, uses: &[(SlotId, (Iova, u64, u8))]) -> Result<(), Problem> {
        for bounce in &self.bounces {
            let Some((_, one)) = uses.iter().find(|(slot, _)| *slot == bounce.slot()) else {
                continue;
            };
            let is_shared = uses.iter().any(|(slot, other)| {
                *slot != bounce.slot()
                    && (one.2 | other.2) & access::WRITE != 0
                    && overlaps((one.0.raw(), one.1), (other.0.raw(), other.1))
            });
            if is_shared {
                let problem = Problem::new(Status::INVALID_FIELD).slot(bounce.slot());
                return Err(problem.iova(one.0).at(0, one.1));
            }
        }
        Ok(())
    }

    /// Whether there are any that are not one piece of memory.
    pub(crate) fn is_bounced(&self) -> bool {
        !self.bounces.is_empty()
    }

    /// Fills the buffers of slots that are not one piece of memory. Before the first command, and not
    /// with the function locked: the client may have to be asked.
    pub(crate) fn gather(&self, control: &Control<'_>) -> Result<(), Stop> {
        self.move_all(|bounce| bounce.gather(control))
    }

    /// Writes them back. After the last command.
    pub(crate) fn scatter(&self, control: &Control<'_>) -> Result<(), Stop> {
        self.move_all(|bounce| bounce.scatter(control))
    }

    fn move_all(&self, to_move: impl Fn(&Bounce) -> Result<u64, Stop>) -> Result<(), Stop> {
        for bounce in &self.bounces {
            // Relaxed: a count.
            self.bounced.fetch_add(to_move(bounce)?, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Bytes that went through buffers so far.
    pub(crate) fn bounced(&self) -> u64 {
        self.bounced.load(Ordering::Relaxed)
    }
}

/// The memory of one slot: as much of `binding` as the program declares.
fn reach(
    guest: &Guest,
    decl: &SlotDecl,
    used: u8,
    (slot, binding): (SlotId, &Binding),
) -> Result<Reached, Problem> {
    let bad = |status| {
        let problem = Problem::new(status).slot(slot).iova(binding.base);
        problem.at(0, decl.len).access(used)
    };
    if binding.len < decl.len {
        return Err(bad(Status::SLOT_TOO_SMALL).at(binding.len, decl.len - binding.len));
    }
    if binding.access & used != used {
        return Err(bad(Status::ACCESS_DENIED));
    }
    guest.slot(slot, (binding.base, decl.len, used)).map_err(|fault| bad(fault.status))
}
