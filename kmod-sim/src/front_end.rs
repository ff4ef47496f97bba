//! Fetch and dispatch: what each queue entry does. Every entry is answered exactly once.

use crate::counters::Charge;
use crate::fault::{Problem, Victim};
use crate::job::{Commands, Running, Work};
use crate::mortem::{Seen, program_of};
use crate::program::Program;
use crate::queue::{Queue, overlaps};
use crate::slots::{Bindings, Slots};
use crate::state::{LOADER, State};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{Command, Copy, Fill, Flags, Header, opcode as command_opcode};
use npu_uapi::event::{Event, kind};
use npu_uapi::names::MOST_BYTES;
use npu_uapi::queue::{
    Bind, CopyEntry, Counters, CreateContext, CreateQueue, Destroy, EntryHeader, Exec, FillEntry,
    GetDump, GetLog, Identify, LoadProgram, Nop, Timestamp, access, opcode, priority,
};
use npu_uapi::regs::ABI_WITH_NAMES;
use npu_uapi::ring::{self, Fetched, RingLayout};
use npu_uapi::status::Status;
use std::mem::offset_of;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// How many programs of the largest size a function holds, or more of smaller ones: decoded, a command
/// takes more memory than its image, and the driver lends that many times over.
const LARGEST_PROGRAMS: usize = 16;

/// What an entry that did its work is answered with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer {
    /// The id of what was created.
    pub(crate) value: u32,
    pub(crate) cycles: u64,
}

/// What becomes of an I/O entry.
enum Begun {
    Answered(Answer),
    Job(Arc<Work>),
}

/// Decodes the entry as `$entry`, refusing what its reserved fields hold.
macro_rules! entry {
    ($words:expr, $entry:ty) => {{
        let entry = <$entry>::from_words($words);
        if !entry.reserved_is_zero() {
            let header = entry.header.reserved != [0; 3];
            let at = if header { 1 } else { offset_of!($entry, reserved) };
            return Err(Problem::new(Status::RESERVED_FIELD).at(at as u64, 1));
        }
        entry
    }};
}

/// A field of an entry that is out of range.
macro_rules! invalid {
    ($entry:ty, $field:ident) => {
        Problem::new(Status::INVALID_FIELD).at(offset_of!($entry, $field) as u64, 4)
    };
}

/// An id that names nothing.
macro_rules! unknown {
    ($entry:ty, $field:ident) => {
        Problem::new(Status::UNKNOWN_ID).at(offset_of!($entry, $field) as u64, 4)
    };
}

/// Head and job of an entry, whatever it is.
pub(crate) fn header(words: [u32; ring::SUBMISSION_WORDS]) -> EntryHeader {
    Nop::from_words(words).header
}

impl State {
    /// Answers one admin entry.
    pub(crate) fn serve_admin(&mut self, fetched: Fetched) {
        let head = header(fetched.entry);
        let victim = Victim { queue: 0, job: head.job, opcode: head.opcode };
        let answer = match self.begin_load(fetched.entry) {
            Ok(Some(work)) => {
                self.running[LOADER] = Some(Running::new(0, head, fetched.permit, work));
                return;
            }
            Ok(None) => self.admin(fetched.entry),
            Err(problem) => Err(problem),
        };
        self.answer(fetched.permit, victim, answer);
    }

    /// Answers one entry of I/O queue `queue`, or makes it the job of its band.
    pub(crate) fn begin(&mut self, (queue, context, band): (u16, u32, usize), fetched: Fetched) {
        let head = header(fetched.entry);
        let victim = Victim { queue, job: head.job, opcode: head.opcode };
        match self.io((context, band), fetched.entry) {
            Ok(Begun::Answered(answer)) => self.answer(fetched.permit, victim, Ok(answer)),
            Err(problem) => {
                self.answer(fetched.permit, victim, Err(problem));
                self.leave_entry(queue, head, fetched.entry);
            }
            Ok(Begun::Job(work)) => {
                let must_poison = self.config.is_strict && work.slots.has_sram;
                let mut running = Running::new(queue, head, fetched.permit, work);
                running.poison = must_poison.then(|| self.sram.bank(band).whole());
                let cycles = self.counters.cycles;
                self.recorder
                    .record_traced(|| Event { cycles, ..running.of_job(kind::JOB_BEGIN, 0) });
                self.running[band] = Some(running);
            }
        }
    }

    /// An entry faulted before it became a job.
    #[cold]
    fn leave_entry(&mut self, queue: u16, head: EntryHeader, words: [u32; ring::SUBMISSION_WORDS]) {
        let program = self.programs.get(&program_of(words));
        let commands =
            program.map_or(Commands::Ended, |program| Commands::Program(program.clone()));
        let work = Work { commands, slots: Slots::default() };
        let (opcode, job) = (head.opcode, head.job);
        self.leave(&Seen { queue, opcode, job, work: &work, next: 0, cycles: 0, is_active: false });
    }

    fn admin(&mut self, words: [u32; ring::SUBMISSION_WORDS]) -> Result<Answer, Problem> {
        match header(words).opcode {
            opcode::IDENTIFY => {
                let entry = entry!(words, Identify);
                self.guest.write(entry.out, self.config.limits.as_bytes())?;
                Ok(Answer::default())
            }
            opcode::GET_LOG => {
                let entry = entry!(words, GetLog);
                let mut counters = self.counters;
                if self.config.abi.1 < ABI_WITH_NAMES {
                    let Counters { array_cycles, vector_cycles, dma_cycles, .. } = &mut counters;
                    (*array_cycles, *vector_cycles, *dma_cycles) = (0, 0, 0);
                }
                self.guest.write(entry.out, counters.as_bytes())?;
                Ok(Answer::default())
            }
            opcode::GET_DUMP if self.config.abi.1 >= ABI_WITH_NAMES => {
                let entry = entry!(words, GetDump);
                let Some(dump) = &self.last_dump else { return Ok(Answer::default()) };
                let len = usize::try_from(entry.len).unwrap_or(usize::MAX).min(dump.len());
                self.guest.write(entry.out, &dump[..len])?;
                let value = u32::try_from(dump.len()).unwrap_or(u32::MAX);
                Ok(Answer { value, ..Answer::default() })
            }
            opcode::CREATE_CONTEXT => {
                let _ = entry!(words, CreateContext);
                self.create_context()
            }
            opcode::CREATE_QUEUE => self.create_queue(entry!(words, CreateQueue)),
            opcode::BIND => self.bind(entry!(words, Bind)),
            opcode::DESTROY_CONTEXT => self.destroy_context(entry!(words, Destroy).id),
            opcode::DESTROY_QUEUE => self.destroy_queue(entry!(words, Destroy).id),
            opcode::UNLOAD_PROGRAM => {
                let id = entry!(words, Destroy).id;
                self.programs.remove(&id).ok_or(unknown!(Destroy, id))?;
                Ok(Answer::default())
            }
            opcode::UNBIND => {
                let id = entry!(words, Destroy).id;
                self.tables.remove(&id).ok_or(unknown!(Destroy, id))?;
                Ok(Answer::default())
            }
            _ => Err(Problem::new(Status::UNKNOWN_OPCODE).at(0, 1)),
        }
    }

    fn create_context(&mut self) -> Result<Answer, Problem> {
        self.has_room(self.contexts.len(), self.config.limits.contexts)?;
        let id = self.new_id(|state, id| state.contexts.contains(&id));
        self.contexts.insert(id);
        Ok(Answer { value: id, ..Answer::default() })
    }

    fn destroy_context(&mut self, id: u32) -> Result<Answer, Problem> {
        if !self.contexts.contains(&id) {
            return Err(unknown!(Destroy, id));
        }
        let is_used = self.queues.iter().any(|queue| queue.context == id)
            || self.programs.values().any(|program| program.context == id)
            || self.tables.values().any(|(context, _)| *context == id);
        if is_used {
            return Err(Problem::new(Status::BUSY).at(offset_of!(Destroy, id) as u64, 4));
        }
        self.contexts.remove(&id);
        Ok(Answer::default())
    }

    fn create_queue(&mut self, entry: CreateQueue) -> Result<Answer, Problem> {
        if !self.contexts.contains(&entry.context) {
            return Err(unknown!(CreateQueue, context));
        }
        if u32::from(entry.vector) >= self.config.limits.vectors {
            return Err(invalid!(CreateQueue, vector));
        }
        let Some(band) = priority::band(entry.priority) else {
            return Err(invalid!(CreateQueue, priority));
        };
        self.has_room(self.queues.len(), self.config.limits.queues)?;
        let free = (1..=u16::MAX).find(|id| self.queues.iter().all(|queue| queue.id != *id));
        let id = free.ok_or(Problem::new(Status::NO_RESOURCES))?;
        let log2 = (u32::from(entry.sq_log2), u32::from(entry.cq_log2));
        let identity = (id, entry.context, entry.vector);
        let queue = self.open_queue(identity, band, entry.base, log2)?;
        self.queues.push(queue);
        Ok(Answer { value: id.into(), ..Answer::default() })
    }

    /// The device's end of a ring region: of the admin queue, or of an entry that CREATE_QUEUE names.
    pub(crate) fn open_queue(
        &self,
        identity: (u16, u32, u16),
        band: usize,
        base: npu_uapi::addr::Iova,
        (sq_log2, cq_log2): (u32, u32),
    ) -> Result<Queue, Problem> {
        let depth =
            Problem::new(Status::INVALID_FIELD).at(offset_of!(CreateQueue, sq_log2) as u64, 2);
        let largest = self.config.limits.ring_log2;
        if sq_log2 > largest || cq_log2 > largest {
            return Err(depth);
        }
        let layout = RingLayout::new(sq_log2, cq_log2).map_err(|_| depth)?;
        if !base.is_aligned_to(64) {
            return Err(invalid!(CreateQueue, base).iova(base));
        }
        let words = self.guest.words(base, layout.total_words())?;
        let rings = ring::Device::new(words, layout).map_err(|_| depth)?;
        Ok(Queue::new(identity, band, (base.raw(), layout.total_bytes() as u64), rings))
    }

    fn destroy_queue(&mut self, id: u32) -> Result<Answer, Problem> {
        let at = self.queues.iter().position(|queue| u32::from(queue.id) == id);
        let at = at.ok_or(unknown!(Destroy, id))?;
        // Its jobs end first, so that each is answered.
        let queue = self.queues[at].id;
        self.abort_queue(queue);
        self.queues.retain(|other| other.id != queue);
        Ok(Answer::default())
    }

    /// What an entry that loads a program is to do, once it is known to be in order; `None` for others.
    fn begin_load(
        &self,
        words: [u32; ring::SUBMISSION_WORDS],
    ) -> Result<Option<Arc<Work>>, Problem> {
        if header(words).opcode != opcode::LOAD_PROGRAM {
            return Ok(None);
        }
        let entry = entry!(words, LoadProgram);
        if !self.contexts.contains(&entry.context) {
            return Err(unknown!(LoadProgram, context));
        }
        self.has_room(self.programs.len(), self.config.limits.programs)?;
        let work = Work { commands: Commands::Load(entry), slots: Slots::default() };
        Ok(Some(Arc::new(work)))
    }

    /// Takes up a program that was loaded.
    pub(crate) fn add_program(&mut self, mut program: Program) -> Result<Answer, Problem> {
        let commands = |program: &Program| program.verified().commands().len();
        let loaded: usize = self.programs.values().map(|program| commands(program)).sum();
        let most = usize::try_from(self.config.limits.commands).unwrap_or(usize::MAX);
        if loaded + commands(&program) > most.saturating_mul(LARGEST_PROGRAMS) {
            return Err(Problem::new(Status::NO_RESOURCES));
        }
        let names = |program: &Program| program.names.as_bytes().len();
        let named: usize = self.programs.values().map(|program| names(program)).sum();
        if named + names(&program) > MOST_BYTES * LARGEST_PROGRAMS {
            return Err(Problem::new(Status::NO_RESOURCES));
        }
        let id = self.new_id(|state, id| state.programs.contains_key(&id));
        program.id = id;
        self.programs.insert(id, Arc::new(program));
        let cycles = self.counters.cycles;
        self.recorder.record(Event { program: id, cycles, ..Event::new(kind::LOAD) });
        Ok(Answer { value: id, ..Answer::default() })
    }

    fn bind(&mut self, entry: Bind) -> Result<Answer, Problem> {
        if !self.contexts.contains(&entry.context) {
            return Err(unknown!(Bind, context));
        }
        self.has_room(self.tables.len(), self.config.limits.tables)?;
        let slots = self.config.limits.slots;
        let bindings = Bindings::read(&self.guest, (entry.table, entry.count), slots)?;
        let id = self.new_id(|state, id| state.tables.contains_key(&id));
        self.tables.insert(id, (entry.context, bindings));
        Ok(Answer { value: id, ..Answer::default() })
    }

    fn has_room(&self, used: usize, limit: u32) -> Result<(), Problem> {
        let is_room = u32::try_from(used).is_ok_and(|used| used < limit);
        if is_room { Ok(()) } else { Err(Problem::new(Status::NO_RESOURCES)) }
    }

    /// An id that is not in use, and as long as possible was not.
    fn new_id(&mut self, is_used: impl Fn(&Self, u32) -> bool) -> u32 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !is_used(self, self.last_id) {
                return self.last_id;
            }
        }
    }

    fn io(
        &mut self,
        (context, band): (u32, usize),
        words: [u32; ring::SUBMISSION_WORDS],
    ) -> Result<Begun, Problem> {
        match header(words).opcode {
            opcode::NOP => {
                let _ = entry!(words, Nop);
                Ok(Begun::Answered(Answer::default()))
            }
            opcode::TIMESTAMP => {
                let _ = entry!(words, Timestamp);
                let cycles = self.counters.cycles;
                Ok(Begun::Answered(Answer { cycles, ..Answer::default() }))
            }
            opcode::EXEC => self.exec(context, band, entry!(words, Exec)).map(Begun::Job),
            opcode::COPY => self.copy(entry!(words, CopyEntry)),
            opcode::FILL => self.fill(entry!(words, FillEntry)),
            _ => Err(Problem::new(Status::UNKNOWN_OPCODE).at(0, 1)),
        }
    }

    fn exec(&mut self, context: u32, band: usize, entry: Exec) -> Result<Arc<Work>, Problem> {
        let program = self.programs.get(&entry.program);
        let program = program.filter(|program| program.context == context);
        let program = program.ok_or(unknown!(Exec, program))?;
        let none = Bindings::default();
        let base = match entry.table {
            0 => &none,
            id => {
                let table = self.tables.get(&id).filter(|(owner, _)| *owner == context);
                &table.ok_or(unknown!(Exec, table))?.1
            }
        };
        let slots = self.config.limits.slots;
        self.overlay.read_again(&self.guest, (entry.overlay, entry.count), slots)?;
        let memory = (&self.guest, self.sram.bank(band));
        let mut work = self.spare.take().unwrap_or_default();
        let own = Arc::get_mut(&mut work).ok_or(Problem::new(Status::INTERNAL))?;
        own.slots.resolve(program.verified(), base, &self.overlay, memory)?;
        own.commands = Commands::Program(Arc::clone(program));
        Ok(work)
    }

    fn copy(&self, entry: CopyEntry) -> Result<Begun, Problem> {
        let (src, dst, len) = (entry.src, entry.dst, entry.len);
        if len == 0 {
            return Ok(Begun::Answered(Answer::default()));
        }
        if overlaps((src.raw(), len), (dst.raw(), len)) {
            return Err(invalid!(CopyEntry, dst).iova(dst));
        }
        let ranges = [(src, len, access::READ), (dst, len, access::WRITE)];
        let slots = Slots::of_ranges(&self.guest, &ranges)?;
        let command = Command::Copy(Copy {
            header: Header::new(command_opcode::COPY, 1, Flags::empty(), 0),
            src: Operand::new(SlotId(0), 0),
            dst: Operand::new(SlotId(1), 0),
            len,
            reserved: 0,
        });
        Ok(Begun::Job(self.transfer(command, slots)))
    }

    fn fill(&self, entry: FillEntry) -> Result<Begun, Problem> {
        let value = u8::try_from(entry.value).map_err(|_| invalid!(FillEntry, value))?;
        if entry.len == 0 {
            return Ok(Begun::Answered(Answer::default()));
        }
        let slots = Slots::of_ranges(&self.guest, &[(entry.dst, entry.len, access::WRITE)])?;
        let command = Command::Fill(Fill {
            header: Header::new(command_opcode::FILL, 1, Flags::empty(), 0),
            dst: Operand::new(SlotId(0), 0),
            len: entry.len,
            value,
            ..Fill::default()
        });
        Ok(Begun::Job(self.transfer(command, slots)))
    }

    /// A transfer as a job of one command: the device has one engine that moves bytes.
    fn transfer(&self, command: Command, slots: Slots) -> Arc<Work> {
        let charge = Charge::of(&command, &self.config.limits, &|_| false);
        let commands = Commands::One(Box::new((command, charge)));
        Arc::new(Work { commands, slots })
    }
}
