//! The layers of each model: run by `npu run --layers`, held against the limits.

#[path = "../../npu/layers/layer.rs"]
mod layer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::limits::{Limits, Reached};
use crate::child;
use crate::setup::Python;
pub(crate) use layer::{Class, Layer, Layers};

/// Runs of which medians are taken.
const RUNS: u32 = 30;
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// The layers that are printed of each model: those whose time above the limit is longest.
const SHOWN: usize = 5;

/// A model to look into.
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
}

/// A model's layers with one thread, and with two where there are as many processors.
#[derive(Serialize)]
pub(crate) struct Timed {
    pub(crate) name: String,
    pub(crate) one: Layers,
    pub(crate) two: Option<Layers>,
}

/// Runs all; prints for each where its time is lost.
pub(crate) fn measure(
    tool: &Path,
    python: &Python,
    wanted: &[Wanted],
    folder: &Path,
    limits: &Limits,
) -> Result<Vec<Timed>> {
    let mut out = Vec::new();
    for model in wanted {
        let run = |threads: u32| -> Result<Layers> {
            let path = folder.join(format!("layers-{}-{threads}.json", model.name));
            let mut command = Command::new(tool);
            // ONNX Runtime, for what the NPU does not take, is the environment's.
            command.env("VIRTUAL_ENV", python.folder());
            command.arg("run").arg(&model.file).args(["--host", "ort"]);
            command.args(["--threads", &threads.to_string(), "--repeat", &RUNS.to_string()]);
            command.args(["--ort-threads", &threads.to_string()]).arg("--layers").arg(&path);
            child::check(&mut command, LIMIT)?;
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text)
                .with_context(|| format!("{}: unknown form", path.display()))
        };
        let one = run(1)?;
        let two = limits.two.map(|_| run(2)).transpose()?;
        println!("\n{}, 1 thread: {}", model.name, lost(&one, &limits.one));
        if let (Some(two), Some(limit)) = (&two, &limits.two) {
            println!("{}, 2 threads: {}", model.name, lost(two, limit));
        }
        out.push(Timed { name: model.name.clone(), one, two });
    }
    Ok(out)
}

/// What is between the layers and the limit, and the layers with most of it.
fn lost(layers: &Layers, limit: &Reached) -> String {
    let most = limit.multiply();
    let least_us = |layer: &Layer| layer.count() / most.max(1e-3) / 1e3;
    let sum = |class: &dyn Fn(Class) -> bool, figure: &dyn Fn(&Layer) -> f64| -> f64 {
        layers.layers.iter().filter(|layer| class(layer.class)).map(figure).sum()
    };
    let us = |layer: &Layer| layer.us;
    let dense = |class: Class| class == Class::Dense;
    let (dense_us, all) = (sum(&dense, &us), sum(&|_| true, &us));
    let mut out = format!(
        "run {:.0} us, commands {all:.0} us; dense {dense_us:.0} us at {:.0} % of the limit, depthwise {:.0} us, others {:.0} us\n",
        layers.run_us,
        100.0 * sum(&dense, &least_us) / dense_us.max(1e-3),
        sum(&|class| class == Class::Depthwise, &us),
        sum(&|class| class == Class::Other, &us),
    );
    let mut sorted: Vec<&Layer> = layers.layers.iter().collect();
    let above = |layer: &Layer| layer.us - least_us(layer);
    sorted.sort_by(|a, b| above(b).total_cmp(&above(a)));
    for layer in sorted.into_iter().take(SHOWN) {
        let share = 100.0 * least_us(layer) / layer.us.max(1e-3);
        out += &format!(
            "  {:8.1} us {:6.1} GMAC/s {share:4.0} %  {:<44} {}\n",
            layer.us,
            layer.gmac_per_second(),
            layer.what,
            layer.node
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_with_most_time_above_the_limit_comes_first() {
        let layer = |what: &str, class, macs, us| Layer {
            node: String::new(),
            what: what.to_owned(),
            class,
            macs,
            bytes: 1,
            us,
        };
        let layers = Layers {
            runs: 1,
            run_us: 300.0,
            layers: vec![
                layer("near the limit", Class::Dense, 18_000_000, 200.0),
                layer("far from it", Class::Dense, 1_000_000, 60.0),
                layer("moves", Class::Other, 0, 10.0),
            ],
        };
        let limit = Reached {
            avx512_vnni: Some(100.0),
            avx_vnni: None,
            avx2: None,
            avx2_exact: None,
            l2: 1.0,
            memory: 1.0,
        };
        let text = lost(&layers, &limit);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("dense 260 us at 73 % of the limit"), "{text}");
        assert!(lines[1].contains("far from it") && lines[2].contains("near"), "{text}");
    }
}
