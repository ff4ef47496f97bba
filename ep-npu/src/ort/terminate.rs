//! `RunOptions.terminate`, seen from inside a run. Unsafe: it reads a byte of an object of the runtime's.
//!
//! ONNX Runtime looks at the flag before each node, and the interface of providers has no way to ask
//! for it. Where in the run options it lies is measured: on run options of our own, which byte follows
//! as the flag is set and unset. Where none does, or more than one, runs end between nodes as ever.

use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU8;

use ort_sys::OrtRunOptions;

use crate::run::StopFlag;

use super::api::{Api, call};

/// How many bytes of run options are compared: two numbers, a string, the flag. No version has fewer.
const SEARCHED: usize = 48;

/// Where the flag lies in the run options of a runtime.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FlagOffset(usize);

impl FlagOffset {
    /// Measures it.
    pub(crate) fn measure(api: &Api) -> Option<Self> {
        let options = Options::new(api)?;
        let before = options.bytes();
        call!(api, RunOptionsSetTerminate(options.raw)).ok()?;
        let set = options.bytes();
        call!(api, RunOptionsUnsetTerminate(options.raw)).ok()?;
        only_follower([before, set, options.bytes()]).map(Self)
    }
}

/// The only byte that is 0, 1 and 0 in the three states, when nothing else changed.
fn only_follower(states: [[u8; SEARCHED]; 3]) -> Option<usize> {
    let [before, set, unset] = states;
    let mut changed = (0..SEARCHED).filter(|&at| before[at] != set[at] || set[at] != unset[at]);
    let at = changed.next()?;
    let follows = (before[at], set[at], unset[at]) == (0, 1, 0);
    (follows && changed.next().is_none()).then_some(at)
}

/// Run options that we own.
struct Options<'a> {
    api: &'a Api,
    raw: *mut OrtRunOptions,
}

impl<'a> Options<'a> {
    fn new(api: &'a Api) -> Option<Self> {
        let mut raw = ptr::null_mut();
        call!(api, CreateRunOptions(&raw mut raw)).ok()?;
        (!raw.is_null()).then_some(Self { api, raw })
    }

    fn bytes(&self) -> [u8; SEARCHED] {
        let start = self.raw.cast_const().cast::<u8>();
        std::array::from_fn(|at| {
            // SAFETY: the object has more bytes than are searched.
            let byte = unsafe { start.add(at) };
            // SAFETY: it is live, nobody else has it, and a volatile read assumes nothing of the value.
            unsafe { byte.read_volatile() }
        })
    }
}

impl Drop for Options<'_> {
    fn drop(&mut self) {
        let table = self.api.ort();
        // SAFETY: the slot is in every version.
        let release = unsafe { (*table).ReleaseRunOptions };
        // SAFETY: ours, and not used again.
        unsafe { release(self.raw) };
    }
}

thread_local! {
    /// The options of the run that this thread is in. A run of models in a row is on one thread; where
    /// ONNX Runtime runs nodes in parallel, other threads know of none, and nodes end as ever.
    static CURRENT: Cell<*const OrtRunOptions> = const { Cell::new(ptr::null()) };
}

/// A run of these options begins on this thread.
pub(crate) fn begin(options: *const OrtRunOptions) {
    CURRENT.set(options);
}

/// The run on this thread has ended, and its options may be gone.
pub(crate) fn end() {
    CURRENT.set(ptr::null());
}

/// The flag of the run on this thread, to be used until it ends.
pub(crate) fn flag(offset: Option<FlagOffset>) -> Option<StopFlag> {
    let FlagOffset(offset) = offset?;
    let start = NonNull::new(CURRENT.get().cast_mut())?.cast::<AtomicU8>();
    // SAFETY: the flag was found there in run options of the same runtime.
    let byte = unsafe { start.add(offset) };
    // SAFETY: options live as long as their run, in which Compute is called.
    Some(unsafe { StopFlag::new(byte) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_byte_that_alone_follows_is_the_flag() {
        let zero = [0; SEARCHED];
        let with = |at: usize, value: u8| {
            let mut bytes = zero;
            bytes[at] = value;
            bytes
        };
        assert_eq!(only_follower([zero, with(40, 1), zero]), Some(40));
        assert_eq!(only_follower([zero; 3]), None, "it lies elsewhere");
        assert_eq!(only_follower([zero, with(40, 7), zero]), None);
        assert_eq!(only_follower([zero, with(40, 1), with(40, 1)]), None, "it stays");
        let mut two = with(8, 1);
        two[16] = 1;
        assert_eq!(only_follower([zero, two, zero]), None);
    }
}
