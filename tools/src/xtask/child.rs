//! Child processes with a deadline: what they print is shown and kept, and none outlives its limit.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{self, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// After a kill, how long the pipes may stay open before this process gives up too.
const GRACE: Duration = Duration::from_secs(10);

/// A child that ended by itself, within its limit.
pub(crate) struct Finished {
    /// Whether it exited with zero.
    pub(crate) success: bool,
    /// All it printed on standard output; standard error went straight to ours.
    pub(crate) stdout: String,
}

/// Runs `command`, showing its output as it comes. An error when it cannot start or outlives `limit`.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    println!("$ {}", shown(command));
    watched(command, limit, true)
}

/// Runs `command` without showing what it prints, which is for this program alone. A non-zero exit is an
/// error too.
pub(crate) fn quietly(command: &mut Command, limit: Duration) -> Result<String> {
    let finished = watched(command, limit, false)?;
    ensure!(finished.success, "`{}` failed:\n{}", shown(command), finished.stdout);
    Ok(finished.stdout)
}

fn watched(command: &mut Command, limit: Duration, is_shown: bool) -> Result<Finished> {
    let line = shown(command);
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let pipe = child.stdout.take().context("the child has no standard output")?;
    let (finished, watched) = mpsc::channel();
    let pid = child.id();
    let watchdog = thread::spawn(move || watch(pid, limit, &watched));
    let mut stdout = String::new();
    for text in BufReader::new(pipe).split(b'\n') {
        let text = text.with_context(|| format!("cannot read the output of `{line}`"))?;
        let text = String::from_utf8_lossy(&text);
        if is_shown {
            println!("{text}");
        }
        stdout.push_str(&text);
        stdout.push('\n');
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    drop(finished);
    let killed = watchdog.join().unwrap_or(false);
    ensure!(
        !killed,
        "`{line}` ran for {:?}, over its limit of {limit:?}, and was killed",
        start.elapsed()
    );
    Ok(Finished { success: status.success(), stdout })
}

/// As [`run`], and a non-zero exit is an error too.
pub(crate) fn check(command: &mut Command, limit: Duration) -> Result<String> {
    let finished = run(command, limit)?;
    if !finished.success {
        bail!("`{}` failed; its output is above", shown(command));
    }
    Ok(finished.stdout)
}

/// Kills the child and all it started once `limit` has passed. Returns whether it had to.
fn watch(pid: u32, limit: Duration, finished: &Receiver<()>) -> bool {
    if finished.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
        return false;
    }
    kill(&family(pid));
    if finished.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
        eprintln!(
            "a killed child's output is still held open by a process it left behind; giving up"
        );
        process::exit(1);
    }
    true
}

/// The process and all its descendants, by the parents that `/proc` names.
fn family(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent(&stat) {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(id) = found.get(next) {
        found.extend(children.remove(id).unwrap_or_default());
        next += 1;
    }
    found
}

/// The parent in a line of `/proc/<pid>/stat`: the second field after the name, which ends with the last `)`.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn kill(pids: &[u32]) {
    let list: Vec<String> = pids.iter().map(u32::to_string).collect();
    // The shell's own `kill`: minimal systems have no program of that name.
    let killed = Command::new("sh").arg("-c").arg(format!("kill -9 {}", list.join(" "))).status();
    if let Err(error) = killed {
        eprintln!("cannot kill {list:?}: {error}");
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_exit_code_come_back() {
        let finished =
            run(&mut shell("echo one; echo two; exit 3"), Duration::from_secs(60)).unwrap();
        assert_eq!(finished.stdout, "one\ntwo\n");
        assert!(!finished.success);
    }

    #[test]
    fn a_hung_child_is_killed_with_its_children() {
        let start = Instant::now();
        let error =
            check(&mut shell("sleep 600 & sleep 601"), Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("over its limit of 200ms"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_name_with_a_bracket_does_not_hide_the_parent() {
        assert_eq!(parent("7 (odd) name)) S 41 7 7 0"), Some(41));
    }
}
