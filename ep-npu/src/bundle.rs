//! A compiled part of a model as one blob that needs nothing else: what an EPContext node holds.
//!
//! ```text
//! 0    BundleHeader, 64 bytes; its hash covers all bytes, itself taken as zeros
//! 64   `sections` x SectionEntry, 32 bytes each
//! ..   section data in the table's order, each at a multiple of 64, zeros between:
//!      LIMITS, COMPILER, GRAPH, WEIGHTS (constants of the graph that are not among the following),
//!      CONSTANTS (as the device reads them, each content once), PROGRAM (one for each input shape)
//! ```
//!
//! With the graph and its weights, programs for other shapes can be compiled from it; with the limits
//! it says for which device it is. A program is a program file without its constants, with the places
//! of the graph's weights in them. Reading copies no weights: they are views of the blob.

mod error;
mod fit;
mod graph;
mod packed;
mod program;
mod wire;

pub use error::BundleError;
pub use fit::{Fit, line};
pub(crate) use packed::{Packed, find as packed, whole};
pub use program::Ready;

use crate::graph::Graph;
use bytes::Bytes;
use error::malformed;
use npu_uapi::limits::Limits;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First word of a bundle: `NPUB`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NPUB");

/// Version of the bundle; a reader refuses another.
pub const VERSION: u16 = 3;

/// Which compiler this is: its sources in one number.
pub(crate) const BUILD: &str = env!("NPU_COMPILER_SOURCES");

const ALIGN: usize = 64;
const HASH: usize = 32;

/// Kinds of section.
mod section {
    pub(super) const LIMITS: u32 = 1;
    pub(super) const COMPILER: u32 = 2;
    pub(super) const GRAPH: u32 = 3;
    pub(super) const WEIGHTS: u32 = 4;
    pub(super) const CONSTANTS: u32 = 5;
    pub(super) const PROGRAM: u32 = 6;
}

/// Head of a bundle. 64 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct BundleHeader {
    magic: u32,
    version: u16,
    reserved: u16,
    len: u64,
    sections: u32,
    reserved2: [u32; 3],
    hash: [u8; 32],
}
const _: () = assert!(size_of::<BundleHeader>() == 64 && offset_of!(BundleHeader, hash) == HASH);

/// One section. 32 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct SectionEntry {
    kind: u32,
    reserved: u32,
    offset: u64,
    len: u64,
    reserved2: u64,
}
const _: () = assert!(size_of::<SectionEntry>() == 32);

/// A part, compiled.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The part. In one that was read, weights that the programs hold are kept apart.
    pub part: Graph,
    /// The device that the programs are for.
    pub limits: Limits,
    /// Who compiled it, name and version.
    pub compiler: String,
    /// Programs, each for other input shapes.
    pub programs: Vec<Ready>,
}

impl Bundle {
    /// The blob.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut contents: Vec<&Bytes> = Vec::new();
        for constants in self.programs.iter().filter_map(|program| program.constants.as_ref()) {
            if !contents.contains(&constants) {
                contents.push(constants);
            }
        }
        let place = |constants: &Bytes| contents.iter().position(|content| *content == constants);
        let mut apart = BTreeSet::new();
        let programs: Vec<Vec<u8>> = self
            .programs
            .iter()
            .map(|program| program.write(program.constants.as_ref().and_then(place), &mut apart))
            .collect();
        let (structure, weights) = graph::write(&self.part, &apart);
        let weights = graph::join(&weights);
        let mut parts: Vec<(u32, &[u8])> = vec![
            (section::LIMITS, self.limits.as_bytes()),
            (section::COMPILER, self.compiler.as_bytes()),
            (section::GRAPH, &structure),
            (section::WEIGHTS, &weights),
        ];
        parts.extend(contents.iter().map(|bytes| (section::CONSTANTS, &bytes[..])));
        parts.extend(programs.iter().map(|bytes| (section::PROGRAM, &bytes[..])));
        assemble(&parts)
    }

    /// Reads a blob; never panics. Images are decoded, not verified: the device does that.
    ///
    /// # Errors
    /// The blob is damaged, of another version, or contradicts itself.
    pub fn from_bytes(blob: &Bytes) -> Result<Self, BundleError> {
        let sections = sections(blob)?;
        let mut sections = sections.into_iter().peekable();
        let mut next = |kind: u32| {
            let section = sections.next_if(|(found, _)| *found == kind);
            section.map(|(_, bytes)| bytes)
        };
        let missing = malformed("a section is missing");
        let limits = next(section::LIMITS).ok_or(missing.clone())?;
        let limits = Limits::read_from_bytes(&limits)
            .map_err(|_| malformed("the limits are not 128 bytes"))?;
        let compiler = next(section::COMPILER).ok_or(missing.clone())?;
        let compiler = str::from_utf8(&compiler)
            .map_err(|_| malformed("the compiler's name is not UTF-8"))?
            .to_owned();
        let structure = next(section::GRAPH).ok_or(missing.clone())?;
        let weights = next(section::WEIGHTS).ok_or(missing)?;
        let part = graph::read(structure, &weights)?;
        let mut constants = Vec::new();
        while let Some(bytes) = next(section::CONSTANTS) {
            // The blob's own hash has been found right and covers them: not once more over so many bytes.
            let mut content = Sha256::new();
            content.update(&blob[HASH..HASH + 32]);
            content.update((constants.len() as u64).to_le_bytes());
            constants.push((bytes, content.finalize().into()));
        }
        let mut programs = Vec::new();
        while let Some(bytes) = next(section::PROGRAM) {
            programs.push(Ready::read(bytes, &constants, &part)?);
        }
        packed::check(&part, &programs, blob.len())?;
        match sections.next() {
            Some(_) => Err(malformed("a section is of unknown kind, or out of order")),
            None => Ok(Self { part, limits, compiler, programs }),
        }
    }
}

/// What makes `part` what it is, whatever it is called: its structure, then its constants.
pub(crate) fn parts(part: &Graph) -> (Vec<u8>, Vec<&Bytes>) {
    let (mut structure, weights) = graph::write(part, &BTreeSet::new());
    // The name comes first, behind its length: a runtime makes it of the model's path.
    structure.drain(..size_of::<u32>() + part.name().len());
    (structure, weights)
}

fn assemble(parts: &[(u32, &[u8])]) -> Vec<u8> {
    let mut table = Vec::new();
    let mut at = size_of::<BundleHeader>() + size_of::<SectionEntry>() * parts.len();
    for (kind, bytes) in parts {
        at = at.next_multiple_of(ALIGN);
        let (offset, len) = (at as u64, bytes.len() as u64);
        table.push(SectionEntry { kind: *kind, offset, len, ..SectionEntry::default() });
        at += bytes.len();
    }
    let header = BundleHeader {
        magic: MAGIC,
        version: VERSION,
        len: at as u64,
        sections: u32::try_from(parts.len()).expect("few programs are kept"),
        ..BundleHeader::default()
    };
    let mut blob = Vec::with_capacity(at);
    blob.extend_from_slice(header.as_bytes());
    blob.extend_from_slice(table.as_bytes());
    for (_, bytes) in parts {
        blob.resize(blob.len().next_multiple_of(ALIGN), 0);
        blob.extend_from_slice(bytes);
    }
    rehash(&mut blob);
    blob
}

/// Gives `blob` the hash that is right for the rest of it.
pub(crate) fn rehash(blob: &mut [u8]) {
    let hash = hash(blob);
    blob[HASH..HASH + 32].copy_from_slice(&hash);
}

/// Kind and bytes of every section, when the blob is whole.
fn sections(blob: &Bytes) -> Result<Vec<(u32, Bytes)>, BundleError> {
    let found = blob.len() as u64;
    let magic = u32::read_from_prefix(blob).map_or(0, |(magic, _)| magic);
    if magic != MAGIC {
        return Err(BundleError::Magic { found: magic });
    }
    let (header, rest) = BundleHeader::read_from_prefix(blob)
        .map_err(|_| BundleError::Length { found, want: 64 })?;
    if header.version != VERSION {
        return Err(BundleError::Version { found: header.version });
    }
    if header.len != found {
        return Err(BundleError::Length { found, want: header.len });
    }
    if header.hash != hash(blob) {
        return Err(BundleError::Hash);
    }
    if header.reserved != 0 || header.reserved2 != [0; 3] {
        return Err(malformed("a reserved field of its header is not zero"));
    }
    let count = usize::try_from(header.sections).unwrap_or(usize::MAX);
    let table = count.checked_mul(size_of::<SectionEntry>()).and_then(|len| rest.get(..len));
    let table = table.ok_or(malformed("the section table passes the end"))?;
    let mut free = size_of::<BundleHeader>() + table.len();
    let mut sections = Vec::new();
    // Copies, since the blob may lie at any address.
    let entries = table.chunks_exact(size_of::<SectionEntry>());
    for entry in entries.filter_map(|entry| SectionEntry::read_from_bytes(entry).ok()) {
        let start = usize::try_from(entry.offset).ok();
        let end = usize::try_from(entry.len).ok().and_then(|len| start?.checked_add(len));
        let range = start.zip(end).filter(|&(start, end)| free <= start && end <= blob.len());
        let Some((start, end)) = range.filter(|(start, _)| start.is_multiple_of(ALIGN)) else {
            return Err(malformed("a section lies outside, overlaps another or is not aligned"));
        };
        if entry.reserved != 0 || entry.reserved2 != 0 {
            return Err(malformed("a reserved field of its section table is not zero"));
        }
        free = end;
        sections.push((entry.kind, blob.slice(start..end)));
    }
    Ok(sections)
}

fn hash(blob: &[u8]) -> [u8; 32] {
    let mut sha = Sha256::new();
    sha.update(&blob[..HASH]);
    sha.update([0; 32]);
    sha.update(&blob[HASH + 32..]);
    sha.finalize().into()
}
