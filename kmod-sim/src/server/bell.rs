//! Rings the eventfds of clients, and never waits for one.
//!
//! A write to an eventfd that is full sleeps, unless the file is set not to; its owner has the same file,
//! and can undo that and fill it at any moment, also between our look and our write. Whoever rings may
//! hold the lock of a function and the array of the server. So a timer of the thread ticks meanwhile: its
//! signal, whose handler does nothing, ends the sleep.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction,
};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::{gettid, write};
use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

/// How long a write may sleep: it never does where the owner is honest.
const PATIENCE: Duration = Duration::from_millis(1);
/// Ignored where there is no handler, so that a late one harms nobody.
const SIGNAL: Signal = Signal::SIGURG;

thread_local! {
    /// The thread's timer; none where the system has none left.
    static ALARM: RefCell<Option<Timer>> = RefCell::new(alarm().ok());
}

/// Adds one to an eventfd, unless it is full, which wakes whoever waits for it just as well. False when
/// its owner would have let us sleep.
pub(super) fn ring(fd: &OwnedFd) -> bool {
    let mut room = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut room, PollTimeout::ZERO).is_ok() && room[0].any() == Some(true) {
        add(fd)
    } else {
        true
    }
}

fn add(fd: &OwnedFd) -> bool {
    let set = |alarm: &mut Option<Timer>, time| {
        if let Some(alarm) = alarm {
            // It fails only for times that are none.
            let _ = alarm.set(time, TimerSetTimeFlags::empty());
        }
    };
    ALARM.with_borrow_mut(|alarm| {
        // Again and again: a tick that comes before the sleep ends nothing.
        set(alarm, Expiration::Interval(TimeSpec::from_duration(PATIENCE)));
        let written = write(fd, &1_u64.to_ne_bytes());
        set(alarm, Expiration::OneShot(TimeSpec::from_duration(Duration::ZERO)));
        written != Err(nix::Error::EINTR)
    })
}

fn alarm() -> nix::Result<Timer> {
    static INSTALLED: OnceLock<nix::Result<()>> = OnceLock::new();
    (*INSTALLED.get_or_init(install))?;
    let thread_id = gettid().as_raw();
    let notify = SigevNotify::SigevThreadId { signal: SIGNAL, thread_id, si_value: 0 };
    Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))
}

/// Has the signal end system calls, which one that is ignored does not.
fn install() -> nix::Result<()> {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which it may at any moment.
    unsafe { sigaction(SIGNAL, &action) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::eventfd::{EfdFlags, EventFd};

    /// What `ring` gives within a time, in a thread of its own.
    fn result(ring: fn(&OwnedFd) -> bool, event: &EventFd) -> bool {
        let fd = event.as_fd().try_clone_to_owned().unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(ring(&fd)).unwrap());
        is_done.recv_timeout(Duration::from_secs(60)).expect("it does not sleep")
    }

    #[test]
    fn an_eventfd_whose_owner_made_it_sleep_and_filled_it_stops_nobody() {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        assert!(result(ring, &event));
        assert_eq!(event.read(), Ok(1));
        event.write(u64::MAX - 1).unwrap();
        fcntl(&event, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        assert!(result(ring, &event), "it is full, which wakes too");
        assert!(!result(add, &event), "it was filled behind the look");
        assert_eq!(event.read(), Ok(u64::MAX - 1));
    }
}
