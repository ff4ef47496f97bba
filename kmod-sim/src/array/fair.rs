//! Who has the array next: the highest band, and in it whoever has had the least of it.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996). A member's wish is tagged with where the member
//! stands in virtual time, which counts modelled cycles: where its last grant ended, but not before the
//! clock of its band, so that who was away is owed nothing. The least tag goes first. A newcomer begins
//! at the clock, which those who wait have reached too, so that nobody starves.

use npu_uapi::queue::priority;

/// A wish for the array.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Wish {
    pub(super) member: u64,
    /// 0 goes first.
    pub(super) band: usize,
    /// Virtual time of the member when it wished.
    pub(super) start: u64,
    arrival: u64,
}

/// All wishes, and the clocks.
#[derive(Debug, Default)]
pub(super) struct Fair {
    wishes: Vec<Wish>,
    /// What everyone in the band has at least had, or was away for.
    clocks: [u64; priority::COUNT],
    arrivals: u64,
}

impl Fair {
    /// `member` wishes for the array, and was not here before; its last grant ended at `finish`. `held` is
    /// how far the holder has come, where one holds the array in this band.
    pub(super) fn arrive(&mut self, member: u64, band: usize, finish: u64, held: Option<u64>) {
        let here = self.wishes.iter().filter(|wish| wish.band == band).map(|wish| wish.start);
        let least = here.chain(held).min().unwrap_or(0);
        self.clocks[band] = self.clocks[band].max(least);
        let start = finish.max(self.clocks[band]);
        self.enter(member, band, start);
    }

    /// `member` gives the array back at `finish` and wishes for more.
    pub(super) fn stay(&mut self, member: u64, band: usize, finish: u64) {
        self.enter(member, band, finish);
    }

    /// `member` gives the array back at `finish` and goes.
    pub(super) fn leave(&mut self, band: usize, finish: u64) {
        if self.wishes.iter().all(|wish| wish.band != band) {
            self.clocks[band] = self.clocks[band].max(finish);
        }
    }

    fn enter(&mut self, member: u64, band: usize, start: u64) {
        self.arrivals += 1;
        self.wishes.push(Wish { member, band, start, arrival: self.arrivals });
    }

    /// `member` wishes no more; whether it did.
    pub(super) fn withdraw(&mut self, member: u64) -> bool {
        let before = self.wishes.len();
        self.wishes.retain(|wish| wish.member != member);
        self.wishes.len() != before
    }

    /// The wish to grant first.
    pub(super) fn first(&self) -> Option<Wish> {
        self.wishes.iter().copied().min_by_key(|wish| (wish.band, wish.start, wish.arrival))
    }

    /// Grants it.
    pub(super) fn take_first(&mut self) -> Option<Wish> {
        let wish = self.first()?;
        self.withdraw(wish.member);
        self.clocks[wish.band] = self.clocks[wish.band].max(wish.start);
        Some(wish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_higher_band_goes_first_whatever_it_has_had() {
        let mut fair = Fair::default();
        fair.arrive(1, 2, 0, None);
        fair.arrive(2, 0, 1 << 40, None);
        fair.arrive(3, 2, 0, None);
        let order: Vec<u64> = std::iter::from_fn(|| fair.take_first()).map(|w| w.member).collect();
        assert_eq!(order, [2, 1, 3]);
    }

    #[test]
    fn a_newcomer_is_not_owed_the_time_it_was_away() {
        let mut fair = Fair::default();
        // Somebody has had a million cycles, alone, and still holds the array.
        fair.arrive(1, 2, 0, None);
        fair.take_first().unwrap();
        fair.arrive(2, 2, 0, Some(1_000_000));
        fair.stay(1, 2, 1_000_010);
        let newcomer = fair.take_first().unwrap();
        assert_eq!((newcomer.member, newcomer.start), (2, 1_000_000));
        // And after a while alone, and nobody there.
        fair.stay(2, 2, 1_000_100);
        assert_eq!(fair.take_first().unwrap().member, 1);
        fair.leave(2, 2_000_000);
        assert_eq!(fair.take_first().unwrap().member, 2);
        fair.leave(2, 3_000_000);
        fair.arrive(3, 2, 0, None);
        assert_eq!(fair.take_first().unwrap().start, 3_000_000);
    }

    proptest! {
        /// Members that always wish for more differ by at most one grant each, as the theory says, and
        /// one that comes later gets from then on what they get.
        #[test]
        fn shares_of_those_who_wait_lag_by_a_bounded_amount(
            costs in proptest::collection::vec(proptest::collection::vec(1u64..1000, 1..6), 2..7),
            rounds in 50usize..400, late in 0usize..200,
        ) {
            let (mut fair, most) = (Fair::default(), 1000);
            let mut had = vec![0u64; costs.len()];
            let mut grants = vec![0; costs.len()];
            let last = costs.len() - 1;
            for member in 0..last {
                fair.arrive(member as u64, 1, 0, None);
            }
            // What the others had when the last one came.
            let mut before = None;
            for round in 0..rounds + late {
                let wish = fair.take_first().unwrap();
                let member = usize::try_from(wish.member).unwrap();
                let cost = costs[member][grants[member] % costs[member].len()];
                if round == late {
                    fair.arrive(last as u64, 1, 0, Some(wish.start));
                    before = Some(had.clone());
                }
                (had[member], grants[member]) = (had[member] + cost, grants[member] + 1);
                fair.stay(wish.member, 1, wish.start + cost);
                let since = before.clone().unwrap_or_else(|| vec![0; costs.len()]);
                let shares = had.iter().zip(since).map(|(had, before)| had - before);
                let shares: Vec<u64> = if before.is_some() { shares.collect() } else { shares.take(last).collect() };
                let spread = shares.iter().max().unwrap() - shares.iter().min().unwrap();
                let bound = if before.is_some() { 4 * most } else { 2 * most };
                prop_assert!(spread <= bound, "{:?} after {} rounds", shares, round);
            }
        }
    }
}
