//! What a virtual device is made of, from the options in its device string: `macs=256,sram=512K`.

use crate::inject::{InjectError, Plan};
use crate::kernel::control::HANG;
use npu_uapi::limits::Limits;
use npu_uapi::regs::ABI;
use std::time::Duration;

/// Sizes and modes of one virtual device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// What the device reports of itself.
    pub limits: Limits,
    /// Threads to compute with: the driver's, or in a process of its own the array's. `None` is as many as
    /// the process may use.
    pub threads: Option<usize>,
    /// Fills the SRAM slot with a pattern before each job, so that reading what was never written shows.
    pub is_strict: bool,
    /// Records what each command takes; see [`crate::times`].
    pub is_timed: bool,
    /// Counts output codes at the ends of their range, from the start; see [`crate::Function::count_saturation`].
    pub counts_saturation: bool,
    /// Lowest and highest version of the ABI that it says it speaks: one that this library has not, to test
    /// that a driver refuses it, or an older one, of which it then is.
    pub abi: (u16, u16),
    /// Faults that the device is to show.
    pub inject: Plan,
    /// A job that makes no progress for as long is ended as hung.
    pub hang: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::REFERENCE,
            threads: None,
            is_strict: false,
            is_timed: false,
            counts_saturation: false,
            abi: ABI,
            inject: Plan::default(),
            hang: HANG,
        }
    }
}

/// Every option, with what its value must be.
pub const OPTIONS: &[(&str, &str)] = &[
    ("macs", "multiply-accumulates a cycle, 16 to 65536"),
    ("sram", "bytes of SRAM with an optional K or M, 0 to 256M"),
    ("mhz", "clock in MHz, 1 to 10000"),
    ("threads", "threads to compute with, 1 to 1024"),
    ("strict", "0 or 1; 1 poisons the SRAM before each job"),
    ("times", "0 or 1; 1 records what each command takes, for tools in the same process"),
    ("saturation", "0 or 1; 1 counts output codes at the ends of their range from the start"),
    (
        "abi",
        "LOW-HIGH, each MAJOR.MINOR, the versions of the ABI that it says it speaks, for tests of drivers",
    ),
    ("inject", "faults to show, KIND[@N][:ARG] joined by +, such as stuck-engine or slow-dma@3:20"),
    ("hang_ms", "milliseconds without progress after which a job is ended, 10 to 600000"),
];

/// Why options are refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An option without `=`.
    #[error("device option `{option}` has no value; write key=value")]
    NoValue {
        /// The option.
        option: String,
    },
    /// No such option.
    #[error("unknown device option `{key}`; the options are {}", valid_keys())]
    UnknownKey {
        /// What was found.
        key: String,
    },
    /// The value is malformed or out of range.
    #[error("device option `{key}={value}`: {want}")]
    Value {
        /// The option.
        key: &'static str,
        /// What was found.
        value: String,
        /// What it must be.
        want: &'static str,
    },
    /// What is to be injected is no fault.
    #[error("device option `inject`: {0}")]
    Inject(#[from] InjectError),
}

fn valid_keys() -> String {
    OPTIONS.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ")
}

impl Config {
    /// Reads `key=value,key=value`; nothing gives the reference configuration.
    ///
    /// # Errors
    /// An option that is unknown, has no value, or one out of range.
    pub fn parse(options: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let (key, value) = option
                .split_once('=')
                .ok_or_else(|| ConfigError::NoValue { option: option.to_owned() })?;
            config.set(key, value)?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let &(key, want) = OPTIONS
            .iter()
            .find(|(known, _)| *known == key)
            .ok_or_else(|| ConfigError::UnknownKey { key: key.to_owned() })?;
        let bad = || ConfigError::Value { key, value: value.to_owned(), want };
        let number = |low: u32, high: u32| {
            value.parse().ok().filter(|n| (low..=high).contains(n)).ok_or_else(bad)
        };
        match key {
            "macs" => self.limits.macs_per_cycle = number(16, 65536)?,
            "mhz" => self.limits.clock_khz = number(1, 10_000)? * 1000,
            "threads" => {
                self.threads = Some(usize::try_from(number(1, 1024)?).map_err(|_| bad())?);
            }
            "inject" => self.inject = Plan::parse(value)?,
            "hang_ms" => self.hang = Duration::from_millis(number(10, 600_000)?.into()),
            "strict" => self.is_strict = number(0, 1)? == 1,
            "times" => self.is_timed = number(0, 1)? == 1,
            "saturation" => self.counts_saturation = number(0, 1)? == 1,
            "abi" => self.abi = versions(value).ok_or_else(bad)?,
            "sram" => {
                self.limits.sram_bytes =
                    bytes(value).filter(|&n| n <= 256 << 20).ok_or_else(bad)?;
            }
            _ => return Err(bad()),
        }
        Ok(())
    }
}

/// `1.0-1.1`.
fn versions(value: &str) -> Option<(u16, u16)> {
    let version = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some(u16::from_be_bytes([major.parse().ok()?, minor.parse().ok()?]))
    };
    let (low, high) = value.split_once('-')?;
    Some((version(low)?, version(high)?)).filter(|(low, high)| low <= high)
}

/// `512K`, `2M` or plain bytes.
fn bytes(value: &str) -> Option<u64> {
    let (digits, unit) = match value.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => match value.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1 << 20),
            None => (value, 1),
        },
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_change_what_the_device_reports() {
        let options =
            "macs=256,sram=512K,mhz=800,threads=3,strict=1,times=1,saturation=1,hang_ms=10";
        let config = Config::parse(options).unwrap();
        assert!(config.counts_saturation);
        assert_eq!(config.limits.macs_per_cycle, 256);
        assert_eq!(config.limits.sram_bytes, 512 << 10);
        assert_eq!(config.limits.clock_khz, 800_000);
        assert_eq!((config.threads, config.is_strict, config.is_timed), (Some(3), true, true));
        assert_eq!(config.hang, Duration::from_millis(10));
        assert!(config.limits.is_plausible());
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn a_device_may_say_that_it_speaks_other_versions() {
        assert_eq!(Config::default().abi, ABI);
        assert_eq!(Config::parse("abi=1.0-2.17").unwrap().abi, (0x100, 0x211));
        for option in ["abi=1.1", "abi=1-2", "abi=2.0-1.9", "abi=1.0-1.256", "abi=1.0-x"] {
            assert!(matches!(Config::parse(option), Err(ConfigError::Value { .. })), "{option}");
        }
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_list_of_options() {
        let message = Config::parse("mac=1").unwrap_err().to_string();
        assert!(message.contains("`mac`") && message.contains("macs, sram, mhz"), "{message}");
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for option in
            ["macs=0", "macs=x", "sram=1G", "sram=99999999999M", "strict=2", "mhz=", "hang_ms=9"]
        {
            assert!(matches!(Config::parse(option), Err(ConfigError::Value { .. })), "{option}");
        }
        assert!(matches!(Config::parse("strict"), Err(ConfigError::NoValue { .. })));
    }
}
