//! Builds quantised models for tests, and runs them both ways: compiled on the simulated device, and
//! by the reference.

mod model;

pub(crate) use model::{Flow, Model, Weighted};

use crate::graph::{ElementType, Graph, GraphBuilder};
use crate::program;
use crate::reference::{self, Value};
use crate::run::{Executable, OwnedOutputs, RunOptions, TensorRef};
use libnpu::{Caller, Device};
use ndarray::{ArrayD, IxDyn};

/// An executable for the whole of `graph`, on the reference device.
pub(crate) fn executable(graph: Graph) -> Executable {
    executable_on("sim", graph)
}

/// An executable for the whole of `graph`, on this device.
pub(crate) fn executable_on(device: &str, graph: Graph) -> Executable {
    let device = Device::open(device).expect("the simulated device opens");
    let context = device.create_context().expect("a context");
    Executable::new(graph, context, device, RunOptions::default()).expect("the graph compiles")
}

/// Runs `executable` on the device; the outputs have the types of `like`.
pub(crate) fn run(executable: &Executable, inputs: &[Value], like: &[Value]) -> Vec<Value> {
    let part = executable.part();
    let given: Vec<TensorRef<'_>> = inputs
        .iter()
        .zip(part.inputs())
        .map(|(input, &id)| match input {
            Value::Codes(codes) => {
                let element = part.value(id).ty.as_ref().map_or(ElementType::U8, |ty| ty.element);
                TensorRef::from_bytes(element, codes.shape(), codes.as_slice().unwrap())
            }
            Value::Floats(floats) => {
                TensorRef::from_f32(floats.shape(), floats.as_slice().unwrap())
            }
        })
        .collect();
    let mut outputs = OwnedOutputs::default();
    executable.run(&given, &mut outputs, &Caller).expect("the run succeeds");
    let value = |(index, like): (usize, &Value)| {
        let (bytes, shape) = (outputs.bytes(index).unwrap(), IxDyn(outputs.shape(index).unwrap()));
        match like {
            Value::Codes(_) => Value::Codes(ArrayD::from_shape_vec(shape, bytes).unwrap()),
            Value::Floats(_) => {
                let floats = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
                Value::Floats(ArrayD::from_shape_vec(shape, floats).unwrap())
            }
        }
    };
    like.iter().enumerate().map(value).collect()
}

/// What the reference makes of `graph`.
pub(crate) fn expected(graph: &Graph, inputs: &[Value]) -> Vec<Value> {
    let units = program::units(graph).expect("every node is taken");
    reference::run(graph, &units, inputs)
}

/// Inputs for `graph` at this batch, the same for the same `seed`.
pub(crate) fn inputs(graph: &Graph, batch: usize, seed: u64) -> Vec<Value> {
    let mut noise = Noise(seed);
    let input = |&id: &crate::graph::ValueId| {
        let ty = graph.value(id).ty.clone().expect("test models declare their inputs");
        let dims = ty.shape.expect("test models declare their inputs");
        let length = |dim: &crate::graph::Dim| match dim {
            crate::graph::Dim::Known(length) => *length,
            crate::graph::Dim::Symbol(_) => batch,
        };
        let shape: Vec<usize> = dims.iter().map(length).collect();
        let shape = IxDyn(&shape);
        match ty.element {
            ElementType::F32 => {
                Value::Floats(ArrayD::from_shape_simple_fn(shape, || noise.float()))
            }
            _ => Value::Codes(ArrayD::from_shape_simple_fn(shape, || noise.byte())),
        }
    };
    graph.inputs().iter().map(input).collect()
}

/// Repeatable noise: splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A number from 0 to `below`, without it.
    pub(crate) fn below(&mut self, below: usize) -> usize {
        usize::try_from(self.next() % below as u64).unwrap()
    }

    /// One of `choices`.
    pub(crate) fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// About -3 to 3.
    pub(crate) fn float(&mut self) -> f32 {
        let sum: i32 = (0..4).map(|_| i32::from(self.byte())).sum();
        f32::from(i16::try_from(sum - 510).unwrap()) / 170.0
    }
}

/// A builder with nothing in it.
pub(crate) fn builder() -> GraphBuilder {
    GraphBuilder::new("test")
}
