//! Options that name ONNX Runtime: as host engine, as reference, as the one who shows the graph.

use anyhow::Result;
use clap::ValueEnum;
use ep_npu::graph::Graph;
use ep_npu::import;
use ep_npu::session::{Fallback, HostEngine, OrtOptions, Shown};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

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

/// Which form of a model's graph is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Form {
    /// ONNX Runtime's where it is found, else this program's own.
    Auto,
    /// As ONNX Runtime shows it to the plugin, after its first optimisations.
    Ort,
    /// As this program reads the file.
    Own,
}

/// A graph, and who made its form.
pub(crate) struct Formed {
    pub(crate) graph: Graph,
    /// `onnxruntime 1.31.1`, or `own`.
    pub(crate) form: String,
    /// What that means for the reader.
    pub(crate) note: String,
}

impl Form {
    /// The graph of the model at `path` in this form.
    pub(crate) fn graph(self, path: &Path, ort: &OrtArgs) -> Result<Formed> {
        let why = match self {
            Self::Own => "as asked for".to_owned(),
            Self::Ort | Self::Auto => match Shown::file(path, &ort.options()) {
                Ok(shown) => {
                    let form = format!("onnxruntime {}", shown.version());
                    let note = format!(
                        "the graph is as ONNX Runtime {} shows it to the plugin, after its first optimisations",
                        shown.version()
                    );
                    return Ok(Formed { graph: shown.into_graph(), form, note });
                }
                Err(error) if self == Self::Ort => return Err(error.into()),
                Err(error) => error.to_string(),
            },
        };
        let graph = import::file(path)?;
        let note = format!(
            "the graph is in this program's own form, in which a few nodes may stand elsewhere than behind ONNX \
             Runtime: {why}"
        );
        Ok(Formed { graph, form: "own".to_owned(), note })
    }
}

/// Who runs what the NPU does not take.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Host {
    /// Nobody: a model that the NPU does not take as a whole is refused.
    None,
    /// ONNX Runtime's CPU provider; the results are exact.
    Ort,
    /// The crate `rten`, without ONNX Runtime; the results are not exact.
    #[cfg(feature = "rten")]
    Rten,
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
            #[cfg(feature = "rten")]
            Self::Rten => Fallback::Host(HostEngine::Rten),
        }
    }
}
