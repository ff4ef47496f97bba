//! `cargo xtask vm`: the driver behind a real kernel's VFIO, in a virtual machine whose PCI devices are
//! functions of `npu-sim`.
//!
//! ```text
//! tools.rs       QEMU and a kernel, fetched once       machine.rs  QEMU as a child, its console
//! programs.rs    what runs in the guest                guest.rs    steps in the guest, read off the console
//! classifier.rs  a model, with what the host makes of it
//! crashes.rs     machines that are reset or killed, or whose device is
//! archive.rs     the guest's first file system
//! ```
//!
//! The guest has no userland but the project's own programs, the very ones that run here, with the loader
//! and libraries of this machine. Its first program is `npu-guest`. A client on this machine is at work all
//! the while, on the same device as the guest.

#[path = "vm/archive.rs"]
mod archive;
#[path = "vm/classifier.rs"]
mod classifier;
#[path = "vm/crashes.rs"]
mod crashes;
#[path = "vm/guest.rs"]
mod guest;
#[path = "vm/machine.rs"]
mod machine;
#[path = "vm/programs.rs"]
mod programs;
#[path = "vm/tools.rs"]
mod tools;

use std::iter::repeat_n;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libnpu::{Caller, Device, Memory};

use crate::setup;
use crate::simulator::Simulator;
use crate::tally::Tally;
use guest::{Ended, Guest, Step};
use machine::Parts;
use programs::Programs;
use tools::Tools;

/// What the devices in the guest are made of: as the tests over each transport have them, for faults, and of
/// another ABI than the guest's, newer and older.
const OPTIONS: [&str; 5] =
    ["", "strict=1,macs=256,sram=512K,saturation=1", "hang_ms=300", "abi=2.0-3.1", "abi=1.0-1.0"];
/// How many devices of each there are: two for the tests, which open another beside; one for faults, and of
/// each ABI.
const DEVICES: [usize; 5] = [2, 2, 1, 1, 1];
/// Which of them is for faults, and ends in `crashes.rs`.
const FOR_FAULTS: usize = 2;
/// The step that runs the tests of each transport.
const STACK: &str = "stack over pci";
/// The tests under which a server ends, and those of `npu-smi`, each with a step of its own.
const TROUBLE: &str = "trouble::";
const SMI: &str = "smi::";
/// How long a step of the guest may take; of all its tests the longest waits two minutes for a device.
const STEP_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Runs all; the tests that passed.
pub(crate) fn run() -> Result<Tally> {
    let tools = Tools::ready()?;
    let programs = Programs::ready()?;
    let folder = setup::target().join("vm").join(format!("run-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let started = Instant::now();
    let outcome = machines(&tools, &programs, &folder);
    // Only room on the disk.
    let _ = std::fs::remove_dir_all(&folder);
    println!("the virtual machines took {:.1} s", started.elapsed().as_secs_f64());
    outcome
}

/// The machines: one in which all is as it should be, and those of `crashes.rs`.
fn machines(tools: &Tools, programs: &Programs, folder: &Path) -> Result<Tally> {
    let servers = OPTIONS.map(|options| Simulator::run(&programs.server, options));
    let mut servers: Vec<Simulator> = servers.into_iter().collect::<Result<_>>()?;
    let client = servers.first().context("there are servers")?.device();
    let ((ended, crashed), rounds) = with_client(&client, || -> Result<_> {
        let ended = tests(tools, programs, folder, &mut servers)?;
        let server = servers.first().context("there are servers")?;
        let mut crashed = crashes::of_the_guest(tools, programs, folder, server)?;
        crashed += crashes::of_a_server(tools, programs, folder, &mut servers)?;
        Ok((ended, crashed))
    })?;
    println!("a client on the host finished {rounds} jobs meanwhile, each with the right bytes");
    report(&ended, programs)?;
    println!("crashes: a reset, a killed QEMU and a killed server: {} passed", crashed.passed);
    Ok(ended.iter().map(|ended| ended.tally).fold(crashed, |mut total, tally| {
        total += tally;
        total
    }))
}

/// The machine whose guest runs all that passes or fails by itself.
fn tests(
    tools: &Tools,
    programs: &Programs,
    folder: &Path,
    servers: &mut [Simulator],
) -> Result<Vec<Ended>> {
    let (mut sockets, functions) = functions(servers);
    let managed = servers.get(FOR_FAULTS).context("there are servers")?;
    let manager = format!("NPU_TEST_MANAGER=pci:{}", machine::address(sockets.len()));
    sockets.push(managed.function().to_owned());
    let tests =
        |name, run: &[&str]| Step::new(name, STEP_LIMIT, run).with(&functions).with(&manager);
    let first = format!("pci:{}", machine::address(0));
    let others = ["/bin/guest", "--test-threads=1", "--skip", TROUBLE, "--skip", SMI];
    let steps = [
        Step::new("npu selftest", STEP_LIMIT, &["/bin/npu", "selftest", "--device", &first]),
        tests(STACK, &["/bin/stack", "::pci::"]),
        tests("npu-smi", &["/bin/guest", "--test-threads=1", SMI]),
        tests("guest only", &others),
    ];
    let archive = folder.join("tests.cpio");
    std::fs::write(&archive, programs.archive(tools, &steps)?)?;
    let control = control("tests");
    let parts = Parts { archive: &archive, sockets: &sockets, control: &control, may_reset: false };
    let guest = Guest::start(tools, &parts, &steps)?;
    guest.run(&mut |order| serve(order, servers))
}

/// The socket behind each device, and the variable that tells the tests of them.
fn functions(servers: &[Simulator]) -> (Vec<PathBuf>, String) {
    let sockets = servers.iter().zip(DEVICES);
    let sockets = sockets.flat_map(|(server, count)| repeat_n(server.socket().to_owned(), count));
    let sockets: Vec<PathBuf> = sockets.collect();
    let addresses: Vec<String> = (0..sockets.len()).map(machine::address).collect();
    (sockets, format!("NPU_TEST_FUNCTIONS={}", addresses.join(",")))
}

/// Where a machine's QEMU is controlled: not below the checkout, whose path may be longer than a socket's.
fn control(machine: &str) -> PathBuf {
    std::env::temp_dir().join(format!("npu-vm-{}-{machine}.sock", std::process::id()))
}

/// Does what the guest asks of the host.
fn serve(order: &str, servers: &mut [Simulator]) -> Result<()> {
    let (word, index) = order.split_once(' ').unwrap_or((order, ""));
    let server = index.parse().ok().and_then(|index: usize| servers.get_mut(index));
    match (word, server) {
        // Only for whoever reads along.
        ("table" | "note", _) => Ok(()),
        ("kill", Some(server)) => server.kill(),
        _ => bail!("the guest asks for `{order}`, which is not known here"),
    }
}

/// Prints what passed; refuses where the transports did not pass the same tests.
fn report(ended: &[Ended], programs: &Programs) -> Result<()> {
    println!("\n{:<16} {:>6} {:>6} {:>8}", "in the guest", "passed", "failed", "seconds");
    for Ended { name, tally, seconds } in ended {
        println!("{name:<16} {:>6} {:>6} {seconds:>8.1}", tally.passed, tally.failed);
    }
    let stack = ended.iter().find(|ended| ended.name == STACK).map(|ended| ended.tally);
    let passed = stack.context("the guest did not come to the tests over each transport")?.passed;
    println!("\n{:<16} {:>6} {:>14}", "transport", "tests", "passed here");
    let transports = programs.count_each_transport()?;
    for (name, count) in &transports {
        let here = if *name == "pci" { passed.to_string() } else { "-".to_owned() };
        println!("{name:<16} {count:>6} {here:>14}");
    }
    let is_equal = transports.iter().all(|(_, count)| *count == passed);
    ensure!(is_equal && passed > 0, "not as many tests passed over pci as each transport has");
    Ok(())
}

/// Does `work` while a client of the device `name` on this machine is at it; how many jobs it finished.
fn with_client<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let device = Device::open_private(name)?;
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let client = || -> Result<()> {
        let (context, buffer) = (device.create_context()?, device.allocate(1 << 16)?);
        let memory = Memory::from(&buffer);
        for value in (0..=u8::MAX).cycle() {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            context.fill(&memory, value)?.wait(&Caller, Duration::from_secs(60))?;
            ensure!(buffer.to_vec().iter().all(|&byte| byte == value), "wrong bytes");
            rounds.fetch_add(1, Ordering::Relaxed);
            // Beside the guest, not in its way.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    let done = std::thread::scope(|scope| {
        let client = scope.spawn(client);
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let ended = client.join().unwrap_or_else(|_| bail!("it panicked"));
        // The guest's failure may be the cause of the client's, not the other way round.
        let done = done?;
        ended.context("the client on the host failed")?;
        anyhow::Ok(done)
    })?;
    let rounds = rounds.into_inner();
    ensure!(rounds > 0, "the client on the host was not served");
    Ok((done, rounds))
}
