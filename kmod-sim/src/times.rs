//! What each command took here, by the clock on the wall, for whoever looks for the slow ones.
//!
//! Off unless a device is opened with the option `times=1`; then one test of a flag is all that it costs
//! the others. One record for the process, since those who open a device see only its registers.

use npu_uapi::command::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Commands that are kept; further ones are counted only.
const MOST: usize = 1 << 18;

/// One command that was executed, or the part of it between two preemptions.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// The command.
    pub command: Command,
    /// Its place in its program.
    pub index: usize,
    /// From its begin to the end of all workers.
    pub took: Duration,
}

#[derive(Debug)]
struct Recorded {
    commands: Vec<Timed>,
    lost: usize,
}

static RECORDED: Mutex<Recorded> = Mutex::new(Recorded { commands: Vec::new(), lost: 0 });

fn recorded() -> MutexGuard<'static, Recorded> {
    RECORDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps one.
pub(crate) fn record(timed: Timed) {
    let mut recorded = recorded();
    match recorded.commands.len() < MOST {
        true => recorded.commands.push(timed),
        false => recorded.lost += 1,
    }
}

/// What the devices of this process that were opened with `times=1` executed since the last call, in
/// order, and how many further commands were not kept.
pub fn take() -> (Vec<Timed>, usize) {
    let mut recorded = recorded();
    let lost = std::mem::take(&mut recorded.lost);
    (std::mem::take(&mut recorded.commands), lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::command::End;

    #[test]
    fn what_is_taken_is_gone_and_what_does_not_fit_is_counted() {
        let timed = |index| {
            let command = Command::End(End::default());
            record(Timed { command, index, took: Duration::from_micros(3) });
        };
        take();
        timed(0);
        timed(1);
        let (commands, lost) = take();
        assert_eq!(commands.iter().map(|timed| timed.index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(lost, 0);
        (0..MOST + 2).for_each(timed);
        let (commands, lost) = take();
        assert_eq!((commands.len(), lost), (MOST, 2));
        assert!(take().0.is_empty());
    }
}
