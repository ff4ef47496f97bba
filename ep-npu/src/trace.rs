//! How often each stage of the compiler ran on this thread: what shows that a compiled model is not
//! compiled again.

use std::cell::Cell;
use std::fmt;
use std::ops::Sub;

/// A stage of the compiler.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Units found in a graph.
    Quantize,
    /// Units to operations.
    Lower,
    /// An order of the operations.
    Schedule,
    /// Places in memory.
    Allocate,
    /// The image.
    Emit,
    /// Constants in the device's layout.
    Pack,
}

const STAGES: [(Stage, &str); 6] = [
    (Stage::Quantize, "quantize"),
    (Stage::Lower, "lower"),
    (Stage::Schedule, "schedule"),
    (Stage::Allocate, "allocate"),
    (Stage::Emit, "emit"),
    (Stage::Pack, "pack"),
];

/// How often each stage ran.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts([u64; STAGES.len()]);

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts([0; STAGES.len()])) };
}

/// Counts one run of `stage`.
pub(crate) fn ran(stage: Stage) {
    let mut counts = COUNTS.get();
    counts.0[stage as usize] += 1;
    COUNTS.set(counts);
}

/// What this thread has run so far. A difference of two is what ran between.
pub fn counts() -> Counts {
    COUNTS.get()
}

impl Counts {
    /// Runs of all stages.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        let mut difference = self;
        for (count, before) in difference.0.iter_mut().zip(earlier.0) {
            *count = count.saturating_sub(before);
        }
        difference
    }
}

impl fmt::Display for Counts {
    /// `7 stages run: quantize 2, lower 1, ...`; or `0 stages run`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} stages run", self.total())?;
        let mut separator = ": ";
        for (stage, name) in STAGES {
            let count = self.0[stage as usize];
            if count > 0 {
                write!(f, "{separator}{name} {count}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_the_stages_that_ran_between() {
        let before = counts();
        assert_eq!((counts() - before).to_string(), "0 stages run");
        ran(Stage::Quantize);
        ran(Stage::Pack);
        ran(Stage::Pack);
        let between = counts() - before;
        assert_eq!(between.to_string(), "3 stages run: quantize 1, pack 2");
        assert_eq!(between.total(), 3);
    }
}
