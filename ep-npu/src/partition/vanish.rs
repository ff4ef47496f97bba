//! Units that make a fixed shape of an open batch, such as a maximum over it: for a batch of none the CPU
//! provider has a value of its own there, and no program would write it.

use super::refuse_unit;
use crate::graph::{Graph, ValueId};
use crate::quantize::Units;
use crate::refusal::{Refusal, rule};
use crate::shape::Shapes;

/// Refuses them. `one` and `other` are the shapes for two assignments of the open dimensions.
pub(super) fn refuse(graph: &Graph, units: &mut Units, one: &Shapes, other: &Shapes) {
    for index in 0..units.units.len() {
        let unit = &units.units[index];
        let is_open = |value: &ValueId| one.get(value) != other.get(value);
        if units.of_node[unit.target.0 as usize].is_ok()
            && unit.inputs.iter().any(is_open)
            && unit.outputs().any(|output| !is_open(&output))
        {
            let node = graph.node(unit.target);
            let reason = format!(
                "{node} makes a fixed shape of an open batch; give the batch a length, or keep it a dimension"
            );
            refuse_unit(units, index, &Refusal::new(rule::SHAPE, reason));
        }
    }
}
