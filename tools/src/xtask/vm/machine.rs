//! A virtual machine: QEMU as a child process, its console read line by line, each wait with a deadline.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::tools::Tools;

/// How long QEMU may take to answer on its control socket.
const CONTROL_LIMIT: Duration = Duration::from_secs(20);

/// What a machine is made of.
pub(crate) struct Parts<'a> {
    /// The first file system.
    pub(crate) archive: &'a Path,
    /// The socket behind each NPU, and behind management functions after them; the first is at slot
    /// [`FIRST_SLOT`], the others follow.
    pub(crate) sockets: &'a [PathBuf],
    /// Where QEMU is to listen for [`Machine::reset`].
    pub(crate) control: &'a Path,
    /// Whether a reset starts the machine anew, not ends it.
    pub(crate) may_reset: bool,
}

/// Where on the bus the first NPU is.
pub(crate) const FIRST_SLOT: usize = 4;

/// The address of what is behind socket `index`.
pub(crate) fn address(index: usize) -> String {
    format!("0000:00:{:02x}.0", FIRST_SLOT + index)
}

/// A running machine. It ends when this is dropped.
pub(crate) struct Machine {
    child: Child,
    lines: Receiver<String>,
    control: PathBuf,
    /// The console's last lines, for whoever asks what went wrong.
    last: Vec<String>,
}

impl Machine {
    /// Turns a machine on.
    pub(crate) fn start(tools: &Tools, parts: &Parts<'_>) -> Result<Self> {
        let mut command = tools.qemu();
        arrange(&mut command, parts);
        command.arg("-kernel").arg(tools.kernel()).arg("-initrd").arg(parts.archive);
        Self::run(command, parts.control)
    }

    /// Runs `command`, which is QEMU but in tests of what is made of its end.
    pub(crate) fn run(mut command: Command, control: &Path) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start QEMU")?;
        let console = child.stdout.take().context("QEMU's output is piped")?;
        let errors = child.stderr.take().context("QEMU's errors are piped")?;
        let (sender, lines) = channel();
        let of_errors = sender.clone();
        // Both end with QEMU.
        thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                // Nobody listens any more once it is turned off.
                let _ = sender.send(line);
            }
        });
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                let _ = of_errors.send(format!("qemu: {line}"));
            }
        });
        let control = control.to_owned();
        Ok(Self { child, lines, control, last: Vec::new() })
    }

    /// The console's next line; `None` when the machine is off.
    ///
    /// # Errors
    /// Nothing came before `deadline`.
    pub(crate) fn line(&mut self, deadline: Instant) -> Result<Option<String>> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.last.push(line.clone());
                if self.last.len() > 40 {
                    self.last.remove(0);
                }
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "the virtual machine said nothing in time; its last lines:\n{}",
                    self.last.join("\n")
                )
            }
        }
    }

    /// Presses its reset button.
    pub(crate) fn reset(&self) -> Result<()> {
        let mut stream = UnixStream::connect(&self.control).context("QEMU does not listen")?;
        stream.set_read_timeout(Some(CONTROL_LIMIT))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        for order in ["qmp_capabilities", "system_reset"] {
            writeln!(stream, "{{\"execute\":\"{order}\"}}")?;
            loop {
                line.clear();
                answers.read_line(&mut line).with_context(|| format!("no answer to {order}"))?;
                // Events may come between.
                if line.contains("\"return\"") {
                    break;
                }
                if line.is_empty() || line.contains("\"error\"") {
                    bail!("QEMU answered {order} with {line:?}");
                }
            }
        }
        Ok(())
    }

    /// The signal that ended QEMU, if one did, once its console is closed.
    pub(crate) fn ended_by(&mut self) -> Result<Option<i32>> {
        let deadline = Instant::now() + CONTROL_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot ask after QEMU")? {
                return Ok(status.signal());
            }
            ensure!(Instant::now() < deadline, "QEMU closed its console and goes on");
            thread::yield_now();
        }
    }

    /// Ends it, as a crash of QEMU would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill QEMU")?;
        self.child.wait().context("cannot wait for QEMU")?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.control);
    }
}

/// The board: no KVM, so that it is the same everywhere; an IOMMU that remaps interrupts; memory as a file,
/// which the processes behind the NPUs can map.
fn arrange(command: &mut Command, parts: &Parts<'_>) {
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]);
    command.args(["-cpu", "max", "-smp", "2", "-m", MEMORY]);
    command.args(["-object", &format!("memory-backend-memfd,id=ram,size={MEMORY},share=on")]);
    command.args(["-machine", "q35,accel=tcg,kernel-irqchip=split,memory-backend=ram"]);
    command.args(["-device", "intel-iommu,intremap=on,caching-mode=on"]);
    for (index, socket) in parts.sockets.iter().enumerate() {
        let device = serde_json::json!({
            "driver": "vfio-user-pci",
            "addr": format!("{:#x}", FIRST_SLOT + index),
            "socket": { "type": "unix", "path": socket },
        });
        command.arg("-device").arg(device.to_string());
    }
    let control = format!("unix:{},server=on,wait=off", parts.control.display());
    command.args(["-qmp", &control]);
    if !parts.may_reset {
        command.arg("-no-reboot");
    }
    command.args([
        "-append",
        "console=ttyS0 quiet panic=-1 intel_iommu=on no_timer_check rdinit=/init",
    ]);
}

/// Of the whole machine; what is not touched costs nothing.
const MEMORY: &str = "2G";
