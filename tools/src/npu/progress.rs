//! Tells on stderr what is done: on a terminal what takes longer than a second, second by second; all of
//! it when asked to.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Whether to tell.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Tell each step on stderr, from its first moment and also where that is no terminal.
    #[arg(long)]
    progress: bool,
}

impl Progress {
    /// Calls `work`; says `what` it is, and for how long.
    pub(crate) fn during<R>(self, what: &str, work: impl FnOnce() -> R) -> R {
        if self.progress {
            let _ = writeln!(std::io::stderr(), "{what}");
            return during(what, true, work);
        }
        match std::io::stderr().is_terminal() {
            true => during(what, false, work),
            false => work(),
        }
    }
}

/// Says how long `work` runs: each second, and at its end when it said so before or `always`.
fn during<R>(what: &str, always: bool, work: impl FnOnce() -> R) -> R {
    let (done, is_done) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let started = Instant::now();
            let mut told = always;
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
