//! The devices of the machine that these tests run in, where it is the guest of `cargo xtask vm`.
//!
//! Its NPUs come in pairs, a pair for each of [`crate::OPTIONS`]: one for the test, and one for what the
//! test opens beside it, since the kernel gives a device to one user at a time. Behind them is one for
//! injected faults. What is beyond the guest's reach it asks of the host, in lines on the console that
//! begin with `@@host`.

use libnpu::Device;
use std::io::{Write, stdin, stdout};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names the addresses, with commas between them.
const VARIABLE: &str = "NPU_TEST_FUNCTIONS";

/// The pair whose one device is for injected faults.
pub const OF_MATRIX: usize = 2;

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
    let all = std::env::var(VARIABLE).unwrap_or_else(|_| {
        panic!("{VARIABLE} names no devices: these tests run in the guest of `cargo xtask vm`")
    });
    all.split(',').map(str::to_owned).collect()
}

/// The first device of pair `pair`, once nobody else has it.
///
/// # Panics
/// There is no such pair.
pub fn take(pair: usize) -> Function {
    let alone = USED.lock().unwrap_or_else(PoisonError::into_inner);
    let address = addresses().get(pair * 2).cloned();
    Function { address: address.expect("each of the options has a pair"), _alone: alone }
}

/// Says a line to the host, not to whoever collects the tests' output.
pub fn tell_host(order: &str, what: &str) {
    let lines: String = what.lines().map(|line| format!("@@host {order} {line}\n")).collect();
    let mut out = stdout().lock();
    // Another test's line may have begun. Without a console nobody can be told of that either.
    let _ = out.write_all(format!("\n{lines}").as_bytes()).and_then(|()| out.flush());
}

/// What the management socket behind pair `pair` replies to `request`, a JSON object.
///
/// # Panics
/// The host does not answer.
pub fn manage(pair: usize, request: &str) -> String {
    tell_host(&format!("manage {pair}"), request);
    let mut reply = String::new();
    stdin().read_line(&mut reply).expect("the console can be read");
    assert!(reply.starts_with('{'), "the host said {reply:?}");
    reply
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
