//! What a session shall be, and loading it.

#[cfg(feature = "rten")]
use super::rten;
use super::steps::Steps;
use super::{
    Engine, Fallback, HostEngine, OrtOptions, Session, SessionError, Shared, Shown, Source,
    TensorInfo, Threads, error,
};
use crate::exactness::Exactness;
use crate::graph::{ElementType, ValueId};
use crate::import;
use crate::ort::SessionContext;
use crate::partition::{self, PlanOptions};
use crate::run::RunOptions;
use bytes::Bytes;
use libnpu::{Device, Pool};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// What a session shall be; see [`Session::builder`].
#[derive(Debug)]
pub struct Builder {
    device: Device,
    options: RunOptions,
    threads: Threads,
    fallback: Fallback,
    ort: OrtOptions,
    plan_options: PlanOptions,
    exactness: Exactness,
}

impl Builder {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            options: RunOptions::default(),
            threads: Threads::Device,
            fallback: Fallback::Deny,
            ort: OrtOptions::default(),
            plan_options: PlanOptions::default(),
            exactness: Exactness::default(),
        }
    }

    /// How long a run may take before it is given up; 60 seconds if not set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Threads that compute: the caller alone for 1, else a pool of the session's own. If not set, the
    /// device's pool, as wide as the process may use.
    pub fn threads(mut self, count: NonZeroUsize) -> Self {
        self.threads = match count.get() {
            1 => Threads::Caller,
            count => Threads::Own(Pool::new(count)),
        };
        self
    }

    /// Programs for different input shapes that are kept; 8 if not set.
    pub fn programs(mut self, count: NonZeroUsize) -> Self {
        self.options.programs = count.get();
        self
    }

    /// A folder where each program is written when it is compiled, as `npu objdump` reads it.
    pub fn dump(mut self, folder: impl Into<PathBuf>) -> Self {
        self.options.dump = Some(folder.into());
        self
    }

    /// Who runs what the NPU does not take; if not set, nobody: loading fails and says why.
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// Leaves to the host engine what is estimated to save less than `gain` on the NPU; see
    /// [`crate::partition::price`]. If not set, no estimate is made.
    pub fn min_gain(mut self, gain: Duration) -> Self {
        self.plan_options.min_gain = Some(gain);
        self
    }

    /// How near to the CPU provider's results must be; the same bits if not set.
    pub fn exactness(mut self, exactness: Exactness) -> Self {
        self.exactness = exactness;
        self
    }

    /// Which ONNX Runtime [`Session::compare_cpu`] compares with, when the host engine is none.
    pub fn ort(mut self, ort: OrtOptions) -> Self {
        self.ort = ort;
        self
    }

    /// Loads the model in the file at `path`, which must not be written while the session is in use.
    ///
    /// # Errors
    /// The file is no model, the NPU does not take all of it, or the device fails.
    pub fn load(self, path: impl AsRef<Path>) -> Result<Session, SessionError> {
        self.from(Source::File(path.as_ref().to_owned()))
    }

    /// Loads the model that `bytes` are; it has no external data.
    ///
    /// # Errors
    /// As for [`Builder::load`].
    pub fn load_bytes(self, bytes: impl Into<Bytes>) -> Result<Session, SessionError> {
        self.from(Source::Bytes(bytes.into()))
    }

    fn from(self, source: Source) -> Result<Session, SessionError> {
        let Self { device, options, threads, fallback, ort, plan_options, exactness } = self;
        let (mut graph, shown, host) = match (&fallback, &source) {
            (Fallback::Deny, Source::File(path)) => (import::file(path)?, None, ort),
            (Fallback::Deny, Source::Bytes(bytes)) => (import::bytes(bytes.clone())?, None, ort),
            #[cfg(feature = "rten")]
            (Fallback::Host(HostEngine::Rten), Source::File(path)) => {
                (import::file(path)?, None, ort)
            }
            #[cfg(feature = "rten")]
            (Fallback::Host(HostEngine::Rten), Source::Bytes(bytes)) => {
                (import::bytes(bytes.clone())?, None, ort)
            }
            (Fallback::Host(HostEngine::Ort(host)), source) => {
                let shown = match source {
                    Source::File(path) => Shown::file(path, host)?,
                    Source::Bytes(bytes) => Shown::bytes(bytes, host)?,
                };
                let (graph, shown) = shown.into_parts();
                (graph, Some(shown), host.clone())
            }
        };
        graph.set_exactness(exactness);
        let plan = partition::plan_with(&graph, device.limits(), plan_options);
        error::check_refused(&graph, &plan, &fallback)?;
        let context = SessionContext::open(&device)?;
        let is_whole = plan.verdicts.iter().all(|verdict| verdict.taken.is_some());
        let engine = match shown.filter(|_| !is_whole) {
            #[cfg(feature = "rten")]
            None if !is_whole => {
                let given = match &source {
                    Source::File(path) => rten::Given::File(path),
                    Source::Bytes(bytes) => rten::Given::Bytes(bytes),
                };
                let of_npu = context.context();
                let mixed = rten::Mixed::new(&given, &graph, &plan, of_npu, &device, &options)?;
                Engine::Mixed(Box::new(mixed))
            }
            None => Engine::Npu(Steps::new(&graph, &plan, context.context(), &device, &options)?),
            Some(shown) => {
                let counts = (threads.asked(), host.threads);
                let of_npu = context.context();
                let shared = Shared::new(shown, &graph, &plan, of_npu, &device, &options, counts)?;
                Engine::Shared(shared)
            }
        };
        let info = |&id: &ValueId| {
            let value = graph.value(id);
            let ty = value.ty.as_ref();
            TensorInfo {
                name: value.name.clone(),
                element: ty.map_or(ElementType::Other(0), |ty| ty.element),
                shape: ty.and_then(|ty| ty.shape.clone()),
            }
        };
        let inputs = graph.inputs().iter().map(info).collect();
        let outputs = graph.outputs().iter().map(info).collect();
        let (timeout, reference, _context) = (options.timeout, OnceLock::new(), context);
        Ok(Session {
            graph,
            plan,
            inputs,
            outputs,
            engine,
            threads,
            device,
            source,
            host,
            timeout,
            reference,
            _context,
        })
    }
}
