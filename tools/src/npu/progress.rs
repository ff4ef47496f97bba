//! Tells on stderr what takes longer than a second, second by second.

use std::io::Write as _;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Calls `work`; says `what` it is, and for how long, once it takes longer than a second.
pub(crate) fn during<R>(what: &str, work: impl FnOnce() -> R) -> R {
    let (done, is_done) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let started = Instant::now();
            let mut told = false;
            // Ends when `done` is dropped, also by a panic of the work.
            while is_done.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                told = true;
                let seconds = started.elapsed().as_secs();
                // Nobody to tell is no reason to stop.
                let _ = write!(std::io::stderr(), "\r{what}: {seconds} s");
            }
            if told {
                let seconds = started.elapsed().as_secs_f64();
                let _ = writeln!(std::io::stderr(), "\r{what}: {seconds:.1} s, done");
            }
        });
        let result = work();
        drop(done);
        result
    })
}
