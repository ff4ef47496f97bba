//! A client that is to be killed: opens a device and keeps it busy with long jobs, for a minute at most.

use libnpu::{Access, Caller, Device, Error, Memory};
use npu_tests::{image, product, product_slots};
use npu_uapi::addr::SlotId;
use std::io::Write;
use std::time::{Duration, Instant};

/// How long it lives when nobody kills it.
const LIFE: Duration = Duration::from_secs(60);
/// Products in a job: some hundred milliseconds of work in little memory.
const PRODUCTS: u32 = 64;
const SIZE: (u32, u32, u32) = (256, 256, 4096);
/// Jobs in flight.
const JOBS: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("the argument is a device string")?;
    let device = Device::open_private(&name)?;
    let context = device.create_context()?;
    let (m, n, k) = SIZE;
    let slots = product_slots(m, n, k);
    let commands: Vec<_> = (0..PRODUCTS).map(|op| product(m, n, k, op)).collect();
    let program = context.load(&image(&slots, &commands))?;
    let mut overlay = Vec::new();
    for (slot, (_, len)) in (0..).zip(slots) {
        let buffer = device.allocate(usize::try_from(len)?)?;
        overlay.push((SlotId(slot), Memory::buffer(&buffer, 0, len, Access::ReadWrite)?));
    }
    let submit = || context.exec(&program, None, overlay.clone());
    let mut jobs = (0..JOBS).map(|_| submit()).collect::<Result<Vec<_>, Error>>()?;
    let mut out = std::io::stdout();
    out.write_all(b"busy\n")?;
    out.flush()?;
    let end = Instant::now() + LIFE;
    while Instant::now() < end {
        jobs.remove(0).wait(&Caller, LIFE)?;
        jobs.push(submit()?);
    }
    Err("nobody killed it".into())
}
