//! Who computes during a run: threads that the session lends, or a pool of our own.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use libnpu::{Caller, Pool, Workers};
use ort_sys::OrtKernelContext;

use super::api::{Api, call};

/// Where the threads of a session's runs come from.
#[derive(Debug)]
pub(crate) enum Threads {
    /// The session's own pool, as wide as the machine; a session of one thread runs the pieces in turn.
    Lent(usize),
    /// The calling thread.
    Caller,
    /// A pool of the provider, for the option `threads`.
    Own(Pool),
}

impl Threads {
    /// As asked for by the option `threads`.
    pub(crate) fn new(asked: Option<NonZeroUsize>) -> Self {
        match asked.map(NonZeroUsize::get) {
            None => match thread::available_parallelism().map_or(1, NonZeroUsize::get) {
                1 => Self::Caller,
                count => Self::Lent(count),
            },
            Some(1) => Self::Caller,
            Some(count) => Self::Own(Pool::new(count)),
        }
    }

    /// Calls `body` with the workers of one run.
    pub(crate) fn with<R>(
        &self,
        api: &Api,
        context: *const OrtKernelContext,
        body: impl FnOnce(&dyn Workers) -> R,
    ) -> R {
        match self {
            Self::Lent(count) => body(&Lent { api, context, count: *count }),
            Self::Caller => body(&Caller),
            Self::Own(pool) => body(pool),
        }
    }
}

/// The pool of the session, lent for one run.
#[derive(Debug)]
struct Lent<'a> {
    api: &'a Api,
    context: *const OrtKernelContext,
    count: usize,
}

// SAFETY: the context is only read, to find the pool, which takes work from any thread.
unsafe impl Sync for Lent<'_> {}

/// One call of `run`, as the threads see it.
struct Work<'a> {
    piece: &'a (dyn Fn(usize) + Sync),
    done: Vec<AtomicBool>,
    panicked: AtomicBool,
}

impl Workers for Lent<'_> {
    fn count(&self) -> usize {
        self.count
    }

    fn run(&self, piece: &(dyn Fn(usize) + Sync)) {
        let done = (0..self.count).map(|_| AtomicBool::new(false)).collect();
        let work = Work { piece, done, panicked: AtomicBool::new(false) };
        let data = (&raw const work).cast_mut().cast::<c_void>();
        // The pool returns when every piece has; 0 leaves how they are dealt out to it.
        let lent = call!(
            self.api,
            KernelContext_ParallelFor(self.context, one_piece, self.count, 0, data)
        );
        if lent.is_err() {
            for index in 0..self.count {
                work.one(index);
            }
        }
        assert!(!work.panicked.load(Ordering::Relaxed), "a piece of an NPU operation panicked");
    }
}

impl Work<'_> {
    /// Runs the piece unless it has run.
    fn one(&self, index: usize) {
        let Some(done) = self.done.get(index) else { return };
        // Relaxed: the flag only says who runs it; the pool orders the work itself.
        if done.swap(true, Ordering::Relaxed) {
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| (self.piece)(index))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }
}

unsafe extern "C" fn one_piece(data: *mut c_void, index: usize) {
    // SAFETY: `run` passes its `Work`, shared, and waits for every piece before it returns.
    let work: &Work<'_> = unsafe { &*data.cast() };
    work.one(index);
}
