//! One command and what it took: what `npu run --layers` writes and `cargo xtask bench` reads.

use serde::{Deserialize, Serialize};

/// A model's commands in the order of their run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Layers {
    /// Over so many runs the medians are taken.
    pub(crate) runs: u32,
    /// A whole run, from call to return.
    pub(crate) run_us: f64,
    pub(crate) layers: Vec<Layer>,
}

/// One command.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Layer {
    /// The node of the model that it stands for; empty where that is not known.
    pub(crate) node: String,
    /// The command, with its sizes.
    pub(crate) what: String,
    pub(crate) class: Class,
    /// Multiply-accumulates, those with padding too.
    pub(crate) macs: u64,
    /// Bytes that it reads and writes, each once.
    pub(crate) bytes: u64,
    pub(crate) us: f64,
}

/// What bounds a command.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// Multiplies each input with many weights.
    Dense,
    /// Multiplies each input with a window's weights only.
    Depthwise,
    /// Moves, looks up, adds.
    Other,
}

impl Layer {
    /// What it reached; 0 where it multiplies nothing.
    pub(crate) fn gmac_per_second(&self) -> f64 {
        self.count() / self.us.max(1e-3) / 1e3
    }

    /// Its multiply-accumulates as a number to calculate with.
    #[expect(clippy::cast_precision_loss, reason = "16 digits are more than a figure shows")]
    pub(crate) fn count(&self) -> f64 {
        self.macs as f64
    }
}
