//! Whether a wait for a device that runs by itself begins with looks at the ring, and for how long.
//!
//! A look costs a processor, a sleep the time to wake up. Waits that ended soon are taken for a sign
//! that the next ends soon too; where they are long, the looks become few.

use nix::unistd::{SysconfVar, sysconf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The longest time awake: about what it costs to be woken, so that staying awake and sleeping
/// together never cost more than twice what the better of the two would have.
const LONGEST: Duration = Duration::from_micros(20);
/// A wait that ended within this, a sleep and all, was short: the device works on small jobs.
const SHORT: Duration = Duration::from_micros(100);
/// Among long waits the looks go on for this part of [`LONGEST`].
const LEAST_PART: u32 = 16;
/// Looks between two looks at the clock.
const LOOKS: u32 = 32;

/// How long the next wait stays awake.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awake(Duration);

impl Awake {
    pub(super) fn new() -> Self {
        Self(longest())
    }

    /// Calls `look` until it finds something, for at most `most`; whether it did. The clock is not
    /// read where that is soon.
    pub(super) fn finds(self, most: Duration, look: impl Fn() -> bool) -> bool {
        if self.0.is_zero() {
            return false;
        }
        let mut end = None;
        loop {
            for _ in 0..LOOKS {
                if look() {
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now >= *end.get_or_insert_with(|| now + self.0.min(most)) {
                return false;
            }
        }
    }

    /// Learns that a wait ended after `waited`, part of it asleep.
    pub(super) fn slept(&mut self, waited: Duration) {
        let longest = longest();
        self.0 = if waited <= SHORT { longest } else { (self.0 / 2).max(longest / LEAST_PART) };
    }
}

/// Nothing with one processor: the device cannot work while somebody looks.
fn longest() -> Duration {
    static ONLINE: OnceLock<i64> = OnceLock::new();
    // Online ones, not those that this process may use: the device is another process.
    let online =
        ONLINE.get_or_init(|| sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1));
    if *online > 1 { LONGEST } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn it_looks_until_there_is_something_or_it_has_been_long_enough() {
        let looks = Cell::new(0);
        let look = |at: u32| {
            looks.set(looks.get() + 1);
            looks.get() == at
        };
        let awake = Awake(Duration::from_secs(3600));
        assert!(awake.finds(Duration::MAX, || look(100)));
        assert_eq!(looks.get(), 100);
        assert!(!awake.finds(Duration::ZERO, || false), "no longer than the wait");
        assert!(!Awake(Duration::from_micros(1)).finds(Duration::MAX, || false));
    }

    #[test]
    fn long_waits_make_it_short_and_a_short_one_long_again() {
        let mut awake = Awake::new();
        for _ in 0..20 {
            awake.slept(Duration::from_millis(1));
        }
        assert_eq!(awake.0, longest() / LEAST_PART);
        awake.slept(SHORT);
        assert_eq!(awake.0, longest());
    }
}
