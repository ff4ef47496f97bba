//! Files that a client lent for DMA: each is kept once, however many mappings lie in it.
//!
//! A file whose size is sealed against shrinking is mapped, whole: mappings that are neighbours in the
//! file are then neighbours here. Any other could shrink, and an access to a page that is gone would
//! kill the server. Such a file is read and written by system calls, where what is gone is an error.
//!
//! Files on huge pages are refused. Holes can be punched into them in spite of the seal, and where no
//! huge page is left to fill one an access kills too; and the kernel has no `write` for them.

use super::message::Refusal;
use crate::remote::{CopyError, IsAborted, Remote};
use memmap2::MmapRaw;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
    fstatfs,
};
use npu_uapi::vfio_user::errno;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Most files of one client. All clients share the process's limit of 65,530 pieces of address space.
pub(crate) const MAX_FILES: usize = 256;
/// Most bytes of files that one client may have mapped; all clients share 47 bits of address space.
pub(crate) const MAX_MAPPED_BYTES: u64 = 1 << 40;

/// Which file it is, as it was when it was lent.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    is_writable: bool,
}

/// How a file is reached.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// Mapped, from its first byte to its last.
    Mapped(Arc<MmapRaw>),
    /// By system calls.
    Copied(Arc<CopiedFile>),
}

/// The files of one client.
#[derive(Debug, Default)]
pub(crate) struct Files {
    kept: BTreeMap<FileId, (Kept, usize)>,
    mapped_bytes: u64,
}

impl Files {
    /// Keeps `file`, of which bytes up to `end` are to be used, until as many [`Files::release`]s.
    ///
    /// # Errors
    /// It is too short, there are too many, or what it is cannot be reached.
    pub(crate) fn keep(
        &mut self,
        file: &OwnedFd,
        end: u64,
        is_writable: bool,
    ) -> Result<(FileId, Kept), Refusal> {
        let unreadable = Refusal::new(errno::EBADF, "the file cannot be examined");
        let found = fstat(file).map_err(|_| unreadable)?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(Refusal::new(errno::EBADF, "memory is a file, and this is none"));
        }
        let size = u64::try_from(found.st_size).map_err(|_| unreadable)?;
        if size < end {
            return Err(Refusal::invalid("the range lies beyond the end of the file"));
        }
        let id = FileId { device: found.st_dev, inode: found.st_ino, size, is_writable };
        let count = self.kept.len();
        match self.kept.entry(id) {
            Entry::Occupied(mut entry) => {
                entry.get_mut().1 += 1;
                Ok((id, entry.get().0.clone()))
            }
            Entry::Vacant(_) if count >= MAX_FILES => {
                Err(Refusal::new(errno::ENOSPC, "too many files"))
            }
            Entry::Vacant(entry) => {
                let kept = if is_safe_to_map(file)? {
                    if size > MAX_MAPPED_BYTES - self.mapped_bytes {
                        return Err(Refusal::new(errno::ENOSPC, "too many bytes are mapped"));
                    }
                    let mapped = Kept::Mapped(Arc::new(map(file, size, is_writable)?));
                    self.mapped_bytes += size;
                    mapped
                } else {
                    Kept::Copied(Arc::new(CopiedFile::new(file, is_writable)?))
                };
                entry.insert((kept.clone(), 1));
                Ok((id, kept))
            }
        }
    }

    /// Undoes one [`Files::keep`]; nothing may use the file on its behalf any more.
    pub(crate) fn release(&mut self, id: FileId) {
        let Entry::Occupied(mut entry) = self.kept.entry(id) else { return };
        entry.get_mut().1 -= 1;
        if entry.get().1 > 0 {
            return;
        }
        if let (Kept::Mapped(_), _) = entry.remove() {
            self.mapped_bytes -= id.size;
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }
}

/// Whether no access to a mapping of `file` can fail, whatever the client does.
fn is_safe_to_map(file: &OwnedFd) -> Result<bool, Refusal> {
    let unreadable = Refusal::new(errno::EBADF, "the file cannot be examined");
    let system = fstatfs(file).map_err(|_| unreadable)?.filesystem_type();
    if system == HUGETLBFS_MAGIC {
        return Err(Refusal::new(errno::EACCES, "memory on huge pages cannot be relied on"));
    }
    // Only what has seals answers this. The rest has to be on a file system of the kernel's own: one
    // that a client serves, or an overlay over such a one, could make every read wait.
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).unwrap_or(0);
    if SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
        return Ok(true);
    }
    const KNOWN: [FsType; 4] = [TMPFS_MAGIC, EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC];
    if KNOWN.contains(&system) {
        Ok(false)
    } else {
        Err(Refusal::new(errno::EBADF, "the memory is on a file system that could make us wait"))
    }
}

/// All of `file`, which has `size` bytes or more.
fn map(file: &OwnedFd, size: u64, is_writable: bool) -> Result<MmapRaw, Refusal> {
    let options = memmap2::MmapOptions::new();
    let mapped = if is_writable { options.map_raw(file) } else { options.map_raw_read_only(file) };
    let mapped = mapped.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => {
            Refusal::new(errno::EACCES, "the file does not allow the access")
        }
        _ => Refusal::new(errno::ENOMEM, "the file cannot be mapped"),
    })?;
    // What is mapped is as long as the file was after its size was found to be sealed, which the client
    // may have cut before that.
    if (mapped.len() as u64) < size {
        return Err(Refusal::invalid("the range lies beyond the end of the file"));
    }
    Ok(mapped)
}

/// A file that may shrink at any time.
#[derive(Debug)]
pub(crate) struct CopiedFile(File);

impl CopiedFile {
    fn new(file: &OwnedFd, is_writable: bool) -> Result<Self, Refusal> {
        let refused = Refusal::new(errno::EACCES, "the file does not allow the access");
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL).map_err(|_| refused)?);
        let is_enough = match flags & OFlag::O_ACCMODE {
            OFlag::O_RDWR => true,
            OFlag::O_RDONLY => !is_writable,
            _ => false,
        };
        // With O_APPEND every write goes to the end.
        if !is_enough || flags.intersects(OFlag::O_APPEND | OFlag::O_PATH) {
            return Err(refused);
        }
        let file = file.try_clone();
        Ok(Self(File::from(
            file.map_err(|_| {
                Refusal::new(errno::ENOMEM, "no descriptor is left to keep the file")
            })?,
        )))
    }
}

impl Remote for CopiedFile {
    fn read(&self, at: u64, out: &mut [u8], _: IsAborted<'_>) -> Result<(), CopyError> {
        self.0.read_exact_at(out, at).map_err(|_| CopyError::Failed)
    }

    fn write(&self, at: u64, bytes: &[u8], _: IsAborted<'_>) -> Result<(), CopyError> {
        // A write behind the end would make the file longer.
        let len = self.0.metadata().map_err(|_| CopyError::Failed)?.len();
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > len) {
            return Err(CopyError::Failed);
        }
        self.0.write_all_at(bytes, at).map_err(|_| CopyError::Failed)
    }

    fn is_prompt(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    #[test]
    fn a_file_that_was_cut_since_its_size_was_read_is_not_mapped() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"test", flags).unwrap();
        ftruncate(&file, 4096).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        for is_writable in [false, true] {
            assert_eq!(map(&file, 8192, is_writable).unwrap_err().errno, errno::EINVAL);
            assert_eq!(map(&file, 4096, is_writable).unwrap().len(), 4096);
        }
    }
}
