//! Constants whose bytes are kept apart from the graph, until something is to be compiled from it.

use super::{Dim, ElementType, Graph, GraphBuilder, Tensor, TensorType, ValueId};
use bytes::Bytes;

impl GraphBuilder {
    /// Says that `value` is a constant whose bytes are given to the graph later, if ever.
    pub(crate) fn set_constant_apart(
        &mut self,
        value: ValueId,
        element: ElementType,
        shape: Vec<usize>,
    ) {
        let slot = &mut self.graph().values[value.0 as usize];
        let known = shape.iter().map(|&len| Dim::Known(len)).collect();
        slot.ty = Some(TensorType { element, shape: Some(known) });
        slot.constant = Some(Tensor { element, shape, bytes: Bytes::new() });
    }
}

impl Graph {
    /// Copies all constants: none is a view of anything else any more.
    pub(crate) fn own_constants(&mut self) {
        for tensor in self.values.iter_mut().filter_map(|value| value.constant.as_mut()) {
            tensor.bytes = Bytes::copy_from_slice(&tensor.bytes);
        }
    }

    /// Gives a constant that is kept apart its bytes, or takes them away.
    pub(crate) fn give(&mut self, value: ValueId, bytes: Bytes) {
        if let Some(tensor) = &mut self.values[value.0 as usize].constant {
            tensor.bytes = bytes;
        }
    }
}

impl Tensor {
    /// Whether its bytes are kept apart.
    pub(crate) fn is_apart(&self) -> bool {
        self.bytes.is_empty() && self.expected_bytes().is_some_and(|bytes| bytes > 0)
    }
}
