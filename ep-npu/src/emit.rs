//! Operations with places to a program image, and the constants it reads.
//!
//! ```text
//! slot 0 unused   1 constants   2 scratch   3 SRAM   4 to 7 unused   8.. inputs, then outputs
//! ```
//!
//! The image does not hold constants. Weights do not depend on the batch: programs of one model for several
//! batches share them, where nothing else that they read does.

mod command;
mod constants;
mod packing;
mod rows;

pub use constants::{Chunk, Content};
pub(crate) use packing::Packing;

use crate::allocate::{Memory, Place, Space};
use crate::lower::{Form, Home, Ops, TensorId};
use crate::schedule::Schedule;
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, End, Flags, Header, opcode};
use npu_uapi::image::{Image, SlotDecl, slot_kind};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Slot of the constants.
pub const CONSTANTS: SlotId = SlotId(1);

/// Slot of the scratch memory.
pub const SCRATCH: SlotId = SlotId(2);

/// Slot of the on-chip memory, which the device binds.
pub const SRAM: SlotId = SlotId(3);

/// First slot of inputs and outputs.
pub const EDGE_SLOTS_FROM: usize = 8;

/// An image and what it asks of its surroundings.
#[derive(Clone, Debug, PartialEq)]
pub struct Emitted {
    /// The program.
    pub image: Image,
    /// What the constants slot holds, by offset.
    pub constants: Vec<Chunk>,
    /// Bytes of the constants slot.
    pub constant_bytes: u64,
    /// For each `op_id`, the index in [`Ops::ops`] of the operation.
    pub op_ids: Vec<usize>,
}

/// The program of `ops`, run as `schedule` says, with `inputs` inputs and `outputs` outputs.
pub fn image(
    ops: &Ops,
    schedule: &Schedule,
    memory: &Memory,
    inputs: usize,
    outputs: usize,
) -> Emitted {
    let (constants, constant_bytes) = constants::plan(ops);
    let order = &schedule.order;
    let mut commands: Vec<Command> = Vec::with_capacity(order.len() + 1);
    for (step, image) in schedule.steps() {
        let image = image.map(|(image, run)| (image, run.images));
        let operands = Operands { ops, memory, constants: &constants, inputs, image };
        let op_id = u32::try_from(step).unwrap_or(u32::MAX);
        commands.extend(operands.commands(op_id, order[step]));
    }
    let end = u32::try_from(order.len()).unwrap_or(u32::MAX);
    let header = Header::new(opcode::END, 1, Flags::empty(), end);
    commands.push(Command::End(End { header, reserved: [0; 6] }));

    let mut slots = vec![SlotDecl::default(); EDGE_SLOTS_FROM + inputs + outputs];
    if constant_bytes > 0 {
        slots[CONSTANTS.index()] = SlotDecl::new(slot_kind::CONSTANT, constant_bytes);
    }
    if memory.sram_bytes > 0 {
        slots[SRAM.index()] = SlotDecl::new(slot_kind::SRAM, memory.sram_bytes);
    }
    if memory.scratch_bytes > 0 {
        slots[SCRATCH.index()] = SlotDecl::new(slot_kind::SCRATCH, memory.scratch_bytes);
    }
    for tensor in &ops.tensors {
        let len_bytes = tensor.form.len_bytes();
        match tensor.home {
            Home::Scratch => {}
            Home::Input(index) => {
                slots[EDGE_SLOTS_FROM + index] = SlotDecl::new(slot_kind::INPUT, len_bytes);
            }
            Home::Output(index) => {
                let slot = EDGE_SLOTS_FROM + inputs + index;
                slots[slot] = SlotDecl::new(slot_kind::OUTPUT, len_bytes);
            }
        }
    }
    let image = Image { features: 0, slots, commands };
    Emitted { image, constants, constant_bytes, op_ids: order.clone() }
}

/// The bytes of the constants slot.
pub fn constants(ops: &Ops, emitted: &Emitted) -> Vec<u8> {
    let len = usize::try_from(emitted.constant_bytes);
    let mut bytes = vec![0; len.expect("constants fit the memory they come from")];
    pack(ops, emitted, &mut bytes);
    bytes
}

/// SHA-256 of the constants but the weights, which are the same wherever they lie the same way. Others can
/// follow from shapes: programs whose constants lie in the same places may still read other ones.
pub fn digest_without_weights(ops: &Ops, emitted: &Emitted) -> [u8; 32] {
    let len = |bytes: u64| usize::try_from(bytes).expect("constants fit the memory they come from");
    let chunks = emitted.constants.iter();
    let small: Vec<Chunk> =
        chunks.filter(|chunk| !matches!(chunk.content, Content::Weights(_))).copied().collect();
    // Pages without any are never touched.
    let mut bytes = vec![0; len(emitted.constant_bytes)];
    constants::pack(ops, &small, &mut bytes);
    let starts = emitted.constants.iter().map(|chunk| chunk.offset);
    let ends: BTreeSet<u64> = starts.chain(std::iter::once(emitted.constant_bytes)).collect();
    let mut digest = Sha256::new();
    for chunk in small {
        let end = ends.range(chunk.offset + 1..).next().copied().unwrap_or(chunk.offset);
        digest.update(&bytes[len(chunk.offset)..len(end)]);
    }
    digest.finalize().into()
}

/// Packs the constants into `to`: zeros, as many as the constants slot is long.
pub fn pack(ops: &Ops, emitted: &Emitted, to: &mut [u8]) {
    constants::pack(ops, &emitted.constants, to);
}

/// Finds operands.
struct Operands<'a> {
    ops: &'a Ops,
    memory: &'a Memory,
    constants: &'a [Chunk],
    inputs: usize,
    /// The image that the commands are for, and how many there are, where they are not for all of them.
    image: Option<(u32, u32)>,
}

impl Operands<'_> {
    /// How a tensor, or its part of one image, lies.
    fn form(&self, tensor: TensorId) -> Form {
        let form = self.ops.tensor(tensor).form;
        if self.image.is_some() { form.of_one_image() } else { form }
    }

    /// Where that lies.
    fn tensor(&self, tensor: TensorId) -> Operand {
        let whole = self.whole(tensor);
        match self.image {
            Some((image, images)) if self.ops.tensor(tensor).form.dims().n == images => {
                let before = u64::from(image) * self.form(tensor).len_bytes();
                Operand { offset: whole.offset + before, ..whole }
            }
            _ => whole,
        }
    }

    fn whole(&self, tensor: TensorId) -> Operand {
        let edge = |index: usize| {
            let slot = u16::try_from(EDGE_SLOTS_FROM + index);
            SlotId(slot.expect("`partition` bounds inputs and outputs by the slots"))
        };
        match self.ops.tensor(tensor).home {
            Home::Scratch => match self.memory.places[tensor.0] {
                Some(Place { space: Space::Sram, offset }) => Operand::new(SRAM, offset),
                Some(Place { space: Space::Scratch, offset }) => Operand::new(SCRATCH, offset),
                None => panic!("`allocate` places every tensor that an operation writes"),
            },
            Home::Input(index) => Operand::new(edge(index), 0),
            Home::Output(index) => Operand::new(edge(self.inputs + index), 0),
        }
    }

    /// The constant `content` of operation `index`; unused when it has none.
    fn constant(&self, index: usize, content: Content) -> Operand {
        // They are in the order of the operations.
        let first = self.constants.partition_point(|chunk| chunk.op < index);
        let mut own = self.constants[first..].iter().take_while(|chunk| chunk.op == index);
        let found = own.find(|chunk| chunk.content == content);
        found.map_or_else(Operand::default, |chunk| Operand::new(CONSTANTS, chunk.offset))
    }
}
