//! The device's end of the rings.

use core::sync::atomic::Ordering;

use super::{
    COMPLETION_WORDS, CQ_HEAD, IRQ_EVENT, KICK_EVENT, LastLook, PHASE_BIT, RingError, RingLayout,
    SQ_HEAD, SQ_TAIL, SUBMISSION_WORDS, SUPPRESSED, Words, is_between, passes,
};
use crate::order;

/// Fetches submissions and posts completions. One for a queue, used by one thread at a time.
///
/// ```text
/// pop until None  ->  has_entry for a while  ->  prepare_sleep  ->  Clear? then wait for a kick
/// post, post, ..  ->  needs_interrupt? then interrupt
/// ```
///
/// After an error the queue is stopped: the device reports a fault and touches the rings no more.
#[derive(Debug)]
pub struct Device<W> {
    words: W,
    layout: RingLayout,
    /// Index of the next fetch, and what `sq_head` in memory is.
    head: u32,
    /// `sq_tail` as last seen and checked.
    tail: u32,
    /// Index of the next completion.
    posted: u32,
    /// `posted` when an interrupt was last decided.
    interrupted: u32,
    /// `cq_head` as last seen and checked.
    cq_head: u32,
}

/// A submission, fetched: the device's own copy, which the driver can no longer change.
#[derive(Debug)]
#[must_use = "each submission has exactly one completion"]
pub struct Fetched {
    /// Its index in the submission ring.
    pub index: u32,
    /// Its words, read once.
    pub entry: [u32; SUBMISSION_WORDS],
    /// The room for its completion.
    pub permit: Permit,
}

/// Room for one completion, held by the command that it is for; [`Device::post`] consumes it.
///
/// Dropping one is allowed only where the queue is dropped with it: its room stays taken.
#[derive(Debug)]
#[must_use = "a command that is never completed holds its place in the ring until a reset"]
pub struct Permit(());

impl<W: Words> Device<W> {
    /// The device's end of the rings in `words`, which are zero unless the driver is broken.
    ///
    /// # Errors
    /// [`RingError::RegionTooSmall`].
    pub fn new(words: W, layout: RingLayout) -> Result<Self, RingError> {
        Self::starting_at(words, layout, 0)
    }

    /// As [`Device::new`], with all indices in memory at `start`.
    pub(super) fn starting_at(words: W, layout: RingLayout, start: u32) -> Result<Self, RingError> {
        layout.check_region(&words)?;
        let (head, tail, posted) = (start, start, start);
        Ok(Self { words, layout, head, tail, posted, interrupted: start, cq_head: start })
    }

    /// The layout of the rings.
    pub const fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Commands that are fetched and not yet completed: the permits that are out.
    pub const fn outstanding(&self) -> u32 {
        self.head.wrapping_sub(self.posted)
    }

    /// Submissions that are not yet completed, fetched or not; zero where the driver's index cannot be.
    pub fn in_flight(&self) -> u32 {
        // Relaxed: a number to count with, nothing is read by it.
        let tail = self.words.load(SQ_TAIL, Ordering::Relaxed);
        let is_possible =
            is_between(self.tail, tail, self.head.wrapping_add(self.layout.sq_depth()));
        if is_possible { tail.wrapping_sub(self.posted) } else { self.outstanding() }
    }

    /// Where the rings stand: `sq_tail` in memory, `sq_head`, completions posted, `cq_head` in memory.
    pub fn indices(&self) -> [u32; 4] {
        // Relaxed: numbers to show, nothing is read by them.
        let [tail, taken] = [SQ_TAIL, CQ_HEAD].map(|at| self.words.load(at, Ordering::Relaxed));
        [tail, self.head, self.posted, taken]
    }

    /// The words of the submission slot of `index`, as they are in memory now: to show, not to obey.
    pub fn submission_words(&self, index: u32) -> [u32; SUBMISSION_WORDS] {
        let mut entry = [0; SUBMISSION_WORDS];
        for (word, at) in entry.iter_mut().zip(self.layout.submission(index)) {
            *word = self.words.load(at, Ordering::Relaxed);
        }
        entry
    }

    /// The words of the completion slot of `index`, as they are in memory now.
    pub fn completion_words(&self, index: u32) -> [u32; COMPLETION_WORDS] {
        let mut entry = [0; COMPLETION_WORDS];
        let (others, last) = self.layout.completion(index);
        for (word, at) in entry.iter_mut().zip(others.chain([last])) {
            *word = self.words.load(at, Ordering::Relaxed);
        }
        entry
    }

    /// Publishes an index of a submission that was never made, as a broken device would; the next fetch
    /// publishes the right one. For tests of drivers.
    pub fn publish_wrong_index(&mut self) {
        let wrong = self.head.wrapping_sub(SUPPRESSED);
        self.words.store(SQ_HEAD, wrong, order::SQ_HEAD_PUBLISH.ordering());
    }

    /// Fetches the next submission with the room for its completion, or `None` where none is there.
    ///
    /// # Errors
    /// [`RingError::SqTailOutOfRange`], [`RingError::CqHeadOutOfRange`],
    /// [`RingError::CompletionsOvercommitted`]: the driver is broken, and nothing was fetched.
    pub fn pop(&mut self) -> Result<Option<Fetched>, RingError> {
        if self.head == self.tail {
            self.refresh_tail()?;
            if self.head == self.tail {
                return Ok(None);
            }
        }
        let permit = self.permit()?;
        let index = self.head;
        let mut entry = [0; SUBMISSION_WORDS];
        for (word, at) in entry.iter_mut().zip(self.layout.submission(index)) {
            *word = self.words.load(at, Ordering::Relaxed);
        }
        self.head = index.wrapping_add(1);
        self.words.store(SQ_HEAD, self.head, order::SQ_HEAD_PUBLISH.ordering());
        Ok(Some(Fetched { index, entry, permit }))
    }

    /// Whether [`Device::pop`] would find a submission, or an error: a look that tells the driver nothing
    /// and moves no cache line while the driver is silent, for a device that stays awake for a while.
    #[inline]
    pub fn has_entry(&self) -> bool {
        // Relaxed: `pop` loads the tail again and checks it.
        self.head != self.tail || self.words.load(SQ_TAIL, Ordering::Relaxed) != self.head
    }

    /// Posts the completion of the command that held `permit`, visible to the driver at once.
    ///
    /// The ring sets the phase: bit 31 of the last word is not the caller's. Ask
    /// [`Device::needs_interrupt`] after this.
    ///
    /// # Panics
    /// Where `permit` is another queue's and none of this queue's is out.
    pub fn post(&mut self, permit: Permit, completion: &[u32; COMPLETION_WORDS]) {
        assert!(self.outstanding() > 0, "a permit of another queue");
        let Permit(()) = permit;
        let index = self.posted;
        let (others, last) = self.layout.completion(index);
        for (at, &word) in others.zip(completion) {
            self.words.store(at, word, Ordering::Relaxed);
        }
        let word = (completion[COMPLETION_WORDS - 1] & !PHASE_BIT) | self.layout.phase(index);
        self.words.store(last, word, order::CQ_ENTRY_PUBLISH.ordering());
        self.posted = index.wrapping_add(1);
    }

    /// Whether the driver waits for one of the completions that were posted after the last call;
    /// then it must be interrupted.
    pub fn needs_interrupt(&mut self) -> bool {
        let (old, new) = (self.interrupted, self.posted);
        self.interrupted = new;
        order::IRQ_DEVICE_FENCE.run();
        // Relaxed: the event is a number to compare with, nothing is read by it.
        passes(self.words.load(IRQ_EVENT, Ordering::Relaxed), old, new)
    }

    /// Asks for a kick at the next submission that is not yet fetched, then looks once more.
    pub fn prepare_sleep(&mut self) -> LastLook {
        // Relaxed: the driver compares with it; the fence puts it before the look.
        self.words.store(KICK_EVENT, self.head, Ordering::Relaxed);
        order::KICK_DEVICE_FENCE.run();
        if self.has_entry() { LastLook::Work } else { LastLook::Clear }
    }

    /// Asks for no kicks until [`Device::prepare_sleep`], for a device that polls.
    ///
    /// A driver that has already looked may still send one.
    pub fn suppress_kicks(&mut self) {
        // Relaxed: a hint.
        self.words.store(KICK_EVENT, self.head.wrapping_sub(SUPPRESSED), Ordering::Relaxed);
    }

    /// Takes room for the completion of the submission at `head`.
    ///
    /// Submissions and completions have the same numbers, so there is room where the submission one
    /// completion ring before this one is reaped. A driver publishes a submission only then: hence
    /// the load of `cq_head`, which comes after the load of a `sq_tail` beyond `head`, must see that
    /// much. It can be Relaxed: the driver's reads of the slot come before its store of that
    /// `sq_tail`, our writes after our load of it, and that pair orders the two.
    fn permit(&mut self) -> Result<Permit, RingError> {
        let depth = self.layout.cq_depth();
        if self.head.wrapping_sub(self.cq_head) == depth {
            let (last, posted) = (self.cq_head, self.posted);
            let found = self.words.load(CQ_HEAD, Ordering::Relaxed);
            if !is_between(last, found, posted) {
                return Err(RingError::CqHeadOutOfRange { found, last, posted });
            }
            self.cq_head = found;
            if self.head.wrapping_sub(found) == depth {
                return Err(RingError::CompletionsOvercommitted { index: self.head, depth });
            }
        }
        Ok(Permit(()))
    }

    fn refresh_tail(&mut self) -> Result<(), RingError> {
        let (last, limit) = (self.tail, self.head.wrapping_add(self.layout.sq_depth()));
        let found = self.words.load(SQ_TAIL, order::SQ_TAIL_TAKE.ordering());
        if !is_between(last, found, limit) {
            return Err(RingError::SqTailOutOfRange { found, last, limit });
        }
        self.tail = found;
        Ok(())
    }
}
