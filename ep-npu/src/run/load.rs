//! Programs of an [`Executable`]: compiled or taken from a bundle, and loaded into the device.

use super::{Executable, Loaded, constants};
use crate::bundle::{self, Bundle, Ready};
use crate::graph::{Dim, Graph, ValueId};
use crate::program::{self, CompileError, Compiled};
use crate::quantize::Units;
use crate::shape::Assignment;
use npu_uapi::names::Names;
use std::sync::{Arc, PoisonError};

/// What a compiler needs of a part.
#[derive(Debug)]
pub(super) struct Whole {
    /// The part with all of its constants.
    pub(super) graph: Graph,
    pub(super) units: Units,
}

impl Executable {
    /// The part with its programs for the shapes it was made with, to be loaded without a compiler.
    ///
    /// # Errors
    /// As for [`Executable::new`].
    pub fn bundle(&self) -> Result<Bundle, CompileError> {
        let limits = self.device.limits();
        let mut programs = self.ready.clone();
        for shapes in self.shapes_at_once()? {
            if programs.iter().all(|ready| ready.shapes() != shapes) {
                let Whole { graph, units } = self.whole()?;
                let compiled = program::compile(graph, units, &shapes, limits)?;
                programs.push(Ready::new(&compiled, graph, limits));
            }
        }
        let compiler = format!("ep-npu {}", env!("CARGO_PKG_VERSION"));
        // What was let go of is made again.
        let part = if self.held.is_empty() { &self.part } else { &self.whole()?.graph };
        Ok(Bundle { part: part.clone(), limits: *limits, compiler, programs })
    }

    /// Input shapes for which there is to be a program from the start.
    pub(super) fn shapes_at_once(&self) -> Result<Vec<Vec<Vec<usize>>>, CompileError> {
        let inputs = self.part.inputs();
        let is_open = |&&input: &&ValueId| {
            let first = self.declared(input).and_then(|shape| shape.first());
            matches!(first, Some(Dim::Symbol(_)))
        };
        let batches = match self.options.batches.as_slice() {
            batches @ [_, ..] if inputs.iter().any(|input| is_open(&input)) => batches,
            _ => &[1],
        };
        let mut all = Vec::new();
        for &batch in batches {
            let mut assignment = Assignment::ones();
            let mut shapes = Vec::new();
            for input in inputs {
                let mut shape = assignment.shape(&self.part, *input)?;
                if let Some(first) = shape.first_mut().filter(|_| is_open(&input)) {
                    *first = batch;
                }
                shapes.push(shape);
            }
            all.push(shapes);
        }
        Ok(all)
    }

    pub(super) fn whole(&self) -> Result<&Whole, CompileError> {
        match self.whole.get() {
            Some(whole) => Ok(whole),
            None => {
                let mut graph = bundle::whole(&self.part, &self.ready);
                self.give_back(&mut graph);
                let units = program::units(&graph)?;
                Ok(self.whole.get_or_init(|| Whole { graph, units }))
            }
        }
    }

    /// The program for these input shapes, compiled if need be.
    pub(super) fn program(&self, shapes: &[Vec<usize>]) -> Result<Arc<Loaded>, CompileError> {
        if let Some(loaded) = self.cache.get(shapes) {
            return Ok(loaded);
        }
        self.load(shapes)
    }

    pub(super) fn load(&self, shapes: &[Vec<usize>]) -> Result<Arc<Loaded>, CompileError> {
        let _only_one = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = self.cache.get(shapes) {
            return Ok(loaded);
        }
        if let Some(ready) = self.ready.iter().find(|ready| ready.shapes() == shapes) {
            let loaded = self.load_ready(ready)?;
            return Ok(self.cache.insert(shapes.to_vec(), loaded));
        }
        let (loaded, _) = self.compile_now(shapes)?;
        Ok(self.cache.insert(shapes.to_vec(), loaded))
    }

    /// A program compiled for these input shapes, on the device.
    pub(super) fn compile_now(
        &self,
        shapes: &[Vec<usize>],
    ) -> Result<(Loaded, Compiled), CompileError> {
        let Whole { graph, units } = self.whole()?;
        let compiled = program::compile(graph, units, shapes, self.device.limits())?;
        if let Some(folder) = &self.options.dump {
            compiled.write_to(folder, graph, self.device.limits())?;
        }
        let name = |&index: &usize| graph.node(compiled.ops.ops[index].node).name.as_str();
        let names = Names::new((0..).zip(compiled.emitted.op_ids.iter().map(name)));
        let program = self.put(&compiled.emitted.image.to_bytes(), &names)?;
        let constants = self.constants(&compiled)?;
        let node = |&index: &usize| compiled.ops.ops[index].node;
        let nodes = compiled.emitted.op_ids.iter().map(node).collect();
        let loaded = Loaded {
            nodes,
            program,
            constants,
            scratch_bytes: compiled.memory.scratch_bytes,
            inputs: compiled.inputs.clone(),
            outputs: compiled.outputs.clone(),
        };
        Ok((loaded, compiled))
    }

    /// The program of `image`, on the device.
    fn put(&self, image: &[u8], names: &Names) -> Result<libnpu::Program, CompileError> {
        let loaded = self.context.load_named(image, names);
        loaded.map_err(|error| CompileError::unloaded(error, names))
    }

    /// A program of a bundle, on the device.
    fn load_ready(&self, ready: &Ready) -> Result<Loaded, CompileError> {
        let program = self.put(&ready.image(), &ready.names())?;
        let constants = match &ready.constants {
            None => None,
            Some(bytes) => {
                let loaded = self.cache.values();
                let mut bound = loaded.iter().filter_map(|loaded| loaded.constants.as_ref());
                Some(match bound.find(|constants| constants.are_at(bytes)) {
                    Some(same) => same.clone(),
                    None => {
                        let content = ready.content;
                        let (device, context) = (&self.device, &self.context);
                        Arc::new(constants::Bound::of_bundle(device, context, bytes, content)?)
                    }
                })
            }
        };
        Ok(Loaded {
            program,
            constants,
            scratch_bytes: ready.scratch_bytes(),
            inputs: ready.inputs.clone(),
            outputs: ready.outputs.clone(),
            nodes: ready.nodes.clone(),
        })
    }

    /// The constants of `compiled`: those of a program that is loaded, where they are the same.
    fn constants(
        &self,
        compiled: &Compiled,
    ) -> Result<Option<Arc<constants::Bound>>, CompileError> {
        if compiled.emitted.constant_bytes == 0 {
            return Ok(None);
        }
        let loaded = self.cache.values();
        let mut bound = loaded.iter().filter_map(|loaded| loaded.constants.as_ref());
        if let Some(same) = bound.find(|constants| constants.are_those_of(compiled)) {
            return Ok(Some(same.clone()));
        }
        let bound = constants::Bound::new(&self.device, &self.context, compiled)?;
        Ok(Some(Arc::new(bound)))
    }
}
