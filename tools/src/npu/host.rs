//! Options that name ONNX Runtime: as host engine, as reference, as the one who shows the graph.

use clap::ValueEnum;
use ep_npu::session::{Fallback, HostEngine, OrtOptions};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Which ONNX Runtime.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct OrtArgs {
    /// The file libonnxruntime.so. If not given: `ORT_DYLIB_PATH`, the active Python environment, or
    /// what the dynamic loader finds.
    #[arg(long, value_name = "FILE")]
    ort_library: Option<PathBuf>,
    /// The version that it must be, as `1.31.1`.
    #[arg(long, value_name = "VERSION")]
    ort_version: Option<String>,
    /// Threads of its operators; all of the machine's if not given.
    #[arg(long, value_name = "COUNT")]
    ort_threads: Option<NonZeroUsize>,
}

/// Who runs what the NPU does not take.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Host {
    /// Nobody: a model that the NPU does not take as a whole is refused.
    None,
    /// ONNX Runtime's CPU provider; the results are exact.
    Ort,
}

impl OrtArgs {
    pub(crate) fn options(&self) -> OrtOptions {
        let mut options = OrtOptions::default();
        options.library.clone_from(&self.ort_library);
        options.version.clone_from(&self.ort_version);
        options.threads = self.ort_threads;
        options
    }
}

impl Host {
    pub(crate) fn fallback(self, ort: &OrtArgs) -> Fallback {
        match self {
            Self::None => Fallback::Deny,
            Self::Ort => Fallback::Host(HostEngine::Ort(ort.options())),
        }
    }
}
