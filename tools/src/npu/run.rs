//! `npu run`: a model on the NPU, once or many times, with what came out and what it took.

use anyhow::{Context as _, Result, bail, ensure};
use ep_npu::graph::{Dim, ElementType};
use ep_npu::session::{Comparison, Difference, Outcome, SessionError, TensorInfo};
use ep_npu::{OwnedTensor, Session, TensorRef};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::host::{Host, OrtArgs};
use crate::layers;
use crate::model::{self, ModelArgs};
use crate::npy::Array;

/// Run a model on the NPU.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// An input: FILE.npy, NAME=FILE.npy, or `random`; once for each input, in order where unnamed.
    #[arg(long, short, value_name = "FILE", default_value = "random")]
    input: Vec<String>,
    /// Where to write the outputs (.npy); with the output's number before the ending from the second.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How often to run.
    #[arg(long, default_value = "1")]
    repeat: NonZeroU32,
    /// Threads that compute, when the device is in this process.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// How many milliseconds a run may take; a minute if not given.
    #[arg(long, value_name = "MILLISECONDS")]
    timeout_ms: Option<NonZeroU32>,
    /// Who runs what the NPU does not take.
    #[arg(long, value_enum, default_value_t = Host::None)]
    host: Host,
    /// Run the model on ONNX Runtime's CPU provider as well; the exit code is 1 where any bit differs.
    #[arg(long)]
    compare_cpu: bool,
    /// Write what each command took, as the device in this process records it (.json); the slowest are printed.
    #[arg(long, value_name = "FILE")]
    layers: Option<PathBuf>,
    #[command(flatten)]
    ort: OrtArgs,
}

/// Runs as `args` say.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let progress = args.model.progress;
    let device = match &args.layers {
        Some(_) => model::open(&layers::timed(&args.model.device)?)?,
        None => args.model.open()?,
    };
    let builder = Session::builder(&device).ort(args.ort.options());
    let builder = builder.exactness(args.model.exactness);
    let mut builder = builder.fallback(args.host.fallback(&args.ort));
    if let Some(gain) = args.model.min_gain() {
        builder = builder.min_gain(gain);
    }
    if let Some(millis) = args.timeout_ms {
        builder = builder.timeout(Duration::from_millis(millis.get().into()));
    }
    if let Some(threads) = args.threads {
        builder = builder.threads(threads);
    }
    let session = progress
        .during("loading and compiling", || builder.load(&args.model.model))
        .map_err(|error| refused(error, &args.model.model))?;
    let inputs = inputs(args, session.inputs())?;
    let tensors: Vec<TensorRef<'_>> = inputs
        .iter()
        .map(|array| TensorRef::from_bytes(array.element, &array.shape, &array.bytes))
        .collect();
    let (done, times) = progress.during("running", || repeat(&session, &tensors, args.repeat))?;
    let mut text = report(&session, &done, &times);
    let mut is_equal = true;
    if args.compare_cpu {
        let compare = || session.compare_cpu(&tensors);
        let comparison = progress.during("comparing with the CPU", compare)?;
        is_equal = comparison.is_equal();
        text += &compared(&comparison);
    }
    if let Some(path) = &args.layers {
        let measure = || layers::measure(&session, &tensors, args.model.batch, args.repeat, path);
        text += &progress.during("timing layers", measure)?;
    }
    if let Some(path) = &args.output {
        for (index, tensor) in done.outputs.iter().enumerate() {
            write(&output_path(path, index), tensor)?;
        }
    }
    crate::print(&text)?;
    Ok(if is_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `error` with what to do about it.
fn refused(error: SessionError, model: &Path) -> anyhow::Error {
    let model = model.display();
    let remedy = match error {
        SessionError::Refused { .. } => {
            format!(
                "`--host ort` runs the rest with ONNX Runtime, `npu explain {model}` tells more"
            )
        }
        _ => format!("`npu explain {model}` tells more where it was refused"),
    };
    anyhow::Error::new(error).context(format!("cannot load the model; {remedy}"))
}

/// What was compared, with what, and how each output differs.
fn compared(comparison: &Comparison) -> String {
    let reference = &comparison.reference;
    let threads = reference.threads.map_or("all".to_owned(), |count| count.to_string());
    let mut out = format!(
        "reference: ONNX Runtime {} (CPU provider, {} optimisations, {threads} threads, {}), {}\n",
        reference.version,
        reference.level,
        reference.isa,
        reference.library.display()
    );
    for told in &comparison.outputs {
        let Difference { output, values, differing, most, first, .. } = told;
        let _ = match first {
            Some((index, here, there)) => writeln!(
                out,
                "output `{output}`: {differing} of {values} values differ, by at most {most}; \
                 first at {index}: NPU {here}, CPU {there}"
            ),
            None if *differing > 0 => {
                writeln!(out, "output `{output}`: its type or shape is another than the CPU's")
            }
            None => {
                writeln!(out, "output `{output}`: all {values} values equal the CPU's, bit for bit")
            }
        };
    }
    out
}

/// The last outcome, and the time of each run.
fn repeat(
    session: &Session,
    inputs: &[TensorRef<'_>],
    count: NonZeroU32,
) -> Result<(Outcome, Vec<Duration>)> {
    let mut times = Vec::new();
    let mut timed = || {
        let started = Instant::now();
        let done = session.run(inputs);
        times.push(started.elapsed());
        done
    };
    let mut done = timed()?;
    for _ in 1..count.get() {
        done = timed()?;
    }
    Ok((done, times))
}

fn report(session: &Session, done: &Outcome, times: &[Duration]) -> String {
    let mut out = placement(session);
    for (info, tensor) in session.outputs().iter().zip(&done.outputs) {
        let hash = Sha256::digest(tensor.bytes());
        let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let (element, shape) = (tensor.element(), tensor.shape());
        // Writing to a string cannot fail.
        let _ = writeln!(out, "output `{}`: {element}{shape:?}, sha256 {hash}", info.name);
    }
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let (first, median) = (times[0], sorted[sorted.len() / 2]);
    let runs = times.len();
    let _ = match runs {
        1 => writeln!(out, "time {first:.1?} (the first run also compiles for the batch)"),
        _ => writeln!(
            out,
            "time {median:.1?} median of {runs} runs, first {first:.1?}, best {:.1?}",
            sorted[0]
        ),
    };
    let report = done.report;
    let micros =
        report.cycles.saturating_mul(1000) / u64::from(session.device().limits().clock_khz.max(1));
    let _ = writeln!(out, "modelled {} cycles, {micros} us", report.cycles);
    let _ = writeln!(out, "copied {} bytes", report.copied_bytes);
    out
}

/// Which part of the model ran where.
fn placement(session: &Session) -> String {
    let explained = session.explain();
    let on_host: Vec<_> = explained.nodes.iter().filter(|node| node.group.is_none()).collect();
    let mut operators: BTreeMap<&str, usize> = BTreeMap::new();
    for node in &on_host {
        *operators.entry(&node.op).or_default() += 1;
    }
    let listed: Vec<String> =
        operators.iter().map(|(op, count)| format!("{op} x{count}")).collect();
    let npu = explained.nodes.len() - on_host.len();
    let groups = explained.groups;
    let bounded = explained.nodes.iter().filter(|node| node.bound_codes > 0).count();
    let near = match bounded {
        0 => String::new(),
        count => {
            format!("not exact: {count} nodes within 1 code of the CPU's, on the same inputs\n")
        }
    };
    let exact = if session.is_exact() { ", exact" } else { ", not exact" };
    let placed = match session.host_engine() {
        Some(engine) if !on_host.is_empty() => format!(
            "NPU: {npu} nodes in {groups} program(s); host ({engine}{exact}): {} nodes: {}\n",
            on_host.len(),
            listed.join(", ")
        ),
        _ => format!("NPU: all {npu} nodes in {groups} program(s)\n"),
    };
    placed + &near
}

/// The arrays that `--input` names, in the order of the model's inputs.
fn inputs(args: &Args, wanted: &[TensorInfo]) -> Result<Vec<Array>> {
    let names: Vec<&str> = wanted.iter().map(|info| info.name.as_str()).collect();
    let mut unnamed = Vec::new();
    let mut named: Vec<(&str, &str)> = Vec::new();
    for given in &args.input {
        match given.split_once('=').filter(|(name, _)| names.contains(name)) {
            Some(pair) => named.push(pair),
            None => unnamed.push(given.as_str()),
        }
    }
    let is_random = unnamed == ["random"];
    let left = wanted.iter().filter(|info| !named.iter().any(|(name, _)| *name == info.name));
    let left = left.count();
    ensure!(
        is_random || unnamed.len() == left,
        "{} inputs are given without a name, {left} are wanted; the model's inputs are: {}",
        unnamed.len(),
        names.join(", ")
    );
    let mut in_order = unnamed.into_iter();
    let batch = usize::try_from(args.model.batch)?;
    let array = |(index, info): (usize, &TensorInfo)| {
        let by_name = named.iter().find(|(name, _)| *name == info.name).map(|&(_, from)| from);
        let from = match by_name {
            Some(from) => from,
            None if is_random => "random",
            None => in_order.next().context("an input is missing")?,
        };
        match from {
            "random" => random(info, batch, index),
            path => Array::read(Path::new(path)),
        }
        .with_context(|| format!("input `{}`", info.name))
    };
    wanted.iter().enumerate().map(array).collect()
}

/// Noise of the input's type, the same every time: floats about as photographs are when normalised.
fn random(info: &TensorInfo, batch: usize, seed: usize) -> Result<Array> {
    let Some(dims) = &info.shape else { bail!("the model gives no shape; name a file") };
    let length = |dim: &Dim| match dim {
        Dim::Known(length) => *length,
        Dim::Symbol(_) => batch,
    };
    let shape: Vec<usize> = dims.iter().map(length).collect();
    let size =
        info.element.bytes().with_context(|| format!("no noise of type {}", info.element))?;
    let count = shape.iter().try_fold(size, |count, &len| count.checked_mul(len));
    let count = count.filter(|&count| count <= 1 << 32).context("the shape is too large")? / size;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed as u64 + 1);
    let mut byte = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed.to_le_bytes()[6]
    };
    let bytes = match info.element {
        ElementType::F32 => {
            let mut float = || {
                let sum: u16 = (0..4).map(|_| u16::from(byte())).sum();
                (f32::from(sum) - 510.0) / 170.0
            };
            (0..count).flat_map(|_| float().to_le_bytes()).collect()
        }
        // Small, as the numbers of words and classes are.
        ElementType::I32 | ElementType::I64 => (0..count)
            .flat_map(|_| u64::from(byte()).to_le_bytes().into_iter().take(size))
            .collect(),
        _ => (0..count * size).map(|_| byte()).collect(),
    };
    Ok(Array { element: info.element, shape, bytes })
}

fn write(path: &Path, tensor: &OwnedTensor) -> Result<()> {
    let (element, shape, bytes) = (tensor.element(), tensor.shape(), tensor.bytes());
    Array { element, shape: shape.to_vec(), bytes: bytes.to_vec() }.write(path)
}

fn output_path(path: &Path, index: usize) -> PathBuf {
    match index {
        0 => path.to_owned(),
        _ => path.with_extension(format!("{index}.npy")),
    }
}
