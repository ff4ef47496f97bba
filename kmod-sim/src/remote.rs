//! Memory of the driver that is not mapped in this process: reached by copies, which may fail.

use std::fmt;

/// Why a copy did not take place, or not all of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CopyError {
    /// The memory is gone, refuses, or does not answer in time.
    #[cfg_attr(not(feature = "server"), expect(dead_code, reason = "for clients elsewhere"))]
    Failed,
    /// The caller wanted it to end.
    Aborted,
}

/// Asked between pieces of a copy: whether to end it.
pub(crate) type IsAborted<'a> = &'a dyn Fn() -> bool;

/// Memory behind something else than an address of this process.
///
/// What it holds may change at any time, and it may cease to be there: that is an error, no more.
pub(crate) trait Remote: fmt::Debug + Send + Sync {
    /// Copies the bytes from `at` on to `out`.
    fn read(&self, at: u64, out: &mut [u8], is_aborted: IsAborted<'_>) -> Result<(), CopyError>;

    /// Copies `bytes` to `at`.
    fn write(&self, at: u64, bytes: &[u8], is_aborted: IsAborted<'_>) -> Result<(), CopyError>;

    /// Whether copies end by themselves, soon: no peer has to do anything for them.
    ///
    /// Only such memory is touched while the function is locked. A peer that waits for a register could
    /// not answer meanwhile.
    fn is_prompt(&self) -> bool;
}
