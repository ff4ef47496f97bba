//! Loaded programs: copied from the client's memory, verified once, sealed.

use crate::counters::Charge;
use crate::fault::Problem;
use npu_uapi::addr::{Iova, SlotId};
use npu_uapi::command::Command;
use npu_uapi::image::{Image, ImageError, slot_kind};
use npu_uapi::limits::Limits;
use npu_uapi::names::{MOST_BYTES, Names};
use npu_uapi::queue::LoadProgram;
use npu_uapi::status::{NOT_APPLICABLE, Status};
use npu_uapi::verify::{Rule, Verified, verify};
use std::mem::offset_of;
use std::sync::Arc;

/// Why a program is not loaded.
#[derive(Debug)]
pub(crate) struct Unloaded {
    /// What is wrong, and where.
    pub(crate) problem: Problem,
    /// What the driver calls the operation that is meant, where one is and it has a name.
    pub(crate) node: Option<Arc<str>>,
}

impl From<Problem> for Unloaded {
    fn from(problem: Problem) -> Self {
        Self { problem, node: None }
    }
}

/// A program that the device may run. Immutable; the client's copy no longer matters.
#[derive(Debug)]
pub(crate) struct Program {
    /// The context it belongs to.
    pub(crate) context: u32,
    /// Its id, once it has one.
    pub(crate) id: u32,
    verified: Verified,
    /// The nodes of its operations, as the driver calls them.
    pub(crate) names: Names,
    /// What each command costs.
    charges: Vec<Charge>,
}

impl Program {
    /// Has `read` copy the image that `entry` names, and the names; decodes and verifies it. Where
    /// `is_to_end` says so between two of these, what is returned is of no use.
    pub(crate) fn load(
        entry: &LoadProgram,
        limits: &Limits,
        read: impl Fn(Iova, &mut [u8]) -> Result<(), Problem>,
        is_to_end: &dyn Fn() -> bool,
    ) -> Result<Self, Unloaded> {
        let LoadProgram { image, len, context, .. } = *entry;
        let too_long = Problem::new(Status::PROGRAM_REFUSED).cause(Rule::ImageSize.number());
        let too_long = too_long.at(0, len).iova(image);
        if len > limits.program_bytes {
            return Err(too_long.into());
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| too_long)?];
        read(image, &mut bytes)?;
        let names = names(entry, &read)?;
        let ended = || if is_to_end() { Err(Problem::new(Status::ABORTED)) } else { Ok(()) };
        ended()?;
        let image = Image::from_bytes(&bytes).map_err(|error| malformed(&error))?;
        ended()?;
        let verified = verify(&image, limits).map_err(|refusal| {
            let record = refusal.fault();
            let op_id = Some(record.op_id).filter(|&op_id| op_id != NOT_APPLICABLE);
            let node = op_id.and_then(|op_id| names.get(op_id)).map(Arc::from);
            Unloaded { problem: Problem::from_record(record), node }
        })?;
        ended()?;
        let charges = charges(&verified, limits);
        Ok(Self { context, id: 0, verified, names, charges })
    }

    pub(crate) fn verified(&self) -> &Verified {
        &self.verified
    }

    /// Command `index` and its cost; `None` behind the last.
    pub(crate) fn command(&self, index: usize) -> Option<(&Command, Charge)> {
        Some((self.verified.commands().get(index)?, *self.charges.get(index)?))
    }
}

/// The names that `entry` brings.
fn names(
    entry: &LoadProgram,
    read: &impl Fn(Iova, &mut [u8]) -> Result<(), Problem>,
) -> Result<Names, Problem> {
    let (at, len) = (offset_of!(LoadProgram, names_len) as u64, size_of::<u32>() as u64);
    let bad = Problem::new(Status::INVALID_FIELD).at(at, len).iova(entry.names);
    let size = usize::try_from(entry.names_len).ok().filter(|&size| size <= MOST_BYTES);
    let mut bytes = vec![0; size.ok_or(bad)?];
    if bytes.is_empty() {
        return if entry.names == Iova::default() { Ok(Names::default()) } else { Err(bad) };
    }
    read(entry.names, &mut bytes)?;
    Names::from_bytes(bytes).map_err(|_| bad)
}

/// The refusal of bytes that are not a program.
fn malformed(error: &ImageError) -> Problem {
    let rule = match error {
        ImageError::IsaVersion { .. } => Rule::IsaVersion,
        ImageError::Slots { .. } => Rule::SlotCount,
        ImageError::SlotKind { .. } => Rule::SlotDeclaration,
        _ => Rule::Malformed,
    };
    let problem = Problem::new(Status::PROGRAM_REFUSED).cause(rule.number());
    match error {
        ImageError::SlotKind { slot, .. } => problem.slot(*slot),
        _ => problem,
    }
}

fn charges(verified: &Verified, limits: &Limits) -> Vec<Charge> {
    let slots = verified.slots();
    let is_sram =
        |slot: SlotId| slots.get(slot.index()).is_some_and(|decl| decl.kind == slot_kind::SRAM);
    verified.commands().iter().map(|command| Charge::of(command, limits, &is_sram)).collect()
}
