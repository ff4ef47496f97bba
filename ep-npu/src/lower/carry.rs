//! Floats of a graph input that are put elsewhere and quantised: quantised first, as the device fetches
//! them, and seen elsewhere then.

use super::view::View;
use super::{Form, Held, Home, Lowering, OpKind, natural_dims};
use crate::graph::ValueId;
use crate::quantize::{Codes, Kind, Step, Unit};

impl Lowering<'_> {
    /// The codes of a float input, or of what units before `unit` made of one.
    pub(super) fn quantised(&mut self, unit: &Unit, codes: Codes) -> Held {
        let (source, path) = self.path(unit.inputs[0]);
        let shape = self.part.shapes[&source].clone();
        let out = &self.part.shapes[&unit.output];
        let steps: Vec<Step> = path.iter().flat_map(|(_, steps)| steps.clone()).collect();
        let floats = |shape: &[usize]| Form::Host { dims: natural_dims(shape), element_bytes: 4 };
        let seen = View::of(floats(&shape), &shape).and_then(|view| view.after(&steps));
        if seen.is_some_and(|view| view.is_dense(out)) {
            // The same elements in the same order: they are fetched in their last shape.
            let last = self.last_shape_of(unit.output);
            let dims = self.fetched_dims(last);
            let map = self.fetch(source, last, dims, unit.target, Some(codes));
            return Held::plain(map);
        }
        let is_known = |known: &&(ValueId, Codes, _)| known.0 == source && known.1 == codes;
        let map = if let Some(known) = self.quantised.iter().find(is_known) {
            known.2
        } else {
            let map = self.fetch(source, source, self.dims(source), unit.target, Some(codes));
            self.quantised.push((source, codes, map));
            map
        };
        let (mut tensor, mut shape) = (map, shape);
        let mut view = View::of(self.ops.tensor(map).form, &shape);
        for (value, steps) in path {
            let here = view.expect("a fetched tensor has its own shape, and steps keep it");
            view = here.clone().after(&steps);
            if view.is_none() {
                // Only another order of the bytes can say it.
                let dense = Form::Host { dims: natural_dims(&shape), element_bytes: 1 };
                let to = View::of(dense, &shape).expect("dense bytes have any shape");
                let parts = here.moves(0, &to, None).expect("dense bytes have one stride each");
                let written = self.tensor_of(value, Home::Scratch, dense);
                self.push(unit.target, vec![tensor], written, OpKind::Move { fill: None, parts });
                (tensor, view) = (written, to.after(&steps));
            }
            shape = steps.iter().fold(shape, |shape, step| step.shape(shape));
        }
        Held { view, ..Held::plain(tensor) }
    }

    /// What `value` becomes where all that is done with it is to give it another shape.
    ///
    /// ONNX Runtime quantises an input before it is reshaped, where the file has it the other way round:
    /// who reads pixels wants them as they are at the end.
    pub(super) fn last_shape_of(&self, value: ValueId) -> ValueId {
        let mut last = value;
        while !self.part.outputs.contains(&last) {
            let mut readers = self.part.flow.readers(last);
            match (readers.next(), readers.next()) {
                (Some(unit), None) if self.is_other_shape(unit) => last = unit.output,
                _ => break,
            }
        }
        last
    }

    /// Whether all that `unit` does is to give the same elements in the same order another shape, as a
    /// transposition does that moves only dimensions of length 1.
    pub(super) fn is_other_shape(&self, unit: &Unit) -> bool {
        let how = match &unit.kind {
            Kind::Reshape { table: None, .. } => return true,
            Kind::Rearrange { how, table: None } => how,
            _ => return false,
        };
        let [from, to] = [unit.inputs[0], unit.output].map(|value| &self.part.shapes[&value]);
        // The first elements of a tensor are dense, too, and not all of them.
        if from.iter().product::<usize>() != to.iter().product::<usize>() {
            return false;
        }
        let floats = Form::Host { dims: natural_dims(from), element_bytes: 4 };
        let steps = how.steps(self.part.graph.node(unit.target), from);
        let seen =
            View::of(floats, from).zip(steps.ok()).and_then(|(view, steps)| view.after(&steps));
        seen.is_some_and(|view| view.is_dense(to))
    }

    /// The part's input that `value` comes from, and what is done with it on the way.
    fn path(&self, value: ValueId) -> (ValueId, Vec<(ValueId, Vec<Step>)>) {
        let (mut source, mut path) = (value, Vec::new());
        let writer = |value| self.part.flow.writer(value);
        while let Some((unit, Kind::Carry(how))) = writer(source).map(|unit| (unit, &unit.kind)) {
            let before = unit.inputs[0];
            let node = self.part.graph.node(unit.target);
            let shapes = [before, source].map(|value| self.part.shapes[&value].as_slice());
            let nth = unit.outputs().position(|output| output == source).unwrap_or(0);
            path.push((before, how.steps(node, shapes[0], shapes[1], nth)));
            source = before;
        }
        path.reverse();
        (source, path)
    }
}
