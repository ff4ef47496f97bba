//! Compile: one program for each claim that ONNX Runtime fused into a node, compiled now or before.

use crate::bundle::{self, Bundle, Fit};
use crate::disk_cache::{DiskCache, Found, Key};
use crate::exactness::Exactness;
use crate::program::CompileError;
use crate::run::{BundleLoadError, Executable, RunOptions};

use bytes::Bytes;

use super::api::Severity;
use super::borrowed;
use super::compute::NodeProgram;
use super::ep_context::{self, ContextNode};
use super::provider::Provider;
use super::status::{Failure, Kind};
use super::view::{Graph, Node, ValueInfo};

/// A claim, compiled.
pub(crate) struct Part {
    /// What runs it.
    pub(crate) program: Box<NodeProgram>,
    /// What stands for it in the compiled model, when the session writes one.
    pub(crate) context_node: Option<ContextNode>,
    /// Whether it was compiled before.
    pub(crate) is_loaded: bool,
}

/// The program of `fused`, the node that stands for all of `graph`.
pub(crate) fn part(
    provider: &Provider,
    graph: Graph<'_>,
    fused: Node<'_>,
) -> Result<Part, Failure> {
    let Made { executable, blob, is_loaded } = match graph.nodes()?.as_slice() {
        &[node] if ep_context::is_ours(node)? => {
            let (executable, blob) = load(provider, graph, node, fused)
                .map_err(|failure| failure.within("NPU compiled model"))?;
            Made { executable, blob: Some(blob), is_loaded: true }
        }
        _ => compile(provider, graph, fused)?,
    };
    let context_node = match provider.compiled.is_enabled {
        false => None,
        true => {
            let made = match &blob {
                Some(_) => None,
                None => Some(executable.bundle().map_err(|error| compiler(&error))?.to_bytes()),
            };
            let bytes = blob.as_deref().or(made.as_deref()).unwrap_or_default();
            let index = provider.next_part();
            let (api, options) = (provider.api(), &provider.compiled);
            Some(ep_context::write(api, options, graph, fused, index, bytes)?)
        }
    };
    let part = executable.part();
    let input_names = part.inputs().iter().map(|&id| part.value(id).name.clone()).collect();
    let program = NodeProgram::new(provider, executable, input_names);
    Ok(Part { program, context_node, is_loaded })
}

/// What a claim becomes, and its bundle where there is one already.
struct Made {
    executable: Executable,
    blob: Option<Bytes>,
    is_loaded: bool,
}

fn compile(provider: &Provider, graph: Graph<'_>, fused: Node<'_>) -> Result<Made, Failure> {
    let (mut blob, mut is_loaded) = (None, false);
    let executable = borrowed::compiled(graph, fused, |mut part| {
        part.set_exactness(provider.options.exactness);
        let made = compile_part(provider, part)?;
        (blob, is_loaded) = (made.blob, made.is_loaded);
        Ok(made.executable)
    })?;
    Ok(Made { executable, blob, is_loaded })
}

/// Keeps no constant of `part` but in what it gives.
fn compile_part(provider: &Provider, part: crate::graph::Graph) -> Result<Made, Failure> {
    let (context, device) = (provider.context.context().clone(), provider.device.clone());
    let options = run_options(provider);
    let keeps = provider.cache.is_some() || provider.compiled.is_enabled;
    if !keeps || options.dump.is_some() {
        let made = Executable::new_apart(part, context, device, options);
        let executable = made.map_err(|error| compiler(&error))?;
        return Ok(Made { executable, blob: None, is_loaded: false });
    }
    let mut found = None;
    let cached = provider.cache.as_ref().map(|cache| {
        let (structure, weights) = bundle::parts(&part);
        let key = Key::new(&structure, &weights, device.limits(), &options.batches);
        found = kept(provider, cache, &key);
        (cache, key)
    });
    if let Some(mut bundle) = found {
        // It was kept by a session that may have called the part otherwise.
        bundle.part.set_name(part.name());
        let loaded =
            Executable::from_bundle(bundle, context.clone(), device.clone(), options.clone());
        match loaded {
            Ok(executable) => return Ok(Made { executable, blob: None, is_loaded: true }),
            Err(error) => warn(provider, &format!("NPU cache: {error}; compiled again")),
        }
    }
    // The bundle first, so that nothing is compiled twice.
    let bundle = Executable::compile(part, context.clone(), device.clone(), options.clone());
    let bundle = bundle.map_err(|error| compiler(&error))?;
    let blob = bundle.to_bytes();
    if let Some((cache, key)) = cached
        && let Err(error) = cache.put(&key, &blob)
    {
        let path = cache.path(&key);
        warn(provider, &format!("NPU cache: cannot keep {}: {error}", path.display()));
    }
    let executable = Executable::from_bundle(bundle, context, device, options);
    let executable =
        executable.map_err(|error| Failure::from_error(Kind::Provider, &error).within("NPU"))?;
    Ok(Made { executable, blob: Some(Bytes::from(blob)), is_loaded: false })
}

/// What the cache has for `key`; what is wrong with it is told, and it is compiled.
fn kept(provider: &Provider, cache: &DiskCache, key: &Key) -> Option<Bundle> {
    let path = || cache.path(key).display().to_string();
    match cache.get(key) {
        Ok(Found::Part(bundle)) => return Some(*bundle),
        Ok(Found::Nothing) => {}
        Ok(Found::Damaged(error)) => {
            warn(
                provider,
                &format!("NPU cache: {} is deleted and compiled again: {error}", path()),
            );
        }
        Ok(Found::Distrusted(why)) => {
            warn(provider, &format!("NPU cache: {} is not used: {why}; compiled again", path()));
        }
        Err(error) => warn(provider, &format!("NPU cache: cannot read {}: {error}", path())),
    }
    None
}

fn warn(provider: &Provider, line: &str) {
    provider.logger.log(Severity::Warning, line);
}

fn compiler(error: &CompileError) -> Failure {
    Failure::from_error(Kind::Provider, error).within("NPU compiler")
}

/// What the EPContext node `node` holds, and its bytes.
fn load(
    provider: &Provider,
    graph: Graph<'_>,
    node: Node<'_>,
    fused: Node<'_>,
) -> Result<(Executable, Bytes), Failure> {
    let (bundle, blob) = ep_context::read(&provider.compiled, graph, node)?;
    check_edges(&bundle, node, fused)?;
    if (bundle.part.exactness(), provider.options.exactness)
        == (Exactness::Bounded, Exactness::Require)
    {
        return Err(Failure::invalid_graph(
            "the model was compiled with `exactness=bounded`, so its results may differ from the CPU's by a code, \
             and this session requires equal ones; set `exactness=bounded` here too, or compile it again",
        ));
    }
    if Fit::of(&bundle.limits, provider.device.limits()) == Fit::Runs {
        provider.logger.log(
            Severity::Warning,
            "NPU: the model was compiled for another device; it runs, but compiled again it would \
             use this one better",
        );
    }
    let (context, device) = (provider.context.context().clone(), provider.device.clone());
    let loaded = Executable::from_bundle(bundle, context, device, run_options(provider));
    let executable = loaded.map_err(|error| match &error {
        BundleLoadError::Bundle(_) => Failure::from_error(Kind::InvalidGraph, &error),
        _ => Failure::from_error(Kind::Provider, &error),
    })?;
    Ok((executable, blob))
}

/// Compute passes tensors in the order of `fused`; the bundle takes them in that of `node`.
fn check_edges(bundle: &Bundle, node: Node<'_>, fused: Node<'_>) -> Result<(), Failure> {
    let names = |values: Vec<Option<ValueInfo<'_>>>| {
        values.into_iter().flatten().map(ValueInfo::name).collect::<Result<Vec<_>, _>>()
    };
    let sides = [
        ("inputs", names(node.inputs()?)?, names(fused.inputs()?)?, bundle.part.inputs().len()),
        ("outputs", names(node.outputs()?)?, names(fused.outputs()?)?, bundle.part.outputs().len()),
    ];
    for (what, of_node, of_fused, want) in sides {
        if of_node != of_fused || of_node.len() != want {
            return Err(Failure::invalid_graph(format!(
                "the node has the {what} {of_node:?}, the part in it has {want}: the model was \
                 changed after it was compiled; compile it again"
            )));
        }
    }
    Ok(())
}

fn run_options(provider: &Provider) -> RunOptions {
    let mut options = RunOptions::default();
    if let Some(timeout) = provider.options.timeout {
        options.timeout = timeout;
    }
    options.dump.clone_from(&provider.options.dump);
    options.deny_copy = provider.options.deny_copy;
    options.batches.clone_from(&provider.options.batches);
    options.compile_missing = provider.options.compile_missing;
    options
}
