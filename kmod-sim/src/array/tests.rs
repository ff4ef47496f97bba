//! Holders and waiters as threads.

use super::*;
use crate::kernel::chunks::Side;
use npu_uapi::workers::Caller;
use std::sync::mpsc;

const NORMAL: usize = 2;

fn seats<const N: usize>(hang: Duration) -> [(Seat, Arc<Engine>); N] {
    let array = Arc::new(Array::new(Box::new(Caller), hang));
    std::array::from_fn(|_| {
        let engine = Arc::new(Engine::default());
        (Seat::new(Arc::clone(&array), Arc::clone(&engine)), engine)
    })
}

/// Until `member` waits for the array.
fn until_it_waits(seat: &Seat) {
    while seat.array.lock().fair.first().is_none_or(|wish| wish.member != seat.id) {
        std::thread::yield_now();
    }
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "hang deadline");
        std::thread::yield_now();
    }
}

#[test]
fn who_is_alone_is_granted_at_once_and_never_asked() {
    let [(seat, engine)] = seats(Duration::from_secs(60));
    for _ in 0..3 {
        let grant = seat.acquire(NORMAL, None).unwrap();
        assert!(!grant.is_asked_for());
        let grant = grant.renew(None).unwrap();
        assert!(!grant.is_asked_for() && engine.end().is_none());
    }
}

#[test]
fn an_equal_asks_after_a_slice_and_a_higher_band_at_once() {
    for (band, least) in [(NORMAL, SLICE), (NORMAL - 1, Duration::ZERO)] {
        let [(holder, engine), (other, _)] = seats(Duration::from_secs(60));
        let start = Instant::now();
        let grant = holder.acquire(NORMAL, None).unwrap();
        grant.begin(100, Place::default());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let grant = other.acquire(band, None).unwrap();
                grant.begin(50, Place::default());
                grant.end(None);
            });
            until(|| grant.is_asked_for());
            assert!(start.elapsed() >= least);
            assert!(engine.end().is_none(), "asked to rest, not to end");
            grant.end(None);
            let grant = grant.renew(None).unwrap();
            waiter.join().unwrap();
            assert!(!grant.is_asked_for());
        });
    }
}

#[test]
fn a_lower_band_does_not_ask_and_has_the_array_when_it_is_free() {
    let [(holder, _), (other, _)] = seats(Duration::from_secs(60));
    let grant = holder.acquire(NORMAL, None).unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _grant = other.acquire(NORMAL + 1, None).unwrap();
            sender.send(()).unwrap();
        });
        until_it_waits(&other);
        assert!(receiver.recv_timeout(4 * SLICE).is_err());
        assert!(!grant.is_asked_for());
        drop(grant);
        receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    });
}

#[test]
fn a_wait_ends_when_the_engine_is_to_end_or_the_seat_is_stopped() {
    type Cause = fn(&Seat, &Engine);
    let causes: [(Cause, Stop); 2] = [
        (
            |seat, engine| {
                engine.abort();
                seat.wake();
            },
            Stop::Aborted,
        ),
        (|seat, _| seat.stop(), Stop::Preempted),
    ];
    for (cause, stop) in causes {
        let [(holder, _), (other, engine), (third, _)] = seats(Duration::from_secs(60));
        let grant = holder.acquire(NORMAL, None).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| other.acquire(NORMAL, None).map(|_| ()));
            until_it_waits(&other);
            let next = scope.spawn(|| third.acquire(NORMAL, None).map(|_| ()));
            cause(&other, &engine);
            assert_eq!(waiter.join().unwrap(), Err(stop));
            // Whoever was behind it asks in its place.
            until(|| grant.is_asked_for());
            drop(grant);
            assert_eq!(next.join().unwrap(), Ok(()));
        });
    }
}

#[test]
fn a_wait_ends_when_the_lookout_finds_what_comes_first() {
    let [(holder, _), (other, _)] = seats(Duration::from_secs(60));
    let _grant = holder.acquire(NORMAL, None).unwrap();
    let look = || true;
    let lookout = Lookout::new(&look);
    assert_eq!(other.acquire(NORMAL, Some(&lookout)).map(|_| ()), Err(Stop::Preempted));
}

#[test]
fn a_holder_that_does_not_give_the_array_back_is_ended_as_hung() {
    let [(holder, engine), (other, _)] = seats(Duration::from_millis(20));
    let grant = holder.acquire(NORMAL, None).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| other.acquire(NORMAL, None).map(|_| ()).unwrap());
        until(|| engine.end() == Some(Stop::Hung));
        drop(grant);
    });
}

#[test]
fn a_part_of_a_command_is_paid_once() {
    let [(seat, engine)] = seats(Duration::from_secs(60));
    let grant = seat.acquire(NORMAL, None).unwrap();
    grant.begin(1000, Place::default());
    engine.set_chunks(4);
    assert_eq!(engine.take_chunk(Side::Front).unwrap().index, 0);
    assert_eq!(seat.member.spent(), 250, "seen while it computes");
    let place = engine.place();
    grant.end(Some(place));
    let grant = grant.renew(None).unwrap();
    assert_eq!(seat.member.finish[NORMAL].load(Relaxed), 250);
    grant.begin(1000, place);
    grant.end(None);
    drop(grant);
    assert_eq!(seat.member.finish[NORMAL].load(Relaxed), 1000);
}
