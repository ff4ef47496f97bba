//! The core dump: what a job that faulted or hung leaves, for whoever was not there.
//!
//! ```text
//! 0    Head of `crate::sealed`, 64 bytes; its hash covers the whole dump, itself taken as zeros
//! 64   `sections` x SectionEntry, 16 bytes each
//! ..   section data in the table's order, each at a multiple of 8, zeros between
//! ```
//!
//! Most sections are rows of one structure of this module. A dump is made by the device and read by tools,
//! of other versions perhaps: a reader takes any minor version of its major one, skips the sections of newer ones,
//! and does without those that are missing. It is at most [`MOST_BYTES`]: what there is more of each kind is
//! left out, the oldest first. Text: [`Dump::text`].

mod rows;
mod text;

pub use rows::{
    BindingRow, CompletionRow, JobRow, ProgramRow, QueueRow, RegisterRow, SubmissionRow,
    SummaryRow, TableRow, reason,
};

pub use text::access_text;

use crate::command::Command;
use crate::event::{Event, SlotRange};
use crate::limits::Limits;
use crate::names::Names;
use crate::queue::Counters;
use crate::sealed::{Broken, HEAD_BYTES, Kind};
use crate::status::FaultRecord;
use alloc::string::String;
use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First word of a dump: `NPUD`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NPUD");
/// Version of the dump; a reader refuses another.
pub const VERSION: u16 = 1;
/// Minor version of the dump; a reader takes any.
pub const MINOR: u16 = 0;
/// Most bytes of a dump.
pub const MOST_BYTES: usize = 256 << 10;
/// Events that a dump has at most.
pub const EVENTS: usize = 256;
/// Entries of each ring of a queue that a dump has at most.
pub const RING_ENTRIES: usize = 16;
/// Commands before and behind the one that a job is at.
pub const AROUND: usize = 4;

const KIND: Kind =
    Kind { magic: MAGIC, version: VERSION, minor: MINOR, align: 8, most_bytes: MOST_BYTES };

/// One section. 16 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SectionEntry {
    /// One of [`section`].
    pub kind: u32,
    /// First byte in the dump, a multiple of 8.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// Kinds of section, each there once at most.
pub mod section {
    /// One [`super::SummaryRow`].
    pub const SUMMARY: u32 = 1;
    /// Who made it, UTF-8.
    pub const ORIGIN: u32 = 2;
    /// One [`super::FaultRecord`], where there is a fault.
    pub const FAULT: u32 = 3;
    /// Rows of [`super::RegisterRow`].
    pub const REGISTERS: u32 = 4;
    /// One [`super::Limits`].
    pub const LIMITS: u32 = 5;
    /// One [`super::Counters`].
    pub const COUNTERS: u32 = 6;
    /// Rows of [`super::QueueRow`].
    pub const QUEUES: u32 = 7;
    /// Rows of [`super::SubmissionRow`].
    pub const SUBMISSIONS: u32 = 8;
    /// Rows of [`super::CompletionRow`].
    pub const COMPLETIONS: u32 = 9;
    /// Rows of [`super::TableRow`].
    pub const TABLES: u32 = 10;
    /// Rows of [`super::BindingRow`].
    pub const BINDINGS: u32 = 11;
    /// Rows of [`super::ProgramRow`].
    pub const PROGRAMS: u32 = 12;
    /// One [`super::JobRow`], where there is a job.
    pub const JOB: u32 = 13;
    /// Rows of [`super::SlotRange`]: the memory of the job.
    pub const SLOTS: u32 = 14;
    /// Commands around the one that the job is at, as in an image; the first has the index of the job's row.
    pub const LISTING: u32 = 15;
    /// [`super::Names`] of their operations.
    pub const NAMES: u32 = 16;
    /// Rows of [`super::Event`], oldest first.
    pub const EVENTS: u32 = 17;
}

/// What a function was at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    /// Why, when, and the state of the function.
    pub summary: SummaryRow,
    /// Who made it, for people.
    pub origin: String,
    /// The fault, where it is of one.
    pub fault: Option<FaultRecord>,
    /// Every register that can be read.
    pub registers: Vec<RegisterRow>,
    /// What the device reports of itself.
    pub limits: Limits,
    /// What it had done.
    pub counters: Counters,
    /// Its queues, the admin queue first.
    pub queues: Vec<QueueRow>,
    /// The latest submissions of each.
    pub submissions: Vec<SubmissionRow>,
    /// The latest completions of each.
    pub completions: Vec<CompletionRow>,
    /// Its base tables.
    pub tables: Vec<TableRow>,
    /// What they bind.
    pub bindings: Vec<BindingRow>,
    /// Its programs.
    pub programs: Vec<ProgramRow>,
    /// The job that failed, or runs.
    pub job: Option<JobRow>,
    /// Its memory.
    pub slots: Vec<SlotRange>,
    /// Commands around the one that it is at.
    pub listing: Vec<Command>,
    /// The nodes of their operations.
    pub names: Names,
    /// What happened last, oldest first.
    pub events: Vec<Event>,
}

impl Default for Dump {
    fn default() -> Self {
        Self {
            summary: SummaryRow::default(),
            origin: String::new(),
            fault: None,
            registers: Vec::new(),
            limits: Limits::REFERENCE,
            counters: Counters::default(),
            queues: Vec::new(),
            submissions: Vec::new(),
            completions: Vec::new(),
            tables: Vec::new(),
            bindings: Vec::new(),
            programs: Vec::new(),
            job: None,
            slots: Vec::new(),
            listing: Vec::new(),
            names: Names::default(),
            events: Vec::new(),
        }
    }
}

/// Why bytes are not a dump.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// Not a dump at all.
    #[error("not a core dump: it begins with {found:#010x}, not with {MAGIC:#010x}")]
    Magic {
        /// First word found.
        found: u32,
    },
    /// Of another major version.
    #[error("core dump version {found}, this library reads {VERSION}: use the tool it came with")]
    Version {
        /// Version found.
        found: u16,
    },
    /// Cut off, with bytes behind its end, or too long.
    #[error("the core dump has {found} bytes, it should have {want}: copy it again")]
    Length {
        /// Bytes given.
        found: u64,
        /// Bytes that it should have.
        want: u64,
    },
    /// The hash does not match.
    #[error("the core dump is damaged: its hash does not match; copy it again")]
    Hash,
    /// The hash matches, but the content contradicts itself.
    #[error("the core dump is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}

impl From<Broken> for DumpError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Magic { found } => Self::Magic { found },
            Broken::Version { found } => Self::Version { found },
            Broken::Length { found, want } => Self::Length { found, want },
            Broken::Hash => Self::Hash,
            Broken::Reserved => malformed("a reserved field of its header is not zero"),
        }
    }
}

const fn malformed(what: &'static str) -> DumpError {
    DumpError::Malformed { what }
}

/// Rows of each kind that fit together with all others, and with the rest.
mod most {
    pub(super) const ORIGIN: usize = 1024;
    pub(super) const REGISTERS: usize = 128;
    pub(super) const QUEUES: usize = 64;
    pub(super) const ENTRIES: usize = 64 * super::RING_ENTRIES;
    pub(super) const TABLES: usize = 512;
    pub(super) const BINDINGS: usize = 1024;
    pub(super) const PROGRAMS: usize = 512;
    pub(super) const SLOTS: usize = 256;
    pub(super) const LISTING: usize = 2 * super::AROUND + 1;
    pub(super) const NAMES: usize = 4096;
}

impl Dump {
    /// The bytes; what does not fit is left out.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut parts: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut add = |kind, bytes: &[u8]| {
            if !bytes.is_empty() {
                parts.push((kind, bytes.to_vec()));
            }
        };
        add(section::SUMMARY, self.summary.as_bytes());
        add(section::ORIGIN, start(&self.origin, most::ORIGIN).as_bytes());
        add(section::FAULT, self.fault.as_ref().map_or(&[], IntoBytes::as_bytes));
        add(section::REGISTERS, head(&self.registers, most::REGISTERS).as_bytes());
        add(section::LIMITS, self.limits.as_bytes());
        add(section::COUNTERS, self.counters.as_bytes());
        add(section::QUEUES, head(&self.queues, most::QUEUES).as_bytes());
        add(section::SUBMISSIONS, head(&self.submissions, most::ENTRIES).as_bytes());
        add(section::COMPLETIONS, head(&self.completions, most::ENTRIES).as_bytes());
        add(section::TABLES, head(&self.tables, most::TABLES).as_bytes());
        add(section::BINDINGS, head(&self.bindings, most::BINDINGS).as_bytes());
        add(section::PROGRAMS, head(&self.programs, most::PROGRAMS).as_bytes());
        add(section::JOB, self.job.as_ref().map_or(&[], IntoBytes::as_bytes));
        add(section::SLOTS, head(&self.slots, most::SLOTS).as_bytes());
        let listing = crate::encode::commands(head(&self.listing, most::LISTING));
        add(section::LISTING, &listing);
        let names = self.names.as_bytes();
        add(section::NAMES, if names.len() <= most::NAMES { names } else { &[] });
        let old = self.events.len().saturating_sub(EVENTS);
        add(section::EVENTS, self.events[old..].as_bytes());
        join(&parts)
    }

    /// Reads a dump; never panics.
    ///
    /// # Errors
    /// The bytes are no dump, of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DumpError> {
        let (header, rest) = KIND.open(bytes)?;
        let count = usize::try_from(header.sections).unwrap_or(usize::MAX);
        let table = count.checked_mul(size_of::<SectionEntry>()).and_then(|len| rest.get(..len));
        let table = table.ok_or(malformed("the section table passes the end of the dump"))?;
        let entries: Vec<SectionEntry> = rows(table)?;
        let mut dump = Self::default();
        let (mut free, mut last) = (HEAD_BYTES + table.len(), 0);
        for entry in entries {
            if entry.kind <= last {
                return Err(malformed("the sections are out of order"));
            }
            last = entry.kind;
            let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
            let end = usize::try_from(entry.len).ok().and_then(|len| start.checked_add(len));
            let data = end.and_then(|end| bytes.get(start..end));
            let is_placed =
                start >= free && start.is_multiple_of(KIND.align) && entry.reserved == 0;
            let data = data.filter(|_| is_placed);
            let data = data.ok_or(malformed("a section lies outside the dump, or over another"))?;
            free = start + data.len();
            dump.take(entry.kind, data, header.minor)?;
        }
        if dump.summary == SummaryRow::default() {
            return Err(malformed("there is no summary"));
        }
        Ok(dump)
    }

    fn take(&mut self, kind: u32, data: &[u8], minor: u16) -> Result<(), DumpError> {
        let utf8 = |data| core::str::from_utf8(data).map_err(|_| malformed("text is not UTF-8"));
        match kind {
            section::SUMMARY => self.summary = one(data)?,
            section::ORIGIN => self.origin = utf8(data)?.into(),
            section::FAULT => self.fault = Some(one(data)?),
            section::REGISTERS => self.registers = rows(data)?,
            section::LIMITS => self.limits = one(data)?,
            section::COUNTERS => self.counters = one(data)?,
            section::QUEUES => self.queues = rows(data)?,
            section::SUBMISSIONS => self.submissions = rows(data)?,
            section::COMPLETIONS => self.completions = rows(data)?,
            section::TABLES => self.tables = rows(data)?,
            section::BINDINGS => self.bindings = rows(data)?,
            section::PROGRAMS => self.programs = rows(data)?,
            section::JOB => self.job = Some(one(data)?),
            section::SLOTS => self.slots = rows(data)?,
            section::LISTING => {
                let commands = crate::decode::commands(data);
                self.listing = commands.map_err(|_| malformed("a command of the listing"))?;
            }
            section::NAMES => {
                let names = Names::from_bytes(data.to_vec());
                self.names = names.map_err(|_| malformed("the names of operations"))?;
            }
            section::EVENTS => self.events = rows(data)?,
            _ if minor > MINOR => {}
            _ => return Err(malformed("a section is of unknown kind")),
        }
        Ok(())
    }

    /// The node behind the fault, or behind the command that the job is at.
    pub fn node(&self) -> Option<&str> {
        match &self.fault {
            Some(fault) => self.names.get(fault.op_id),
            None => self.names.get(self.current()?.header().op_id),
        }
    }

    /// The command that the job is at.
    pub fn current(&self) -> Option<&Command> {
        let job = self.job?;
        self.listing.get(usize::try_from(job.command.checked_sub(job.first_listed)?).ok()?)
    }
}

/// The sections as one piece, with header, table and hash.
fn join(parts: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let lengths = parts.iter().map(|(_, bytes)| bytes.len());
    let places = KIND.places(size_of::<SectionEntry>(), lengths);
    let entry = |(&(kind, ref bytes), at): (&(u32, Vec<u8>), usize)| {
        let (offset, len) = (size(at), size(bytes.len()));
        SectionEntry { kind, offset, len, reserved: 0 }
    };
    let table: Vec<SectionEntry> = parts.iter().zip(places).map(entry).collect();
    KIND.seal(table.as_bytes(), parts.iter().map(|(_, bytes)| bytes.as_slice()))
}

fn head<T>(rows: &[T], most: usize) -> &[T] {
    &rows[..rows.len().min(most)]
}

/// As much of `text` as `most` bytes hold.
fn start(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn one<T: FromBytes>(data: &[u8]) -> Result<T, DumpError> {
    T::read_from_bytes(data).map_err(|_| malformed("a section is not as long as its structure"))
}

fn rows<T: FromBytes>(data: &[u8]) -> Result<Vec<T>, DumpError> {
    if !data.len().is_multiple_of(size_of::<T>()) {
        return Err(malformed("a section does not hold whole rows"));
    }
    // Copies, since the dump may lie at any address.
    data.chunks_exact(size_of::<T>()).map(one).collect()
}

#[cfg(test)]
mod tests;
