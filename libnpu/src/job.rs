//! A submitted job: wait for it, ask for it, or let it go.

use crate::device::Inner as DeviceInner;
use crate::dump;
use crate::error::{Error, Loss};
use crate::queue::{Queue, Ticket};
use npu_uapi::queue::Completion;
use npu_uapi::workers::Workers;
use std::sync::Arc;
use std::time::Duration;

/// A job in flight. Dropping it ends nothing and frees nothing: the queue keeps what the job uses
/// until the device is done with it.
#[derive(Debug)]
#[must_use = "a job's results are there when it was waited for"]
pub struct Job {
    device: Arc<DeviceInner>,
    queue: Arc<Queue>,
    ticket: Arc<Ticket>,
}

/// A job that ended well.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Done {
    /// Modelled cycles: of the job, or of the device for a timestamp.
    pub cycles: u64,
}

impl Job {
    pub(crate) fn new(device: Arc<DeviceInner>, queue: Arc<Queue>, ticket: Arc<Ticket>) -> Self {
        Self { device, queue, ticket }
    }

    /// Its number in its queue, as fault records have it.
    pub fn number(&self) -> u32 {
        self.ticket.job
    }

    /// Waits until the job has ended, at most `timeout`. A device in this process computes meanwhile,
    /// with `workers`; it looks at the time between commands.
    ///
    /// # Errors
    /// [`Error::Fault`] when the job failed, [`Error::Timeout`] when it is still in flight,
    /// [`Error::Lost`] when its queue is gone.
    pub fn wait(&self, workers: &dyn Workers, timeout: Duration) -> Result<Done, Error> {
        self.done(self.queue.wait(&self.ticket, workers, timeout)?)
    }

    /// How the job ended, `None` while it is in flight. Does not drive a device in this process.
    pub fn poll(&self) -> Option<Result<Done, Error>> {
        if let Err(error) = self.device.heap.check_process() {
            return Some(Err(error));
        }
        self.queue.poll();
        let lost = |why: Loss| Error::Lost { queue: self.queue.id, why };
        let outcome = self.ticket.outcome()?;
        Some(outcome.map_err(lost).and_then(|completion| self.done(completion)))
    }

    fn done(&self, completion: Completion) -> Result<Done, Error> {
        match self.device.judge(completion, self.queue.id) {
            Ok(completion) => Ok(Done { cycles: completion.cycles }),
            Err(error) => {
                dump::keep(&self.device, &error);
                Err(error)
            }
        }
    }
}
