//! One part of a graph with numbers for its shapes in, one program for the device out.

mod container;

use crate::allocate::{self, Overlap};
use crate::emit::{self, Emitted};
use crate::graph::{ElementType, Graph, ValueId};
use crate::lower::{self, Flow, Ops, Part};
use crate::quantize::{self, Kind, Unit, Units};
use crate::refusal::Refusal;
use crate::schedule::Schedule;
use crate::shape::{self, Shapes};
use crate::trace::{self, Stage};
use npu_uapi::limits::Limits;
use npu_uapi::names::Names;
use npu_uapi::verify;
use std::path::PathBuf;

/// Why a part does not compile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The part holds something that the NPU does not take.
    #[error("the NPU does not take this: {0}")]
    Refused(#[from] Refusal),
    /// The part has an output that none of its nodes writes.
    #[error("output `{value}` is written by no node of the part")]
    Unwritten {
        /// The output.
        value: String,
    },
    /// A fault of the compiler: two tensors share memory.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The program breaks a rule of the device; sizes aside, a fault of the compiler.
    #[error("the program for this shape breaks a rule of the device: {0}")]
    Verifier(verify::Refusal),
    /// The device does not take the program.
    #[error("the device does not load the program: {0}")]
    Device(#[from] libnpu::Error),
    /// The device does not take the program, for a command that a node was compiled to.
    #[error("the device does not load the program, at node `{node}`: {source}")]
    DeviceAt {
        /// Name of the ONNX node.
        node: String,
        /// What the device says.
        source: Box<libnpu::Error>,
    },
    /// The program was to be written to a folder, which failed.
    #[error("cannot write the program to `{}`: {why}; name a folder that can be written", .path.display())]
    Dump {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
}

impl CompileError {
    /// The device refused a program whose operations have `names`.
    pub(crate) fn unloaded(source: libnpu::Error, names: &Names) -> Self {
        let record = source.fault().and_then(|fault| fault.record);
        match record.and_then(|record| names.get(record.op_id)) {
            Some(node) => Self::DeviceAt { node: node.to_owned(), source: Box::new(source) },
            None => Self::Device(source),
        }
    }
}

/// A compiled program; constants are packed apart, see [`Compiled::constants`].
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The operations, for dumps and names.
    pub ops: Ops,
    /// Order in which they run.
    pub schedule: Schedule,
    /// Where tensors lie.
    pub memory: allocate::Memory,
    /// The image and what its constants are.
    pub emitted: Emitted,
    /// Type and shape of each input.
    pub inputs: Vec<Edge>,
    /// Type and shape of each output.
    pub outputs: Vec<Edge>,
}

/// A tensor that crosses the border of a part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Edge {
    /// Name of the value.
    pub name: String,
    /// Element type: codes or floats.
    pub element: ElementType,
    /// Shape.
    pub shape: Vec<usize>,
}

/// The units of a part in which every node is taken.
pub fn units(part: &Graph) -> Result<Units, CompileError> {
    let units = quantize::units(part);
    match units.of_node.iter().find_map(|verdict| verdict.as_ref().err()) {
        Some(refusal) => Err(refusal.clone().into()),
        None => Ok(units),
    }
}

/// Compiles `part`, whose units are `units`, for inputs of these shapes.
pub fn compile(
    part: &Graph,
    units: &Units,
    input_shapes: &[Vec<usize>],
    limits: &Limits,
) -> Result<Compiled, CompileError> {
    let all: Vec<&Unit> = units.units.iter().collect();
    let shapes = part.inputs().iter().copied().zip(input_shapes.iter().cloned()).collect();
    let shapes = infer(part, &all, shapes)?;
    compile_part(
        &Part {
            graph: part,
            units: &all,
            flow: Flow::of(&all),
            inputs: part.inputs(),
            outputs: part.outputs(),
            shapes: &shapes,
        },
        limits,
    )
}

/// Compiles a part all of whose shapes are known.
pub fn compile_part(part: &Part<'_>, limits: &Limits) -> Result<Compiled, CompileError> {
    if let Some(&value) = part.outputs.iter().find(|&&value| part.flow.writer(value).is_none()) {
        return Err(CompileError::Unwritten { value: part.graph.value(value).name.clone() });
    }
    trace::ran(Stage::Lower);
    let mut ops = lower::ops(part);
    trace::ran(Stage::Schedule);
    let schedule = Schedule::new(&mut ops);
    trace::ran(Stage::Allocate);
    let memory = allocate::memory(&ops, &schedule, limits.sram_bytes)?;
    let (inputs, outputs) = (part.inputs.len(), part.outputs.len());
    trace::ran(Stage::Emit);
    let emitted = emit::image(&ops, &schedule, &memory, inputs, outputs);
    verify::verify(&emitted.image, limits).map_err(CompileError::Verifier)?;
    let inputs = part.inputs.iter().map(|&value| edge(part, value)).collect();
    let outputs = part.outputs.iter().map(|&value| edge(part, value)).collect();
    Ok(Compiled { ops, schedule, memory, emitted, inputs, outputs })
}

impl Compiled {
    /// SHA-256 of the constants but the weights.
    pub fn digest_without_weights(&self) -> [u8; 32] {
        emit::digest_without_weights(&self.ops, &self.emitted)
    }

    /// Packs the constants into `to`: zeros, as many as the constants slot is long.
    pub fn pack_constants(&self, to: &mut [u8]) {
        trace::ran(Stage::Pack);
        emit::pack(&self.ops, &self.emitted, to);
    }

    /// The bytes of the constants slot.
    pub fn constants(&self) -> Vec<u8> {
        trace::ran(Stage::Pack);
        emit::constants(&self.ops, &self.emitted)
    }
}

impl Edge {
    /// Bytes of the tensor.
    pub fn len_bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&len| len as u64).product();
        elements * if self.element == ElementType::F32 { 4 } else { 1 }
    }
}

/// The shapes of everything that `units` write, from those of the inputs.
pub fn infer(part: &Graph, units: &[&Unit], mut shapes: Shapes) -> Result<Shapes, Refusal> {
    for unit in units {
        let inputs: Option<Vec<&[usize]>> =
            unit.inputs.iter().map(|value| shapes.get(value).map(Vec::as_slice)).collect();
        let Some(inputs) = inputs else {
            return crate::refusal::refuse!(
                SHAPE,
                "{} reads a tensor of unknown shape",
                part.node(unit.target)
            );
        };
        let outputs = shape::outputs(part, unit, &inputs)?;
        shapes.extend(unit.outputs().zip(outputs));
    }
    Ok(shapes)
}

fn edge(part: &Part<'_>, value: ValueId) -> Edge {
    let takes_floats = |unit: &Unit| matches!(unit.kind, Kind::Quantize(_) | Kind::Carry(_));
    let gives_floats = |unit: &Unit| matches!(unit.kind, Kind::Dequantize(_));
    let float = part.flow.readers(value).any(takes_floats)
        || part.flow.writer(value).is_some_and(gives_floats);
    Edge {
        name: part.graph.value(value).name.clone(),
        element: match quantize::is_signed(part.graph, value) {
            _ if float => ElementType::F32,
            true => ElementType::I8,
            false => ElementType::U8,
        },
        shape: part.shapes.get(&value).cloned().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::status::{FaultRecord, NOT_APPLICABLE, Status};

    #[test]
    fn a_program_that_a_device_refuses_is_told_with_the_node_where_there_is_one() {
        let names = Names::new([(0, "conv1"), (1, "fc")]);
        let told = |op_id| {
            let status = Status::PROGRAM_REFUSED;
            let record = Some(FaultRecord { status, op_id, ..FaultRecord::default() });
            let fault = libnpu::Fault { status, queue: 0, job: 4, record };
            CompileError::unloaded(libnpu::Error::Fault(Box::new(fault)), &names).to_string()
        };
        assert!(told(1).contains("program, at node `fc`: job 4 of queue 0"), "{}", told(1));
        for op_id in [2, NOT_APPLICABLE] {
            assert!(told(op_id).contains("the program: job 4 of queue 0"), "{}", told(op_id));
        }
    }
}
