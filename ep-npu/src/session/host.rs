//! Who runs what the NPU does not take.

use crate::graph::{Graph, ValueId};
use crate::import::{self, proto};
use crate::ort::host::{HostSession, Level, Library, Model, Options, Part, Ran, Recorder};
use crate::ort::{Failure, Threads};
use crate::partition::Plan;
use crate::run::{Executable, OwnedTensor, RunOptions, RunReport, TensorRef};
use libnpu::{Context, Device};
use std::ffi::CString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::SessionError;
use super::left::{self, DOMAIN};
use super::steps;

pub use crate::ort::host::LibraryError;

/// What becomes of nodes that the NPU does not take.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Fallback {
    /// Loading such a model is an error that names each node and its reason.
    #[default]
    Deny,
    /// They run on the host; which ones, [`super::Session::explain`] and the report of a run say.
    Host(HostEngine),
}

/// What runs them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HostEngine {
    /// ONNX Runtime's CPU provider: every result is what it computes for the whole model, bit for bit.
    Ort(OrtOptions),
    /// The crate `rten`: no ONNX Runtime is needed, and results differ from it by roundings.
    #[cfg(feature = "rten")]
    Rten,
}

/// Which ONNX Runtime, and how. It is opened when it is needed: nothing links against it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct OrtOptions {
    /// `libonnxruntime.so`. If not given: the file in `ORT_DYLIB_PATH`, the one in the Python environment
    /// that is active, or what the dynamic loader finds.
    pub library: Option<PathBuf>,
    /// The version that it must be, as `1.31.1`; any from 1.23 on if not given.
    pub version: Option<String>,
    /// Threads of its operators; as many as the machine has if not given.
    pub threads: Option<NonZeroUsize>,
}

impl OrtOptions {
    /// The library in the file at `path`.
    pub fn library(mut self, path: impl Into<PathBuf>) -> Self {
        self.library = Some(path.into());
        self
    }

    /// Refuses any other version than `version`.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Runs operators on `threads` threads.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    pub(super) fn open(&self) -> Result<&'static Library, LibraryError> {
        Library::find(self.library.as_deref(), self.version.as_deref())
    }
}

/// ONNX Runtime, and what it said of a model.
#[derive(Clone, Debug, thiserror::Error)]
#[error("ONNX Runtime {version}: {message}")]
pub struct HostError {
    /// Its version.
    pub version: String,
    /// What it says.
    pub message: String,
}

impl HostError {
    pub(super) fn new(library: &Library, failure: Failure) -> Self {
        Self { version: library.version().to_owned(), message: failure.message }
    }
}

/// The model as ONNX Runtime shows it to providers: what the plugin plans on.
#[derive(Debug)]
pub struct Shown {
    library: &'static Library,
    model: proto::Model,
    graph: Graph,
    /// Where its external data is.
    folder: Option<PathBuf>,
}

impl Shown {
    /// The model in the file at `path`, after ONNX Runtime's first optimisations.
    ///
    /// # Errors
    /// There is no ONNX Runtime, or it does not load the model.
    pub fn file(path: &Path, options: &OrtOptions) -> Result<Self, SessionError> {
        Self::new(Model::File(path), options)
    }

    /// As [`Shown::file`], of the model that `bytes` are.
    ///
    /// # Errors
    /// As for [`Shown::file`].
    pub fn bytes(bytes: &[u8], options: &OrtOptions) -> Result<Self, SessionError> {
        Self::new(Model::Bytes(bytes), options)
    }

    fn new(model: Model<'_>, options: &OrtOptions) -> Result<Self, SessionError> {
        let library = options.open()?;
        let folder = match model {
            Model::File(path) => Some(import::folder(path)),
            Model::Bytes(_) => None,
        };
        let fails = |failure| HostError::new(library, failure);
        let written = left::basic(library, model).map_err(fails)?;
        let mut model = import::decode(written)?;
        left::add_types(library, &mut model, folder.as_deref()).map_err(fails)?;
        let graph = import::shown(&model, folder.clone())?;
        Ok(Self { library, model, graph, folder })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Version of the ONNX Runtime that showed it.
    pub fn version(&self) -> &str {
        self.library.version()
    }

    /// The graph, to keep.
    pub fn into_graph(self) -> Graph {
        self.graph
    }

    /// The graph, and what the host engine needs of the rest.
    pub(super) fn into_parts(self) -> (Graph, ShownModel) {
        (self.graph, ShownModel { library: self.library, model: self.model, folder: self.folder })
    }
}

/// See [`Shown::into_parts`].
#[derive(Debug)]
pub(super) struct ShownModel {
    library: &'static Library,
    model: proto::Model,
    folder: Option<PathBuf>,
}

/// A model of which ONNX Runtime runs one part and the NPU the others.
#[derive(Debug)]
pub(super) struct Shared {
    session: HostSession,
    /// How long a run may take.
    timeout: Duration,
}

impl Shared {
    /// Compiles every group of `plan`; ONNX Runtime loads what is left, with one operator for each group.
    pub(super) fn new(
        shown: ShownModel,
        graph: &Graph,
        plan: &Plan,
        context: &Context,
        device: &Device,
        options: &RunOptions,
        threads: (Option<NonZeroUsize>, Option<NonZeroUsize>),
    ) -> Result<Self, SessionError> {
        let ShownModel { library, mut model, folder } = shown;
        let fails = |failure| SessionError::from(HostError::new(library, failure));
        let (of_npu, of_host) = threads;
        // One pool for all parts, which run in turn.
        let of_npu = Arc::new(Threads::new(of_npu));
        let mut parts = Vec::with_capacity(plan.groups.len());
        let mut groups = Vec::with_capacity(plan.groups.len());
        for (index, part) in steps::parts(graph, plan)? {
            let name = format!("Part{index}");
            let names = |values: &[ValueId]| -> Vec<String> {
                values.iter().map(|&value| graph.value(value).name.clone()).collect()
            };
            groups.push(left::Group {
                operator: name.clone(),
                reads: names(&part.reads),
                writes: names(&part.writes),
                inside: left::written(graph, &plan.groups[index]),
            });
            let executable =
                Executable::new(part.graph, context.clone(), device.clone(), options.clone())
                    .map_err(|source| SessionError::Compile {
                        part: index,
                        source: Box::new(source),
                    })?;
            let name = CString::new(name).unwrap_or_default();
            let api = *library.api();
            parts.push(Part::new(api, &name, executable, Arc::clone(&of_npu)).map_err(fails)?);
        }
        left::replace(&mut model, &groups);
        let bytes = prost::Message::encode_to_vec(&model);
        drop(model);
        let timeout = options.timeout;
        let options = Options {
            level: Level::Default,
            threads: of_host,
            write: None,
            folder: folder.as_deref(),
            parts: Some((DOMAIN, parts)),
        };
        let session = HostSession::new(library, Model::Bytes(&bytes), options).map_err(fails)?;
        Ok(Self { session, timeout })
    }

    /// Version of ONNX Runtime.
    pub(super) fn version(&self) -> &str {
        self.session.library().version()
    }

    /// Runs the model.
    pub(super) fn run(
        &self,
        inputs: &[TensorRef<'_>],
    ) -> Result<(Vec<OwnedTensor>, RunReport), SessionError> {
        let timeout = self.timeout;
        let (ran, report, error) = Recorder::around(|| self.session.run(inputs, timeout));
        match (ran, error) {
            (Ok(Ran::Outputs(outputs)), _) => Ok((outputs, report)),
            (Ok(Ran::Late), _) => Err(SessionError::Late { timeout }),
            // What the NPU said itself tells more than what ONNX Runtime made of it.
            (Err(_), Some(error)) => Err(error.into()),
            (Err(failure), None) => Err(HostError::new(self.session.library(), failure).into()),
        }
    }
}
