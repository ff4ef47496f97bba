//! Loom models of the rings: every interleaving and every stale value that the memory model allows.
//!
//! `cargo xtask loom` runs them; with `--weaken` once for each name in [`crate::order::ALL`], of which
//! each must make one of them fail. They run the real code on rings of one or two slots.
//!
//! Loom never lets a load return a store that has not yet run, so it does not see a read that is
//! delayed beyond the other side's next write of the same slot. [`Word::Entry`] does: each read leaves
//! a mark, and a write must see the mark of every read before it.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32 as Plain, Ordering};

use loom::model::Builder;
use loom::sync::atomic::AtomicU32;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::{
    COMPLETION_WORDS, CQ_HEAD, Device, Driver, IRQ_EVENT, KICK_EVENT, LastLook, MayClear,
    ResetGate, RingError, RingLayout, SQ_HEAD, SQ_TAIL, SUBMISSION_WORDS, Words,
};

/// One word of the modelled memory.
enum Word {
    /// Accessed by both sides at once: an index, an event, the phase word of a completion.
    Shared(AtomicU32),
    /// The first or last word of an entry, which the rings' indices hand from side to side.
    Entry {
        value: AtomicU32,
        /// How many reads the writer can know of, by the memory model.
        reads_seen: AtomicU32,
        /// How many there were, by the order in which loom ran them.
        reads: Plain,
    },
    /// Of the other words of an entry no more is to be learnt: not modelled, to keep models small.
    Inner(Plain),
}

struct ModelWords(Vec<Word>);

impl ModelWords {
    /// Zeroed rings of 2^`sq_log2` and 2^`cq_log2` entries and one more word, for the gate.
    fn new(sq_log2: u32, cq_log2: u32) -> (Arc<Self>, RingLayout) {
        let layout = RingLayout { sq_log2, cq_log2 };
        let entry = || Word::Entry {
            value: AtomicU32::new(0),
            reads_seen: AtomicU32::new(0),
            reads: Plain::new(0),
        };
        let word = |index: usize| {
            let in_submission = (index % SUBMISSION_WORDS, SUBMISSION_WORDS - 1);
            let in_completion = (index % COMPLETION_WORDS, COMPLETION_WORDS - 1);
            match index {
                SQ_TAIL | CQ_HEAD | IRQ_EVENT | SQ_HEAD | KICK_EVENT => {
                    Word::Shared(AtomicU32::new(0))
                }
                _ if index == layout.total_words() => Word::Shared(AtomicU32::new(0)),
                _ if index < super::SUBMISSIONS => Word::Inner(Plain::new(0)),
                _ if index < layout.completions() => match in_submission {
                    (at, last) if at == 0 || at == last => entry(),
                    _ => Word::Inner(Plain::new(0)),
                },
                _ => match in_completion {
                    (0, _) => entry(),
                    (at, last) if at == last => Word::Shared(AtomicU32::new(0)),
                    _ => Word::Inner(Plain::new(0)),
                },
            }
        };
        (Arc::new(Self((0..=layout.total_words()).map(word).collect())), layout)
    }
}

impl Words for ModelWords {
    fn word_count(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize, order: Ordering) -> u32 {
        match &self.0[index] {
            Word::Shared(value) => value.load(order),
            Word::Inner(value) => value.load(order),
            Word::Entry { value, reads_seen, reads } => {
                let found = value.load(order);
                let count = reads.load(Ordering::Relaxed) + 1;
                reads.store(count, Ordering::Relaxed);
                reads_seen.store(count, Ordering::Relaxed);
                found
            }
        }
    }

    fn store(&self, index: usize, new: u32, order: Ordering) {
        match &self.0[index] {
            Word::Shared(value) => value.store(new, order),
            Word::Inner(value) => value.store(new, order),
            Word::Entry { value, reads_seen, reads } => {
                let seen = reads_seen.load(Ordering::Relaxed);
                let all = reads.load(Ordering::Relaxed);
                assert_eq!(seen, all, "word {index} is written before a read of it is done");
                value.store(new, order);
            }
        }
    }
}

/// A kick or an interrupt: raised by one side, waited for by the other. It stays raised until then,
/// as a doorbell register and an eventfd do. A wake-up that never comes is a deadlock, which loom reports.
struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    fn new() -> Arc<Self> {
        Arc::new(Self { raised: Mutex::new(false), changed: Condvar::new() })
    }

    fn raise(&self) {
        *self.raised.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut raised = self.raised.lock().unwrap();
        while !*raised {
            raised = self.changed.wait(raised).unwrap();
        }
        *raised = false;
    }
}

fn submission_of(tag: u32) -> [u32; SUBMISSION_WORDS] {
    [tag; SUBMISSION_WORDS]
}

fn completion_of(tag: u32) -> [u32; COMPLETION_WORDS] {
    [tag; COMPLETION_WORDS]
}

fn push(driver: &mut Driver<Arc<ModelWords>>, tag: u32) {
    while let Err(error) = driver.push(&submission_of(tag)) {
        assert_eq!(error, RingError::SubmissionsFull { depth: driver.layout().sq_depth() });
        thread::yield_now();
    }
}

/// Takes the next completion, polling.
fn reap(driver: &mut Driver<Arc<ModelWords>>) -> [u32; COMPLETION_WORDS] {
    loop {
        if let Some(found) = driver.reap().unwrap() {
            return found;
        }
        thread::yield_now();
    }
}

/// Waits until the device has left the rings, polling.
fn may_clear(gate: &ResetGate<Arc<ModelWords>>) -> MayClear {
    loop {
        if let Some(permission) = gate.driver_may_clear() {
            return permission;
        }
        thread::yield_now();
    }
}

/// Takes the next submission, polling, and posts the completion of the same tag.
fn serve(device: &mut Device<Arc<ModelWords>>, tag: u32) {
    let fetched = loop {
        if let Some(fetched) = device.pop().unwrap() {
            break fetched;
        }
        thread::yield_now();
    };
    assert_eq!(fetched.entry, submission_of(tag), "a stale or torn submission");
    device.post(fetched.permit, &completion_of(tag));
}

/// Three submissions through one slot: each arrives whole, in order, and is read before it is
/// overwritten, though its completion is not waited for.
#[test]
fn submission() {
    Builder::new().check(|| {
        let (words, layout) = ModelWords::new(0, 2);
        let mut device = Device::new(words.clone(), layout).unwrap();
        let device = thread::spawn(move || (1..=3).for_each(|tag| serve(&mut device, tag)));
        let mut driver = Driver::new(words, layout).unwrap();
        for tag in 1..=3 {
            push(&mut driver, tag);
            driver.publish();
        }
        device.join().unwrap();
    });
}

/// Three completions through one slot: each arrives whole, once, in its lap, and is read before it
/// is overwritten.
#[test]
fn completion() {
    Builder::new().check(|| {
        let (words, layout) = ModelWords::new(1, 0);
        let mut device = Device::new(words.clone(), layout).unwrap();
        let device = thread::spawn(move || (1..=3).for_each(|tag| serve(&mut device, tag)));
        let mut driver = Driver::new(words, layout).unwrap();
        for tag in 1..=3 {
            push(&mut driver, tag);
            driver.publish();
            assert_eq!(reap(&mut driver), completion_of(tag), "a stale or torn completion");
            assert_eq!(driver.reap(), Ok(None), "a completion is there once");
        }
        device.join().unwrap();
    });
}

/// A device that looks once more and then sleeps whenever it may fetches two submissions: no kick is missing.
#[test]
fn kick() {
    Builder::new().check(|| {
        let (words, layout) = ModelWords::new(1, 1);
        let doorbell = Signal::new();
        let mut device = Device::new(words.clone(), layout).unwrap();
        let bell = doorbell.clone();
        let device = thread::spawn(move || {
            let mut fetched = 0;
            while fetched < 2 {
                if device.pop().unwrap().is_some() {
                    fetched += 1;
                } else if !device.has_entry() && device.prepare_sleep() == LastLook::Clear {
                    bell.wait();
                }
            }
        });
        let mut driver = Driver::new(words, layout).unwrap();
        for tag in 1..=2 {
            push(&mut driver, tag);
            driver.publish();
            if driver.needs_kick() {
                doorbell.raise();
            }
        }
        device.join().unwrap();
    });
}

/// A driver that looks once more and then sleeps whenever it may reaps two completions: no interrupt is missing.
#[test]
fn interrupt() {
    Builder::new().check(|| {
        let (words, layout) = ModelWords::new(1, 1);
        let vector = Signal::new();
        let mut driver = Driver::new(words.clone(), layout).unwrap();
        (1..=2).for_each(|tag| push(&mut driver, tag));
        driver.publish();
        let line = vector.clone();
        let mut device = Device::new(words.clone(), layout).unwrap();
        let device = thread::spawn(move || {
            for tag in 1..=2 {
                serve(&mut device, tag);
                if device.needs_interrupt() {
                    line.raise();
                }
            }
        });
        let mut reaped = 0;
        while reaped < 2 {
            if driver.reap().unwrap().is_some() {
                reaped += 1;
            } else if !driver.next().is_here(&words) && driver.arm_interrupt() == LastLook::Clear {
                vector.wait();
            }
        }
        device.join().unwrap();
    });
}

/// A reset with a command in flight: its late completion is not seen on the cleared ring, which then
/// works as a new one.
#[test]
fn reset() {
    Builder::new().check(|| {
        let (words, layout) = ModelWords::new(0, 0);
        let gate = ResetGate::new(words.clone(), layout.total_words());
        let mut driver = Driver::new(words.clone(), layout).unwrap();
        push(&mut driver, 1);
        driver.publish();
        gate.start(may_clear(&gate));

        let device = thread::spawn({
            let (gate, words) = (gate.clone(), words.clone());
            move || {
                serve(&mut Device::new(words.clone(), layout).unwrap(), 1);
                while !gate.is_reset_requested() {
                    thread::yield_now();
                }
                gate.device_done();
                while !gate.device_may_start() {
                    thread::yield_now();
                }
                serve(&mut Device::new(words, layout).unwrap(), 2);
            }
        });

        gate.request_reset();
        let permission = may_clear(&gate);
        layout.clear(&words, &permission).unwrap();
        let mut driver = Driver::new(words, layout).unwrap();
        assert_eq!(driver.reap(), Ok(None), "a completion of before the reset");
        gate.start(permission);
        push(&mut driver, 2);
        driver.publish();
        assert_eq!(reap(&mut driver), completion_of(2));
        device.join().unwrap();
    });
}

/// A device that finds itself started sees the cleared rings and what was pushed since, and nothing
/// of before the reset.
///
/// Each side makes one attempt: after a yield loom would no longer offer it the old values.
#[test]
fn restart() {
    Builder::new().check(|| {
        let (words, layout) = ModelWords::new(0, 0);
        let gate = ResetGate::new(words.clone(), layout.total_words());
        let mut old = Driver::new(words.clone(), layout).unwrap();
        push(&mut old, 1);
        old.publish();

        let device = thread::spawn({
            let (gate, words) = (gate.clone(), words.clone());
            move || {
                if gate.device_may_start() {
                    let fetched = Device::new(words, layout).unwrap().pop().unwrap();
                    let entry = fetched.map(|fetched| fetched.entry);
                    assert!(
                        entry.is_none_or(|entry| entry == submission_of(2)),
                        "a submission of before the reset"
                    );
                }
            }
        });

        let permission = may_clear(&gate);
        layout.clear(&words, &permission).unwrap();
        let mut driver = Driver::new(words, layout).unwrap();
        gate.start(permission);
        push(&mut driver, 2);
        driver.publish();
        device.join().unwrap();
    });
}
