//! The frame of the files of this stack: a head, a table of sections, their data, one hash over all.
//!
//! ```text
//! 0    Head, 64 bytes; its hash covers the whole file, itself taken as zeros
//! 64   the section table, whose entries each kind of file defines
//! ..   section data in the table's order, each at a multiple of the file's alignment, zeros between
//! ```
//! [`crate::container`] and [`crate::coredump`] are such files, and read what is in the sections.

use alloc::vec::Vec;
use core::mem::offset_of;
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Head of a file. 64 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Head {
    /// Which kind of file.
    pub magic: u32,
    /// Version of the kind; a reader refuses another.
    pub version: u16,
    /// Minor version; a reader takes any.
    pub minor: u16,
    /// Bytes of the file.
    pub len: u64,
    /// Entries of the section table.
    pub sections: u32,
    /// Must be zero.
    pub reserved: [u32; 3],
    /// SHA-256 of the file with these bytes zero.
    pub hash: [u8; 32],
}
const _: () = assert!(size_of::<Head>() == HEAD_BYTES && offset_of!(Head, hash) == HASH);

/// Bytes of a [`Head`].
pub const HEAD_BYTES: usize = 64;
pub(crate) const HASH: usize = 32;

/// A kind of file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) magic: u32,
    pub(crate) version: u16,
    pub(crate) minor: u16,
    /// What the data of a section is aligned to.
    pub(crate) align: usize,
    /// Most bytes of a file.
    pub(crate) most_bytes: usize,
}

/// Why bytes are no file of a kind, each as that kind's error says it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Broken {
    /// Another first word.
    Magic { found: u32 },
    /// Another version.
    Version { found: u16 },
    /// Cut off, with bytes behind its end, or too long.
    Length { found: u64, want: u64 },
    /// The hash does not match.
    Hash,
    /// A reserved field of the head is not zero.
    Reserved,
}

impl Kind {
    /// Where each of `parts`, given by its length, begins in a file whose table has entries of `entry_bytes`.
    pub(crate) fn places(
        &self,
        entry_bytes: usize,
        parts: impl ExactSizeIterator<Item = usize>,
    ) -> Vec<usize> {
        let mut end = HEAD_BYTES + parts.len() * entry_bytes;
        let place = |len| {
            let at = end.next_multiple_of(self.align);
            end = at + len;
            at
        };
        parts.map(place).collect()
    }

    /// The file of `table`, of as many entries as there are `parts`, and these.
    pub(crate) fn seal<'a>(
        &self,
        table: &[u8],
        parts: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
    ) -> Vec<u8> {
        let sections = u32::try_from(parts.len()).expect("a file has fewer than 2^32 sections");
        let behind = |end: usize, bytes: &[u8]| end.next_multiple_of(self.align) + bytes.len();
        // Weights may be large: the file is made once.
        let mut file = Vec::with_capacity(parts.clone().fold(HEAD_BYTES + table.len(), behind));
        file.resize(HEAD_BYTES, 0);
        file.extend_from_slice(table);
        for bytes in parts {
            file.resize(file.len().next_multiple_of(self.align), 0);
            file.extend_from_slice(bytes);
        }
        let (magic, version, minor, len) =
            (self.magic, self.version, self.minor, file.len() as u64);
        let head = Head { magic, version, minor, len, sections, ..Head::default() };
        file[..HEAD_BYTES].copy_from_slice(head.as_bytes());
        let hash = hash(&file);
        file[HASH..HEAD_BYTES].copy_from_slice(&hash);
        file
    }

    /// The head of `file`, and what is behind it.
    ///
    /// # Errors
    /// It is not of this kind, or damaged.
    pub(crate) fn open<'a>(&self, file: &'a [u8]) -> Result<(Head, &'a [u8]), Broken> {
        let found = file.len() as u64;
        let magic = u32::read_from_prefix(file).map_or(0, |(magic, _)| magic);
        if magic != self.magic {
            return Err(Broken::Magic { found: magic });
        }
        let want = HEAD_BYTES as u64;
        let (head, rest) =
            Head::read_from_prefix(file).map_err(|_| Broken::Length { found, want })?;
        if head.version != self.version {
            return Err(Broken::Version { found: head.version });
        }
        if head.len != found || file.len() > self.most_bytes {
            return Err(Broken::Length { found, want: head.len.min(self.most_bytes as u64) });
        }
        if head.hash != hash(file) {
            return Err(Broken::Hash);
        }
        if head.reserved != [0; 3] {
            return Err(Broken::Reserved);
        }
        Ok((head, rest))
    }
}

/// Of a file that is at least a head long.
fn hash(file: &[u8]) -> [u8; 32] {
    let mut sha = Sha256::new();
    sha.update(&file[..HASH]);
    sha.update([0; 32]);
    sha.update(&file[HEAD_BYTES..]);
    sha.finalize().into()
}

/// A changed file with the hash of what it is now, as who means harm makes one.
#[cfg(test)]
pub(crate) fn rehash(mut file: Vec<u8>) -> Vec<u8> {
    let hash = hash(&file);
    file[HASH..HEAD_BYTES].copy_from_slice(&hash);
    file
}
