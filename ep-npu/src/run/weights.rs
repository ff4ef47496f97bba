//! Weights of a part that is compiled: as the device reads them, and not a second time as the model has
//! them. When another shape is to be compiled, the latter are made of the former.

use super::{Executable, RunOptions, constants};
use crate::bundle::{self, Packed};
use crate::graph::Graph;
use crate::program::CompileError;
use bytes::Bytes;
use libnpu::{Context, Device};
use std::sync::{Arc, OnceLock};

/// Constants of the part that are among those of a program, on a device in this process.
#[derive(Debug)]
pub(super) struct Held {
    constants: Arc<constants::Bound>,
    packed: Vec<Packed>,
}

impl Executable {
    /// As [`Executable::new`], and holds no constant of `part` in memory that is not its own.
    ///
    /// # Errors
    /// As for [`Executable::new`].
    pub(crate) fn new_apart(
        part: Graph,
        context: Context,
        device: Device,
        options: RunOptions,
    ) -> Result<Self, CompileError> {
        let mut executable = Self::with(part, Vec::new(), context, device, options);
        let mut held = Vec::new();
        for shapes in executable.shapes_at_once()? {
            if executable.cache.get(&shapes).is_some() {
                continue;
            }
            let (loaded, compiled) = executable.compile_now(&shapes)?;
            if let Some(constants) = &loaded.constants
                && let Some(bytes) = constants.bytes()
            {
                let (part, chunks) = (&executable.whole()?.graph, &compiled.emitted.constants);
                let packed = bundle::packed(part, &compiled.ops, chunks, bytes);
                held.push(Held { constants: Arc::clone(constants), packed });
            }
            executable.cache.insert(shapes, loaded);
        }
        executable.held = held;
        executable.settle();
        Ok(executable)
    }

    /// Lets go of the constants that programs hold, and copies the others.
    pub(crate) fn settle(&mut self) {
        self.whole = OnceLock::new();
        let ready = self.ready.iter().flat_map(|ready| &ready.packed);
        for packed in self.held.iter().flat_map(|held| &held.packed).chain(ready) {
            self.part.give(packed.value, Bytes::new());
        }
        self.part.own_constants();
    }

    /// Gives `part` the constants that were let go of.
    pub(super) fn give_back(&self, part: &mut Graph) {
        for held in &self.held {
            let constants = held.constants.bytes().unwrap_or_default();
            for packed in &held.packed {
                if let Some(tensor) = packed.tensor(constants) {
                    part.give(packed.value, Bytes::from(tensor));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Tensor, ValueId};
    use crate::testing::{Model, Weighted, executable};

    fn constants(graph: &Graph) -> Vec<Option<Tensor>> {
        let values = (0..).map(ValueId).take(graph.value_count());
        values.map(|value| graph.value(value).constant.clone()).collect()
    }

    #[test]
    fn weights_that_were_let_go_of_are_made_again() {
        let mut model = Model::new(3);
        let codes = model.codes();
        let input = model.float_input(&[1, 8, 6, 6], codes);
        let shape = vec![20, 8, 3, 3];
        let weights = Weighted { shape, axis: 0, per_channel: true, with_bias: true };
        let output = model.weighted("Conv", &input, &weights, &[], (codes, &[1, 20, 4, 4]));
        model.float_output(&output);
        let graph = model.finish();
        let blob = executable(graph.clone()).bundle().unwrap().to_bytes();

        let device = Device::open("sim").unwrap();
        let context = device.create_context().unwrap();
        let options = RunOptions::default();
        let made = Executable::new_apart(graph.clone(), context, device, options).unwrap();
        let apart = constants(made.part()).into_iter().flatten().filter(Tensor::is_apart);
        assert_eq!(apart.count(), 1, "the weights, and neither scales nor bias");
        assert_eq!(constants(&made.whole().unwrap().graph), constants(&graph));
        assert_eq!(made.bundle().unwrap().to_bytes(), blob);
    }
}
