//! Times of many short round trips: their mean, and what they take while nothing else runs.

use std::fmt;
use std::time::{Duration, Instant};

/// Round trips between two looks at the clock: short beside a time slice, long beside the look.
const LAP: u32 = 500;
/// Which of the sorted laps is taken for a quiet one: the last of the first tenth.
const QUIET_PART: usize = 10;

/// A clock over round trips.
pub(super) struct Laps {
    started: Instant,
    last: Instant,
    in_lap: u32,
    laps: Vec<Duration>,
}

/// Nanoseconds a round trip.
pub(super) struct Times {
    pub(super) mean: f64,
    pub(super) quiet: f64,
}

impl Laps {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, in_lap: 0, laps: Vec::with_capacity(1024) }
    }

    /// One more round trip.
    pub(super) fn count(&mut self) {
        self.in_lap += 1;
        if self.in_lap == LAP {
            let now = Instant::now();
            self.laps.push(now - self.last);
            (self.last, self.in_lap) = (now, 0);
        }
    }

    /// The times of all whole laps.
    pub(super) fn times(mut self) -> Times {
        let trips =
            |laps: usize| f64::from(LAP) * f64::from(u32::try_from(laps).unwrap_or(u32::MAX));
        let mean = (self.last - self.started).as_secs_f64() * 1e9 / trips(self.laps.len());
        self.laps.sort();
        let quiet = self.laps.get(self.laps.len() / QUIET_PART).copied().unwrap_or_default();
        Times { mean, quiet: quiet.as_secs_f64() * 1e9 / trips(1) }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.0} ({:.0})", self.mean, self.quiet))
    }
}
