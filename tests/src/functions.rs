//! The devices of the machine that these tests run in, where it is the guest of `cargo xtask vm`.
//!
//! Its NPUs come in pairs, a pair for each of [`crate::OPTIONS`]: one for the test, and one for what the
//! test opens beside it, since the kernel gives a device to one user at a time. Behind them is one for
//! injected faults, whose server has its management function in the guest too; then one of a newer ABI, and one
//! of an older. What is beyond the guest's
//! reach it asks of the host, in lines on the console that begin with `@@host`.

use libnpu::Device;
use libnpu::manage::Manager;
use std::io::{Write, stdout};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names the addresses, with commas between them.
const VARIABLE: &str = "NPU_TEST_FUNCTIONS";
/// Names the management function, as a device string.
const MANAGER: &str = "NPU_TEST_MANAGER";

/// The pair whose one device is for injected faults.
pub const OF_MATRIX: usize = 2;

/// The devices that say they speak ABI 2.0 to 3.1, and 1.0 only, by their place among [`addresses`].
pub const OF_NEWER_ABI: usize = 5;
/// As above.
pub const OF_OLDER_ABI: usize = 6;

static USED: Mutex<()> = Mutex::new(());

/// A device that no other test of this process uses.
#[derive(Debug)]
pub struct Function {
    address: String,
    _alone: MutexGuard<'static, ()>,
}

impl Function {
    /// The string that opens it.
    pub fn device(&self) -> String {
        format!("pci:{}", self.address)
    }
}

/// The addresses of the machine's NPUs.
///
/// # Panics
/// The machine is no guest of `cargo xtask vm`.
pub fn addresses() -> Vec<String> {
    variable(VARIABLE).split(',').map(str::to_owned).collect()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} names no device: these tests run in the guest of `cargo xtask vm`")
    })
}

/// The first device of pair `pair`, once nobody else has it.
///
/// # Panics
/// There is no such pair.
pub fn take(pair: usize) -> Function {
    take_at(pair * 2)
}

/// The device at `place` among [`addresses`], once nobody else has it.
///
/// # Panics
/// There is none.
pub fn take_at(place: usize) -> Function {
    let alone = USED.lock().unwrap_or_else(PoisonError::into_inner);
    let address = addresses().get(place).cloned();
    Function { address: address.expect("each of the options has its devices"), _alone: alone }
}

/// Says a line to the host, not to whoever collects the tests' output.
pub fn tell_host(order: &str, what: &str) {
    let lines: String = what.lines().map(|line| format!("@@host {order} {line}\n")).collect();
    let mut out = stdout().lock();
    // Another test's line may have begun. Without a console nobody can be told of that either.
    let _ = out.write_all(format!("\n{lines}").as_bytes()).and_then(|()| out.flush());
}

/// What names the management function of the device for injected faults. It has one user at a time, as a
/// device has: whoever holds that device may open it.
///
/// # Panics
/// The machine is no guest of `cargo xtask vm`.
pub fn manager_name() -> String {
    variable(MANAGER)
}

/// What manages the device for injected faults.
///
/// # Panics
/// It cannot be opened.
pub fn manager() -> Manager {
    let name = manager_name();
    Manager::open(&name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What opens a device of its own beside `device`, which is open: the same string where one string gives
/// each who opens it a device, else the other of its pair.
///
/// # Panics
/// It is none of the machine's pairs.
pub fn beside(device: &Device) -> String {
    let Some(address) = device.name().strip_prefix("pci:") else {
        return device.name().to_owned();
    };
    let all = addresses();
    let at = all.iter().position(|known| known == address).expect("it is one of the pairs");
    format!("pci:{}", all[at ^ 1])
}
