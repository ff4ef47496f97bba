//! Both ends against each other and against hostile peers, in one thread.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{
    COMPLETION_WORDS, CQ_HEAD, Device, Driver, Fetched, IRQ_EVENT, KICK_EVENT, LastLook, PHASE_BIT,
    ResetGate, RingError, RingLayout, SQ_HEAD, SQ_TAIL, SUBMISSION_WORDS, passes,
};

/// Memory as a queue has left it at index `start`: all indices there, each phase that of a lap ago.
fn memory(layout: RingLayout, start: u32) -> Vec<AtomicU32> {
    let words: Vec<AtomicU32> = (0..layout.total_words()).map(|_| AtomicU32::new(0)).collect();
    for index in [SQ_TAIL, CQ_HEAD, IRQ_EVENT, SQ_HEAD, KICK_EVENT] {
        words[index].store(start, Ordering::Relaxed);
    }
    for ahead in 0..layout.cq_depth() {
        let index = start.wrapping_add(ahead);
        let (_, last) = layout.completion(index);
        words[last].store(layout.phase(index) ^ PHASE_BIT, Ordering::Relaxed);
    }
    words
}

type Pair<'a> = (Driver<&'a [AtomicU32]>, Device<&'a [AtomicU32]>);

fn pair(words: &[AtomicU32], layout: RingLayout, start: u32) -> Pair<'_> {
    (
        Driver::starting_at(words, layout, start).unwrap(),
        Device::starting_at(words, layout, start).unwrap(),
    )
}

fn small() -> RingLayout {
    RingLayout::new(4, 4).unwrap()
}

fn push_and_publish(driver: &mut Driver<&[AtomicU32]>, count: u32) {
    for tag in 0..count {
        driver.push(&[tag; SUBMISSION_WORDS]).unwrap();
    }
    driver.publish();
}

/// One step of either side.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push,
    Publish,
    Pop,
    /// Completes the outstanding command of this number, modulo how many there are.
    Post(usize),
    Reap,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => proptest::strategy::Just(Step::Push),
        2 => proptest::strategy::Just(Step::Publish),
        3 => proptest::strategy::Just(Step::Pop),
        3 => any::<usize>().prop_map(Step::Post),
        3 => proptest::strategy::Just(Step::Reap),
    ];
    vec(step, 0..600)
}

/// A queue that one can check by eye: where each command is.
#[derive(Default)]
struct Model {
    pushed: VecDeque<u32>,
    published: VecDeque<u32>,
    fetched: Vec<Fetched>,
    posted: VecDeque<u32>,
}

impl Model {
    fn in_flight(&self) -> usize {
        self.unfetched() + self.fetched.len() + self.posted.len()
    }
    fn unfetched(&self) -> usize {
        self.pushed.len() + self.published.len()
    }
}

/// `N` words that no other tag has.
fn entry<const N: usize>(tag: u32) -> [u32; N] {
    let mut word = tag.wrapping_mul(0x9e37_79b9);
    [(); N].map(|()| {
        word = word.wrapping_add(0x8000_0001);
        word
    })
}

fn submission(tag: u32) -> [u32; SUBMISSION_WORDS] {
    entry(tag)
}

fn completion(tag: u32) -> [u32; COMPLETION_WORDS] {
    entry(!tag)
}

proptest! {
    #[test]
    fn the_rings_are_bounded_fifos_across_the_wrap(
        sq_log2 in 4_u32..=6,
        cq_log2 in 4_u32..=6,
        before_wrap in 0_u32..200,
        steps in steps(),
    ) {
        let layout = RingLayout::new(sq_log2, cq_log2).unwrap();
        let start = 0_u32.wrapping_sub(before_wrap);
        let words = memory(layout, start);
        let (mut driver, mut device) = pair(&words, layout, start);
        let mut model = Model::default();
        let mut tag = 0;
        for step in steps {
            match step {
                Step::Push => {
                    let found = driver.push(&submission(tag));
                    if model.in_flight() == layout.cq_depth() as usize {
                        let depth = layout.cq_depth();
                        prop_assert_eq!(found, Err(RingError::CompletionsFull { depth }));
                    } else if model.unfetched() == layout.sq_depth() as usize {
                        let depth = layout.sq_depth();
                        prop_assert_eq!(found, Err(RingError::SubmissionsFull { depth }));
                    } else {
                        prop_assert_eq!(found, Ok(start.wrapping_add(tag)));
                        model.pushed.push_back(tag);
                        tag += 1;
                    }
                }
                Step::Publish => {
                    driver.publish();
                    model.published.append(&mut model.pushed);
                }
                Step::Pop => {
                    let found = device.pop().unwrap();
                    let wanted = model.published.pop_front();
                    prop_assert_eq!(found.is_some(), wanted.is_some());
                    if let (Some(found), Some(wanted)) = (found, wanted) {
                        prop_assert_eq!(found.index, start.wrapping_add(wanted));
                        prop_assert_eq!(found.entry, submission(wanted));
                        model.fetched.push(found);
                    }
                }
                Step::Post(which) => {
                    if !model.fetched.is_empty() {
                        let which = which % model.fetched.len();
                        let done = model.fetched.swap_remove(which);
                        let tag = done.index.wrapping_sub(start);
                        device.post(done.permit, &completion(tag));
                        model.posted.push_back(tag);
                    }
                }
                Step::Reap => {
                    let wanted = model.posted.pop_front().map(|tag| {
                        let mut wanted = completion(tag);
                        wanted[COMPLETION_WORDS - 1] &= !PHASE_BIT;
                        wanted
                    });
                    prop_assert_eq!(driver.reap(), Ok(wanted));
                }
            }
            prop_assert_eq!(driver.in_flight() as usize, model.in_flight());
            prop_assert_eq!(device.outstanding() as usize, model.fetched.len());
        }
    }

    #[test]
    fn an_event_is_passed_if_it_is_one_of_the_indices_moved_over(
        old: u32,
        moved in 0_u32..5000,
        event_ahead in -10_000_i32..10_000,
    ) {
        let event = old.wrapping_add_signed(event_ahead);
        let wanted = (0..moved).any(|step| old.wrapping_add(step) == event);
        prop_assert_eq!(passes(event, old, old.wrapping_add(moved)), wanted);
    }

    #[test]
    fn no_words_of_a_hostile_peer_make_either_side_panic(
        hostile in vec((0_usize..2000, any::<u32>(), 0_u8..8), 0..300),
    ) {
        let layout = small();
        let words = memory(layout, 0);
        let (mut driver, mut device) = pair(&words, layout, 0);
        let mut permits = Vec::new();
        for (at, value, action) in hostile {
            words[at % words.len()].store(value, Ordering::Relaxed);
            // The indices are hit often, and close to what is valid.
            words[[SQ_TAIL, CQ_HEAD, SQ_HEAD][at % 3]].store(value % 40, Ordering::Relaxed);
            match action {
                0 => _ = driver.push(&[value; SUBMISSION_WORDS]),
                1 => driver.publish(),
                2 => _ = driver.reap(),
                3 => _ = driver.arm_interrupt(),
                4 => permits.extend(device.pop().ok().flatten().map(|fetched| fetched.permit)),
                5 => _ = permits.pop().map(|permit| device.post(permit, &[value; 8])),
                6 => _ = device.prepare_sleep(),
                _ => _ = (driver.needs_kick(), device.needs_interrupt()),
            }
            prop_assert!(driver.in_flight() <= layout.cq_depth());
            prop_assert!(device.outstanding() <= layout.cq_depth());
            prop_assert_eq!(device.outstanding() as usize, permits.len());
        }
    }
}

#[test]
fn the_region_is_laid_out_as_the_interface_says() {
    let layout = RingLayout::new(4, 5).unwrap();
    assert_eq!((SQ_TAIL * 4, CQ_HEAD * 4, IRQ_EVENT * 4), (0, 4, 8));
    assert_eq!((SQ_HEAD * 4, KICK_EVENT * 4), (64, 68));
    assert_eq!(layout.submission_bytes(), 128..128 + 16 * 64);
    assert_eq!(layout.completion_bytes(), 1152..1152 + 32 * 32);
    assert_eq!(layout.total_bytes(), 2176);
    assert_eq!(layout.submission(17), 32 + 16..32 + 32);
    assert_eq!(layout.completion(33), (288 + 8..288 + 15, 288 + 15));
}

#[test]
fn only_depths_of_16_to_4096_are_accepted() {
    for (sq_log2, cq_log2) in [(3, 4), (4, 3), (13, 4), (4, 13), (u32::MAX, 4), (4, u32::MAX)] {
        let error = RingError::DepthOutOfRange { sq_log2, cq_log2 };
        assert_eq!(RingLayout::new(sq_log2, cq_log2), Err(error));
    }
    for log2 in RingLayout::LOG2_RANGE {
        assert!(RingLayout::new(log2, log2).is_ok());
    }
}

#[test]
fn a_region_that_is_too_small_is_refused_by_both_ends() {
    let layout = small();
    let words = memory(layout, 0);
    let short = &words[1..];
    let error = RingError::RegionTooSmall { found: short.len(), needed: short.len() + 1 };
    assert_eq!(Driver::new(short, layout).unwrap_err(), error);
    assert_eq!(Device::new(short, layout).unwrap_err(), error);
}

#[test]
fn the_phase_flips_every_lap_and_over_the_wrap() {
    let layout = small();
    for start in [0, u32::MAX - 40] {
        let words = memory(layout, start);
        let (mut driver, mut device) = pair(&words, layout, start);
        for step in 0..5 * layout.cq_depth() {
            let index = start.wrapping_add(step);
            push_and_publish(&mut driver, 1);
            let fetched = device.pop().unwrap().unwrap();
            assert_eq!(driver.reap(), Ok(None), "the entry of the lap before is no completion");
            device.post(fetched.permit, &[step; COMPLETION_WORDS]);
            let (_, last) = layout.completion(index);
            let first_lap_is_one = (index / layout.cq_depth()).is_multiple_of(2);
            let phase = words[last].load(Ordering::Relaxed) & PHASE_BIT != 0;
            assert_eq!(phase, first_lap_is_one);
            assert_eq!(driver.reap(), Ok(Some([step; COMPLETION_WORDS])));
            assert_eq!(driver.reap(), Ok(None), "a completion is there once");
        }
    }
}

#[test]
fn a_full_ring_says_so_and_loses_nothing() {
    let layout = RingLayout::new(4, 5).unwrap();
    let words = memory(layout, 0);
    let (mut driver, mut device) = pair(&words, layout, 0);
    push_and_publish(&mut driver, 16);
    let full = Err(RingError::SubmissionsFull { depth: 16 });
    assert_eq!(driver.push(&[99; SUBMISSION_WORDS]), full);
    let fetched: Vec<Fetched> = (0..16).map(|_| device.pop().unwrap().unwrap()).collect();
    assert!((0_u32..).zip(&fetched).all(|(tag, one)| one.entry == [tag; 16]));
    push_and_publish(&mut driver, 16);
    let full = Err(RingError::CompletionsFull { depth: 32 });
    assert_eq!(driver.push(&[99; SUBMISSION_WORDS]), full);
    assert_eq!(driver.in_flight(), 32);
}

#[test]
fn a_submission_head_outside_what_is_published_is_refused_with_the_value_found() {
    for (found, is_refused) in
        [(6, false), (21, false), (4, true), (22, true), (u32::MAX, true), (1 << 31, true)]
    {
        let layout = RingLayout::new(4, 6).unwrap();
        let words = memory(layout, 0);
        let mut driver = Driver::new(words.as_slice(), layout).unwrap();
        push_and_publish(&mut driver, 16);
        words[SQ_HEAD].store(5, Ordering::Relaxed);
        push_and_publish(&mut driver, 5);
        words[SQ_HEAD].store(found, Ordering::Relaxed);
        let error = RingError::SqHeadOutOfRange { found, last: 5, tail: 21 };
        let wanted = if is_refused { Err(error) } else { Ok(21) };
        assert_eq!(driver.push(&[0; SUBMISSION_WORDS]), wanted, "{found}");
    }
}

#[test]
fn a_submission_head_beyond_the_published_entries_is_refused_though_more_are_pushed() {
    let layout = RingLayout::new(4, 6).unwrap();
    let words = memory(layout, 0);
    let mut driver = Driver::new(words.as_slice(), layout).unwrap();
    for tag in 0..16 {
        driver.push(&[tag; SUBMISSION_WORDS]).unwrap();
    }
    words[SQ_HEAD].store(1, Ordering::Relaxed);
    let error = RingError::SqHeadOutOfRange { found: 1, last: 0, tail: 0 };
    assert_eq!(driver.push(&[0; SUBMISSION_WORDS]), Err(error));
}

#[test]
fn a_completion_without_a_command_in_flight_is_refused() {
    let words = memory(small(), 0);
    let (mut driver, mut device) = pair(&words, small(), 0);
    push_and_publish(&mut driver, 1);
    let permit = device.pop().unwrap().unwrap().permit;
    device.post(permit, &[0; COMPLETION_WORDS]);
    driver.reap().unwrap().unwrap();
    // Pushed but not published: the device cannot have seen it.
    driver.push(&[0; SUBMISSION_WORDS]).unwrap();
    let (_, last) = small().completion(1);
    words[last].store(PHASE_BIT, Ordering::Relaxed);
    let error = RingError::UnexpectedCompletion { index: 1 };
    assert_eq!(driver.reap(), Err(error));
    assert_eq!(driver.reap(), Err(error), "and goes on being refused");
}

#[test]
fn a_submission_tail_outside_the_ring_is_refused_with_the_value_found() {
    for (found, is_refused) in [(19, false), (20, true), (2, true), (u32::MAX, true)] {
        let words = memory(small(), 0);
        let (mut driver, mut device) = pair(&words, small(), 0);
        push_and_publish(&mut driver, 3);
        for _ in 0..3 {
            _ = device.pop().unwrap().unwrap();
        }
        words[SQ_TAIL].store(found, Ordering::Relaxed);
        let error = RingError::SqTailOutOfRange { found, last: 3, limit: 19 };
        assert_eq!(device.pop().err(), is_refused.then_some(error), "{found}");
        assert_eq!(device.outstanding(), if is_refused { 3 } else { 4 });
    }
}

/// A device that has fetched a ring full of submissions, posted `posted` and seen none reaped, and
/// finds one more submission.
fn overcommitted(words: &[AtomicU32], posted: usize) -> Device<&[AtomicU32]> {
    let (mut driver, mut device) = pair(words, small(), 0);
    push_and_publish(&mut driver, 16);
    let fetched: Vec<Fetched> = (0..16).map(|_| device.pop().unwrap().unwrap()).collect();
    for done in fetched.into_iter().take(posted) {
        device.post(done.permit, &[0; COMPLETION_WORDS]);
    }
    words[SQ_TAIL].store(17, Ordering::Relaxed);
    device
}

#[test]
fn a_completion_head_outside_what_is_posted_is_refused_with_the_value_found() {
    for (found, is_refused) in [(1, false), (10, false), (11, true), (u32::MAX, true)] {
        let words = memory(small(), 0);
        let mut device = overcommitted(&words, 10);
        words[CQ_HEAD].store(found, Ordering::Relaxed);
        let error = RingError::CqHeadOutOfRange { found, last: 0, posted: 10 };
        assert_eq!(device.pop().err(), is_refused.then_some(error), "{found}");
    }
}

#[test]
fn a_driver_with_more_in_flight_than_its_completion_ring_holds_is_refused() {
    let words = memory(small(), 0);
    let mut device = overcommitted(&words, 10);
    let error = RingError::CompletionsOvercommitted { index: 16, depth: 16 };
    assert_eq!(device.pop().unwrap_err(), error);
    words[CQ_HEAD].store(1, Ordering::Relaxed);
    assert_eq!(device.pop().unwrap().unwrap().index, 16, "nothing was fetched before");
}

#[test]
fn a_device_that_is_awake_is_not_kicked_and_one_that_sleeps_is_once() {
    let words = memory(small(), 0);
    let (mut driver, mut device) = pair(&words, small(), 0);
    assert!(!driver.needs_kick(), "nothing is published");
    push_and_publish(&mut driver, 1);
    assert!(driver.needs_kick(), "a new device sleeps");
    assert!(!driver.needs_kick(), "it was kicked already");
    assert_eq!(device.prepare_sleep(), LastLook::Work);
    _ = device.pop().unwrap().unwrap();
    push_and_publish(&mut driver, 2);
    assert!(!driver.needs_kick(), "it is awake");
    _ = (device.pop().unwrap().unwrap(), device.pop().unwrap().unwrap());
    assert_eq!(device.prepare_sleep(), LastLook::Clear);
    push_and_publish(&mut driver, 1);
    push_and_publish(&mut driver, 1);
    assert!(driver.needs_kick(), "one of the two publications passed its event");
    push_and_publish(&mut driver, 1);
    assert!(!driver.needs_kick(), "the kick is under way");
}

#[test]
fn a_driver_that_is_awake_is_not_interrupted_and_one_that_waits_is_once() {
    let words = memory(small(), 0);
    let (mut driver, mut device) = pair(&words, small(), 0);
    push_and_publish(&mut driver, 8);
    let post = |device: &mut Device<&[AtomicU32]>| {
        let permit = device.pop().unwrap().unwrap().permit;
        device.post(permit, &[0; COMPLETION_WORDS]);
    };
    assert!(!device.needs_interrupt(), "nothing is posted");
    post(&mut device);
    assert!(device.needs_interrupt(), "a new driver waits for the first");
    assert!(!device.needs_interrupt(), "it was interrupted already");
    post(&mut device);
    assert!(!device.needs_interrupt(), "it is awake");
    driver.reap().unwrap().unwrap();
    assert_eq!(driver.arm_interrupt(), LastLook::Work);
    driver.reap().unwrap().unwrap();
    assert_eq!(driver.arm_interrupt(), LastLook::Clear);
    post(&mut device);
    post(&mut device);
    assert!(device.needs_interrupt(), "one of the two completions passed its event");
}

#[test]
fn a_look_sees_what_is_there_and_says_nothing_to_the_other_side() {
    let start = u32::MAX - 5;
    let words = memory(small(), start);
    let (mut driver, mut device) = pair(&words, small(), start);
    for _ in 0..40 {
        let before: Vec<u32> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        let next = driver.next();
        assert!(!device.has_entry() && !next.is_here(&words.as_slice()));
        let after: Vec<u32> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        assert_eq!(before, after);
        push_and_publish(&mut driver, 1);
        assert!(device.has_entry() && !next.is_here(&words.as_slice()));
        let permit = device.pop().unwrap().unwrap().permit;
        device.post(permit, &[0; COMPLETION_WORDS]);
        assert!(!device.has_entry() && next.is_here(&words.as_slice()));
        driver.reap().unwrap().unwrap();
    }
}

#[test]
fn a_side_that_polls_is_never_woken_until_it_asks() {
    let start = u32::MAX - 20;
    let words = memory(small(), start);
    let (mut driver, mut device) = pair(&words, small(), start);
    driver.suppress_interrupts();
    device.suppress_kicks();
    for _ in 0..64 {
        push_and_publish(&mut driver, 1);
        assert!(!driver.needs_kick());
        let permit = device.pop().unwrap().unwrap().permit;
        device.post(permit, &[0; COMPLETION_WORDS]);
        assert!(!device.needs_interrupt());
        driver.reap().unwrap().unwrap();
    }
    assert_eq!(driver.arm_interrupt(), LastLook::Clear);
    assert_eq!(device.prepare_sleep(), LastLook::Clear);
    push_and_publish(&mut driver, 1);
    assert!(driver.needs_kick());
    let permit = device.pop().unwrap().unwrap().permit;
    device.post(permit, &[0; COMPLETION_WORDS]);
    assert!(device.needs_interrupt());
}

#[test]
fn rings_are_cleared_only_after_the_device_has_left_them() {
    let status = [AtomicU32::new(0)];
    let gate = ResetGate::new(status.as_slice(), 0);
    let words = memory(small(), 0);
    assert!(!gate.device_may_start());
    let never_started = gate.driver_may_clear().unwrap();
    gate.start(never_started);
    assert!(gate.device_may_start() && !gate.is_reset_requested());
    assert!(gate.driver_may_clear().is_none());

    let (mut driver, mut device) = pair(&words, small(), 0);
    push_and_publish(&mut driver, 1);
    gate.request_reset();
    assert!(gate.is_reset_requested() && !gate.device_may_start());
    assert!(gate.driver_may_clear().is_none(), "the device still completes a command");
    let permit = device.pop().unwrap().unwrap().permit;
    device.post(permit, &[7; COMPLETION_WORDS]);
    gate.device_done();

    let permission = gate.driver_may_clear().unwrap();
    small().clear(&words.as_slice(), &permission).unwrap();
    assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    gate.start(permission);
    assert!(gate.device_may_start());
    let (mut driver, mut device) = pair(&words, small(), 0);
    assert_eq!(driver.reap(), Ok(None));
    assert!(device.pop().unwrap().is_none());
}

#[test]
fn two_threads_move_a_hundred_thousand_commands_and_sleep_in_between() {
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::time::Duration;
    const COMMANDS: u32 = 100_000;
    /// Far above any scheduling delay: a lost wake-up fails the test, it does not hang it.
    const HANG: Duration = Duration::from_secs(60);

    fn wait(signal: &Receiver<()>) {
        match signal.recv_timeout(HANG) {
            Ok(()) => _ = signal.try_iter().count(),
            // The peer is done: what it posted last is in the ring.
            Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => panic!("a wake-up was lost"),
        }
    }

    let layout = RingLayout::new(5, 4).unwrap();
    let words: alloc::sync::Arc<[AtomicU32]> = memory(layout, u32::MAX - 50_000).into();
    let start = u32::MAX - 50_000;
    let mut device = Device::starting_at(words.clone(), layout, start).unwrap();
    let mut driver = Driver::starting_at(words, layout, start).unwrap();
    let (kick, kicked): (Sender<()>, Receiver<()>) = channel();
    let (interrupt, interrupted): (Sender<()>, Receiver<()>) = channel();

    let device = std::thread::spawn(move || {
        let mut done = 0;
        while done < COMMANDS {
            if let Some(fetched) = device.pop().unwrap() {
                assert_eq!(fetched.entry, submission(done));
                device.post(fetched.permit, &completion(done));
                done += 1;
                if device.needs_interrupt() {
                    _ = interrupt.send(());
                }
            } else if device.prepare_sleep() == LastLook::Clear {
                wait(&kicked);
            }
        }
    });

    let (mut pushed, mut reaped) = (0, 0);
    while reaped < COMMANDS {
        while pushed < COMMANDS && driver.push(&submission(pushed)).is_ok() {
            pushed += 1;
        }
        driver.publish();
        if driver.needs_kick() {
            _ = kick.send(());
        }
        if let Some(found) = driver.reap().unwrap() {
            assert_eq!(found[..7], completion(reaped)[..7]);
            reaped += 1;
        } else if driver.arm_interrupt() == LastLook::Clear {
            wait(&interrupted);
        }
    }
    device.join().unwrap();
}
