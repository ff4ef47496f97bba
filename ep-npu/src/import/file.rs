//! Files in memory, mapped and not copied. Unsafe: a mapping is only as constant as its file.

use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::path::Path;

/// The bytes of the regular file at `path`, which must not be written while they are used.
pub(super) fn map(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let kind = file.metadata()?;
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if kind.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only. Whoever shortens or writes the file meanwhile
    // breaks the promise that `import::file` asks for; a model on disk is replaced, not edited.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(Bytes::from_owner(map))
}
