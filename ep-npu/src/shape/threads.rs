//! How many threads the CPU provider's sessions may have, whose results ours are to equal.
//!
//! A session that is told nothing takes a thread for each core of the machine. That is more than a
//! container's quota or a mask of processors lets this process use: ONNX Runtime does not ask for those.
//! So all counts up to the number of processors are possible, unless [`VARIABLE`] says which it is.

use std::num::NonZero;
use std::ops::RangeInclusive;
use std::sync::OnceLock;

/// Names the one number of threads that those sessions have.
pub(crate) const VARIABLE: &str = "NPU_CPU_THREADS";

/// More are taken for a mistake.
const MOST: usize = 1024;

/// The counts that are possible; what [`VARIABLE`] says, where that is no number of threads.
pub(crate) fn possible() -> Result<RangeInclusive<usize>, &'static str> {
    static FOUND: OnceLock<Result<RangeInclusive<usize>, String>> = OnceLock::new();
    let asked = || match std::env::var_os(VARIABLE) {
        Some(asked) if !asked.is_empty() => named(&asked.to_string_lossy()),
        _ => Ok(1..=processors().clamp(1, MOST)),
    };
    match FOUND.get_or_init(asked) {
        Ok(counts) => Ok(counts.clone()),
        Err(found) => Err(found),
    }
}

fn named(asked: &str) -> Result<RangeInclusive<usize>, String> {
    match asked.parse() {
        Ok(count @ 1..=MOST) => Ok(count..=count),
        _ => Err(asked.to_owned()),
    }
}

/// Processors of the machine, those included that this process may not use.
fn processors() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, NonZero::get);
    let present = std::fs::read_to_string("/sys/devices/system/cpu/present");
    present.map_or(0, |ranges| count(&ranges)).max(allowed)
}

/// How many numbers there are up to the last of such as `0-3,8`.
fn count(ranges: &str) -> usize {
    let numbers = ranges.trim().split([',', '-']).filter_map(|number| number.parse::<usize>().ok());
    numbers.max().map_or(0, |last| last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_is_named_is_the_only_one() {
        assert_eq!(named("3"), Ok(3..=3));
        for wrong in ["0", "-1", "two", "1025", "1 "] {
            assert_eq!(named(wrong), Err(wrong.to_owned()));
        }
    }

    #[test]
    fn processors_are_counted_up_to_the_last() {
        let lists = ["0\n", "0-63\n", "0-3,8-11", "", "none"];
        assert_eq!(lists.map(count), [1, 64, 12, 0, 0]);
    }

    #[test]
    fn the_processors_are_all_that_this_process_may_use_or_more() {
        let allowed = std::thread::available_parallelism().unwrap().get();
        assert!(processors() >= allowed);
    }
}
