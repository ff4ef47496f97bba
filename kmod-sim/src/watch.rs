//! How long a thread without work stays awake: long enough for a driver that submits one job after the
//! other, and shorter and shorter for one that does not.

use std::time::{Duration, Instant};

/// The shortest watch is this part of the longest: it still notices a driver that became fast.
const LEAST_PART: u32 = 16;

/// A watch for work, which learns from how the last ones ended.
#[derive(Debug)]
pub(crate) struct Watch {
    longest: Duration,
    next: Duration,
}

impl Watch {
    /// Watches of at most `longest`; zero for a thread that never stays awake.
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, next: longest }
    }

    /// Calls `look` until it sees something or the watch is over; whether it did.
    pub(crate) fn sees(&mut self, mut look: impl FnMut() -> bool) -> bool {
        if self.longest.is_zero() {
            return false;
        }
        // The clock is read after the first look, and not at all where that sees something.
        let mut end = None;
        loop {
            if look() {
                self.next = self.longest;
                return true;
            }
            let now = Instant::now();
            if now >= *end.get_or_insert_with(|| now + self.next) {
                self.next = (self.next / 2).max(self.longest / LEAST_PART);
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_when_something_is_seen_or_when_it_is_over() {
        let mut watch = Watch::new(Duration::from_secs(3600));
        let mut looks = 0;
        let third = || {
            looks += 1;
            looks == 3
        };
        assert!(watch.sees(third));
        assert_eq!(looks, 3);
        assert!(!Watch::new(Duration::from_micros(1)).sees(|| false));
        assert!(!Watch::new(Duration::ZERO).sees(|| true), "it never looks");
    }

    #[test]
    fn watches_that_see_nothing_become_short_and_one_that_does_makes_the_next_long() {
        let longest = Duration::from_micros(16);
        let mut watch = Watch::new(longest);
        for _ in 0..20 {
            assert!(!watch.sees(|| false));
        }
        assert_eq!(watch.next, Duration::from_micros(1));
        assert!(watch.sees(|| true));
        assert_eq!(watch.next, longest);
    }
}
