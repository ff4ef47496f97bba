//! Reading telemetry pages of BAR4.

use crate::error::Error;
use crate::transport::{Transport, TransportError};
use npu_uapi::telemetry::{self, PAGE_BYTES, Snapshot, TelemetryError};
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Byte of the word that is odd while the others change.
const SEQUENCE_AT: u32 = 12;
/// Most looks at a page that does not come to rest. Each reads all of it.
const LOOKS: u32 = 1000;

/// Why a page was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Page(#[from] TelemetryError),
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Transport(error) => error.into(),
            ReadError::Page(error) => error.into(),
        }
    }
}

/// Reads the words of page `place` that are in use one by one; `None` where they changed meanwhile.
pub(crate) fn word_by_word(
    place: u32,
    read: impl Fn(u32) -> Result<u32, TransportError>,
) -> Result<Option<Vec<u32>>, TransportError> {
    let word = |at: u32| read(place * PAGE_BYTES + at);
    // In this order: a management function takes the snapshot at the first, and the sequence comes before
    // what it guards.
    let head = [word(0)?, word(4)?, word(8)?];
    let bytes = head[2].min(PAGE_BYTES);
    let rest = (SEQUENCE_AT..bytes).step_by(4).map(word).collect::<Result<Vec<_>, _>>()?;
    // Between the words and the second look at the sequence, as in `telemetry::read`.
    fence(Ordering::Acquire);
    let is_whole = match rest.first() {
        Some(&before) => before.is_multiple_of(2) && word(SEQUENCE_AT)? == before,
        // What is no page says so.
        None => true,
    };
    Ok(is_whole.then(|| head.into_iter().chain(rest).collect()))
}

/// What page `place` of `device` says now.
///
/// # Errors
/// It has none, cannot be reached, or the page changes without end.
pub(crate) fn read(device: &dyn Transport, place: u32) -> Result<Snapshot, ReadError> {
    for _ in 0..LOOKS {
        if let Some(words) = device.telemetry_page(place)? {
            let words: Vec<AtomicU32> = words.into_iter().map(AtomicU32::new).collect();
            return Ok(telemetry::read(&&words[..])?);
        }
    }
    Err(TelemetryError::Changing.into())
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
