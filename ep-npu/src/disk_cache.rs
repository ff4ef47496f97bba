//! Compiled parts on a disk, for the next session: found by what they were compiled from.
//!
//! ```text
//! FOLDER/<SHA-256 of graph, weights, limits, batches, processors and compiler>.npub    a bundle, then its name
//! ```
//!
//! A file is there whole or not at all, so several processes can share a folder. The least recently
//! used go first when all together pass a limit. What a file holds is run, so it must be one that only
//! its user or root can write; and it says its own name, so that one renamed is not taken for another.

use crate::bundle::{Bundle, BundleError};
use bytes::Bytes;
use npu_uapi::limits::Limits;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;
use zerocopy::IntoBytes;

/// Bytes that compiled parts may take where nothing else is asked for: 512 MiB.
pub const LIMIT_BYTES: u64 = 512 << 20;

const EXTENSION: &str = "npub";

/// Characters of a key: 32 bytes in hexadecimal.
const KEY_BYTES: usize = 64;

/// Names that are tried for a file that is not whole yet; other processes may have taken some.
const MOST_NAMES: u32 = 64;

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
    pub fn new(structure: &[u8], weights: &[&Bytes], limits: &Limits, batches: &[usize]) -> Self {
        let mut hash = Sha256::new();
        // Each with its length before it, so that nothing passes for something else.
        let batches = format!("{batches:?}");
        let compiler = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
        let version = crate::bundle::VERSION.to_le_bytes();
        // What is taken in float depends on how many threads the CPU provider may have.
        let threads = format!("{:?}", crate::shape::threads::possible());
        let apart = [
            compiler.as_bytes(),
            crate::bundle::BUILD.as_bytes(),
            &version,
            threads.as_bytes(),
            limits.as_bytes(),
            batches.as_bytes(),
            structure,
        ];
        for bytes in apart.into_iter().chain(weights.iter().map(|bytes| &bytes[..])) {
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
    /// A file that is not to be trusted, and why; it stays until the part is kept again.
    Distrusted(&'static str),
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
        // Neither through a link nor waiting for the other end of a pipe.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Ok(Found::Distrusted("it is a link"));
            }
            other => other?,
        };
        let about = file.metadata()?;
        if let Some(why) = distrusted(&about)? {
            return Ok(Found::Distrusted(why));
        }
        // Read, not mapped: another process may delete it at any time, and a disk may fail.
        let mut bytes = Vec::new();
        (&file).take(about.len()).read_to_end(&mut bytes)?;
        let mut bytes = Bytes::from(bytes);
        let name = bytes.split_off(bytes.len().saturating_sub(KEY_BYTES));
        match Bundle::from_bytes(&bytes) {
            Ok(_) if name != key.0.as_bytes() => {
                Ok(Found::Distrusted("it holds another part than its name says"))
            }
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
        if (bytes.len() + KEY_BYTES) as u64 > self.limit_bytes {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let (mut file, unfinished) = self.begin(key)?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.write_all(key.0.as_bytes()))
            .and_then(|()| fs::rename(&unfinished, self.path(key)));
        if written.is_err() {
            // It may never have been made.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        self.shrink()
    }

    /// A new file for the part of `key`, which nobody else has: processes in containers that share the
    /// folder can have one number, and what stands there already may lead elsewhere.
    fn begin(&self, key: &Key) -> io::Result<(File, PathBuf)> {
        let mut tried = 0;
        loop {
            let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
            let name = format!(".{}.{}.{number}", key.0, std::process::id());
            let path = self.folder.join(name);
            tried += 1;
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && tried < MOST_NAMES => {}
                made => return Ok((made?, path)),
            }
        }
    }

    /// Deletes the least recently used until the rest is within the limit, and what a process that
    /// died left unfinished.
    fn shrink(&self) -> io::Result<()> {
        let mut parts = Vec::new();
        for entry in fs::read_dir(&self.folder)?.flatten() {
            let (path, Ok(about)) = (entry.path(), entry.metadata()) else { continue };
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if is_kept(&path) {
                parts.push((used, about.len(), path));
            } else if is_left(&path) && used.elapsed().is_ok_and(|age| age > LEFT_AFTER) {
                let _ = fs::remove_file(&path);
            }
        }
        parts.sort();
        let mut total: u64 = parts.iter().fold(0, |sum, (_, bytes, _)| sum.saturating_add(*bytes));
        for (_, bytes, path) in parts {
            if total <= self.limit_bytes {
                break;
            }
            // Another process may have been faster.
            let _ = fs::remove_file(&path);
            total = total.saturating_sub(bytes);
        }
        Ok(())
    }
}

/// How old an unfinished file is that nobody writes any more.
const LEFT_AFTER: std::time::Duration = std::time::Duration::from_secs(3600);

/// Why a file is not to be trusted: others than this user and root could have written it.
fn distrusted(about: &fs::Metadata) -> io::Result<Option<&'static str>> {
    if !about.is_file() {
        return Ok(Some("it is no regular file"));
    }
    // The folder of a process belongs to the user that it runs as.
    let user = fs::metadata("/proc/self")?.uid();
    if about.uid() != user && about.uid() != 0 {
        return Ok(Some("it belongs to another user"));
    }
    Ok((about.mode() & 0o022 != 0).then_some("other users can write it"))
}

/// Whether the name is one that [`DiskCache::path`] gives. Compiled models have parts beside them in files
/// of this extension, and the folder may be theirs too.
fn is_kept(path: &Path) -> bool {
    let key = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    path.extension() == Some(OsStr::new(EXTENSION)) && is_key(key)
}

fn is_key(text: &str) -> bool {
    text.len() == KEY_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the name is one that [`DiskCache::put`] gives to a file that is not whole yet.
fn is_left(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let key = name.strip_prefix('.').and_then(|name| name.split('.').next());
    key.is_some_and(is_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key::new(&[number], &[], &Limits::REFERENCE, &[1])
    }

    /// What a cache keeps of a small model.
    fn sample() -> Vec<u8> {
        let graph = crate::tests::exact::random_model(5, 2);
        crate::testing::executable(graph).bundle().unwrap().to_bytes()
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
            Key::new(&[], &[&Bytes::from_static(&[1])], &Limits::REFERENCE, &[1]),
            Key::new(&[1], &[], &slower, &[1]),
            Key::new(&[1], &[], &Limits::REFERENCE, &[2]),
        ] {
            assert_ne!(same, other);
        }
    }

    #[test]
    fn the_least_recently_used_goes_and_what_is_too_large_is_not_kept() {
        let folder = folder("limit");
        let cache = DiskCache::new(&folder, 250 + 3 * KEY_BYTES as u64);
        for number in [1, 2] {
            cache.put(&key(number), &[0; 100]).unwrap();
        }
        let old = SystemTime::now() - std::time::Duration::from_secs(60);
        File::open(cache.path(&key(1))).unwrap().set_modified(old).unwrap();
        cache.put(&key(3), &[0; 100]).unwrap();
        let is_there = |number| cache.path(&key(number)).exists();
        assert_eq!([is_there(1), is_there(2), is_there(3)], [false, true, true]);
        cache.put(&key(4), &[0; 251 + 2 * KEY_BYTES]).unwrap();
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
    fn a_part_under_the_name_of_another_is_not_taken_for_it() {
        let folder = folder("renamed");
        let cache = DiskCache::new(&folder, LIMIT_BYTES);
        cache.put(&key(1), &sample()).unwrap();
        assert!(matches!(cache.get(&key(1)).unwrap(), Found::Part(_)));
        fs::rename(cache.path(&key(1)), cache.path(&key(2))).unwrap();
        let found = cache.get(&key(2)).unwrap();
        assert!(matches!(found, Found::Distrusted(why) if why.contains("another part")));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_others_could_have_put_there_is_not_read() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let folder = folder("others");
        let cache = DiskCache::new(&folder, LIMIT_BYTES);
        let bytes = sample();
        let why = |cache: &DiskCache| match cache.get(&key(1)).unwrap() {
            Found::Distrusted(why) => why,
            found => panic!("{found:?}"),
        };
        cache.put(&key(1), &bytes).unwrap();
        let path = cache.path(&key(1));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(why(&cache), "other users can write it");
        fs::rename(&path, folder.join("elsewhere")).unwrap();
        symlink(folder.join("elsewhere"), &path).unwrap();
        assert_eq!(why(&cache), "it is a link");
        // Kept again, the file is the cache's own.
        cache.put(&key(1), &bytes).unwrap();
        assert!(matches!(cache.get(&key(1)).unwrap(), Found::Part(_)));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(why(&cache), "it is no regular file");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_stands_where_a_file_is_begun_is_neither_written_nor_in_the_way() {
        let folder = folder("begun");
        let cache = DiskCache::new(&folder, LIMIT_BYTES);
        fs::create_dir(&folder).unwrap();
        let victim = folder.join("victim");
        fs::write(&victim, "precious").unwrap();
        let Key(name) = key(1);
        let next = WRITTEN.load(Ordering::Relaxed);
        for number in next..next + u64::from(MOST_NAMES) / 2 {
            let unfinished = folder.join(format!(".{name}.{}.{number}", std::process::id()));
            std::os::unix::fs::symlink(&victim, unfinished).unwrap();
        }
        cache.put(&key(1), b"whole").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(fs::read(cache.path(&key(1))).unwrap().starts_with(b"whole"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn parts_of_compiled_models_in_the_folder_are_not_the_cache_s_to_delete() {
        let folder = folder("models");
        let cache = DiskCache::new(&folder, 150 + KEY_BYTES as u64);
        fs::create_dir(&folder).unwrap();
        let theirs = folder.join("model_ctx.part0.npub");
        fs::write(&theirs, [0; 100]).unwrap();
        cache.put(&key(1), &[0; 100]).unwrap();
        assert!(theirs.exists() && cache.path(&key(1)).exists());
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
