//! A program with all that a device needs to run it, made by the compiler or read from a bundle.

use super::error::{BundleError, malformed};
use super::packed::{self, Packed};
use super::wire::{Reader, Writer};
use crate::emit::{CONSTANTS, EDGE_SLOTS_FROM, SCRATCH};
use crate::graph::{ElementType, Graph, NodeId, ValueId};
use crate::program::{Compiled, Edge};
use bytes::Bytes;
use npu_uapi::container::{Container, Io};
use npu_uapi::image::SlotDecl;
use npu_uapi::limits::Limits;
use npu_uapi::names::Names;
use std::collections::BTreeSet;

/// Number of the constants of a program that has none.
const NO_CONSTANTS: u32 = u32::MAX;

/// A program for some input shapes.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Image, inputs and outputs, names; constants are apart.
    container: Container,
    /// What the constants slot holds, if there is one.
    pub(crate) constants: Option<Bytes>,
    /// What tells these constants from others, where they are from a blob.
    pub(crate) content: Option<[u8; 32]>,
    pub(crate) inputs: Vec<Edge>,
    pub(crate) outputs: Vec<Edge>,
    /// By `op_id`, the node that the command was compiled from.
    pub(crate) nodes: Vec<NodeId>,
    /// Constants of the graph that are among these constants.
    pub(crate) packed: Vec<Packed>,
}

impl Ready {
    /// What the compiler made of `part`.
    pub fn new(compiled: &Compiled, part: &Graph, limits: &Limits) -> Self {
        let mut container = compiled.container(part, limits);
        let constants = container.constants.pop().map(|(_, bytes)| Bytes::from(bytes));
        let packed = constants.as_ref().map_or_else(Vec::new, |constants| {
            packed::find(part, &compiled.ops, &compiled.emitted.constants, constants)
        });
        let node = |&index: &usize| compiled.ops.ops[index].node;
        Self {
            container,
            constants,
            content: None,
            inputs: compiled.inputs.clone(),
            outputs: compiled.outputs.clone(),
            nodes: compiled.emitted.op_ids.iter().map(node).collect(),
            packed,
        }
    }

    /// Shapes of the inputs.
    pub fn shapes(&self) -> Vec<Vec<usize>> {
        self.inputs.iter().map(|edge| edge.shape.clone()).collect()
    }

    /// What the device loads.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.container.image.to_bytes()
    }

    /// The nodes of its operations, for the device's log.
    pub(crate) fn names(&self) -> Names {
        let names = &self.container.names;
        Names::new(names.iter().map(|(op_id, name)| (*op_id, name.as_str())))
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.container.image.slots.get(SCRATCH.index()).map_or(0, |slot| slot.len)
    }

    /// What a section holds, with constants of this number. Of the graph's constants it says where those
    /// are of which no program before it has: they go to `apart`.
    pub(super) fn write(&self, constants: Option<usize>, apart: &mut BTreeSet<ValueId>) -> Vec<u8> {
        let mut out = Writer::default();
        let number = |index| u32::try_from(index).expect("few programs are kept");
        out.u32(constants.map_or(NO_CONSTANTS, number));
        out.count(self.nodes.len());
        for node in &self.nodes {
            out.u32(node.0);
        }
        let packed: Vec<&Packed> =
            self.packed.iter().filter(|packed| apart.insert(packed.value)).collect();
        out.count(packed.len());
        for packed in packed {
            packed.write(&mut out);
        }
        let file = self.container.to_bytes();
        out.length(file.len());
        out.0.extend_from_slice(&file);
        out.0
    }

    /// The program of `part` that a section holds.
    pub(super) fn read(
        section: Bytes,
        constants: &[(Bytes, [u8; 32])],
        part: &Graph,
    ) -> Result<Self, BundleError> {
        let mut reader = Reader::new(section);
        let index = reader.u32()?;
        let nodes = reader.list(|reader| reader.u32().map(NodeId))?;
        let packed = reader.list(Packed::read)?;
        let len = reader.length()?;
        let file = reader.bytes(len)?;
        reader.finish()?;
        if nodes.iter().any(|node| node.0 as usize >= part.node_count()) {
            return Err(malformed("a command is of no node"));
        }
        let container = Container::from_bytes(&file)?;
        let (constants, content) = match index {
            NO_CONSTANTS => (None, None),
            index => {
                let found = usize::try_from(index).ok().and_then(|index| constants.get(index));
                let found = found.ok_or(malformed("a program's constants are missing"))?;
                let (bytes, content) = found.clone();
                (Some(bytes), Some(content))
            }
        };
        let slots = &container.image.slots;
        let want = slots.get(CONSTANTS.index()).map_or(0, |slot| slot.len);
        let found = constants.as_ref().map_or(0, |constants| constants.len() as u64);
        if want != found || !container.constants.is_empty() {
            return Err(malformed("a program's constants are not as long as its slot"));
        }
        let (inputs, outputs) = edges(&container.io, slots)?;
        if inputs.len() != part.inputs().len() || outputs.len() != part.outputs().len() {
            return Err(malformed("a program has other inputs or outputs than its part"));
        }
        Ok(Self { container, constants, content, inputs, outputs, nodes, packed })
    }
}

/// Inputs and outputs, in their slots' order, each as long as its slot.
fn edges(io: &[Io], slots: &[SlotDecl]) -> Result<(Vec<Edge>, Vec<Edge>), BundleError> {
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for (index, tensor) in io.iter().enumerate() {
        let (element, bytes_each) = match tensor.element {
            1 => (ElementType::F32, 4_u64),
            2 => (ElementType::U8, 1),
            3 => (ElementType::I8, 1),
            _ => return Err(malformed("a tensor is neither float32 nor 8-bit")),
        };
        let bytes = tensor.shape.iter().try_fold(bytes_each, |bytes, &len| bytes.checked_mul(len));
        let slot = slots.get(tensor.slot.index()).map(|slot| slot.len);
        let is_in_order = tensor.slot.index() == EDGE_SLOTS_FROM + index;
        if !is_in_order || (!tensor.output && !outputs.is_empty()) {
            return Err(malformed("a program's tensors are out of order"));
        }
        // A tensor that no command touches has no slot.
        if bytes.is_none() || slot.is_some_and(|slot| slot != 0 && Some(slot) > bytes) {
            return Err(malformed("a tensor is shorter than its slot"));
        }
        let length = |&len: &u64| usize::try_from(len);
        let shape = tensor.shape.iter().map(length).collect::<Result<_, _>>();
        let shape = shape.map_err(|_| malformed("a tensor passes this machine's memory"))?;
        let edge = Edge { name: tensor.name.clone(), element, shape };
        match tensor.output {
            true => outputs.push(edge),
            false => inputs.push(edge),
        }
    }
    Ok((inputs, outputs))
}
