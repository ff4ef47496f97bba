//! What sums over dimensions go over: rows of elements, and the order in which the CPU provider adds one.

use crate::graph::Node;
use crate::quantize::{How, Norm, Step, Sum, axis_of};
use crate::refusal::{Refusal, refuse};
use npu_uapi::rows::{MOST_ELEMENTS, Order};

/// The dimensions of a tensor parted into those that stay and those that make a row.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rows {
    /// Dimensions that stay.
    kept: Vec<usize>,
    /// Dimensions of a row.
    reduced: Vec<usize>,
    /// Lengths of those that stay.
    pub(crate) lengths: Vec<usize>,
    /// Elements of a row.
    pub(crate) count: usize,
    /// The order of a row's sum; `None` where it is none of the device's.
    pub(crate) order: Option<Order>,
}

impl Rows {
    /// Of the dimensions `axes` of `shape`; of all where `None`.
    pub(crate) fn new(node: &Node, axes: Option<&[i64]>, shape: &[usize]) -> Result<Self, Refusal> {
        let all: Vec<i64> = (0..).take(shape.len()).collect();
        let wrapped = axes.unwrap_or(&all).iter().map(|&axis| axis_of(axis, shape.len()));
        let Some(reduced) = wrapped.collect::<Option<Vec<usize>>>() else {
            return refuse!(SHAPE, "{node} reduces {axes:?} of {shape:?}");
        };
        let is_reduced = |axis: &usize| reduced.contains(axis);
        let (reduced, kept): (Vec<usize>, Vec<usize>) = (0..shape.len()).partition(is_reduced);
        let lengths: Vec<usize> = kept.iter().map(|&axis| shape[axis]).collect();
        let count = reduced.iter().map(|&axis| shape[axis]).product();
        if u32::try_from(count).map_or(true, |count| count > MOST_ELEMENTS) {
            return refuse!(SIZE, "{node} sums {count} elements; {MOST_ELEMENTS} are taken");
        }
        let order = order(shape, &reduced);
        Ok(Self { kept, reduced, lengths, count, order })
    }

    /// The dimensions that stay, then a row.
    pub(crate) fn shape(&self) -> Vec<usize> {
        self.lengths.iter().copied().chain([self.count]).collect()
    }

    /// The shape of a result that has one element a row; reduced dimensions of `shape` stay where `keep`.
    pub(crate) fn result(&self, shape: &[usize], keep: bool) -> Vec<usize> {
        let of = |(axis, &len): (usize, &usize)| match self.reduced.contains(&axis) {
            true => keep.then_some(1),
            false => Some(len),
        };
        shape.iter().enumerate().filter_map(of).collect()
    }

    /// What makes that of the tensor.
    pub(crate) fn steps(&self) -> [Step; 2] {
        let order = self.kept.iter().chain(&self.reduced).copied().collect();
        [Step::Permute(order), Step::Reshape(self.shape())]
    }
}

/// The CPU provider's order of summation where `reduced` dimensions of `shape` are added up.
///
/// It looks at which of them lie side by side: one block of them at the end, at the beginning, or between
/// others has an order of its own.
fn order(shape: &[usize], reduced: &[usize]) -> Option<Order> {
    let mut blocks: Vec<(bool, usize)> = Vec::new();
    for (axis, &len) in shape.iter().enumerate() {
        let is_reduced = reduced.contains(&axis);
        match blocks.last_mut() {
            Some((last, count)) if *last == is_reduced => *count *= len,
            _ => blocks.push((is_reduced, len)),
        }
    }
    match *blocks.as_slice() {
        [] | [_] | [(false, _), (true, _)] => Some(Order::Peeled),
        [(true, _), (false, _)] | [(false, 1), (true, _), (false, _)] => Some(Order::InTurn),
        [(false, _), (true, _), (false, _)] => Some(Order::InFours),
        [(true, 1), (false, _), (true, _)] => Some(Order::Peeled),
        // Elsewise each block before would be a sum of its own.
        [(true, _), (false, kept), (true, _)] => (kept == 1).then_some(Order::InTurn),
        _ => Some(Order::InTurn),
    }
}

/// The rows of a sum and the order in which they are added.
pub(crate) fn of_sum(node: &Node, sum: &Sum, input: &[usize]) -> Result<(Rows, Order), Refusal> {
    let rows = Rows::new(node, sum.axes.as_deref(), input)?;
    let known = rows.order.filter(|_| !sum.is_exposed);
    let order = match known {
        Some(order) => order,
        None if sum.any_order_will_do(rows.count) => Order::InTurn,
        None if sum.is_exposed => {
            return refuse!(
                FLOAT_ORDER,
                "{node} stands between operators whose transpositions the CPU provider may move through it, \
                 and then adds its {} elements in another order; drop its dimensions with keepdims 0, or use a \
                 GlobalAveragePool",
                rows.count
            );
        }
        None => {
            return refuse!(
                FLOAT_ORDER,
                "{node} sums dimensions {:?} of {input:?}, of which the CPU provider adds each block by itself; \
                 dimensions side by side are taken",
                rows.reduced
            );
        }
    };
    Ok((rows, order))
}

/// What a normalisation is of.
pub(crate) struct Normalised {
    /// What makes rows of the input, in the order in which the result has them.
    pub(crate) steps: Vec<Step>,
    /// The dimensions before a row, and a row's length.
    pub(crate) rows: Vec<usize>,
    /// The shape of the result.
    pub(crate) shape: Vec<usize>,
    /// The orders of both sums, of single operators.
    pub(crate) orders: Option<[Order; 2]>,
}

/// What `norm` is of, for an input of shape `input`.
pub(crate) fn of_norm(node: &Node, norm: &Norm, input: &[usize]) -> Result<Normalised, Refusal> {
    let (axis, terms) = match &norm.how {
        How::Layer { axis, terms, .. } => (axis_of(*axis, input.len()), terms.len()),
        How::Instance { terms, .. } => (Some(2).filter(|_| input.len() > 2), terms.len()),
        How::Staged { .. } => return staged(node, norm, input),
    };
    let Some(axis) = axis else {
        return refuse!(
            SHAPE,
            "{node} reads a tensor of shape {input:?}, which has no such dimension"
        );
    };
    let count: usize = input[axis..].iter().product();
    let mut rows = input[..axis].to_vec();
    rows.push(count);
    let (wanted, least) = match &norm.how {
        How::Layer { .. } => (count, 8),
        _ => (input[1], 1),
    };
    if terms != wanted {
        return refuse!(SHAPE, "{node} has {terms} scales for {wanted} elements");
    }
    if count < least {
        return refuse!(
            SHAPE,
            "{node} normalises {count} elements, which the CPU provider sums otherwise than {least} and more"
        );
    }
    if u32::try_from(count).map_or(true, |count| count > MOST_ELEMENTS) {
        return refuse!(SIZE, "{node} normalises {count} elements; {MOST_ELEMENTS} are taken");
    }
    let steps = vec![Step::Reshape(rows.clone())];
    Ok(Normalised { steps, rows, shape: input.to_vec(), orders: None })
}

fn staged(node: &Node, norm: &Norm, input: &[usize]) -> Result<Normalised, Refusal> {
    let How::Staged { axes, order, variance_axes, .. } = &norm.how else {
        unreachable!("the caller knows the kind")
    };
    let wrong = || {
        refuse!(
            SHAPE,
            "{node} ends a normalisation of {input:?} over {axes:?} and {variance_axes:?}; both over what is \
             the last dimension of its result are taken"
        )
    };
    let order: Vec<usize> = match order {
        None => (0..input.len()).collect(),
        Some(order) => {
            let wrapped = order.iter().map(|&axis| axis_of(axis, input.len()));
            match wrapped.collect::<Option<Vec<usize>>>() {
                Some(order) if order.len() == input.len() => order,
                _ => return wrong(),
            }
        }
    };
    let shape: Vec<usize> = order.iter().map(|&axis| input[axis]).collect();
    let first = Rows::new(node, axes.as_deref(), input)?;
    let second = Rows::new(node, variance_axes.as_deref(), &shape)?;
    let Some(last) = shape.len().checked_sub(1) else { return wrong() };
    let is_sorted = order[..last].is_sorted();
    if second.reduced != [last] || first.reduced != [order[last]] || !is_sorted {
        return wrong();
    }
    let (Some(one), Some(other)) = (first.order, second.order) else { return wrong() };
    Ok(Normalised {
        steps: vec![Step::Permute(order)],
        rows: shape.clone(),
        shape,
        orders: Some([one, other]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_follows_from_where_the_dimensions_stand() {
        let of = |shape: &[usize], reduced: &[usize]| order(shape, reduced);
        assert_eq!(of(&[2, 5, 7], &[2]), Some(Order::Peeled));
        assert_eq!(of(&[2, 5, 7], &[0, 1, 2]), Some(Order::Peeled));
        assert_eq!(of(&[2, 5, 7], &[0]), Some(Order::InTurn));
        assert_eq!(of(&[2, 5, 7], &[1]), Some(Order::InFours));
        // A single dimension before is none; one behind is one.
        assert_eq!(of(&[1, 5, 7], &[1]), Some(Order::InTurn));
        assert_eq!(of(&[2, 5, 1], &[1]), Some(Order::InFours));
        assert_eq!(of(&[2, 5, 7], &[0, 2]), None);
        assert_eq!(of(&[1, 5, 7], &[0, 2]), Some(Order::Peeled));
        assert_eq!(of(&[2, 1, 7], &[0, 2]), Some(Order::InTurn));
        assert_eq!(of(&[2, 5, 7, 3], &[0, 2]), Some(Order::InTurn));
    }
}
