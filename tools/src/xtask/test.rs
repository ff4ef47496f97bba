//! `cargo xtask test`: every stage that CI runs, counted and timed. A stage that cannot run has failed.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use kmod_sim::kernel::Isa;

use crate::book;
use crate::child;
use crate::gate;
use crate::loom;
use crate::models::{self, Set};
use crate::random;
use crate::setup::{self, Python, cargo};
use crate::simulator::Simulator;
use crate::tally::Tally;
use crate::vm;

/// One stage: what it is called, what kind of test it holds, and how to run it.
struct Stage {
    name: &'static str,
    kind: &'static str,
    run: Box<dyn Fn() -> Result<Tally>>,
}

impl Stage {
    fn new(
        name: &'static str,
        kind: &'static str,
        run: impl Fn() -> Result<Tally> + 'static,
    ) -> Self {
        Self { name, kind, run: Box::new(run) }
    }
}

/// Cheap ones first, so that a slip shows early; the plugin's last, since they need all the rest.
fn stages(all: bool) -> Vec<Stage> {
    let models = if all { Set::All } else { Set::of_tests() };
    let mut stages = vec![
        Stage::new("fmt", "lint", || check(cargo().args(["fmt", "--all", "--check"]), 2)),
        Stage::new("clippy", "lint", clippy),
        Stage::new("unit tests", "unit", || some(tests(&["--lib", "--bins"])?)),
        Stage::new("stack tests", "integration", stack),
        Stage::new("doc tests", "doc", || tests(&["--doc"])),
        Stage::new("rustdoc", "lint", rustdoc),
        Stage::new("book --check", "lint", || book::run(&setup::root(), true).map(|()| Tally::ONE)),
        Stage::new("loom", "model check", || loom::run(false).map(Tally::of)),
        Stage::new("loom --weaken", "model check", || loom::run(true).map(Tally::of)),
        Stage::new("npu selftest", "device", selftest),
        Stage::new("plugin build", "build", || setup::plugin().map(|_| Tally::ONE)),
        Stage::new("npu-smi", "tool", smi),
        Stage::new("vm", "guest", vm::run),
        Stage::new("models", "build", move || models::run(models).map(|()| Tally::ONE)),
        Stage::new("instructions", "gate", || gate::run(false).map(Tally::of)),
        Stage::new("plugin tests", "plugin", move || plugin_tests(&PluginTests::new(all))),
        Stage::new("  over a socket", "plugin", move || over_vfio_user(all)),
        Stage::new("random models", "plugin", random::fixed),
    ];
    stages.extend(setup::OTHER_WHEELS.map(|version| {
        Stage::new(version, "plugin", move || {
            let tests = PluginTests { wheel: Some(version), ..PluginTests::new(all) };
            plugin_tests(&if all { tests } else { tests.only(OF_EACH_WHEEL) })
        })
    }));
    if all {
        // Those before used the best kernels.
        let others = Isa::ALL.into_iter().filter(|&isa| isa != Isa::best() && isa.is_available());
        stages.extend(others.map(|isa| {
            Stage::new(isa.name(), "plugin", move || {
                let tests = PluginTests { isa: Some(isa.name()), ..PluginTests::new(true) };
                plugin_tests(&tests.only(OF_EACH_ISA))
            })
        }));
        stages.push(Stage::new("  new ones", "plugin", random::new_ones));
        stages.push(Stage::new("pages", "browser", pages));
    }
    stages
}

/// What CI runs with the other wheels: where versions of ONNX Runtime differ for a provider.
const OF_EACH_WHEEL: &[&str] = &["test_lifecycle.py", "test_context.py", "test_wheels.py"];

/// What is run with the kernels that are not the best ones here.
const OF_EACH_ISA: &[&str] =
    &["test_exact.py", "test_layers.py", "test_moves.py", "test_tables.py"];

/// Which kernels the tests of kernels have run, and which they could not.
fn kernels() -> String {
    let names = |available: bool| {
        let some = Isa::ALL.into_iter().filter(|isa| isa.is_available() == available);
        some.map(Isa::name).collect::<Vec<_>>().join(", ")
    };
    match names(false) {
        none if none.is_empty() => format!("kernels tested: {}\n", names(true)),
        lacking => format!(
            "kernels tested: {}; NOT tested, as this processor lacks them: {lacking}\n",
            names(true)
        ),
    }
}

/// Runs all stages, also after a failure, and prints the table.
pub(crate) fn run(all: bool) -> Result<ExitCode> {
    let mut total = Tally::default();
    let mut table = format!(
        "{:<16} {:<12} {:>6} {:>6} {:>7} {:>8}\n",
        "stage", "kind", "passed", "failed", "skipped", "seconds"
    );
    for stage in &stages(all) {
        println!("\n== {} ==", stage.name);
        let start = Instant::now();
        let tally = (stage.run)().unwrap_or_else(|error| {
            println!("{} could not finish: {error:#}", stage.name);
            Tally::default().unless_failed(false)
        });
        let seconds = start.elapsed().as_secs_f64();
        let Tally { passed, failed, skipped } = tally;
        table += &format!(
            "{:<16} {:<12} {passed:>6} {failed:>6} {skipped:>7} {seconds:>8.1}\n",
            stage.name, stage.kind
        );
        total += tally;
    }
    print!("\n{table}\n{}", kernels());
    if total.skipped > 0 {
        println!(
            "{} tests were skipped, which counts as a failure: a part that cannot run is not known to work",
            total.skipped
        );
    }
    println!("{} passed, {} failed", total.passed, total.failed + total.skipped);
    Ok(if total.failed + total.skipped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is off by default, and tested all the same.
const HOST_ENGINES: &str = "ep-npu/rten";
/// Tests that need the virtual machine.
const GUEST: &str = "npu-tests/guest";

fn clippy() -> Result<Tally> {
    let all = ["clippy", "--workspace", "--features", HOST_ENGINES, "--features", GUEST];
    check(cargo().args(all).args(["--all-targets", "--", "-D", "warnings"]), 20)
}

fn rustdoc() -> Result<Tally> {
    check(cargo().env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps"]), 15)
}

fn selftest() -> Result<Tally> {
    check(
        cargo().args(["run", "--release", "-p", "npu-tools", "--bin", "npu", "--", "selftest"]),
        15,
    )
}

/// The plugin's tests on a device in a process of its own.
fn over_vfio_user(all: bool) -> Result<Tally> {
    let simulator = Simulator::start()?;
    plugin_tests(&PluginTests { device: simulator.device(), ..PluginTests::new(all) })
}

/// Which of the plugin's tests are run, and with what.
struct PluginTests {
    /// A device string.
    device: String,
    /// The version of ONNX Runtime, unless it is the pinned one.
    wheel: Option<&'static str>,
    /// The kernels, unless they are the best ones.
    isa: Option<&'static str>,
    /// Files; all when there are none.
    files: &'static [&'static str],
    /// Whether all models are compared.
    all: bool,
}

impl PluginTests {
    fn new(all: bool) -> Self {
        Self { device: "sim".into(), wheel: None, isa: None, files: &[], all }
    }

    fn only(self, files: &'static [&'static str]) -> Self {
        Self { files, ..self }
    }
}

fn plugin_tests(tests: &PluginTests) -> Result<Tally> {
    let python = match tests.wheel {
        None => Python::ready()?,
        Some(version) => Python::with_wheel(version)?,
    };
    let mut command = python.command();
    let library = setup::plugin()?;
    command.env("NPU_TOOL", library.with_file_name("npu"));
    command.env("NPU_EP_LIBRARY", library).env("NPU_DEVICE", &tests.device);
    if let Some(isa) = tests.isa {
        command.env("NPU_ISA", isa);
    }
    if tests.all {
        command.env("NPU_MODELS", "all");
    }
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]);
    let folder = Path::new("tests/plugin");
    match tests.files {
        [] => command.arg(folder),
        files => command.args(files.iter().map(|file| folder.join(file))),
    };
    let finished = child::run(&mut command, minutes(if tests.all { 240 } else { 15 }))?;
    some(Tally::of_pytest(&finished.stdout).unless_failed(finished.success))
}

/// `npu-smi` on real servers, in real terminals, its reports in the parsers that they are for.
fn smi() -> Result<Tally> {
    let mut command = Python::for_smi()?.command();
    command.env("NPU_TOOL", setup::plugin()?.with_file_name("npu"));
    // An application of ONNX Runtime, which the environment of these tests does not have.
    command.env("NPU_PYTHON", Python::ready()?.command().get_program());
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/smi"]);
    let finished = child::run(&mut command, minutes(15))?;
    some(Tally::of_pytest(&finished.stdout).unless_failed(finished.success))
}

/// What tools write for a browser, in one.
fn pages() -> Result<Tally> {
    let mut command = Python::ready()?.command();
    command.env("NPU_TOOL", setup::plugin()?.with_file_name("npu"));
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/browser"]);
    let finished = child::run(&mut command, minutes(10))?;
    some(Tally::of_pytest(&finished.stdout).unless_failed(finished.success))
}

/// Driver against device; the tests that run over each transport must be as many over one as over
/// the other.
fn stack() -> Result<Tally> {
    let finished = cargo_test(&["--test", "*"])?;
    let over = |transport: &str| {
        let is_pass = |line: &&str| line.contains(transport) && line.ends_with("... ok");
        finished.stdout.lines().filter(is_pass).count()
    };
    let (sim, vfio_user) = (over("::sim::"), over("::vfio_user::"));
    println!("passed over each transport: sim {sim}, vfio-user {vfio_user}");
    ensure!(sim == vfio_user && sim > 0, "the transports did not pass the same tests");
    print_fault_matrix();
    some(Tally::of_cargo(&finished.stdout).unless_failed(finished.success))
}

/// Prints what `tests/stack/matrix.rs` found, which a test that passes does not show.
fn print_fault_matrix() {
    for transport in ["sim", "vfio-user"] {
        let file = setup::target().join(format!("tmp/fault-matrix-{transport}.txt"));
        match std::fs::read_to_string(&file) {
            Ok(table) => println!("injected faults over {transport}\n{table}"),
            Err(error) => println!("no table of injected faults in {}: {error}", file.display()),
        }
    }
}

/// The workspace's tests that `selection` picks, all of them even after a failure.
fn tests(selection: &[&str]) -> Result<Tally> {
    let finished = cargo_test(selection)?;
    Ok(Tally::of_cargo(&finished.stdout).unless_failed(finished.success))
}

/// Where the properties' random cases begin unless the environment says otherwise: a gate must give
/// the same answer twice. Other cases are tried by hand, with another number in [`SEED`].
const FIRST_SEED: &str = "20261122";

/// What proptest reads its seed from.
const SEED: &str = "PROPTEST_RNG_SEED";

fn cargo_test(selection: &[&str]) -> Result<child::Finished> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--features", HOST_ENGINES, "--no-fail-fast"]);
    command.args(selection);
    if std::env::var_os(SEED).is_none() {
        println!("random cases from {SEED}={FIRST_SEED}");
        command.env(SEED, FIRST_SEED);
    }
    child::run(&mut command, minutes(20))
}

/// Refuses a stage that ran nothing: a filter or a path that went wrong must not look like success.
fn some(tally: Tally) -> Result<Tally> {
    ensure!(tally != Tally::default(), "no test was found");
    Ok(tally)
}

fn check(command: &mut Command, limit_minutes: u64) -> Result<Tally> {
    child::check(command, minutes(limit_minutes)).map(|_| Tally::ONE)
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}
