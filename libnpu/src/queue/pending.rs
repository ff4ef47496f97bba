//! What is submitted and not yet answered, by job number: a table with a place for each entry in flight.

use super::{Kept, Ticket};
use std::sync::Arc;

/// A submission and what it keeps alive.
pub(super) struct Entry {
    pub(super) ticket: Arc<Ticket>,
    pub(super) kept: Kept,
}

/// The submissions of one queue. A job's place is its number modulo their count, a power of two.
pub(super) struct Pending {
    places: Box<[Option<Entry>]>,
    count: usize,
    last_job: u32,
}

impl Pending {
    /// Room for `depth` submissions, a power of two.
    pub(super) fn new(depth: u32) -> Self {
        assert!(depth.is_power_of_two(), "rings are as deep as a power of two");
        Self { places: (0..depth).map(|_| None).collect(), count: 0, last_job: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn place(&self, job: u32) -> usize {
        job as usize & (self.places.len() - 1)
    }

    /// The next number whose place is free; `None` when all are taken.
    pub(super) fn next_job(&mut self) -> Option<u32> {
        (0..self.places.len()).find_map(|_| {
            self.last_job = self.last_job.wrapping_add(1);
            self.places[self.place(self.last_job)].is_none().then_some(self.last_job)
        })
    }

    /// Adds a submission with the number that [`Pending::next_job`] gave.
    pub(super) fn insert(&mut self, entry: Entry) {
        let place = self.place(entry.ticket.job);
        assert!(self.places[place].is_none(), "each number is given once");
        self.places[place] = Some(entry);
        self.count += 1;
    }

    /// Takes out the submission of `job`, if it is here.
    pub(super) fn remove(&mut self, job: u32) -> Option<Entry> {
        let place = self.place(job);
        let found = self.places[place].take_if(|entry| entry.ticket.job == job)?;
        self.count -= 1;
        Some(found)
    }

    pub(super) fn tickets(&self) -> impl Iterator<Item = &Ticket> {
        self.places.iter().flatten().map(|entry| entry.ticket.as_ref())
    }

    /// Takes all out.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        self.count = 0;
        self.places.iter_mut().filter_map(Option::take).collect()
    }
}

/// What answered submissions kept, to be dropped where no lock is held. Of one it needs no memory.
#[derive(Default)]
pub(super) struct Freed {
    first: Option<Kept>,
    others: Vec<Kept>,
}

impl Freed {
    pub(super) fn push(&mut self, kept: Kept) {
        if self.first.is_none() {
            self.first = Some(kept);
        } else {
            self.others.push(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submit(pending: &mut Pending) -> Option<u32> {
        let job = pending.next_job()?;
        let ticket = Arc::new(Ticket { job, ..Ticket::default() });
        pending.insert(Entry { ticket, kept: Kept::new(()) });
        Some(job)
    }

    #[test]
    fn numbers_go_up_and_pass_over_a_job_that_stays() {
        let mut pending = Pending::new(4);
        pending.last_job = u32::MAX - 1;
        let stays = submit(&mut pending).unwrap();
        assert_eq!(stays, u32::MAX);
        for expected in [0, 1, 2, 4, 5, 6, 8] {
            assert_eq!(submit(&mut pending), Some(expected));
            assert!(pending.remove(expected).is_some());
            assert!(pending.remove(expected).is_none(), "it is answered once");
        }
        assert!(pending.remove(3).is_none(), "another lap of a place that is taken");
        assert!(pending.remove(stays).is_some());
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn a_full_table_gives_no_number() {
        let mut pending = Pending::new(2);
        assert!(submit(&mut pending).is_some() && submit(&mut pending).is_some());
        assert_eq!(submit(&mut pending), None);
        assert_eq!((pending.tickets().count(), pending.take().len()), (2, 2));
        assert!(submit(&mut pending).is_some());
    }
}
