//! The first and only program of the test's virtual machine: no shell, no other userland.
//!
//! It mounts what the kernel shows, loads the modules of `/modules` in order of their names, gives every NPU
//! to vfio-pci, runs the steps of `/plan.json` one after another, and turns the machine off. What it says of
//! that on the console begins with `@@`, for `cargo xtask vm`, which has the deadlines.

#![expect(clippy::print_stdout, reason = "the console is where this program reports")]

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use npu_uapi::regs::pci::VENDOR;
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() {
    match run() {
        Ok(()) => println!("@@ done"),
        Err(error) => println!("@@ failed {error}"),
    }
    // The console must have it all.
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(error) => println!("@@ failed cannot turn the machine off: {error}"),
    }
}

fn run() -> Outcome<()> {
    for (kind, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")]
    {
        fs::create_dir_all(at)?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .map_err(|error| format!("cannot mount {at}: {error}"))?;
    }
    println!("@@ up {}", first_word(&fs::read_to_string("/proc/uptime")?));
    for module in sorted(Path::new("/modules"))? {
        finit_module(File::open(&module)?, c"", ModuleInitFlags::empty())
            .map_err(|error| format!("cannot load {}: {error}", module.display()))?;
    }
    let plan: serde_json::Value = serde_json::from_slice(&fs::read("/plan.json")?)?;
    if let Some(pages) = plan["huge_pages"].as_u64() {
        fs::write("/proc/sys/vm/nr_hugepages", pages.to_string())?;
    }
    println!("@@ bound {}", bind()?.join(" "));
    for step in plan["steps"].as_array().ok_or("the plan has no steps")? {
        take(step)?;
    }
    Ok(())
}

/// Gives every NPU to vfio-pci; their addresses.
fn bind() -> Outcome<Vec<String>> {
    let mut bound = Vec::new();
    for device in sorted(Path::new("/sys/bus/pci/devices"))? {
        let vendor = fs::read_to_string(device.join("vendor"))?;
        let address = device.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if vendor.trim() == format!("{VENDOR:#06x}") {
            fs::write(device.join("driver_override"), "vfio-pci")?;
            fs::write("/sys/bus/pci/drivers_probe", address)?;
            bound.push(address.to_owned());
        }
    }
    Ok(bound)
}

/// Runs one step: a program, its arguments and its environment.
fn take(step: &serde_json::Value) -> Outcome<()> {
    let name = step["name"].as_str().ok_or("a step has no name")?;
    let texts = |key: &str| {
        let values = step[key].as_array().into_iter().flatten();
        values.filter_map(|value| value.as_str().map(str::to_owned)).collect::<Vec<String>>()
    };
    let arguments = texts("run");
    let (program, arguments) = arguments.split_first().ok_or("a step has no program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/tmp");
    for variable in texts("environment") {
        let (key, value) = variable.split_once('=').ok_or("a variable has no value")?;
        command.env(key, value);
    }
    println!("@@ begin {name}");
    match command.status() {
        Ok(status) => println!("@@ end {name} {}", status.code().unwrap_or(-1)),
        Err(error) => println!("@@ end {name} -1 {error}"),
    }
    Ok(())
}

/// What a folder has, in order of the names.
fn sorted(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths = entries.collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}
