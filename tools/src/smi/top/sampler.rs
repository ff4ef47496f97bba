//! Looks at the server on a thread of its own, so that a server that stalls does not hold up the keys.

use crate::smi::connection::Connection;
use crate::smi::error::SmiError;
use crate::smi::sample::Sample;
use nix::sys::signal::{SigSet, Signal};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long the loop may take to end after a signal.
const GRACE: Duration = Duration::from_secs(2);

/// What the loop hears.
#[derive(Debug)]
pub(super) enum Message {
    /// What the server said; an error is the last one.
    Sample(Result<Sample, SmiError>),
    /// The system wants this program to end.
    Signal(u8),
}

/// Takes samples until it is dropped.
#[derive(Debug)]
pub(super) struct Sampler {
    messages: Receiver<Message>,
    /// Time between two samples; none while paused.
    every: Sender<Option<Duration>>,
}

impl Sampler {
    /// Begins to ask over `connection`.
    pub(super) fn start(connection: Connection, every: Duration) -> Result<Self, SmiError> {
        let (sender, messages) = channel();
        let (every_sender, changes) = channel();
        let broken = |source| SmiError::Terminal { source };
        // Before any thread, so that all inherit it and the signals wait for the one that takes them.
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]);
        signals.thread_block().map_err(|errno| broken(errno.into()))?;
        let of_signals = sender.clone();
        let watch = move || {
            let Ok(signal) = signals.wait() else { return };
            let number = u8::try_from(signal as i32).unwrap_or(0);
            // Nobody listens when the program ends by itself.
            let _ = of_signals.send(Message::Signal(number));
            thread::sleep(GRACE);
            // The loop is held up, by a terminal that takes nothing.
            ratatui::restore();
            std::process::exit(128 + i32::from(number));
        };
        thread::Builder::new().name("smi-signals".into()).spawn(watch).map_err(broken)?;
        let look = move || sample(connection, Some(every), &changes, &sender);
        thread::Builder::new().name("smi-sampler".into()).spawn(look).map_err(broken)?;
        Ok(Self { messages, every: every_sender })
    }

    /// What has come since, if anything.
    pub(super) fn message(&self) -> Option<Message> {
        self.messages.try_recv().ok()
    }

    /// Looks as often as this from now on; not at all with `None`.
    pub(super) fn set(&self, every: Option<Duration>) {
        // It has ended only after an error, which ends the program.
        let _ = self.every.send(every);
    }
}

fn sample(
    mut connection: Connection,
    mut every: Option<Duration>,
    changes: &Receiver<Option<Duration>>,
    samples: &Sender<Message>,
) {
    let mut last = Instant::now();
    loop {
        let changed = match every {
            Some(every) => {
                changes.recv_timeout((last + every).saturating_duration_since(Instant::now()))
            }
            None => changes.recv().map_err(RecvTimeoutError::from),
        };
        match changed {
            Ok(changed) => every = changed,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                last = Instant::now();
                let sample = Sample::take(&mut connection);
                let is_last = sample.is_err();
                if samples.send(Message::Sample(sample)).is_err() || is_last {
                    return;
                }
            }
        }
    }
}
