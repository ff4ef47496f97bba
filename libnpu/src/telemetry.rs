//! Reading the telemetry page of a device, BAR4, word by word.

use crate::error::Error;
use crate::transport::{Transport, TransportError};
use npu_uapi::telemetry::{self, PAGE_BYTES, Snapshot, TelemetryError};
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Byte of the word that is odd while the others change.
const SEQUENCE_AT: u32 = 12;
/// Most looks at a page that does not come to rest. Each reads all of it.
const LOOKS: u32 = 1000;

/// The words of page `place` of BAR4 that are in use.
pub(crate) fn page(device: &dyn Transport, place: u32) -> Result<Vec<AtomicU32>, TransportError> {
    let word = |at: u32| device.telemetry_read(place * PAGE_BYTES + at).map(AtomicU32::new);
    // In this order: a management function takes the snapshot at the first, and the sequence comes before
    // what it guards.
    let head = [word(0)?, word(4)?, word(8)?];
    let bytes = head[2].load(Ordering::Relaxed).min(PAGE_BYTES);
    let rest = (SEQUENCE_AT..bytes).step_by(4).map(word).collect::<Result<Vec<_>, _>>()?;
    Ok(head.into_iter().chain(rest).collect())
}

/// What the one page of `device` says now.
///
/// # Errors
/// It has none, cannot be reached, or the page changes without end.
pub(crate) fn read(device: &dyn Transport) -> Result<Snapshot, Error> {
    for _ in 0..LOOKS {
        let words = page(device, 0)?;
        // Between the words and the second look at the sequence, as in `telemetry::read`.
        fence(Ordering::Acquire);
        let after = device.telemetry_read(SEQUENCE_AT)?;
        let before = words.get(3).map(|word| word.load(Ordering::Relaxed));
        // What is no page says so; one that changed meanwhile is read again.
        if before.is_some_and(|before| before != after || before % 2 == 1) {
            continue;
        }
        return Ok(telemetry::read(&&words[..])?);
    }
    Err(Error::Telemetry(TelemetryError::Changing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn a_device_in_this_process_shows_what_it_has_done_as_any_other_does() {
        let device = Device::open_private("sim:saturation=1,mhz=700").unwrap();
        let before = device.telemetry().unwrap();
        assert_eq!(before.gauges.unwrap().clock_khz, 700_000);
        assert_eq!(before.saturation.unwrap().is_counted, 1);
        let counters = device.counters().unwrap();
        let after = device.telemetry().unwrap();
        assert!(after.counters.interrupts > before.counters.interrupts);
        assert_eq!(after.counters.cycles, counters.cycles);
        assert!(device.transport().telemetry_read(PAGE_BYTES).is_err());
    }
}
