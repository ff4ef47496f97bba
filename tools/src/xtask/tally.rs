//! How many tests a stage ran, read from what its runner printed.

use std::ops::AddAssign;

/// Tests of one stage. A check without a count of its own, such as a linter, is one test.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    /// Ran and passed.
    pub(crate) passed: u32,
    /// Ran and failed, or could not run.
    pub(crate) failed: u32,
    /// Were there but left out: `#[ignore]`, or skipped by pytest.
    pub(crate) skipped: u32,
}

impl Tally {
    /// One check that passed.
    pub(crate) const ONE: Self = Self { passed: 1, failed: 0, skipped: 0 };

    /// As many that passed.
    pub(crate) fn of(passed: usize) -> Self {
        Self { passed: u32::try_from(passed).unwrap_or(u32::MAX), ..Self::default() }
    }

    /// Adds up the `test result:` lines of `cargo test`.
    pub(crate) fn of_cargo(output: &str) -> Self {
        let mut total = Self::default();
        for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            total += Self::of_words(line);
        }
        total
    }

    /// Reads pytest's closing line, such as `2 failed, 34 passed, 1 skipped in 5.67s`; behind more than a
    /// minute stands the time once more, as `(0:01:19)`.
    pub(crate) fn of_pytest(output: &str) -> Self {
        let counts = output.lines().rev().filter_map(|line| {
            let (counts, time) = line.trim_end_matches(['=', ' ']).rsplit_once(" in ")?;
            let seconds = time.split(' ').next()?.strip_suffix('s')?;
            seconds.parse::<f64>().is_ok().then_some(counts)
        });
        counts.map(Self::of_words).next().unwrap_or_default()
    }

    /// The count as it is, or with at least one failure where the runner itself did not succeed.
    pub(crate) fn unless_failed(mut self, success: bool) -> Self {
        self.failed = self.failed.max(u32::from(!success));
        self
    }

    fn of_words(line: &str) -> Self {
        let words: Vec<&str> = line
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        let count = |names: &[&str]| {
            let pairs = words.windows(2).filter(|pair| names.contains(&pair[1]));
            pairs.filter_map(|pair| pair[0].parse::<u32>().ok()).sum()
        };
        Self {
            passed: count(&["passed", "xfailed"]),
            failed: count(&["failed", "error", "errors", "xpassed"]),
            skipped: count(&["ignored", "skipped"]),
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_lines_add_up() {
        let output = "running 3 tests\ntest a ... ok\n\n\
            test result: FAILED. 2 passed; 1 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
            test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s\n";
        assert_eq!(Tally::of_cargo(output), Tally { passed: 42, failed: 1, skipped: 4 });
    }

    #[test]
    fn the_closing_line_of_pytest_is_read_with_and_without_rules() {
        let quiet = "..F.\nFAILED x.py::y - assert 1 in [2]\n1 failed, 30 passed, 2 skipped, 1 error in 12.50s\n";
        assert_eq!(Tally::of_pytest(quiet), Tally { passed: 30, failed: 2, skipped: 2 });
        let long = "....\n1155 passed in 79.43s (0:01:19)\n";
        assert_eq!(Tally::of_pytest(long), Tally { passed: 1155, failed: 0, skipped: 0 });
        let ruled = "===== 5 passed in 61.00s (0:01:01) =====\n5 passed in 61.00s\n";
        assert_eq!(Tally::of_pytest(ruled).passed, 5);
    }

    #[test]
    fn a_stage_that_died_before_counting_has_failed() {
        assert_eq!(Tally::of_cargo("error: could not compile").unless_failed(false).failed, 1);
        assert_eq!(Tally { passed: 3, failed: 2, skipped: 0 }.unless_failed(false).failed, 2);
        assert_eq!(Tally::ONE.unless_failed(true), Tally::ONE);
    }
}
