//! Any elements of a dimension, in any order: as steps, and as the few evenly spaced runs in which
//! they are moved.

use super::rearrange::Step;

/// Longest dimension of a result whose elements are looked through.
pub(super) const LONGEST: usize = 1 << 16;
/// Most runs, each of which is a command.
const MOST_RUNS: usize = 256;
/// Longest pattern that is looked for, in elements of the result.
const LONGEST_PATTERN: usize = 16;

/// Evenly spaced elements that go to evenly spaced places.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// The first element of the input.
    pub from: usize,
    /// From one to the next; 0 repeats it.
    pub step: isize,
    /// Where the first one goes.
    pub to: usize,
    /// From one place to the next.
    pub stride: usize,
    /// How many.
    pub len: usize,
}

/// What makes `elements` of dimension `axis`, which has `len`; `None` where that takes too many commands.
pub(super) fn steps(axis: usize, len: usize, elements: Vec<usize>) -> Option<Vec<Step>> {
    if elements.iter().copied().eq(0..len) {
        return Some(Vec::new());
    }
    if let Some((start, step, times)) = evenly_spaced(&elements) {
        let count = elements.len() / times;
        let mut steps = Vec::new();
        if (start, step, count) != (0, 1, len) {
            steps.push(Step::Slice { axis, start, step, len: count });
        }
        if times > 1 {
            steps.push(Step::RepeatEach { axis, times });
        }
        return Some(steps);
    }
    let few = elements.len() <= LONGEST && runs(&elements).len() <= MOST_RUNS;
    few.then(|| vec![Step::Pick { axis, elements }])
}

/// `elements` as runs, by the pattern that needs the fewest.
pub fn runs(elements: &[usize]) -> Vec<Run> {
    let longest = LONGEST_PATTERN.min(elements.len()).max(1);
    let all = (1..=longest).map(|stride| by_pattern(elements, stride));
    all.min_by_key(Vec::len).unwrap_or_default()
}

/// Runs of every `stride`th element, as long as they go.
fn by_pattern(elements: &[usize], stride: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for phase in 0..stride {
        let mut open: Option<Run> = None;
        for to in (phase..elements.len()).step_by(stride) {
            let here = elements[to];
            match &mut open {
                Some(run) if run.len == 1 => {
                    // The second element says how far apart they are.
                    run.step = here.cast_signed() - run.from.cast_signed();
                    run.len = 2;
                }
                Some(run) if run.next() == Some(here) => run.len += 1,
                _ => {
                    runs.extend(open.take());
                    open = Some(Run { from: here, step: 1, to, stride, len: 1 });
                }
            }
        }
        runs.extend(open);
    }
    runs
}

impl Run {
    /// The element that would be the next one.
    fn next(&self) -> Option<usize> {
        let reach = self.step.checked_mul(self.len.cast_signed())?;
        self.from.checked_add_signed(reach)
    }
}

/// Start, step and how often each, when `elements` are evenly spaced and each there as often.
fn evenly_spaced(elements: &[usize]) -> Option<(usize, isize, usize)> {
    let &start = elements.first()?;
    let times = elements.iter().take_while(|&&element| element == start).count();
    let step = match elements.get(times) {
        Some(&next) => next.checked_signed_diff(start)?,
        None => 1,
    };
    let place = |index: usize| {
        let steps = (index / times).cast_signed();
        start.checked_add_signed(step.checked_mul(steps)?)
    };
    let is_even = elements.len().is_multiple_of(times)
        && elements.iter().enumerate().all(|(index, &element)| place(index) == Some(element));
    is_even.then_some((start, step, times))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn evenly_spaced_elements_are_slices_and_repetitions() {
        assert_eq!(evenly_spaced(&[0, 0, 1, 1]), Some((0, 1, 2)));
        assert_eq!(evenly_spaced(&[1, 3, 5]), Some((1, 2, 1)));
        assert_eq!(evenly_spaced(&[5, 3, 1]), Some((5, -2, 1)));
        assert_eq!(evenly_spaced(&[2, 2]), Some((2, 1, 2)));
        assert_eq!(evenly_spaced(&[0, 1, 1, 2]), None);
        assert_eq!(evenly_spaced(&[0, 0, 1, 1, 2]), None);
        assert_eq!(evenly_spaced(&[]), None);
        assert_eq!(steps(1, 3, vec![0, 1, 2]), Some(vec![]));
    }

    #[test]
    fn a_pattern_needs_a_run_for_each_of_its_elements() {
        let three_to_two: Vec<usize> = (0..90).map(|x| x * 2 / 3).collect();
        assert_eq!(runs(&three_to_two).len(), 3);
        // The mirror at one end, what is in the middle, and the mirror at the other.
        assert_eq!(runs(&[2, 1, 0, 1, 2, 3, 4, 3, 2]).len(), 3);
    }

    #[test]
    fn what_has_no_pattern_is_no_step() {
        let squares: Vec<usize> = (0..2000).map(|x| x * x % 1999).collect();
        assert_eq!(steps(0, 2000, squares), None);
    }

    proptest! {
        #[test]
        fn runs_are_the_elements(
            elements in prop::collection::vec(0_usize..6, 0..40),
            times in 1_usize..4,
        ) {
            let elements: Vec<usize> = elements.iter().flat_map(|&e| vec![e; times]).collect();
            let mut found = vec![usize::MAX; elements.len()];
            for run in runs(&elements) {
                for index in 0..run.len {
                    let from = run.from.checked_add_signed(run.step * index.cast_signed());
                    let place = &mut found[run.to + index * run.stride];
                    prop_assert_eq!(*place, usize::MAX, "written twice");
                    *place = from.unwrap();
                }
            }
            prop_assert_eq!(found, elements);
        }
    }
}
