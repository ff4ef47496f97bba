//! Who computes when the device is in this process: one trait, lent by whoever has threads.

/// Threads that run the pieces of one operation.
///
/// Implemented by "the caller alone" ([`Caller`]), by the driver's own pool, and by a pool that a host
/// framework lends for the length of a call.
pub trait Workers: Sync {
    /// How many pieces run at once, at least 1. Constant for the lifetime of the value.
    fn count(&self) -> usize;

    /// Calls `piece(i)` once for each `i` in `0..count()`, some or all at the same time, and returns
    /// when every call has returned. `piece(0)` may run on the calling thread.
    fn run(&self, piece: &(dyn Fn(usize) + Sync));
}

/// The calling thread, alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller;

impl Workers for Caller {
    fn count(&self) -> usize {
        1
    }

    fn run(&self, piece: &(dyn Fn(usize) + Sync)) {
        piece(0);
    }
}
