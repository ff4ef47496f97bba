//! What a run of a warm session asks of the kernel: nothing.
//!
//! A child process runs a model until it is warm, then forbids itself every system call but the one that
//! says how far it has come, and runs on. Whoever makes another is killed.

use ep_npu::{Device, Session};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/digits.qdq.onnx");
/// In the child's environment: what it does between its runs.
const BETWEEN: &str = "NPU_TEST_BETWEEN_RUNS";
const RAN: &str = "1000 runs without a system call\n";
/// Killed for a system call.
const SIGSYS: i32 = 31;

fn child(between: &str) -> Output {
    let exe = std::env::current_exe().expect("this test has a file");
    let name = "the_child_runs_a_warm_session_and_calls_nobody";
    let args = ["--exact", name, "--nocapture", "--test-threads=1"];
    Command::new(exe).args(args).env(BETWEEN, between).output().expect("it starts again")
}

#[test]
fn a_warm_session_makes_no_system_call() {
    let done = child("nothing");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains(RAN), "{}: {said}", done.status);
}

#[test]
fn a_child_that_does_make_one_is_killed() {
    let done = child("yield");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!said.contains(RAN) && done.status.signal() == Some(SIGSYS), "{}: {said}", done.status);
}

/// Not a test of its own: without a parent that asks for it, it only loads the model.
#[test]
fn the_child_runs_a_warm_session_and_calls_nobody() {
    let device = Device::open("sim").unwrap();
    let session = Session::builder(&device).threads(NonZeroUsize::MIN).load(MODEL).unwrap();
    let mut binding = session.bind(&[&[1, 1, 28, 28]]).unwrap();
    for _ in 0..10 {
        binding.run().unwrap();
    }
    let Ok(between) = std::env::var(BETWEEN) else { return };
    let write = (libc::SYS_write, Vec::new());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter =
        SeccompFilter::new([write].into(), SeccompAction::KillProcess, SeccompAction::Allow, arch);
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    let mut out = std::io::stderr().lock();
    seccompiler::apply_filter_all_threads(&filter).unwrap();
    for _ in 0..1000 {
        binding.run().unwrap();
        if between == "yield" {
            std::thread::yield_now();
        }
    }
    out.write_all(RAN.as_bytes()).unwrap();
    // What follows is killed: leaving is a system call, too.
}
