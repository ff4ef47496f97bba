//! Weights that a bundle holds as the device reads them only. The tensors of the graph are made of these
//! when something is to be compiled from it, which is seldom: a session that has its programs never does.

use super::error::{BundleError, malformed};
use super::program::Ready;
use super::wire::{Reader, Writer};
use crate::emit::{Chunk, Content, Packing};
use crate::graph::{ElementType, Graph, Tensor, ValueId};
use crate::lower::{OpKind, Ops};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};

/// A constant of the graph that a program's constants hold in blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Packed {
    pub(crate) value: ValueId,
    /// Where its blocks begin in the constants.
    offset: usize,
    packing: Packing,
}

/// The constants of `part` that can be made of what the compiler packed: those of which it has been
/// tried.
pub(crate) fn find(part: &Graph, ops: &Ops, chunks: &[Chunk], constants: &[u8]) -> Vec<Packed> {
    let place = |bytes: &Bytes| (bytes.as_ptr().addr(), bytes.len());
    let values = (0..).map(ValueId).take(part.value_count());
    // Weights are views of the graph's tensors.
    let mut by_place: HashMap<(usize, usize), (ValueId, &Tensor)> = values
        .filter_map(|value| Some((value, part.value(value).constant.as_ref()?)))
        .filter(|(_, tensor)| is_of_bytes(tensor))
        .map(|(value, tensor)| (place(&tensor.bytes), (value, tensor)))
        .collect();
    let mut found = Vec::new();
    for chunk in chunks {
        let OpKind::Conv(conv) = &ops.ops[chunk.op].kind else { continue };
        if !matches!(chunk.content, Content::Weights(_)) {
            continue;
        }
        let Some(&(value, tensor)) = by_place.get(&place(&conv.weights.bytes)) else { continue };
        let Ok(offset) = usize::try_from(chunk.offset) else { continue };
        let packed = Packed { value, offset, packing: Packing::of(conv) };
        if packed.tensor(constants).is_some_and(|bytes| bytes == tensor.bytes) {
            by_place.remove(&place(&tensor.bytes));
            found.push(packed);
        }
    }
    found
}

impl Packed {
    pub(super) fn write(&self, out: &mut Writer) {
        let Packing { groups, outputs, inputs, kernel: [rows, columns], strides } = self.packing;
        out.u32(self.value.0);
        for length in [self.offset, groups, outputs, inputs, rows, columns] {
            out.length(length);
        }
        for stride in strides {
            out.length(stride);
        }
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, BundleError> {
        let value = ValueId(reader.u32()?);
        let mut lengths = [0; 10];
        for length in &mut lengths {
            *length = reader.length()?;
        }
        let [offset, groups, outputs, inputs, rows, columns, strides @ ..] = lengths;
        let kernel = [rows, columns];
        Ok(Self { value, offset, packing: Packing { groups, outputs, inputs, kernel, strides } })
    }

    /// Bytes of the tensor, and its blocks; none where they pass the end of `constants`.
    fn blocks<'a>(&self, constants: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let (packed_bytes, tensor_bytes) = self.packing.checked_bytes()?;
        let end = self.offset.checked_add(packed_bytes)?;
        Some((tensor_bytes, constants.get(self.offset..end)?))
    }

    /// The bytes of the constant, made of its blocks in `constants`.
    pub(crate) fn tensor(&self, constants: &[u8]) -> Option<Vec<u8>> {
        let (tensor_bytes, blocks) = self.blocks(constants)?;
        let mut tensor = vec![0; tensor_bytes];
        self.packing.unpack(blocks, &mut tensor);
        Some(tensor)
    }
}

/// Holds `programs` to what is missing in `part`: each constant that is kept apart lies in the constants
/// of one program, and all of them are no longer than what they are made of.
pub(super) fn check(part: &Graph, programs: &[Ready], blob_len: usize) -> Result<(), BundleError> {
    let mut left: BTreeSet<ValueId> = (0..)
        .map(ValueId)
        .take(part.value_count())
        .filter(|&value| part.value(value).constant.as_ref().is_some_and(Tensor::is_apart))
        .collect();
    let mut total = 0_usize;
    for program in programs {
        for packed in &program.packed {
            if !left.remove(&packed.value) {
                return Err(malformed("packed weights are of no constant, or of one twice"));
            }
            let tensor = part.value(packed.value).constant.as_ref();
            let want = tensor.filter(|tensor| is_of_bytes(tensor)).and_then(Tensor::expected_bytes);
            let found = packed.blocks(program.constants.as_deref().unwrap_or_default());
            let found = found.map(|(tensor_bytes, _)| tensor_bytes);
            total = total.saturating_add(found.unwrap_or_default());
            if found.is_none() || found != want || total > blob_len {
                return Err(malformed("packed weights are not those of their constant"));
            }
        }
    }
    match left.is_empty() {
        true => Ok(()),
        false => Err(malformed("a constant is missing")),
    }
}

/// `part` with all of its constants, those that are kept apart made of what `programs` hold.
pub(crate) fn whole(part: &Graph, programs: &[Ready]) -> Graph {
    let mut whole = part.clone();
    for program in programs {
        let constants = program.constants.as_deref().unwrap_or_default();
        for packed in &program.packed {
            let is_apart = part.value(packed.value).constant.as_ref().is_some_and(Tensor::is_apart);
            if is_apart && let Some(bytes) = packed.tensor(constants) {
                whole.give(packed.value, Bytes::from(bytes));
            }
        }
    }
    whole
}

fn is_of_bytes(tensor: &Tensor) -> bool {
    matches!(tensor.element, ElementType::I8 | ElementType::U8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;
    use crate::testing::{Model, Weighted, executable};

    /// A bundle whose only convolution has its weights packed, with that recipe changed.
    fn changed(change: impl FnOnce(&mut Vec<Packed>)) -> Result<Bundle, BundleError> {
        let mut bundle = sample();
        change(&mut bundle.programs[0].packed);
        Bundle::from_bytes(&Bytes::from(bundle.to_bytes()))
    }

    fn sample() -> Bundle {
        let mut model = Model::new(3);
        let codes = model.codes();
        let input = model.float_input(&[1, 8, 6, 6], codes);
        let shape = vec![20, 8, 3, 3];
        let weights = Weighted { shape, axis: 0, per_channel: true, with_bias: true };
        let output = model.weighted("Conv", &input, &weights, &[], (codes, &[1, 20, 4, 4]));
        model.float_output(&output);
        let blob = executable(model.finish()).bundle().unwrap().to_bytes();
        Bundle::from_bytes(&Bytes::from(blob)).unwrap()
    }

    #[test]
    fn packed_weights_that_are_not_those_of_a_constant_are_refused() {
        assert_eq!(changed(|packed| assert_eq!(packed.len(), 1)).unwrap().programs.len(), 1);
        let changes: [fn(&mut Packed); 8] = [
            |packed| packed.offset = usize::MAX,
            |packed| packed.offset = 1 << 20,
            |packed| packed.packing.outputs += 1,
            |packed| packed.packing.groups = 3,
            |packed| packed.packing.inputs = 0,
            |packed| packed.packing.kernel = [1 << 40, 1 << 40],
            |packed| packed.packing.strides[0] += 1,
            |packed| packed.packing.strides[3] = usize::MAX,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let error = changed(|packed| change(&mut packed[0])).unwrap_err();
            let want = malformed("packed weights are not those of their constant");
            assert_eq!(error, want, "change {index}");
        }
    }

    #[test]
    fn each_constant_that_is_apart_lies_in_one_place() {
        // Neither the graph nor a program has the bytes.
        assert!(matches!(changed(Vec::clear), Err(BundleError::Graph(_))));
        let mut twice = sample();
        let again = twice.programs[0].clone();
        let found = check(&twice.part, &[again.clone(), again], usize::MAX);
        assert_eq!(found, Err(malformed("packed weights are of no constant, or of one twice")));
        twice.programs[0].packed.clear();
        let found = check(&twice.part, &twice.programs, usize::MAX);
        assert_eq!(found, Err(malformed("a constant is missing")));
        assert!(check(&twice.part, &sample().programs, 100).is_err(), "more than the blob has");
    }
}
