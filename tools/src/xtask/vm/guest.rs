//! What the guest does: steps, one after another, told on its console in lines that begin with `@@`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::machine::{Machine, Parts};
use super::tools::Tools;
use crate::tally::Tally;

/// From power to the first step.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// From the last step to the end.
const OFF_LIMIT: Duration = Duration::from_secs(30);

/// What is said of a guest that ends before its steps.
pub(crate) const ENDED: &str = "the guest ended";

/// Lines with what the guest asks of the host begin so.
const ORDER: &str = "@@host ";

/// A program that the guest runs.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    /// How long it may take.
    limit: Duration,
    run: Vec<String>,
    environment: Vec<String>,
}

impl Step {
    pub(crate) fn new(name: &str, limit: Duration, run: &[&str]) -> Self {
        let run = run.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), limit, run, environment: vec!["RUST_BACKTRACE=1".into()] }
    }

    /// With `variable`, `KEY=VALUE`, in its environment.
    pub(crate) fn with(mut self, variable: &str) -> Self {
        self.environment.push(variable.to_owned());
        self
    }
}

/// The plan, as the guest reads it.
pub(crate) fn plan(steps: &[Step], huge_pages: u32) -> serde_json::Value {
    let steps = steps.iter().map(|step| {
        serde_json::json!({
            "name": step.name, "run": step.run, "environment": step.environment,
        })
    });
    serde_json::json!({ "huge_pages": huge_pages, "steps": steps.collect::<Vec<_>>() })
}

/// How a step ended.
pub(crate) struct Ended {
    pub(crate) name: String,
    pub(crate) tally: Tally,
    pub(crate) seconds: f64,
}

/// Whoever does what the guest asks of the host.
pub(crate) type Host<'a> = &'a mut dyn FnMut(&str) -> Result<()>;

/// A guest that takes its steps.
pub(crate) struct Guest<'a> {
    machine: Machine,
    steps: &'a [Step],
}

impl<'a> Guest<'a> {
    /// Turns the machine on.
    pub(crate) fn start(tools: &Tools, parts: &Parts<'_>, steps: &'a [Step]) -> Result<Self> {
        let started = Instant::now();
        let mut machine = Machine::start(tools, parts)?;
        let deadline = started + BOOT_LIMIT;
        loop {
            let line = machine.line(deadline)?.context("the virtual machine ended at once")?;
            println!("guest| {line}");
            if line.starts_with("@@ failed") {
                bail!("the guest could not start: {line}");
            }
            if let Some(bound) = line.strip_prefix("@@ bound") {
                let count = bound.split_whitespace().count();
                let wanted = parts.sockets.len();
                ensure!(count == wanted, "the guest found {count} NPUs of {wanted}");
                break;
            }
        }
        println!("the guest is up after {:.1} s", started.elapsed().as_secs_f64());
        Ok(Self { machine, steps })
    }

    /// A guest that is up, in a machine that is what a test made of it.
    #[cfg(test)]
    pub(crate) fn of_test(machine: Machine) -> Self {
        Self { machine, steps: &[] }
    }

    /// Takes every step.
    ///
    /// `host` does what the guest asks of it.
    pub(crate) fn run(mut self, host: Host<'_>) -> Result<Vec<Ended>> {
        let steps = self.steps;
        let ended = steps.iter().map(|step| self.step(step, host)).collect::<Result<Vec<_>>>()?;
        let deadline = Instant::now() + OFF_LIMIT;
        while let Some(line) = self.machine.line(deadline)? {
            println!("guest| {line}");
        }
        Ok(ended)
    }

    /// Reads on until a line is `what`; at most for `limit`.
    pub(crate) fn until(&mut self, what: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.within_step(deadline)? != what {}
        Ok(())
    }

    /// What the guest asks of the host next, in the step that runs.
    pub(crate) fn order(&mut self, deadline: Instant) -> Result<String> {
        loop {
            if let Some(order) = self.within_step(deadline)?.strip_prefix(ORDER) {
                return Ok(order.to_owned());
            }
        }
    }

    fn within_step(&mut self, deadline: Instant) -> Result<String> {
        let line = self.machine.line(deadline)?.context(ENDED)?;
        println!("guest| {line}");
        ensure!(!line.starts_with("@@ end"), "the guest came to the end of its step: {line}");
        Ok(line)
    }

    /// The machine that it runs on.
    pub(crate) fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    fn step(&mut self, step: &Step, host: Host<'_>) -> Result<Ended> {
        let started = Instant::now();
        let mut output = String::new();
        loop {
            let line = self.machine.line(started + step.limit);
            let line = line.with_context(|| format!("in the step `{}`", step.name))?;
            let line = line.with_context(|| format!("{ENDED} in `{}`", step.name))?;
            println!("guest| {line}");
            if let Some(order) = line.strip_prefix(ORDER) {
                host(order)?;
                continue;
            }
            if let Some(code) = line.strip_prefix(&format!("@@ end {}", step.name)) {
                let is_passed = code.trim() == "0";
                let seconds = started.elapsed().as_secs_f64();
                let tally = tally(&output).unless_failed(is_passed);
                return Ok(Ended { name: step.name.clone(), tally, seconds });
            }
            output += &line;
            output.push('\n');
        }
    }
}

/// What a step's output counts: tests as the test harness has them, else itself.
fn tally(output: &str) -> Tally {
    match Tally::of_cargo(output) {
        none if none == Tally::default() => Tally::ONE,
        some => some,
    }
}
