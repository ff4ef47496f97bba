//! What becomes of entries: the next part of a job to execute, how it ended, and what is done then.

use super::{LOADER, State};
use crate::counters::charge;
use crate::fault::{Problem, Victim};
use crate::front_end::{Answer, header};
use crate::inject::Kind;
use crate::job::{Running, Task, What};
use crate::kernel::Stop;
use crate::kernel::control::Place;
use crate::mortem::{Seen, program_of};
use crate::program::{Program, Unloaded};
use crate::queue::Queue;
use crate::saturation::Counted;
use npu_uapi::addr::SlotId;
use npu_uapi::event::{Event, kind};
use npu_uapi::queue::{access, priority};
use npu_uapi::regs::state;
use npu_uapi::ring::Fetched;
use npu_uapi::status::Status;
use npu_uapi::telemetry::Saturation;
use std::sync::Arc;

/// What the thread that drives does next.
pub(crate) enum Step {
    /// Nothing now. Before it sleeps it asks [`State::may_sleep`].
    Idle,
    /// An entry was answered: look again.
    Again,
    /// A job was begun: look again.
    Begun,
    /// Execute this part of a job.
    Execute(Task),
}

/// How a part of a job ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With the codes of its result, where they are counted.
    Done(Option<Counted>),
    Loaded(Result<Program, Unloaded>),
    Stopped(Stop),
    /// A kernel panicked.
    Broken,
}

impl State {
    /// The next thing to do: admin entries first; then, band by band, the job that was begun, else the
    /// queues in turn.
    pub(crate) fn step(&mut self) -> Step {
        if self.state() != state::READY {
            return Step::Idle;
        }
        if let Some(task) = self.resume(LOADER) {
            return Step::Execute(task);
        }
        match self.admin.as_mut().map(Queue::pop) {
            Some(Ok(Some(fetched))) => {
                self.submitted(0, &fetched);
                self.serve_admin(fetched);
                return Step::Again;
            }
            Some(Err(_)) => {
                self.fail_admin();
                return Step::Idle;
            }
            Some(Ok(None)) | None => {}
        }
        for band in 0..priority::COUNT {
            if let Some(task) = self.resume(band) {
                return Step::Execute(task);
            }
            if self.fetch(band) {
                return if self.running[band].is_some() { Step::Begun } else { Step::Again };
            }
        }
        Step::Idle
    }

    /// An entry was fetched.
    fn submitted(&mut self, queue: u16, fetched: &Fetched) {
        let head = header(fetched.entry);
        self.recorder.record(Event {
            opcode: head.opcode,
            queue,
            job: head.job,
            program: program_of(fetched.entry),
            cycles: self.counters.cycles,
            ..Event::new(kind::SUBMIT)
        });
    }

    /// The next part of what was begun in `band`.
    fn resume(&mut self, band: usize) -> Option<Task> {
        let running = self.running[band].as_mut()?;
        running.is_active = true;
        let (work, place) = (Arc::clone(&running.work), running.place);
        let what = running.what();
        if let Some(event) = running.begins(&what) {
            self.recorder.record(Event { cycles: self.counters.cycles, ..event });
        }
        Some(Task { work, what, place, band })
    }

    /// Looks into the queues of `band`; whether there was something to do.
    fn fetch(&mut self, band: usize) -> bool {
        for _ in 0..self.queues.len() {
            self.turns[band] = (self.turns[band] + 1) % self.queues.len();
            let queue = &mut self.queues[self.turns[band]];
            if queue.band != band {
                continue;
            }
            let identity = (queue.id, queue.context, band);
            match queue.pop() {
                Ok(Some(fetched)) => {
                    if self.injector.fires(Kind::WrongRingIndex).is_some() {
                        queue.publish_wrong_index();
                    }
                    self.submitted(identity.0, &fetched);
                    self.begin(identity, fetched);
                    return true;
                }
                Ok(None) => {}
                Err(_) => {
                    self.stop_queue(identity.0, Status::INVALID_FIELD);
                    return true;
                }
            }
        }
        false
    }

    /// Takes note of how the active part of the job in `band` ended, at `place` of its command; the job
    /// goes on, or is answered.
    pub(crate) fn ended(&mut self, band: usize, ended: Ended, place: Place) {
        let Some(running) = self.running[band].as_mut() else { return };
        running.is_active = false;
        if self.state() == state::QUIESCING {
            return self.reset();
        }
        let Some(running) = self.running[band].as_mut() else { return };
        let problem = match (ended, running.end) {
            (Ended::Stopped(Stop::Fault { access, status }), _) => {
                let bit = if access.write { access::WRITE } else { access::READ };
                let slot: SlotId = access.slot;
                Problem::new(status).slot(slot).at(access.start, access.len).access(bit)
            }
            (Ended::Broken, _) => Problem::new(Status::INTERNAL),
            (_, Some(status)) => Problem::new(status),
            (Ended::Stopped(Stop::Aborted), None) => Problem::new(Status::ABORTED),
            (Ended::Stopped(Stop::Hung), None) => {
                self.finish_at(band, Problem::new(Status::HUNG));
                return self.lose_sram();
            }
            (Ended::Stopped(Stop::Preempted), None) => {
                running.place = place;
                let event = running.event(kind::OP_REST);
                self.recorder.record(Event { cycles: self.counters.cycles, ..event });
                return;
            }
            (Ended::Loaded(loaded), None) => {
                let (answer, node) = match loaded {
                    Ok(program) => (self.add_program(program), None),
                    Err(Unloaded { problem, node }) => (Err(problem), node),
                };
                self.finish(band, answer);
                return self.name_last_fault(node);
            }
            (Ended::Done(counted), None) => return self.advance(band, counted),
        };
        self.finish_at(band, problem);
    }

    /// The active part of the job in `band` is done.
    fn advance(&mut self, band: usize, counted: Option<Counted>) {
        let Some(running) = self.running[band].as_mut() else { return };
        running.place = Place::default();
        match running.what() {
            What::Poison(_) => running.poison = None,
            What::Gather => {
                running.must_gather = false;
                let event = running.moved(0);
                self.recorder.record(Event { cycles: self.counters.cycles, ..event });
            }
            What::Command(index) => {
                let cost = running.work.command(index).map(|(_, cost)| cost).unwrap_or_default();
                charge(&mut self.counters, cost);
                if let Some(Counted { is_of_array, codes }) = counted {
                    let Saturation { array, vector, .. } = &mut self.saturation;
                    if is_of_array { array.add(codes) } else { vector.add(codes) }
                }
                let cycles = self.counters.cycles;
                self.recorder.record_traced(|| Event {
                    value: cost.cycles,
                    cycles,
                    at_ends: counted.map_or(0, Counted::at_ends),
                    ..running.event(kind::OP_END)
                });
                running.cycles = running.cycles.saturating_add(cost.cycles);
                running.next += 1;
            }
            What::Scatter => {
                running.must_scatter = false;
                let event = running.moved(1);
                self.recorder.record(Event { cycles: self.counters.cycles, ..event });
            }
            What::Load(_) | What::Nothing => {}
        }
        if matches!(running.what(), What::Nothing) {
            let answer = Answer { cycles: running.cycles, ..Answer::default() };
            self.counters.jobs = self.counters.jobs.saturating_add(1);
            self.finish(band, Ok(answer));
        }
    }

    /// The engine was reset because a job hung: what others had in SRAM is gone, and they with it.
    fn lose_sram(&mut self) {
        for band in 0..LOADER {
            let running = self.running[band].as_ref();
            if running.is_some_and(|running| running.work.slots.has_sram) {
                self.finish_at(band, Problem::new(Status::INNOCENT));
            }
        }
    }

    /// Answers the job of `band` with a problem, at the command that it has come to.
    fn finish_at(&mut self, band: usize, problem: Problem) {
        let Some(running) = &self.running[band] else { return };
        let problem = match running.work.command(running.next) {
            Some((command, _)) => {
                let (header, next) = (command.header(), running.next);
                let index = u32::try_from(next).unwrap_or(u32::MAX);
                problem.command(index, header.op_id, header.opcode)
            }
            None => problem,
        };
        self.finish(band, Err(problem));
    }

    /// Answers the job of `band`.
    fn finish(&mut self, band: usize, answer: Result<Answer, Problem>) {
        let Some(running) = self.running[band].take() else { return };
        let is_failed = answer.is_err();
        let Running { queue, job, opcode, permit, work, next, cycles, .. } = running;
        let bounced = &mut self.counters.bounced_bytes;
        *bounced = bounced.saturating_add(work.slots.bounced());
        self.answer(permit, Victim { queue, job, opcode }, answer);
        if is_failed {
            self.leave(&Seen { queue, opcode, job, work: &work, next, cycles, is_active: false });
        }
    }

    /// Ends the job of `band`: at once when it rests, else as soon as its thread notices. Whether the
    /// thread must be told.
    pub(crate) fn end_running(&mut self, band: usize, status: Status) -> bool {
        let Some(running) = &mut self.running[band] else { return false };
        if running.is_active {
            running.end = Some(status);
            return true;
        }
        self.finish_at(band, Problem::new(status));
        false
    }
}
