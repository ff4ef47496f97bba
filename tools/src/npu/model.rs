//! A model on the command line: its programs for a device, with what each command costs.

use anyhow::{Context as _, Result};
use ep_npu::graph::Graph;
use ep_npu::partition::{self, Plan, PlanOptions};
use ep_npu::program::{self, Compiled};
use ep_npu::session;
use ep_npu::{Device, Exactness, import};
use kmod_sim::timing;
use npu_uapi::container::Container;
use npu_uapi::image::slot_kind;
use npu_uapi::limits::Limits;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::progress::Progress;

/// Which model, and for which device.
#[derive(clap::Args, Debug)]
pub(crate) struct ModelArgs {
    /// The model (.onnx).
    pub(crate) model: PathBuf,
    /// The device: `sim`, or with options as `sim:macs=256,sram=512K`; or `vfio-user:PATH`.
    #[arg(long, env = "NPU_DEVICE", default_value = "sim")]
    pub(crate) device: String,
    /// The length of open dimensions.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) batch: u32,
    /// Leave to the host what is estimated to save fewer microseconds on the NPU than this.
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) min_gain: Option<u32>,
    /// How near results must be to those of ONNX Runtime's CPU provider: `require` for the same bits, or
    /// `bounded` for at most one code of each unit's output beside them.
    #[arg(long, default_value_t)]
    pub(crate) exactness: Exactness,
    #[command(flatten)]
    pub(crate) progress: Progress,
}

/// A model and its plan.
pub(crate) struct Planned {
    pub(crate) graph: Graph,
    pub(crate) plan: Plan,
    pub(crate) limits: Limits,
    batch: usize,
    progress: Progress,
}

/// One group of a plan, compiled.
pub(crate) struct Program {
    pub(crate) compiled: Compiled,
    pub(crate) container: Container,
    /// Modelled cost of each command.
    pub(crate) costs: Vec<timing::Cost>,
}

impl ModelArgs {
    /// Opens the device.
    pub(crate) fn open(&self) -> Result<Device> {
        open(&self.device)
    }

    /// Loads the model and plans it for the device.
    pub(crate) fn plan(&self) -> Result<Planned> {
        let graph = self.progress.during("loading", || import::file(&self.model))?;
        self.plan_of(graph)
    }

    /// Plans `graph`, which is of this model.
    pub(crate) fn plan_of(&self, mut graph: Graph) -> Result<Planned> {
        graph.set_exactness(self.exactness);
        let limits = *self.open()?.limits();
        let mut options = PlanOptions::default();
        options.min_gain = self.min_gain();
        let plan = || partition::plan_with(&graph, &limits, options);
        let plan = self.progress.during("planning", plan);
        let (batch, progress) = (usize::try_from(self.batch)?, self.progress);
        Ok(Planned { graph, plan, limits, batch, progress })
    }

    pub(crate) fn min_gain(&self) -> Option<Duration> {
        self.min_gain.map(|micros| Duration::from_micros(micros.into()))
    }
}

/// Opens the device that `name` says.
pub(crate) fn open(name: &str) -> Result<Device> {
    Device::open(name).with_context(|| format!("cannot open device `{name}`"))
}

impl Planned {
    /// Compiles every group.
    pub(crate) fn compile(&self) -> Result<Vec<Program>> {
        let parts = session::parts(&self.graph, &self.plan, self.batch)?;
        let compile = |(part, shapes): &(Graph, Vec<Vec<usize>>)| {
            let units = program::units(part)?;
            let compiled = program::compile(part, &units, shapes, &self.limits)?;
            let container = compiled.container(part, &self.limits);
            let costs = costs(&container, &self.limits);
            Ok(Program { compiled, container, costs })
        };
        self.progress.during("compiling", || parts.iter().map(compile).collect())
    }
}

impl Program {
    /// Modelled cycles of all commands.
    pub(crate) fn cycles(&self) -> u64 {
        self.costs.iter().map(|cost| cost.cycles).fold(0, u64::saturating_add)
    }
}

fn costs(container: &Container, limits: &Limits) -> Vec<timing::Cost> {
    let slots = &container.image.slots;
    let cost = |command| {
        timing::cycles(command, limits, &|slot| {
            slots.get(slot.index()).is_some_and(|decl| decl.kind == slot_kind::SRAM)
        })
    };
    container.image.commands.iter().map(cost).collect()
}

/// `path` with `.npu` for its ending, and a number before it where there are several.
pub(crate) fn program_path(path: &Path, index: usize, count: usize) -> PathBuf {
    match count {
        1 => path.to_owned(),
        _ => path.with_extension(format!("{index}.npu")),
    }
}
