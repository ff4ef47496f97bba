//! `npu-sim` as a child of this program, for the tests that want the device in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
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
}

impl Simulator {
    /// Builds the server and starts it on a socket of its own.
    pub(crate) fn start() -> Result<Self> {
        child::check(
            cargo().args(["build", "--release", "-p", "kmod-sim", "--bin", "npu-sim"]),
            Duration::from_secs(10 * 60),
        )?;
        let program = std::env::current_exe().context("cannot find where this program lies")?;
        let program = program.with_file_name("npu-sim");
        let socket = std::env::temp_dir().join(format!("npu-sim-{}.sock", std::process::id()));
        let mut child = Command::new(&program)
            .arg("--socket")
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take();
        let simulator = Self { child, socket };
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
    }
}
