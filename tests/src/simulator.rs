//! `npu-sim` as a child process, for tests over a socket.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::HANG;

/// A server of virtual devices. It ends when this is dropped.
#[derive(Debug)]
pub struct Simulator {
    child: Child,
    socket: PathBuf,
    options: String,
}

/// Servers that tests share, by their options.
static SHARED: Mutex<Option<HashMap<String, Weak<Simulator>>>> = Mutex::new(None);
static STARTED: AtomicU32 = AtomicU32::new(0);

impl Simulator {
    /// A server of devices with `options`, shared with whoever else asks while it lives.
    ///
    /// # Panics
    /// As [`Simulator::start`].
    pub fn shared(options: &str) -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = shared.get_or_insert_default();
        if let Some(running) = shared.get(options).and_then(Weak::upgrade) {
            return running;
        }
        let started = Arc::new(Self::start(options));
        shared.insert(options.to_owned(), Arc::downgrade(&started));
        started
    }

    /// A server of devices with `options`, on a socket of its own.
    ///
    /// # Panics
    /// It cannot be built or does not start.
    pub fn start(options: &str) -> Self {
        Self::start_with(options, &[])
    }

    /// As [`Simulator::start`], with these variables in its environment until it is restarted.
    ///
    /// # Panics
    /// As [`Simulator::start`].
    pub fn start_with(options: &str, environment: &[(&str, &str)]) -> Self {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("npu-sim-{}-{number}.sock", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let child = spawn(&socket, options, environment);
        Self { child, socket, options: options.to_owned() }
    }

    /// The string that opens a device of it.
    pub fn device(&self) -> String {
        format!("vfio-user:{}", self.socket.display())
    }

    /// Where it is managed.
    pub fn management_socket(&self) -> PathBuf {
        management_socket(&self.socket)
    }

    /// The string that opens its management function.
    pub fn management_function(&self) -> String {
        format!("vfio-user:{}", management_function(&self.socket).display())
    }

    /// What the management socket replies to `request`, a JSON object.
    ///
    /// # Panics
    /// It replies with no JSON, or not in time.
    pub fn manage(&self, request: &str) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.management_socket()).expect("it listens");
        stream.set_read_timeout(Some(HANG)).expect("a deadline can be set");
        writeln!(stream, "{request}").expect("it reads");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("it replies in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    /// It does not end in time.
    pub fn stop(&mut self) -> ExitStatus {
        let id = i32::try_from(self.child.id()).expect("the system numbers processes so");
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("a child of ours can be asked");
        let deadline = Instant::now() + HANG;
        loop {
            if let Some(status) = self.child.try_wait().expect("and waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "npu-sim does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it, as a crash would.
    ///
    /// # Panics
    /// The system does not let it.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours can be killed");
        self.child.wait().expect("and waited for");
    }

    /// Starts it anew after [`Simulator::kill`], at the same path.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&mut self) {
        self.child = spawn(&self.socket, &self.options, &[]);
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // It may have been killed before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.management_socket());
        let _ = std::fs::remove_file(management_function(&self.socket));
    }
}

fn management_socket(socket: &Path) -> PathBuf {
    socket.with_extension("manage")
}

fn management_function(socket: &Path) -> PathBuf {
    socket.with_extension("function")
}

fn spawn(socket: &Path, options: &str, environment: &[(&str, &str)]) -> Child {
    let mut command = Command::new(program());
    command.envs(environment.iter().copied());
    command.arg("--socket").arg(socket).args(["--device", options]);
    command.arg("--manage").arg(management_socket(socket));
    command.arg("--manage-function").arg(management_function(socket));
    let mut child = command.stdout(Stdio::piped()).spawn().expect("npu-sim starts");
    let output = child.stdout.take().expect("its output is a pipe");
    let (sender, receiver) = channel();
    // Ends with the child's output; read elsewhere, so that a silent child cannot hold the test up.
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Nobody listens once it runs.
            let _ = sender.send(line);
        }
    });
    match receiver.recv_timeout(HANG) {
        Ok(line) if line.starts_with("listening on") => child,
        other => {
            let _ = child.kill();
            panic!("npu-sim said {other:?}, not that it listens");
        }
    }
}

/// The program, built as these tests were: with the same profile, into the same folder.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().expect("a test knows its path");
        // TARGET/PROFILE/deps/TEST
        let folder = test.ancestors().nth(2).expect("tests lie in the target folder");
        let target = folder.parent().expect("a profile has a target folder");
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml");
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "kmod-sim", "--bin", "npu-sim"]);
        build.args(["--profile", profile]).arg("--manifest-path").arg(manifest);
        build.arg("--target-dir").arg(target);
        let status = build.status().expect("cargo runs");
        assert!(status.success(), "npu-sim does not build");
        folder.join("npu-sim")
    })
}
