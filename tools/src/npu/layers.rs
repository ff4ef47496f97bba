//! `npu run --layers`: what each command of each program took, in the model's words.
//!
//! The device, in this process, records its commands; the programs are compiled once more to find the
//! node that each stands for.

#[path = "layers/layer.rs"]
mod layer;

use anyhow::{Context as _, Result, ensure};
use ep_npu::{Session, TensorRef, program, session};
use kmod_sim::times::{self, Timed};
use kmod_sim::timing;
use npu_uapi::command::{Command, Conv, Flags};
use npu_uapi::container::Container;
use npu_uapi::extent::accesses;
use npu_uapi::image::slot_kind;
use npu_uapi::limits::Limits;
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use layer::{Class, Layer, Layers};

/// Rows that are printed; the file has all.
const SHOWN: usize = 12;

/// The device string `device`, with the clock on.
pub(crate) fn timed(device: &str) -> Result<String> {
    match device.split_once(':').map_or((device, ""), |(kind, options)| (kind, options)) {
        ("sim", "") => Ok("sim:times=1".to_owned()),
        ("sim", options) => Ok(format!("sim:{options},times=1")),
        _ => anyhow::bail!(
            "layers are timed on a device in this process; name `sim`, not `{device}`"
        ),
    }
}

/// Runs `session` so often, writes what its layers took to `path`, and gives the slowest as text.
pub(crate) fn measure(
    session: &Session,
    inputs: &[TensorRef<'_>],
    batch: u32,
    repeat: NonZeroU32,
    path: &Path,
) -> Result<String> {
    let limits = session.device().limits();
    let programs = containers(session, usize::try_from(batch)?, limits)?;
    session.run(inputs)?;
    times::take();
    let (mut runs, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..repeat.get() {
        let started = Instant::now();
        session.run(inputs)?;
        whole.push(started.elapsed());
        let (commands, lost) = times::take();
        ensure!(lost == 0, "a run has more commands than the device records");
        runs.push(commands);
    }
    let first = runs.first().context("there was no run")?;
    ensure!(
        runs.iter().all(|run| run.len() == first.len()),
        "the runs had other numbers of commands; the device is used by others too"
    );
    let owners = owners(first, &programs);
    let layers = first.iter().enumerate().zip(owners).map(|((place, timed), owner)| {
        let times = runs.iter().filter_map(|run| run.get(place)).map(|timed| timed.took).collect();
        layer(&timed.command, owner.map(|index| &programs[index]), limits, median(times))
    });
    let layers =
        Layers { runs: repeat.get(), run_us: micros(median(whole)), layers: layers.collect() };
    let text = serde_json::to_string_pretty(&layers)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(table(&layers))
}

/// The programs of the session, with the names of their nodes.
fn containers(session: &Session, batch: usize, limits: &Limits) -> Result<Vec<Container>> {
    let parts = session::parts(session.graph(), session.plan(), batch)?;
    let compile = |(part, shapes): &(_, Vec<Vec<usize>>)| {
        let units = program::units(part)?;
        Ok(program::compile(part, &units, shapes, limits)?.container(part, limits))
    };
    parts.iter().map(compile).collect()
}

/// For each command the program that it is of: commands from one first place to the next are one program.
fn owners(run: &[Timed], programs: &[Container]) -> Vec<Option<usize>> {
    let mut out = Vec::with_capacity(run.len());
    let mut rest = run;
    while let Some(first) = rest.first() {
        let rises = rest.windows(2).take_while(|pair| pair[0].index < pair[1].index).count();
        let (job, after) = rest.split_at(rises + 1);
        let is_of = |program: &Container| {
            job.iter().all(|timed| program.image.commands.get(timed.index) == Some(&timed.command))
        };
        let owner = programs.iter().position(is_of).filter(|_| first.index == 0);
        out.extend(job.iter().map(|_| owner));
        rest = after;
    }
    out
}

fn layer(command: &Command, program: Option<&Container>, limits: &Limits, took: Duration) -> Layer {
    let node = program.and_then(|program| program.name(command.header().op_id));
    let is_sram = |slot: npu_uapi::addr::SlotId| {
        let decl = program.and_then(|program| program.image.slots.get(slot.index()));
        decl.is_some_and(|decl| decl.kind == slot_kind::SRAM)
    };
    let bytes = accesses(command).map_or(0, |all| all.iter().map(|access| access.len).sum());
    Layer {
        node: node.unwrap_or_default().to_owned(),
        what: what(command),
        class: class(command),
        macs: timing::cycles(command, limits, &is_sram).macs,
        bytes,
        us: micros(took),
    }
}

fn class(command: &Command) -> Class {
    match command {
        Command::Conv(conv) if is_depthwise(conv) => Class::Depthwise,
        Command::Conv(_) | Command::MatMul(_) | Command::Product(_) => Class::Dense,
        _ => Class::Other,
    }
}

fn is_depthwise(conv: &Conv) -> bool {
    conv.groups > 1 && conv.groups == conv.ifm_dims.c
}

/// The command with the sizes that settle what it costs.
fn what(command: &Command) -> String {
    let flags = command.header().flags();
    let float = if flags.contains(Flags::FLOAT) { " float" } else { "" };
    let dims = |dims: &npu_uapi::command::Dims| format!("{}x{}x{}", dims.h, dims.w, dims.c);
    match command {
        Command::Conv(conv) => {
            let (window, input) = (&conv.window, &conv.ifm_dims);
            let groups = match conv.groups {
                1 => String::new(),
                _ if is_depthwise(conv) => " depthwise".to_owned(),
                groups => format!(" {groups} groups"),
            };
            format!(
                "conv {} to {}, {}x{}/{}{groups}{float}",
                dims(input),
                conv.ofm_c,
                window.kernel_h,
                window.kernel_w,
                window.stride_h
            )
        }
        Command::MatMul(matmul) => {
            format!("matmul {}x{} by {}{float}", matmul.m, matmul.k, matmul.n)
        }
        Command::Product(product) => {
            format!("product {}x{} by {}", product.m, product.k, product.n)
        }
        Command::Add(add) => format!("add {}", dims(&add.dims)),
        Command::Mul(mul) => format!("mul {}", dims(&mul.dims)),
        Command::Pool(pool) => format!("pool {}", dims(&pool.ifm_dims)),
        Command::Table(table) => format!("table {}", dims(&table.dims)),
        Command::Layout(layout) => format!("layout {}", dims(&layout.dims)),
        other => other.name().to_owned(),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn table(layers: &Layers) -> String {
    let sum: f64 = layers.layers.iter().map(|layer| layer.us).sum();
    let mut out = format!(
        "layers: {} commands in {sum:.0} us of a run of {:.0} us, medians of {} runs; the slowest:\n",
        layers.layers.len(),
        layers.run_us,
        layers.runs
    );
    let mut sorted: Vec<&Layer> = layers.layers.iter().collect();
    sorted.sort_by(|a, b| b.us.total_cmp(&a.us));
    for layer in sorted.into_iter().take(SHOWN) {
        let (us, rate) = (layer.us, layer.gmac_per_second());
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{us:8.1} us {rate:6.1} GMAC/s  {:<40} {}", layer.what, layer.node);
    }
    out
}
