//! `cargo xtask bench`: the plugin and what a user would pick instead, on the same cores, beside what
//! the machine can do at most.
//!
//! ```text
//! limits (this process) -> peers (tools/python/npu_bench) -> table
//!                       -> layers (`npu run --layers`)    -> shares, rooflines
//!                                                         -> one JSON file of all
//! ```
//!
//! Figures, no verdict: but it fails where a value differs from the CPU provider's.

#[path = "bench/layers.rs"]
mod layers;
#[path = "bench/limits.rs"]
mod limits;
#[path = "bench/roofline.rs"]
mod roofline;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::child;
use crate::setup::{self, Python};

/// All cases with all threads take about ten minutes on a quiet machine.
const LIMIT: Duration = Duration::from_secs(90 * 60);

/// What is measured, and for how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these, with commas between; a name that does not exist prints all there are.
    #[arg(long)]
    models: Option<String>,
    /// Rounds of each case: in each, every runtime runs in turn.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pairs: u32,
    /// Numbers of threads, with commas between.
    #[arg(long, default_value = "1,2")]
    threads: String,
    /// Most seconds for the rounds of one case, which then has fewer.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Where all figures are written.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the layers out.
    #[arg(long)]
    no_layers: bool,
    /// Where the rooflines are drawn; beside the JSON file if not given.
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
}

/// Does all the set-up, measures, prints, and writes the file.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let python = Python::with_peers()?;
    println!("building the plugin");
    let library = setup::plugin()?;
    let folder = setup::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let limits = limits::measure()?;
    println!("\n{limits}");

    let compared = folder.join("compared.json");
    let mut command = python.command();
    command.args(["-m", "npu_bench"]).arg(setup::models()).arg("--plugin").arg(&library);
    command.arg("--models").arg(args.models.as_deref().unwrap_or_default());
    command.args(["--threads", &args.threads, "--pairs", &args.pairs.to_string()]);
    command.args(["--seconds", &args.seconds.to_string(), "--json"]).arg(&compared);
    let finished = child::run(&mut command, LIMIT)?;

    let read =
        fs::read(&compared).with_context(|| format!("cannot read {}", compared.display()))?;
    let mut report: Value = serde_json::from_slice(&read).context("the comparison is no JSON")?;
    report["limits"] = json!(limits);
    if !args.no_layers {
        let images = args.images.as_deref().unwrap_or(&folder);
        let tool = library.with_file_name("npu");
        let timed = layers::measure(&tool, &python, &cases(&report), &folder, &limits)?;
        for model in &timed {
            let path = images.join(format!("roofline-{}.svg", model.name));
            fs::write(&path, roofline::draw(model, &limits))
                .with_context(|| format!("cannot write {}", path.display()))?;
            println!("drawn: {}", path.display());
        }
        report["layers"] = json!(timed);
    }
    let path = args.json.clone().unwrap_or_else(|| folder.join("bench.json"));
    fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("all figures: {}", path.display());
    Ok(if finished.success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The models that were compared, each once; batches have the same layers.
fn cases(report: &Value) -> Vec<layers::Wanted> {
    let mut out: Vec<layers::Wanted> = Vec::new();
    for result in report["results"].as_array().into_iter().flatten() {
        let (Some(name), Some(file)) = (result["case"].as_str(), result["file"].as_str()) else {
            continue;
        };
        if result["batch"] == 1 && out.iter().all(|wanted| wanted.name != name) {
            out.push(layers::Wanted { name: name.to_owned(), file: PathBuf::from(file) });
        }
    }
    out
}
