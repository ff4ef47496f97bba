//! Inputs and outputs in memory of the device: what a run reads and writes where it lies.
//! Unsafe: it hands a run addresses of buffers that it holds.

use super::{Engine, FEW, Session, SessionError};
use crate::graph::ElementType;
use crate::program::Edge;
use crate::run::{RunReport, TensorMut, TensorRef};
use libnpu::Buffer;
use smallvec::SmallVec;

/// Tensors of one run in the device's memory; made by [`Session::bind`].
///
/// A run borrows it exclusively, so nothing is read or written while the device does.
#[derive(Debug)]
pub struct Binding<'s> {
    session: &'s Session,
    inputs: Vec<Bound>,
    outputs: Vec<Bound>,
}

#[derive(Debug)]
struct Bound {
    name: String,
    element: ElementType,
    shape: Vec<usize>,
    buffer: Buffer,
}

impl<'s> Binding<'s> {
    pub(super) fn new(session: &'s Session, shapes: &[&[usize]]) -> Result<Self, SessionError> {
        session.check_shapes(shapes)?;
        let Engine::Npu(steps) = &session.engine else { return Err(SessionError::Unbound) };
        let (inputs, outputs) = steps.edges(&session.graph, shapes)?;
        let bound = |edge: Edge| {
            let len = usize::try_from(edge.len_bytes()).unwrap_or(usize::MAX);
            let buffer = session.device.allocate(len)?;
            let Edge { name, element, shape } = edge;
            Ok::<_, SessionError>(Bound { name, element, shape, buffer })
        };
        Ok(Self {
            session,
            inputs: inputs.into_iter().map(bound).collect::<Result<_, _>>()?,
            outputs: outputs.into_iter().map(bound).collect::<Result<_, _>>()?,
        })
    }

    /// Bytes of input `index`, to be filled before a run.
    pub fn input_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let bound = self.inputs.get(index)?;
        // SAFETY: the buffer is this binding's own; runs and other slices borrow the binding.
        Some(unsafe { bound.buffer.as_mut_slice() })
    }

    /// Bytes of output `index`, as the last run left them.
    pub fn output(&self, index: usize) -> Option<&[u8]> {
        let bound = self.outputs.get(index)?;
        // SAFETY: a run needs the binding exclusively and returns when the device is done.
        Some(unsafe { bound.buffer.as_slice() })
    }

    /// Shape of output `index`.
    pub fn output_shape(&self, index: usize) -> Option<&[usize]> {
        self.outputs.get(index).map(|bound| bound.shape.as_slice())
    }

    /// Names of the outputs, in order.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(|bound| bound.name.as_str())
    }

    /// Runs the model on what the inputs hold.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub fn run(&mut self) -> Result<RunReport, SessionError> {
        let inputs: SmallVec<[TensorRef<'_>; FEW]> = self
            .inputs
            .iter()
            .map(|bound| {
                let (data, len) = (bound.buffer.as_ptr().cast_const(), bound.buffer.len());
                // SAFETY: the buffer lives as long as the binding, and nobody writes it meanwhile.
                unsafe { TensorRef::from_raw(bound.element, &bound.shape, data, len) }
            })
            .collect();
        let mut outputs: SmallVec<[TensorMut<'_>; FEW]> = self
            .outputs
            .iter()
            .map(|bound| {
                let (data, len) = (bound.buffer.as_ptr(), bound.buffer.len());
                // SAFETY: as above; the binding is borrowed exclusively, so no slice of it exists.
                unsafe { TensorMut::from_raw(bound.element, &bound.shape, data, len) }
            })
            .collect();
        self.session.run_into(&inputs, &mut outputs)
    }
}
