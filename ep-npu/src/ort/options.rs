//! What a session may ask of the provider: options by name, checked before anything is opened.
//!
//! ONNX Runtime hands options over as session configuration, `ep.npuexecutionprovider.<name>`, and
//! lets any name through; a misspelt one would silently do nothing if it were not refused here.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::disk_cache;
use crate::exactness::Exactness;

use super::status::Failure;

/// Prefix of the provider's options in the configuration of a session.
pub(crate) const PREFIX: &str = "ep.npuexecutionprovider.";
/// Most threads that can be asked for.
const MOST_THREADS: usize = 1024;
/// The largest batch that can be asked for.
const MOST_BATCH: usize = 65_536;
/// Most batches that can be asked for.
const MOST_BATCHES: usize = 64;
/// Where compiled parts are kept, unless the option `cache_dir` says.
const CACHE: &str = "NPU_CACHE_DIR";
/// The most that compiled parts may take on a disk.
const MOST_CACHE_MIB: u64 = 1 << 20;
/// The device when neither option nor environment names one.
const DEFAULT_DEVICE: &str = "sim";

/// Name, and what it takes.
const KNOWN: [(&str, &str); 13] = [
    ("device", "a device string such as `sim`"),
    ("threads", "a number from 1 to 1024"),
    ("timeout_ms", "a number of milliseconds, at least 1"),
    ("strict", "0 or 1"),
    ("dump", "a folder for program files"),
    ("deny_copy", "0 or 1"),
    ("batches", "numbers from 1 to 65536 with commas between, such as `1,4`"),
    ("compile_missing", "0 or 1"),
    ("min_gain", "a number of microseconds"),
    ("exactness", "`require` or `bounded`"),
    ("cache_dir", "a folder for compiled parts, `default` for the user's cache, or `off`"),
    ("cache_mib", "a number of mebibytes from 1 to 1048576"),
    // ONNX Runtime's own key for choosing among the devices of a provider; there is one.
    ("device_id", "0"),
];

/// Options of one session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Options {
    /// Which device to open.
    pub(crate) device: String,
    /// Threads of a pool of our own; `None` borrows the session's.
    pub(crate) threads: Option<NonZeroUsize>,
    /// How long a run may take before it is ended.
    pub(crate) timeout: Option<Duration>,
    /// Whether a model of which any node is refused is an error.
    pub(crate) strict: bool,
    /// Where compiled programs are written.
    pub(crate) dump: Option<PathBuf>,
    /// Whether a run fails that would have to copy a tensor to or from device memory.
    pub(crate) deny_copy: bool,
    /// Lengths of an open batch to compile for when the session is made.
    pub(crate) batches: Vec<usize>,
    /// Whether a run may compile for a shape that there is no program for.
    pub(crate) compile_missing: bool,
    /// What a group must save to be taken.
    pub(crate) min_gain: Option<Duration>,
    /// How near to the CPU provider's results must be.
    pub(crate) exactness: Exactness,
    /// Where compiled parts are kept for other sessions; nowhere by default.
    pub(crate) cache: Option<PathBuf>,
    /// Bytes that they may take there.
    pub(crate) cache_bytes: u64,
}

impl Options {
    /// From the configuration of a session, of which other entries are skipped.
    pub(crate) fn from_session(entries: &[(String, String)]) -> Result<Self, Failure> {
        let mut options = Self {
            device: device_by_default(),
            threads: None,
            timeout: None,
            strict: false,
            dump: None,
            deny_copy: false,
            batches: Vec::new(),
            compile_missing: true,
            min_gain: None,
            exactness: Exactness::default(),
            cache: None,
            cache_bytes: disk_cache::LIMIT_BYTES,
        };
        if let Some(value) = std::env::var(CACHE).ok().filter(|value| !value.is_empty()) {
            options.cache = cache(&value);
        }
        for (key, value) in entries {
            if let Some(name) = key.strip_prefix(PREFIX) {
                options.set(name, value)?;
            }
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let Some((_, takes)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            return Err(unknown(name));
        };
        let bad = || {
            Failure::invalid_argument(format!("NPU option `{name}` is `{value}`; it takes {takes}"))
        };
        match name {
            "device" if value.is_empty() => return Err(bad()),
            "device" => value.clone_into(&mut self.device),
            "threads" => self.threads = Some(threads(value).ok_or_else(bad)?),
            "dump" if value.is_empty() => return Err(bad()),
            "dump" => self.dump = Some(PathBuf::from(value)),
            "timeout_ms" => self.timeout = Some(milliseconds(value).ok_or_else(bad)?),
            "strict" => self.strict = switch(value).ok_or_else(bad)?,
            "deny_copy" => self.deny_copy = switch(value).ok_or_else(bad)?,
            "min_gain" => {
                let micros: u32 = value.parse().map_err(|_| bad())?;
                self.min_gain = Some(Duration::from_micros(micros.into()));
            }
            "exactness" => self.exactness = value.parse().map_err(|_| bad())?,
            "compile_missing" => self.compile_missing = switch(value).ok_or_else(bad)?,
            "cache_dir" if value.is_empty() => return Err(bad()),
            "cache_dir" => self.cache = cache(value),
            "cache_mib" => {
                let mib: u64 = value.parse().map_err(|_| bad())?;
                if !(1..=MOST_CACHE_MIB).contains(&mib) {
                    return Err(bad());
                }
                self.cache_bytes = mib << 20;
            }
            "batches" => self.batches = batches(value).ok_or_else(bad)?,
            _ => {
                if value != "0" {
                    return Err(bad());
                }
            }
        }
        Ok(())
    }
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// A number of threads.
pub(crate) fn threads(value: &str) -> Option<NonZeroUsize> {
    value.parse().ok().filter(|threads: &NonZeroUsize| threads.get() <= MOST_THREADS)
}

/// A number of milliseconds, at least 1.
pub(crate) fn milliseconds(value: &str) -> Option<Duration> {
    let millis: u32 = value.parse().ok()?;
    (millis > 0).then_some(Duration::from_millis(millis.into()))
}

fn batches(value: &str) -> Option<Vec<usize>> {
    let batch =
        |text: &str| text.trim().parse().ok().filter(|batch| (1..=MOST_BATCH).contains(batch));
    let batches: Vec<usize> = value.split(',').map(batch).collect::<Option<_>>()?;
    (batches.len() <= MOST_BATCHES).then_some(batches)
}

/// The folder that an option or the environment names for compiled parts, if it is to be one.
fn cache(value: &str) -> Option<PathBuf> {
    match value {
        "off" => None,
        "default" => disk_cache::default_folder(),
        folder => Some(PathBuf::from(folder)),
    }
}

/// The device that the environment names (`NPU_DEVICE`), else the one in this process.
pub(crate) fn device_by_default() -> String {
    std::env::var("NPU_DEVICE")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| DEFAULT_DEVICE.into())
}

fn unknown(name: &str) -> Failure {
    let names: Vec<&str> = KNOWN.iter().map(|&(known, _)| known).collect();
    let closest = names.iter().min_by_key(|known| distance(name, known));
    let hint = closest
        .filter(|known| distance(name, known) <= 3)
        .map(|known| format!("; did you mean `{known}`?"))
        .unwrap_or_default();
    Failure::invalid_argument(format!(
        "unknown NPU option `{name}`; the options are: {}{hint}",
        names.join(", ")
    ))
}

/// Insertions, deletions and replacements from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options, Failure> {
        let entries: Vec<_> =
            pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        Options::from_session(&entries)
    }

    fn message(key: &str, value: &str) -> String {
        let failure = parse(&[(&format!("{PREFIX}{key}"), value)]).unwrap_err();
        assert_eq!(failure.kind, super::super::status::Kind::InvalidArgument);
        failure.message
    }

    #[test]
    fn every_option_is_read_and_entries_of_others_are_skipped() {
        let options = parse(&[
            ("session.intra_op.allow_spinning", "0"),
            ("ep.otherprovider.threads", "many"),
            ("ep.npuexecutionprovider.device", "sim:macs=256"),
            ("ep.npuexecutionprovider.threads", "3"),
            ("ep.npuexecutionprovider.timeout_ms", "1500"),
            ("ep.npuexecutionprovider.strict", "1"),
            ("ep.npuexecutionprovider.dump", "programs"),
            ("ep.npuexecutionprovider.deny_copy", "1"),
            ("ep.npuexecutionprovider.batches", "1, 4"),
            ("ep.npuexecutionprovider.compile_missing", "0"),
            ("ep.npuexecutionprovider.min_gain", "15"),
            ("ep.npuexecutionprovider.exactness", "bounded"),
            ("ep.npuexecutionprovider.device_id", "0"),
        ])
        .unwrap();
        assert_eq!(options.device, "sim:macs=256");
        assert_eq!(options.threads.map(NonZeroUsize::get), Some(3));
        assert_eq!(options.timeout, Some(Duration::from_millis(1500)));
        assert!(options.strict && options.deny_copy && !options.compile_missing);
        assert_eq!(options.batches, [1, 4]);
        assert_eq!(options.min_gain, Some(Duration::from_micros(15)));
        assert_eq!(options.exactness, Exactness::Bounded);
        assert_eq!(options.dump, Some(PathBuf::from("programs")));
    }

    #[test]
    fn nothing_given_is_the_default_device_and_the_threads_of_the_session() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.device, device_by_default());
        assert_eq!((options.threads, options.timeout, options.strict), (None, None, false));
        assert_eq!(options.exactness, Exactness::Require);
    }

    #[test]
    fn an_unknown_option_is_told_with_the_known_ones_and_the_closest() {
        let text = message("thread", "1");
        for (name, _) in KNOWN {
            assert!(text.contains(name), "{name} is missing in: {text}");
        }
        assert!(text.ends_with("did you mean `threads`?"), "{text}");
        assert!(!message("completely_else", "1").contains("did you mean"));
    }

    #[test]
    fn a_bad_value_is_told_with_its_option_and_what_it_takes() {
        for value in ["many", "-1", "", "1.5", "0", "1025", "99999999999999999999"] {
            let text = message("threads", value);
            assert!(text.contains("`threads`") && text.contains("1 to 1024"), "{text}");
        }
        for (name, value) in [
            ("timeout_ms", "0"),
            ("timeout_ms", "soon"),
            ("strict", "yes"),
            ("deny_copy", "2"),
            ("compile_missing", ""),
            ("min_gain", "-1"),
            ("exactness", "near"),
            ("batches", ""),
            ("batches", "1,,2"),
            ("batches", "0"),
            ("device", ""),
            ("dump", ""),
            ("device_id", "1"),
        ] {
            assert!(message(name, value).contains(name), "{name} = {value}");
        }
    }

    #[test]
    fn the_distance_of_words_counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("threads", "threads"), 0);
        assert_eq!(distance("thred", "threads"), 2);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
