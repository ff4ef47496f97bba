//! `npu compile`: a model to the program files that `npu objdump` reads.

use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;

use crate::model::{self, ModelArgs};

/// Compile a model to program files.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Where to write the program; with a number before the ending where the model is several.
    /// The model's name in the current folder if not given.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Compiles as `args` say.
pub(crate) fn run(args: &Args) -> Result<()> {
    let planned = args.model.plan()?;
    println!("{}", planned.plan.summary(&planned.graph));
    ensure!(
        !planned.plan.groups.is_empty(),
        "nothing to compile: the NPU takes no node; `npu explain` says why for each"
    );
    let programs = planned.compile()?;
    let beside = || args.model.model.with_extension("npu").file_name().map(PathBuf::from);
    let output = args.output.clone().or_else(beside).context("the model's path has no name")?;
    for (index, program) in programs.iter().enumerate() {
        let path = model::program_path(&output, index, programs.len());
        let bytes = program.container.to_bytes();
        std::fs::write(&path, &bytes)
            .with_context(|| format!("cannot write {}; name a file with -o", path.display()))?;
        println!(
            "{}: {} bytes, {} commands, {} cycles",
            path.display(),
            bytes.len(),
            program.container.image.commands.len(),
            program.cycles()
        );
    }
    Ok(())
}
