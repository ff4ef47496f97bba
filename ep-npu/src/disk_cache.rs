//! Compiled parts on a disk, for the next session: found by what they were compiled from.
//!
//! ```text
//! FOLDER/<SHA-256 of graph, weights, limits, batches and compiler>.npub    a bundle, as EPContext has it
//! ```
//!
//! A file is there whole or not at all, so several processes can share a folder. The least recently
//! used go first when all together pass a limit.

use crate::bundle::{Bundle, BundleError};
use bytes::Bytes;
use npu_uapi::limits::Limits;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;
use zerocopy::IntoBytes;

/// Bytes that compiled parts may take where nothing else is asked for: 512 MiB.
pub const LIMIT_BYTES: u64 = 512 << 20;

const EXTENSION: &str = "npub";

/// Tells files apart that one process writes at once.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// `$XDG_CACHE_HOME/onnxruntime-ep-npu`, else below `~/.cache`; none where the user has no home.
pub fn default_folder() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("onnxruntime-ep-npu"))
}

/// A folder of compiled parts.
#[derive(Clone, Debug)]
pub struct DiskCache {
    folder: PathBuf,
    limit_bytes: u64,
}

/// What a part is found by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key(String);

impl Key {
    /// Of a part, compiled for a device of `limits` and for `batches`.
    pub fn new(structure: &[u8], weights: &[u8], limits: &Limits, batches: &[usize]) -> Self {
        let mut hash = Sha256::new();
        // Each with its length before it, so that nothing passes for something else.
        let batches = format!("{batches:?}");
        let compiler = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
        let version = crate::bundle::VERSION.to_le_bytes();
        for bytes in [
            compiler.as_bytes(),
            crate::bundle::BUILD.as_bytes(),
            &version,
            limits.as_bytes(),
            batches.as_bytes(),
            structure,
            weights,
        ] {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// What a look into the cache found.
#[derive(Debug)]
pub enum Found {
    /// The part, compiled.
    Part(Box<Bundle>),
    /// Nothing.
    Nothing,
    /// A file that is damaged; it is deleted.
    Damaged(BundleError),
}

impl DiskCache {
    /// The cache in `folder`, which is made when something is kept.
    pub fn new(folder: &Path, limit_bytes: u64) -> Self {
        Self { folder: folder.to_path_buf(), limit_bytes }
    }

    /// Where the part of `key` is, if it is there.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(&key.0).with_extension(EXTENSION)
    }

    /// The part of `key`.
    ///
    /// # Errors
    /// A file that is there cannot be read.
    pub fn get(&self, key: &Key) -> io::Result<Found> {
        let path = self.path(key);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            other => other?,
        };
        // Read, not mapped: another process may delete it at any time, and a disk may fail.
        let bytes = Bytes::from(fs::read(&path)?);
        match Bundle::from_bytes(&bytes) {
            Ok(bundle) => {
                // Used just now. When it cannot be said, it goes earlier.
                let _ = file.set_modified(SystemTime::now());
                Ok(Found::Part(Box::new(bundle)))
            }
            Err(error) => {
                // Whoever finds it next deletes it, when this fails.
                let _ = fs::remove_file(&path);
                Ok(Found::Damaged(error))
            }
        }
    }

    /// Keeps the part of `key`, unless it alone passes the limit, and deletes what is too much.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn put(&self, key: &Key, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.limit_bytes {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let name = format!(".{}.{}.{number}", key.0, std::process::id());
        let unfinished = self.folder.join(name);
        let written =
            fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, self.path(key)));
        if written.is_err() {
            // It may never have been made.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        self.shrink()
    }

    /// Deletes the least recently used until the rest is within the limit, and what a process that
    /// died left unfinished.
    fn shrink(&self) -> io::Result<()> {
        let mut parts = Vec::new();
        for entry in fs::read_dir(&self.folder)?.flatten() {
            let (path, Ok(about)) = (entry.path(), entry.metadata()) else { continue };
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if path.extension() == Some(OsStr::new(EXTENSION)) {
                parts.push((used, about.len(), path));
            } else if is_left(&path) && used.elapsed().is_ok_and(|age| age > LEFT_AFTER) {
                let _ = fs::remove_file(&path);
            }
        }
        parts.sort();
        let mut total: u64 = parts.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in parts {
            if total <= self.limit_bytes {
                break;
            }
            // Another process may have been faster.
            let _ = fs::remove_file(&path);
            total -= bytes;
        }
        Ok(())
    }
}

/// How old an unfinished file is that nobody writes any more.
const LEFT_AFTER: std::time::Duration = std::time::Duration::from_secs(3600);

/// Whether the name is one that [`DiskCache::put`] gives to a file that is not whole yet.
fn is_left(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let key = name.strip_prefix('.').and_then(|name| name.split('.').next());
    key.is_some_and(|key| key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key::new(&[number], &[], &Limits::REFERENCE, &[1])
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("npu-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn whatever_a_part_depends_on_changes_its_key() {
        let same = key(1);
        assert_eq!(same, key(1));
        let slower = Limits { macs_per_cycle: 1, ..Limits::REFERENCE };
        for other in [
            key(2),
            Key::new(&[], &[1], &Limits::REFERENCE, &[1]),
            Key::new(&[1], &[], &slower, &[1]),
            Key::new(&[1], &[], &Limits::REFERENCE, &[2]),
        ] {
            assert_ne!(same, other);
        }
    }

    #[test]
    fn the_least_recently_used_goes_and_what_is_too_large_is_not_kept() {
        let folder = folder("limit");
        let cache = DiskCache::new(&folder, 250);
        for number in [1, 2] {
            cache.put(&key(number), &[0; 100]).unwrap();
        }
        let old = SystemTime::now() - std::time::Duration::from_secs(60);
        File::open(cache.path(&key(1))).unwrap().set_modified(old).unwrap();
        cache.put(&key(3), &[0; 100]).unwrap();
        let is_there = |number| cache.path(&key(number)).exists();
        assert_eq!([is_there(1), is_there(2), is_there(3)], [false, true, true]);
        cache.put(&key(4), &[0; 251]).unwrap();
        assert_eq!([is_there(2), is_there(3), is_there(4)], [true, true, false]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_damaged_file_is_told_and_deleted() {
        let folder = folder("damaged");
        let cache = DiskCache::new(&folder, LIMIT_BYTES);
        assert!(matches!(cache.get(&key(1)).unwrap(), Found::Nothing));
        cache.put(&key(1), b"not a bundle").unwrap();
        assert!(matches!(cache.get(&key(1)).unwrap(), Found::Damaged(_)));
        assert!(matches!(cache.get(&key(1)).unwrap(), Found::Nothing));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_files_that_the_cache_began_are_left_over() {
        let Key(name) = key(1);
        assert!(is_left(Path::new(&format!("/a/.{name}.77.0"))));
        for other in [".bashrc", "notes.txt", ".x.y"] {
            assert!(!is_left(Path::new(other)), "{other}");
        }
    }
}
