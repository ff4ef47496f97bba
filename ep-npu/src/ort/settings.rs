//! What a session may change while it lives: ONNX Runtime's dynamic options, `set_ep_dynamic_options`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::options::{self, Options};
use super::status::Failure;
use super::workers::Threads;

/// ONNX Runtime's own key for how urgent a session's work is.
const WORKLOAD: &str = "ep.dynamic.workload_type";

/// Key, and what it takes.
const KNOWN: [(&str, &str); 3] = [
    (WORKLOAD, "Default or Efficient"),
    ("threads", "a number from 1 to 1024, or nothing for those that the session lends"),
    ("timeout_ms", "a number of milliseconds, at least 1"),
];

/// What runs of a session go by; runs under way keep what they began with.
#[derive(Debug)]
pub(crate) struct Settings(Mutex<Now>);

#[derive(Clone, Debug)]
struct Now {
    threads: Arc<Threads>,
    /// What an efficient session goes back to.
    asked: Option<NonZeroUsize>,
    is_efficient: bool,
    timeout: Duration,
}

impl Settings {
    pub(crate) fn new(options: &Options) -> Self {
        let asked = options.threads;
        let timeout = options.timeout.unwrap_or(crate::run::RunOptions::default().timeout);
        let threads = Arc::new(Threads::new(asked));
        Self(Mutex::new(Now { threads, asked, is_efficient: false, timeout }))
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who computes in a run that begins now.
    pub(crate) fn threads(&self) -> Arc<Threads> {
        self.lock().threads.clone()
    }

    /// How long a run that begins now may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.lock().timeout
    }

    /// Takes over all of `pairs`, or nothing when one of them is wrong.
    pub(crate) fn set(&self, pairs: &[(String, String)]) -> Result<(), Failure> {
        let mut now = self.lock();
        let mut next = now.clone();
        for (key, value) in pairs {
            let name = key.strip_prefix(options::PREFIX).unwrap_or(key);
            if !is_of_another(name) {
                next.set(name, value)?;
            }
        }
        if (next.asked, next.is_efficient) != (now.asked, now.is_efficient) {
            let one = next.is_efficient.then_some(NonZeroUsize::MIN);
            next.threads = Arc::new(Threads::new(one.or(next.asked)));
        }
        *now = next;
        Ok(())
    }
}

/// Whether `key` is of another provider: ONNX Runtime hands every pair to all of a session.
fn is_of_another(key: &str) -> bool {
    let mut words = key.split('.');
    let provider = (words.next(), words.next(), words.next());
    matches!(provider, (Some("ep"), Some(name), Some(_)) if name != "dynamic")
}

impl Now {
    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let Some((_, takes)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            let names: Vec<&str> = KNOWN.iter().map(|&(known, _)| known).collect();
            return Err(Failure::invalid_argument(format!(
                "unknown dynamic NPU option `{name}`; what can change while a session lives is: {}",
                names.join(", ")
            )));
        };
        let bad = || {
            Failure::invalid_argument(format!(
                "dynamic NPU option `{name}` is `{value}`; it takes {takes}"
            ))
        };
        match name {
            WORKLOAD => {
                self.is_efficient = match value {
                    "Efficient" => true,
                    "Default" => false,
                    _ => return Err(bad()),
                }
            }
            "threads" if value.is_empty() => self.asked = None,
            "threads" => self.asked = Some(options::threads(value).ok_or_else(bad)?),
            _ => self.timeout = options::milliseconds(value).ok_or_else(bad)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(settings: &Settings, pairs: &[(&str, &str)]) -> Result<(), Failure> {
        let owned = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        settings.set(&owned.collect::<Vec<_>>())
    }

    #[test]
    fn an_efficient_session_goes_back_to_its_threads() {
        let settings = Settings::new(&Options::from_session(&[]).unwrap());
        set(&settings, &[("threads", "3"), ("timeout_ms", "250")]).unwrap();
        assert!(matches!(&*settings.threads(), Threads::Own(_)));
        assert_eq!(settings.timeout(), Duration::from_millis(250));
        set(&settings, &[(WORKLOAD, "Efficient")]).unwrap();
        assert!(matches!(&*settings.threads(), Threads::Caller));
        set(&settings, &[(WORKLOAD, "Default")]).unwrap();
        assert!(matches!(&*settings.threads(), Threads::Own(_)));
    }

    #[test]
    fn options_of_another_provider_are_left_to_it() {
        let settings = Settings::new(&Options::from_session(&[]).unwrap());
        let others = [("ep.otherprovider.power", "low"), ("ep.otherprovider.timeout_ms", "never")];
        let own = ("ep.npuexecutionprovider.timeout_ms", "250");
        set(&settings, &[others[0], own, others[1]]).unwrap();
        assert_eq!(settings.timeout(), Duration::from_millis(250));
        for wrong in ["ep.npuexecutionprovider.power", "ep.dynamic.workload", "power", "ep.power"] {
            assert!(set(&settings, &[(wrong, "low")]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_wrong_option_changes_none() {
        let settings = Settings::new(&Options::from_session(&[]).unwrap());
        let before = settings.timeout();
        for wrong in [("timeout", "1"), ("timeout_ms", "0"), ("threads", "x"), (WORKLOAD, "Fast")] {
            let failure = set(&settings, &[("timeout_ms", "5"), wrong]).unwrap_err();
            assert!(failure.message.contains(wrong.0), "{}", failure.message);
        }
        assert_eq!(settings.timeout(), before);
    }
}
