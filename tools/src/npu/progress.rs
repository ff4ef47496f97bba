//! Tells on stderr what takes longer than a second, second by second: on a terminal, or when asked to.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Whether to tell.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Tell on stderr what takes longer than a second, also where that is no terminal.
    #[arg(long)]
    progress: bool,
}

impl Progress {
    /// Calls `work`; says `what` it is, and for how long, once it takes longer than a second.
    pub(crate) fn during<R>(self, what: &str, work: impl FnOnce() -> R) -> R {
        match self.progress || std::io::stderr().is_terminal() {
            true => during(what, work),
            false => work(),
        }
    }
}

fn during<R>(what: &str, work: impl FnOnce() -> R) -> R {
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
