//! How near to ONNX Runtime's CPU provider results must be: the option `exactness`.
//!
//! | value | what is taken |
//! |---|---|
//! | `require` | what the device computes bit for bit as the CPU provider does |
//! | `bounded` | also units that the CPU provider sums in floats in an order that is not known or does not hold, where a bound, proven for the unit's weights and scales, keeps each result within one code of its own |
//!
//! The bound is a unit's: on the same input codes. Behind it, others read what it gave.

use std::fmt;
use std::str::FromStr;

/// How near results must be.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Exactness {
    /// The same bits.
    #[default]
    Require,
    /// At most one code of each unit's output beside them, and said so.
    Bounded,
}

/// An exactness that there is not.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("exactness `{0}` is unknown; `require` and `bounded` are taken")]
pub struct UnknownExactness(String);

impl Exactness {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Require, Self::Bounded];

    /// Its name, as options have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Require => "require",
            Self::Bounded => "bounded",
        }
    }
}

impl fmt::Display for Exactness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Exactness {
    type Err = UnknownExactness;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|exactness| exactness.name() == name);
        found.ok_or_else(|| UnknownExactness(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_told() {
        for exactness in Exactness::ALL {
            assert_eq!(exactness.to_string().parse(), Ok(exactness));
        }
        let error = "near".parse::<Exactness>().unwrap_err();
        assert!(error.to_string().contains("`near`") && error.to_string().contains("`bounded`"));
    }
}
