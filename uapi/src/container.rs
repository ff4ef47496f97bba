//! The program file of the host, `.npu`: an image, its constants, names for people, one hash over all.
//!
//! ```text
//! 0    Head of `crate::sealed`, 64 bytes; its hash covers the whole file, itself taken as zeros
//! 64   `sections` x SectionEntry, 32 bytes each
//! ..   section data in the table's order, each at a multiple of 64, zeros between
//! ```
//!
//! A reader takes any minor version of its major one: older files lack sections, newer ones have
//! sections that it skips. The device never sees a container; it is given the image and the constants.

use crate::addr::SlotId;
use crate::image::{Image, ImageError};
use crate::sealed::{Broken, HEAD_BYTES, Kind};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First word of a container: `NPUC`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NPUC");

/// Version of the container; a reader refuses another.
pub const VERSION: u16 = 1;

/// Minor version of the container; a reader takes any.
pub const MINOR: u16 = 0;

const KIND: Kind =
    Kind { magic: MAGIC, version: VERSION, minor: MINOR, align: 64, most_bytes: usize::MAX };

/// One section. 32 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SectionEntry {
    /// One of [`section`].
    pub kind: u16,
    /// The slot that `CONSTANTS` are for, else zero.
    pub slot: SlotId,
    /// Must be zero.
    pub reserved: u32,
    /// First byte in the file, a multiple of 64.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Must be zero.
    pub reserved2: u64,
}
const _: () = assert!(size_of::<SectionEntry>() == 32);

/// Kinds of section.
pub mod section {
    /// The image, once.
    pub const IMAGE: u16 = 1;
    /// The bytes of one constant slot.
    pub const CONSTANTS: u16 = 2;
    /// Inputs and outputs: see [`super::Io`].
    pub const IO: u16 = 3;
    /// Names of operations.
    pub const NAMES: u16 = 4;
    /// Compiler and version, UTF-8.
    pub const COMPILER: u16 = 5;
    /// What the program was compiled from, 32 bytes.
    pub const SOURCE: u16 = 6;
}

/// A tensor that the host gives or takes.
///
/// On file: slot u16, output u8, element u8, rank u32, name length u32, then the dimensions as u64, then
/// the name in UTF-8.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Io {
    /// Its name in the model.
    pub name: String,
    /// Its element type, by ONNX's number (`TensorProto.DataType`): 1 is float, 2 uint8, 3 int8.
    pub element: u8,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// The slot it is bound to.
    pub slot: SlotId,
    /// Whether the program writes it.
    pub output: bool,
}

/// A program as the host keeps it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    /// What the device loads.
    pub image: Image,
    /// The bytes of each constant slot.
    pub constants: Vec<(SlotId, Vec<u8>)>,
    /// Inputs and outputs, in the model's order.
    pub io: Vec<Io>,
    /// The node that each `op_id` stands for.
    pub names: Vec<(u32, String)>,
    /// Who compiled it, name and version.
    pub compiler: String,
    /// Hash of what it was compiled from: graph, shapes, device limits, compiler options.
    pub source: [u8; 32],
}

/// Why bytes are not a container.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// Not a container at all.
    #[error("not a program file: it begins with {found:#010x}, not with {MAGIC:#010x}")]
    Magic {
        /// First word found.
        found: u32,
    },
    /// Of another major version.
    #[error(
        "program file version {found}, this library reads {VERSION}: {}",
        if *found > VERSION { "update the library" } else { "compile the model again" }
    )]
    Version {
        /// Version found.
        found: u16,
    },
    /// Cut off, or with bytes behind its end.
    #[error("the program file has {found} bytes, it should have {want}: fetch or compile it again")]
    Length {
        /// Bytes given.
        found: u64,
        /// Bytes that it should have.
        want: u64,
    },
    /// The hash does not match.
    #[error("the program file is damaged: its hash does not match; fetch or compile it again")]
    Hash,
    /// The hash matches, but the content contradicts itself.
    #[error("the program file is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// The image in it cannot be read.
    #[error("the image in the program file cannot be read")]
    Image(#[from] ImageError),
}

impl From<Broken> for ContainerError {
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

const fn malformed(what: &'static str) -> ContainerError {
    ContainerError::Malformed { what }
}

impl Container {
    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut parts = alloc::vec![(section::IMAGE, SlotId(0), self.image.to_bytes())];
        for (slot, bytes) in &self.constants {
            parts.push((section::CONSTANTS, *slot, bytes.clone()));
        }
        parts.push((section::IO, SlotId(0), io_bytes(&self.io)));
        parts.push((section::NAMES, SlotId(0), name_bytes(&self.names)));
        parts.push((section::COMPILER, SlotId(0), self.compiler.clone().into_bytes()));
        parts.push((section::SOURCE, SlotId(0), self.source.to_vec()));

        let lengths = parts.iter().map(|(_, _, bytes)| bytes.len());
        let places = KIND.places(size_of::<SectionEntry>(), lengths);
        let entry = |(&(kind, slot, ref bytes), at): (&(u16, SlotId, Vec<u8>), usize)| {
            let (offset, len) = (at as u64, bytes.len() as u64);
            SectionEntry { kind, slot, offset, len, ..SectionEntry::default() }
        };
        let table: Vec<SectionEntry> = parts.iter().zip(places).map(entry).collect();
        KIND.seal(table.as_bytes(), parts.iter().map(|(_, _, bytes)| bytes.as_slice()))
    }

    /// Reads a file; never panics. The image is decoded, not verified.
    pub fn from_bytes(file: &[u8]) -> Result<Self, ContainerError> {
        let (header, rest) = KIND.open(file)?;
        let count = usize::try_from(header.sections).unwrap_or(usize::MAX);
        let table = count.checked_mul(size_of::<SectionEntry>()).and_then(|len| rest.get(..len));
        let table = table.ok_or(malformed("the section table passes the end of the file"))?;
        let mut container = Self::default();
        let mut seen = BTreeSet::new();
        // Sections lie in the order of their table, so that what is read is no larger than the file.
        let mut free = (HEAD_BYTES + table.len()) as u64;
        // Copies, since the file may lie at any address.
        let entries = table.chunks_exact(size_of::<SectionEntry>());
        for entry in entries.filter_map(|entry| SectionEntry::read_from_bytes(entry).ok()) {
            let bytes = section_bytes(file, &entry)?;
            if entry.offset < free {
                return Err(malformed("a section overlaps what is before it"));
            }
            free = entry.offset + entry.len;
            if !seen.insert((entry.kind, entry.slot)) {
                return Err(malformed("a section is there twice"));
            }
            container.take(&entry, bytes, header.minor)?;
        }
        match seen.contains(&(section::IMAGE, SlotId(0))) {
            true => Ok(container),
            false => Err(malformed("there is no image")),
        }
    }

    /// The name of operation `op_id`, if the file has one.
    pub fn name(&self, op_id: u32) -> Option<&str> {
        self.names.iter().find(|(id, _)| *id == op_id).map(|(_, name)| name.as_str())
    }

    fn take(
        &mut self,
        entry: &SectionEntry,
        bytes: &[u8],
        minor: u16,
    ) -> Result<(), ContainerError> {
        if entry.kind != section::CONSTANTS && entry.slot != SlotId(0) {
            return Err(malformed("a section that has no slot names one"));
        }
        match entry.kind {
            section::IMAGE => self.image = Image::from_bytes(bytes)?,
            section::CONSTANTS => self.constants.push((entry.slot, bytes.to_vec())),
            section::IO => self.io = Cursor(bytes).ios()?,
            section::NAMES => self.names = Cursor(bytes).names()?,
            section::COMPILER => self.compiler = utf8(bytes)?,
            section::SOURCE => {
                self.source =
                    bytes.try_into().map_err(|_| malformed("the source key is not 32 bytes"))?;
            }
            _ if minor > MINOR => {}
            _ => return Err(malformed("a section is of unknown kind")),
        }
        Ok(())
    }
}

fn section_bytes<'a>(file: &'a [u8], entry: &SectionEntry) -> Result<&'a [u8], ContainerError> {
    if entry.reserved != 0 || entry.reserved2 != 0 {
        return Err(malformed("a reserved field of its section table is not zero"));
    }
    let start = usize::try_from(entry.offset).ok();
    let end = usize::try_from(entry.len).ok().and_then(|len| start?.checked_add(len));
    let range = start.zip(end).map(|(start, end)| start..end);
    let bytes = range.and_then(|range| file.get(range));
    let aligned = entry.offset.is_multiple_of(KIND.align as u64);
    bytes.filter(|_| aligned).ok_or(malformed("a section lies outside the file or is not aligned"))
}

fn io_bytes(io: &[Io]) -> Vec<u8> {
    let mut out = Vec::new();
    let count = |len: usize| u32::try_from(len).expect("a model file is shorter than 2 GiB");
    for tensor in io {
        out.extend_from_slice(&tensor.slot.0.to_le_bytes());
        out.extend_from_slice(&[u8::from(tensor.output), tensor.element]);
        out.extend_from_slice(&count(tensor.shape.len()).to_le_bytes());
        out.extend_from_slice(&count(tensor.name.len()).to_le_bytes());
        for dim in &tensor.shape {
            out.extend_from_slice(&dim.to_le_bytes());
        }
        out.extend_from_slice(tensor.name.as_bytes());
    }
    out
}

/// Operation u32, length u32, name, one behind the other.
fn name_bytes(names: &[(u32, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (op_id, name) in names {
        let len = u32::try_from(name.len()).expect("a model file is shorter than 2 GiB");
        out.extend_from_slice(&op_id.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(name.as_bytes());
    }
    out
}

fn utf8(bytes: &[u8]) -> Result<String, ContainerError> {
    core::str::from_utf8(bytes).map(String::from).map_err(|_| malformed("a name is not UTF-8"))
}

/// What is left of a section.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], ContainerError> {
        let (head, tail) =
            self.0.split_at_checked(len).ok_or(malformed("a record passes its section's end"))?;
        self.0 = tail;
        Ok(head)
    }

    fn value<T: FromBytes>(&mut self) -> Result<T, ContainerError> {
        let bytes = self.bytes(size_of::<T>())?;
        T::read_from_bytes(bytes).map_err(|_| malformed("a record is cut off"))
    }

    fn text(&mut self, len: u32) -> Result<String, ContainerError> {
        utf8(self.bytes(usize::try_from(len).unwrap_or(usize::MAX))?)
    }

    fn ios(mut self) -> Result<Vec<Io>, ContainerError> {
        let mut out = Vec::new();
        while !self.0.is_empty() {
            let slot = SlotId(self.value()?);
            let [output, element] = self.value()?;
            let [rank, name_len]: [u32; 2] = self.value()?;
            if output > 1 {
                return Err(malformed("a tensor is neither input nor output"));
            }
            let mut shape = Vec::new();
            for _ in 0..rank {
                shape.push(self.value()?);
            }
            let name = self.text(name_len)?;
            out.push(Io { name, element, shape, slot, output: output == 1 });
        }
        Ok(out)
    }

    fn names(mut self) -> Result<Vec<(u32, String)>, ContainerError> {
        let mut out = Vec::new();
        while !self.0.is_empty() {
            let [op_id, len]: [u32; 2] = self.value()?;
            out.push((op_id, self.text(len)?));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{SlotDecl, slot_kind};
    use crate::sealed::{HASH, rehash};
    use alloc::string::ToString;
    use core::mem::offset_of;
    use proptest::prelude::*;

    fn container() -> Container {
        let mut image = crate::text::assemble("image isa=1.0 features=0\nend op=4").unwrap();
        image.slots = alloc::vec![SlotDecl::new(slot_kind::CONSTANT, 100)];
        Container {
            image,
            constants: alloc::vec![(SlotId(0), alloc::vec![7; 100])],
            io: alloc::vec![Io {
                name: "input".into(),
                element: 1,
                shape: alloc::vec![1, 3, 224, 224],
                slot: SlotId(2),
                output: false,
            }],
            names: alloc::vec![(4, "/conv1/Conv".into())],
            compiler: "ep-npu 0.1.0".into(),
            source: [9; 32],
        }
    }

    #[test]
    fn a_container_reads_back() {
        let file = container().to_bytes();
        let read = Container::from_bytes(&file).unwrap();
        assert_eq!(read, container());
        assert_eq!(read.name(4), Some("/conv1/Conv"));
        assert_eq!(read.name(5), None);
    }

    #[test]
    fn files_of_version_1_0_stay_as_they_are() {
        let file = container().to_bytes();
        let hash: String =
            file[HASH..HEAD_BYTES].iter().map(|b| alloc::format!("{b:02x}")).collect();
        insta::assert_snapshot!(hash, @"2844be542aad4c9544a3c6fde11140b9aab29d96e5bee3e88ec9c21713095c73");
    }

    #[test]
    fn a_container_reads_back_from_any_address() {
        let file = container().to_bytes();
        for shift in 1..8 {
            let mut moved = alloc::vec![0; shift];
            moved.extend_from_slice(&file);
            assert_eq!(Container::from_bytes(&moved[shift..]).unwrap(), container());
        }
    }

    #[test]
    fn foreign_new_short_and_damaged_files_are_told_apart() {
        let file = container().to_bytes();
        let error = |file: &[u8]| Container::from_bytes(file).unwrap_err();
        assert_eq!(error(b"ELF"), ContainerError::Magic { found: 0 });
        let len = file.len() as u64;
        let want = ContainerError::Length { found: len - 1, want: len };
        assert_eq!(error(&file[..file.len() - 1]), want);
        let mut newer = file.clone();
        newer[4] = 2;
        assert_eq!(error(&newer), ContainerError::Version { found: 2 });
        assert!(error(&newer).to_string().contains("update the library"));
        let mut damaged = file.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(error(&damaged), ContainerError::Hash);
    }

    #[test]
    fn an_unknown_section_is_skipped_in_a_newer_minor_only() {
        let mut file = container().to_bytes();
        let entry = 64 + 3 * size_of::<SectionEntry>(); // the names
        file[entry] = 99;
        let error = Container::from_bytes(&rehash(file.clone())).unwrap_err();
        assert_eq!(error, malformed("a section is of unknown kind"));
        file[6] = 1;
        let read = Container::from_bytes(&rehash(file)).unwrap();
        assert_eq!(read, Container { names: Vec::new(), ..container() });
    }

    /// `file` with word `at` of entry `index` of its section table changed.
    fn with_entry(mut file: Vec<u8>, index: usize, at: usize, value: u64) -> Vec<u8> {
        let at = 64 + index * size_of::<SectionEntry>() + at;
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        rehash(file)
    }

    #[test]
    fn sections_that_share_bytes_are_refused_before_they_are_copied() {
        let twice = Container {
            constants: alloc::vec![(SlotId(0), alloc::vec![7; 100]), (SlotId(1), Vec::new())],
            ..container()
        };
        let file = twice.to_bytes();
        let (offset, len) = (offset_of!(SectionEntry, offset), offset_of!(SectionEntry, len));
        let (entry, _) = SectionEntry::read_from_prefix(&file[64 + 32..]).unwrap();
        // The second constants are the first once more; then a section that is the table.
        let file = with_entry(with_entry(file, 2, offset, entry.offset), 2, len, entry.len);
        let error = Container::from_bytes(&file).unwrap_err();
        assert_eq!(error, malformed("a section overlaps what is before it"));
        let error = Container::from_bytes(&with_entry(container().to_bytes(), 0, offset, 64));
        assert_eq!(error.unwrap_err(), malformed("a section overlaps what is before it"));
    }

    proptest! {
        #[test]
        fn any_change_with_a_right_hash_is_read_or_refused_without_panic(
            at in 0usize..700, byte: u8, cut in 0usize..700,
        ) {
            let mut file = container().to_bytes();
            let end = file.len();
            file[at % end] = byte;
            let _ = Container::from_bytes(&rehash(file.clone()));
            let _ = Container::from_bytes(&file[..cut % end]);
        }
    }
}
