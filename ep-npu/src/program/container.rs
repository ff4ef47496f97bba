//! A compiled program as the file that `npu objdump` reads: image, constants, names.

use super::{CompileError, Compiled, Edge};
use crate::dump;
use crate::emit::{CONSTANTS, EDGE_SLOTS_FROM};
use crate::graph::{ElementType, Graph};
use npu_uapi::addr::SlotId;
use npu_uapi::container::{Container, Io};
use npu_uapi::limits::Limits;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

impl Compiled {
    /// The program of `part`, compiled for a device of `limits`, as a file holds it.
    pub fn container(&self, part: &Graph, limits: &Limits) -> Container {
        let constants = match self.emitted.constant_bytes {
            0 => Vec::new(),
            _ => vec![(CONSTANTS, self.constants())],
        };
        let inputs = self.inputs.iter().map(|edge| (edge, false));
        let outputs = self.outputs.iter().map(|edge| (edge, true));
        let io = (EDGE_SLOTS_FROM..)
            .zip(inputs.chain(outputs))
            .map(|(slot, (edge, output))| io(slot, edge, output))
            .collect();
        let names = (0..)
            .zip(&self.emitted.op_ids)
            .map(|(op_id, &index)| (op_id, part.node(self.ops.ops[index].node).name.clone()))
            .collect();
        Container {
            image: self.emitted.image.clone(),
            constants,
            io,
            names,
            compiler: format!("ep-npu {}", env!("CARGO_PKG_VERSION")),
            source: self.source(part, limits),
        }
    }

    /// Writes the program's file into `folder`, which is made if need be, under the name of the part
    /// and the shape of its first input; returns where.
    pub fn write_to(
        &self,
        folder: &Path,
        part: &Graph,
        limits: &Limits,
    ) -> Result<PathBuf, CompileError> {
        let shape = self
            .inputs
            .first()
            .map(|edge| edge.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x"));
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let name: String = part.name().chars().map(safe).collect();
        let path = folder.join(format!("{name}.{}.npu", shape.unwrap_or_default()));
        let bytes = self.container(part, limits).to_bytes();
        let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, bytes));
        match written {
            Ok(()) => Ok(path),
            Err(why) => Err(CompileError::Dump { path, why }),
        }
    }

    /// Hash of all that the program depends on: graph, constants, shapes, device.
    fn source(&self, part: &Graph, limits: &Limits) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(dump::graph(part));
        for (_, node) in part.nodes() {
            hash.update(format!("{:?}", node.attributes));
            for &input in node.inputs.iter().flatten() {
                if let Some(constant) = &part.value(input).constant {
                    hash.update(&constant.bytes);
                }
            }
        }
        for edge in &self.inputs {
            hash.update(format!("{:?}", edge.shape));
        }
        hash.update(limits.as_bytes());
        hash.finalize().into()
    }
}

fn io(slot: usize, edge: &Edge, output: bool) -> Io {
    Io {
        name: edge.name.clone(),
        element: match edge.element {
            ElementType::F32 => 1,
            ElementType::I8 => 3,
            _ => 2,
        },
        shape: edge.shape.iter().map(|&len| len as u64).collect(),
        slot: SlotId(u16::try_from(slot).expect("the verifier bounds slots to 256")),
        output,
    }
}
