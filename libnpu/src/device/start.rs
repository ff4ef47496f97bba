//! From a transport to a device that serves: is it an NPU, of an ABI in common; quiet; its rings; ready.

use super::ADMIN_TIMEOUT;
use crate::buffer::Buffer;
use crate::error::{Error, Loss};
use crate::faults::{Faults, halves};
use crate::heap::Heap;
use crate::queue::Queue;
use crate::transport::{Transport, TransportExt};
use npu_uapi::reg::Register;
use npu_uapi::regs::{
    self, ABI, AbiRange, AdminBaseHigh, AdminBaseLow, AdminSize, Ctrl, IrqMask, MAGIC, Magic, state,
};
use npu_uapi::ring::RingLayout;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it may take to notice that it is to change its state.
const STATE_TIMEOUT: Duration = Duration::from_secs(2);

/// Log2 of the admin queue's rings.
const ADMIN_LOG2: u32 = 6;

/// Whether an NPU with a version of the ABI in common is there; its highest.
pub(super) fn check_identity(name: &str, transport: &dyn Transport) -> Result<u32, Error> {
    let magic = transport.read::<Magic>()?.raw();
    if magic != MAGIC {
        return Err(Error::NotAnNpu { device: name.to_owned(), found: magic });
    }
    let range: AbiRange = transport.read()?;
    let device = (range.get(AbiRange::LOW), range.get(AbiRange::HIGH));
    let has_common = device.0 <= u32::from(ABI.1) && u32::from(ABI.0) <= device.1;
    if !has_common {
        return Err(Error::AbiMismatch { device, library: ABI });
    }
    Ok(device.1)
}

/// Resets the device and waits until it no longer touches memory.
pub(super) fn quiet(transport: &dyn Transport) -> Result<(), Error> {
    transport.write(Ctrl::default().with(Ctrl::RESET, true))?;
    wait_state(transport, state::RESET)
}

/// Starts a quiet device: fault ring, admin queue, ready.
pub(super) fn bring_up(heap: &Arc<Heap>, faults: &Faults) -> Result<Queue, Error> {
    let transport = heap.transport.as_ref();
    faults.start(transport)?;
    let lost = |error| Error::Lost { queue: 0, why: Loss::Ring(error) };
    let layout = RingLayout::new(ADMIN_LOG2, ADMIN_LOG2).map_err(lost)?;
    let region = Buffer::new(heap, layout.total_bytes())?;
    let (low, high) = halves(region.iova().raw());
    transport.write(AdminBaseLow::from_raw(low))?;
    transport.write(AdminBaseHigh::from_raw(high))?;
    let size = AdminSize::default().with(AdminSize::SQ_LOG2, ADMIN_LOG2);
    transport.write(size.with(AdminSize::CQ_LOG2, ADMIN_LOG2))?;
    transport.write(IrqMask::default().with(IrqMask::ADMIN, true))?;
    let queue = Queue::new(heap, (0, 0), region, layout)?;
    transport.write(Ctrl::default().with(Ctrl::ENABLE, true))?;
    wait_state(transport, state::READY)?;
    Ok(queue)
}

fn wait_state(transport: &dyn Transport, want: u32) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        let found = transport.read::<regs::Status>()?.get(regs::Status::STATE);
        let waited = started.elapsed();
        if found == want {
            return Ok(());
        }
        // It may take longer to end a job, but says that it does.
        let patience = if found == state::QUIESCING { ADMIN_TIMEOUT } else { STATE_TIMEOUT };
        if waited > patience {
            return Err(Error::State { found, want, waited });
        }
        // A register has no interrupt to wait for here; the device changes within milliseconds.
        std::thread::yield_now();
    }
}
