//! The driver's end of the rings.

use core::sync::atomic::Ordering;

use super::{
    COMPLETION_WORDS, CQ_HEAD, IRQ_EVENT, KICK_EVENT, LastLook, PHASE_BIT, RingError, RingLayout,
    SQ_HEAD, SQ_TAIL, SUBMISSION_WORDS, SUPPRESSED, Words, is_between, passes,
};
use crate::order;

/// Pushes submissions and reaps completions. One for a queue, used by one thread at a time.
///
/// ```text
/// push, push, ..  ->  publish  ->  needs_kick? then kick
/// reap until None ->  look for the next for a while  ->  arm_interrupt  ->  Clear? then wait for the interrupt
/// ```
#[derive(Debug)]
pub struct Driver<W> {
    words: W,
    layout: RingLayout,
    /// Index of the next push.
    tail: u32,
    /// What `sq_tail` in memory is.
    published: u32,
    /// What `sq_tail` was when a kick was last decided.
    kicked: u32,
    /// `sq_head` as last seen and checked.
    sq_head: u32,
    /// Index of the next completion to reap, and what `cq_head` in memory is.
    cq_head: u32,
}

/// A completion that is awaited: where it will be seen.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    last: usize,
    phase: u32,
}

impl Next {
    /// Whether it is in `words`, those of its rings: a look that tells the device nothing and moves
    /// no cache line while the device is silent.
    ///
    /// One ring's depth of completions later the answer is that of the lap before: a look is bounded
    /// in time, and [`Driver::arm_interrupt`] comes before a sleep.
    #[inline]
    pub fn is_here(self, words: &impl Words) -> bool {
        // Relaxed: only a look, `reap` loads the word again before it reads an entry.
        words.load(self.last, Ordering::Relaxed) & PHASE_BIT == self.phase
    }
}

impl<W: Words> Driver<W> {
    /// The driver's end of the rings in `words`, which are zero (see [`RingLayout::clear`]).
    ///
    /// # Errors
    /// [`RingError::RegionTooSmall`].
    pub fn new(words: W, layout: RingLayout) -> Result<Self, RingError> {
        Self::starting_at(words, layout, 0)
    }

    /// As [`Driver::new`], with all indices in memory at `start`.
    pub(super) fn starting_at(words: W, layout: RingLayout, start: u32) -> Result<Self, RingError> {
        layout.check_region(&words)?;
        let (tail, published, kicked) = (start, start, start);
        Ok(Self { words, layout, tail, published, kicked, sq_head: start, cq_head: start })
    }

    /// The layout of the rings.
    pub const fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Commands that are pushed and not yet reaped.
    pub const fn in_flight(&self) -> u32 {
        self.tail.wrapping_sub(self.cq_head)
    }

    /// Writes a submission to the ring, not yet visible to the device, and returns its index.
    ///
    /// # Errors
    /// [`RingError::SubmissionsFull`] and [`RingError::CompletionsFull`] where there is no room: the
    /// ring is as before. [`RingError::SqHeadOutOfRange`] where the device is broken.
    pub fn push(&mut self, entry: &[u32; SUBMISSION_WORDS]) -> Result<u32, RingError> {
        if self.in_flight() == self.layout.cq_depth() {
            return Err(RingError::CompletionsFull { depth: self.layout.cq_depth() });
        }
        if self.is_full() {
            self.refresh_sq_head()?;
            if self.is_full() {
                return Err(RingError::SubmissionsFull { depth: self.layout.sq_depth() });
            }
        }
        let index = self.tail;
        for (at, &word) in self.layout.submission(index).zip(entry) {
            self.words.store(at, word, Ordering::Relaxed);
        }
        self.tail = index.wrapping_add(1);
        Ok(index)
    }

    /// Hands every pushed entry to the device. Ask [`Driver::needs_kick`] after this.
    pub fn publish(&mut self) {
        // Relaxed: the device checks by it that it may fetch one more, and what orders the reads of
        // completions before its reuse of their slots is the `sq_tail` of that one (see `Device::permit`).
        self.words.store(CQ_HEAD, self.cq_head, Ordering::Relaxed);
        self.words.store(SQ_TAIL, self.tail, order::SQ_TAIL_PUBLISH.ordering());
        self.published = self.tail;
    }

    /// Whether the device sleeps, or is about to, since before the entries that were published after
    /// the last call; then it must be kicked.
    pub fn needs_kick(&mut self) -> bool {
        let (old, new) = (self.kicked, self.published);
        self.kicked = new;
        order::KICK_DRIVER_FENCE.run();
        // Relaxed: the event is a number to compare with, nothing is read by it.
        passes(self.words.load(KICK_EVENT, Ordering::Relaxed), old, new)
    }

    /// Takes the next completion off the ring, its phase bit cleared, or `None` where none is there.
    ///
    /// # Errors
    /// [`RingError::UnexpectedCompletion`] where the device completes what was not submitted.
    pub fn reap(&mut self) -> Result<Option<[u32; COMPLETION_WORDS]>, RingError> {
        let index = self.cq_head;
        let (others, last) = self.layout.completion(index);
        let last = self.words.load(last, order::CQ_ENTRY_TAKE.ordering());
        if last & PHASE_BIT != self.layout.phase(index) {
            return Ok(None);
        }
        if self.published == index {
            return Err(RingError::UnexpectedCompletion { index });
        }
        let mut completion = [0; COMPLETION_WORDS];
        completion[COMPLETION_WORDS - 1] = last & !PHASE_BIT;
        for (word, at) in completion.iter_mut().zip(others) {
            *word = self.words.load(at, Ordering::Relaxed);
        }
        // The device needs it for the next submission only, and it is told then: a store now would take
        // the line away from a device that looks at it.
        self.cq_head = index.wrapping_add(1);
        Ok(Some(completion))
    }

    /// Looks at the device's index, which [`Driver::push`] otherwise needs only where the ring is full.
    ///
    /// # Errors
    /// [`RingError::SqHeadOutOfRange`]: the device is broken.
    pub fn check_index(&mut self) -> Result<(), RingError> {
        self.refresh_sq_head()
    }

    /// Asks for an interrupt at the next completion that is not yet reaped, then looks once more.
    pub fn arm_interrupt(&mut self) -> LastLook {
        // Relaxed: the device compares with it; the fence puts it before the look.
        self.words.store(IRQ_EVENT, self.cq_head, Ordering::Relaxed);
        order::IRQ_DRIVER_FENCE.run();
        if self.next().is_here(&self.words) { LastLook::Work } else { LastLook::Clear }
    }

    /// The completion that [`Driver::reap`] takes next, to look for without the rings: by a thread
    /// that lets others use them meanwhile.
    #[inline]
    pub fn next(&self) -> Next {
        let (_, last) = self.layout.completion(self.cq_head);
        Next { last, phase: self.layout.phase(self.cq_head) }
    }

    /// Asks for no interrupts until [`Driver::arm_interrupt`], for a driver that polls.
    ///
    /// Of use once after creation (zeroed rings ask for the first interrupt) and after an
    /// `arm_interrupt` that was not waited for. A device that has already looked may still send one.
    pub fn suppress_interrupts(&mut self) {
        // Relaxed: a hint.
        self.words.store(IRQ_EVENT, self.cq_head.wrapping_sub(SUPPRESSED), Ordering::Relaxed);
    }

    const fn is_full(&self) -> bool {
        self.tail.wrapping_sub(self.sq_head) == self.layout.sq_depth()
    }

    fn refresh_sq_head(&mut self) -> Result<(), RingError> {
        let (last, tail) = (self.sq_head, self.published);
        let found = self.words.load(SQ_HEAD, order::SQ_HEAD_TAKE.ordering());
        if !is_between(last, found, tail) {
            return Err(RingError::SqHeadOutOfRange { found, last, tail });
        }
        self.sq_head = found;
        Ok(())
    }
}
