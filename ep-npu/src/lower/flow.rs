//! Who writes and who reads each value of a part: found once, looked up by every stage that follows values.

use crate::graph::ValueId;
use crate::quantize::Unit;

/// The writers and readers among some units.
#[derive(Clone, Debug)]
pub struct Flow<'a> {
    /// By value, the unit that writes it.
    writers: Vec<(ValueId, &'a Unit)>,
    /// By value, the places of the units that read it.
    readers: Vec<(ValueId, usize)>,
    units: &'a [&'a Unit],
}

impl<'a> Flow<'a> {
    /// Of `units`, in topological order.
    pub fn of(units: &'a [&'a Unit]) -> Self {
        let mut writers: Vec<(ValueId, &Unit)> = Vec::with_capacity(units.len());
        let mut readers = Vec::with_capacity(units.len());
        for (place, &unit) in units.iter().enumerate() {
            writers.extend(unit.outputs().map(|value| (value, unit)));
            readers.extend(unit.inputs.iter().map(|&value| (value, place)));
        }
        writers.sort_by_key(|&(value, _)| value);
        readers.sort_unstable();
        // Who reads a value twice is one reader.
        readers.dedup();
        Self { writers, readers, units }
    }

    /// The unit that writes `value`.
    pub fn writer(&self, value: ValueId) -> Option<&'a Unit> {
        let at = self.writers.partition_point(|&(written, _)| written < value);
        self.writers.get(at).filter(|&&(written, _)| written == value).map(|&(_, unit)| unit)
    }

    /// The units that read `value`, each once, in topological order.
    pub fn readers(&self, value: ValueId) -> impl Iterator<Item = &'a Unit> + use<'a, '_> {
        let from = self.readers.partition_point(|&(read, _)| read < value);
        let of_value = self.readers[from..].iter().take_while(move |&&(read, _)| read == value);
        of_value.map(|&(_, place)| self.units[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::NodeId;
    use crate::quantize::{Codes, Kind};

    fn unit(target: u32, inputs: &[u32], output: u32) -> Unit {
        Unit {
            target: NodeId(target),
            nodes: vec![NodeId(target)],
            inputs: inputs.iter().copied().map(ValueId).collect(),
            output: ValueId(output),
            others: Vec::new(),
            kind: Kind::Dequantize(Codes { scale: 1.0, zero_point: 0 }),
        }
    }

    #[test]
    fn readers_come_once_each_and_in_order_and_writers_are_found() {
        let units = [unit(0, &[9], 4), unit(1, &[4, 4], 2), unit(2, &[2, 4], 7)];
        let units: Vec<&Unit> = units.iter().collect();
        let flow = Flow::of(&units);
        let targets = |value| -> Vec<u32> {
            flow.readers(ValueId(value)).map(|unit| unit.target.0).collect()
        };
        assert_eq!([targets(4), targets(2), targets(9)], [vec![1, 2], vec![2], vec![0]]);
        assert!(targets(7).is_empty() && targets(3).is_empty());
        let writer = |value| flow.writer(ValueId(value)).map(|unit| unit.target.0);
        assert_eq!([writer(4), writer(2), writer(7), writer(9)], [Some(0), Some(1), Some(2), None]);
    }
}
