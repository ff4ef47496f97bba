//! `npu-sim` as a child of this program, for the tests that want the device in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::child;
use crate::setup::cargo;

/// From start to ready; it takes milliseconds.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A running server, killed when dropped.
pub(crate) struct Simulator {
    child: Child,
    socket: PathBuf,
    manage: PathBuf,
    function: PathBuf,
}

impl Simulator {
    /// Builds the server and starts it on a socket of its own.
    pub(crate) fn start() -> Result<Self> {
        child::check(
            cargo().args(["build", "--release", "-p", "kmod-sim", "--bin", "npu-sim"]),
            Duration::from_secs(10 * 60),
        )?;
        let program = std::env::current_exe().context("cannot find where this program lies")?;
        Self::run(&program.with_file_name("npu-sim"), "")
    }

    /// Starts `program`, a server, on a socket of its own, with devices that `options` say.
    pub(crate) fn run(program: &Path, options: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("npu-sim-{}-{number}", std::process::id());
        let socket = std::env::temp_dir().join(&name).with_extension("sock");
        let (manage, function) =
            (socket.with_extension("manage"), socket.with_extension("function"));
        let mut child = Command::new(program)
            .arg("--socket")
            .arg(&socket)
            .arg("--manage")
            .arg(&manage)
            .arg("--manage-function")
            .arg(&function)
            .args(["--device", options])
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take();
        let simulator = Self { child, socket, manage, function };
        let output = output.context("the server's output is piped")?;
        let (ready, is_ready) = mpsc::channel();
        // Ends with the line or with the server, whichever is first.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(output).read_line(&mut line);
            let _ = ready.send(read.map(|_| line));
        });
        let line = is_ready
            .recv_timeout(READY_LIMIT)
            .context("npu-sim did not say that it is ready")?
            .context("cannot read what npu-sim says")?;
        ensure!(line.starts_with("listening on"), "npu-sim said {line:?}, not that it is ready");
        Ok(simulator)
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where its management function listens.
    pub(crate) fn function(&self) -> &Path {
        &self.function
    }

    /// What it answers to `request`, a JSON object, where it is managed.
    pub(crate) fn ask(&self, request: &str) -> Result<serde_json::Value> {
        let mut stream = UnixStream::connect(&self.manage).context("npu-sim is not managed")?;
        stream.set_read_timeout(Some(READY_LIMIT))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).context("npu-sim does not answer")?;
        serde_json::from_str(&line).with_context(|| format!("npu-sim answered {line:?}"))
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill npu-sim")?;
        self.child.wait().context("cannot wait for npu-sim")?;
        Ok(())
    }

    /// What names its devices.
    pub(crate) fn device(&self) -> String {
        format!("vfio-user:{}", self.socket.display())
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // It may have ended by itself, which the tests have then seen.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(&self.manage);
        let _ = std::fs::remove_file(&self.function);
    }
}
