//! Constants of several elements in float expressions: which element meets which numbers.
//!
//! A tensor of codes meets, at each element, one number of every such constant. There are few different
//! meetings (as many as channels, mostly), so they are numbered, and the expression is a function of two
//! codes: the tensor's and that number.

use crate::graph::{ElementType, Node, Tensor};
use crate::refusal::{Refusal, refuse};
use std::collections::HashMap;

use super::codes::Codes;

/// Most different meetings: a code numbers them.
const DIFFERENT: usize = 256;

/// Most elements of constants that are looked through.
const ELEMENTS: usize = 1 << 24;

/// A number of a constant, with its code where it is quantised.
pub(super) type Number = (f32, Option<(Codes, u8)>);

/// A constant of several elements.
#[derive(Clone, Debug)]
pub(super) struct Vector {
    /// Its shape.
    pub(super) shape: Vec<usize>,
    /// Its numbers.
    pub(super) numbers: Vec<Number>,
}

/// What meets what.
#[derive(Debug)]
pub(super) struct Meetings {
    /// For each element of all constants together, the meeting.
    pub(super) which: Tensor,
    /// For each meeting, a number of each constant.
    pub(super) different: Vec<Vec<Number>>,
}

impl Meetings {
    /// Of `vectors`, which are repeated to each other's shapes.
    pub(super) fn of(node: &Node, vectors: &[Vector]) -> Result<Self, Refusal> {
        let rank = vectors.iter().map(|vector| vector.shape.len()).max().unwrap_or(0);
        let padded: Vec<Vec<usize>> = vectors
            .iter()
            .map(|v| std::iter::repeat_n(1, rank - v.shape.len()).chain(v.shape.clone()).collect())
            .collect();
        let mut shape = vec![1; rank];
        for own in &padded {
            for (all, &len) in shape.iter_mut().zip(own) {
                match (*all, len) {
                    (1, len) => *all = len,
                    (all, len) if len == all || len == 1 => {}
                    _ => return refuse!(SHAPE, "{node} reads constants of shapes {padded:?}"),
                }
            }
        }
        let count = shape.iter().try_fold(1_usize, |n, &len| n.checked_mul(len));
        let Some(count) = count.filter(|&count| count > 0 && count <= ELEMENTS) else {
            return refuse!(
                SIZE,
                "{node} reads constants of shape {shape:?}; 2^24 elements are taken"
            );
        };
        let mut known: HashMap<Vec<(u32, Option<u8>)>, u8> = HashMap::new();
        let (mut bytes, mut different) = (Vec::with_capacity(count), Vec::new());
        for element in 0..count {
            let met: Vec<Number> = vectors
                .iter()
                .zip(&padded)
                .map(|(vector, own)| vector.numbers[place(element, &shape, own)])
                .collect();
            let key = met.iter().map(|(value, code)| (value.to_bits(), code.map(|(_, c)| c)));
            let next = different.len();
            let number = match known.entry(key.collect()) {
                std::collections::hash_map::Entry::Occupied(found) => *found.get(),
                std::collections::hash_map::Entry::Vacant(free) => {
                    let Some(number) = u8::try_from(next).ok().filter(|_| next < DIFFERENT) else {
                        return refuse!(
                            SIZE,
                            "{node} reads constants with more than {DIFFERENT} different elements; quantise them"
                        );
                    };
                    different.push(met);
                    *free.insert(number)
                }
            };
            bytes.push(number);
        }
        let which = Tensor { element: ElementType::U8, shape, bytes: bytes.into() };
        Ok(Self { which, different })
    }
}

/// Where `element` of a tensor of `shape` lies in one of shape `own` that is repeated to it.
fn place(element: usize, shape: &[usize], own: &[usize]) -> usize {
    let (mut left, mut at, mut step) = (element, 0, 1);
    for (&all, &len) in shape.iter().zip(own).rev() {
        at += if len == 1 { 0 } else { left % all * step };
        left /= all;
        step *= len;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn node() -> Node {
        Node {
            name: "n".to_owned(),
            op: "Mul".to_owned(),
            domain: String::new(),
            inputs: vec![],
            outputs: vec![],
            attributes: BTreeMap::new(),
        }
    }

    fn vector(shape: &[usize], values: &[f32]) -> Vector {
        Vector { shape: shape.to_vec(), numbers: values.iter().map(|&v| (v, None)).collect() }
    }

    #[test]
    fn equal_meetings_have_one_number() {
        let rows = vector(&[2, 1], &[1.0, 2.0]);
        let columns = vector(&[3], &[5.0, 6.0, 5.0]);
        let all = Meetings::of(&node(), &[rows, columns]).unwrap();
        assert_eq!(all.which.shape, [2, 3]);
        assert_eq!(all.which.bytes.as_ref(), [0, 1, 0, 2, 3, 2]);
        let values = |met: &Vec<Number>| met.iter().map(|(value, _)| *value).collect::<Vec<_>>();
        assert_eq!(values(&all.different[3]), [2.0, 6.0]);
    }

    #[test]
    fn shapes_that_do_not_go_together_and_too_many_numbers_are_refused() {
        let [two, three] = [vector(&[2], &[1.0, 2.0]), vector(&[3], &[1.0, 2.0, 3.0])];
        assert!(Meetings::of(&node(), &[two, three]).unwrap_err().reason.contains("[[2], [3]]"));
        let values: Vec<f32> = (0..257_u16).map(f32::from).collect();
        let many = Meetings::of(&node(), &[vector(&[257], &values)]).unwrap_err();
        assert!(many.reason.contains("more than 256"), "{}", many.reason);
        let zero = Meetings::of(&node(), &[vector(&[0], &[])]).unwrap_err();
        assert!(zero.reason.contains("[0]"), "{}", zero.reason);
    }
}
