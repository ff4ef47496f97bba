//! `cargo xtask gate`: what the code costs in instructions, against what is stored. A clock says little on
//! a machine that others use; instructions are the same each time.
//!
//! ```text
//! this process: valgrind ── the same program as `gate-cases` ── one profile a case ── counts
//! ```
//!
//! Valgrind has no AVX-512, and containers seldom have counters of the processor. So this holds the scalar
//! kernels, those on AVX2, and the way of a job and of a model; what else has vectors is what
//! `cargo xtask bench` is for.

#[path = "gate/cases.rs"]
mod cases;
#[path = "gate/chain.rs"]
mod chain;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use kmod_sim::kernel::Isa;

use crate::child;
use crate::models::{self, Set};
use crate::setup;

pub(crate) use cases::run as cases;

const LIMIT: Duration = Duration::from_secs(10 * 60);
const STORED: &str = "tests/instructions.txt";
/// A change that is none: hash tables begin with another number each time.
const SAME: f64 = 0.05;
/// Times the instructions for twenty times the nodes; some are for sorting.
const MOST_GROWTH: f64 = 22.0;
/// What another compiler or C library may change.
const SAME_ELSEWHERE: f64 = 0.25;

/// Counts, compares with what is stored, and prints both; with `store`, stores instead. Gives the number
/// of cases; a case that costs more than is allowed is an error.
pub(crate) fn run(store: bool) -> Result<usize> {
    models::run(Set::Demo)?;
    let found = count()?;
    check_growth(&found)?;
    let path = setup::root().join(STORED);
    let compiler = compiler()?;
    if store {
        let mut text = format!(
            "# Instructions of each case of `cargo xtask gate`, stored by `--store`.\n{compiler}\n"
        );
        for (name, count) in &found {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}: {count}");
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("stored {} counts in {STORED}", found.len());
        return Ok(found.len());
    }
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let stored = Stored::parse(&text)?;
    let same = if stored.compiler == compiler { SAME } else { SAME_ELSEWHERE };
    if stored.compiler != compiler {
        println!(
            "stored with {}, this is {compiler}: {:.0} % are allowed",
            stored.compiler,
            100.0 * same
        );
    }
    let (table, wrong) = stored.compare(&found, same);
    println!("{table}");
    ensure!(
        wrong.is_empty(),
        "{} cost more than {:.0} % above what is stored, or are not stored: {}; make them cheaper, or say why and run \
         `cargo xtask gate --store`",
        wrong.len(),
        100.0 * same,
        wrong.join(", ")
    );
    Ok(found.len())
}

/// Holds the compiler to work that grows as a model does: twenty times the nodes cost no more than that.
fn check_growth(found: &[(String, u64)]) -> Result<()> {
    let count = |nodes: usize| {
        let name = cases::chain_name(nodes);
        let case = found.iter().find(|(found, _)| *found == name);
        case.map(|&(_, count)| count).with_context(|| format!("`{name}` was not counted"))
    };
    let [few, many] = cases::CHAINS;
    let times = change(count(few)?, count(many)?) + 1.0;
    println!("a chain of {many} nodes takes {times:.1} times the instructions of one of {few}");
    ensure!(
        times < MOST_GROWTH,
        "that is more than {MOST_GROWTH}: a stage of the compiler looks at all nodes for each; \
         `callgrind_annotate` on the profiles in target/gate shows which"
    );
    Ok(())
}

/// What `tests/instructions.txt` holds.
struct Stored {
    compiler: String,
    counts: BTreeMap<String, u64>,
}

impl Stored {
    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let compiler = lines.next().with_context(|| format!("{STORED} is empty"))?.to_owned();
        let count = |line: &str| -> Result<(String, u64)> {
            let parts =
                line.rsplit_once(": ").and_then(|(name, count)| Some((name, count.parse().ok()?)));
            let (name, count) =
                parts.with_context(|| format!("{STORED}: `{line}` is not `name: count`"))?;
            Ok((name.to_owned(), count))
        };
        Ok(Self { compiler, counts: lines.map(count).collect::<Result<_>>()? })
    }

    /// The table, and the cases that cost too much.
    fn compare(&self, found: &[(String, u64)], same: f64) -> (String, Vec<String>) {
        let (mut wrong, mut table) = (Vec::new(), String::new());
        let _ = writeln!(table, "{:<34} {:>12} {:>12} {:>8}", "case", "stored", "found", "change");
        for (name, count) in found {
            let (stored, change) = match self.counts.get(name) {
                Some(&stored) => (stored.to_string(), change(stored, *count)),
                None => ("-".to_owned(), f64::INFINITY),
            };
            let _ =
                writeln!(table, "{name:<34} {stored:>12} {count:>12} {:>+7.1}%", 100.0 * change);
            if change > same {
                wrong.push(name.clone());
            }
        }
        (table, wrong)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share, of which three digits are shown")]
fn change(stored: u64, found: u64) -> f64 {
    found as f64 / stored.max(1) as f64 - 1.0
}

fn compiler() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = Command::new(rustc).arg("-V").output().context("cannot run rustc")?;
    Ok(String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

/// Each case by name with its instructions, in the order in which they run; those of AVX2 behind the scalar
/// ones.
fn count() -> Result<Vec<(String, u64)>> {
    let mut counts = count_of(Isa::Scalar)?;
    if Isa::Avx2.is_available() {
        let with = count_of(Isa::Avx2)?.into_iter();
        counts.extend(with.map(|(name, count)| (format!("{name}, {}", Isa::Avx2.name()), count)));
    } else {
        println!("this processor lacks AVX2: its kernels are not counted");
    }
    Ok(counts)
}

/// Each case with the kernels of `isa`.
fn count_of(isa: Isa) -> Result<Vec<(String, u64)>> {
    let version = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        bail!(
            "there is no valgrind, which counts the instructions: run `apt-get install valgrind`"
        );
    }
    let folder = setup::target().join("gate").join(isa.name());
    // Profiles of an earlier run would be taken for this one's.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let profile = folder.join("profile");
    // As it is built beside the plugin: that may have replaced the file that this process is of.
    let program = setup::plugin()?.with_file_name("xtask");
    let mut command = Command::new("valgrind");
    command.env("NPU_ISA", isa.name());
    command.args(["--tool=callgrind", "--quiet", "--collect-jumps=no", "--compress-strings=no"]);
    command.arg(format!("--dump-after=*{}*", cases::MARK));
    command.arg(format!("--callgrind-out-file={}", profile.display()));
    command.arg(program).arg("gate-cases").arg(setup::models().join("digits.qdq-pc.onnx"));
    let names = child::check(&mut command, LIMIT)?;
    let names = names.lines().filter_map(|line| line.strip_prefix(cases::PREFIX));
    names
        .enumerate()
        .map(|(place, name)| Ok((name.to_owned(), instructions(&profile, 2 * place + 2)?)))
        .collect()
}

/// The sum in profile `number`, which ends with `totals: 123`. There are two a case: what came before it, and it.
fn instructions(profile: &Path, number: usize) -> Result<u64> {
    let path = PathBuf::from(format!("{}.{number}", profile.display()));
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
    let total = total.and_then(|total| total.trim().parse().ok());
    let total = total.with_context(|| format!("{} has no sum", path.display()))?;
    ensure!(
        total > 0,
        "{} counted nothing: the function that is counted was not found",
        path.display()
    );
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_more_or_is_new_is_named_and_what_costs_less_is_not() {
        let stored = Stored::parse("# words\nrustc 1\na: 1000\nb: 1000\nc, 3x3: 1000\n").unwrap();
        let found = [("a", 1049), ("b", 1051), ("c, 3x3", 10), ("d", 5)];
        let found = found.map(|(name, count)| (name.to_owned(), count));
        let (table, wrong) = stored.compare(&found, SAME);
        assert_eq!(wrong, ["b", "d"]);
        assert!(table.contains("+4.9%") && table.contains("-99.0%"), "{table}");
        assert!(Stored::parse("rustc 1\nno count\n").is_err());
    }
}
