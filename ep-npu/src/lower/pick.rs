//! Units that take elements of a tensor one by one, and several parts of it.

use super::place::{Seen, both};
use super::view::View;
use super::{Form, Held, Home, Lowering, OpKind, natural_dims};
use crate::graph::{NodeId, ValueId};
use crate::quantize::{Share, Split, Step, Unit, runs};

impl Lowering<'_> {
    /// Parts of a tensor, each of which is only seen.
    pub(super) fn split(&mut self, unit: &Unit, how: &Split, shares: &[Share]) {
        let (input, node) = (unit.inputs[0], unit.target);
        let shape = self.part.shapes[&input].clone();
        for (output, share) in unit.outputs().zip(shares) {
            let step = how.step(self.part.graph.node(node), &shape, share.index);
            let step = step.expect("`shape` has taken this step before");
            let seen = self.viewed(input, node, &[step]);
            let table = both(seen.table.as_ref(), share.table.as_ref());
            let held = Held { view: Some(seen.view), table, ..Held::plain(seen.tensor) };
            self.values.insert(output, held);
        }
    }

    /// `value` after `steps`, as far as it need not be moved for that.
    pub(super) fn viewed(&mut self, value: ValueId, node: NodeId, steps: &[Step]) -> Seen {
        let mut seen = self.seen(value, node);
        let mut shape = self.part.shapes[&value].clone();
        for part in steps.split_inclusive(|step| matches!(step, Step::Pick { .. })) {
            let (pick, before) = match part.split_last() {
                Some((Step::Pick { axis, elements }, before)) => (Some((*axis, elements)), before),
                _ => (None, part),
            };
            let mut view = seen.view.clone().after(before);
            if view.is_none() {
                let tensor = self.place(value, node, &seen, &shape);
                let plain = View::of(self.ops.tensor(tensor).form, &shape);
                let plain = plain.expect("the dimensions are of that shape");
                view = plain.clone().after(before);
                seen = Seen { tensor, view: plain, table: None };
            }
            seen.view = view.expect("a dimension with one stride takes every step");
            shape = before.iter().fold(shape, |shape, step| step.shape(shape));
            if let Some((axis, elements)) = pick {
                seen = self.picked(value, node, seen, &mut shape, (axis, elements));
            }
        }
        seen
    }

    /// A feature map of these elements of dimension `axis`; `shape` becomes its own.
    fn picked(
        &mut self,
        value: ValueId,
        node: NodeId,
        mut seen: Seen,
        shape: &mut [usize],
        (axis, elements): (usize, &[usize]),
    ) -> Seen {
        let runs = runs(elements);
        let from = |seen: &Seen| {
            let run =
                runs.iter().map(|run| seen.view.clone().sliced(axis, run.from, run.step, run.len));
            run.collect::<Option<Vec<View>>>()
        };
        let views = from(&seen).unwrap_or_else(|| {
            let tensor = self.place(value, node, &seen, shape);
            let view = View::of(self.ops.tensor(tensor).form, shape);
            let view = view.expect("the dimensions are of that shape");
            seen = Seen { tensor, view, table: None };
            from(&seen).expect("a dimension with one stride takes every step")
        });
        shape[axis] = elements.len();
        let form = Form::map(natural_dims(shape));
        let out = self.tensor_of(value, Home::Scratch, form);
        let whole = View::of(form, shape).expect("the dimensions are of that shape");
        let mut parts = Vec::new();
        for (run, view) in runs.iter().zip(views) {
            let to = whole.clone().sliced(axis, run.to, run.stride.cast_signed(), run.len);
            let to = to.expect("dimensions of a feature map have one stride each");
            let moves = view.moves(0, &to, seen.table.as_ref());
            parts.extend(moves.expect("dimensions of a feature map have one stride each"));
        }
        self.push(node, vec![seen.tensor], out, OpKind::Move { fill: None, parts });
        Seen { tensor: out, view: whole, table: None }
    }
}
